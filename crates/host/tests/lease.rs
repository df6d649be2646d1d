//! Locks as leases: who gets them, who does not, and what the epoch says.

#![allow(clippy::expect_used, reason = "a test says what it expects by panicking")]

#[allow(dead_code, reason = "each test binary uses a part")]
#[path = "support/context.rs"]
mod context;

use cdpipe_host::Leases;
use cdpipe_model::Fault;
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::LockOwner;
use context::Context;
use std::process::{Child, Command};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);

struct Place {
    _folder: tempfile::TempDir,
    leases: Leases,
    context: Context,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let leases = Leases::new(folder.path().join("locks")).with_long_ago(Duration::from_millis(400));
        Self { _folder: folder, leases, context: Context::default() }
    }

    async fn take(&self, owner: &LockOwner, lease: Duration) -> Result<u64, Fault> {
        self.leases.take(&key(), owner, lease, LONG, &self.context.cancel).await
    }

    async fn give_back(&self, owner: &LockOwner) {
        self.leases.give_back(&key(), owner, LONG, &self.context.cancel).await.expect("is given back");
    }
}

fn key() -> LockKey {
    LockKey::Service { environment: "production".into(), service: "web".into() }
}

fn owner(run: &str, pid: u32) -> LockOwner {
    LockOwner { run: run.into(), who: "ana@laptop".to_owned(), pid }
}

/// A process that stands for another engine.
fn engine() -> Child {
    Command::new("sleep").arg("1000").spawn().expect("starts")
}

fn end(mut child: Child) {
    child.kill().expect("is killed");
    child.wait().expect("ends");
}

#[tokio::test]
async fn one_owner_at_a_time_and_a_growing_epoch() {
    let place = Place::new();
    let me = std::process::id();
    assert_eq!(place.take(&owner("a", me), LONG).await.expect("is free"), 1);
    assert_eq!(place.take(&owner("a", me), LONG).await.expect("is renewed"), 1);
    let fault = place.take(&owner("b", me), LONG).await.expect_err("is held");
    assert_eq!((fault.kind.as_str(), fault.transient), ("locked", true));
    // How long since and how long still depends on when it is asked; the rest does not.
    let who = format!("web in production is locked by ana@laptop (run a, process {me}) since ");
    let rest = fault.message.strip_prefix(&who).expect(&fault.message);
    assert!(rest.contains("; its lease ends in "), "{rest}");
    place.give_back(&owner("b", me)).await;
    assert!(place.leases.owner(&key()).expect("is readable").is_some(), "only its owner gives it back");
    place.give_back(&owner("a", me)).await;
    assert_eq!(place.leases.owner(&key()).expect("is readable"), None);
    assert_eq!(place.take(&owner("b", me), LONG).await.expect("is free"), 2, "the epoch outlives the owner");
    let held = place.leases.owner(&key()).expect("is readable").expect("is held");
    assert_eq!((held.owner, held.epoch), (owner("b", me), 2));
    assert!(held.expires_ms > held.since_ms);
}

#[tokio::test]
async fn renewal_keeps_the_time_since_when() {
    let place = Place::new();
    let me = owner("a", std::process::id());
    place.take(&me, SHORT).await.expect("is free");
    let before = place.leases.owner(&key()).expect("is readable").expect("is held");
    tokio::time::sleep(SHORT * 2).await;
    place.take(&me, LONG).await.expect("is renewed, though it had expired");
    let after = place.leases.owner(&key()).expect("is readable").expect("is held");
    assert_eq!((before.since_ms, before.epoch), (after.since_ms, after.epoch));
    assert!(after.expires_ms > before.expires_ms);
}

#[tokio::test]
async fn a_dead_owner_loses_it_when_the_lease_has_expired_and_not_before() {
    let place = Place::new();
    let other = engine();
    place.take(&owner("a", other.id()), Duration::from_millis(300)).await.expect("is free");
    end(other);
    let fault =
        place.take(&owner("b", std::process::id()), LONG).await.expect_err("not before it has expired");
    assert!(
        fault.message.ends_with("its process has ended; the lock is free when the lease expires"),
        "{}",
        fault.message
    );
    tokio::time::sleep(Duration::from_millis(320)).await;
    assert_eq!(place.take(&owner("b", std::process::id()), LONG).await.expect("is taken over"), 2);
}

#[tokio::test]
async fn a_living_owner_keeps_an_expired_lease_until_long_ago() {
    let place = Place::new();
    let other = engine();
    place.take(&owner("a", other.id()), SHORT).await.expect("is free");
    tokio::time::sleep(SHORT * 2).await;
    let fault = place.take(&owner("b", std::process::id()), LONG).await.expect_err("it may only be slow");
    assert!(
        fault.message.ends_with("its lease has expired, but its process may still be at work"),
        "{}",
        fault.message
    );
    tokio::time::sleep(Duration::from_millis(420)).await;
    assert_eq!(place.take(&owner("b", std::process::id()), LONG).await.expect("is taken over"), 2);
    end(other);
}

#[tokio::test]
async fn a_resumed_run_gets_its_own_lock_with_a_new_epoch() {
    let place = Place::new();
    let before = engine();
    place.take(&owner("a", before.id()), LONG).await.expect("is free");
    let fault = place.take(&owner("a", std::process::id()), LONG).await.expect_err("two processes, one run");
    assert!(fault.message.ends_with("another process works on the same run"), "{}", fault.message);
    end(before);
    assert_eq!(place.take(&owner("a", std::process::id()), LONG).await.expect("is its own"), 2);
}

#[tokio::test]
async fn a_person_can_free_it() {
    let place = Place::new();
    place.take(&owner("a", std::process::id()), LONG).await.expect("is free");
    let held = place
        .leases
        .force_open(&key(), LONG, &place.context.cancel)
        .await
        .expect("is freed")
        .expect("was held");
    assert_eq!(held.owner.run.as_str(), "a");
    assert_eq!(place.take(&owner("b", std::process::id()), LONG).await.expect("is free"), 2);
    assert_eq!(
        place
            .leases
            .force_open(&LockKey::Named("db".into()), LONG, &place.context.cancel)
            .await
            .expect("is fine"),
        None
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_want_it_one_gets_it() {
    let place = std::sync::Arc::new(Place::new());
    let tries: Vec<_> = (0..16)
        .map(|number| {
            let place = std::sync::Arc::clone(&place);
            tokio::spawn(async move {
                place.take(&owner(&format!("r{number}"), std::process::id()), LONG).await.is_ok()
            })
        })
        .collect();
    let mut got = 0;
    for attempt in tries {
        got += u32::from(attempt.await.expect("ends"));
    }
    assert_eq!(got, 1);
}
