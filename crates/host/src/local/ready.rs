//! `await_ready`: waiting for instances, and telling early that they won't be.

use super::{Local, instances};
use crate::state::{Phase, Status};
use cdpipe_model::Fault;
use cdpipe_model::observe::Instance;
use cdpipe_model::ports::Call;
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::service::HealthKind;
use cdpipe_model::value::format_duration_ms;
use std::time::{Duration, Instant};

/// How long a new instance may take when no readiness check says so.
const WITHIN_DEFAULT_MS: u64 = 60_000;

/// Last lines of a log that explain a failure.
const LOG_LINES: usize = 20;

/// Pause between two looks at the status files: short at first, for instances that are ready at once.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LATER_LOOKS: Duration = Duration::from_millis(50);

/// One instance as it is awaited.
struct Seen {
    instance: Option<Instance>,
    status: Option<Status>,
    log: std::path::PathBuf,
    number: u32,
}

impl Local {
    pub(super) async fn wait_until_ready(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        count: u32,
        may_fail: u32,
    ) -> Result<Vec<Instance>, Fault> {
        let begun = Instant::now();
        let within = Duration::from_millis(within_ms(spec));
        let mut said = None;
        let mut pause = FIRST_LOOK;
        loop {
            let seen = self.look(spec)?;
            let ready = number(seen.iter().filter(|seen| is_ready(seen)));
            let lost: Vec<&Seen> = seen.iter().filter(|seen| !is_ready(seen) && self.is_lost(seen)).collect();
            // What is neither ready nor lost may still come.
            let coming = number(seen.iter()).saturating_sub(ready).saturating_sub(number(lost.iter()));
            if said != Some(ready) {
                said = Some(ready);
                call.sink.progress(&format!("{ready} of {count} ready"));
            }
            let enough = ready.saturating_add(may_fail) >= count;
            if ready >= count || (enough && coming == 0) {
                return self.ready_now(spec);
            }
            if ready.saturating_add(coming).saturating_add(may_fail) < count {
                return Err(not_ready(spec, ready, count, &lost, ready + coming));
            }
            if begun.elapsed() >= within {
                if enough {
                    return self.ready_now(spec);
                }
                let late: Vec<&Seen> = seen.iter().filter(|seen| !is_ready(seen)).collect();
                return Err(too_late(spec, ready, count, &late, within));
            }
            if begun.elapsed() >= call.deadline {
                return Err(Fault::new(
                    "timed-out",
                    format!("{ready} of {count} instances of {} were ready in time", spec.service),
                ));
            }
            let left = within.min(call.deadline).saturating_sub(begun.elapsed());
            tokio::select! {
                () = call.cancel.cancelled() => {
                    return Err(Fault::new("cancelled", format!("cancelled with {ready} of {count} ready")));
                }
                () = tokio::time::sleep(pause.min(left)) => {}
            }
            pause = (pause * 2).min(LATER_LOOKS);
        }
    }

    fn ready_now(&self, spec: &ReleaseSpec) -> Result<Vec<Instance>, Fault> {
        self.release(spec)?.map_or(Ok(Vec::new()), |(release, _)| instances(&release))
    }

    fn look(&self, spec: &ReleaseSpec) -> Result<Vec<Seen>, Fault> {
        let Some((release, _)) = self.release(spec)? else { return Ok(Vec::new()) };
        release
            .instances()?
            .into_iter()
            .map(|state| {
                Ok(Seen {
                    instance: state.observe(),
                    status: state.status(),
                    log: state.log(),
                    number: state.number(),
                })
            })
            .collect()
    }

    /// Whether nothing more is to be expected of it without someone's doing.
    fn is_lost(&self, seen: &Seen) -> bool {
        match (&seen.instance, &seen.status) {
            (None, _) | (_, None) => true,
            (Some(_), Some(status)) => {
                status.crashes >= self.config.policy.crash_loop
                    || matches!(status.phase, Phase::Stopping | Phase::Stopped)
            }
        }
    }
}

fn is_ready(seen: &Seen) -> bool {
    seen.instance.as_ref().is_some_and(|instance| instance.ready)
}

fn number<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}

/// The most time that any of its readiness checks gives a new instance.
fn within_ms(spec: &ReleaseSpec) -> u64 {
    spec.health
        .iter()
        .filter(|check| check.kind == HealthKind::Ready)
        .map(|check| check.within_ms)
        .max()
        .unwrap_or(WITHIN_DEFAULT_MS)
}

fn not_ready(spec: &ReleaseSpec, ready: u32, count: u32, failed: &[&Seen], there: u32) -> Fault {
    let service = &spec.service;
    let Some(worst) = failed.first() else {
        return Fault::new("not-ready", format!("only {there} of {count} instances of {service} are there"))
            .help("another run may be stopping them: see `cdpipe status`");
    };
    let what = match (&worst.instance, &worst.status) {
        (Some(_), Some(status)) => {
            let exit =
                status.last_exit.as_ref().map(|exit| format!(" ({})", exit.describe())).unwrap_or_default();
            let why = match (&status.last_exit, &status.failure) {
                (None, Some(failure)) => format!(": {failure}"),
                _ => String::new(),
            };
            format!("instance {} keeps ending{exit}, {} times in a row{why}", worst.number, status.crashes)
        }
        _ => format!("instance {} is gone: its supervisor has ended", worst.number),
    };
    explain(
        Fault::new("not-ready", format!("{ready} of {count} instances of {service} are ready: {what}")),
        failed,
    )
    .help("the last lines of its log are above; `cdpipe logs` shows more")
}

fn too_late(spec: &ReleaseSpec, ready: u32, count: u32, late: &[&Seen], within: Duration) -> Fault {
    let after = format_duration_ms(within.as_secs_f64() * 1000.0);
    let why = late
        .iter()
        .find_map(|seen| seen.status.as_ref()?.failure.clone())
        .map(|failure| format!(": {failure}"))
        .unwrap_or_default();
    explain(
        Fault::new(
            "not-ready",
            format!("{ready} of {count} instances of {} are ready after {after}{why}", spec.service),
        ),
        late,
    )
    .help("look at the log above; if it only needs longer, raise `within` of its health check")
}

fn explain(fault: Fault, instances: &[&Seen]) -> Fault {
    let lines = instances.iter().find_map(|seen| {
        let lines = crate::supervise::log::last_lines(&seen.log, LOG_LINES);
        (!lines.is_empty()).then_some(lines)
    });
    fault.details(lines.unwrap_or_default())
}
