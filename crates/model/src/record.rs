//! Journal records: inputs and decisions. Folding them gives the state of a run; nothing is decided again.

use crate::action::{Action, ActionResult, StepRef};
use crate::fault::Fault;
use crate::id::{ActionId, NodeId, RunId};
use crate::measure::Sample;
use crate::outcome::Outcome;
use crate::plan::Plan;
use crate::program::Program;
use serde::{Deserialize, Serialize};

/// Version of the record format. A journal of a newer one is refused.
pub const JOURNAL_VERSION: u32 = 1;

/// The first entry of a journal: what is run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunHeader {
    /// `JOURNAL_VERSION` of the writer.
    pub journal_version: u32,
    /// Version of cdpipe that wrote it.
    pub cdpipe_version: String,
    /// Which run.
    pub run: RunId,
    /// Milliseconds since 1970.
    pub started_at_ms: u64,
    /// Who started it: `user@host`.
    pub started_by: String,
    /// Absolute path of the pipeline's file.
    pub file: String,
    /// The texts of the sources, in the order of `Plan::sources`.
    pub texts: Vec<String>,
    /// The frozen plan.
    pub plan: Plan,
    /// Facts of git when it was planned: sha, branch, tag; "" where absent.
    pub git: GitFacts,
}

/// Facts of git.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitFacts {
    /// Commit.
    pub sha: String,
    /// Branch.
    pub branch: String,
    /// Tag that points at the commit.
    pub tag: String,
    /// When the commit was made, milliseconds since 1970; for lead times.
    pub committed_at_ms: Option<u64>,
}

/// What a person or another process asks of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// An approval is given.
    Approve {
        /// Gate or stage that waits.
        node: NodeId,
        /// In whose name: one of those that may give it, a person or a group.
        by: String,
        /// Which person, so that two of one group count as two; "" is the same as `by`.
        #[serde(default)]
        person: String,
        /// The effect hash that the person saw; it counts for no other one. "" is whichever is asked for.
        #[serde(default)]
        effect_hash: String,
    },
    /// An approval is refused.
    Reject {
        /// Gate or stage that waits.
        node: NodeId,
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
    /// Start nothing new.
    Pause {
        /// Who.
        by: String,
    },
    /// Go on after a pause; of a run that ended with a rollback that failed: try that rollback again.
    Continue {
        /// Who.
        by: String,
    },
    /// Skip what is left of the current soak, or of all (`full`).
    Promote {
        /// Which stage.
        node: NodeId,
        /// All that is left.
        full: bool,
        /// Who.
        by: String,
    },
    /// Run a failed stage again.
    Retry {
        /// Which.
        node: NodeId,
        /// Who.
        by: String,
    },
    /// Stop, and undo what is under way.
    Cancel {
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
    /// Open a gate without its conditions.
    Override {
        /// Which.
        node: NodeId,
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
}

/// Which timer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TimerId {
    /// The stage or gate it belongs to; `None` for the run.
    pub node: Option<NodeId>,
    /// What it is for.
    pub purpose: TimerPurpose,
}

/// What a timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimerPurpose {
    /// The stage's or gate's time is over.
    NodeTimeout,
    /// The deploy's time is over.
    DeployTimeout,
    /// The undo's time is over.
    UndoTimeout,
    /// Watched time is over, or a `wait`.
    Soak,
    /// The next sample of a watch.
    Sample,
    /// The next attempt.
    Retry,
    /// An approval expires.
    ApprovalExpires,
    /// Look again whether a window is open or a freeze is over.
    Window,
}

/// One entry of the journal after the header.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    // -- inputs --
    /// An engine took the run: at its start, or to resume it.
    Opened {
        /// Milliseconds since 1970.
        at_ms: u64,
        /// `user@host pid N`.
        by: String,
        /// Whether the run had been begun before.
        resumed: bool,
    },
    /// Time passes: a timer is due.
    TimerFired {
        /// Milliseconds since 1970.
        at_ms: u64,
        /// Which.
        timer: TimerId,
    },
    /// An action came back.
    Returned {
        /// Milliseconds since 1970.
        at_ms: u64,
        /// Which.
        action: ActionId,
        /// With what.
        result: ActionResult,
    },
    /// Someone asked for something.
    Signalled {
        /// Milliseconds since 1970.
        at_ms: u64,
        /// What.
        signal: Signal,
    },

    // -- decisions --
    /// A stage or gate begins.
    NodeStarted {
        /// Which.
        node: NodeId,
        /// From 1.
        attempt: u32,
    },
    /// A stage or gate ends.
    NodeFinished {
        /// Which.
        node: NodeId,
        /// How.
        outcome: Outcome,
        /// Why, where it is not success.
        reason: Option<Fault>,
    },
    /// A step begins.
    StepStarted {
        /// Which.
        step: StepRef,
        /// From 1.
        attempt: u32,
    },
    /// A step ends; a failed one may be tried again.
    StepFinished {
        /// Which.
        step: StepRef,
        /// How.
        outcome: Outcome,
        /// Why, where it is not success.
        reason: Option<Fault>,
    },
    /// An action is about to be done. For an effect this is durable before it is done.
    Intent {
        /// What.
        action: Action,
    },
    /// An action under way should stop; it still returns.
    CancelAsked {
        /// Which.
        action: ActionId,
    },
    /// A deploy has its program.
    Programmed {
        /// The deploy's step.
        step: StepRef,
        /// What will be done; no steps if the release serves already.
        program: Box<Program>,
    },
    /// The next step of the program begins; one past the end when it is done.
    ProgramAt {
        /// The deploy's step.
        step: StepRef,
        /// Index in the program's steps.
        pc: u32,
    },
    /// A timer is set, or moved.
    TimerSet {
        /// Which.
        timer: TimerId,
        /// When it is due, milliseconds since 1970.
        due_ms: u64,
    },
    /// A timer is not needed any more.
    TimerCleared {
        /// Which.
        timer: TimerId,
    },
    /// An approval is asked for.
    ApprovalAsked {
        /// The gate or stage.
        node: NodeId,
        /// Who may give it.
        by: Vec<String>,
        /// How many.
        quorum: u32,
        /// What it is bound to.
        effect_hash: String,
        /// When it expires, milliseconds since 1970.
        expires_at_ms: Option<u64>,
    },
    /// What a watch made of its samples.
    Verdict {
        /// The deploy's or the watch's step.
        step: StepRef,
        /// What was measured.
        samples: Vec<Sample>,
        /// What each rule that did not pass said.
        findings: Vec<Finding>,
    },
    /// A deploy goes back.
    Undoing {
        /// The deploy's step.
        step: StepRef,
        /// Why.
        reason: Fault,
        /// What the deploy ends as if the undo succeeds.
        outcome: Outcome,
        /// What will be done.
        program: Vec<crate::program::ProgramStep>,
    },
    /// The effects of a whole stage are taken back, newest first. Of a stage that is under way, with `late` false: it is stopped first, and
    /// another record of this kind follows when its steps have ended.
    UndoStarted {
        /// Which stage.
        node: NodeId,
        /// Why.
        reason: Fault,
        /// After the stage had ended: its locks are taken again first.
        late: bool,
    },
    /// A hook begins.
    HookStarted {
        /// The stage or gate; `None` for the file.
        node: Option<NodeId>,
        /// Index of the hook.
        hook: u32,
    },
    /// A hook ends.
    HookFinished {
        /// The stage or gate; `None` for the file.
        node: Option<NodeId>,
        /// Index of the hook.
        hook: u32,
        /// Why it did not do all it should.
        failed: Option<Fault>,
    },
    /// A run that waits for a person gives its process back, to be resumed.
    Suspended {
        /// What it waits for.
        waiting: String,
    },
    /// The end.
    RunFinished {
        /// How.
        outcome: Outcome,
        /// Why, where it is not success.
        reason: Option<Fault>,
    },
}

/// What a rule of a watch said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Index of the rule.
    pub rule: u32,
    /// What it means.
    pub verdict: RuleVerdict,
    /// The condition with its values: `candidate.error_rate 9% > max(2 * 1%, 1%) = 2%`.
    pub text: String,
}

/// What a rule means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleVerdict {
    /// It fired: roll back, or fail.
    Breach,
    /// It fired: say so.
    Warn,
    /// It holds, but not for long enough yet.
    Pending,
    /// There is no data for it.
    NoData,
}
