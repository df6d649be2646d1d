//! Recreate: stop, start. The two releases never run at the same time, and users wait in between.

use super::{Inputs, after, bring, promote, settle, verify};
use cdpipe_model::observe::Role;
use cdpipe_model::program::{ProgramStep, Routing};
use cdpipe_model::strategy::OldRelease;

pub(super) fn steps(inputs: &Inputs<'_>, steps: &mut Vec<ProgramStep>) {
    if inputs.routed() {
        steps.push(ProgramStep::Route(Routing::Closed));
    }
    steps.push(ProgramStep::Shrink { side: Role::Stable, count: 0 });
    bring(inputs.replicas, 0, steps);
    verify(inputs, steps);
    promote(inputs, steps);
    after(inputs, steps);
    steps.push(ProgramStep::Retire { side: Role::Stable, old: OldRelease::Stop });
    settle(inputs, steps);
}
