//! What was typed, what was said and how it ended, as text; and its comparison with what is expected.

use crate::processes::Ended;
use regex::Regex;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Set to anything, it makes [`compare`] write what it found instead of comparing.
pub const UPDATE_VARIABLE: &str = "CDPIPE_UPDATE";

/// One command of a transcript: the line typed, each stream that said anything, and the exit code if it is not 0.
///
/// ```text
/// $ cdpipe check broken.cd
/// [stderr]
/// error: …
/// [exit 2]
/// ```
pub fn entry(line: &str, ended: &Ended) -> String {
    let mut text = format!("$ {line}\n");
    // Writing to a String cannot fail.
    for (name, said) in [("stdout", &ended.stdout), ("stderr", &ended.stderr)] {
        if !said.is_empty() {
            // A missing end of line would not show otherwise.
            let end = if said.ends_with('\n') { "" } else { "⏎\n" };
            let _ = write!(text, "[{name}]\n{said}{end}");
        }
    }
    match ended.code {
        Some(0) => {}
        Some(code) => {
            let _ = writeln!(text, "[exit {code}]");
        }
        None => text.push_str("[ended by a signal]\n"),
    }
    text
}

/// Replaces what differs from run to run, and nothing else: each rule is asked for by the test that needs it.
#[derive(Debug, Clone, Default)]
pub struct Normaliser {
    rules: Vec<(Rule, String)>,
}

#[derive(Debug, Clone)]
enum Rule {
    Literal(String),
    Pattern(Regex),
}

impl Normaliser {
    /// Replaces nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces a text, such as a port that was picked.
    #[must_use]
    pub fn replace(mut self, text: &str, with: &str) -> Self {
        self.rules.push((Rule::Literal(text.to_owned()), with.to_owned()));
        self
    }

    /// Replaces what a regular expression matches; `$1` stands for its first group.
    ///
    /// # Errors
    /// When it is no regular expression.
    pub fn pattern(mut self, pattern: &str, with: &str) -> Result<Self, regex::Error> {
        self.rules.push((Rule::Pattern(Regex::new(pattern)?), with.to_owned()));
        Ok(self)
    }

    /// The text without what differs. Rules apply in the order they were given.
    pub fn apply(&self, text: &str) -> String {
        self.rules.iter().fold(text.to_owned(), |text, (rule, with)| match rule {
            Rule::Literal(literal) => text.replace(literal, with),
            Rule::Pattern(pattern) => pattern.replace_all(&text, with).into_owned(),
        })
    }
}

/// A text that is not what was expected.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// They differ.
    #[error(
        "{path} expects something else from line {line} on:\n  expected: {expected}\n  found:    {found}\n\
         ---- all that was found ----\n{whole}\n---- ({UPDATE_VARIABLE}=1 writes it to the file) ----",
        path = path.display()
    )]
    Differs {
        /// The file with the expected text.
        path: PathBuf,
        /// The first line that differs, from 1.
        line: usize,
        /// That line as expected.
        expected: String,
        /// That line as found.
        found: String,
        /// All that was found.
        whole: String,
    },
    /// The file can't be read or written.
    #[error("{path}: {source}; {UPDATE_VARIABLE}=1 writes a new one", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Compares a text with a file, letter by letter.
///
/// # Errors
/// Where they part first, or that the file can't be read.
pub fn compare(path: &Path, found: &str) -> Result<(), CompareError> {
    let file_error = |source| CompareError::File { path: path.to_owned(), source };
    if std::env::var_os(UPDATE_VARIABLE).is_some() {
        return std::fs::write(path, found).map_err(file_error);
    }
    let expected = std::fs::read_to_string(path).map_err(file_error)?;
    if expected == found {
        return Ok(());
    }
    let mut pairs = (1..).zip(LinesThenEnd::of(&expected).zip(LinesThenEnd::of(found)));
    let (line, (expected, found_line)) = pairs.find(|(_, (a, b))| a != b).unwrap_or((0, ("", "")));
    Err(CompareError::Differs {
        path: path.to_owned(),
        line,
        expected: expected.to_owned(),
        found: found_line.to_owned(),
        whole: found.to_owned(),
    })
}

/// The lines of a text with their ends, then a word for its end, so that a missing last line shows.
struct LinesThenEnd;

impl LinesThenEnd {
    fn of(text: &str) -> impl Iterator<Item = &str> {
        text.split('\n').chain(std::iter::repeat("(the end)"))
    }
}

#[cfg(test)]
mod tests {
    use super::{Normaliser, compare, entry};
    use crate::processes::Ended;
    use std::time::Duration;

    fn ended(stdout: &str, stderr: &str, code: Option<i32>) -> Ended {
        Ended { stdout: stdout.to_owned(), stderr: stderr.to_owned(), code, took: Duration::ZERO }
    }

    #[test]
    fn an_entry_shows_what_was_said_and_only_that() {
        assert_eq!(entry("cdpipe fmt", &ended("", "", Some(0))), "$ cdpipe fmt\n");
        assert_eq!(entry("x", &ended("a\nb\n", "", Some(0))), "$ x\n[stdout]\na\nb\n");
        assert_eq!(entry("x", &ended("a", "e\n", Some(2))), "$ x\n[stdout]\na⏎\n[stderr]\ne\n[exit 2]\n");
        assert_eq!(entry("x", &ended("", "\n", None)), "$ x\n[stderr]\n\n[ended by a signal]\n");
    }

    #[test]
    fn replaces_in_order() {
        let normaliser =
            Normaliser::new().replace("/tmp/a", "<place>").pattern(r":(\d)\d+", ":${1}…").unwrap();
        assert_eq!(normaliser.apply("/tmp/a/b at 127.0.0.1:8080"), "<place>/b at 127.0.0.1:8…");
    }

    #[test]
    fn says_where_texts_part() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("expected.txt");
        std::fs::write(&path, "one\ntwo\n").unwrap();
        assert!(compare(&path, "one\ntwo\n").is_ok());
        let differs = |found: &str| {
            let text = compare(&path, found).unwrap_err().to_string();
            text.lines()
                .take(3)
                .map(|line| line.replace(&*path.to_string_lossy(), "P"))
                .collect::<Vec<_>>()
                .join("|")
        };
        assert_eq!(
            differs("one\n2\n"),
            "P expects something else from line 2 on:|  expected: two|  found:    2"
        );
        assert_eq!(
            differs("one\ntwo"),
            "P expects something else from line 3 on:|  expected: |  found:    (the end)"
        );
    }
}
