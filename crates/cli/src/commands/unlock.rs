//! `cdpipe unlock`: taking away a lock that its owner left behind.

use crate::commands::Ended;
use crate::failure::{self, Failure};
use crate::preview;
use crate::state;
use crate::targets;
use crate::times;
use crate::ui::Ui;
use crate::wiring;
use cdpipe_engine::{RunState, Store, Unlocked};
use cdpipe_model::ports::{LockState, Target};
use std::path::Path;
use std::time::Duration;

/// How long a target may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Arguments of `cdpipe unlock`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A lock that a pipeline names (`lock = "database"`), or a service and its environment; `cdpipe locks` lists them.
    #[arg(value_names = ["LOCK", "ENVIRONMENT"], num_args = 1..=2, required = true)]
    words: Vec<String>,
}

/// Opens one whose owner is gone.
pub(crate) fn run(args: &Args, ui: &Ui) -> Ended {
    let store = state::open_existing()?;
    match args.words.as_slice() {
        // The command line is refused before it comes to this.
        [] => Err(Failure::new(&failure::BAD_ARGUMENT, "no lock is named")),
        [name] => match store.unlock_named(name)? {
            Unlocked::WasFree => {
                ui.print(&format!("lock `{name}` is free\n"));
                Ok(0)
            }
            Unlocked::Freed(state) => {
                ui.print(&format!("lock `{name}` is free now; it was {}\n", seen(&state)));
                Ok(0)
            }
            Unlocked::OwnerLives(state) => Err(in_use(name, &state)),
        },
        [service, environment, ..] => {
            let (header, deploy) = targets::find(&store, service, environment)?;
            let wiring = wiring::wire(&header.plan, Path::new(&header.file), store.dir())?;
            let Some(target) = wiring.ports.targets.get(&deploy.environment).cloned() else {
                return Err(Failure::new(&failure::CANNOT_RUN, "the environment has no target"));
            };
            let key = targets::lock_key(&deploy.environment, &deploy.service.name);
            let (step, effect) = (targets::no_step(), targets::effect("unlock"));
            let owner = preview::ask(async {
                let call = preview::call_for(&effect, &step, ANSWER_WITHIN, &*wiring.ports.secrets);
                open(&store, &*target, call, &key).await
            })?
            .map_err(|fault| Failure::from_fault(&failure::TARGET, fault))?;
            let name = format!("{service} {environment}");
            match owner {
                None => ui.print(&format!("lock of `{name}` is free\n")),
                Some(Opened::Now(state)) => {
                    ui.print(&format!("lock of `{name}` is free now; it was {}\n", seen(&state)))
                }
                Some(Opened::InUse(state)) => return Err(in_use(&name, &state)),
            }
            Ok(0)
        }
    }
}

enum Opened {
    Now(LockState),
    InUse(LockState),
}

/// Gives the lock back in its owner's name, if the lease is over or the owner's run is.
async fn open(
    store: &Store,
    target: &dyn Target,
    call: cdpipe_model::ports::Call<'_>,
    key: &cdpipe_model::plan::LockKey,
) -> Result<Option<Opened>, cdpipe_model::Fault> {
    let Some(state) = target.lock_owner(call, key).await? else { return Ok(None) };
    // Also past its lease: an owner that was only stopped goes on, and renews it.
    if alive(store, &state) {
        return Ok(Some(Opened::InUse(state)));
    }
    target.unlock(call, key, &state.owner).await?;
    Ok(Some(Opened::Now(state)))
}

/// Whether the owner lives, as far as it can be known from here: by its run, else by its process; one of another host is believed to
/// while its lease lasts.
pub(crate) fn alive(store: &Store, state: &LockState) -> bool {
    if let Ok(run) = store.run(&state.owner.run) {
        return run.state == RunState::Running;
    }
    let host = rustix::system::uname();
    let here = state.owner.who.ends_with(&format!("@{}", host.nodename().to_string_lossy()));
    if here {
        Path::new("/proc").join(state.owner.pid.to_string()).exists()
    } else {
        state.expires_ms > times::now_ms()
    }
}

/// Who holds it, in words.
pub(crate) fn seen(state: &LockState) -> String {
    format!(
        "held by run {} of {} (process {}) since {}",
        state.owner.run,
        state.owner.who,
        state.owner.pid,
        times::absolute(state.since_ms, false)
    )
}

fn in_use(name: &str, state: &LockState) -> Failure {
    Failure::new(&failure::NOT_POSSIBLE, format!("lock `{name}` is in use: {}", seen(state))).help(format!(
        "`cdpipe cancel {}` ends that run; a lock whose owner is gone can be opened",
        state.owner.run
    ))
}
