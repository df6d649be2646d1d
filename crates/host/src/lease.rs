//! Locks as leases: files that say who holds what until when, changed only under a file lock.
//!
//! A lease outlives the process that took it, on purpose: a run that was interrupted holds what it was changing until someone resumes
//! it. It is taken over only after it has expired and its owner is gone: its process has ended on this machine, or it has not renewed
//! the lease for as long again as the lease lasts (it renews three times in that time). One that was stopped and goes on after that is
//! told from the new owner by the epoch, which every change of the target shows. The epoch grows with each new owner and is kept when the
//! lock is given back, so a writer of before can always be told from one of now.

use crate::clock::now_ms;
use crate::durable::{Durability, FileLock, make_folder, read_json, write_json};
use crate::process::ProcessRef;
use crate::state::{FORMAT, file_name};
use cdpipe_model::Fault;
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::{Cancel, LockOwner, LockState};
use cdpipe_model::value::format_duration_ms;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// A lease that was written without its length, and expired so long ago, may be taken over whatever can be known of its owner.
const LONG_AGO_MS: u64 = 10 * 60 * 1000;

/// Leases that lie in one folder: those of a target, or the named ones of a state directory.
#[derive(Debug, Clone)]
pub struct Leases {
    folder: PathBuf,
    /// Instead of the length of the lease.
    long_ago_ms: Option<u64>,
    /// Whether owners are processes of another machine, whose numbers mean nothing here.
    from_elsewhere: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Lease {
    format: u32,
    /// What is locked, for people who look into the folder.
    name: String,
    /// Never falls.
    epoch: u64,
    held: Option<LockState>,
    /// How long it lasts without being renewed.
    #[serde(default)]
    lease_ms: Option<u64>,
    /// The owner's process, if it could be seen from where the lease was taken.
    process: Option<ProcessRef>,
}

impl Leases {
    /// Leases in this folder; it is made when it is needed.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, long_ago_ms: None, from_elsewhere: false }
    }

    /// The same for owners on other machines: a process of this one that has an owner's number by chance is not taken for it.
    #[must_use]
    pub fn from_elsewhere(mut self) -> Self {
        self.from_elsewhere = true;
        self
    }

    /// The same, with another idea of how long ago is long: for tests.
    #[must_use]
    pub fn with_long_ago(mut self, long_ago: Duration) -> Self {
        self.long_ago_ms = Some(millis(long_ago));
        self
    }

    /// Takes the lease, or renews it if this run holds it already. Answers its epoch. Does not wait for another owner, only for the
    /// moment in which someone else looks at it.
    ///
    /// # Errors
    /// `locked` (transient) while someone else holds it.
    pub async fn take(
        &self,
        key: &LockKey,
        owner: &LockOwner,
        lease: Duration,
        deadline: Duration,
        cancel: &dyn Cancel,
    ) -> Result<u64, Fault> {
        let (path, _guard) = self.open(key, deadline, cancel).await?;
        let mut found: Lease = read_json(&path)?.unwrap_or_default();
        let now = now_ms();
        let me = if self.from_elsewhere { None } else { ProcessRef::of(owner.pid) };
        let renewed = match &found.held {
            None => None,
            Some(held) if held.owner.run == owner.run => {
                let same_process = held.owner.pid == owner.pid && found.process == me;
                let other_lives = found.process.as_ref().is_some_and(ProcessRef::is_alive);
                if !same_process && other_lives && now < held.expires_ms {
                    return Err(locked(key, held, now, "another process works on the same run"));
                }
                // A resumed run goes on with its lock, but whatever its former process still writes must be known as old.
                same_process.then_some(held.since_ms)
            }
            Some(held) => {
                let gone = match &found.process {
                    // Of this boot and pid namespace: it can be seen. Of another one of this machine or elsewhere: it can't.
                    Some(process) if process.is_of_this_world() => !process.is_alive(),
                    _ => false,
                };
                let expired = now >= held.expires_ms;
                let silence_ms = self.long_ago_ms.or(found.lease_ms).unwrap_or(LONG_AGO_MS);
                let long_ago = now >= held.expires_ms.saturating_add(silence_ms);
                if !(expired && (gone || long_ago)) {
                    let note = if expired {
                        "its lease has expired, but its process may still be at work"
                    } else if gone {
                        "its process has ended; the lock is free when the lease expires"
                    } else {
                        ""
                    };
                    return Err(locked(key, held, now, note));
                }
                None
            }
        };
        if renewed.is_none() {
            found.epoch += 1;
        }
        let state = LockState {
            owner: owner.clone(),
            since_ms: renewed.unwrap_or(now),
            expires_ms: now.saturating_add(millis(lease)),
            epoch: found.epoch,
        };
        let epoch = found.epoch;
        write_json(
            &path,
            &Lease {
                format: FORMAT,
                name: describe(key),
                epoch,
                held: Some(state),
                lease_ms: Some(millis(lease)),
                process: me,
            },
            Durability::Synced,
        )?;
        Ok(epoch)
    }

    /// Lifts the epoch of a lease that this run holds to at least this: where one lock is made of leases on several machines, they say
    /// the same, so that each of them knows an owner of before.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn raise(
        &self,
        key: &LockKey,
        owner: &LockOwner,
        epoch: u64,
        deadline: Duration,
        cancel: &dyn Cancel,
    ) -> Result<(), Fault> {
        let (path, _guard) = self.open(key, deadline, cancel).await?;
        let Some(mut found) = read_json::<Lease>(&path)? else { return Ok(()) };
        if let Some(held) = &mut found.held
            && held.owner.run == owner.run
            && found.epoch < epoch
        {
            held.epoch = epoch;
            found.epoch = epoch;
            write_json(&path, &found, Durability::Synced)?;
        }
        Ok(())
    }

    /// Gives the lease back if this run holds it; the epoch stays.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn give_back(
        &self,
        key: &LockKey,
        owner: &LockOwner,
        deadline: Duration,
        cancel: &dyn Cancel,
    ) -> Result<(), Fault> {
        self.free(key, Some(owner), deadline, cancel).await.map(|_| ())
    }

    /// Takes the lease from whoever holds it (`cdpipe unlock`), and answers who that was. The epoch stays, so what that owner still
    /// writes is refused where writes are fenced, once someone else has taken the lock.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn force_open(
        &self,
        key: &LockKey,
        deadline: Duration,
        cancel: &dyn Cancel,
    ) -> Result<Option<LockState>, Fault> {
        self.free(key, None, deadline, cancel).await
    }

    async fn free(
        &self,
        key: &LockKey,
        owner: Option<&LockOwner>,
        deadline: Duration,
        cancel: &dyn Cancel,
    ) -> Result<Option<LockState>, Fault> {
        let (path, _guard) = self.open(key, deadline, cancel).await?;
        let Some(mut found) = read_json::<Lease>(&path)? else { return Ok(None) };
        let ours = |held: &LockState| owner.is_none_or(|owner| owner.run == held.owner.run);
        if !found.held.as_ref().is_some_and(ours) {
            return Ok(None);
        }
        let held = found.held.take();
        found.process = None;
        write_json(&path, &found, Durability::Synced)?;
        Ok(held)
    }

    /// Who holds the lease, if anyone does; one that has expired is still held until someone takes it over.
    ///
    /// # Errors
    /// `state-unreadable`.
    pub fn owner(&self, key: &LockKey) -> Result<Option<LockState>, Fault> {
        Ok(read_json::<Lease>(&self.folder.join(format!("{}.json", name(key)?)))?
            .and_then(|lease| lease.held))
    }

    /// The epoch of whoever took the lease last; 0 if nobody ever did.
    ///
    /// # Errors
    /// `state-unreadable`.
    pub fn epoch(&self, key: &LockKey) -> Result<u64, Fault> {
        let lease = read_json::<Lease>(&self.folder.join(format!("{}.json", name(key)?)))?;
        Ok(lease.map_or(0, |lease| lease.epoch))
    }

    async fn open(
        &self,
        key: &LockKey,
        deadline: Duration,
        cancel: &dyn Cancel,
    ) -> Result<(PathBuf, FileLock), Fault> {
        make_folder(&self.folder)?;
        let name = name(key)?;
        let guard = FileLock::wait(&self.folder.join(format!("{name}.guard")), deadline, cancel).await?;
        Ok((self.folder.join(format!("{name}.json")), guard))
    }
}

/// The file name of a key. `service.` and `named.` keep the two kinds apart.
fn name(key: &LockKey) -> Result<String, Fault> {
    Ok(match key {
        LockKey::Service { environment, service } => {
            format!("service.{}.{}", file_name(environment.as_str())?, file_name(service.as_str())?)
        }
        LockKey::Named(name) => format!("named.{}", file_name(name)?),
    })
}

fn describe(key: &LockKey) -> String {
    match key {
        LockKey::Service { environment, service } => format!("{service} in {environment}"),
        LockKey::Named(name) => format!("the lock `{name}`"),
    }
}

fn locked(key: &LockKey, held: &LockState, now: u64, note: &str) -> Fault {
    let span = |ms: u64| {
        // Whole seconds: nobody is helped by more.
        let seconds = u32::try_from(ms / 1000).unwrap_or(u32::MAX);
        format_duration_ms(f64::from(seconds.max(1)) * 1000.0)
    };
    let until = match held.expires_ms.checked_sub(now) {
        Some(left) if left > 0 => format!("its lease ends in {}", span(left)),
        _ => format!("its lease ended {} ago", span(now.saturating_sub(held.expires_ms))),
    };
    let note = if note.is_empty() { String::new() } else { format!("; {note}") };
    Fault::new(
        "locked",
        format!(
            "{} is locked by {} (run {}, process {}) since {}; {until}{note}",
            describe(key),
            held.owner.who,
            held.owner.run,
            held.owner.pid,
            span(now.saturating_sub(held.since_ms)),
        ),
    )
    .help("wait for that run, resume it if it was interrupted, or free the lock with `cdpipe unlock`")
    .transient()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
