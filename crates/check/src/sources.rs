//! Numbered sources: the pipeline's own file first, then each file that it uses, in the order in which they are met.

use cdpipe_model::plan::{SourceFile, SourcePos};
use cdpipe_syntax::{LineCol, LineIndex, SourceId, Span};
use sha2::{Digest, Sha256};

/// One file of a pipeline.
#[derive(Debug, Clone)]
pub struct Source {
    /// The root as given; a used file relative to the same place.
    pub path: String,
    /// Its text.
    pub text: String,
    /// Its lines.
    pub lines: LineIndex,
}

/// All files of a pipeline, by [`SourceId`]. The root is number 0.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    list: Vec<Source>,
}

impl Sources {
    /// Adds a file and gives it the next number.
    pub fn add(&mut self, path: impl Into<String>, text: impl Into<String>) -> SourceId {
        let text = text.into();
        let id = SourceId(u32::try_from(self.list.len()).unwrap_or(u32::MAX));
        self.list.push(Source { path: path.into(), lines: LineIndex::new(&text), text });
        id
    }

    /// The file of this number.
    pub fn get(&self, id: SourceId) -> Option<&Source> {
        self.list.get(id.0 as usize)
    }

    /// All of them, the root first.
    pub fn iter(&self) -> impl Iterator<Item = (SourceId, &Source)> {
        self.list
            .iter()
            .enumerate()
            .map(|(at, source)| (SourceId(u32::try_from(at).unwrap_or(u32::MAX)), source))
    }

    /// The text that a span covers; empty for one that points nowhere.
    pub fn slice(&self, span: Span) -> &str {
        self.get(span.source).and_then(|source| source.text.get(span.range())).unwrap_or_default()
    }

    /// Line and column of the start of a span, both from 1.
    pub fn line_col(&self, span: Span) -> LineCol {
        self.get(span.source).map_or(LineCol { line: 1, col: 1 }, |source| {
            source.lines.line_col(&source.text, span.start as usize)
        })
    }

    /// The start of a span as a plan keeps it.
    pub fn pos(&self, span: Span) -> SourcePos {
        let LineCol { line, col } = self.line_col(span);
        SourcePos { source: span.source.0, line, col }
    }

    /// Paths and hashes as a plan keeps them.
    pub fn files(&self) -> Vec<SourceFile> {
        self.list
            .iter()
            .map(|source| SourceFile { path: source.path.clone(), hash: sha256_text(source.text.as_bytes()) })
            .collect()
    }
}

/// `sha256:` and 64 hex digits.
pub(crate) fn sha256_text(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
