//! The Markdown files in `messages/` show what is said about wrong pipelines; it is said.

use cdpipe_syntax::testing::check_markdown;
use cdpipe_syntax::{Diagnostic, SourceId, parse};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/messages");

#[allow(clippy::disallowed_methods, clippy::expect_used, reason = "a test reads its fixtures")]
fn files() -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = std::fs::read_dir(FOLDER)
        .expect("the messages")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("readable");
            (path.to_string_lossy().into_owned(), text)
        })
        .collect();
    files.sort();
    files
}

#[test]
#[allow(clippy::disallowed_methods, reason = "a test that writes its expectations when asked to")]
fn what_is_said_is_what_the_files_show() {
    let update = std::env::var("UPDATE_MESSAGES").is_ok();
    let mut blocks = 0;
    let mut failures = Vec::new();
    for (path, markdown) in files() {
        let outcome = check_markdown(&path, &markdown, |code, _| parse(SourceId(0), code).diagnostics);
        blocks += outcome.blocks;
        if update && !outcome.failures.is_empty() {
            std::fs::write(&path, &outcome.updated).expect("writable");
        }
        failures.extend(outcome.failures);
    }
    assert!(blocks > 30, "only {blocks} blocks");
    assert!(update || failures.is_empty(), "{}", failures.join("\n"));
}

/// The text with the edits of a fix applied.
fn apply(text: &str, diagnostic: &Diagnostic) -> Option<String> {
    let fix = diagnostic.fix.as_ref()?;
    let mut edits: Vec<_> = fix.edits.iter().collect();
    edits.sort_by_key(|edit| std::cmp::Reverse((edit.span.start, edit.span.end)));
    let mut text = text.to_owned();
    for edit in edits {
        text.replace_range(edit.span.range(), &edit.replacement);
    }
    Some(text)
}

#[test]
fn each_fix_mends_what_it_is_offered_for() {
    let mut tried = 0;
    for (path, markdown) in files() {
        check_markdown(&path, &markdown, |code, _| {
            let before = parse(SourceId(0), code).diagnostics;
            for diagnostic in &before {
                let Some(after) = apply(code, diagnostic) else { continue };
                tried += 1;
                let parsed = parse(SourceId(0), &after);
                let same = |found: &&Diagnostic| found.code() == diagnostic.code();
                let left = parsed.diagnostics.iter().filter(same).count();
                let had = before.iter().filter(same).count();
                assert!(
                    left < had,
                    "{path}: `{}` did not mend `{}`:\n{after}",
                    diagnostic.fix.as_ref().map_or("", |fix| &fix.title),
                    diagnostic.message
                );
                assert!(
                    parsed.diagnostics.len() < before.len()
                        || left < had && parsed.diagnostics.len() <= before.len(),
                    "{path}: mending `{}` made things worse:\n{after}",
                    diagnostic.message
                );
            }
            before
        });
    }
    assert!(tried > 40, "only {tried} fixes");
}
