//! `$CDPIPE_OUTPUT`: what a command says for later stages.
//!
//! Lines are `NAME=VALUE`; a value of several lines stands between `NAME<<END` and a line `END`.

use crate::durable::{io_fault, make_folder};
use crate::mask::Masker;
use cdpipe_model::Fault;
use cdpipe_model::ports::Sink;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// More than this is a log, not an output.
const LIMIT_BYTES: u64 = 1 << 20;

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A file of a command that nobody will ask for again: removed when it goes.
#[derive(Debug)]
pub(super) struct OutputFile {
    path: PathBuf,
}

impl OutputFile {
    pub(super) fn create(folder: &Path) -> Result<Self, Fault> {
        make_folder(folder)?;
        let folder = std::path::absolute(folder).map_err(|error| io_fault("find", folder, &error))?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("output-{}-{}-{number}", std::process::id(), crate::clock::now_ms()));
        create(&path)?;
        Ok(Self { path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// What was written there, of the names that are declared.
///
/// # Errors
/// `output-unreadable`; `output-secret` if a value holds a secret, and then the file is emptied.
pub(super) fn read(
    path: &Path,
    declared: &[String],
    masker: &Masker,
    sink: &dyn Sink,
) -> Result<BTreeMap<String, String>, Fault> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| io_fault("read", path, &error))?;
    file.take(LIMIT_BYTES + 1).read_to_string(&mut text).map_err(|error| {
        Fault::new(
            "output-unreadable",
            format!("what the command wrote to $CDPIPE_OUTPUT can't be read: {error}"),
        )
    })?;
    if text.len() as u64 > LIMIT_BYTES {
        return Err(Fault::new("output-unreadable", "the command wrote more than 1 MiB to $CDPIPE_OUTPUT")
            .help("write large results to a file, and its path as the output"));
    }
    let outputs = read_text(&text, declared, masker, sink);
    if outputs.as_ref().is_err_and(|fault| fault.kind == "output-secret") {
        // It is kept until the run is over, and no secret is to lie about.
        let _ = std::fs::File::create(path);
    }
    outputs
}

/// What such a text says, of the names that are declared.
///
/// # Errors
/// `output-unreadable`; `output-secret` if a value holds a secret.
pub fn read_text(
    text: &str,
    declared: &[String],
    masker: &Masker,
    sink: &dyn Sink,
) -> Result<BTreeMap<String, String>, Fault> {
    let mut outputs = BTreeMap::new();
    for (name, value) in parse(text)? {
        if !declared.contains(&name) {
            sink.progress(&format!("output `{name}` is ignored: the stage does not declare it"));
        } else if masker.is_tainted(&value) {
            return Err(Fault::new("output-secret", format!("the output `{name}` holds a secret"))
                .help("outputs are kept and shown; pass the secret itself to the step that needs it"));
        } else {
            outputs.insert(name, value);
        }
    }
    Ok(outputs)
}

/// Makes the file of this path, empty.
///
/// # Errors
/// A fault that names the path.
pub(crate) fn create(path: &Path) -> Result<(), Fault> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|error| io_fault("make the file", path, &error))
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        // A script may have removed it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Pairs in order; the last of a name counts.
fn parse(text: &str) -> Result<Vec<(String, String)>, Fault> {
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        if line.trim().is_empty() {
            continue;
        }
        let wrong = |what: String| {
            Fault::new("output-unreadable", format!("line {} of $CDPIPE_OUTPUT {what}", at + 1))
                .help("write NAME=VALUE lines, or NAME<<END, the lines of the value, and END")
        };
        // Whichever comes first decides: a value may hold `<<`, a name neither.
        let is_block = match (line.find("<<"), line.find('=')) {
            (Some(block), Some(equals)) => block < equals,
            (Some(_), None) => true,
            _ => false,
        };
        if is_block {
            let (name, end) = line.split_once("<<").unwrap_or((line, ""));
            let end = end.trim();
            if end.is_empty() {
                return Err(wrong("has no word after `<<`".to_owned()));
            }
            let mut value = Vec::new();
            loop {
                match lines.next() {
                    Some((_, line)) if line == end => break,
                    Some((_, line)) => value.push(line),
                    None => return Err(wrong(format!("begins a value that no line `{end}` ends"))),
                }
            }
            found.push((name.trim().to_owned(), value.join("\n")));
        } else if let Some((name, value)) = line.split_once('=') {
            found.push((name.trim().to_owned(), value.to_owned()));
        } else {
            return Err(wrong("has no `=`".to_owned()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let pairs =
            parse("digest=sha256:ab=c\n\nnotes<<EOF\none\n  two=2\nEOF\nx=a<<b\r\nempty=\n").expect("parses");
        let expected = [("digest", "sha256:ab=c"), ("notes", "one\n  two=2"), ("x", "a<<b"), ("empty", "")];
        assert_eq!(pairs, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, expected) in [
            ("a=1\nnothing\n", "line 2 of $CDPIPE_OUTPUT has no `=`"),
            ("a<<\n", "line 1 of $CDPIPE_OUTPUT has no word after `<<`"),
            ("b=2\na<<E\nx\n", "line 2 of $CDPIPE_OUTPUT begins a value that no line `E` ends"),
        ] {
            assert_eq!(parse(text).expect_err("is wrong").message, expected);
        }
    }
}
