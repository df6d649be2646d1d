//! Text to tree and diagnostics; tree to canonical text.
//!
//! Uses nothing of ours, and no library; pest reads the grammar when this crate is built. Deliberately not here: what any keyword means (that is the schema in `check`), reading files,
//! and how a diagnostic looks on a screen.
//!
//! Invariants: [`parse`] takes any text, never fails and never panics, and its work is bounded by the length of the text; spans lie on
//! character boundaries of the text that was given; nothing in a tree nests deeper than 64 levels, or has more than 1,000
//! operators in a row, so whoever walks it may recurse; where a tree holds an error node there is a diagnostic about it;
//! [`format()`] keeps tree and comments. The grammar is `grammar/cdpipe.pest`, explained in `docs/grammar.md`;
//! `build/` makes the matcher from it, so it stands nowhere else.

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
pub use parse::{MAX_DIAGNOSTICS, MAX_TEXT_BYTES, Parsed, decode, parse, parse_expr};
pub use span::{LineCol, LineIndex, SourceId, Span};
