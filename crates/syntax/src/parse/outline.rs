//! A pass over the bytes that knows strings, comments and brackets and nothing else. It finds where a text may be cut into
//! pieces, whether it nests too deep for the parser, and (for recovery) which bracket is open on which line.

use super::reader::MAX_DEPTH;

/// What the pass meets, in the order of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// `(`, `[`, `{`, or the `{` of `${`.
    Open(u8, usize),
    /// `)`, `]` or `}`.
    Close(u8, usize),
    /// A line begins here; not told of lines inside of block strings.
    Line(usize),
    /// A string that begins here is not closed on its line, or a block not at all.
    OpenString(usize),
    /// The word `if` outside of strings.
    If(usize),
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Go {
    On,
    Stop,
}

/// Where inside of strings the pass is: one for each `${` that is open.
#[derive(Clone, Copy)]
struct Interp {
    /// Whether the string around it is a block.
    block: bool,
    /// Where that string began.
    string: usize,
    /// Braces open inside.
    braces: usize,
}

/// Goes over `text` and tells `tell` what it meets.
pub(super) fn scan(text: &str, mut tell: impl FnMut(Event) -> Go) {
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut interps: Vec<Interp> = Vec::new();
    macro_rules! tell {
        ($event:expr) => {
            if tell($event) == Go::Stop {
                return;
            }
        };
    }
    tell!(Event::Line(0));
    while at < bytes.len() {
        let here = at;
        // A string whose text goes on from `at`: where it began, and whether it is a block.
        let mut string: Option<(usize, bool)> = None;
        match bytes[at] {
            b'\n' => {
                at += 1;
                // An interpolation does not go over the end of the line, and neither does a string that is no block.
                while let Some(interp) = interps.pop() {
                    tell!(Event::OpenString(interp.string));
                    if interp.block {
                        string = Some((interp.string, true));
                        at = here;
                        break;
                    }
                }
                if string.is_none() {
                    tell!(Event::Line(at));
                }
            }
            b'#' if interps.is_empty() => at = line_end(bytes, at),
            // Touching something it is a path or an address without quotes, as in the grammar.
            b'/' if interps.is_empty() && bytes.get(at + 1) == Some(&b'/') && !touches(bytes, at) => {
                at = line_end(bytes, at);
            }
            b'/' if interps.is_empty() && bytes.get(at + 1) == Some(&b'*') && !touches(bytes, at) => {
                at = text[at + 2..].find("*/").map_or(bytes.len(), |found| at + 2 + found + 2);
            }
            b'\'' if bytes[at..].starts_with(b"'''") => match block_end(text, at + 3, b'\'') {
                Some(end) => at = end,
                None => {
                    tell!(Event::OpenString(at));
                    at = bytes.len();
                }
            },
            b'\'' => {
                let end = line_end(bytes, at);
                match bytes[at + 1..end].iter().position(|byte| *byte == b'\'') {
                    Some(found) => at += found + 2,
                    None => {
                        tell!(Event::OpenString(at));
                        at = end;
                    }
                }
            }
            b'"' if bytes[at..].starts_with(b"\"\"\"") => match one_line(text, at) {
                Some(end) => at = end,
                None => {
                    string = Some((at, true));
                    at += 3;
                }
            },
            b'"' => {
                string = Some((at, false));
                at += 1;
            }
            open @ (b'(' | b'[' | b'{') => {
                if let Some(interp) = interps.last_mut() {
                    interp.braces += usize::from(open == b'{');
                }
                tell!(Event::Open(open, at));
                at += 1;
            }
            close @ (b')' | b']' | b'}') => {
                at += 1;
                tell!(Event::Close(close, here));
                if close == b'}'
                    && let Some(interp) = interps.last_mut()
                {
                    if interp.braces > 0 {
                        interp.braces -= 1;
                    } else {
                        string = Some((interp.string, interp.block));
                        interps.pop();
                    }
                }
            }
            b'`' | 0xc2 | 0xe2 => at = odd_quoted(text, at),
            byte if is_word(byte) => {
                at += 1;
                while at < bytes.len() && (is_word(bytes[at]) || bytes[at] == b'-') {
                    at += 1;
                }
                if &bytes[here..at] == b"if" {
                    tell!(Event::If(here));
                }
            }
            _ => at += 1,
        }
        let Some((began, block)) = string else { continue };
        match string_text(text, at, block) {
            Text::Closed(end) => at = end,
            Text::Interp(end) => {
                tell!(Event::Open(b'{', end - 1));
                interps.push(Interp { block, string: began, braces: 0 });
                at = end;
            }
            Text::Unclosed(end) => {
                tell!(Event::OpenString(began));
                at = end;
                // The interpolations around it end with the line as well; the newline sees to it.
            }
        }
    }
}

fn touches(bytes: &[u8], at: usize) -> bool {
    at > 0 && !bytes[at - 1].is_ascii_whitespace() && !matches!(bytes[at - 1], b'{' | b'}' | b';' | b',')
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |found| at + found)
}

/// Where the text of a string stops.
enum Text {
    /// After the closing quotes.
    Closed(usize),
    /// After a `${`.
    Interp(usize),
    /// At the end of the line, or of the text.
    Unclosed(usize),
}

/// Goes over the text of a double-quoted string or block from `at`.
fn string_text(text: &str, mut at: usize, block: bool) -> Text {
    let bytes = text.as_bytes();
    while at < bytes.len() {
        match bytes[at] {
            b'"' if !block => return Text::Closed(at + 1),
            b'\n' if !block => return Text::Unclosed(at),
            b'\n' => {
                at += 1;
                let blank =
                    bytes[at..].iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r')).count();
                if bytes[at + blank..].starts_with(b"\"\"\"") {
                    return Text::Closed(at + blank + 3);
                }
            }
            b'\\' if !block => at += if bytes.get(at + 1) == Some(&b'\n') { 1 } else { 2 },
            b'$' if bytes[at..].starts_with(b"$${") => at += 3,
            b'$' if bytes.get(at + 1) == Some(&b'{') => return Text::Interp(at + 2),
            _ => at += 1,
        }
    }
    Text::Unclosed(bytes.len())
}

/// The end of a raw block whose text begins at `at`; also of one on a single line.
fn block_end(text: &str, at: usize, quote: u8) -> Option<usize> {
    let bytes = text.as_bytes();
    if let Some(end) = one_line(text, at - 3) {
        return Some(end);
    }
    let mut at = line_end(bytes, at);
    while at < bytes.len() {
        at += 1;
        let blank = bytes[at..].iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r')).count();
        if bytes[at + blank..].starts_with(&[quote; 3]) {
            return Some(at + blank + 3);
        }
        at = line_end(bytes, at);
    }
    None
}

/// The end of `"""x"""` on one line, which is an error but is read as a string.
fn one_line(text: &str, at: usize) -> Option<usize> {
    let line = text[at + 3..].split('\n').next().unwrap_or("");
    if line.trim().is_empty() {
        return None;
    }
    line.find(&text[at..at + 3]).map(|found| at + 3 + found + 3)
}

/// The end of a string in quotes that are none here, or of the one character at `at`.
fn odd_quoted(text: &str, at: usize) -> usize {
    const ODD: [char; 9] = ['“', '”', '„', '‘', '’', '‚', '«', '»', '`'];
    let rest = &text[at..];
    let Some(first) = rest.chars().next() else { return at + 1 };
    let after = at + first.len_utf8();
    if !ODD.contains(&first) {
        return after;
    }
    for (offset, letter) in text[after..].char_indices() {
        if letter == '\n' {
            return after + offset;
        }
        if ODD.contains(&letter) {
            return after + offset + letter.len_utf8();
        }
    }
    text.len()
}

/// What can be said of a text without parsing it.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Whether each bracket and string is closed in order.
    pub(super) balanced: bool,
    /// Offset of the first thing that nests deeper than is allowed.
    pub(super) too_deep: Option<usize>,
    /// Offset of a block string that is never closed.
    pub(super) open_block: Option<usize>,
    /// Offsets at which the text may be cut: a statement that stands only in a file begins there, at the start of a line, with
    /// nothing open. The first is always 0; they are at least `PIECE` apart.
    pub(super) pieces: Vec<usize>,
}

/// Pieces of this many bytes or a little more are parsed one after the other: what was matched in one then stays in cache.
const PIECE: usize = 32 * 1024;

/// Surveys a text.
pub(super) fn survey(text: &str) -> Survey {
    let mut survey = Survey { balanced: true, pieces: vec![0], ..Survey::default() };
    let mut open: Vec<u8> = Vec::new();
    let mut ifs = 0;
    let mut last_piece = 0;
    scan(text, |event| {
        match event {
            Event::Open(bracket, at) => {
                if open.len() + ifs >= MAX_DEPTH {
                    survey.too_deep = Some(at);
                    return Go::Stop;
                }
                open.push(bracket);
            }
            Event::Close(bracket, _) => {
                let partner = match bracket {
                    b')' => b'(',
                    b']' => b'[',
                    _ => b'{',
                };
                if open.pop() != Some(partner) {
                    survey.balanced = false;
                }
                ifs = 0;
            }
            Event::OpenString(at) => {
                survey.balanced = false;
                let rest = &text[at..];
                if rest.starts_with("\"\"\"") || rest.starts_with("'''") {
                    survey.open_block.get_or_insert(at);
                }
            }
            Event::If(at) => {
                ifs += 1;
                if open.len() + ifs > MAX_DEPTH {
                    survey.too_deep = Some(at);
                    return Go::Stop;
                }
            }
            Event::Line(at) => {
                if ifs > 0 && !continues(&text[..at], &text[at..]) {
                    ifs = 0;
                }
                if open.is_empty() && at >= last_piece + PIECE && begins_file_statement(&text[at..]) {
                    survey.pieces.push(at);
                    last_piece = at;
                }
            }
        }
        Go::On
    });
    if !open.is_empty() {
        survey.balanced = false;
    }
    survey
}

/// Whether a line goes on with the choice that the line before began.
fn continues(before: &str, line: &str) -> bool {
    let (before, line) = (before.trim_end(), line.trim_start());
    line.starts_with("then")
        || line.starts_with("else")
        || before.ends_with("then")
        || before.ends_with("else")
}

/// Keywords that stand only at the top of a file, each followed by a name or a string.
const FILE_WORDS: [&str; 12] = [
    "pipeline",
    "use",
    "param",
    "secret",
    "environment",
    "service",
    "metrics",
    "flags",
    "stage",
    "gate",
    "strategy",
    "test",
];

/// Whether this text begins, without indentation, with a statement that stands only in a file. (`on … {` may stand in a stage
/// too, so it does not count.)
pub(super) fn begins_file_statement(text: &str) -> bool {
    let length = text.bytes().take_while(u8::is_ascii_lowercase).count();
    if !FILE_WORDS.contains(&&text[..length]) {
        return false;
    }
    let rest = &text[length..];
    let after = rest.trim_start_matches([' ', '\t']);
    if after.len() == rest.len() {
        return false;
    }
    after.starts_with(|first: char| first.is_ascii_alphabetic() || matches!(first, '_' | '"' | '\''))
}
