//! The lock of a service as a Lease object of the namespace.
//!
//! The Lease is replaced at the resource version it was read at, so of two that want it one is refused. Its `leaseTransitions` is the
//! epoch: it grows with each new owner and stays when the lock is given back. A lease is taken over when it has expired and its owner
//! is gone: its process has ended on this machine, or it has not renewed for as long again. Clocks of machines that deploy the same
//! service must agree to within a few seconds.

use crate::client::Session;
use crate::kind::KINDS;
use crate::manifest::{EPOCH, SERVICE};
use cdpipe_model::Fault;
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::{LockOwner, LockState};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The state, as JSON.
const STATE: &str = "cdpipe.dev/lock";
/// Others may change the lock between our look and our change; more often than this is no accident.
const TRIES: usize = 20;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    epoch: u64,
    held: Option<LockState>,
    lease_ms: u64,
}

/// The Leases as we wrote them last: one that is renewed need not be read. Whether it is still that the cluster knows, which refuses what
/// is written on a version that is no more.
#[derive(Debug, Default)]
pub(crate) struct Leases(Mutex<BTreeMap<LockKey, Lease>>);

impl Leases {
    /// Takes the lock, or renews it if it is ours. Answers its epoch.
    ///
    /// # Errors
    /// `locked` (transient) while somebody else holds it.
    pub(crate) async fn take(
        &self,
        session: &Session<'_>,
        key: &LockKey,
        owner: &LockOwner,
        lease: Duration,
    ) -> Result<u64, Fault> {
        for _ in 0..TRIES {
            let (found, state) = self.known(session, key).await?;
            let known = if found.is_none() { written_last(session, key).await? } else { 0 };
            let next = next(&state, key, owner, millis(lease), now_ms(), session.call.epoch.max(known))?;
            if let Some(written) = write(session, key, found, &next).await? {
                self.written().insert(key.clone(), written);
                return Ok(next.epoch);
            }
        }
        Err(contended(key))
    }

    /// Gives the lock back if it is ours.
    ///
    /// # Errors
    /// If the cluster can't be asked.
    pub(crate) async fn give_back(
        &self,
        session: &Session<'_>,
        key: &LockKey,
        owner: &LockOwner,
    ) -> Result<(), Fault> {
        for _ in 0..TRIES {
            let (found, state) = self.known(session, key).await?;
            if state.held.as_ref().is_none_or(|held| held.owner.run != owner.run) {
                return Ok(());
            }
            if write(session, key, found, &State { held: None, ..state }).await?.is_some() {
                return Ok(());
            }
        }
        Err(contended(key))
    }

    /// What we wrote last, once; else what the cluster has.
    async fn known(&self, session: &Session<'_>, key: &LockKey) -> Result<(Option<Lease>, State), Fault> {
        let ours = self.written().remove(key);
        match ours {
            Some(ours) => Ok((Some(ours.clone()), state(key, Some(&ours))?)),
            None => read(session, key).await,
        }
    }

    fn written(&self) -> MutexGuard<'_, BTreeMap<LockKey, Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The newest epoch under which a workload of the service was written. Where somebody has deleted the Lease it is all that is left of the
/// count; one that began anew would be older than what is there.
async fn written_last(session: &Session<'_>, key: &LockKey) -> Result<u64, Fault> {
    let LockKey::Service { service, .. } = key else { return Ok(0) };
    let params = ListParams::default().labels(&format!("{SERVICE}={service}"));
    let mut newest = 0;
    for kind in KINDS {
        let api = kind.api(session);
        match session.ask(&format!("list {}s", kind.as_str()), || api.list(&params)).await {
            Ok(found) => {
                let epochs = found.items.iter().filter_map(|one| {
                    one.metadata.annotations.as_ref().and_then(|notes| notes.get(EPOCH)?.parse::<u64>().ok())
                });
                newest = epochs.fold(newest, u64::max);
            }
            // What may not be seen is not written either; whoever needs it says so.
            Err(fault) if fault.kind == "forbidden" => {}
            Err(fault) => return Err(fault),
        }
    }
    Ok(newest)
}

/// What the lock becomes when `owner` takes it.
fn next(
    state: &State,
    key: &LockKey,
    owner: &LockOwner,
    lease_ms: u64,
    now: u64,
    least_epoch: u64,
) -> Result<State, Fault> {
    let mut since_ms = now;
    let mut epoch = state.epoch.max(least_epoch);
    match &state.held {
        Some(held) if held.owner == *owner => since_ms = held.since_ms,
        // Free, or resumed by another process: what the former one still does must be known as old.
        None => epoch += 1,
        Some(held) if held.owner.run == owner.run => epoch += 1,
        Some(held) => {
            let silent = now >= held.expires_ms.saturating_add(state.lease_ms);
            if now < held.expires_ms || !(silent || is_gone(&held.owner, owner)) {
                return Err(locked(key, held, now));
            }
            epoch += 1;
        }
    }
    let expires_ms = now.saturating_add(lease_ms);
    Ok(State { epoch, held: Some(LockState { owner: owner.clone(), since_ms, expires_ms, epoch }), lease_ms })
}

/// Who holds it, if anybody does.
///
/// # Errors
/// If the cluster can't be asked.
pub(crate) async fn owner(session: &Session<'_>, key: &LockKey) -> Result<Option<LockState>, Fault> {
    Ok(read(session, key).await?.1.held)
}

fn api(session: &Session<'_>) -> Api<Lease> {
    Api::namespaced(session.client(), session.namespace())
}

async fn read(session: &Session<'_>, key: &LockKey) -> Result<(Option<Lease>, State), Fault> {
    let (api, name) = (api(session), name(key));
    let found = session.ask(&format!("read the Lease {name}"), || api.get_opt(&name)).await?;
    let state = state(key, found.as_ref())?;
    Ok((found, state))
}

/// What a Lease says; one that is not there is free.
fn state(key: &LockKey, lease: Option<&Lease>) -> Result<State, Fault> {
    let Some(text) = lease.and_then(|lease| lease.metadata.annotations.as_ref()?.get(STATE)) else {
        return Ok(State::default());
    };
    serde_json::from_str(text).map_err(|error| {
        Fault::new("lock-unreadable", format!("what the Lease {} says can't be read: {error}", name(key)))
            .help(format!("if nobody deploys {}, delete it", id(key)))
    })
}

/// The Lease as it is then; `None` if somebody else was faster.
async fn write(
    session: &Session<'_>,
    key: &LockKey,
    found: Option<Lease>,
    state: &State,
) -> Result<Option<Lease>, Fault> {
    let (api, name, params) = (api(session), name(key), PostParams::default());
    let text = serde_json::to_string(state)
        .map_err(|error| Fault::new("internal", format!("a lock cannot be written down: {error}")))?;
    let holder = state.held.as_ref().map(|held| format!("{} {}", held.owner.run, held.owner.who));
    let time = state.held.is_some().then(|| MicroTime(jiff::Timestamp::now()));
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            annotations: Some(BTreeMap::from([(STATE.to_owned(), text)])),
            resource_version: found.as_ref().and_then(|lease| lease.metadata.resource_version.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: holder,
            lease_duration_seconds: i32::try_from(state.lease_ms.div_ceil(1000))
                .ok()
                .filter(|seconds| *seconds > 0),
            lease_transitions: i32::try_from(state.epoch).ok(),
            renew_time: time,
            ..LeaseSpec::default()
        }),
    };
    let what = format!("write the Lease {name}");
    let was_there = found.is_some();
    let answer = match found {
        Some(_) => session.ask(&what, || api.replace(&name, &params, &lease)).await,
        None => session.ask(&what, || api.create(&params, &lease)).await,
    };
    match answer {
        Ok(written) => Ok(Some(written)),
        Err(fault) if fault.kind == "conflict" => Ok(None),
        // Where none could be made there is no namespace.
        Err(fault) if was_there && fault.kind == "not-found" => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Whether the process of the one that holds it is known to have ended.
fn is_gone(holder: &LockOwner, asking: &LockOwner) -> bool {
    let host = |who: &str| who.rsplit_once('@').map(|(_, host)| host.to_owned());
    let same_host = host(&holder.who).is_some_and(|name| host(&asking.who) == Some(name));
    same_host && !std::path::Path::new("/proc").join(holder.pid.to_string()).exists()
}

fn locked(key: &LockKey, held: &LockState, now: u64) -> Fault {
    let left_s = held.expires_ms.saturating_sub(now).div_ceil(1000);
    let when = if left_s > 0 {
        format!("its lease lasts {left_s}s more unless it is renewed")
    } else {
        "its lease has expired, but its process may still be at work".to_owned()
    };
    Fault::new(
        "locked",
        format!(
            "{} is being changed by run {} ({}, process {}) for {}s; {when}",
            id(key),
            held.owner.run,
            held.owner.who,
            held.owner.pid,
            now.saturating_sub(held.since_ms) / 1000
        ),
    )
    .help("wait for it, or end it with `cdpipe cancel`; `cdpipe resume` goes on with a run that was interrupted")
    .transient()
}

fn contended(key: &LockKey) -> Fault {
    Fault::new("locked", format!("the lock of {} is changed by others all the time", id(key))).transient()
}

fn id(key: &LockKey) -> String {
    match key {
        LockKey::Service { environment, service } => format!("{environment}/{service}"),
        LockKey::Named(name) => name.clone(),
    }
}

/// A name that the cluster takes. Not with the environment: two of one namespace change the same things.
fn name(key: &LockKey) -> String {
    let key = match key {
        LockKey::Service { service, .. } => service.as_str(),
        LockKey::Named(name) => name,
    };
    let safe = |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' };
    format!("cdpipe-{}-lock", key.chars().map(safe).collect::<String>())
}

fn now_ms() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(run: &str, pid: u32) -> LockOwner {
        LockOwner { run: run.into(), who: "a@elsewhere".to_owned(), pid }
    }

    #[test]
    fn the_epoch_grows_with_each_owner_and_a_held_lock_is_refused() {
        let key = LockKey::Named("web".to_owned());
        let first = next(&State::default(), &key, &owner("one", 1), 1000, 0, 0).unwrap();
        assert_eq!(first.epoch, 1);
        let renewed = next(&first, &key, &owner("one", 1), 1000, 500, 0).unwrap();
        assert_eq!((renewed.epoch, renewed.held.as_ref().unwrap().expires_ms), (1, 1500));
        assert_eq!(next(&renewed, &key, &owner("two", 2), 1000, 1400, 0).unwrap_err().kind, "locked");
        // Expired, but nobody knows what became of its process.
        let other = LockOwner { who: "b@here".to_owned(), ..owner("two", 2) };
        assert_eq!(next(&renewed, &key, &other, 1000, 1600, 0).unwrap_err().kind, "locked");
        assert_eq!(next(&renewed, &key, &other, 1000, 2500, 0).unwrap().epoch, 2);
        assert_eq!(next(&renewed, &key, &owner("one", 9), 1000, 600, 0).unwrap().epoch, 2);
        let free = State { held: None, ..renewed };
        assert_eq!(next(&free, &key, &other, 1000, 600, 7).unwrap().epoch, 8);
    }
}
