//! Bad input that is made rather than written: each kind gets a clear error with a way out, soon, and loses nothing.
//! Those that can be written down are in `cases/`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

use cdpipe_tests::cases;
use cdpipe_tests::place::Place;
use cdpipe_tests::processes::Ended;
use cdpipe_tests::transcript::{compare, entry};
use std::fmt::Write as _;
use std::time::Duration;

/// Every command that reads a pipeline says the same of a bad one, and none takes long.
fn all_commands_say(case: &str, contents: impl AsRef<[u8]>) {
    let place = Place::new().unwrap();
    place.write("bad.cd", contents).unwrap();
    let (normaliser, mut found) = (place.normaliser(), String::new());
    for command in ["check", "plan", "graph", "run", "fmt"] {
        let ended = place.run([command, "bad.cd"]).unwrap();
        assert!(ended.took < Duration::from_secs(20), "{command} took {:?}", ended.took);
        assert_eq!(ended.code, Some(2), "{command}: {}", ended.stderr);
        let said_bytes = ended.stdout.len() + ended.stderr.len();
        assert!(said_bytes < 10_000, "{command} filled the screen with {said_bytes} bytes");
        let said = Ended {
            stdout: normaliser.apply(&ended.stdout),
            stderr: normaliser.apply(&ended.stderr),
            ..ended
        };
        let _ = write!(found, "{}", entry(&format!("cdpipe {command} bad.cd"), &said));
    }
    assert!(!place.state().exists(), "a run that can't begin leaves nothing in the state folder");
    compare(&cases::folder(case).join("said.txt"), &found).unwrap();
}

#[test]
fn a_hundred_thousand_nested_braces() {
    all_commands_say("nested_braces", "stage a { ".repeat(100_000));
}

#[test]
fn a_hundred_thousand_braces_and_nothing_else() {
    all_commands_say("braces", "{".repeat(100_000));
}

#[test]
fn fifty_megabytes_of_noise() {
    all_commands_say("noise", noise(50 << 20));
}

#[test]
fn noise_that_is_text_and_just_short_enough_to_be_read() {
    // Printable, so that it is the parser that has to deal with it.
    let text: Vec<u8> = noise(15 << 20).into_iter().map(|byte| b' ' + byte % 95).collect();
    all_commands_say("printable_noise", text);
}

#[test]
fn bytes_that_are_not_utf8() {
    all_commands_say("not_utf8", b"stage build {\n  run \"caf\xE9\"\n}\n");
}

/// The same bytes each time, without a pattern that would make a parser's work easy.
fn noise(length: usize) -> Vec<u8> {
    let mut state: u64 = 7;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}
