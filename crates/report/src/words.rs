//! How quantities and things are named to people, everywhere the same.

use cdpipe_model::Outcome;
use cdpipe_model::observe::Role;
use cdpipe_model::program::{Program, ProgramStep, Routing};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::strategy::{OldRelease, Strategy};
use cdpipe_model::value::trim_number;

/// A span of time with as much precision as one wants to read: `0.4s`, `12.3s`, `4m05s`, `2h07m`, `3d04h`.
pub fn elapsed(ms: u64) -> String {
    // Tenths are cut off, not rounded: a clock never shows a moment that has not come.
    let tenths = ms / 100;
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{}.{}s", seconds, tenths % 10),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// A share in basis points as percent: `10%`, `2.5%`.
pub fn share(bp: u32) -> String {
    format!("{}%", trim_number(f64::from(bp) / 100.0))
}

/// What people call a release: its version, or its id where it has none.
pub fn release(spec: &ReleaseSpec) -> String {
    if spec.version.is_empty() { spec.id().0 } else { spec.version.clone() }
}

/// `1 instance`, `3 instances`.
pub fn count(count: u32, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

/// How it ended, in words.
pub fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Skipped => "skipped",
        Outcome::Succeeded => "succeeded",
        Outcome::Cancelled => "cancelled",
        Outcome::RolledBack => "rolled back",
        Outcome::TimedOut => "timed out",
        Outcome::Failed => "failed",
        Outcome::RollbackFailed => "rollback failed",
    }
}

/// What the exit code of a run says.
pub fn exit_code(code: u8) -> &'static str {
    match code {
        0 => "succeeded",
        1 => "failed",
        2 => "nothing was done",
        3 => "rolled back, the old release serves",
        4 => "the rollback failed, a person is needed now",
        5 => "waiting, can be resumed",
        130 => "interrupted, can be resumed",
        _ => "unknown",
    }
}

/// The release on one side of a program, as people call it; the side's word where it has none.
pub fn side(program: &Program, role: Role) -> String {
    match role {
        Role::Candidate => release(&program.candidate),
        Role::Stable => program.stable.as_ref().map_or_else(|| "stable".to_owned(), release),
    }
}

/// What a step of a program does, in a few words.
pub fn step(program: &Program, step: &ProgramStep) -> String {
    match step {
        ProgramStep::Sweep { release } => format!("remove what an earlier run left of {release}"),
        ProgramStep::Ensure { side: role, count: n, canary } => {
            let what = if *canary { "canary instance" } else { "instance" };
            format!("bring {} to {}", side(program, *role), count(*n, what))
        }
        ProgramStep::Ready { side: role, count: n, may_fail } => {
            let text = format!(
                "wait until {} of {} {} ready",
                n,
                side(program, *role),
                if *n == 1 { "is" } else { "are" }
            );
            if *may_fail > 0 { format!("{text}, {may_fail} may fail") } else { text }
        }
        ProgramStep::Route(Routing::Closed) => "close the route".to_owned(),
        ProgramStep::Route(Routing::ByInstances) => "route by ready instances".to_owned(),
        ProgramStep::Route(Routing::Weighted { candidate_bp, rules }) => {
            let to = side(program, Role::Candidate);
            match (candidate_bp, rules) {
                (0, true) => format!("route only requests that match the rules to {to}"),
                (10_000, _) => format!("route everyone to {to}"),
                (0, false) => format!("route everyone to {}", side(program, Role::Stable)),
                (bp, _) => format!("route {} to {to}", share(*bp)),
            }
        }
        ProgramStep::Shrink { side: role, count: 0 } => format!("drain and stop {}", side(program, *role)),
        ProgramStep::Shrink { side: role, count: n } => {
            format!("drain and stop {} down to {}", side(program, *role), count(*n, "instance"))
        }
        ProgramStep::Preview { open: true } => {
            format!("show {} at the preview address", side(program, Role::Candidate))
        }
        ProgramStep::Preview { open: false } => "close the preview".to_owned(),
        ProgramStep::Verify => "verify".to_owned(),
        ProgramStep::WatchOn => "begin to watch".to_owned(),
        ProgramStep::Soak { ms, label } => format!("{label}, for {}", duration(*ms)),
        ProgramStep::Approve(approval) => {
            if approval.by.is_empty() {
                "wait for an approval".to_owned()
            } else {
                format!("wait for an approval by {}", approval.by.join(" or "))
            }
        }
        ProgramStep::Validate => "validate".to_owned(),
        ProgramStep::Promote => format!("promote {}", side(program, Role::Candidate)),
        ProgramStep::WatchOff => "end the watch".to_owned(),
        ProgramStep::Retire { side: role, old } => {
            let what = match old {
                OldRelease::Remove => "remove",
                OldRelease::Stop => "stop",
                OldRelease::ScaleToZero => "scale down",
            };
            format!("{what} {}", side(program, *role))
        }
        ProgramStep::Roll { side: role, count: n } => {
            format!("roll to {} of {}", count(*n, "instance"), side(program, *role))
        }
        ProgramStep::Heal { side: role, count: n } | ProgramStep::Settled { side: role, count: n } => {
            format!(
                "check that {} of {} {} ready",
                n,
                side(program, *role),
                if *n == 1 { "is" } else { "are" }
            )
        }
    }
}

/// A duration as the language writes it.
#[allow(clippy::cast_precision_loss, reason = "2^53 milliseconds are 285,000 years")]
pub fn duration(ms: u64) -> String {
    cdpipe_model::value::format_duration_ms(ms as f64)
}

/// A time that is left, to the nearest second: what it takes to say so is not worth a millisecond in it.
pub fn about(ms: u64) -> String {
    duration(if ms < 1_000 { ms } else { ms.saturating_add(500) / 1_000 * 1_000 })
}

/// `a canary`, `a rolling update`: how a deploy goes.
pub fn strategy(strategy: &Strategy) -> &'static str {
    match strategy {
        Strategy::Rolling(_) => "rolling",
        Strategy::BlueGreen(_) => "blue_green",
        Strategy::Canary(_) => "canary",
        Strategy::Recreate => "recreate",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_is_left_is_told_in_whole_seconds() {
        for (ms, text) in [(86_399_999, "1d"), (86_400_000, "1d"), (1_499, "1s"), (250, "250ms")] {
            assert_eq!(about(ms), text);
        }
    }

    #[test]
    fn spans_of_time_are_short() {
        let text: Vec<String> = [0, 450, 12_345, 59_999, 60_000, 245_000, 7_620_000, 273_600_000]
            .into_iter()
            .map(elapsed)
            .collect();
        assert_eq!(text, ["0.0s", "0.4s", "12.3s", "59.9s", "1m00s", "4m05s", "2h07m", "3d04h"]);
    }
}
