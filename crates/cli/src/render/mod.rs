//! One diagnostic type, many renderers, each in a file of its own. A renderer is a pure function from findings to text.

pub(crate) mod github;
pub(crate) mod json;
pub(crate) mod sarif;
pub(crate) mod short;
pub(crate) mod text;

use cdpipe_check::Sources;
use cdpipe_syntax::{Diagnostic, LineCol, Severity, Span};

/// What was found in one pipeline: its sources and its diagnostics.
pub(crate) struct Found<'a> {
    /// The files the spans point into.
    pub sources: &'a Sources,
    /// In the order in which they are shown.
    pub diagnostics: Vec<&'a Diagnostic>,
}

/// How many of each severity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Keep a pipeline from running.
    pub errors: usize,
    /// Very likely mistakes.
    pub warnings: usize,
    /// Remarks.
    pub advice: usize,
}

impl Counts {
    /// Counts them.
    pub(crate) fn of(found: &[Found<'_>]) -> Self {
        let mut counts = Self::default();
        for diagnostic in found.iter().flat_map(|found| &found.diagnostics) {
            match diagnostic.severity {
                Severity::Error => counts.errors += 1,
                Severity::Warning => counts.warnings += 1,
                Severity::Advice => counts.advice += 1,
            }
        }
        counts
    }

    /// `2 errors, 1 warning`; empty if there is nothing.
    pub(crate) fn text(self) -> String {
        [(self.errors, "error"), (self.warnings, "warning"), (self.advice, "remark")]
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, word)| plural(count, word))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// `1 file`, `2 files`.
pub(crate) fn plural(count: usize, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

/// The word for a severity.
pub(crate) fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Advice => "advice",
    }
}

/// Path, start and end of a span, as people count.
pub(crate) fn place(sources: &Sources, span: Span) -> (&str, LineCol, LineCol) {
    let start = sources.line_col(span.shrink_to_start());
    let end = sources.line_col(span.shrink_to_end());
    let path = sources.get(span.source).map_or("", |source| crate::files::show(&source.path));
    (path, start, end)
}
