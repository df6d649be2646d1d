//! Locks: a Swarm config of the key's name. Its creation is atomic, and its labels change at a version index, so of two that want it
//! one gets it. It stays when the lock is given back, with the epoch.

use super::At;
use crate::lock;
use bollard::models::{Config, ConfigSpec};
use cdpipe_model::Fault;
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::{LockOwner, LockState};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::time::Duration;

const LABEL: &str = "cdpipe.lock";

/// Attempts while others write the same lock.
const TRIES: u32 = 10;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Lease {
    epoch: u64,
    held: Option<LockState>,
    lease_ms: u64,
}

/// Takes the lock, or renews it if it is ours. Answers its epoch.
pub(super) async fn take(
    at: &At<'_>,
    key: &LockKey,
    owner: &LockOwner,
    lease: Duration,
) -> Result<u64, Fault> {
    for _ in 0..TRIES {
        let (config, found) = read(at, key).await?;
        let now = lock::now_ms();
        let mut since_ms = now;
        let mut epoch = found.epoch.max(at.session.call.epoch);
        match &found.held {
            Some(held) if held.owner == *owner => since_ms = held.since_ms,
            // Resumed by another process: what the former one still does must be known as old.
            Some(held) if held.owner.run == owner.run => epoch += 1,
            Some(held) => {
                let silent = now >= held.expires_ms.saturating_add(found.lease_ms);
                if !(now >= held.expires_ms && (lock::is_gone(&held.owner, owner) || silent)) {
                    return Err(lock::locked(key, held, now));
                }
                epoch += 1;
            }
            None => epoch += 1,
        }
        let lease_ms = lock::millis(lease);
        let held =
            LockState { owner: owner.clone(), since_ms, expires_ms: now.saturating_add(lease_ms), epoch };
        if write(at, key, config, &Lease { epoch, held: Some(held), lease_ms }).await? {
            return Ok(epoch);
        }
    }
    Err(lock::contended(key))
}

/// Gives the lock back if it is ours.
pub(super) async fn give_back(at: &At<'_>, key: &LockKey, owner: &LockOwner) -> Result<(), Fault> {
    for _ in 0..TRIES {
        let (config, found) = read(at, key).await?;
        if found.held.as_ref().is_none_or(|held| held.owner.run != owner.run) {
            return Ok(());
        }
        if write(at, key, config, &Lease { epoch: found.epoch, held: None, lease_ms: 0 }).await? {
            return Ok(());
        }
    }
    Err(lock::contended(key))
}

/// Who holds it, if anybody does.
pub(super) async fn owner(at: &At<'_>, key: &LockKey) -> Result<Option<LockState>, Fault> {
    Ok(read(at, key).await?.1.held)
}

async fn read(at: &At<'_>, key: &LockKey) -> Result<(Option<Config>, Lease), Fault> {
    let Some(config) = at.config(&name(key)).await? else { return Ok((None, Lease::default())) };
    let labels = config.spec.as_ref().and_then(|spec| spec.labels.as_ref());
    let text = labels.and_then(|labels| labels.get(LABEL)).cloned().unwrap_or_default();
    let lease = serde_json::from_str(&text).map_err(|error| {
        Fault::new(
            "state-unreadable",
            format!("the Swarm config {} is no lock of cdpipe: {error}", name(key)),
        )
        .help("remove it if nobody uses it: `docker config rm`")
    })?;
    Ok((Some(config), lease))
}

/// `false` if somebody else was faster.
async fn write(at: &At<'_>, key: &LockKey, seen: Option<Config>, lease: &Lease) -> Result<bool, Fault> {
    let text = serde_json::to_string(lease)
        .map_err(|error| Fault::new("internal", format!("a lock cannot be written down: {error}")))?;
    let labels = HashMap::from([(LABEL.to_owned(), text)]);
    match seen {
        Some(config) => at.relabel(&config, labels).await,
        None => {
            let spec = ConfigSpec {
                name: Some(name(key)),
                labels: Some(labels),
                // A config can't be empty: "lock" in base64.
                data: Some("bG9jaw==".to_owned()),
                ..ConfigSpec::default()
            };
            at.create_config(spec).await
        }
    }
}

/// A config's name has 64 characters at most, and only plain ones.
fn name(key: &LockKey) -> String {
    let text = match key {
        LockKey::Service { environment, service } => format!("service.{environment}.{service}"),
        LockKey::Named(name) => format!("named.{name}"),
    };
    let plain: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' })
        .take(38)
        .collect();
    format!("cdpipe-lock-{:012x}-{plain}", crate::labels::fnv(&text) >> 16)
}
