//! The pages under `docs/` that are made from the schema and the codes are what the program would write today.

use cdpipe_check::{error_pages, explain, reference_pages};
use std::path::{Path, PathBuf};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)
}

/// `UPDATE_PAGES=1 cargo test -p cdpipe-check --test pages` writes them.
#[allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a test that compares files, and writes them when asked to"
)]
fn compare(name: &str, pages: Vec<(String, String)>) {
    let folder = folder(name);
    if std::env::var("UPDATE_PAGES").is_ok() {
        let _ = std::fs::create_dir_all(&folder);
        for (file, text) in &pages {
            std::fs::write(folder.join(file), text).expect("writable");
        }
    }
    let mut stale = Vec::new();
    for (file, text) in &pages {
        if std::fs::read_to_string(folder.join(file)).ok().as_ref() != Some(text) {
            stale.push(file.clone());
        }
    }
    assert!(stale.is_empty(), "docs/{name}: write these again with UPDATE_PAGES=1: {stale:?}");
    let known: Vec<&String> = pages.iter().map(|(file, _)| file).collect();
    for entry in std::fs::read_dir(&folder).expect("the folder") {
        let file = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        assert!(known.contains(&&file), "docs/{name}/{file} belongs to nothing that exists");
    }
}

#[test]
fn the_reference_is_that_of_the_schema() {
    compare("reference", reference_pages());
}

#[test]
fn the_error_pages_are_those_of_the_codes() {
    compare("errors", error_pages());
}

#[test]
fn explain_knows_the_words_of_the_language() {
    for word in [
        "CD0201",
        "cd0201",
        "deploy",
        "canary",
        "watch",
        "timeout",
        "deploy.timeout",
        "redis",
        "max",
        "ratio",
        "candidate",
        "candidate.url",
        "git",
        "functions",
        "names",
        "no_data",
        "start_first",
        "step",
        "environment",
        "health",
        "vars",
        "on",
        "for",
        "run.retry",
        "every",
        "to",
        "in",
        "matches",
        "else",
    ] {
        let found = explain(word);
        assert!(found.is_some_and(|text| text.len() > 20), "{word}");
    }
    assert_eq!(explain("nonsense"), None);
    // A word of heads shows the heads that it stands in.
    let page = explain("for").unwrap_or_default();
    assert!(
        page.contains("stage NAME [for x in LIST]") && page.contains("rollback when CONDITION [for FOR]"),
        "{page}"
    );
}
