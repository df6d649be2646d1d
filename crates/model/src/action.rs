//! What the machine asks the engine to do, and what comes back.

use crate::expr::Symbol;
use crate::fault::Fault;
use crate::id::{ActionId, EnvName, NodeId, ReleaseId, ServiceName};
use crate::measure::{MeasureRequest, Sample};
use crate::objects::{ApplySpec, ObjectWas, Surveyed};
use crate::observe::{Instance, Observation, RouteTable};
use crate::plan::{Channel, FlagProvider, LockKey};
use crate::release::ReleaseSpec;
use crate::strategy::{OldRelease, RollPolicy};
use crate::value::Value;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which step an action or a record belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StepRef {
    /// The stage or gate; `None` for a hook of the file.
    pub node: Option<NodeId>,
    /// Which list of steps.
    pub block: Block,
    /// Index in that list.
    pub index: u32,
}

/// A list of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// The stage's own, or a gate's checks.
    Main,
    /// `verify` of the deploy at this index of the main block.
    Verify(u32),
    /// `validate` of the deploy at this index of the main block.
    Validate(u32),
    /// `undo` at this index of the main block.
    Undo(u32),
    /// The hook of this index.
    Hook(u32),
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Action {
    /// Its number in the run.
    pub id: ActionId,
    /// For which step.
    pub step: StepRef,
    /// How long it may take.
    pub deadline_ms: u64,
    /// What.
    pub kind: ActionKind,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionKind {
    // -- reads: a resume asks again --
    /// Find what the artifact is (digest, rendered manifests).
    Resolve {
        /// Where.
        environment: EnvName,
        /// The release without digests.
        spec: Box<ReleaseSpec>,
    },
    /// See what is there: target and router.
    Observe {
        /// Where.
        environment: EnvName,
        /// What.
        service: ServiceName,
        /// Its name on the platform, where that differs.
        platform_name: Option<String>,
        /// Its route, if it has one.
        route: Option<crate::service::Route>,
    },
    /// Wait until instances are ready.
    AwaitReady {
        /// Where.
        environment: EnvName,
        /// Of which release.
        release: Box<ReleaseSpec>,
        /// How many.
        count: u32,
        /// How many of them may fail.
        may_fail: u32,
    },
    /// Wait until the router does what the table says.
    AwaitRouted {
        /// Where.
        environment: EnvName,
        /// What it should do.
        table: Box<RouteTable>,
    },
    /// Wait until these instances have no request in flight; when the drain time is over what is left is cut.
    AwaitDrained {
        /// Where.
        environment: EnvName,
        /// Whose route.
        route: crate::service::Route,
        /// Of which release.
        release: ReleaseId,
        /// Which instances.
        instances: Vec<Instance>,
        /// How long they may take.
        drain_ms: u64,
    },
    /// Read manifests, and what is there of their objects.
    Survey {
        /// Where.
        environment: EnvName,
        /// Which set.
        spec: Box<ApplySpec>,
    },
    /// Ask for numbers, all at once.
    Measure {
        /// Where.
        environment: Option<EnvName>,
        /// What.
        requests: Vec<MeasureRequest>,
    },

    // -- effects: the intent is durable before they are done, a resume probes them --
    /// Take the locks; waits until they are free.
    Lock {
        /// Which, in order.
        keys: Vec<LockKey>,
        /// How long the lease lasts without renewal.
        lease_ms: u64,
    },
    /// Give the locks back.
    Unlock {
        /// Which.
        keys: Vec<LockKey>,
    },
    /// Have at least so many instances.
    Ensure {
        /// Where.
        environment: EnvName,
        /// Of which release.
        release: Box<ReleaseSpec>,
        /// How many.
        count: u32,
        /// Extra environment of canary instances.
        canary_env: BTreeMap<String, Value>,
    },
    /// Stop these instances. They are out of the route and drained.
    Stop {
        /// Where.
        environment: EnvName,
        /// Of which release.
        release: Box<ReleaseSpec>,
        /// Which instances; all if empty.
        instances: Vec<Instance>,
        /// What becomes of the release when none is left; `None` keeps it as it is.
        old: Option<OldRelease>,
        /// Former releases to keep; older ones are pruned.
        retain: u32,
    },
    /// Have the router do this.
    Route {
        /// Where.
        environment: EnvName,
        /// What it should do.
        table: Box<RouteTable>,
        /// What was seen before: someone else's change since then is `moved`.
        seen: Option<Box<RouteTable>>,
    },
    /// Have the platform roll to this release by itself.
    Roll {
        /// Where.
        environment: EnvName,
        /// To which release.
        release: Box<ReleaseSpec>,
        /// How many instances.
        count: u32,
        /// The fence that was seen before the deploy; `None` on the way back, where our own writes have moved it.
        fence: Option<u64>,
        /// How.
        #[serde(default)]
        policy: RollPolicy,
    },
    /// A shell command on this machine or where it says.
    Run(RunAction),
    /// A shell command inside an instance.
    Exec {
        /// Where.
        environment: EnvName,
        /// Of which release.
        release: Box<ReleaseSpec>,
        /// Which instance.
        instance: Instance,
        /// What.
        run: RunAction,
    },
    /// An HTTP request.
    Http {
        /// GET, POST, …
        method: String,
        /// Whole URL; may be a secret text.
        url: Value,
        /// Headers; values may be secret texts.
        headers: BTreeMap<String, Value>,
        /// Body; may be a secret text.
        body: Option<Value>,
        /// Status codes that are a success; empty means 200 to 299.
        expect_status: Vec<u16>,
        /// What the answer's body must contain.
        expect_body: Option<String>,
    },
    /// Set a feature flag and say what it was.
    SetFlag {
        /// Which provider; its expressions are evaluated.
        provider: Box<FlagProvider>,
        /// Which flag.
        flag: String,
        /// What it becomes; `None` removes it (the undo of a flag that was not there).
        value: Option<String>,
    },
    /// Send a message.
    Notify {
        /// Its shape.
        channel: Channel,
        /// Where to; mostly a secret text.
        url: Value,
        /// What it says.
        text: String,
        /// Headers; values may be secret texts.
        headers: BTreeMap<String, Value>,
        /// Fields for shapes that have them (`pipeline`, `run`, `stage`, `outcome`, `reason`).
        fields: BTreeMap<String, String>,
    },
    /// Apply manifests, and wait until what they make is ready.
    Apply {
        /// Where.
        environment: EnvName,
        /// Which set, with its files.
        spec: Box<ApplySpec>,
        /// Every object of it, as it was: the inverse.
        objects: Vec<ObjectWas>,
    },
    /// Have the objects of a set as they were.
    Unapply {
        /// Where.
        environment: EnvName,
        /// Which set.
        spec: Box<ApplySpec>,
        /// Every object of it, as it was.
        objects: Vec<ObjectWas>,
    },
}

/// A shell command with its values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunAction {
    /// Shell text.
    pub script: String,
    /// Environment, `CDPIPE_ARG_n` among it; values may be secret texts.
    pub env: BTreeMap<String, Value>,
    /// Working directory, relative to the pipeline's file.
    pub dir: Option<String>,
    /// Standard input.
    pub stdin: Option<Value>,
    /// Run it in a container of this image.
    pub image: Option<String>,
    /// Where a container or job runs.
    pub environment: Option<EnvName>,
    /// Names that it may write to `$CDPIPE_OUTPUT`.
    pub outputs: Vec<String>,
}

impl ActionKind {
    /// Whether it changes anything. The intent of one that does is journaled before it is done, and probed at a resume.
    pub fn is_effect(&self) -> bool {
        !matches!(
            self,
            ActionKind::Resolve { .. }
                | ActionKind::Observe { .. }
                | ActionKind::AwaitReady { .. }
                | ActionKind::AwaitRouted { .. }
                | ActionKind::AwaitDrained { .. }
                | ActionKind::Survey { .. }
                | ActionKind::Measure { .. }
        )
    }

    /// Whether doing it again has the same end as doing it once, so that a resume may simply do it again. True of everything
    /// that says what should be there; not of commands, requests and messages.
    pub fn is_convergent(&self) -> bool {
        !matches!(
            self,
            ActionKind::Run(_)
                | ActionKind::Exec { .. }
                | ActionKind::Http { .. }
                | ActionKind::Notify { .. }
        )
    }

    /// Whether its intent must survive a power cut: effects on targets. The record of a command need only survive the end of
    /// the process.
    pub fn needs_sync(&self) -> bool {
        matches!(
            self,
            ActionKind::Ensure { .. }
                | ActionKind::Stop { .. }
                | ActionKind::Route { .. }
                | ActionKind::Roll { .. }
                | ActionKind::SetFlag { .. }
                | ActionKind::Apply { .. }
                | ActionKind::Unapply { .. }
                | ActionKind::Lock { .. }
        )
    }
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionResult {
    /// It was done.
    Done(Answer),
    /// It was not done, or did not succeed.
    Failed(Fault),
    /// Its deadline came. Whether it was done is not known.
    TimedOut(Fault),
    /// It was stopped because the step was cancelled.
    Cancelled,
    /// After a crash: nobody knows whether it was done.
    Unknown(Fault),
}

/// What an action that was done says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Nothing more.
    Nothing,
    /// The release with its digests.
    Resolved(Box<ReleaseSpec>),
    /// What is there.
    Observed(Box<Observation>),
    /// What an `apply` will change, as it is now.
    Surveyed(Box<Surveyed>),
    /// Instances of the release, as they are now.
    Instances(Vec<Instance>),
    /// In the order of the requests.
    Samples(Vec<Sample>),
    /// A command ended with 0.
    Exited {
        /// What it wrote to `$CDPIPE_OUTPUT`.
        outputs: BTreeMap<String, String>,
    },
    /// Status of an HTTP request.
    Status(u16),
    /// What the flag was before; `None` if it was not there or can't be read.
    FlagWas(Option<String>),
    /// Locks are held.
    Locked {
        /// A number that only grows, for fencing.
        epoch: u64,
    },
}

/// Values for symbols of expressions that the engine never sees; used by the machine and by tests.
pub type Bindings = BTreeMap<Symbol, Value>;
