//! The only place that knows which port does which action.

use crate::builtin::Builtin;
use crate::leases::{Leases, no_target};
use crate::ports::Ports;
use cdpipe_model::action::{Action, ActionKind, Answer, RunAction};
use cdpipe_model::ports::{Call, HttpRequest, Probe, Router, Target};
use cdpipe_model::service::Route;
use cdpipe_model::{EnvName, Fault, ServiceName};
use std::sync::Arc;
use std::time::Duration;

/// Does one action.
pub(crate) async fn perform(
    ports: &Ports,
    leases: &Leases,
    builtin: &Builtin,
    action: &Action,
    call: Call<'_>,
) -> Result<Answer, Fault> {
    match &action.kind {
        ActionKind::Resolve { environment, spec } => {
            let resolved = target(ports, environment)?.resolve(call, spec).await?;
            Ok(Answer::Resolved(Box::new(resolved)))
        }
        ActionKind::Observe { environment, service, platform_name, route } => {
            let seen = target(ports, environment)?.observe(call, service, platform_name.as_deref());
            // The router is asked at the same time: the two halves of an observation should be of one moment.
            let table = async {
                match (route, ports.routers.get(environment)) {
                    (Some(route), Some(router)) => router.observe(call, route).await,
                    _ => Ok(None),
                }
            };
            let (seen, table) = tokio::join!(seen, table);
            let mut seen = seen?;
            seen.table = table?;
            Ok(Answer::Observed(Box::new(seen)))
        }
        ActionKind::AwaitReady { environment, release, count, may_fail } => {
            let ready = target(ports, environment)?.await_ready(call, release, *count, *may_fail).await?;
            Ok(Answer::Instances(ready))
        }
        ActionKind::AwaitRouted { environment, table } => {
            router(ports, environment, &table.route)?.await_routed(call, table).await?;
            Ok(Answer::Nothing)
        }
        ActionKind::AwaitDrained { environment, route, release, instances, drain_ms } => {
            let drain = Duration::from_millis(*drain_ms);
            router(ports, environment, route)?.await_drained(call, route, release, instances, drain).await?;
            Ok(Answer::Nothing)
        }
        ActionKind::Measure { requests, .. } => {
            Ok(Answer::Samples(builtin.measure(ports, call, requests).await))
        }
        ActionKind::Lock { keys, lease_ms } => {
            let epoch = leases.acquire(keys, *lease_ms, call).await?;
            Ok(Answer::Locked { epoch })
        }
        ActionKind::Unlock { keys } => {
            leases.release(keys, call).await?;
            Ok(Answer::Nothing)
        }
        ActionKind::Ensure { environment, release, count, canary_env } => {
            let there = target(ports, environment)?.ensure(call, release, *count, canary_env).await?;
            Ok(Answer::Instances(there))
        }
        ActionKind::Stop { environment, release, instances, old, retain } => {
            let left = target(ports, environment)?.stop(call, release, instances, *old, *retain).await?;
            Ok(Answer::Instances(left))
        }
        ActionKind::Route { environment, table, seen } => {
            router(ports, environment, &table.route)?.apply(call, table, seen.as_deref()).await?;
            Ok(Answer::Nothing)
        }
        ActionKind::Roll { environment, release, count, fence, policy } => {
            let there = target(ports, environment)?.roll(call, release, *count, policy, *fence).await?;
            Ok(Answer::Instances(there))
        }
        ActionKind::Survey { environment, spec } => {
            let found = target(ports, environment)?.survey(call, spec).await?;
            Ok(Answer::Surveyed(Box::new(found)))
        }
        ActionKind::Apply { environment, spec, objects } => {
            target(ports, environment)?.apply_set(call, spec, objects).await?;
            Ok(Answer::Nothing)
        }
        ActionKind::Unapply { environment, spec, objects } => {
            target(ports, environment)?.take_back_set(call, spec, objects).await?;
            Ok(Answer::Nothing)
        }
        ActionKind::Run(run) => {
            let outputs = match in_container(ports, run) {
                Some(target) => target.run_image(call, run).await?,
                None => ports.runner.run(call, run).await?,
            };
            Ok(Answer::Exited { outputs })
        }
        ActionKind::Exec { environment, release, instance, run } => {
            let outputs = target(ports, environment)?.exec(call, release, instance, run).await?;
            Ok(Answer::Exited { outputs })
        }
        ActionKind::Http { method, url, headers, body, expect_status, expect_body } => {
            let request = HttpRequest {
                method,
                url,
                headers,
                body: body.as_ref(),
                expect_status,
                expect_body: expect_body.as_deref(),
            };
            Ok(Answer::Status(ports.messenger.http(call, request).await?))
        }
        ActionKind::SetFlag { provider, flag, value } => {
            Ok(Answer::FlagWas(ports.messenger.set_flag(call, provider, flag, value.as_deref()).await?))
        }
        ActionKind::Notify { channel, url, text, headers, fields } => {
            ports.messenger.notify(call, *channel, url, headers, text, fields).await?;
            Ok(Answer::Nothing)
        }
    }
}

/// After a crash: what became of an effect that can't simply be done again.
pub(crate) async fn probe(ports: &Ports, action: &Action, call: Call<'_>) -> Probe {
    match &action.kind {
        ActionKind::Run(run) => match in_container(ports, run) {
            Some(target) => target.probe_image(call).await,
            None => ports.runner.probe(call).await,
        },
        // Neither a request nor a message leaves anything behind that could be asked.
        _ => Probe::Unknown(
            Fault::new(
                "interrupted",
                format!(
                    "cdpipe stopped while {} was under way: it may have been done",
                    describe(&action.kind)
                ),
            )
            .help("look whether it was done; `on_interrupt = retry` on a step says that twice does no harm"),
        ),
    }
}

/// After a crash: ends what `probe` found running.
pub(crate) async fn stop(ports: &Ports, action: &Action, call: Call<'_>) {
    match &action.kind {
        ActionKind::Run(run) => match in_container(ports, run) {
            Some(target) => target.stop_image(call).await,
            None => ports.runner.stop(call).await,
        },
        _ => ports.runner.stop(call).await,
    }
}

/// The target that a command's container runs on; `None` for a command of this machine.
fn in_container<'a>(ports: &'a Ports, run: &RunAction) -> Option<&'a Arc<dyn Target>> {
    run.image.as_ref()?;
    ports.targets.get(run.environment.as_ref()?)
}

/// Where an action changes something, and for which service: what its fencing epoch is looked up by.
pub(crate) fn place(kind: &ActionKind) -> (Option<&EnvName>, Option<&ServiceName>) {
    match kind {
        ActionKind::Resolve { environment, spec: release }
        | ActionKind::AwaitReady { environment, release, .. }
        | ActionKind::Ensure { environment, release, .. }
        | ActionKind::Stop { environment, release, .. }
        | ActionKind::Roll { environment, release, .. }
        | ActionKind::Exec { environment, release, .. } => (Some(environment), Some(&release.service)),
        ActionKind::Observe { environment, service, .. } => (Some(environment), Some(service)),
        ActionKind::AwaitRouted { environment, table } | ActionKind::Route { environment, table, .. } => {
            (Some(environment), Some(table.service()))
        }
        ActionKind::AwaitDrained { environment, route, .. } => (Some(environment), Some(&route.service)),
        ActionKind::Survey { environment, .. }
        | ActionKind::Apply { environment, .. }
        | ActionKind::Unapply { environment, .. } => (Some(environment), None),
        ActionKind::Measure { environment, .. } => (environment.as_ref(), None),
        ActionKind::Run(run) => (run.environment.as_ref(), None),
        ActionKind::Lock { .. }
        | ActionKind::Unlock { .. }
        | ActionKind::Http { .. }
        | ActionKind::SetFlag { .. }
        | ActionKind::Notify { .. } => (None, None),
    }
}

/// Whether it changes what the lock of its stage protects.
pub(crate) fn needs_lock(kind: &ActionKind) -> bool {
    matches!(
        kind,
        ActionKind::Ensure { .. }
            | ActionKind::Stop { .. }
            | ActionKind::Route { .. }
            | ActionKind::Roll { .. }
            | ActionKind::Apply { .. }
            | ActionKind::Unapply { .. }
    )
}

/// A few words for people: what is being done.
pub(crate) fn describe(kind: &ActionKind) -> String {
    let script = |script: &str| {
        let line = script.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        let mut short: String = line.chars().take(60).collect();
        if short.len() < line.len() {
            short.push('…');
        }
        short
    };
    match kind {
        ActionKind::Resolve { spec, .. } => format!("finding the artifact of `{}`", spec.service),
        ActionKind::Observe { service, .. } => format!("observing `{service}`"),
        ActionKind::AwaitReady { release, .. } => format!("waiting for `{}` to be ready", release.service),
        ActionKind::AwaitRouted { table, .. } => format!("waiting for the route of `{}`", table.service()),
        ActionKind::AwaitDrained { route, .. } => format!("draining `{}`", route.service),
        ActionKind::Measure { .. } => "measuring".to_owned(),
        ActionKind::Lock { .. } => "taking locks".to_owned(),
        ActionKind::Unlock { .. } => "giving locks back".to_owned(),
        ActionKind::Ensure { release, .. } => format!("starting instances of `{}`", release.service),
        ActionKind::Stop { release, .. } => format!("stopping instances of `{}`", release.service),
        ActionKind::Route { table, .. } => format!("routing `{}`", table.service()),
        ActionKind::Roll { release, .. } => format!("rolling `{}`", release.service),
        ActionKind::Run(run) => format!("`{}`", script(&run.script)),
        ActionKind::Exec { run, .. } => format!("`{}` inside an instance", script(&run.script)),
        ActionKind::Http { method, url, .. } => format!("{method} {url}"),
        ActionKind::SetFlag { flag, .. } => format!("setting flag `{flag}`"),
        ActionKind::Notify { .. } => "sending a message".to_owned(),
        ActionKind::Survey { spec, .. } => format!("reading {} and what is there of it", spec.path),
        ActionKind::Apply { spec, .. } => format!("applying {}", spec.path),
        ActionKind::Unapply { spec, .. } => format!("taking {} back", spec.path),
    }
}

fn target<'a>(ports: &'a Ports, environment: &EnvName) -> Result<&'a Arc<dyn Target>, Fault> {
    ports.targets.get(environment).ok_or_else(|| no_target(environment))
}

fn router<'a>(ports: &'a Ports, environment: &EnvName, route: &Route) -> Result<&'a Arc<dyn Router>, Fault> {
    ports.routers.get(environment).ok_or_else(|| {
        Fault::new(
            "no-router",
            format!("`{}` has a route, and environment `{environment}` has no router", route.service),
        )
        .help("give the environment a `traffic` block")
    })
}
