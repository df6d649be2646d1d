//! A strategy is a function from what is wanted and what is seen to a step program. It holds no state and takes no decision later:
//! what happens at run time is the interpreter's business, the same for every strategy.

mod blue_green;
mod canary;
mod recreate;
mod rolling;

use cdpipe_model::ReleaseId;
use cdpipe_model::capability::{self, Support};
use cdpipe_model::observe::{Observation, ObservedRelease, Role};
use cdpipe_model::plan::{Deploy, Watch};
use cdpipe_model::program::{Program, ProgramStep, Routing};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::service::{Environment, TargetKind, TrafficKind};
use cdpipe_model::strategy::{OldRelease, RollPolicy, Strategy};

/// All of the users, in basis points.
pub const ALL_BP: u32 = 10_000;

/// What a program is made from.
pub struct Inputs<'a> {
    /// The deploy as the plan has it.
    pub deploy: &'a Deploy,
    /// Where it goes.
    pub environment: &'a Environment,
    /// The release to bring in, with its digests.
    pub candidate: &'a ReleaseSpec,
    /// Wanted instances.
    pub replicas: u32,
    /// What is there.
    pub seen: &'a Observation,
}

impl Inputs<'_> {
    /// Whether users are steered by a router that has a table.
    fn routed(&self) -> bool {
        self.deploy.service.route.is_some()
            && self.environment.traffic.as_ref().is_some_and(|traffic| traffic.kind != TrafficKind::Replicas)
    }

    fn watch(&self) -> Option<&Watch> {
        self.deploy.watch.as_ref()
    }

    /// Whether the platform interleaves starting and stopping by itself. Before a Swarm, a router that keeps a list of instances
    /// would not hear of the ones that the platform starts, so there cdpipe takes the steps.
    fn platform_rolls(&self) -> bool {
        match self.environment.target.kind {
            TargetKind::Kubernetes => true,
            TargetKind::Swarm => !self.routed(),
            TargetKind::Local | TargetKind::Docker | TargetKind::Hosts => false,
        }
    }

    /// Whether the whole deploy is one roll of the platform.
    fn is_roll(&self) -> bool {
        self.platform_rolls() && matches!(self.deploy.strategy, Strategy::Rolling(_))
    }
}

/// The release that serves now: the one with the largest share of the route; without a route the oldest that has instances.
pub fn stable_of<'a>(seen: &'a Observation, candidate: &ReleaseId) -> Option<&'a ObservedRelease> {
    let find = |id: &ReleaseId| seen.releases.iter().find(|release| release.id == *id);
    if let Some(table) = &seen.table {
        let serving = table
            .entries
            .iter()
            .filter(|entry| entry.weight_bp > 0)
            .max_by_key(|entry| (entry.weight_bp, entry.role == Role::Stable));
        if let Some(release) = serving.and_then(|entry| find(&entry.release)) {
            return Some(release);
        }
    }
    let running =
        || seen.releases.iter().filter(|release| release.wanted > 0 && !release.instances.is_empty());
    running().find(|release| release.id != *candidate).or_else(|| running().next())
}

/// How a platform that rolls by itself is to do it; only `rolling` says more than the default.
pub(crate) fn roll_policy(strategy: &Strategy, wanted: u32, undo: bool, retain: u32) -> RollPolicy {
    let policy = match strategy {
        Strategy::Rolling(settings) => rolling::policy(settings, wanted, undo),
        Strategy::BlueGreen(_) | Strategy::Canary(_) | Strategy::Recreate => {
            RollPolicy { undo, ..RollPolicy::default() }
        }
    };
    RollPolicy { retain, ..policy }
}

/// The program that brings the candidate in. No steps means that it serves already.
pub fn program(inputs: &Inputs<'_>) -> Program {
    // Who scales is followed, not fought.
    let replicas = inputs.seen.autoscaled.unwrap_or(inputs.replicas);
    let inputs = &Inputs { replicas, ..*inputs };
    let candidate_id = inputs.candidate.id();
    let stable = stable_of(inputs.seen, &candidate_id);
    let mut program = Program {
        candidate: inputs.candidate.clone(),
        stable: stable.map(|release| release.spec.clone()),
        replicas: inputs.replicas,
        stable_replicas: stable.map_or(0, |release| release.wanted.max(count(release.instances.len()))),
        seen: inputs.seen.clone(),
        steps: Vec::new(),
        notes: notes(inputs),
    };
    sweep(inputs, stable, &mut program.steps);
    let swept = program.steps.len();
    match stable {
        Some(stable) if stable.id == candidate_id => same_release(inputs, stable, &mut program.steps),
        None => first_deploy(inputs, &mut program),
        Some(_) => match &inputs.deploy.strategy {
            Strategy::Rolling(rolling) => {
                rolling::steps(inputs, rolling, program.stable_replicas, &mut program.steps)
            }
            Strategy::BlueGreen(settings) => blue_green::steps(inputs, settings, &mut program.steps),
            Strategy::Canary(settings) => canary::steps(inputs, settings, &mut program.steps),
            Strategy::Recreate => recreate::steps(inputs, &mut program.steps),
        },
    }
    if program.steps.len() == swept && swept > 0 {
        program.notes.push("the release serves already; only what an earlier run left is removed".to_owned());
    }
    program
}

/// What undoes the program after some of it ran: the state that was seen, in an order that never leaves users without a release.
///
/// `forward` is what was begun: every step up to and including the one that failed.
pub fn undo(program: &Program, forward: &[ProgramStep], exclusive: bool, routed: bool) -> Vec<ProgramStep> {
    let began = |wanted: &dyn Fn(&ProgramStep) -> bool| forward.iter().any(wanted);
    let candidate_id = program.candidate.id();
    let brought = began(&|step| {
        matches!(
            step,
            ProgramStep::Ensure { side: Role::Candidate, .. }
                | ProgramStep::Roll { side: Role::Candidate, .. }
        )
    });
    // What goes is taken out of the route first, so a shrink moves it too.
    let route_moved =
        routed && began(&|step| matches!(step, ProgramStep::Route(_) | ProgramStep::Shrink { .. }));
    let Some(stable) = &program.stable else {
        // A first deploy: nothing served before, so nothing serves after.
        let mut steps = Vec::new();
        if route_moved {
            steps.push(ProgramStep::Route(Routing::Closed));
        }
        if brought {
            steps.push(ProgramStep::Retire { side: Role::Candidate, old: OldRelease::Remove });
        }
        return steps;
    };
    if stable.id() == candidate_id {
        // It was only healed or scaled: what serves must not be taken away because more of it did not come up.
        return Vec::new();
    }
    if began(&|step| matches!(step, ProgramStep::Roll { .. })) {
        return vec![
            ProgramStep::Roll { side: Role::Stable, count: program.stable_replicas },
            ProgramStep::Settled { side: Role::Stable, count: program.stable_replicas },
        ];
    }
    let stable_touched = began(&|step| {
        matches!(
            step,
            ProgramStep::Shrink { side: Role::Stable, .. } | ProgramStep::Retire { side: Role::Stable, .. }
        )
    });
    let count = program.stable_replicas;
    let restore = [
        ProgramStep::Ensure { side: Role::Stable, count, canary: false },
        ProgramStep::Ready { side: Role::Stable, count, may_fail: 0 },
    ];
    let back = ProgramStep::Route(Routing::Weighted { candidate_bp: 0, rules: false });
    let remove = ProgramStep::Retire { side: Role::Candidate, old: OldRelease::Remove };
    let mut steps = Vec::new();
    if routed && began(&|step| matches!(step, ProgramStep::Preview { open: true })) {
        steps.push(ProgramStep::Preview { open: false });
    }
    if exclusive {
        // The two releases must not run at the same time, so the candidate goes first; users wait as they did on the way in.
        if brought {
            if routed {
                steps.push(ProgramStep::Route(Routing::Closed));
            }
            steps.push(remove);
        }
        if stable_touched {
            steps.extend(restore);
        }
        if route_moved {
            steps.push(back);
        }
    } else {
        if stable_touched {
            steps.extend(restore);
        } else if route_moved {
            // Never shrunk, but it may have died meanwhile: users go back only to what is ready.
            steps.push(ProgramStep::Ready { side: Role::Stable, count, may_fail: count.saturating_sub(1) });
        }
        if route_moved {
            steps.push(back);
        }
        if brought {
            steps.push(remove);
        }
    }
    if !steps.is_empty() {
        // What was brought back was started a moment ago; what was left alone may have lost a machine.
        let side = Role::Stable;
        steps.push(if stable_touched {
            ProgramStep::Settled { side, count }
        } else {
            ProgramStep::Heal { side, count }
        });
    }
    steps
}

/// Whether the strategy forbids that both releases run at a time.
pub fn is_exclusive(strategy: &Strategy) -> bool {
    matches!(strategy, Strategy::Recreate)
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// What the target or the router can't do exactly as written.
fn notes(inputs: &Inputs<'_>) -> Vec<String> {
    let traffic = inputs.environment.traffic.as_ref().map(|traffic| traffic.kind);
    match capability::support(inputs.deploy.strategy.kind(), inputs.environment.target.kind, traffic) {
        Support::Exact | Support::Refused(_) => Vec::new(),
        Support::Approximate(text) => vec![text.to_owned()],
    }
}

/// Removes what a dead run left. A leftover is never reused: nobody knows how far it came.
fn sweep(inputs: &Inputs<'_>, stable: Option<&ObservedRelease>, steps: &mut Vec<ProgramStep>) {
    if inputs.is_roll() {
        // What a dead run left halfway is in the workload that the platform rolls: the roll replaces it.
        return;
    }
    let is_stray = |release: &&ObservedRelease| {
        stable.is_none_or(|stable| stable.id != release.id) && !release.instances.is_empty()
    };
    let strays: Vec<_> = inputs.seen.releases.iter().filter(is_stray).collect();
    let Some(table) = inputs.seen.table.as_ref().filter(|_| inputs.routed()) else {
        steps.extend(strays.iter().map(|release| ProgramStep::Sweep { release: release.id.clone() }));
        return;
    };
    let astray = table.entries.iter().any(|entry| stable.is_none_or(|stable| stable.id != entry.release))
        || !table.rules.is_empty();
    if astray && stable.is_some_and(|stable| stable.id != inputs.candidate.id()) {
        steps.push(ProgramStep::Route(Routing::Weighted { candidate_bp: 0, rules: false }));
    }
    steps.extend(strays.iter().map(|release| ProgramStep::Sweep { release: release.id.clone() }));
}

/// The candidate is what serves: make it whole, nothing else.
fn same_release(inputs: &Inputs<'_>, stable: &ObservedRelease, steps: &mut Vec<ProgramStep>) {
    let ready = count(stable.ready().count());
    let there = count(stable.instances.len());
    let wanted = inputs.replicas;
    let whole_route = !inputs.routed()
        || inputs.seen.table.as_ref().is_some_and(|table| {
            table.rules.is_empty()
                && table.weight_bp(&stable.id) == ALL_BP
                && table.entries.iter().all(|entry| {
                    entry.release == stable.id
                        && count(entry.members.len()) == wanted
                        && entry.role == Role::Stable
                        && entry.members.iter().all(|member| {
                            stable
                                .ready()
                                .any(|instance| instance.address.as_deref() == Some(member.address.as_str()))
                        })
                })
        });
    if ready == wanted && there == wanted && whole_route {
        return;
    }
    let side = Role::Candidate;
    if ready < wanted {
        steps.push(ProgramStep::Ensure { side, count: wanted, canary: false });
        steps.push(ProgramStep::Ready { side, count: wanted, may_fail: 0 });
    }
    if inputs.routed() {
        steps.push(ProgramStep::Route(Routing::Weighted { candidate_bp: ALL_BP, rules: false }));
    }
    if there > wanted {
        steps.push(ProgramStep::Shrink { side, count: wanted });
    }
    steps.push(ProgramStep::Promote);
    steps.push(ProgramStep::Settled { side, count: wanted });
}

/// Nothing serves yet: no share to take from anyone, so every strategy does the same.
fn first_deploy(inputs: &Inputs<'_>, program: &mut Program) {
    if let Strategy::Canary(_) = inputs.deploy.strategy {
        program
            .notes
            .push("first deploy: there is no stable release, so the canary's steps are skipped".to_owned());
    }
    let steps = &mut program.steps;
    if inputs.is_roll() {
        steps.push(ProgramStep::Roll { side: Role::Candidate, count: inputs.replicas });
        verify(inputs, steps);
    } else {
        bring(inputs.replicas, 0, steps);
        verify(inputs, steps);
    }
    promote(inputs, steps);
    after(inputs, steps);
    settle(inputs, steps);
}

// -- pieces that strategies share --

/// Candidate instances up and ready.
fn bring(count: u32, may_fail: u32, steps: &mut Vec<ProgramStep>) {
    steps.push(ProgramStep::Ensure { side: Role::Candidate, count, canary: false });
    steps.push(ProgramStep::Ready { side: Role::Candidate, count, may_fail });
}

/// Before any user is routed to the candidate; then the watch begins.
fn verify(inputs: &Inputs<'_>, steps: &mut Vec<ProgramStep>) {
    if !inputs.deploy.verify.is_empty() {
        steps.push(ProgramStep::Verify);
    }
    if inputs.watch().is_some() {
        steps.push(ProgramStep::WatchOn);
    }
}

/// All users to the candidate; from here it is what serves.
fn promote(inputs: &Inputs<'_>, steps: &mut Vec<ProgramStep>) {
    if inputs.routed() {
        steps.push(ProgramStep::Route(Routing::Weighted { candidate_bp: ALL_BP, rules: false }));
    }
    steps.push(ProgramStep::Promote);
    if !inputs.deploy.validate.is_empty() {
        steps.push(ProgramStep::Validate);
    }
}

/// The watch goes on for a while, then ends.
fn after(inputs: &Inputs<'_>, steps: &mut Vec<ProgramStep>) {
    if let Some(watch) = inputs.watch() {
        if watch.after_ms > 0 {
            steps.push(ProgramStep::Soak { ms: watch.after_ms, label: "after".to_owned() });
        }
        steps.push(ProgramStep::WatchOff);
    }
}

/// Ready equals wanted.
fn settle(inputs: &Inputs<'_>, steps: &mut Vec<ProgramStep>) {
    steps.push(ProgramStep::Settled { side: Role::Candidate, count: inputs.replicas });
}
