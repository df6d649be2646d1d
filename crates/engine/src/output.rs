//! Output of commands: one file of JSON lines a run, in two halves so that it stays within a bound.
//!
//! Not the journal: a command that writes faster than the disk takes it is slowed down, and where the disk takes nothing for seconds
//! lines are dropped, and the file says how many. The end of a
//! command is journaled when its lines are in the file (`OutputLog::written`), so that a killed engine leaves none out.

use crate::store::StoreError;
use cdpipe_model::action::StepRef;
use cdpipe_model::event::Stream;
use cdpipe_model::{ActionId, RunId};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;

/// Lines that wait for the disk.
const QUEUE_LINES: usize = 8_192;

/// Longer lines are cut.
pub const MAX_LINE_BYTES: usize = 16 << 10;

/// Bytes of one run's output that are kept: the newest. When the file has half of it, it becomes the older half.
pub const MAX_OUTPUT_BYTES: u64 = 64 << 20;

/// How long the end of a command waits for its lines to be in the file. Only a disk that hangs takes as long.
const WRITTEN_WAIT: Duration = Duration::from_secs(5);

/// One line of output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputLine {
    /// When it came, milliseconds since 1970.
    #[serde(rename = "t")]
    pub at_ms: u64,
    /// Of which step; `None` for a remark of the log itself.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepRef>,
    /// Of which action, and which of its lines, from 1 on; `None` where nobody counts.
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    pub number: Option<(ActionId, u64)>,
    /// Whether it came on standard error.
    #[serde(rename = "e", default, skip_serializing_if = "std::ops::Not::not")]
    pub stderr: bool,
    /// The line, masked, without its end.
    #[serde(rename = "l")]
    pub line: String,
}

/// Takes lines and writes them on a thread of its own. Never blocks.
pub struct OutputLog {
    lines: Option<SyncSender<OutputLine>>,
    /// Lines that were handed to the thread.
    offered: AtomicU64,
    /// How many of them are in the file.
    written: watch::Receiver<u64>,
    dropped: AtomicU64,
    dir: PathBuf,
    run: RunId,
    /// The last line of each action that an engine before this one has taken.
    before: OnceLock<HashMap<ActionId, u64>>,
    thread: Option<JoinHandle<()>>,
}

impl OutputLog {
    /// Opens the log of a run in this folder, to append to it.
    ///
    /// # Errors
    /// If the file can't be made.
    pub fn open(dir: &Path, run: &RunId) -> Result<Self, StoreError> {
        Self::open_bounded(dir, run, MAX_OUTPUT_BYTES)
    }

    fn open_bounded(dir: &Path, run: &RunId, max_bytes: u64) -> Result<Self, StoreError> {
        let fault = |error: io::Error| StoreError::Io { path: dir.to_owned(), detail: error.to_string() };
        fs::create_dir_all(dir).map_err(fault)?;
        let mut writer = Writer::open(dir, run, max_bytes / 2).map_err(fault)?;
        let (lines, inbox) = sync_channel(QUEUE_LINES);
        let (progress, written) = watch::channel(0);
        let thread = std::thread::Builder::new()
            .name("cdpipe-output".to_owned())
            .spawn(move || writer.serve(&inbox, &progress))
            .map_err(fault)?;
        Ok(Self {
            lines: Some(lines),
            offered: AtomicU64::new(0),
            written,
            dropped: AtomicU64::new(0),
            dir: dir.to_owned(),
            run: run.clone(),
            before: OnceLock::new(),
            thread: Some(thread),
        })
    }

    /// Adds a line; with its action and its number there, if there is anybody who counts.
    pub fn write(
        &self,
        at_ms: u64,
        step: &StepRef,
        number: Option<(ActionId, u64)>,
        stream: Stream,
        line: &str,
    ) {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let remark =
                format!("[{dropped} lines are missing here: they came faster than they could be written]");
            if !self.offer(OutputLine { at_ms, step: None, number: None, stderr: false, line: remark }) {
                self.dropped.fetch_add(dropped, Ordering::Relaxed);
            }
        }
        let line = OutputLine {
            at_ms,
            step: Some(step.clone()),
            number,
            stderr: stream == Stream::Stderr,
            line: cut(line, MAX_LINE_BYTES),
        };
        if !self.offer(line) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn offer(&self, line: OutputLine) -> bool {
        let Some(lines) = &self.lines else { return true };
        // Counted before: who waits for it to be written must not miss it.
        self.offered.fetch_add(1, Ordering::SeqCst);
        let full = matches!(lines.try_send(line), Err(TrySendError::Full(_)));
        if full {
            self.offered.fetch_sub(1, Ordering::SeqCst);
        }
        !full
    }

    /// Whether it is time to wait (`written`) before more lines are added.
    pub fn is_behind(&self) -> bool {
        let waiting = self.offered.load(Ordering::SeqCst).saturating_sub(*self.written.borrow());
        waiting > QUEUE_LINES as u64 / 2
    }

    /// Resolves when all lines that were added are in the file, or it was tried; after some seconds in any case.
    pub async fn written(&self) {
        let offered = self.offered.load(Ordering::SeqCst);
        let mut written = self.written.clone();
        // In time, or never: a log never stops a run.
        let _ = tokio::time::timeout(WRITTEN_WAIT, written.wait_for(|written| *written >= offered)).await;
    }

    /// The number of the last line of an action that an engine before this one has written; 0 for none. Reads the whole log once.
    pub fn taken_before(&self, action: ActionId) -> u64 {
        let read = || {
            let mut last = HashMap::new();
            let whole = OutputReader::new(&self.dir, &self.run).read(|line| {
                if let Some((action, number)) = line.number {
                    last.insert(action, number);
                }
            });
            if let Err(error) = whole {
                tracing::warn!(%error, "what was written of commands before can't be read: lines may be there twice");
            }
            last
        };
        self.before.get_or_init(read).get(&action).copied().unwrap_or_default()
    }
}

impl Drop for OutputLog {
    fn drop(&mut self) {
        // The thread writes what it has and ends; a few thousand lines are milliseconds.
        self.lines = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The line, cut at a character's border so that it has at most this many bytes.
fn cut(line: &str, max_bytes: usize) -> String {
    if line.len() <= max_bytes {
        return line.to_owned();
    }
    let mut end = max_bytes;
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}… [{} bytes cut]", &line[..end], line.len() - end)
}

fn newer_half(dir: &Path, run: &RunId) -> PathBuf {
    dir.join(format!("{run}.jsonl"))
}

fn older_half(dir: &Path, run: &RunId) -> PathBuf {
    dir.join(format!("{run}.old.jsonl"))
}

/// Removes the output of a run.
pub(crate) fn remove(dir: &Path, run: &RunId) {
    for path in [newer_half(dir, run), older_half(dir, run)] {
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %path.display(), "old output was not removed");
        }
    }
}

struct Writer {
    newer: PathBuf,
    older: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
    half_bytes: u64,
    failed: bool,
}

impl Writer {
    fn open(dir: &Path, run: &RunId, half_bytes: u64) -> io::Result<Self> {
        let (newer, older) = (newer_half(dir, run), older_half(dir, run));
        let file = OpenOptions::new().create(true).append(true).open(&newer)?;
        let bytes = file.metadata()?.len();
        let mut writer = Self {
            newer,
            older,
            file: BufWriter::with_capacity(64 << 10, file),
            bytes,
            half_bytes,
            failed: false,
        };
        // An engine that was killed may have left half a line.
        if bytes > 0 {
            writer.file.write_all(b"\n")?;
            writer.bytes += 1;
        }
        Ok(writer)
    }

    /// Writes until nobody is left who could add a line; readable by others whenever nothing waits.
    fn serve(&mut self, inbox: &Receiver<OutputLine>, progress: &watch::Sender<u64>) {
        let mut count = 0;
        while let Ok(line) = inbox.recv() {
            count += 1;
            self.attempt(|writer| writer.line(&line));
            for line in inbox.try_iter() {
                count += 1;
                self.attempt(|writer| writer.line(&line));
            }
            self.attempt(|writer| writer.file.flush());
            progress.send_replace(count);
        }
    }

    /// Output that can't be written never stops a run: the journal on the same disk does that, where it matters.
    fn attempt(&mut self, write: impl FnOnce(&mut Self) -> io::Result<()>) {
        if let Err(error) = write(self)
            && !std::mem::replace(&mut self.failed, true)
        {
            tracing::warn!(%error, path = %self.newer.display(), "output of commands is not kept");
        }
    }

    fn line(&mut self, line: &OutputLine) -> io::Result<()> {
        let mut json = serde_json::to_vec(line)?;
        json.push(b'\n');
        if self.bytes > 0 && self.bytes + json.len() as u64 > self.half_bytes {
            self.file.flush()?;
            fs::rename(&self.newer, &self.older)?;
            let file = OpenOptions::new().create(true).append(true).open(&self.newer)?;
            self.file = BufWriter::with_capacity(64 << 10, file);
            self.bytes = 0;
        }
        self.bytes += json.len() as u64;
        self.file.write_all(&json)
    }
}

/// Reads the output of a run, also while it grows.
pub struct OutputReader {
    dir: PathBuf,
    run: RunId,
    offset: u64,
    inode: u64,
    began: bool,
}

impl OutputReader {
    /// From the oldest line that is kept.
    pub fn new(dir: &Path, run: &RunId) -> Self {
        Self { dir: dir.to_owned(), run: run.clone(), offset: 0, inode: 0, began: false }
    }

    /// Hands every whole line that came since the last call to `each`.
    ///
    /// # Errors
    /// If a file that is there can't be read.
    pub fn read(&mut self, mut each: impl FnMut(OutputLine)) -> Result<(), StoreError> {
        let dir = self.dir.clone();
        self.read_files(&mut each).map_err(|error| StoreError::Io { path: dir, detail: error.to_string() })
    }

    fn read_files(&mut self, each: &mut dyn FnMut(OutputLine)) -> io::Result<()> {
        let Some((mut file, inode)) = open_with_inode(&newer_half(&self.dir, &self.run))? else {
            return Ok(());
        };
        if !self.began || inode != self.inode {
            // The first read begins with the older half; later ones finish what has meanwhile become it.
            if let Some((mut older, older_inode)) = open_with_inode(&older_half(&self.dir, &self.run))? {
                let from = if self.began && older_inode == self.inode { self.offset } else { 0 };
                older.seek(SeekFrom::Start(from))?;
                read_lines(&older, each)?;
            }
            (self.began, self.inode, self.offset) = (true, inode, 0);
        }
        file.seek(SeekFrom::Start(self.offset))?;
        self.offset += read_lines(&file, each)?;
        Ok(())
    }
}

fn open_with_inode(path: &Path) -> io::Result<Option<(File, u64)>> {
    use std::os::unix::fs::MetadataExt;
    match File::open(path) {
        Ok(file) => {
            let inode = file.metadata()?.ino();
            Ok(Some((file, inode)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Answers the bytes of the whole lines that were read. A line that a killed engine left half is passed over.
fn read_lines(file: &File, each: &mut dyn FnMut(OutputLine)) -> io::Result<u64> {
    let mut reader = BufReader::with_capacity(64 << 10, file);
    let mut bytes = 0;
    let mut json = Vec::new();
    // A line is cut when it is written; the bound here is against a file that something else has written to.
    let longest = (8 * MAX_LINE_BYTES) as u64;
    loop {
        json.clear();
        let read = reader.by_ref().take(longest).read_until(b'\n', &mut json)? as u64;
        if !json.ends_with(b"\n") && read < longest {
            return Ok(bytes);
        }
        bytes += read;
        if let Ok(line) = serde_json::from_slice(&json) {
            each(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdpipe_model::NodeId;
    use cdpipe_model::action::Block;

    fn step(node: u32) -> StepRef {
        StepRef { node: Some(NodeId(node)), block: Block::Main, index: 0 }
    }

    fn texts(reader: &mut OutputReader) -> Vec<String> {
        let mut texts = Vec::new();
        reader.read(|line| texts.push(line.line)).unwrap();
        texts
    }

    #[test]
    fn what_is_written_is_read_by_step_and_followed() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunId::from("r1");
        let mut reader = OutputReader::new(dir.path(), &run);
        assert_eq!(texts(&mut reader), Vec::<String>::new());
        let log = OutputLog::open(dir.path(), &run).unwrap();
        log.write(1, &step(0), None, Stream::Stdout, "one");
        log.write(2, &step(1), Some((ActionId(7), 1)), Stream::Stderr, "two");
        drop(log);
        let mut lines = Vec::new();
        reader.read(|line| lines.push(line)).unwrap();
        assert_eq!(
            lines,
            [
                OutputLine { at_ms: 1, step: Some(step(0)), number: None, stderr: false, line: "one".into() },
                OutputLine {
                    at_ms: 2,
                    step: Some(step(1)),
                    number: Some((ActionId(7), 1)),
                    stderr: true,
                    line: "two".into()
                },
            ]
        );
        let log = OutputLog::open(dir.path(), &run).unwrap();
        log.write(3, &step(0), None, Stream::Stdout, "three");
        drop(log);
        assert_eq!(texts(&mut reader), ["three"]);
    }

    #[tokio::test]
    async fn what_an_engine_before_has_taken_is_known_by_action() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunId::from("r1");
        let log = OutputLog::open(dir.path(), &run).unwrap();
        for number in 1..=500 {
            log.write(1, &step(0), Some((ActionId(3), number)), Stream::Stdout, "a");
        }
        log.write(1, &step(0), Some((ActionId(30), 2)), Stream::Stdout, "b");
        log.written().await;
        // Killed: its thread gets to write no more.
        std::mem::forget(log);
        let log = OutputLog::open(dir.path(), &run).unwrap();
        assert_eq!([3, 30, 4].map(|id| log.taken_before(ActionId(id))), [500, 2, 0]);
    }

    #[test]
    fn half_a_line_of_a_killed_engine_loses_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunId::from("r1");
        drop(OutputLog::open(dir.path(), &run).unwrap());
        fs::write(newer_half(dir.path(), &run), "{\"t\":1,\"l\":\"whole\"}\n{\"t\":2,\"l\":\"ha").unwrap();
        let mut reader = OutputReader::new(dir.path(), &run);
        assert_eq!(texts(&mut reader), ["whole"]);
        let log = OutputLog::open(dir.path(), &run).unwrap();
        log.write(3, &step(0), None, Stream::Stdout, "after");
        drop(log);
        assert_eq!(texts(&mut reader), ["after"]);
    }

    #[test]
    fn the_newest_lines_are_kept_within_the_bound() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunId::from("r1");
        let log = OutputLog::open_bounded(dir.path(), &run, 4_096).unwrap();
        for at in 0..1_000 {
            log.write(at, &step(0), None, Stream::Stdout, &format!("line {at}"));
            if at % 100 == 0 {
                // Not to outrun the disk: this is about the bound of the file.
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        drop(log);
        let kept = texts(&mut OutputReader::new(dir.path(), &run));
        assert_eq!(kept.last().map(String::as_str), Some("line 999"));
        let first: usize = kept[0].trim_start_matches("line ").parse().unwrap();
        assert_eq!(kept.len(), 1_000 - first, "no gap among the kept ones");
        let bytes: u64 = [newer_half(dir.path(), &run), older_half(dir.path(), &run)]
            .iter()
            .map(|path| fs::metadata(path).unwrap().len())
            .sum();
        assert!(bytes <= 4_096, "{bytes}");
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let text = "ä".repeat(10);
        assert_eq!(cut(&text, 5), "ää… [16 bytes cut]");
        assert_eq!(cut(&text, 20), text);
    }
}
