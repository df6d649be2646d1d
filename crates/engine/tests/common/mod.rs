//! Small runs for the tests of the engine.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use cdpipe_engine::{Batch, Journal, RunJournal, Store};
use cdpipe_model::plan::{Concurrency, Mode, Plan};
use cdpipe_model::record::{GitFacts, JOURNAL_VERSION, Record, RunHeader};
use cdpipe_model::{NodeId, RunId};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// A run of an empty pipeline.
pub(crate) fn header(run: &str) -> RunHeader {
    RunHeader {
        journal_version: JOURNAL_VERSION,
        cdpipe_version: "0.1.0".into(),
        run: RunId::from(run),
        started_at_ms: 1_000,
        started_by: "ann@example".into(),
        file: "/srv/shop.cd".into(),
        texts: vec!["pipeline shop { }\n".into()],
        plan: Plan {
            name: "shop".into(),
            mode: Mode::Delivery,
            max_parallel: 2,
            concurrency: Concurrency::Queue,
            sources: Vec::new(),
            inputs: BTreeMap::new(),
            secrets: BTreeMap::new(),
            environments: BTreeMap::new(),
            metrics: BTreeMap::new(),
            flags: BTreeMap::new(),
            nodes: Vec::new(),
            hooks: Vec::new(),
            hash: "sha256:0".into(),
        },
        git: GitFacts::default(),
    }
}

/// A record that says its number.
pub(crate) fn record(number: u32) -> Record {
    Record::NodeStarted { node: NodeId(number), attempt: 1 }
}

/// Appends `count` records beginning with number `first`, as one batch.
pub(crate) async fn append(
    journal: &RunJournal,
    first: u64,
    count: u64,
    sync: bool,
) -> Result<(), cdpipe_model::Fault> {
    let records: Vec<Arc<Record>> =
        (first..first + count).map(|number| Arc::new(record(u32::try_from(number).unwrap()))).collect();
    journal
        .append(Batch { first_seq: first, at_ms: 5, records: &records, sync, taken: None, status: None })
        .await
}

/// The records of a run, checked to be numbered without a gap.
pub(crate) fn read_all(store: &Store, run: &str) -> Vec<Record> {
    let mut records = Vec::new();
    store
        .read(&RunId::from(run), 0, |seq, _, record| {
            records.push(record);
            assert_eq!(seq, records.len() as u64);
        })
        .unwrap();
    records
}

/// A file system of its own of 32 MiB: more than the log grows to before it is written back. Only root can have one.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None`, and loudly so, where it can't be mounted.
    pub(crate) fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=32m", "cdpipe-test"])
            .arg(dir.path())
            .status()
            .is_ok_and(|status| status.success());
        if !mounted {
            eprintln!("SKIPPED: a small disk can't be mounted here, so it can't be filled");
            return None;
        }
        Some(Self(dir))
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills it to its last byte. It stays full until `free`.
    pub(crate) fn fill(&self) {
        let mut file = File::create(self.path().join("filler")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        while file.write_all(&[0]).is_ok() {}
    }

    /// Makes room again.
    pub(crate) fn free(&self) {
        std::fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}
