//! The binary's exact answers. Each folder under `cases` holds files and a `transcript.txt`: lines that begin with `$ ` are typed into
//! a shell in a copy of the folder (lines with `## ` are remarks), what follows is all that is answered (both streams, in order), and `[exit 2]` where it is not 0.
//! Where `> ` lines follow, the command runs at a terminal, and they are what is typed there; `> ^D` ends the input.
//!
//! What differs between two runs that did the same (times, ids, processes) is replaced by a word.
//!
//! `CDPIPE_BLESS=1 cargo test -p cdpipe --test transcripts` writes what is answered now into the transcripts; read the diff.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod terminal;

use std::path::{Path, PathBuf};
use std::process::Command;

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else if entry.file_name() != "transcript.txt" {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// What the shell answers to one command; with lines to type, at a terminal.
fn answer(command: &str, typed: &[String], dir: &Path, home: &Path) -> String {
    let binary = Path::new(env!("CARGO_BIN_EXE_cdpipe")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg(format!("exec 2>&1\n{command}"))
        .current_dir(dir)
        .env_clear()
        .env("PATH", path)
        .env("HOME", home)
        .env("USER", "ada")
        .env("TZ", "UTC")
        .env("LC_ALL", "C.UTF-8");
    let (mut text, status) = if typed.is_empty() {
        let output = shell.stdin(std::process::Stdio::null()).output().unwrap();
        (String::from_utf8_lossy(&output.stdout).into_owned(), output.status)
    } else {
        terminal::run(shell.env("NO_COLOR", "1"), typed)
    };
    text = text.replace(&dir.display().to_string(), "$PWD").replace(&home.display().to_string(), "$HOME");
    if !text.is_empty() && !text.ends_with('\n') {
        text.push_str("[no newline]\n");
    }
    match status.code() {
        Some(0) => {}
        Some(code) => text.push_str(&format!("[exit {code}]\n")),
        None => text.push_str("[killed]\n"),
    }
    text
}

/// Replaces what differs between two runs that did the same.
fn normal(text: &str) -> String {
    let rules = [
        (r"\b\d{8}-\d{6}-[0-9a-f]{4}\b", "RUN"),
        (r"ada@\S+ pid \d+", "ada@HOST pid PID"),
        (r"ada@[^\s,)]+", "ada@HOST"),
        (r"process \d+ on \S+", "process PID on HOST"),
        (r"process \d+", "process PID"),
        (r"after \d+(\.\d+)?ms", "after TIME"),
        (r"(?m)(^|\? )\[ *[0-9dhms.]+\]", "$1[TIME]"),
        (r"\b(in|after|since|took|lasts) \d+(\.\ds|m\d\ds)", "$1 TIME"),
        (r"(?m) +\d+(\.\ds|m\d\ds)$", "  TIME"),
        (r" +\d+(\.\ds|m\d\ds)(  \d{4}-)", "  TIME$2"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ?", "DATE"),
        (r"\(\d+(\.\ds|m\d\ds) ago\)", "(AGO)"),
        (r"sha256:[0-9a-f]{64}", "sha256:HASH"),
        (r"\([0-9a-f]{12}\)", "(RELEASE)"),
        (r#"("(at_ms|started_at_ms|ended_at_ms|duration_ms|expires_at_ms)": ?)\d+"#, "${1}0"),
    ];
    let mut text = text.to_owned();
    for (pattern, with) in rules {
        text = regex::Regex::new(pattern).unwrap().replace_all(&text, with).into_owned();
    }
    text
}

fn replay(folder: &Path) -> (String, String) {
    let transcript = std::fs::read_to_string(folder.join("transcript.txt")).unwrap();
    let work = tempfile::tempdir().unwrap();
    let home = tempfile::tempdir().unwrap();
    let dir = work.path().canonicalize().unwrap();
    copy(folder, &dir);
    let mut actual = String::new();
    let mut lines = transcript.lines().peekable();
    while let Some(line) = lines.next() {
        // Remarks stay where they are, before the command that they are about.
        if line.starts_with("## ") {
            actual.push_str(&format!("{line}\n"));
        } else if let Some(command) = line.strip_prefix("$ ") {
            let mut typed = Vec::new();
            while let Some(line) = lines.next_if(|line| line.starts_with("> ")) {
                typed.push(line["> ".len()..].to_owned());
            }
            actual.push_str(&format!("$ {command}\n"));
            typed.iter().for_each(|line| actual.push_str(&format!("> {line}\n")));
            actual.push_str(&format!("{}\n", normal(&answer(command, &typed, &dir, home.path()))));
        }
    }
    (transcript, actual)
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.join("transcript.txt").exists() {
            found.push(path);
        } else if path.is_dir() {
            found.extend(folders(&path));
        }
    }
    found.sort();
    found
}

#[test]
fn every_transcript_is_what_the_binary_answers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let folders = folders(&root);
    assert!(folders.len() >= 5, "the cases are gone: {}", folders.len());
    let bless = std::env::var_os("CDPIPE_BLESS").is_some();
    let mut wrong = Vec::new();
    for folder in &folders {
        let (expected, actual) = replay(folder);
        if bless {
            std::fs::write(folder.join("transcript.txt"), &actual).unwrap();
        } else if expected != actual {
            wrong.push(format!("== {}\n-- expected\n{expected}\n-- answered\n{actual}", folder.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
