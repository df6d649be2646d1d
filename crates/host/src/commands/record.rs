//! The record of the commands of a run: appended to with plain writes, a line of JSON each.

use super::protocol::{Ended, NumberedLine, WireLine, numbered};
use super::{EFFECT_VARIABLE, Folder};
use crate::clock::now_ms;
use crate::durable::{io_fault, sync_parent};
use crate::process;
use cdpipe_model::Fault;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

/// Beyond this no more output is kept for an engine that is not there; starts and ends always are.
const OUTPUT_LIMIT_BYTES: u64 = 64 << 20;

/// A line.
#[derive(Debug, Serialize, Deserialize)]
enum Entry {
    /// Written before the command is started.
    Start { effect: String, at_ms: u64, title: String, outputs: Vec<String> },
    /// Its process, which leads its group.
    Pid { effect: String, pid: u32 },
    /// Output that maybe no engine took; with the number of its first line.
    Out { effect: String, first: u64, lines: Vec<WireLine> },
    /// Its end, and where output stands that maybe no engine took: from, to.
    End { effect: String, ended: Ended, unseen: Option<(u64, u64)> },
}

impl Entry {
    fn effect(&self) -> &str {
        match self {
            Entry::Start { effect, .. }
            | Entry::Pid { effect, .. }
            | Entry::Out { effect, .. }
            | Entry::End { effect, .. } => effect,
        }
    }
}

/// The writing end.
#[derive(Debug)]
pub(super) struct Record {
    file: File,
    size_bytes: u64,
    buffer: Vec<u8>,
}

impl Record {
    /// Opens it, and notes the boot, synced.
    ///
    /// # Errors
    /// Of the file system.
    pub(super) fn open(folder: &Folder) -> Result<Self, Fault> {
        note_boot(folder).map_err(|error| io_fault("write", &folder.boots(), &error))?;
        let path = folder.record();
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| io_fault("open", &path, &error))?;
        // What a supervisor that was killed has left half must not swallow the next line.
        let ended = file.write_all(b"\n").and_then(|()| file.metadata());
        let size_bytes = ended.map_err(|error| io_fault("write", &path, &error))?.len();
        Ok(Self { file, size_bytes, buffer: Vec::new() })
    }

    pub(super) fn start(&mut self, effect: &str, title: &str, outputs: &[String]) -> io::Result<()> {
        self.append(&Entry::Start {
            effect: effect.to_owned(),
            at_ms: now_ms(),
            title: title.to_owned(),
            outputs: outputs.to_vec(),
        })
    }

    pub(super) fn pid(&mut self, effect: &str, pid: u32) -> io::Result<()> {
        self.append(&Entry::Pid { effect: effect.to_owned(), pid })
    }

    /// Answers where it stands: from, to. Nothing is written beyond the limit.
    pub(super) fn out(&mut self, effect: &str, first: u64, lines: Vec<WireLine>) -> io::Result<(u64, u64)> {
        let from = self.size_bytes;
        if from < OUTPUT_LIMIT_BYTES {
            self.append(&Entry::Out { effect: effect.to_owned(), first, lines })?;
        }
        Ok((from, self.size_bytes))
    }

    pub(super) fn end(&mut self, effect: &str, ended: &Ended, unseen: Option<(u64, u64)>) -> io::Result<()> {
        self.append(&Entry::End { effect: effect.to_owned(), ended: ended.clone(), unseen })
    }

    fn append(&mut self, entry: &Entry) -> io::Result<()> {
        self.buffer.clear();
        super::protocol::encode(entry, &mut self.buffer);
        let written = self.file.write_all(&self.buffer);
        if written.is_err() {
            // A full disk takes a part of a line: what follows must stand on a line of its own.
            self.size_bytes = self.file.metadata().map_or(self.size_bytes, |metadata| metadata.len());
            let _ = self.file.write_all(b"\n").map(|()| self.size_bytes += 1);
            return written;
        }
        self.size_bytes += self.buffer.len() as u64;
        Ok(())
    }
}

/// What the record says of an effect.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Its last start: title and declared outputs.
    pub(super) start: Option<(String, Vec<String>)>,
    /// Its process.
    pub(super) pid: Option<u32>,
    /// Its end since then.
    pub(super) ended: Option<Ended>,
    /// Where output stands that maybe no engine took.
    pub(super) unseen: Option<(u64, u64)>,
}

/// Reads what is known of an effect. That there is no record means that nothing was started.
///
/// # Errors
/// If it is there and can't be read.
pub(super) fn read(folder: &Folder, effect: &str) -> Result<Told, Fault> {
    let mut told = Told::default();
    let fault = |error: &io::Error| io_fault("read", &folder.record(), error);
    let file = match File::open(folder.record()) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(told),
        Err(error) => return Err(fault(&error)),
    };
    each_line(BufReader::new(file), effect, |entry| match entry {
        Entry::Start { title, outputs, .. } => {
            told = Told { start: Some((title, outputs)), ..Told::default() };
        }
        Entry::Pid { pid, .. } => told.pid = Some(pid),
        Entry::Out { .. } => {}
        Entry::End { ended, unseen, .. } => (told.ended, told.unseen) = (Some(ended), unseen),
    })
    .map_err(|error| fault(&error))?;
    Ok(told)
}

/// Commands that were started and have no end, each with its process where that is known.
///
/// # Errors
/// If the record is there and can't be read.
pub(super) fn unended(folder: &Folder) -> Result<Vec<(String, Option<u32>)>, Fault> {
    let file = match File::open(folder.record()) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_fault("read", &folder.record(), &error)),
    };
    let mut unended = BTreeMap::new();
    each_entry(
        BufReader::new(file),
        |_| true,
        |entry| match entry {
            Entry::Start { effect, .. } => drop(unended.insert(effect, None)),
            Entry::Pid { effect, pid } => drop(unended.insert(effect, Some(pid))),
            Entry::Out { .. } => {}
            Entry::End { effect, .. } => drop(unended.remove(&effect)),
        },
    )
    .map_err(|error| io_fault("read", &folder.record(), &error))?;
    Ok(unended.into_iter().collect())
}

/// Output of an effect in this part of the record.
///
/// # Errors
/// If it can't be read.
pub(super) fn output(
    folder: &Folder,
    effect: &str,
    (from, to): (u64, u64),
) -> Result<Vec<NumberedLine>, Fault> {
    let mut found = Vec::new();
    File::open(folder.record())
        .and_then(|mut file| {
            file.seek(SeekFrom::Start(from))?;
            let part = BufReader::new(file.take(to.saturating_sub(from)));
            each_line(part, effect, |entry| {
                if let Entry::Out { first, lines, .. } = entry {
                    found.extend(numbered(first, lines));
                }
            })
        })
        .map_err(|error| io_fault("read", &folder.record(), &error))?;
    Ok(found)
}

/// Whole entries of this effect; what is damaged is passed over.
fn each_line(reader: impl io::BufRead, effect: &str, mut give: impl FnMut(Entry)) -> io::Result<()> {
    let mark = format!("{{\"effect\":{}", serde_json::to_string(effect).unwrap_or_default());
    each_entry(
        reader,
        |line| line.contains(&mark),
        |entry| {
            if entry.effect() == effect {
                give(entry);
            }
        },
    )
}

/// Whole entries whose line may be of interest; what is damaged is passed over.
fn each_entry(
    mut reader: impl io::BufRead,
    of_interest: impl Fn(&str) -> bool,
    mut give: impl FnMut(Entry),
) -> io::Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if of_interest(&line)
            && let Ok(entry) = serde_json::from_str::<Entry>(&line)
        {
            give(entry);
        }
    }
}

/// Whether the process of an effect, whose supervisor is gone, lives: the leader of its group, known by the effect it was started for.
pub(super) fn living(told: &Told, effect: &str) -> Option<u32> {
    let entry = format!("{EFFECT_VARIABLE}={effect}");
    match told.pid {
        Some(pid) => process::carries(pid, &entry).then_some(pid),
        // The supervisor was killed between the start and its note of it.
        None => process::with_environment(&entry).first().map(|process| process.pid),
    }
}

/// Which boot this is.
fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn boots(folder: &Folder) -> io::Result<Vec<String>> {
    match std::fs::read_to_string(folder.boots()) {
        Ok(text) => Ok(text.lines().map(str::to_owned).filter(|line| !line.is_empty()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Whether all supervisors that this run has had were of this boot: then what the record does not say did not happen.
pub(super) fn is_of_this_boot(folder: &Folder) -> bool {
    let this = boot();
    boots(folder).is_ok_and(|boots| boots.iter().all(|boot| *boot == this))
}

fn note_boot(folder: &Folder) -> io::Result<()> {
    let this = boot();
    if boots(folder)?.contains(&this) {
        return Ok(());
    }
    let path = folder.boots();
    let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
    file.write_all(format!("\n{this}\n").as_bytes())?;
    file.sync_all()?;
    sync_parent(&path)?;
    sync_parent(folder.path())
}

#[cfg(test)]
mod tests {
    use super::super::protocol::How;
    use super::*;

    fn ended(status: i32) -> Ended {
        Ended { how: How::Exited(status), took_ms: 3, last: Vec::new() }
    }

    #[test]
    fn the_last_start_counts_and_what_is_damaged_is_passed_over() {
        let place = tempfile::tempdir().expect("a folder");
        let folder = Folder::at(place.path().to_owned());
        let mut record = Record::open(&folder).expect("opens");
        record.start("r/1", "one", &[]).expect("writes");
        record.start("r/11", "eleven", &["x".to_owned()]).expect("writes");
        record.pid("r/11", 7).expect("writes");
        record.end("r/1", &ended(0), None).expect("writes");
        let line = |text: &str| vec![WireLine(false, text.to_owned())];
        let from = record.out("r/11", 1, line("a")).expect("writes").0;
        record.out("r/12", 1, line("of another")).expect("writes");
        let to = record.out("r/11", 2, line("b")).expect("writes").1;
        record.end("r/11", &ended(256), Some((from, to))).expect("writes");
        drop(record);
        std::fs::OpenOptions::new()
            .append(true)
            .open(folder.record())
            .and_then(|mut file| file.write_all(b"{\"Start\":{\"effect\":\"r/1\",\"at_"))
            .expect("writes");
        let mut record = Record::open(&folder).expect("opens");
        let told = read(&folder, "r/11").expect("reads");
        assert_eq!(told.start, Some(("eleven".to_owned(), vec!["x".to_owned()])));
        assert_eq!((told.pid, told.ended), (Some(7), Some(ended(256))));
        let said = output(&folder, "r/11", told.unseen.expect("output")).expect("reads");
        let said: Vec<_> = said.into_iter().map(|line| (line.number, line.text)).collect();
        assert_eq!(said, [(1, "a".to_owned()), (2, "b".to_owned())]);
        assert_eq!(read(&folder, "r/1").expect("reads").ended, Some(ended(0)));
        record.start("r/1", "again", &[]).expect("writes");
        let told = read(&folder, "r/1").expect("reads");
        assert_eq!((told.start, told.ended), (Some(("again".to_owned(), Vec::new())), None));
        assert!(read(&folder, "r/2").expect("reads").start.is_none());
    }

    #[test]
    fn another_boot_is_never_forgotten() {
        let place = tempfile::tempdir().expect("a folder");
        let folder = Folder::at(place.path().to_owned());
        assert!(is_of_this_boot(&folder));
        drop(Record::open(&folder).expect("opens"));
        drop(Record::open(&folder).expect("opens"));
        assert!(is_of_this_boot(&folder));
        std::fs::write(folder.boots(), "another\n").expect("writes");
        assert!(!is_of_this_boot(&folder));
        drop(Record::open(&folder).expect("opens"));
        assert!(!is_of_this_boot(&folder));
    }
}
