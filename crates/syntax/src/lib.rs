//! Text to tree and diagnostics; tree to canonical text.
//!
//! Uses pest and nothing of ours. Deliberately not here: what any keyword means (that is the schema in `check`), reading files,
//! and how a diagnostic looks on a screen.

mod codes;
pub mod diagnostic;
mod format;
mod parse;
pub mod span;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tree;

pub use codes::codes;
pub use diagnostic::{CodeInfo, Diagnostic, Edit, Fix, Label, Severity};
pub use format::format;
pub use parse::{MAX_DIAGNOSTICS, MAX_TEXT_BYTES, Parsed, decode, parse};
pub use span::{LineCol, LineIndex, SourceId, Span};
