//! Text to tree and diagnostics.

mod grammar;
pub(crate) mod literal;
mod matched;
mod outline;
pub(crate) mod reader;
mod recover;

use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::span::{LineIndex, SourceId, Span};
use crate::tree::{Entry, Expr, File};
use outline::survey;
use reader::{Place, Reading, read};

/// A text of more bytes is not read.
pub const MAX_TEXT_BYTES: usize = 64 << 20;

/// So many diagnostics are given for one text; one more says how many there are besides.
pub const MAX_DIAGNOSTICS: usize = 100;

/// A text that is no pipeline is cut after so many bytes; the rest is not read.
const MAX_PIECE_BYTES: usize = 4 << 20;

/// What a text was read as.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The tree. Where something could not be read it holds error nodes, so that the rest can still be checked.
    pub file: File,
    /// What is wrong with the text, in source order; empty if nothing is.
    pub diagnostics: Vec<Diagnostic>,
}

/// Turns the bytes of a file into text.
///
/// # Errors
/// The diagnostic that points at the first byte which is not UTF-8; its span counts in the text before that byte, so that it
/// can be shown with the part that is readable.
pub fn decode(source: SourceId, bytes: &[u8]) -> Result<&str, Box<Diagnostic>> {
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let before = std::str::from_utf8(bytes.get(..at).unwrap_or(&[])).unwrap_or("");
        let place = LineIndex::new(before).line_col(before, at);
        let byte = bytes.get(at).copied().unwrap_or(0);
        let utf16 = bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]);
        let message =
            format!("the byte 0x{byte:02X} in line {}, column {} is not UTF-8", place.line, place.col);
        let help = if utf16 {
            "the file seems to be UTF-16; save it as UTF-8"
        } else {
            "save the file as UTF-8; in another encoding letters beyond ASCII are other bytes"
        };
        Box::new(Diagnostic::new(codes::NOT_UTF8, Span::new(source, at, at), message).help(help))
    })
}

/// Reads a text. Never fails and never panics: whatever is wrong is in the diagnostics.
///
/// At most [`MAX_DIAGNOSTICS`] and one are given. A text of more than [`MAX_TEXT_BYTES`] is not read.
pub fn parse(source: SourceId, text: &str) -> Parsed {
    let span = Span::new(source, 0, text.len());
    let mut all = Collected::default();
    if text.len() > MAX_TEXT_BYTES {
        let diagnostic = Diagnostic::new(
            codes::TOO_LARGE,
            span.shrink_to_start(),
            format!("this text has {} MiB, which is too much for a pipeline", text.len() >> 20),
        )
        .help(format!("the limit is {} MiB; is it the right file?", MAX_TEXT_BYTES >> 20));
        all.diagnostics.push(diagnostic);
        all.entries.push(Entry::Error(span));
    } else {
        read_text(source, text, &mut all);
    }
    all.finish(span)
}

/// Reads one expression, for tools that are handed one: the right side of `--set`, a watch in an editor. Spans count in `text`.
///
/// # Errors
/// What is wrong with it, at least one diagnostic; also if something follows it.
pub fn parse_expr(source: SourceId, text: &str) -> Result<Expr, Vec<Diagnostic>> {
    // Read as the value of a setting whose key and `=` are not in the source.
    let setting = format!("_ = {text}");
    let spaced = Place { source, base: 0, inserted: &[0, 1, 2, 3] };
    let refused = |code, message: &str| {
        let diagnostic = Diagnostic::new(code, Span::new(source, 0, text.len()), message);
        Err(vec![diagnostic.help("write one value, such as `5m`, `\"text\"` or `[a, b]`")])
    };
    if text.len() > MAX_PIECE_BYTES {
        return refused(codes::TOO_LARGE, "this is too large for one expression");
    }
    if survey(&setting).too_deep.is_some() {
        return refused(codes::TOO_DEEP, "this nests too deep");
    }
    let mut reading = read(&setting, &spaced);
    if reading.diagnostics.iter().any(Diagnostic::is_error) {
        return Err(reading.diagnostics);
    }
    match reading.entries.pop() {
        Some(Entry::Setting(setting)) if reading.entries.is_empty() && reading.unbalanced.is_empty() => {
            Ok(setting.value)
        }
        _ => refused(codes::UNEXPECTED, "this is not one expression"),
    }
}

/// What the grammar matches in a text: of each match its rule, its bytes, and how many of those that follow are inside of it.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn matches(text: &str) -> Option<Vec<(String, std::ops::Range<usize>, usize)>> {
    let matched = grammar::matched(text)?;
    let tell = |node: &matched::Node| {
        (format!("{:?}", node.rule), node.start as usize..node.end as usize, node.inside as usize)
    };
    Some(matched.nodes.iter().map(tell).collect())
}

fn read_text(source: SourceId, text: &str, all: &mut Collected) {
    let survey = survey(text);
    let mut start = 0;
    if survey.balanced && survey.too_deep.is_none() {
        let ends = survey.pieces.iter().skip(1).copied().chain([text.len()]);
        for end in ends {
            if !all.room_for(source, text, start, end) {
                return;
            }
            let reading = read(&text[start..end], &Place { source, base: start, inserted: &[] });
            if !reading.unbalanced.is_empty() || reading.unclosed_string {
                break;
            }
            all.take(reading);
            start = end;
        }
    }
    if start == text.len() && !text.is_empty() {
        return;
    }
    // Something is not closed: statement by statement, so that what is wrong with one does not reach the next.
    let mut budget = 4 * text.len() + (1 << 20);
    for segment in recover::segments(&text[start..]) {
        let (from, to) = (start + segment.start, start + segment.end);
        if !all.room_for(source, text, from, to) {
            return;
        }
        all.take(recover::read_segment(source, from, &text[from..to], &mut budget));
    }
}

/// What the pieces of a text were read as.
#[derive(Default)]
struct Collected {
    entries: Vec<Entry>,
    comments: Vec<Span>,
    diagnostics: Vec<Diagnostic>,
}

impl Collected {
    /// Whether to read on from `from` to `to`. If not, says why, and what is left of the text becomes one error node.
    fn room_for(&mut self, source: SourceId, text: &str, from: usize, to: usize) -> bool {
        if self.diagnostics.len() > MAX_DIAGNOSTICS {
            self.entries.push(Entry::Error(Span::new(source, from, text.len())));
            return false;
        }
        if to - from > MAX_PIECE_BYTES {
            let here = Span::new(source, from, from);
            let diagnostic = Diagnostic::new(
                codes::TOO_LARGE,
                here,
                format!("no statement such as `stage` begins within {} MiB of text", MAX_PIECE_BYTES >> 20),
            )
            .help("is this file a pipeline? The rest of it was not read");
            self.diagnostics.push(diagnostic);
            self.entries.push(Entry::Error(Span::new(source, from, text.len())));
            return false;
        }
        true
    }

    fn take(&mut self, reading: Reading) {
        if self.entries.is_empty() {
            self.entries = reading.entries;
        } else {
            self.entries.extend(reading.entries);
        }
        self.comments.extend(reading.comments);
        self.diagnostics.extend(reading.diagnostics);
    }

    fn finish(mut self, span: Span) -> Parsed {
        self.diagnostics.sort_by_key(|diagnostic| diagnostic.primary.span.start);
        if self.diagnostics.len() > MAX_DIAGNOSTICS {
            let more = self.diagnostics.len() - MAX_DIAGNOSTICS;
            self.diagnostics.truncate(MAX_DIAGNOSTICS);
            let last = self.diagnostics.last().map_or(span, |diagnostic| diagnostic.primary.span);
            let diagnostic = Diagnostic::new(codes::MORE, last.shrink_to_end(), format!("and {more} more"))
                .help("mend the first ones and check again");
            self.diagnostics.push(diagnostic);
        }
        self.comments.sort_unstable();
        Parsed {
            file: File { entries: self.entries, comments: self.comments, span },
            diagnostics: self.diagnostics,
        }
    }
}
