//! The log of an instance: its output line by line, masked, in two files of bounded size.

use crate::lines::Lines;
use crate::mask::{MaskStream, Masker};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinHandle;

/// Appends lines; when the file is full it becomes `NAME.1` and a new one begins, so at most twice the bound is kept.
#[derive(Debug, Clone)]
pub(super) struct Log {
    inner: Arc<Mutex<Inner>>,
    masker: Masker,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    limit_bytes: u64,
    file: Option<File>,
    size_bytes: u64,
}

impl Log {
    pub(super) fn new(path: PathBuf, limit_bytes: u64, masker: Masker) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { path, limit_bytes, file: None, size_bytes: 0 })), masker }
    }

    /// Writes a line of the supervisor's own.
    pub(super) fn note(&self, text: &str) {
        self.append(format!("cdpipe: {}\n", self.masker.mask(text)).as_bytes());
    }

    /// A log that can't be written must not end the instance: then its output is lost.
    fn append(&self, bytes: &[u8]) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.write(bytes).is_err() {
            // Opened again with the next line: the disk may have room by then.
            inner.file = None;
        }
    }

    /// Reads a stream of the process until it ends.
    ///
    /// # Errors
    /// If the pipe can't be read asynchronously.
    pub(super) fn pump(&self, pipe: OwnedFd) -> io::Result<JoinHandle<()>> {
        let mut pipe = tokio::net::unix::pipe::Receiver::from_owned_fd(pipe)?;
        let log = self.clone();
        Ok(tokio::spawn(async move {
            let mut mask = MaskStream::new(log.masker.clone());
            let mut lines = Lines::default();
            let mut buffer = vec![0_u8; 16 * 1024];
            loop {
                let count = pipe.read(&mut buffer).await.unwrap_or_default();
                let mut text = String::new();
                let mut keep = |line: &str| {
                    text.push_str(line);
                    text.push('\n');
                };
                if count == 0 {
                    lines.feed(&mask.finish(), &mut keep);
                    lines.finish(&mut keep);
                } else {
                    lines.feed(&mask.feed(&buffer[..count]), &mut keep);
                }
                if !text.is_empty() {
                    log.append(text.as_bytes());
                }
                if count == 0 {
                    break;
                }
                // An instance that never stops writing must not keep the supervisor from anything else.
                tokio::task::yield_now().await;
            }
        }))
    }
}

impl Inner {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.file.is_some()
            && self.size_bytes.saturating_add(length) > self.limit_bytes
            && self.size_bytes > 0
        {
            self.file = None;
            std::fs::rename(&self.path, older(&self.path))?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?;
                self.size_bytes = file.metadata()?.len();
                none.insert(file)
            }
        };
        file.write_all(bytes)?;
        self.size_bytes += length;
        Ok(())
    }
}

fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// Most bytes that are read for the last lines of a log.
const TAIL_LIMIT_BYTES: u64 = 1 << 20;

/// The last lines of a log, over both of its files; empty if there is none.
pub(crate) fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let mut lines = tail(path, count);
    if lines.len() < count {
        let mut before = tail(&older(path), count - lines.len());
        before.append(&mut lines);
        lines = before;
    }
    lines
}

fn tail(path: &Path, count: usize) -> Vec<String> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let from = length.saturating_sub(TAIL_LIMIT_BYTES);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(TAIL_LIMIT_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_never_grows_beyond_twice_its_bound() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let log = Log::new(path.clone(), 1000, Masker::default());
        for number in 0..500 {
            log.append(format!("line {number}\n").as_bytes());
        }
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        assert!(size(&path) <= 1000 && size(&older(&path)) <= 1000, "both files stay under the bound");
        let last = last_lines(&path, 120);
        assert_eq!(last.len(), 120);
        assert_eq!((last[0].as_str(), last[119].as_str()), ("line 380", "line 499"));
    }
}
