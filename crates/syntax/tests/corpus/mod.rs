//! The pipelines in this folder: every part of the language, as people write it.

/// Name and text of each.
#[allow(clippy::disallowed_methods, clippy::expect_used, reason = "a test reads its corpus")]
pub(crate) fn files() -> Vec<(String, String)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");
    let mut files: Vec<(String, String)> = std::fs::read_dir(folder)
        .expect("the corpus")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cd"))
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read_to_string(&path).expect("readable"))
        })
        .collect();
    files.sort();
    assert!(files.len() >= 12, "the corpus is not complete");
    files
}
