//! Brackets without a partner. Where one is missing cannot be seen where the parser stops: a body without `}` swallows the rest of
//! the file. Indentation tells, and what could not follow. The bracket is supplied in a copy of the statement, which is then read
//! again, so that all the rest of it is read as it was meant.

mod brace;
mod small;

use super::outline::{Event, Go, begins_file_statement, scan, survey};
use super::reader::{Place, Reading, Unbalanced, read, too_deep};
use crate::codes;
use crate::diagnostic::{Diagnostic, Edit};
use crate::span::{SourceId, Span};
use crate::tree::Entry;

/// So many brackets are supplied in one statement at most; after that its text is too far from a pipeline.
const MAX_REPAIRS: usize = 24;

/// So many places are tried for one opening bracket.
const MAX_TRIES: usize = 24;

/// Cuts a text before each line that begins a statement which stands only in a file, whether or not something is open there.
pub(super) fn segments(text: &str) -> Vec<std::ops::Range<usize>> {
    let mut starts = vec![0];
    // A block string that is never closed would hide all that follows it.
    if survey(text).open_block.is_some() {
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            if at > 0 && begins_file_statement(line) {
                starts.push(at);
            }
            at += line.len();
        }
    } else {
        scan(text, |event| {
            if let Event::Line(at) = event
                && at > 0
                && begins_file_statement(&text[at..])
            {
                starts.push(at);
            }
            Go::On
        });
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect()
}

/// A copy of a statement with brackets supplied.
struct Patched {
    text: String,
    inserted: Vec<usize>,
    source: SourceId,
    base: usize,
}

impl Patched {
    fn place(&self) -> Place<'_> {
        Place { source: self.source, base: self.base, inserted: &self.inserted }
    }

    /// The offset in the original of an offset in the copy.
    fn original(&self, at: usize) -> usize {
        at - self.inserted.partition_point(|inserted| *inserted < at)
    }

    fn span(&self, start: usize, end: usize) -> Span {
        Span::new(self.source, self.base + self.original(start), self.base + self.original(end))
    }

    fn insert(&mut self, at: usize, text: &str) {
        self.text.insert_str(at, text);
        for inserted in &mut self.inserted {
            if *inserted >= at {
                *inserted += text.len();
            }
        }
        self.inserted.extend(at..at + text.len());
        self.inserted.sort_unstable();
    }

    fn line_start(&self, at: usize) -> usize {
        self.text[..at].rfind('\n').map_or(0, |newline| newline + 1)
    }

    fn line_end(&self, at: usize) -> usize {
        self.text[at..].find('\n').map_or(self.text.len(), |newline| at + newline)
    }

    /// The end of the last code above `at`, comments left aside.
    fn content_before(&self, at: usize) -> usize {
        let mut end = self.text[..at].trim_end().len();
        while end > 0 {
            let start = self.line_start(end);
            let code = code_end(&self.text, start).min(end);
            if !self.text[start..code].trim().is_empty() {
                return code;
            }
            end = self.text[..start].trim_end().len();
        }
        self.text[..at].trim_end().len()
    }
}

/// What to do to the text.
#[derive(Clone, Copy)]
enum Change {
    /// Put this in.
    Supply(&'static str),
    /// Put this in place of the one byte that stands there.
    Replace(&'static str),
}

/// Where to supply a bracket, and what to say of it.
struct Repair {
    at: usize,
    change: Change,
    diagnostic: Diagnostic,
    /// Other messages about this range of the original only follow from it.
    explains: Span,
}

/// Reads one segment, supplying brackets. `budget` is how many bytes may still be parsed for repairs.
pub(super) fn read_segment(source: SourceId, base: usize, text: &str, budget: &mut usize) -> Reading {
    let whole = Span::new(source, base, base + text.len());
    if let Some(at) = survey(text).too_deep {
        let here = Span::new(source, base + at, base + at + 1);
        return Reading {
            entries: vec![Entry::Error(whole)],
            diagnostics: vec![too_deep(here)],
            ..Reading::default()
        };
    }
    let mut patched = Patched { text: text.to_owned(), inserted: Vec::new(), source, base };
    let mut reading = read(&patched.text, &patched.place());
    let mut said: Vec<(Diagnostic, Span)> = Vec::new();
    if let Some(repair) = block_opener(&patched).filter(|_| !reading.diagnostics.is_empty()) {
        supply(&mut patched, &mut reading, &mut said, repair, budget);
    }
    for _ in 0..MAX_REPAIRS {
        // An unclosed string may have swallowed brackets: what is open or stray then is not worth a word.
        if reading.unbalanced.is_empty() || reading.unclosed_string || patched.text.len() > *budget {
            break;
        }
        let Some(repair) = find_repair(&patched, &reading, budget) else { break };
        if !supply(&mut patched, &mut reading, &mut said, repair, budget) {
            break;
        }
    }
    if !reading.unclosed_string {
        // Brackets that could not be repaired: one message for the innermost is enough, the others follow from it.
        let left = reading.unbalanced.first().map(|what| plain(&patched, *what));
        reading.diagnostics.extend(left);
    }
    reading.unbalanced.clear();
    for (diagnostic, explains) in said {
        reading.diagnostics.retain(|other| {
            let at = other.primary.span.start;
            at < explains.start || at > explains.end || !follows_from_brackets(other)
        });
        reading.diagnostics.push(diagnostic);
    }
    if reading.unclosed_string {
        hold_back_after_strings(base, text, &mut reading.diagnostics);
    }
    first_on_each_line(base, text, &mut reading.diagnostics);
    reading
}

/// Applies a repair, if that makes things better.
fn supply(
    patched: &mut Patched,
    reading: &mut Reading,
    said: &mut Vec<(Diagnostic, Span)>,
    repair: Repair,
    budget: &mut usize,
) -> bool {
    let before = (patched.text.clone(), patched.inserted.clone());
    match repair.change {
        Change::Supply(supplied) => patched.insert(repair.at, supplied),
        Change::Replace(other) => patched.text.replace_range(repair.at..repair.at + 1, other),
    }
    *budget = budget.saturating_sub(patched.text.len());
    let after = read(&patched.text, &patched.place());
    let better = after.unbalanced.len() < reading.unbalanced.len() || weight(&after) < weight(reading);
    if better {
        said.push((repair.diagnostic, repair.explains));
        *reading = after;
    } else {
        (patched.text, patched.inserted) = before;
    }
    better
}

/// How bad a reading is.
fn weight(reading: &Reading) -> usize {
    reading.diagnostics.len() + 4 * reading.unbalanced.len() + 4 * usize::from(reading.unclosed_string)
}

/// Whether this may only be said because a bracket or a quote is missing.
fn follows_from_brackets(diagnostic: &Diagnostic) -> bool {
    [
        codes::UNEXPECTED.code,
        codes::MISSING_COMMA.code,
        codes::SEPARATOR.code,
        codes::MISSING_VALUE.code,
        codes::LIST_WITHOUT_BRACKETS.code,
        codes::COLON.code,
        codes::MAP_ENTRY.code,
        codes::EQUALS.code,
        codes::TIGHT_MINUS.code,
        codes::BAD_NAME.code,
        codes::RESERVED_NAME.code,
        codes::FOREIGN_OPERATOR.code,
        codes::BODY_OF_SETTING.code,
        codes::IF_PARTS.code,
    ]
    .contains(&diagnostic.code())
}

/// After an unclosed string, what is odd in its line, and in the lines up to the next that looks like an entry, only follows.
fn hold_back_after_strings(base: usize, text: &str, diagnostics: &mut Vec<Diagnostic>) {
    let mut windows = Vec::new();
    for diagnostic in diagnostics.iter().filter(|diagnostic| diagnostic.code() == codes::UNCLOSED_STRING.code)
    {
        let at = (diagnostic.primary.span.start as usize).saturating_sub(base).min(text.len());
        let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let mut end = text[at..].find('\n').map_or(text.len(), |newline| at + newline + 1);
        while end < text.len() && !looks_like_entry(&text[end..], false) {
            end = text[end..].find('\n').map_or(text.len(), |newline| end + newline + 1);
        }
        windows.push(base + start..base + end);
    }
    diagnostics.retain(|diagnostic| {
        let at = diagnostic.primary.span.start as usize;
        let structure = diagnostic.code() == codes::MAP_ENTRY.code;
        !structure
            && (!follows_from_brackets(diagnostic) || !windows.iter().any(|window| window.contains(&at)))
    });
}

/// Of the messages that may follow from one another only the first in each line stays.
fn first_on_each_line(base: usize, text: &str, diagnostics: &mut Vec<Diagnostic>) {
    diagnostics.sort_by_key(|diagnostic| diagnostic.primary.span.start);
    let mut last_end = 0;
    diagnostics.retain(|diagnostic| {
        let at = (diagnostic.primary.span.start as usize).saturating_sub(base).min(text.len());
        let follows = follows_from_brackets(diagnostic);
        if follows && at < last_end {
            return false;
        }
        if follows || [codes::STRAY_BRACKET.code, codes::UNCLOSED_BRACKET.code].contains(&diagnostic.code()) {
            last_end = text[at..].find('\n').map_or(text.len() + 1, |newline| at + newline + 1);
        }
        true
    });
}

fn find_repair(patched: &Patched, reading: &Reading, budget: &mut usize) -> Option<Repair> {
    // Round and square brackets first: what they enclose is short, so where they end is nearly certain.
    let small = reading
        .unbalanced
        .iter()
        .filter_map(|what| match what {
            Unbalanced::Open { open, stop, sense } if patched.text.as_bytes().get(*open) != Some(&b'{') => {
                Some((*open, *stop, *sense))
            }
            _ => None,
        })
        .min();
    if let Some((open, stop, sense)) = small {
        // `[a, f b)]`: the wrong closer may be right, and its opener missing.
        if matches!(patched.text.as_bytes().get(stop), Some(b')' | b']'))
            && let Some((repair, 0)) = small::open_small(patched, stop, reading, budget)
        {
            return Some(repair);
        }
        return Some(small::close_small(patched, open, stop, sense, budget));
    }
    let stray = reading.unbalanced.iter().find_map(|what| match what {
        Unbalanced::Close { at } if patched.text.as_bytes().get(*at) != Some(&b'}') => Some(*at),
        _ => None,
    });
    if let Some(at) = stray
        && let Some((repair, _)) = small::open_small(patched, at, reading, budget)
    {
        return Some(repair);
    }
    brace::braces(patched, budget)
}

/// A line that ends in two quotes, with a line further down that begins with three: the third is missing in the first.
fn block_opener(patched: &Patched) -> Option<Repair> {
    let text = patched.text.as_str();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let code = line.trim_end();
        let end = at + code.len();
        at += line.len();
        let Some(marks) = ["\"\"", "''"].into_iter().find(|marks| code.ends_with(marks)) else { continue };
        let quote = &marks[..1];
        if code[..code.len() - 2].ends_with(quote) || code.trim_start().len() == 2 {
            continue;
        }
        let three = quote.repeat(3);
        let own = indent(line);
        let closed = text[at..]
            .lines()
            .take_while(|line| {
                line.trim().is_empty() || indent(line) > own || line.trim_start().starts_with(&three)
            })
            .any(|line| line.trim_start().starts_with(&three));
        if closed {
            let shown = patched.span(end - 2, end);
            let diagnostic = Diagnostic::new(
                codes::UNCLOSED_STRING,
                shown,
                "a block of text opens with three quotes, not two",
            )
            .help(format!("write {three}"))
            .suggestion(
                "add the third quote",
                vec![Edit { span: shown.shrink_to_end(), replacement: quote.to_owned() }],
            );
            let text = if quote == "'" { "'" } else { "\"" };
            return Some(Repair { at: end, change: Change::Supply(text), diagnostic, explains: shown });
        }
    }
    None
}

/// Whether a line looks like an entry or the end of a body. `argument` if `name = value` may as well be an argument.
fn looks_like_entry(line: &str, argument: bool) -> bool {
    let line = line.trim_start_matches([' ', '\t']);
    if line.starts_with('}') {
        return true;
    }
    let word = |text: &str| {
        text.find(|letter: char| !letter.is_ascii_alphanumeric() && !matches!(letter, '_' | '-' | '.'))
            .unwrap_or(text.len())
    };
    let first = word(line);
    if first == 0
        || !line.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_')
        || reserved(&line[..first])
    {
        return false;
    }
    let rest = &line[first..];
    let after = rest.trim_start_matches([' ', '\t']);
    if after.starts_with('=') && !after.starts_with("==") {
        return !argument;
    }
    if after.starts_with([':', '{']) {
        return true;
    }
    rest.len() != after.len()
        && !reserved(&after[..word(after)])
        && after
            .starts_with(|letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '"' | '\''))
}

fn reserved(word: &str) -> bool {
    matches!(word, "and" | "or" | "not" | "in" | "matches" | "if" | "then" | "else" | "true" | "false")
}

fn indent(line: &str) -> usize {
    line.bytes()
        .take_while(|byte| matches!(byte, b' ' | b'\t'))
        .map(|byte| if byte == b'\t' { 4 } else { 1 })
        .sum()
}

/// The end of the code of the line at `start`, without a comment.
fn code_end(text: &str, start: usize) -> usize {
    let line = text[start..].split('\n').next().unwrap_or("");
    let mut end = line.len();
    for (at, _) in line.match_indices('#').take(64) {
        let mut open = false;
        scan(&line[..at], |event| {
            open |= matches!(event, Event::OpenString(_));
            Go::On
        });
        if !open {
            end = at;
            break;
        }
    }
    start + line[..end].trim_end().len()
}

/// Where tokens begin between two offsets, and where the lines between them end: places for an opening bracket.
fn tokens(text: &str, from: usize, to: usize) -> Vec<usize> {
    let bytes = text.as_bytes();
    let mut places = Vec::new();
    for at in from..to {
        let here = bytes[at];
        let before = if at == from { b'\n' } else { bytes[at - 1] };
        let begins = !here.is_ascii_whitespace()
            && (before.is_ascii_whitespace()
                || matches!(before, b'=' | b'(' | b'[' | b',')
                || matches!(here, b'"' | b'\''));
        let ends = here == b'\n' && !before.is_ascii_whitespace() && before != b',';
        if (begins || ends)
            && text.is_char_boundary(at)
            && !matches!(here, b'}' | b')' | b']' | b',' | b'=' | b'#')
        {
            places.push(at);
        }
    }
    places
}

/// Tries a bracket at each place; gives the place that leaves the least amiss, and how much that is, if it is less than before.
fn try_places(
    patched: &Patched,
    bracket: &str,
    places: impl Iterator<Item = usize>,
    budget: &mut usize,
) -> Option<(usize, usize)> {
    let mut best: Option<(usize, usize)> = None;
    for at in places.take(MAX_TRIES) {
        if patched.text.len() > *budget {
            break;
        }
        *budget = budget.saturating_sub(patched.text.len());
        let mut trial = patched.text.clone();
        trial.insert_str(at, bracket);
        let weight = weight(&read(&trial, &Place { source: patched.source, base: 0, inserted: &[] }));
        if best.is_none_or(|(_, least)| weight < least) {
            best = Some((at, weight));
        }
        if weight == 0 {
            break;
        }
    }
    best
}

fn shorten(text: &str) -> String {
    let line = text.lines().next().unwrap_or("").trim_end();
    let cut: String = line.chars().take(40).collect();
    if cut.len() < text.len() { format!("{}…", cut.trim_end()) } else { cut }
}

/// What to say of a bracket that could not be repaired.
fn plain(patched: &Patched, what: Unbalanced) -> Diagnostic {
    let bracket = |at: usize| patched.text.as_bytes().get(at).map_or(' ', |byte| char::from(*byte));
    match what {
        Unbalanced::Open { open, .. } => {
            let name = bracket(open);
            let closer = match name {
                '(' => ')',
                '[' => ']',
                _ => '}',
            };
            Diagnostic::new(
                codes::UNCLOSED_BRACKET,
                patched.span(open, open + 1),
                format!("this `{name}` is never closed"),
            )
            .label("opened here")
            .help(format!("close it with `{closer}`"))
        }
        Unbalanced::Close { at } => {
            let name = bracket(at);
            Diagnostic::new(
                codes::STRAY_BRACKET,
                patched.span(at, at + 1),
                format!("this `{name}` closes nothing"),
            )
            .label("nothing is open here")
            .help("delete it, or add the bracket that it was meant to close")
        }
    }
}
