//! Rolling: batch by batch, within `max_unavailable` below and `max_surge` above the wanted number.

use super::{Inputs, after, settle, verify};
use cdpipe_model::observe::Role;
use cdpipe_model::program::{ProgramStep, Routing};
use cdpipe_model::strategy::{Count, OldRelease, Order, RollPolicy, Rolling, RollingBack};

pub(super) fn steps(
    inputs: &Inputs<'_>,
    settings: &Rolling,
    stable_replicas: u32,
    steps: &mut Vec<ProgramStep>,
) {
    if inputs.platform_rolls() {
        verify_ahead(inputs, steps);
        steps.push(ProgramStep::Roll { side: Role::Candidate, count: inputs.replicas });
        finish(inputs, steps);
        return;
    }
    let wanted = inputs.replicas;
    let batch = settings.batch.of(wanted).max(1);
    let (unavailable, mut surge) = bounds(settings, wanted, batch);
    if unavailable == 0 && surge == 0 {
        // `check` refuses this; should a plan say it all the same, the safe reading is one more instance for a moment.
        surge = 1;
    }
    let floor = wanted.saturating_sub(unavailable);
    let ceiling = wanted.saturating_add(surge).max(stable_replicas);
    // Counts are of all new instances so far, so the share bounds all batches together. One at least is ready before users come.
    let may_fail = |new: u32| allowed(settings, wanted).min(new.saturating_sub(1));
    let (mut new, mut old) = (0_u32, stable_replicas);
    let mut verified = false;
    while new < wanted || old > 0 {
        let before = (new, old);
        if settings.order == Order::StopFirst {
            old = shrink(old, new, floor, batch, wanted, inputs, steps);
        }
        let up = batch.min(wanted - new).min(ceiling.saturating_sub(new + old));
        if up > 0 {
            new += up;
            steps.push(ProgramStep::Ensure { side: Role::Candidate, count: new, canary: false });
            steps.push(ProgramStep::Ready { side: Role::Candidate, count: new, may_fail: may_fail(new) });
            if !verified {
                verify(inputs, steps);
                verified = true;
            }
            if inputs.routed() {
                steps.push(ProgramStep::Route(Routing::ByInstances));
            }
        }
        if settings.order == Order::StartFirst || new == wanted {
            old = shrink(old, new, floor, batch, wanted, inputs, steps);
        }
        if (new, old) == before {
            // Neither bound leaves room (more instances are there than wanted and surge allow): make room by one.
            old = old.saturating_sub(1);
            steps.push(ProgramStep::Shrink { side: Role::Stable, count: old });
        }
        let more = new < wanted || old > 0;
        soak(settings, new, may_fail(new), more && up > 0, up > 0, steps);
    }
    finish(inputs, steps);
}

/// How the platform is to do the same by itself.
pub(super) fn policy(settings: &Rolling, wanted: u32, undo: bool) -> RollPolicy {
    let batch = settings.batch.of(wanted).max(1);
    let (max_unavailable, mut max_surge) = bounds(settings, wanted, batch);
    if max_unavailable == 0 && max_surge == 0 {
        max_surge = 1;
    }
    RollPolicy {
        batch,
        pause_ms: settings.pause_ms,
        monitor_ms: settings.monitor_ms,
        order: settings.order,
        max_failures_percent: settings.max_failures_percent,
        max_unavailable,
        max_surge,
        undo,
        failure_action: settings.failure_action,
        back: settings.back.as_ref().map(|back| RollingBack {
            batch: Count::Instances(back.batch.of(wanted).max(1)),
            ..back.clone()
        }),
        ..RollPolicy::default()
    }
}

/// How many instances may be missing, and how many may be there beyond the wanted ones.
fn bounds(settings: &Rolling, wanted: u32, batch: u32) -> (u32, u32) {
    let of = |count: Option<Count>| count.map(|count| count.of(wanted));
    match settings.order {
        Order::StartFirst => {
            (of(settings.max_unavailable).unwrap_or(0), of(settings.max_surge).unwrap_or(batch))
        }
        Order::StopFirst => {
            (of(settings.max_unavailable).unwrap_or(batch), of(settings.max_surge).unwrap_or(0))
        }
    }
}

/// A share of failures is rounded down: 20 % of 4 allows none.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a u32, clamped to be in range"
)]
fn allowed(settings: &Rolling, wanted: u32) -> u32 {
    (f64::from(wanted) * settings.max_failures_percent / 100.0).floor().clamp(0.0, f64::from(wanted)) as u32
}

fn shrink(
    old: u32,
    new: u32,
    floor: u32,
    batch: u32,
    wanted: u32,
    inputs: &Inputs<'_>,
    steps: &mut Vec<ProgramStep>,
) -> u32 {
    let spare = (old + new).saturating_sub(floor.min(wanted));
    let down = old.min(spare).min(if new >= wanted { u32::MAX } else { batch });
    if down == 0 {
        return old;
    }
    // The last old instances are kept as the way back while the watch goes on after the last batch.
    let keeps_last = old == down && inputs.watch().is_some_and(|watch| watch.after_ms > 0);
    if !keeps_last {
        steps.push(ProgramStep::Shrink { side: Role::Stable, count: old - down });
    }
    old - down
}

fn soak(
    settings: &Rolling,
    new: u32,
    may_fail: u32,
    between: bool,
    fresh: bool,
    steps: &mut Vec<ProgramStep>,
) {
    if fresh && settings.monitor_ms > 0 {
        steps.push(ProgramStep::Soak { ms: settings.monitor_ms, label: "monitor".to_owned() });
        steps.push(ProgramStep::Ready { side: Role::Candidate, count: new, may_fail });
    }
    if between && settings.pause_ms > settings.monitor_ms {
        steps.push(ProgramStep::Soak {
            ms: settings.pause_ms - settings.monitor_ms,
            label: "pause".to_owned(),
        });
    }
}

/// Where the platform rolls, its first batch can't be held back for `verify`: the watch begins before it.
fn verify_ahead(inputs: &Inputs<'_>, steps: &mut Vec<ProgramStep>) {
    if inputs.watch().is_some() {
        steps.push(ProgramStep::WatchOn);
    }
}

fn finish(inputs: &Inputs<'_>, steps: &mut Vec<ProgramStep>) {
    if inputs.platform_rolls() {
        if !inputs.deploy.verify.is_empty() {
            steps.push(ProgramStep::Verify);
        }
    } else if inputs.routed() {
        steps.push(ProgramStep::Route(Routing::Weighted { candidate_bp: super::ALL_BP, rules: false }));
    }
    steps.push(ProgramStep::Promote);
    if !inputs.deploy.validate.is_empty() {
        steps.push(ProgramStep::Validate);
    }
    after(inputs, steps);
    if !inputs.platform_rolls() {
        steps.push(ProgramStep::Retire { side: Role::Stable, old: OldRelease::Stop });
    }
    settle(inputs, steps);
}
