//! Canary: a growing share of users. Stable keeps its full size until the promotion, so that the way back needs no start.

use super::{ALL_BP, Inputs, after, bring, promote, settle, verify};
use cdpipe_model::observe::Role;
use cdpipe_model::program::{ProgramStep, Routing};
use cdpipe_model::strategy::{Canary, Count, Hold, OldRelease};
use cdpipe_model::value::trim_number;

pub(super) fn steps(inputs: &Inputs<'_>, settings: &Canary, steps: &mut Vec<ProgramStep>) {
    let with_env = !settings.env.is_empty();
    let instances_at = |weight_bp: u32| match settings.instances {
        Some(count) => count.of(inputs.replicas),
        None => Count::Percent(f64::from(weight_bp) / 100.0).of(inputs.replicas),
    };
    let mut there = 0;
    let mut verified = false;
    for step in &settings.steps {
        let count = instances_at(step.weight_bp).max(1).max(there);
        if count > there {
            steps.push(ProgramStep::Ensure { side: Role::Candidate, count, canary: with_env });
            steps.push(ProgramStep::Ready { side: Role::Candidate, count, may_fail: 0 });
            there = count;
        }
        if !verified {
            verify(inputs, steps);
            verified = true;
        }
        let share = format!("canary {}%", trim_number(f64::from(step.weight_bp) / 100.0));
        steps.push(ProgramStep::Route(Routing::Weighted {
            candidate_bp: step.weight_bp.min(ALL_BP),
            rules: true,
        }));
        match &step.hold {
            Hold::For { ms } => steps.push(ProgramStep::Soak { ms: *ms, label: share }),
            Hold::UntilApproved(approval) => steps.push(ProgramStep::Approve(approval.clone())),
        }
    }
    if with_env && there > 0 {
        // The canary's own environment ends here: instances without it come up beside those that have it, which then go.
        let count = inputs.replicas;
        steps.push(ProgramStep::Ensure { side: Role::Candidate, count, canary: false });
        steps.push(ProgramStep::Ready {
            side: Role::Candidate,
            count: count.saturating_add(there),
            may_fail: 0,
        });
        there = there.saturating_add(count);
    } else if there < inputs.replicas {
        bring(inputs.replicas, 0, steps);
    }
    if !verified {
        verify(inputs, steps);
    }
    promote(inputs, steps);
    if there > inputs.replicas {
        steps.push(ProgramStep::Shrink { side: Role::Candidate, count: inputs.replicas });
    }
    after(inputs, steps);
    steps.push(ProgramStep::Retire { side: Role::Stable, old: OldRelease::Stop });
    settle(inputs, steps);
}
