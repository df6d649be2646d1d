//! What the store owes when a process is killed or the disk is full: nothing that was acknowledged is lost, and nothing is half there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "helpers of tests fail as tests do"
)]

mod common;

use cdpipe_engine::{RunState, Store};
use cdpipe_model::RunId;
use common::{SmallDisk, append, header, read_all, record};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

const CHILD: &str = "CDPIPE_TEST_APPENDS_IN";

/// Appends batches for ever and says after each which record is durable.
async fn append_for_ever(dir: &Path) {
    let store = Store::open(dir).unwrap();
    let run = RunId::from("r1");
    let journal = match store.take(&run) {
        Ok(journal) => journal,
        Err(_not_there_yet) => store.begin(&header("r1")).unwrap(),
    };
    let mut last = store.record_count(&run).unwrap();
    let mut out = std::io::stdout();
    loop {
        let count = 1 + last % 7;
        append(&journal, last + 1, count, last.is_multiple_of(5)).await.unwrap();
        last += count;
        writeln!(out, "durable {last}").unwrap();
        out.flush().unwrap();
    }
}

#[tokio::test]
async fn a_killed_process_loses_nothing_that_was_acknowledged() {
    if let Some(dir) = std::env::var_os(CHILD) {
        append_for_ever(Path::new(&dir)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut before = 0;
    for kill_after in [1, 30, 7, 100, 2] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_killed_process_loses_nothing_that_was_acknowledged", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok)
            .filter_map(|line| line.strip_prefix("durable ")?.parse::<u64>().ok());
        let mut acknowledged = (&mut lines).take(kill_after).last().expect("it appends");
        child.kill().unwrap();
        // What it said before the kill reached it counts too.
        if let Some(last) = lines.last() {
            acknowledged = last;
        }
        child.wait().unwrap();
        assert!(acknowledged > before);

        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.run(&RunId::from("r1")).unwrap().state, RunState::Crashed);
        let records = read_all(&store, "r1");
        assert!(
            records.len() as u64 >= acknowledged,
            "{} of {acknowledged} acknowledged records are there",
            records.len()
        );
        let numbered: Vec<_> = (1..=u32::try_from(records.len()).unwrap()).map(record).collect();
        assert_eq!(records, numbered, "no record is there twice, half or out of order");
        before = acknowledged;
    }
}

#[tokio::test]
async fn on_a_full_disk_the_append_fails_and_the_run_goes_on_once_there_is_room() {
    let Some(disk) = SmallDisk::new() else { return };
    let dir = disk.path();
    let store = Store::open(dir).unwrap();
    let run = RunId::from("r1");
    let journal = store.begin(&header("r1")).unwrap();
    append(&journal, 1, 10, true).await.unwrap();
    disk.fill();
    let mut last = 10;
    let fault = loop {
        // The WAL may have some pages left.
        match append(&journal, last + 1, 200, true).await {
            Ok(()) => last += 200,
            Err(fault) => break fault,
        }
        assert!(last < 100_000, "the disk never got full");
    };
    assert_eq!(fault.kind, "state-full", "{fault:?}");
    assert!(fault.help.unwrap().contains("cdpipe resume"));
    disk.free();
    journal.release().await.unwrap();
    drop(store);
    let store = Store::open(dir).unwrap();
    assert_eq!(read_all(&store, "r1").len() as u64, last, "nothing of the batch that failed");
    let journal = store.take(&run).unwrap();
    append(&journal, last + 1, 5, true).await.unwrap();
    assert_eq!(read_all(&store, "r1").len() as u64, last + 5);
}
