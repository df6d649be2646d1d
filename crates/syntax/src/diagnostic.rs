//! The one diagnostic type. Everything that is wrong with a text, found by the parser or by the checker, is one of these;
//! how it is shown (terminal, one line, JSON, SARIF, GitHub, editor) is the business of whoever shows it.

use crate::span::Span;

/// How bad it is. Errors keep anything from running; the rest do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Nothing will be run.
    Error,
    /// Very likely a mistake, but it has a meaning.
    Warning,
    /// A remark that may help.
    Advice,
}

/// What is known of a kind of diagnostic: the error page and `cdpipe explain` are made from it.
#[derive(Debug, PartialEq, Eq)]
pub struct CodeInfo {
    /// `CD` and four digits. A number is never used again for something else.
    pub code: &'static str,
    /// A few words, no full stop: the title of the page.
    pub title: &'static str,
    /// Severity with which it is reported.
    pub severity: Severity,
    /// Markdown: why this is wrong, what happens if it were let through, and how to mend it.
    pub explanation: &'static str,
    /// A smallest pipeline text that shows it; a test checks that it does.
    pub bad: &'static str,
    /// The same text mended; a test checks that it is clean of this code.
    pub good: &'static str,
}

/// Points at a place and says something about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Where.
    pub span: Span,
    /// What is to be seen there; may be empty for the primary label.
    pub text: String,
}

/// One replacement of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// What is replaced; empty to insert.
    pub span: Span,
    /// What stands there afterwards.
    pub replacement: String,
}

/// A change that mends the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fix {
    /// What it does, as an order: "quote the name".
    pub title: String,
    /// Edits that do not overlap, in any order.
    pub edits: Vec<Edit>,
    /// Whether `check --fix` may apply it unasked: it cannot change what a correct reader would have meant.
    pub safe: bool,
}

/// Something to tell about a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Diagnostic {
    /// What kind.
    pub info: &'static CodeInfo,
    /// Severity; by default that of the code.
    pub severity: Severity,
    /// One sentence without a full stop: what is wrong, with what was found and what was expected.
    pub message: String,
    /// Where; the primary place.
    pub primary: Label,
    /// Other places that explain it.
    pub secondary: Vec<Label>,
    /// What to do next.
    pub help: Option<String>,
    /// Edits that would mend it.
    pub fix: Option<Fix>,
}

impl Diagnostic {
    /// A diagnostic of this kind at this place; add labels, help and fix with the methods below.
    pub fn new(info: &'static CodeInfo, span: Span, message: impl Into<String>) -> Self {
        Self {
            info,
            severity: info.severity,
            message: message.into(),
            primary: Label { span, text: String::new() },
            secondary: Vec::new(),
            help: None,
            fix: None,
        }
    }

    /// Says something at the primary place.
    #[must_use]
    pub fn label(mut self, text: impl Into<String>) -> Self {
        self.primary.text = text.into();
        self
    }

    /// Points at one more place.
    #[must_use]
    pub fn also(mut self, span: Span, text: impl Into<String>) -> Self {
        self.secondary.push(Label { span, text: text.into() });
        self
    }

    /// Says what to do next.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    /// Attaches a change that `check --fix` may apply.
    #[must_use]
    pub fn fix(mut self, title: impl Into<String>, edits: Vec<Edit>) -> Self {
        self.fix = Some(Fix { title: title.into(), edits, safe: true });
        self
    }

    /// Attaches a change that only a person may choose.
    #[must_use]
    pub fn suggestion(mut self, title: impl Into<String>, edits: Vec<Edit>) -> Self {
        self.fix = Some(Fix { title: title.into(), edits, safe: false });
        self
    }

    /// The code, such as `CD0102`.
    pub fn code(&self) -> &'static str {
        self.info.code
    }

    /// Whether this keeps a pipeline from running.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}
