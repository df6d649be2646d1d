//! The state of a run: nothing but what the fold of its records needs to keep. It is small for a node that has not begun and dropped
//! for one that has ended and can't be undone, because a run may have ten thousand of them.

use cdpipe_model::action::{Action, ActionResult, Block};
use cdpipe_model::expr::MetricRef;
use cdpipe_model::measure::Sample;
use cdpipe_model::objects::{ApplySpec, ObjectWas, Surveyed};
use cdpipe_model::observe::{Instance, Observation, Role, RouteTable};
use cdpipe_model::plan::FlagProvider;
use cdpipe_model::program::{Program, ProgramStep, Routing};
use cdpipe_model::record::{Finding, TimerId, TimerPurpose};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::{ActionId, EnvName, Fault, NodeId, Outcome, ServiceName, Value};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// How something ended that did not succeed.
pub(crate) type Failure = (Outcome, Fault);

/// A stage or gate.
#[derive(Default)]
pub(crate) struct NodeState {
    pub(crate) phase: NodePhase,
    pub(crate) needs_left: u32,
    pub(crate) attempt: u32,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) reason: Option<Fault>,
    pub(crate) outputs: BTreeMap<String, Value>,
    pub(crate) work: Option<Box<Work>>,
    /// Of a gate that a person has opened without its conditions before it began.
    pub(crate) overridden: bool,
    /// Of a gate that people have opened: what they saw.
    pub(crate) approved: Option<Box<SeenPlaces>>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NodePhase {
    #[default]
    Pending,
    Running,
    Finished,
}

/// What a node keeps while it runs, and afterwards if it can be undone. The hooks of the file have one of their own.
#[derive(Default)]
pub(crate) struct Work {
    pub(crate) lock: Lock,
    /// Lists of steps under way; the last one is the active one. The first is the node's own.
    pub(crate) frames: Vec<Frame>,
    /// How the node's own steps ended; `None` while they go on.
    pub(crate) ended: Option<Result<(), Failure>>,
    /// The node should stop, and what it ends as.
    pub(crate) stop: Option<Failure>,
    pub(crate) deploys: BTreeMap<u32, DeployState>,
    pub(crate) flags_were: BTreeMap<u32, FlagWas>,
    pub(crate) applied: BTreeMap<u32, Applied>,
    pub(crate) undo: Option<StageUndo>,
    /// Asked for while its steps were under way: they are stopped, then what they did is taken back.
    pub(crate) undo_asked: Option<Fault>,
    /// When each main step succeeded, as a number that grows with each step of the run: what an undo is ordered by.
    pub(crate) effects: BTreeMap<u32, u64>,
    /// Index of the hook that is looked at next.
    pub(crate) next_hook: u32,
    pub(crate) hooks_run: BTreeSet<u32>,
    pub(crate) hook_open: bool,
    pub(crate) gate: GateState,
    /// The next attempt of the stage waits for its timer.
    pub(crate) retry_at_ms: Option<u64>,
    pub(crate) retry_due: bool,
}

#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lock {
    #[default]
    None,
    Taking,
    Held,
    Releasing,
    Released,
}

/// A list of steps under way.
pub(crate) struct Frame {
    pub(crate) block: Block,
    /// Index of the step under way or next.
    pub(crate) index: u32,
    pub(crate) step: Option<StepRun>,
    /// How the list ended.
    pub(crate) ended: Option<Result<(), Failure>>,
}

/// A step under way.
#[derive(Default)]
pub(crate) struct StepRun {
    pub(crate) attempt: u32,
    pub(crate) action: Option<ActionId>,
    pub(crate) returned: Option<ActionResult>,
    /// Between two attempts: when the next one starts.
    pub(crate) retry_at_ms: Option<u64>,
    pub(crate) retry_due: bool,
    pub(crate) wait_until_ms: Option<u64>,
    pub(crate) wait_due: bool,
    pub(crate) watch: Option<WatchState>,
    /// Of an `apply` that is no main step: what it will change. Nobody takes that back.
    pub(crate) surveyed: Option<Box<Surveyed>>,
}

/// A set of manifests that a main step applies, with what was there before: the first look counts, whatever later attempts would find.
pub(crate) struct Applied {
    pub(crate) environment: EnvName,
    pub(crate) spec: ApplySpec,
    pub(crate) objects: Vec<ObjectWas>,
    /// Something of it may have been applied.
    pub(crate) begun: bool,
    /// All of it was.
    pub(crate) done: bool,
    pub(crate) back: Option<Back>,
}

/// A set is taken back.
pub(crate) enum Back {
    UnderWay,
    Ended(Result<(), Fault>),
}

/// What a flag was before a step set it.
pub(crate) struct FlagWas {
    pub(crate) provider: FlagProvider,
    pub(crate) flag: String,
    pub(crate) value: Option<String>,
}

/// A stage's effects are taken back, newest first.
pub(crate) struct StageUndo {
    /// Indices of main steps, the next one first.
    pub(crate) queue: VecDeque<u32>,
    pub(crate) reason: Fault,
    pub(crate) failed: Option<Fault>,
    /// Main steps that could not be taken back.
    pub(crate) failed_steps: Vec<u32>,
    /// After the stage had ended: the lock is taken again, and whether our release still serves is looked at.
    pub(crate) late: bool,
    pub(crate) ended: bool,
    pub(crate) flag_action: Option<ActionId>,
    pub(crate) block_ended: Option<Result<(), Failure>>,
    pub(crate) relock: Relock,
}

/// The locks of a late undo, which could not be had.
#[derive(Default)]
pub(crate) struct Relock {
    /// How often it was tried in vain.
    pub(crate) tries: u32,
    /// The last try failed, and the next has not begun.
    pub(crate) failed: bool,
    /// When it begins.
    pub(crate) retry_at_ms: Option<u64>,
}

/// A gate under way.
#[derive(Default)]
pub(crate) struct GateState {
    pub(crate) approvals: Vec<ApprovalState>,
    pub(crate) rejected: Option<Fault>,
    pub(crate) overridden: bool,
    pub(crate) metrics: Vec<GateMetricState>,
    pub(crate) sampling: Option<ActionId>,
    pub(crate) sample_due: bool,
    pub(crate) sampled: bool,
    /// When its metrics were judged last.
    pub(crate) judged_at_ms: Option<u64>,
    pub(crate) samples: Option<Vec<Sample>>,
    /// What serves where the stages behind the gate deploy.
    pub(crate) seen: SeenPlaces,
    pub(crate) looking: Option<ActionId>,
    /// When the gate began: its approvals expire so long after that, however long the look took.
    pub(crate) begun_ms: Option<u64>,
}

/// By environment and service.
pub(crate) type SeenPlaces = BTreeMap<(EnvName, ServiceName), Seen>;

/// One asked approval.
pub(crate) struct ApprovalState {
    pub(crate) by: Vec<String>,
    pub(crate) quorum: u32,
    /// The persons who gave it.
    pub(crate) given: BTreeSet<String>,
    pub(crate) expired: bool,
    pub(crate) expires_at_ms: Option<u64>,
    /// What it lets pass; an approval of anything else does not count.
    pub(crate) effect_hash: String,
}

/// What was found where the stages behind a gate deploy, when its approval was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    /// Releases by id with their shares; `None` if the target could not be asked.
    pub(crate) releases: Option<String>,
    /// The same by version, for people.
    pub(crate) text: String,
}

impl ApprovalState {
    pub(crate) fn is_given(&self) -> bool {
        self.given.len() >= self.quorum.max(1) as usize
    }
}

#[derive(Default, Clone)]
pub(crate) struct GateMetricState {
    pub(crate) held_since_ms: Option<u64>,
    pub(crate) done: bool,
}

/// A deploy under way, or done and undoable.
#[derive(Default)]
pub(crate) struct DeployState {
    pub(crate) spec: Option<ReleaseSpec>,
    pub(crate) observation: Option<Observation>,
    pub(crate) baseline: Option<BTreeMap<MetricRef, Value>>,
    pub(crate) program: Option<Box<Program>>,
    pub(crate) cursor: Cursor,
    pub(crate) candidate: Vec<Instance>,
    pub(crate) stable: Vec<Instance>,
    pub(crate) table: Option<RouteTable>,
    /// A table that was asked for and never confirmed: whether it is in force, only a look can tell.
    pub(crate) table_in_doubt: Option<RouteTable>,
    /// The table of the preview's route, as it was last seen or set.
    pub(crate) preview: Option<RouteTable>,
    /// The shares in force, as far as this deploy set them.
    pub(crate) routing: Option<Routing>,
    /// Steps of the forward program that were begun, for the undo.
    pub(crate) begun: u32,
    pub(crate) promoted: bool,
    pub(crate) watch: Option<WatchState>,
    pub(crate) timed_out: bool,
    pub(crate) undo: Option<UndoState>,
    /// How the deploy's own program ended; `None` while it goes on.
    pub(crate) ended: Option<Result<(), Failure>>,
    /// An undo of it failed before, and is tried again.
    pub(crate) undo_again: bool,
    /// Skip the current soak, or all of them.
    pub(crate) skip_soak: bool,
    pub(crate) skip_all_soaks: bool,
}

/// A position in a program.
#[derive(Default)]
pub(crate) struct Cursor {
    /// The step under way; `None` before the first.
    pub(crate) pc: Option<u32>,
    /// Which action of the step is next; a step is one to four actions.
    pub(crate) micro: u32,
    pub(crate) action: Option<ActionId>,
    pub(crate) failed: Option<Failure>,
    pub(crate) block_ended: Option<Result<(), Failure>>,
    pub(crate) soak: Option<Soak>,
    pub(crate) approval_asked: bool,
    /// A transient fault of an undo: when it is tried again, and how often it was.
    pub(crate) retry_at_ms: Option<u64>,
    pub(crate) retries: u32,
}

/// Watched time under way.
#[derive(Clone, Copy)]
pub(crate) struct Soak {
    pub(crate) due_ms: u64,
    pub(crate) due: bool,
}

/// A deploy goes back.
pub(crate) struct UndoState {
    pub(crate) steps: Vec<ProgramStep>,
    pub(crate) reason: Fault,
    pub(crate) outcome: Outcome,
    pub(crate) timed_out: bool,
    pub(crate) ended: Option<Result<(), Fault>>,
}

/// A watch under way.
#[derive(Default)]
pub(crate) struct WatchState {
    pub(crate) sampling: Option<ActionId>,
    pub(crate) sample_due: bool,
    pub(crate) samples: Option<Vec<Sample>>,
    /// When the last samples were judged.
    pub(crate) judged_at_ms: Option<u64>,
    /// Since when each rule has held without a break.
    pub(crate) held_since_ms: BTreeMap<u32, u64>,
    /// Since when a rule had no data and the policy is to hold.
    pub(crate) hold_since_ms: Option<u64>,
    /// Values of stable while it last had users.
    pub(crate) last_stable: BTreeMap<MetricRef, Value>,
    pub(crate) breach: Option<Vec<Finding>>,
}

/// All of it.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) now_ms: u64,
    pub(crate) opened: bool,
    pub(crate) nodes: Vec<NodeState>,
    pub(crate) dependents: Vec<Vec<NodeId>>,
    /// Nodes that may have something to decide.
    pub(crate) dirty: VecDeque<Option<NodeId>>,
    pub(crate) is_dirty: BTreeSet<Option<NodeId>>,
    /// Stages that could start but for `max_parallel`.
    pub(crate) ready: VecDeque<NodeId>,
    pub(crate) running_stages: u32,
    pub(crate) finished: usize,
    pub(crate) worst: Option<(Outcome, NodeId)>,
    /// Steps that have succeeded.
    pub(crate) effects: u64,
    /// Gates and stages that wait for an approval.
    pub(crate) asking: BTreeSet<NodeId>,
    /// Nodes in which a `rollback stage` is under way.
    pub(crate) rollbacks: BTreeSet<Option<NodeId>>,
    /// Stages that were, or are, taken back because a hook asked for it.
    pub(crate) late_undos: BTreeSet<NodeId>,
    /// Why a `rollback stage` of a hook did not succeed.
    pub(crate) late_failed: Option<Fault>,
    pub(crate) in_flight: BTreeMap<ActionId, Action>,
    pub(crate) cancel_asked: BTreeSet<ActionId>,
    pub(crate) last_action: u64,
    pub(crate) timers: BTreeSet<(u64, TimerId)>,
    pub(crate) timer_due: HashMap<TimerId, u64>,
    pub(crate) paused: bool,
    pub(crate) cancelled: Option<Fault>,
    /// Hooks of the file.
    pub(crate) tail: Work,
    /// How the stages had ended when the first of them began: that is what they answer.
    pub(crate) tail_answers: Option<Outcome>,
    pub(crate) ended: Option<(Outcome, Option<Fault>)>,
}

impl State {
    pub(crate) fn mark(&mut self, node: Option<NodeId>) {
        if self.is_dirty.insert(node) {
            self.dirty.push_back(node);
        }
    }

    /// Those who wait for an undo look again: hooks that asked for one, and undos whose turn it may be.
    pub(crate) fn wake_rollbacks(&mut self) {
        let waiting: Vec<_> =
            self.rollbacks.iter().copied().chain(self.late_undos.iter().copied().map(Some)).collect();
        for node in waiting {
            self.mark(node);
        }
        self.mark(None);
    }

    pub(crate) fn node(&self, id: NodeId) -> Option<&NodeState> {
        self.nodes.get(id.0 as usize)
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> Option<&mut NodeState> {
        self.nodes.get_mut(id.0 as usize)
    }

    pub(crate) fn work(&self, node: Option<NodeId>) -> Option<&Work> {
        match node {
            Some(id) => self.node(id)?.work.as_deref(),
            None => Some(&self.tail),
        }
    }

    pub(crate) fn work_mut(&mut self, node: Option<NodeId>) -> Option<&mut Work> {
        match node {
            Some(id) => self.node_mut(id)?.work.as_deref_mut(),
            None => Some(&mut self.tail),
        }
    }

    pub(crate) fn set_timer(&mut self, timer: TimerId, due_ms: u64) {
        self.clear_timer(&timer);
        self.timers.insert((due_ms, timer.clone()));
        self.timer_due.insert(timer, due_ms);
    }

    /// A node has one timer for all its approvals: it is that of the first that is due among those that nobody gave yet.
    pub(crate) fn arm_expiry(&mut self, node: NodeId) {
        let timer = TimerId { node: Some(node), purpose: TimerPurpose::ApprovalExpires };
        let approvals = self.work(Some(node)).map_or(&[][..], |work| &work.gate.approvals);
        let open = approvals.iter().filter(|approval| !approval.expired && !approval.is_given());
        match open.filter_map(|approval| approval.expires_at_ms).min() {
            Some(due_ms) => self.set_timer(timer, due_ms),
            None => self.clear_timer(&timer),
        }
    }

    pub(crate) fn clear_timer(&mut self, timer: &TimerId) {
        if let Some(due_ms) = self.timer_due.remove(timer) {
            self.timers.remove(&(due_ms, timer.clone()));
        }
    }

    /// All timers of a node, when it ends.
    pub(crate) fn clear_timers_of(&mut self, node: Option<NodeId>) {
        let gone: Vec<_> = self.timer_due.keys().filter(|timer| timer.node == node).cloned().collect();
        for timer in gone {
            self.clear_timer(&timer);
        }
    }
}

impl DeployState {
    pub(crate) fn instances(&self, side: Role) -> &Vec<Instance> {
        match side {
            Role::Candidate => &self.candidate,
            Role::Stable => &self.stable,
        }
    }

    pub(crate) fn instances_mut(&mut self, side: Role) -> &mut Vec<Instance> {
        match side {
            Role::Candidate => &mut self.candidate,
            Role::Stable => &mut self.stable,
        }
    }

    /// The steps that are carried out now: those of the undo if it goes back.
    pub(crate) fn steps(&self) -> &[ProgramStep] {
        match (&self.undo, &self.program) {
            (Some(undo), _) => &undo.steps,
            (None, Some(program)) => &program.steps,
            (None, None) => &[],
        }
    }
}
