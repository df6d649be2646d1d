//! Sets of manifests that an `apply` step brings to a cluster, and what was there before.

use crate::plan::SourceFile;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What one `apply` step applies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplySpec {
    /// Path or glob, relative to the pipeline's file.
    pub path: String,
    /// Which set the objects belong to: what `prune` looks for.
    pub set: String,
    /// Which step of which run applies it: each object carries it, so that an undo finds what is still as this step left it.
    pub mark: String,
    /// Fields that others manage are taken over.
    pub force: bool,
    /// Objects of the set that no file has any more are deleted.
    pub prune: bool,
    /// The files with their hashes; empty before anybody has looked.
    pub files: Vec<SourceFile>,
}

/// What a look found before anything was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surveyed {
    /// The files that are applied, and no others.
    pub files: Vec<SourceFile>,
    /// Every object that will be applied or deleted, in the order in which that is done.
    pub objects: Vec<ObjectWas>,
}

/// One object, as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectWas {
    /// `apps/v1`.
    pub api_version: String,
    /// `Deployment`.
    pub kind: String,
    /// `deployments`.
    pub plural: String,
    /// Where it is; `None` for what is in no namespace.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// The files have it no more: it is deleted.
    pub leaves: bool,
    /// What was there.
    pub was: Was,
}

/// What was there of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Was {
    /// Nothing.
    Absent,
    /// This.
    There {
        /// JSON, without what only the cluster says.
        object: String,
        /// Of a workload: it was ready, so after an undo it must be again.
        ready: bool,
    },
    /// A Secret, of which no value is written down: a copy of it is kept beside it under this name.
    Copied {
        /// Name of the copy.
        copy: String,
        /// Whose mark it carried, if anyone's.
        mark: Option<String>,
    },
}

/// The name of a set as a label of Kubernetes takes it: at most 63 of its characters, begun and ended by a letter or a digit. Two sets that
/// differ in `whole` have different names, if there is any.
pub fn set_name(text: &str, whole: &str) -> String {
    const MOST: usize = 63;
    let clean: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' })
        .collect();
    let trim = |text: &str| text.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned();
    if whole.is_empty() && clean == text && clean == trim(&clean) && (1..=MOST).contains(&clean.len()) {
        return clean;
    }
    let hash = Sha256::digest(if whole.is_empty() { text } else { whole }.as_bytes());
    let tail: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let head: String = clean.chars().take(MOST - tail.len() - 1).collect();
    match trim(&head) {
        head if head.is_empty() => tail,
        head => format!("{head}-{tail}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_a_name_that_is_a_label() {
        assert_eq!(set_name("shop", ""), "shop");
        assert!(set_name("Shop for all!", "").starts_with("Shop-for-all-"));
        assert_ne!(set_name("a", "a/x"), set_name("a", "a/y"));
        for text in ["", "--", &"x".repeat(200), "a/b"] {
            let name = set_name(text, "");
            assert!(!name.is_empty() && name.len() <= 63, "{name}");
            assert!(name.starts_with(|c: char| c.is_ascii_alphanumeric()));
            assert!(name.ends_with(|c: char| c.is_ascii_alphanumeric()));
        }
    }
}
