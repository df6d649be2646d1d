//! Tools for tests, ours and those of crates that use the tree (feature `testing`): a tree as text without its spans, Markdown
//! files whose fenced pipelines say what is wrong with them, and what the grammar matched.
//!
//! Nothing here reads a file: a test hands in the text and gets text back.

mod dump;
mod markdown;
mod matches;

pub use dump::{dump, strings};
pub use markdown::{Outcome, annotate, check_markdown};
pub use matches::{Match, matched};
