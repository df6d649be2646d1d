//! `cdpipe down`: stops what a pipeline deployed, on every target: route closed, requests drained, instances ended.

use crate::commands::Ended;
use crate::commands::rollback::confirmed;
use crate::failure::{self, Failure};
use crate::preview;
use crate::state;
use crate::targets;
use crate::ui::Ui;
use crate::wiring::{self, Wiring};
use cdpipe_model::Fault;
use cdpipe_model::observe::RouteTable;
use cdpipe_model::plan::Deploy;
use std::io::IsTerminal;
use std::time::Duration;

/// How long one step of it may take beside the drain.
const STEP_WITHIN: Duration = Duration::from_secs(60);

/// How long the lock of a service is held without being renewed; longer than all of it takes.
const LEASE: Duration = Duration::from_secs(600);

/// Arguments of `cdpipe down`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The pipeline that was run.
    #[arg(value_name = "FILE")]
    file: String,
    /// Only this service.
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only this environment.
    #[arg(long, value_name = "NAME")]
    environment: Option<String>,
    /// Don't ask; needed for a protected environment where nobody can be asked.
    #[arg(long, short)]
    yes: bool,
}

/// Stops them; 0 if nothing is left, 1 if something could not be stopped.
pub(crate) fn run(args: &Args, ui: &Ui) -> Ended {
    let file = std::fs::canonicalize(&args.file)
        .ok()
        .map_or_else(|| crate::files::read(&args.file).map(|_| args.file.clone().into()), Ok)?;
    let dir = state::dir(Some(&file))?;
    let path = file.display().to_string();
    let store = cdpipe_engine::Store::open_existing(&dir)?;
    let header = match &store {
        Some(store) => targets::newest(store, |header| header.file == path)?,
        None => None,
    };
    let (Some(store), Some(header)) = (store, header) else {
        ui.note(&format!("`{}` was never run here: nothing to stop\n", args.file));
        return Ok(0);
    };
    if let Some(run) =
        store.unfinished_of(&path)?.iter().find(|run| run.state == cdpipe_engine::RunState::Running)
    {
        return Err(Failure::new(
            &failure::NOT_POSSIBLE,
            format!("run {} of this pipeline is under way", run.run),
        )
        .help(format!("`cdpipe cancel {}` ends it first", run.run)));
    }
    let wiring = wiring::wire(&header.plan, &file, &dir)?;
    let meant: Vec<&Deploy> = targets::deploys(&header.plan)
        .into_iter()
        .filter(|deploy| {
            args.service.as_ref().is_none_or(|name| deploy.service.name.as_str() == name)
                && args.environment.as_ref().is_none_or(|name| deploy.environment.as_str() == name)
        })
        .collect();
    if meant.is_empty() {
        return Err(Failure::new(
            &failure::NOT_POSSIBLE,
            "the pipeline deploys no such service to such an environment",
        )
        .help("`cdpipe graph` shows what it deploys"));
    }
    let protected = meant.iter().any(|deploy| {
        header.plan.environments.get(&deploy.environment).is_some_and(|environment| environment.protected)
    });
    if protected && !args.yes {
        let person = std::io::stdin().is_terminal() && ui.err.terminal;
        if !person || !confirmed("this stops services of a protected environment. go on? [y/N] ", ui) {
            return Err(Failure::new(
                &failure::NOT_POSSIBLE,
                "the environment is protected: nothing was stopped",
            )
            .help("say `--yes`"));
        }
    }
    let mut left = 0;
    let failures = preview::ask(async {
        let mut failures = Vec::new();
        for deploy in meant {
            match stop(&wiring, deploy).await {
                Ok(0) => {
                    ui.note(&format!("{} in {}: nothing ran\n", deploy.service.name, deploy.environment))
                }
                Ok(count) => ui.note(&format!(
                    "{} in {}: {} stopped\n",
                    deploy.service.name,
                    deploy.environment,
                    cdpipe_report::words::count(u32::try_from(count).unwrap_or(u32::MAX), "instance"),
                )),
                Err(fault) => failures.push(fault),
            }
        }
        failures
    })?;
    for fault in failures {
        left += 1;
        ui.note(&Failure::from_fault(&failure::TARGET, fault).render(ui.err));
    }
    Ok(if left == 0 { 0 } else { 1 })
}

/// Takes one service out of the route, drains it, ends it, and forgets the route. Answers how many instances were ended.
async fn stop(wiring: &Wiring, deploy: &Deploy) -> Result<usize, Fault> {
    let target = wiring.target(&deploy.environment)?;
    let (step, effect, owner) = (targets::no_step(), targets::effect("down"), targets::lock_owner("down"));
    let call = preview::call_for(&effect, &step, STEP_WITHIN, &*wiring.ports.secrets);
    let key = targets::lock_key(&deploy.environment, &deploy.service.name);
    let epoch = target.lock(call, &key, &owner, LEASE).await?;
    let call = cdpipe_model::ports::Call { epoch, ..call };
    let result = async {
        let router = wiring.ports.routers.get(&deploy.environment);
        let drain = Duration::from_millis(deploy.service.drain_ms);
        let waits = cdpipe_model::ports::Call { deadline: STEP_WITHIN + drain, ..call };
        if let (Some(router), Some(route)) = (router, &deploy.service.route)
            && let Some(seen) = router.observe(call, route).await?
        {
            let closed = RouteTable::closed(route.clone());
            router.apply(call, &closed, Some(&seen)).await?;
            router.await_routed(call, &closed).await?;
            let seen =
                target.observe(call, &deploy.service.name, deploy.service.platform_name.as_deref()).await?;
            // What is only kept has nobody to finish with.
            for release in seen.releases.iter().filter(|release| !release.instances.is_empty()) {
                router.await_drained(waits, route, &release.id, &release.instances, drain).await?;
            }
        }
        let count = target.remove(waits, &deploy.service.name).await?;
        if let (Some(router), Some(route)) = (router, &deploy.service.route) {
            router.forget(call, route).await?;
        }
        Ok(count)
    }
    .await;
    // What was done counts more than a lock that could not be given back: its lease ends.
    let _ = target.unlock(call, &key, &owner).await;
    result
}
