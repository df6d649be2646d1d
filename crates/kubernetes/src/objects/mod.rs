//! Objects that users write: read from files, put in order, applied as a set, taken back.
//!
//! `read` and `glob` are the files, `order` whose turn is when, `kinds` what the cluster knows, `survey` looks before anything changes,
//! `apply` changes, `back` goes back, `copies` keeps what Secrets were, `state` and `wait` say when an object is ready.

mod apply;
mod back;
mod copies;
mod glob;
mod kinds;
pub(crate) mod order;
mod read;
mod state;
mod survey;
mod wait;

pub(crate) use apply::apply;
pub(crate) use back::take_back;
pub(crate) use kinds::{api, places};
pub use read::{Manifest, files, manifests};
pub(crate) use read::{all, bytes};
pub(crate) use survey::survey;

use cdpipe_model::Fault;
use cdpipe_model::plan::SourceFile;
use std::path::Path;

/// The files of a path, a folder or a glob, with their hashes, each read and found to be manifests.
///
/// # Errors
/// Those of [`files`] and [`manifests`].
pub fn pin(base: &Path, pattern: &str) -> Result<Vec<SourceFile>, Fault> {
    let mut pinned = Vec::new();
    for path in files(base, pattern)? {
        let bytes = read::bytes(base, &path)?;
        let hash = survey::hash(&bytes);
        let text = String::from_utf8(bytes)
            .map_err(|_| Fault::new("manifest-invalid", format!("{path} is no text in UTF-8")))?;
        manifests(&path, &text)?;
        pinned.push(SourceFile { path, hash });
    }
    Ok(pinned)
}
