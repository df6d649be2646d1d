//! The lock of a service as a lease on the engine.
//!
//! An engine has no object that can be compared and swapped, but making a volume of a name is atomic, and answers the one that is there
//! if there is one. So a lock is a row of empty volumes, `cdpipe-lock-KEY-HASH-1`, `-2`, …: each is one state of the lock (held by whom until
//! when, or free), the one with the highest number is the state now, and whoever makes the next one has changed it. Older ones are
//! removed. The epoch travels in them and never falls.
//!
//! A lease is taken over when it has expired and its owner is gone: its process has ended on this machine, or it has not renewed the lease
//! for as long again. Clocks of machines that deploy the same service must agree to within a few seconds.

use crate::client::Session;
use crate::labels::fnv;
use bollard::models::VolumeCreateRequest;
use bollard::query_parameters::{ListVolumesOptions, RemoveVolumeOptions};
use cdpipe_model::Fault;
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::{LockOwner, LockState};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Names the lock that a volume belongs to.
const LABEL_LOCK: &str = "cdpipe.lock";
/// The state, as JSON.
const LABEL_STATE: &str = "cdpipe.lock.state";

/// Others may change the lock between our look and our change; more often than this is no accident.
const TRIES: usize = 20;

/// One state of a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    epoch: u64,
    held: Option<LockState>,
    lease_ms: u64,
    /// Who made it; no two are the same.
    nonce: String,
}

struct Numbered {
    number: u64,
    /// Of its volume. Those that an older cdpipe has made have another one than ours.
    volume: String,
    state: State,
}

/// Takes the lock, or renews it if it is ours. Answers its epoch.
///
/// # Errors
/// `locked` (transient) while somebody else holds it.
pub async fn take(
    session: &Session<'_>,
    key: &LockKey,
    owner: &LockOwner,
    lease: Duration,
) -> Result<u64, Fault> {
    for attempt in 0..TRIES {
        let found = states(session, key).await?;
        let now = now_ms();
        let last = found.last();
        let mut since = now;
        let mut epoch = last.map_or(0, |last| last.state.epoch).max(session.call.epoch);
        match last.and_then(|last| last.state.held.as_ref().map(|held| (held, last.state.lease_ms))) {
            Some((held, _)) if held.owner == *owner => since = held.since_ms,
            // Resumed by another process: what the former one still does must be known as old.
            Some((held, _)) if held.owner.run == owner.run => epoch += 1,
            Some((held, lease_ms)) => {
                let gone = is_gone(&held.owner, owner);
                let silent = now >= held.expires_ms.saturating_add(lease_ms);
                if !(now >= held.expires_ms && (gone || silent)) {
                    return Err(locked(key, held, now));
                }
                epoch += 1;
            }
            None => epoch += 1,
        }
        let state = State {
            epoch,
            held: Some(LockState {
                owner: owner.clone(),
                since_ms: since,
                expires_ms: now.saturating_add(millis(lease)),
                epoch,
            }),
            lease_ms: millis(lease),
            nonce: nonce(attempt),
        };
        if append(session, key, &found, state).await? {
            return Ok(epoch);
        }
    }
    Err(contended(key))
}

/// Gives the lock back if it is ours.
///
/// # Errors
/// If the engine can't be asked.
pub async fn give_back(session: &Session<'_>, key: &LockKey, owner: &LockOwner) -> Result<(), Fault> {
    for attempt in 0..TRIES {
        let found = states(session, key).await?;
        let Some(last) = found.last() else { return Ok(()) };
        if last.state.held.as_ref().is_none_or(|held| held.owner.run != owner.run) {
            return Ok(());
        }
        let state = State { epoch: last.state.epoch, held: None, lease_ms: 0, nonce: nonce(attempt) };
        if append(session, key, &found, state).await? {
            return Ok(());
        }
    }
    Err(contended(key))
}

/// Who holds it, if anybody does.
///
/// # Errors
/// If the engine can't be asked.
pub async fn owner(session: &Session<'_>, key: &LockKey) -> Result<Option<LockState>, Fault> {
    Ok(states(session, key).await?.pop().and_then(|last| last.state.held))
}

/// Makes the next state. `false` if somebody else was faster.
async fn append(
    session: &Session<'_>,
    key: &LockKey,
    found: &[Numbered],
    state: State,
) -> Result<bool, Fault> {
    let number = found.last().map_or(0, |last| last.number) + 1;
    let text = serde_json::to_string(&state)
        .map_err(|error| Fault::new("internal", format!("a lock cannot be written down: {error}")))?;
    let labels = HashMap::from([(LABEL_LOCK.to_owned(), id(key)), (LABEL_STATE.to_owned(), text.clone())]);
    let request =
        VolumeCreateRequest { name: Some(name(key, number)), labels: Some(labels), ..Default::default() };
    let made = session.ask("make the volume of a lock", session.api.create_volume(request)).await?;
    if made.labels.get(LABEL_STATE) != Some(&text) {
        return Ok(false);
    }
    // Ours may be one that others have passed and removed already.
    let after = states(session, key).await?;
    let newest = after.last().map_or(0, |last| last.number);
    for old in after.iter().filter(|old| old.number < newest) {
        remove(session, &old.volume).await?;
    }
    Ok(newest == number)
}

async fn remove(session: &Session<'_>, name: &str) -> Result<(), Fault> {
    session
        .ask_for("remove the volume of a lock", session.api.remove_volume(name, None::<RemoveVolumeOptions>))
        .await
        .map(drop)
}

/// In the order of their numbers.
async fn states(session: &Session<'_>, key: &LockKey) -> Result<Vec<Numbered>, Fault> {
    let filters = HashMap::from([("label".to_owned(), vec![format!("{LABEL_LOCK}={}", id(key))])]);
    let options = ListVolumesOptions { filters: Some(filters) };
    let listed = session.ask("list the volumes of a lock", session.api.list_volumes(Some(options))).await?;
    let mut found: Vec<Numbered> = listed
        .volumes
        .unwrap_or_default()
        .into_iter()
        .filter_map(|volume| {
            let number = volume.name.rsplit_once('-')?.1.parse().ok()?;
            let state = serde_json::from_str(volume.labels.get(LABEL_STATE)?).ok()?;
            Some(Numbered { number, volume: volume.name, state })
        })
        .collect();
    found.sort_by_key(|numbered| numbered.number);
    Ok(found)
}

/// Whether the process of the one that holds it is known to have ended.
pub(crate) fn is_gone(holder: &LockOwner, asking: &LockOwner) -> bool {
    let host = |who: &str| who.rsplit_once('@').map(|(_, host)| host.to_owned());
    let same_host = host(&holder.who).is_some_and(|name| host(&asking.who) == Some(name));
    same_host && !std::path::Path::new("/proc").join(holder.pid.to_string()).exists()
}

pub(crate) fn locked(key: &LockKey, held: &LockState, now: u64) -> Fault {
    let left = held.expires_ms.saturating_sub(now);
    let when = if left > 0 {
        format!("its lease lasts {:.0}s more unless it is renewed", left as f64 / 1000.0)
    } else {
        "its lease has expired, but its process may still be at work".to_owned()
    };
    Fault::new(
        "locked",
        format!(
            "{} is being changed by run {} ({}, process {}) for {:.0}s; {when}",
            id(key),
            held.owner.run,
            held.owner.who,
            held.owner.pid,
            now.saturating_sub(held.since_ms) as f64 / 1000.0
        ),
    )
    .help("wait for it, or end it with `cdpipe cancel`; `cdpipe resume` goes on with a run that was interrupted")
    .transient()
}

pub(crate) fn contended(key: &LockKey) -> Fault {
    Fault::new("locked", format!("the lock of {} is changed by others all the time", id(key))).transient()
}

/// For people, and for the label.
fn id(key: &LockKey) -> String {
    match key {
        LockKey::Service { environment, service } => format!("{environment}/{service}"),
        LockKey::Named(name) => name.clone(),
    }
}

/// The hash tells keys apart that differ only in what a volume's name can't have: `prod/eu-web` and `prod-eu/web`.
fn name(key: &LockKey, number: u64) -> String {
    let id = id(key);
    let plain: String = id
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() || letter == '_' { letter } else { '.' })
        .collect();
    format!("cdpipe-lock-{plain}-{:012x}-{number}", fnv(&id) >> 16)
}

fn nonce(attempt: usize) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("{now}-{}-{attempt}", std::process::id())
}

pub(crate) fn now_ms() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_locks_have_one_name() {
        let service = |environment: &str, service: &str| LockKey::Service {
            environment: environment.into(),
            service: service.into(),
        };
        let named = |name: &str| LockKey::Named(name.to_owned());
        let keys = [service("prod", "eu-web"), service("prod-eu", "web"), named("prod.eu.web")];
        let names: std::collections::BTreeSet<String> = keys.iter().map(|key| name(key, 1)).collect();
        assert_eq!(names.len(), keys.len(), "{names:?}");
        assert!(
            names.iter().all(|name| name.starts_with("cdpipe-lock-prod.eu.web-") && name.ends_with("-1"))
        );
        assert_eq!(name(&keys[0], 1), name(&keys[0], 1));
    }
}
