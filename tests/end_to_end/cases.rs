//! Every folder of `cases/` that has a transcript.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

use cdpipe_tests::cases;

#[test]
fn every_case_says_what_its_transcript_says() {
    let names = cases::all().unwrap();
    assert!(!names.is_empty());
    let failures: Vec<String> = names
        .iter()
        .filter_map(|name| cases::run(name).err().map(|error| format!("{name}: {error}")))
        .collect();
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), names.len(), failures.join("\n"));
}
