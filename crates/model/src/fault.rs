//! What the world answered when it did not do what was asked.

use serde::{Deserialize, Serialize};
use std::fmt;

/// An error of the world (not a bug): what happened, and what a person can do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What kind; stable, kebab-case, for scripts: `port-in-use`, `not-ready`, `command-failed`, …
    pub kind: String,
    /// One sentence, no full stop: what happened, with what was expected and found.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Lines that explain it (last lines of a log, the answer of an API), already masked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
    /// Whether trying the same again can help (a refused connection: yes; a missing image: no).
    #[serde(default)]
    pub transient: bool,
}

impl Fault {
    /// A fault of this kind; add the rest with the methods below.
    pub fn new(kind: &str, message: impl Into<String>) -> Self {
        Self {
            kind: kind.to_owned(),
            message: message.into(),
            help: None,
            details: Vec::new(),
            transient: false,
        }
    }

    /// Says what to do next.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    /// Adds lines that explain it.
    #[must_use]
    pub fn details(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.details.extend(lines);
        self
    }

    /// Marks it as worth another try.
    #[must_use]
    pub fn transient(mut self) -> Self {
        self.transient = true;
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}
