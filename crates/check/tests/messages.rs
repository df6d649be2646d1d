//! The Markdown files in `messages/` show what is said about pipelines that parse and yet are wrong; it is said. Those in `good/` hold
//! pipelines about which nothing is said, and which can be planned.

use cdpipe_check::{Checked, Inputs, check, plan};
use cdpipe_syntax::testing::check_markdown;
use cdpipe_syntax::{Diagnostic, SourceId};
use std::collections::BTreeMap;

#[allow(clippy::disallowed_methods, clippy::expect_used, reason = "a test reads its fixtures")]
fn files(folder: &str) -> Vec<(String, String)> {
    let folder = format!("{}/tests/{folder}", env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<(String, String)> = std::fs::read_dir(folder)
        .expect("the folder")
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

/// Files that the pipelines may use.
fn load(path: &str) -> Result<String, String> {
    match path {
        "lib.cd" => Ok("service extra { command = [\"./extra\"] }\n\
             strategy careful canary { step 5% for 10m; step 50% for 10m }\n\
             watch calm every 30s { rollback when ready < 80%; after = 5m; no_data = rollback }\n"
            .to_owned()),
        "bad.cd" => Ok("param x: int = 1\nservice other { comand = [\"./x\"] }\n".to_owned()),
        "round.cd" => Ok("use \"./round.cd\"\n".to_owned()),
        _ => Err("no such file".to_owned()),
    }
}

fn checked(text: &str) -> Checked {
    check("pipeline.cd", text, &load)
}

/// What stands in the pipeline's own file; `plan` is asked too where the fence says so (`cd plan a=1 b=2`).
fn diagnostics(code: &str, words: &str) -> Vec<Diagnostic> {
    let checked = checked(code);
    let mut found = checked.diagnostics.clone();
    if let Some(rest) = words.strip_prefix("plan") {
        let set: BTreeMap<String, String> = rest
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        if let Err(more) = plan(&checked, &Inputs { set, ..Inputs::default() }) {
            found.extend(more);
        }
    }
    found.retain(|diagnostic| diagnostic.primary.span.source == SourceId(0));
    found
}

#[test]
#[allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a test that writes its expectations when asked to"
)]
fn what_is_said_is_what_the_files_show() {
    let update = std::env::var("UPDATE_MESSAGES").is_ok();
    let mut blocks = 0;
    let mut failures = Vec::new();
    for (path, markdown) in files("messages") {
        let outcome = check_markdown(&path, &markdown, diagnostics);
        blocks += outcome.blocks;
        if update && !outcome.failures.is_empty() {
            std::fs::write(&path, &outcome.updated).expect("writable");
        }
        failures.extend(outcome.failures);
    }
    assert!(blocks > 20, "only {blocks} blocks");
    assert!(update || failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn nothing_is_said_about_good_pipelines_and_they_can_be_planned() {
    let mut blocks = 0;
    for (path, markdown) in files("good") {
        let outcome = check_markdown(&path, &markdown, |code, words| {
            let set: BTreeMap<String, String> = words
                .split_whitespace()
                .filter_map(|word| word.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
            let checked = checked(code);
            let mut found = checked.diagnostics.clone();
            if let Err(more) = plan(&checked, &Inputs { set, ..Inputs::default() }) {
                found.extend(more);
            }
            found
        });
        blocks += outcome.blocks;
        assert!(outcome.failures.is_empty(), "{}", outcome.failures.join("\n"));
    }
    assert!(blocks >= 15, "only {blocks} blocks");
}

/// The text with the edits of a fix applied.
fn apply(text: &str, diagnostic: &Diagnostic) -> Option<String> {
    let fix = diagnostic.fix.as_ref().filter(|fix| fix.safe)?;
    let mut edits: Vec<_> = fix.edits.iter().collect();
    edits.sort_by_key(|edit| std::cmp::Reverse((edit.span.start, edit.span.end)));
    let mut text = text.to_owned();
    for edit in edits {
        text.replace_range(edit.span.range(), &edit.replacement);
    }
    Some(text)
}

#[test]
fn each_safe_fix_mends_what_it_is_offered_for() {
    let mut tried = 0;
    for (path, markdown) in files("messages") {
        check_markdown(&path, &markdown, |code, words| {
            let before = diagnostics(code, words);
            for diagnostic in &before {
                let Some(after) = apply(code, diagnostic) else { continue };
                tried += 1;
                let same =
                    |found: &[Diagnostic]| found.iter().filter(|d| d.code() == diagnostic.code()).count();
                let left = diagnostics(&after, words);
                assert!(
                    same(&left) < same(&before),
                    "{path}: {} is still there after its fix:\n{after}",
                    diagnostic.code()
                );
            }
            before
        });
    }
    assert!(tried >= 5, "only {tried} fixes");
}
