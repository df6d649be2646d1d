//! Blue-green: a whole second set, one switch, the old set kept for a while.

use super::{Inputs, after, bring, promote, settle, verify};
use cdpipe_model::observe::Role;
use cdpipe_model::program::ProgramStep;
use cdpipe_model::strategy::BlueGreen;

pub(super) fn steps(inputs: &Inputs<'_>, settings: &BlueGreen, steps: &mut Vec<ProgramStep>) {
    bring(inputs.replicas, 0, steps);
    let preview = settings.preview.is_some() && inputs.routed();
    if preview {
        steps.push(ProgramStep::Preview { open: true });
    }
    verify(inputs, steps);
    promote(inputs, steps);
    if preview {
        steps.push(ProgramStep::Preview { open: false });
    }
    after(inputs, steps);
    // The old release stays for the longer of the two: the watch has used up part of it.
    let watched_ms = inputs.watch().map_or(0, |watch| watch.after_ms);
    let rest_ms = settings.keep_old_ms.saturating_sub(watched_ms);
    if rest_ms > 0 {
        steps.push(ProgramStep::Soak { ms: rest_ms, label: "keep old".to_owned() });
    }
    steps.push(ProgramStep::Retire { side: Role::Stable, old: settings.old });
    settle(inputs, steps);
}
