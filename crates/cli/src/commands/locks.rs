//! `cdpipe locks`: who holds which lock, and who waits for it.

use crate::commands::Ended;
use crate::commands::unlock::{alive, seen};
use crate::failure::Failure;
use crate::preview;
use crate::state;
use crate::targets;
use crate::times;
use crate::ui::Ui;
use crate::wiring;
use cdpipe_engine::Store;
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::{LockOwner, LockState};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How many of the newest runs are looked through for places that have locks.
const RUNS_LOOKED_THROUGH: u32 = 100;

/// How long all targets together may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Arguments of `cdpipe locks`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// A lock that is held.
pub(crate) struct Held {
    /// What `cdpipe unlock` calls it.
    pub name: String,
    /// Its line in the queue.
    line: String,
    /// By whom.
    pub state: LockState,
    /// Whether the owner lives, as far as it can be known from here.
    pub alive: bool,
}

/// Lists them.
pub(crate) fn run(args: &Args, ui: &Ui) -> Ended {
    let store = state::open_existing()?;
    let held = held(&store)?;
    let waiting = store.waiting()?;
    if args.json {
        ui.print(&format!("{:#}\n", to_json(&held, &waiting)));
        return Ok(0);
    }
    let now_ms = times::now_ms();
    for lock in &held {
        let gone = if lock.alive { "" } else { ", which is gone" };
        let left = match lock.state.expires_ms.saturating_sub(now_ms) {
            0 => "its lease is over".to_owned(),
            left_ms => format!("its lease lasts {}", cdpipe_report::words::elapsed(left_ms)),
        };
        ui.print(&format!("{}  {}{gone}; {left}\n", lock.name, seen(&lock.state)));
    }
    let lines: BTreeSet<&String> = waiting.iter().map(|(line, _)| line).collect();
    for line in lines {
        for (place, (_, owner)) in waiting.iter().filter(|(name, _)| name == line).enumerate() {
            let place = place + 1;
            ui.print(&format!("{}  {place}. in line: run {} of {}\n", what(line), owner.run, owner.who));
        }
    }
    if held.is_empty() && waiting.is_empty() {
        ui.note("no lock is held\n");
    }
    Ok(0)
}

fn to_json(held: &[Held], waiting: &[(String, LockOwner)]) -> Value {
    let locks: Vec<Value> = held
        .iter()
        .map(|lock| {
            let line: Vec<Value> = waiting
                .iter()
                .filter(|(line, _)| *line == lock.line)
                .map(|(_, owner)| json!({ "run": owner.run.0, "who": owner.who }))
                .collect();
            json!({
                "lock": lock.name,
                "run": lock.state.owner.run.0,
                "who": lock.state.owner.who,
                "pid": lock.state.owner.pid,
                "since_ms": lock.state.since_ms,
                "expires_at_ms": lock.state.expires_ms,
                "epoch": lock.state.epoch,
                "owner_alive": lock.alive,
                "waiting": line,
            })
        })
        .collect();
    json!({ "version": 1, "locks": locks })
}

/// A line of the queue in words: `web production`, `database`, `the pipeline /srv/shop.cd`.
fn what(line: &str) -> String {
    match line.split_once('/') {
        Some(("service", place)) => match place.split_once('/') {
            Some((environment, service)) => format!("{service} {environment}"),
            None => place.to_owned(),
        },
        Some(("pipeline", file)) => format!("pipeline {file}"),
        Some((_, name)) => name.to_owned(),
        None => line.to_owned(),
    }
}

/// All locks that are held: named ones, and those of the services that the last runs deployed.
pub(crate) fn held(store: &Arc<Store>) -> Result<Vec<Held>, Failure> {
    let mut found: Vec<Held> = store
        .named_locks()?
        .into_iter()
        .map(|lock| Held {
            line: format!("name/{}", lock.name),
            name: lock.name,
            state: lock.state,
            alive: lock.owner_alive,
        })
        .collect();
    let mut asked = BTreeSet::new();
    for run in store.runs(RUNS_LOOKED_THROUGH)?.iter().filter(|run| !run.pruned) {
        let header = store.header(&run.run)?;
        let keys: Vec<_> = targets::deploys(&header.plan)
            .into_iter()
            .map(|deploy| (deploy.environment.clone(), deploy.service.name.clone()))
            .filter(|(environment, service)| {
                asked.insert((run.file.clone(), environment.clone(), service.clone()))
            })
            .collect();
        if keys.is_empty() {
            continue;
        }
        // What can't be wired here any more has no locks that could be seen from here.
        let Ok(wiring) = wiring::wire(&header.plan, Path::new(&header.file), store.dir()) else { continue };
        let (step, effect) = (targets::no_step(), targets::effect("locks"));
        let answers = preview::ask(async {
            let call = preview::call_for(&effect, &step, ANSWER_WITHIN, &*wiring.ports.secrets);
            let mut answers = Vec::new();
            for (environment, service) in &keys {
                let Some(target) = wiring.ports.targets.get(environment) else { continue };
                let key = LockKey::Service { environment: environment.clone(), service: service.clone() };
                answers.push((environment, service, target.lock_owner(call, &key).await));
            }
            answers
        })?;
        for (environment, service, answer) in answers {
            let state = answer.map_err(|fault| Failure::from_fault(&crate::failure::TARGET, fault))?;
            let Some(state) = state else { continue };
            let name = format!("{service} {environment}");
            // Two pipelines may deploy to one place.
            if found.iter().any(|lock| lock.name == name && lock.state == state) {
                continue;
            }
            let line = format!("service/{environment}/{service}");
            let alive = alive(store, &state);
            found.push(Held { name, line, state, alive });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}
