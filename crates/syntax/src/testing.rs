//! Tools for tests, ours and those of crates that use the tree (feature `testing`): a tree as text without its spans, and Markdown
//! files whose fenced pipelines say what is wrong with them.
//!
//! Nothing here reads a file: a test hands in the text and gets text back.

mod dump;
mod markdown;

pub use dump::{dump, strings};
pub use markdown::{Outcome, annotate, check_markdown};
