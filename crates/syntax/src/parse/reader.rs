//! What the grammar matched, read into the tree. Each sentinel of the grammar becomes one message here; unbalanced brackets do
//! not, they are handed on, because where one is missing can only be said with a view of the whole statement.

mod bracketed;
mod entry;
mod expression;
mod habit;
mod operator;
mod string;

pub(crate) use string::common_indent;

use super::grammar::{self, Rule};
use super::matched::{Pair, Pairs};
use crate::codes;
use crate::diagnostic::{CodeInfo, Diagnostic, Edit};
use crate::span::{SourceId, Span};
use crate::tree::{Entry, Ident};

/// Brackets, interpolations and `if`s may nest this deep. Everything that walks the tree may recurse, because of it.
pub(crate) const MAX_DEPTH: usize = 64;

/// One expression may have this many operators, fields, calls and indexes in a row.
pub(crate) const MAX_OPERATORS: usize = 1_000;

/// Where the text that is read comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// Source the spans point into.
    pub(super) source: SourceId,
    /// Offset in that source of the first byte of the text.
    pub(super) base: usize,
    /// Ascending offsets in the text of single bytes that are not in the source: brackets supplied by recovery.
    pub(super) inserted: &'a [usize],
}

/// A bracket or quote that has no partner. Offsets are those of the text that was read, supplied brackets included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unbalanced {
    /// `(`, `[` or `{` without its closer.
    Open {
        /// Offset of the opener.
        open: usize,
        /// Offset at which reading it ended.
        stop: usize,
        /// Where what it holds stops making sense: the end of the last element before one that cannot follow it.
        sense: Option<usize>,
    },
    /// `)`, `]` or `}` without its opener.
    Close {
        /// Offset of the closer.
        at: usize,
    },
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) entries: Vec<Entry>,
    pub(super) comments: Vec<Span>,
    pub(super) diagnostics: Vec<Diagnostic>,
    /// In the order in which they were met: inner ones first.
    pub(super) unbalanced: Vec<Unbalanced>,
    /// Whether a string is not closed, so that what is unbalanced may well be inside of it.
    pub(super) unclosed_string: bool,
}

/// Reads `text`, whatever it is.
pub(super) fn read(text: &str, place: &Place<'_>) -> Reading {
    let matched = grammar::matched(text);
    let mut reader =
        Reader { text, place: *place, out: Reading::default(), broken: false, entry_mark: 0, depth: 0 };
    match &matched {
        Some(matched) => {
            if let Some(file) = matched.pairs().next() {
                let inner = file.into_inner();
                let mut entries = Vec::with_capacity(inner.room());
                reader.entries(inner, false, &mut entries);
                reader.out.entries = entries;
            }
        }
        None => {
            let whole = reader.span(0, text.len());
            reader.out.entries.push(Entry::Error(whole));
            reader.out.diagnostics.push(too_deep(whole.shrink_to_start()));
        }
    }
    reader.out
}

/// Says that something nests too deep.
pub(super) fn too_deep(span: Span) -> Diagnostic {
    Diagnostic::new(codes::TOO_DEEP, span, format!("this nests deeper than {MAX_DEPTH} levels"))
        .label("one level too many")
        .help("check for an opening bracket that was never meant; else take parts out into a `use` file or a named strategy")
}

struct Reader<'t, 'a> {
    text: &'t str,
    place: Place<'a>,
    out: Reading,
    /// Whether the entry being read already has an error that may explain every other in it.
    broken: bool,
    /// How many diagnostics there were when the entry being read began.
    entry_mark: usize,
    depth: usize,
}

/// What the innermost entry was like, to go back to it after an inner one.
struct Outer {
    broken: bool,
    entry_mark: usize,
}

impl<'t> Reader<'t, '_> {
    /// The span in the source of a range of the text that is read.
    fn span(&self, start: usize, end: usize) -> Span {
        Span::new(self.place.source, self.offset(start), self.offset(end))
    }

    fn offset(&self, at: usize) -> usize {
        let supplied = self.place.inserted;
        let before =
            if supplied.is_empty() { 0 } else { supplied.partition_point(|inserted| *inserted < at) };
        self.place.base + at - before
    }

    fn is_supplied(&self, at: usize) -> bool {
        self.place.inserted.binary_search(&at).is_ok()
    }

    /// Where a match stands in the source.
    fn span_of(&self, pair: &Pair<'t>) -> Span {
        let (start, end) = range(pair);
        self.span(start, end)
    }

    fn slice(&self, start: usize, end: usize) -> &'t str {
        self.text.get(start..end).unwrap_or("")
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.text.as_bytes().get(at).copied()
    }

    /// Begins an entry: from now on one error that breaks the shape is enough.
    fn enter(&mut self) -> Outer {
        let outer = Outer { broken: self.broken, entry_mark: self.entry_mark };
        self.broken = false;
        self.entry_mark = self.out.diagnostics.len();
        outer
    }

    fn leave(&mut self, outer: &Outer) {
        self.broken = outer.broken;
        self.entry_mark = outer.entry_mark;
    }

    /// Reports an error in the shape of an entry: what else is odd in that entry may only follow from it.
    fn breaks(&mut self, diagnostic: Diagnostic) {
        if !self.broken {
            self.broken = true;
            self.out.diagnostics.push(diagnostic);
        }
    }

    /// Reports something that is wrong in itself, unless the entry is broken anyway.
    fn report(&mut self, diagnostic: Diagnostic) {
        if !self.broken {
            self.out.diagnostics.push(diagnostic);
        }
    }

    /// Reports an unclosed string: it explains whatever else is odd in its entry, also before it.
    fn report_unclosed_string(&mut self, diagnostic: Diagnostic) {
        self.out.diagnostics.truncate(self.entry_mark);
        self.out.diagnostics.push(diagnostic);
        self.out.unclosed_string = true;
        self.broken = true;
    }

    fn diagnostic(
        &self,
        info: &'static CodeInfo,
        start: usize,
        end: usize,
        message: impl Into<String>,
    ) -> Diagnostic {
        Diagnostic::new(info, self.span(start, end), message)
    }

    fn edit(&self, start: usize, end: usize, replacement: impl Into<String>) -> Edit {
        Edit { span: self.span(start, end), replacement: replacement.into() }
    }

    /// The next pair that is no comment; comments are kept, foreign ones reported.
    fn next(&mut self, pairs: &mut Pairs<'t>) -> Option<Pair<'t>> {
        loop {
            let pair = pairs.next()?;
            match pair.as_rule() {
                Rule::comment => self.comment(&pair),
                Rule::foreign_comment => self.foreign_comment(&pair),
                _ => return Some(pair),
            }
        }
    }

    /// As `next`, if that is one of these rules. Comments before it are taken either way.
    fn next_if(&mut self, pairs: &mut Pairs<'t>, wanted: impl Fn(Rule) -> bool) -> Option<Pair<'t>> {
        loop {
            match pairs.peek()? {
                Rule::comment | Rule::foreign_comment => {
                    if let Some(pair) = pairs.next() {
                        match pair.as_rule() {
                            Rule::comment => self.comment(&pair),
                            _ => self.foreign_comment(&pair),
                        }
                    }
                }
                rule if wanted(rule) => return pairs.next(),
                _ => return None,
            }
        }
    }

    fn comment(&mut self, pair: &Pair<'t>) {
        let (start, end) = range(pair);
        let end = start + self.slice(start, end).trim_end().len();
        let span = self.span(start, end);
        self.out.comments.push(span);
    }

    fn foreign_comment(&mut self, pair: &Pair<'t>) {
        let (start, end) = range(pair);
        let text = self.slice(start, end).trim_end();
        let end = start + text.len();
        let marker = &text[..2];
        let diagnostic = self
            .diagnostic(
                codes::FOREIGN_COMMENT,
                start,
                start + 2,
                format!("`{marker}` does not begin a comment"),
            )
            .help("comments begin with `#` and end with the line");
        let replacement = if let Some(line) = text.strip_prefix("//") {
            Some(format!("#{line}"))
        } else {
            let inner = text.trim_start_matches("/*").trim_end_matches("*/");
            // Whatever follows on the same line would become part of the comment.
            let rest = self.text.get(end..).unwrap_or("");
            let alone =
                rest.trim_start_matches([' ', '\t', '\r']).chars().next().is_none_or(|next| next == '\n');
            let lines: Vec<String> = inner
                .lines()
                .map(|line| line.trim().trim_start_matches('*').trim())
                .map(|line| format!("# {line}"))
                .collect();
            (alone && text.ends_with("*/")).then(|| lines.join("\n"))
        };
        let diagnostic = match replacement {
            Some(replacement) => {
                diagnostic.fix("write it as a comment of cdpipe", vec![self.edit(start, end, replacement)])
            }
            None => diagnostic,
        };
        self.out.diagnostics.push(diagnostic);
    }

    /// A name as it stands; says what is wrong with it as a name.
    fn ident(&mut self, pair: &Pair<'t>) -> Ident {
        let (start, end) = range(pair);
        let text = self.slice(start, end);
        if text.ends_with('-') {
            let trimmed = text.trim_end_matches('-');
            let diagnostic = self
                .diagnostic(codes::BAD_NAME, start, end, format!("the name `{text}` ends in a dash"))
                .help("a dash belongs to a name when a letter or digit follows; a minus has blanks on both sides")
                .suggestion("leave the dash out", vec![self.edit(start + trimmed.len(), end, "")]);
            self.report(diagnostic);
        } else if !text.is_ascii() {
            let odd = text.chars().find(|letter| !letter.is_ascii()).unwrap_or('?');
            let diagnostic = self
                .diagnostic(codes::BAD_NAME, start, end, format!("`{odd}` cannot be part of a name"))
                .help("names are made of the letters A to Z and a to z, digits, `_` and `-`; if this is text, put it in quotes");
            self.report(diagnostic);
        }
        Ident { text: text.to_owned(), span: self.span(start, end) }
    }

    /// What stands at this offset, for "found …".
    fn found(&self, at: usize) -> String {
        let rest = self.text.get(at..).unwrap_or("");
        let rest = rest.trim_start_matches([' ', '\t', '\r']);
        let mut letters = rest.chars();
        match letters.next() {
            None => "the end of the file".to_owned(),
            Some('\n' | '#') => "the end of the line".to_owned(),
            Some('"' | '\'') => "a string".to_owned(),
            Some(first) if first.is_alphanumeric() || first == '_' => {
                let word: String = rest
                    .chars()
                    .take_while(|letter| letter.is_alphanumeric() || matches!(letter, '_' | '-' | '.' | '%'))
                    .take(40)
                    .collect();
                format!("`{word}`")
            }
            Some(first) => describe(first),
        }
    }
}

/// A character as a message shows it.
fn describe(letter: char) -> String {
    match letter {
        '\u{a0}' | '\u{2007}' | '\u{202f}' => "a no-break space".to_owned(),
        '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' => {
            format!("an invisible character (U+{:04X})", u32::from(letter))
        }
        letter if letter.is_control() || letter.is_whitespace() => {
            format!("the character U+{:04X}", u32::from(letter))
        }
        letter => format!("`{letter}`"),
    }
}

fn range(pair: &Pair<'_>) -> (usize, usize) {
    pair.range()
}
