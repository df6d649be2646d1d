//! Cases as folders: `tests/cases/NAME/` holds the files a user would have, and `transcript.txt` what is typed and what
//! must be said. The files are copied to a place of their own, each `$ cdpipe …` line of the transcript is run there, in
//! order, and the new transcript must be the old one.

use crate::place::{Place, PlaceError};
use crate::processes::RunError;
use crate::transcript::{self, CompareError, Normaliser};
use std::path::{Path, PathBuf};

/// The file that makes a folder a case.
pub const TRANSCRIPT: &str = "transcript.txt";

/// A case that did not come out as expected.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// The case can't be set up.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A file of the case can't be read or copied.
    #[error("cannot read the case {0}: {1}")]
    Read(PathBuf, std::io::Error),
    /// A line that is typed can't be understood.
    #[error("cannot read the line `{0}`: expected `cdpipe` and words, in '…' where they hold blanks")]
    Line(String),
    /// A command could not be run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Something else was said.
    #[error(transparent)]
    Compare(#[from] CompareError),
}

/// The folder of a case.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases").join(name)
}

/// The names of all cases, sorted.
///
/// # Errors
/// When the folder of cases can't be read.
pub fn all() -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder(""))? {
        let entry = entry?;
        if entry.path().join(TRANSCRIPT).is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Runs a case as it stands in its folder.
///
/// # Errors
/// When it can't be run or does not come out as expected.
pub fn run(name: &str) -> Result<(), CaseError> {
    let place = Place::new()?;
    let normaliser = place.normaliser();
    run_in(name, &place, &normaliser)
}

/// Runs a case in a place that a test has prepared, with what it knows to differ from run to run.
///
/// # Errors
/// When it can't be run or does not come out as expected.
pub fn run_in(name: &str, place: &Place, normaliser: &Normaliser) -> Result<(), CaseError> {
    let folder = folder(name);
    let path = folder.join(TRANSCRIPT);
    copy(&folder, &place.work()).map_err(|error| CaseError::Read(folder.clone(), error))?;
    let expected = std::fs::read_to_string(&path).map_err(|error| CaseError::Read(path.clone(), error))?;
    let mut found = String::new();
    for line in expected.lines().filter_map(|line| line.strip_prefix("$ ")) {
        let words = words(line).ok_or_else(|| CaseError::Line(line.to_owned()))?;
        let [program, arguments @ ..] = &words[..] else { return Err(CaseError::Line(line.to_owned())) };
        if program != "cdpipe" {
            return Err(CaseError::Line(line.to_owned()));
        }
        let mut ended = place.run(arguments)?;
        ended.stdout = normaliser.apply(&ended.stdout);
        ended.stderr = normaliser.apply(&ended.stderr);
        found.push_str(&transcript::entry(line, &ended));
    }
    Ok(transcript::compare(&path, &found)?)
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else if entry.file_name() != TRANSCRIPT {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Words apart by blanks, where `'…'` holds blanks together.
fn words(line: &str) -> Option<Vec<String>> {
    let (mut words, mut quoted) = (Vec::new(), false);
    let mut word: Option<String> = None;
    for c in line.chars() {
        match c {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    (!quoted).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn quotes_hold_words_together() {
        let line = "cdpipe run --set 'v=a b'  x ''";
        assert_eq!(words(line).unwrap(), ["cdpipe", "run", "--set", "v=a b", "x", ""]);
        assert_eq!(words("cdpipe 'x"), None);
    }
}
