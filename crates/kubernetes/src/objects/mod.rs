//! Objects that users write: read from files, put in order. Nothing here asks a cluster.

mod glob;
pub(crate) mod order;
mod read;

pub use read::{Manifest, files, manifests};
pub(crate) use read::{all, bytes};
