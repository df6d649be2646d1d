//! The output of all commands of a run, in one file that is appended to: a file for each of ten thousand steps would cost more than
//! the steps.
//!
//! A line is `MILLISECONDS STEP STREAM TEXT`, already masked: `1763913600123 3.main.0 out hello`. `STEP` is `NODE.BLOCK.INDEX`.

use crate::clock::now_ms;
use crate::durable::{io_fault, make_folder};
use cdpipe_model::Fault;
use cdpipe_model::action::{Block, StepRef};
use cdpipe_model::event::Stream;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// What a run may write; the rest is counted and dropped.
const LIMIT_BYTES: u64 = 1 << 30;

/// Appends to the log of a run. Cheap to clone; the file is made with the first line.
#[derive(Debug, Clone)]
pub struct RunLog {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: Option<File>,
    size_bytes: u64,
    limit_bytes: u64,
    full: bool,
}

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedLine {
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// Of which step.
    pub step: StepRef,
    /// Which stream.
    pub stream: Stream,
    /// Masked, without its line end.
    pub text: String,
}

impl RunLog {
    /// A log at this path; what is there stays, so a resumed run goes on in it.
    pub fn new(path: PathBuf) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                path,
                file: None,
                size_bytes: 0,
                limit_bytes: LIMIT_BYTES,
                full: false,
            })),
        }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).path.clone()
    }

    /// Appends lines that belong together, as one write.
    ///
    /// # Errors
    /// `disk-full` and the like: the caller decides whether output is worth stopping for.
    pub(crate) fn append(&self, step: &StepRef, lines: &[(Stream, String)]) -> Result<(), Fault> {
        let mut text = String::new();
        let (now, step) = (now_ms(), step_name(step));
        for (stream, line) in lines {
            // Writing to a `String` cannot fail.
            let _ = writeln!(text, "{now} {step} {} {line}", stream_name(*stream));
        }
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).append(&text)
    }
}

impl Inner {
    fn append(&mut self, text: &str) -> Result<(), Fault> {
        if self.full {
            return Ok(());
        }
        if self.file.is_none() {
            if let Some(folder) = self.path.parent() {
                make_folder(folder)?;
            }
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(&self.path)
                .map_err(|error| io_fault("open the log", &self.path, &error))?;
            self.size_bytes = file.metadata().map_or(0, |metadata| metadata.len());
            self.file = Some(file);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
        let fits = self.size_bytes.saturating_add(length) <= self.limit_bytes;
        self.full = !fits;
        let text = if fits {
            text
        } else {
            "0 -.main.0 err cdpipe: the log of this run is full; what follows is not kept\n"
        };
        file.write_all(text.as_bytes()).map_err(|error| io_fault("write the log", &self.path, &error))?;
        self.size_bytes += length;
        Ok(())
    }
}

/// Calls `give` for each line of a log, oldest first, until it answers `false`. Lines that are damaged are skipped.
///
/// # Errors
/// If the log can't be read; that it is not there means that nothing was written.
pub fn read(path: &Path, mut give: impl FnMut(LoggedLine) -> bool) -> Result<(), Fault> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_fault("open the log", path, &error)),
    };
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let count =
            reader.read_until(b'\n', &mut line).map_err(|error| io_fault("read the log", path, &error))?;
        if count == 0 {
            return Ok(());
        }
        if let Some(line) = parse(String::from_utf8_lossy(&line).trim_end_matches('\n'))
            && !give(line)
        {
            return Ok(());
        }
    }
}

fn parse(line: &str) -> Option<LoggedLine> {
    let mut parts = line.splitn(4, ' ');
    let at_ms = parts.next()?.parse().ok()?;
    let step = parse_step(parts.next()?)?;
    let stream = match parts.next()? {
        "out" => Stream::Stdout,
        "err" => Stream::Stderr,
        _ => return None,
    };
    Some(LoggedLine { at_ms, step, stream, text: parts.next().unwrap_or_default().to_owned() })
}

fn stream_name(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "out",
        Stream::Stderr => "err",
    }
}

fn step_name(step: &StepRef) -> String {
    let node = step.node.map_or_else(|| "-".to_owned(), |node| node.0.to_string());
    let block = match step.block {
        Block::Main => "main".to_owned(),
        Block::Verify(at) => format!("verify{at}"),
        Block::Validate(at) => format!("validate{at}"),
        Block::Undo(at) => format!("undo{at}"),
        Block::Hook(at) => format!("hook{at}"),
    };
    format!("{node}.{block}.{}", step.index)
}

fn parse_step(text: &str) -> Option<StepRef> {
    let mut parts = text.split('.');
    let (node, block, index) = (parts.next()?, parts.next()?, parts.next()?.parse().ok()?);
    let node = if node == "-" { None } else { Some(cdpipe_model::NodeId(node.parse().ok()?)) };
    let number = |prefix: &str| block.strip_prefix(prefix)?.parse().ok();
    let block = if block == "main" {
        Block::Main
    } else if let Some(at) = number("verify") {
        Block::Verify(at)
    } else if let Some(at) = number("validate") {
        Block::Validate(at)
    } else if let Some(at) = number("undo") {
        Block::Undo(at)
    } else {
        Block::Hook(number("hook")?)
    };
    Some(StepRef { node, block, index })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdpipe_model::NodeId;

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run/output.log");
        let log = RunLog::new(path.clone());
        let steps = [
            StepRef { node: Some(NodeId(3)), block: Block::Main, index: 0 },
            StepRef { node: None, block: Block::Hook(2), index: 1 },
            StepRef { node: Some(NodeId(0)), block: Block::Verify(4), index: 5 },
        ];
        for step in &steps {
            log.append(step, &[(Stream::Stdout, "a b  c".to_owned()), (Stream::Stderr, String::new())])
                .expect("writes");
        }
        let mut found = Vec::new();
        read(&path, |line| {
            found.push((line.step, line.stream, line.text));
            true
        })
        .expect("reads");
        let expected: Vec<_> = steps
            .iter()
            .flat_map(|step| {
                [
                    (step.clone(), Stream::Stdout, "a b  c".to_owned()),
                    (step.clone(), Stream::Stderr, String::new()),
                ]
            })
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_log_is_bounded() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("output.log");
        let log = RunLog::new(path.clone());
        log.inner.lock().expect("not poisoned").limit_bytes = 1000;
        let step = StepRef { node: None, block: Block::Main, index: 0 };
        for _ in 0..100 {
            log.append(&step, &[(Stream::Stdout, "x".repeat(50))]).expect("writes");
        }
        assert!(std::fs::metadata(&path).expect("is there").len() < 1100);
        assert!(std::fs::read_to_string(&path).expect("reads").contains("the log of this run is full"));
    }
}
