//! The store: what is appended is read, by one owner, and what is wrong with a state directory is said.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "helpers of tests fail as tests do"
)]

mod common;

use cdpipe_engine::{Batch, Journal, Retention, RunState, Status, Store, StoreError, Unlocked};
use cdpipe_model::action::{ActionResult, Answer};
use cdpipe_model::expr::{MeasureName, MetricRef, Subject};
use cdpipe_model::measure::Sample;
use cdpipe_model::ports::LockOwner;
use cdpipe_model::record::{Record, Signal};
use cdpipe_model::{ActionId, Outcome, RunId, Value};
use common::{append, header, read_all, record};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

#[tokio::test]
async fn what_is_appended_is_read_in_order_from_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let other = store.begin(&header("r0")).unwrap();
    let journal = store.begin(&header("r1")).unwrap();
    append(&journal, 1, 3, false).await.unwrap();
    append(&other, 1, 1, true).await.unwrap();
    append(&journal, 4, 2, true).await.unwrap();
    assert_eq!(store.header(&RunId::from("r1")).unwrap(), header("r1"));
    assert_eq!(read_all(&store, "r1"), (1..=5).map(record).collect::<Vec<_>>());
    for after in 0..=5 {
        let mut seqs = Vec::new();
        let last = store.read(&RunId::from("r1"), after, |seq, _, _| seqs.push(seq)).unwrap();
        assert_eq!(seqs, (after + 1..=5).collect::<Vec<_>>(), "after {after}");
        assert_eq!(last, 5);
    }
    assert_eq!(store.record_count(&RunId::from("r1")).unwrap(), 5);
    assert_eq!(store.record_count(&RunId::from("r0")).unwrap(), 1);
}

#[tokio::test]
async fn a_number_comes_back_to_the_last_bit() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let journal = store.begin(&header("r1")).unwrap();
    let values = [0.1 + 0.2, 1.0 / 3.0, 5e-324, f64::MAX, 122.416_294_033_786_58];
    let samples = values
        .iter()
        .map(|value| Sample {
            metric: MetricRef { subject: Subject::Candidate, measure: MeasureName::Ready },
            value: Some(Value::Percent(*value)),
            asked: String::new(),
            note: None,
        })
        .collect();
    let written = Record::Returned {
        at_ms: 1,
        action: ActionId(1),
        result: ActionResult::Done(Answer::Samples(samples)),
    };
    let records = [Arc::new(written.clone())];
    journal
        .append(Batch { first_seq: 1, at_ms: 1, records: &records, sync: false, taken: None, status: None })
        .await
        .unwrap();
    assert_eq!(read_all(&store, "r1"), [written]);
}

#[tokio::test]
async fn one_engine_owns_a_run_and_a_second_is_told_which() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let journal = store.begin(&header("r1")).unwrap();
    let second = Store::open(dir.path()).unwrap();
    let refused = second.take(&RunId::from("r1")).err().unwrap();
    assert_eq!(refused.kind(), "run-owned");
    assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
    assert_eq!(second.run(&RunId::from("r1")).unwrap().state, RunState::Running);
    assert_eq!(second.begin(&header("r1")).err().unwrap().kind(), "run-exists");
    journal.release().await.unwrap();
    assert_eq!(
        second.run(&RunId::from("r1")).unwrap().state,
        RunState::Crashed,
        "it did not say how it ended"
    );
    drop(second.take(&RunId::from("r1")).unwrap());
}

#[tokio::test]
async fn an_engine_whose_run_was_taken_over_appends_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let old = store.begin(&header("r1")).unwrap();
    append(&old, 1, 1, false).await.unwrap();
    // As if the first one had been on another host and silent for too long.
    let raw = rusqlite::Connection::open(dir.path().join("cdpipe.db")).unwrap();
    raw.execute(
        "UPDATE owners SET heartbeat_ms = 0,
         process = '{\"pid\":1,\"host\":\"elsewhere\",\"place\":\"\",\"started_ticks\":1}'",
        [],
    )
    .unwrap();
    let second = Store::open(dir.path()).unwrap();
    let new = second.take(&RunId::from("r1")).unwrap();
    append(&new, 2, 1, false).await.unwrap();
    let fault = append(&old, 2, 1, true).await.unwrap_err();
    assert_eq!(fault.kind, "run-taken-over");
    assert_eq!(old.park(vec![record(9)], Status::Interrupted).await.unwrap_err().kind, "run-taken-over");
    drop(old);
    append(&new, 3, 1, false).await.unwrap();
    assert_eq!(read_all(&store, "r1"), [record(1), record(2), record(3)]);
}

#[tokio::test]
async fn a_signal_waits_for_the_engine_and_is_taken_with_its_record() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let run = RunId::from("r1");
    let journal = store.begin(&header("r1")).unwrap();
    assert_eq!(journal.letters(0).unwrap(), []);
    let waiting = tokio::spawn(async move {
        let letters = journal.wait_letters(0).await.unwrap();
        (journal, letters)
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let person = Store::open_existing(dir.path()).unwrap().unwrap();
    let signal = Signal::Pause { by: "bob".into() };
    assert!(person.send(&run, signal.clone()).unwrap(), "an engine drives it");
    let (journal, letters) = tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
    assert_eq!(letters.len(), 1);
    assert!(matches!(&letters[0].input, Record::Signalled { signal: got, .. } if *got == signal));
    // Not taken yet: an engine that dies here leaves it to the next one.
    assert_eq!(journal.letters(0).unwrap(), letters);
    let records = [Arc::new(letters[0].input.clone())];
    journal
        .append(Batch {
            first_seq: 1,
            at_ms: 1,
            records: &records,
            sync: false,
            taken: Some(letters[0].id),
            status: None,
        })
        .await
        .unwrap();
    assert_eq!(journal.letters(0).unwrap(), []);
}

#[tokio::test]
async fn a_letter_that_is_not_understood_is_passed_over_and_goes_with_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let journal = store.begin(&header("r1")).unwrap();
    let raw = rusqlite::Connection::open(dir.path().join("cdpipe.db")).unwrap();
    raw.execute("INSERT INTO inbox (run, json) SELECT no, '{\"of_the_future\":1}' FROM runs", []).unwrap();
    assert_eq!(journal.letters(0).unwrap(), []);
    store.send(&RunId::from("r1"), Signal::Pause { by: "bob".into() }).unwrap();
    let letters = journal.letters(0).unwrap();
    assert_eq!(letters.len(), 1);
    let records = [Arc::new(letters[0].input.clone())];
    let taken = Some(letters[0].id);
    journal
        .append(Batch { first_seq: 1, at_ms: 1, records: &records, sync: false, taken, status: None })
        .await
        .unwrap();
    let left: u64 = raw.query_row("SELECT count(*) FROM inbox", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn the_registry_says_where_each_run_stands() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Store::open_existing(dir.path()).unwrap().is_none());
    let store = Store::open(dir.path()).unwrap();
    let run = |text: &str| RunId::from(text);
    let finish = |outcome| Some(Status::Finished { outcome, at_ms: 77 });
    for (name, status) in [
        ("done", finish(Outcome::RolledBack)),
        ("waits", Some(Status::Suspended { waiting: "approval of `release`".into() })),
        ("stopped", Some(Status::Interrupted)),
        ("died", None),
    ] {
        let journal = store.begin(&header(name)).unwrap();
        let records = [Arc::new(record(1))];
        journal
            .append(Batch { first_seq: 1, at_ms: 1, records: &records, sync: false, taken: None, status })
            .await
            .unwrap();
        journal.release().await.unwrap();
    }
    let states: Vec<_> =
        store.runs(10).unwrap().into_iter().map(|summary| (summary.run.0, summary.state)).collect();
    assert_eq!(
        states,
        [
            ("died".to_owned(), RunState::Crashed),
            ("stopped".to_owned(), RunState::Interrupted),
            ("waits".to_owned(), RunState::Suspended { waiting: "approval of `release`".into() }),
            ("done".to_owned(), RunState::Finished(Outcome::RolledBack)),
        ]
    );
    assert_eq!(store.run(&run("done")).unwrap().ended_at_ms, Some(77));
    assert_eq!(store.unfinished_of("/srv/shop.cd").unwrap().len(), 3);
    assert_eq!(store.unfinished_of("/srv/other.cd").unwrap(), []);
    assert_eq!(store.runs_like("wai").unwrap().len(), 1);
    assert_eq!(store.runs_like("%").unwrap(), []);
    assert_eq!(store.take(&run("done")).err().unwrap().kind(), "run-over");
    assert_eq!(store.send(&run("done"), Signal::Pause { by: "bob".into() }).unwrap_err().kind(), "run-over");
    assert!(!store.send(&run("died"), Signal::Pause { by: "bob".into() }).unwrap(), "nobody drives it");
    store.abandon(&run("died")).unwrap();
    assert_eq!(store.run(&run("died")).unwrap().state, RunState::Abandoned);
    assert_eq!(store.take(&run("died")).err().unwrap().kind(), "run-over");
    assert_eq!(store.take(&run("none")).err().unwrap().kind(), "run-unknown");
    let held = store.begin(&header("held")).unwrap();
    assert_eq!(store.abandon(&run("held")).unwrap_err().kind(), "run-owned");
    drop(held);
}

#[tokio::test]
async fn old_journals_go_and_unfinished_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for number in 0..6 {
        let journal = store.begin(&header(&format!("r{number}"))).unwrap();
        append(&journal, 1, 100, false).await.unwrap();
        if number != 1 {
            let records = [Arc::new(record(1))];
            let status = Some(Status::Finished { outcome: Outcome::Succeeded, at_ms: 1 });
            journal
                .append(Batch {
                    first_seq: 101,
                    at_ms: 1,
                    records: &records,
                    sync: false,
                    taken: None,
                    status,
                })
                .await
                .unwrap();
        }
        journal.release().await.unwrap();
    }
    let keep = Retention { journals: 3, max_bytes: u64::MAX, summaries: 5 };
    let pruned = store.prune(&keep).unwrap();
    assert_eq!(pruned.journals, [RunId::from("r0"), RunId::from("r2"), RunId::from("r3")]);
    assert_eq!(pruned.summaries, 1);
    assert_eq!(read_all(&store, "r1").len(), 100);
    assert_eq!(read_all(&store, "r4").len(), 101);
    assert!(store.run(&RunId::from("r2")).unwrap().pruned);
    assert_eq!(store.header(&RunId::from("r2")).unwrap_err().kind(), "run-pruned");
    assert_eq!(store.run(&RunId::from("r0")).unwrap_err().kind(), "run-unknown");
    let small = Retention { max_bytes: 1, journals: 100, summaries: 100 };
    assert_eq!(store.prune(&small).unwrap().journals, [RunId::from("r4")]);
}

#[tokio::test]
async fn a_newer_a_foreign_and_a_damaged_database_are_told_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cdpipe.db");
    {
        let store = Store::open(dir.path()).unwrap();
        let journal = store.begin(&header("r1")).unwrap();
        for batch in 0..200 {
            append(&journal, 1 + batch * 50, 50, false).await.unwrap();
        }
        journal.release().await.unwrap();
    }
    let raw = rusqlite::Connection::open(&path).unwrap();
    raw.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    raw.pragma_update(None, "user_version", 99).unwrap();
    let newer = Store::open(dir.path()).err().unwrap();
    assert_eq!(newer.kind(), "state-newer");
    assert!(newer.to_string().contains("version 99"), "{newer}");
    raw.pragma_update(None, "user_version", 2).unwrap();
    raw.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(raw);

    // Every page after the first few, as a bad disk would leave it.
    let bytes = fs::metadata(&path).unwrap().len();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&vec![0xA5; usize::try_from(bytes / 2).unwrap()], bytes / 2).unwrap();
    let store = Store::open(dir.path()).unwrap();
    let damaged = store.read(&RunId::from("r1"), 0, |_, _, _| {}).unwrap_err();
    assert!(matches!(damaged, StoreError::Corrupt { .. } | StoreError::Unreadable { .. }), "{damaged:?}");
    drop(store);

    fs::write(&path, b"this is a letter to my aunt, not a database, and long enough to be looked at")
        .unwrap();
    let _ = fs::remove_file(dir.path().join("cdpipe.db-wal"));
    assert_eq!(Store::open(dir.path()).err().unwrap().kind(), "state-not-ours");
    assert!(fs::read(&path).unwrap().starts_with(b"this is a letter"));

    fs::remove_file(&path).unwrap();
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE aunts (name)").unwrap();
    assert_eq!(Store::open(dir.path()).err().unwrap().kind(), "state-not-ours");
}

#[tokio::test]
async fn a_gap_or_a_record_that_does_not_decode_is_told_with_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let journal = store.begin(&header("r1")).unwrap();
    for batch in 0..3 {
        append(&journal, 1 + batch * 10, 10, false).await.unwrap();
    }
    let raw = rusqlite::Connection::open(dir.path().join("cdpipe.db")).unwrap();
    raw.execute(
        "UPDATE batches SET json = CAST('[{\"from_the_future\":1}]' AS BLOB) WHERE pos & 0xFFFF = 21",
        [],
    )
    .unwrap();
    let told = store.read(&RunId::from("r1"), 0, |_, _, _| {}).unwrap_err();
    assert!(matches!(told, StoreError::Unreadable { seq: 21, .. }), "{told:?}");
    raw.execute("DELETE FROM batches WHERE pos & 0xFFFF = 11", []).unwrap();
    let told = store.read(&RunId::from("r1"), 0, |_, _, _| {}).unwrap_err();
    assert!(told.to_string().contains("record 11 is missing"), "{told}");
    raw.execute("DELETE FROM batches WHERE pos & 0xFFFF = 1", []).unwrap();
    let told = store.read(&RunId::from("r1"), 0, |_, _, _| {}).unwrap_err();
    assert!(told.to_string().contains("record 1 is missing"), "{told}");
}

#[tokio::test]
async fn a_header_of_a_newer_format_is_refused_whatever_its_shape() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    drop(store.begin(&header("r1")).unwrap());
    let raw = rusqlite::Connection::open(dir.path().join("cdpipe.db")).unwrap();
    raw.execute("UPDATE headers SET json = CAST('{\"journal_version\":7,\"shape\":\"new\"}' AS BLOB)", [])
        .unwrap();
    let told = store.header(&RunId::from("r1")).unwrap_err();
    assert!(matches!(told, StoreError::NewerJournal { found: 7, .. }), "{told:?}");
    raw.execute("UPDATE headers SET json = CAST('{' AS BLOB)", []).unwrap();
    assert_eq!(store.header(&RunId::from("r1")).unwrap_err().kind(), "journal-unreadable");
}

#[tokio::test]
async fn named_locks_are_leases_with_an_order_and_a_growing_epoch() {
    use cdpipe_engine::NamedLocks;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let owner = |run: &str| LockOwner { run: RunId::from(run), who: "ann@example".into(), pid: 1 };
    let (a, b, c) = (owner("a"), owner("b"), owner("c"));
    assert_eq!(store.line_up("db", &a).await.unwrap(), None);
    assert_eq!(store.acquire("db", &a, 60_000).await.unwrap(), 1);
    store.leave("db", &a).await;
    assert_eq!(store.acquire("db", &a, 60_000).await.unwrap(), 1, "renewed");
    assert_eq!(store.line_up("db", &b).await.unwrap(), None);
    assert_eq!(store.line_up("db", &c).await.unwrap().map(|first| first.run), Some(b.run.clone()));
    assert_eq!(store.line_up("db", &b).await.unwrap(), None, "asking again does not lose the place");
    let held = store.acquire("db", &b, 60_000).await.unwrap_err();
    assert_eq!((held.kind.as_str(), held.transient), ("locked", true));
    assert!(held.message.contains("held by ann@example, run a"), "{held}");
    store.release("db", &b).await.unwrap();
    assert_eq!(store.named_locks().unwrap()[0].state.owner.run, a.run, "who does not hold it can't give it");
    assert!(matches!(store.unlock_named("db").unwrap(), Unlocked::OwnerLives(_)), "this process took it");
    store.release("db", &a).await.unwrap();
    assert_eq!(store.unlock_named("db").unwrap(), Unlocked::WasFree);
    assert_eq!(store.acquire("db", &b, 20).await.unwrap(), 2);
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert_eq!(store.named_locks().unwrap(), [], "its lease is over");
    assert_eq!(store.acquire("db", &c, 60_000).await.unwrap(), 3);
    let raw = rusqlite::Connection::open(dir.path().join("cdpipe.db")).unwrap();
    raw.execute(
        "UPDATE locks SET process = replace(process, '\"started_ticks\":', '\"started_ticks\":9')",
        [],
    )
    .unwrap();
    assert!(matches!(store.unlock_named("db").unwrap(), Unlocked::Freed(state) if state.owner.run == c.run));
}

#[test]
fn two_processes_that_start_at_once_make_one_database() {
    let dir = tempfile::tempdir().unwrap();
    let threads: Vec<_> = (0..8)
        .map(|number| {
            let path = dir.path().to_owned();
            std::thread::spawn(move || {
                let store = Store::open(&path).unwrap();
                drop(store.begin(&header(&format!("r{number}"))).unwrap());
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(Store::open(dir.path()).unwrap().runs(100).unwrap().len(), 8);
}

#[test]
fn a_directory_that_cannot_be_made_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let told = Store::open(&file.join("state")).err().unwrap();
    assert_eq!(told.kind(), "state-unusable");
    assert!(told.fault().help.unwrap().contains("CDPIPE_STATE"));
}

#[tokio::test]
async fn a_long_journal_is_decoded_on_many_threads_and_read_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let journal = store.begin(&header("r1")).unwrap();
    for batch in 0..60 {
        append(&journal, 1 + batch * 1_000, 1_000, false).await.unwrap();
    }
    assert_eq!(read_all(&store, "r1"), (1..=60_000).map(record).collect::<Vec<_>>());
    let mut seqs = Vec::new();
    assert_eq!(store.read(&RunId::from("r1"), 30_500, |seq, _, _| seqs.push(seq)).unwrap(), 60_000);
    assert_eq!(seqs, (30_501..=60_000).collect::<Vec<_>>());
    let raw = rusqlite::Connection::open(dir.path().join("cdpipe.db")).unwrap();
    raw.execute("UPDATE batches SET json = CAST('[' AS BLOB) WHERE pos & 0xFFFF = 40001", []).unwrap();
    let mut last = 0;
    let told = store.read(&RunId::from("r1"), 0, |seq, _, _| last = seq).unwrap_err();
    assert!(matches!(told, StoreError::Unreadable { seq: 40_001, .. }), "{told:?}");
    assert_eq!(last, 40_000, "what comes before is whole");
}

/// A journal of some hundred pages, all of them in the database's own file, and that file.
async fn journal_of_many_pages(dir: &Path) -> (PathBuf, Vec<Record>) {
    let path = dir.join("cdpipe.db");
    let store = Store::open(dir).unwrap();
    let journal = store.begin(&header("r1")).unwrap();
    for batch in 0..80 {
        append(&journal, 1 + batch * 50, 50, false).await.unwrap();
    }
    journal.release().await.unwrap();
    let records = read_all(&store, "r1");
    drop((journal, store));
    let raw = rusqlite::Connection::open(&path).unwrap();
    raw.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    (path, records)
}

/// What a read of a damaged database answers: all that was written, or what is wrong with it and what to do.
fn told_or_whole(dir: &Path, records: &[Record]) -> Option<StoreError> {
    let mut found = Vec::new();
    let read = Store::open(dir).and_then(|store| {
        store.header(&RunId::from("r1"))?;
        store.read(&RunId::from("r1"), 0, |_, _, record| found.push(record))?;
        // What else a resume reads, and takes.
        store.run(&RunId::from("r1"))?;
        store.unfinished()?;
        store.take(&RunId::from("r1")).map(drop)
    });
    assert!(found == records[..found.len()], "what is read before the damage is what was written");
    match read {
        Ok(()) => {
            assert_eq!(found.len(), records.len(), "a part was taken for the whole");
            None
        }
        Err(told) => Some(told),
    }
}

#[tokio::test]
async fn whatever_page_is_damaged_a_read_that_meets_it_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (path, records) = journal_of_many_pages(dir.path()).await;
    let whole = fs::read(&path).unwrap();
    let page_bytes = usize::from(u16::from_be_bytes([whole[16], whole[17]]));
    assert!(whole.len() / page_bytes > 50, "{} pages", whole.len() / page_bytes);
    let mut told = std::collections::BTreeMap::new();
    for page in 0..whole.len() / page_bytes {
        for filler in [0x00, 0xA5] {
            let mut damaged = whole.clone();
            damaged[page * page_bytes..(page + 1) * page_bytes].fill(filler);
            let place = tempfile::tempdir().unwrap();
            fs::write(place.path().join("cdpipe.db"), damaged).unwrap();
            let error = told_or_whole(place.path(), &records);
            let kind = error.as_ref().map_or("whole", StoreError::kind);
            if let Some(error) = error {
                assert!(error.fault().help.is_some_and(|help| !help.is_empty()), "page {page}: {error}");
                // Nothing that could be mended by itself, and nothing that is said of something else.
                let fits = ["state-damaged", "journal-unreadable", "state-not-ours"].contains(&error.kind());
                assert!(fits, "page {page}: {error:?}");
            }
            *told.entry(kind).or_insert(0) += 1;
        }
    }
    assert!(told.get("state-damaged").is_some_and(|count| *count > 50), "{told:?}");
}

#[tokio::test]
async fn a_database_that_ends_early_is_told_and_its_whole_copy_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (path, records) = journal_of_many_pages(dir.path()).await;
    let whole = fs::read(&path).unwrap();
    for part in 1..10 {
        let place = tempfile::tempdir().unwrap();
        let cut = place.path().join("cdpipe.db");
        fs::write(&cut, &whole[..whole.len() * part / 10]).unwrap();
        let told = told_or_whole(place.path(), &records).unwrap();
        assert!(["state-damaged", "journal-unreadable"].contains(&told.kind()), "{part} tenths: {told:?}");
        // As from a backup. What belongs to the damaged file goes with it, as the error says.
        for name in ["cdpipe.db-wal", "cdpipe.db-shm"] {
            let _ = fs::remove_file(place.path().join(name));
        }
        fs::write(&cut, &whole).unwrap();
        assert_eq!(told_or_whole(place.path(), &records), None);
    }
}

#[tokio::test]
async fn a_database_of_an_older_version_is_brought_up_and_keeps_its_runs() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Store::open(dir.path()).unwrap();
        let journal = store.begin(&header("r1")).unwrap();
        append(&journal, 1, 3, false).await.unwrap();
        journal.release().await.unwrap();
    }
    let raw = rusqlite::Connection::open(dir.path().join("cdpipe.db")).unwrap();
    raw.execute_batch("DROP TABLE epochs; PRAGMA user_version = 1").unwrap();
    drop(raw);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(read_all(&store, "r1").len(), 3);
    let journal = store.take(&RunId::from("r1")).unwrap();
    let key = cdpipe_model::plan::LockKey::Named("db".into());
    journal.note_epoch(&key, 7).await.unwrap();
    journal.note_epoch(&key, 8).await.unwrap();
    assert_eq!(journal.epochs().unwrap().into_iter().collect::<Vec<_>>(), [(key, 8)]);
}
