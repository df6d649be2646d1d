//! Text to tree and diagnostics.

mod grammar;
mod literal;
mod reader;

use crate::diagnostic::Diagnostic;
use crate::span::{SourceId, Span};
use crate::tree::File;

/// What a text was read as.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The tree. Where something could not be read it holds error nodes, so that the rest can still be checked.
    pub file: File,
    /// What is wrong with the text, in source order; empty if nothing is.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads a text. Never fails and never panics: whatever is wrong is in the diagnostics.
pub fn parse(source: SourceId, text: &str) -> Parsed {
    let span = Span::new(source, 0, text.len());
    let reading = reader::read(text, &reader::Place { source, base: 0, inserted: &[] });
    Parsed {
        file: File { entries: reading.entries, comments: reading.comments, span },
        diagnostics: reading.diagnostics,
    }
}
