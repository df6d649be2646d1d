//! The plan: a checked pipeline with its inputs filled in, as a DAG of stages and gates. It is frozen before anything happens and goes
//! into the header of the journal.

use crate::expr::Expr;
use crate::id::{EnvName, NodeId, ServiceName};
use crate::measure::MetricSet;
use crate::outcome::Outcome;
use crate::secret::SecretSource;
use crate::service::{Environment, Service};
use crate::strategy::Strategy;
use crate::value::{Type, Value};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A checked pipeline with its inputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The pipeline's name.
    pub name: String,
    /// Whether approvals need a person.
    pub mode: Mode,
    /// Stages that may run at a time.
    pub max_parallel: u32,
    /// What a second run of this pipeline does while one goes on.
    pub concurrency: Concurrency,
    /// The files it was read from, the pipeline's own first.
    pub sources: Vec<SourceFile>,
    /// Parameters with their values.
    pub inputs: BTreeMap<String, Value>,
    /// Secrets by name.
    pub secrets: BTreeMap<String, SecretSource>,
    /// Environments by name.
    pub environments: BTreeMap<EnvName, Environment>,
    /// Metrics by name.
    pub metrics: BTreeMap<String, MetricSet>,
    /// Flag providers by name.
    pub flags: BTreeMap<String, FlagProvider>,
    /// Stages and gates; every need points to another index. No cycles.
    pub nodes: Vec<Node>,
    /// `on … { }` of the file.
    pub hooks: Vec<Hook>,
    /// `sha256:…` of everything above, with what is known only later as symbols.
    pub hash: String,
}

impl Plan {
    /// The node of this id. Ids come from the plan itself, so there always is one; `None` is a bug of the caller.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize)
    }
}

/// Whether approvals need a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A person approves.
    Delivery,
    /// Approvals pass by themselves, except those with `always = true`.
    Deployment,
}

/// What a second run does while one goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Concurrency {
    /// It waits.
    #[default]
    Queue,
    /// It cancels the older one.
    CancelPrevious,
    /// It fails at once.
    Fail,
}

/// A file of the pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Path as given, or relative to the file that uses it.
    pub path: String,
    /// `sha256:…` of its bytes.
    pub hash: String,
}

/// Where something stands in the sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct SourcePos {
    /// Index in `Plan::sources`.
    pub source: u32,
    /// Line, from 1; 0 if it stands nowhere.
    pub line: u32,
    /// Character, from 1.
    pub col: u32,
}

/// A stage or a gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its index.
    pub id: NodeId,
    /// Its name; a matrix stage has one node for each value, named `build[linux]`.
    pub name: String,
    /// What must have ended before.
    pub needs: Vec<Need>,
    /// It is skipped if this is false.
    pub when: Option<Expr>,
    /// What it is.
    pub kind: NodeKind,
    /// Where it stands.
    pub at: SourcePos,
}

/// Something that must have ended before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// What.
    pub node: NodeId,
    /// `optional(x)`: `skipped` will do, failure won't.
    pub optional: bool,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// Does things.
    Stage(Box<Stage>),
    /// Holds back what needs it.
    Gate(Box<Gate>),
}

/// `stage NAME { … }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// In order.
    pub steps: Vec<Step>,
    /// For one attempt of the whole stage.
    pub timeout_ms: Option<u64>,
    /// Further attempts.
    pub retry: Retry,
    /// Locks held from its start to its end, in the order in which they are taken (sorted, so that two stages can't deadlock).
    pub locks: Vec<LockKey>,
    /// What `run` steps may write to `$CDPIPE_OUTPUT`.
    pub outputs: Vec<Output>,
    /// `on … { }` of the stage.
    pub hooks: Vec<Hook>,
    /// A step that fails after a finished deploy undoes that deploy too.
    pub undo_on_failure: bool,
}

/// What a lock protects.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockKey {
    /// One service in one environment; the lease lies on the target.
    Service {
        /// Where.
        environment: EnvName,
        /// Which.
        service: ServiceName,
    },
    /// A lock that the pipeline names (`lock = "database"`); the lease lies in the state directory.
    Named(String),
}

/// An output of a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Its key.
    pub name: String,
    /// How its text is read.
    pub ty: Type,
}

/// Further attempts after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Retry {
    /// How many more attempts.
    pub more: u32,
    /// Wait before the first of them; it doubles each time.
    pub delay_ms: u64,
    /// The longest wait.
    pub max_delay_ms: u64,
}

impl Default for Retry {
    fn default() -> Self {
        Self { more: 0, delay_ms: 1_000, max_delay_ms: 60_000 }
    }
}

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// A few words for people: `run npm test`, `deploy web to production`.
    pub label: String,
    /// What it does.
    pub kind: StepKind,
    /// For one attempt.
    pub timeout_ms: u64,
    /// Further attempts.
    pub retry: Retry,
    /// What a resume does if nobody knows whether it was done.
    pub on_interrupt: OnInterrupt,
    /// Where it stands.
    pub at: SourcePos,
}

/// What a resume does with a step of unknown outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnInterrupt {
    /// Asks on a terminal, else fails.
    #[default]
    Ask,
    /// Does it again.
    Retry,
    /// Fails.
    Fail,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// A shell command.
    Run(Run),
    /// A shell command inside an instance of the candidate.
    Exec(Run),
    /// An HTTP request.
    Http(HttpStep),
    /// A deploy.
    Deploy(Box<Deploy>),
    /// Manifests to a cluster.
    Apply(Apply),
    /// A feature flag.
    Flag(FlagStep),
    /// A message.
    Notify(Notify),
    /// A pause.
    Wait {
        /// How long.
        ms: u64,
    },
    /// A watch that stands alone.
    Watch(Watch),
    /// `rollback stage X`: undoes that stage.
    Rollback {
        /// Which; of a matrix the first.
        stage: NodeId,
        /// The other stages of a matrix.
        #[serde(default)]
        more: Vec<NodeId>,
    },
    /// `undo { }`: how to take back what the steps before it did.
    Undo {
        /// In order.
        steps: Vec<Step>,
    },
}

/// Manifests to a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Apply {
    /// Path or glob, relative to the pipeline's file.
    pub path: Expr,
    /// Where.
    pub environment: EnvName,
    /// Fields that others manage are taken over.
    #[serde(default)]
    pub force: bool,
    /// Objects of the set that no file has any more are deleted.
    #[serde(default)]
    pub prune: bool,
    /// Name of the set; by default it is made from the pipeline, the environment and the path.
    #[serde(default)]
    pub set: Option<String>,
    /// A step before this one writes the files: they are pinned when the step begins.
    #[serde(default)]
    pub generated: bool,
    /// The files as they were when the plan was made; empty where the path is known only later, or the files are `generated`.
    #[serde(default)]
    pub files: Vec<SourceFile>,
}

/// A shell command. Values never become shell text: each hole of the script is a reference to a shell variable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Shell text, in which each `${x}` has become `"${CDPIPE_ARG_n}"`.
    pub script: String,
    /// Values of `CDPIPE_ARG_1`, `CDPIPE_ARG_2`, …, in order.
    pub args: Vec<Expr>,
    /// Further environment; values may be secret texts.
    pub env: BTreeMap<String, Expr>,
    /// Working directory, relative to the pipeline's file.
    pub dir: Option<String>,
    /// Standard input; may be a secret text.
    pub stdin: Option<Expr>,
    /// Run it in a container of this image, where the deploy goes.
    pub image: Option<Expr>,
    /// Run it in this environment (`on = kubernetes` and the like).
    pub environment: Option<EnvName>,
}

/// `http "URL" { … }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HttpStep {
    /// GET, POST, …
    pub method: String,
    /// URL; one that starts with `/` is asked of the candidate.
    pub url: Expr,
    /// Headers, whose values may be secret texts.
    pub headers: BTreeMap<String, Expr>,
    /// Body; may be a secret text.
    pub body: Option<Expr>,
    /// Status codes that are a success; empty means 200 to 299.
    pub expect_status: Vec<u16>,
    /// What the answer's body must contain.
    pub expect_body: Option<Expr>,
}

/// `flag disable "x" with main`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlagStep {
    /// Which flag.
    pub flag: Expr,
    /// What it becomes.
    pub value: Expr,
    /// The provider's name in `Plan::flags`.
    pub provider: String,
}

/// A feature-flag provider.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlagProvider {
    /// An HTTP admin API. `$flag` and `$value` may stand in url and body.
    Http {
        /// URL to write to.
        url: Expr,
        /// PUT, POST, PATCH.
        method: String,
        /// Headers, whose values may be secret texts.
        headers: BTreeMap<String, Expr>,
        /// Body; JSON text.
        body: Option<Expr>,
        /// URL to read the value from, where there is one; its whole body, or the JSON value at `read_path`.
        read_url: Option<Expr>,
        /// Path into the JSON answer of `read_url`.
        read_path: Option<String>,
    },
    /// A Redis server.
    Redis {
        /// `redis://[user:password@]HOST:PORT[/DB]`; may be a secret text.
        url: Expr,
        /// Key with `$flag` in it.
        key: String,
    },
    /// A JSON file.
    File {
        /// Path.
        path: String,
    },
}

/// `notify slack(hook) "text"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Notify {
    /// What shape the message has.
    pub channel: Channel,
    /// Where it goes; mostly a secret.
    pub url: Expr,
    /// What it says.
    pub text: Expr,
    /// Headers, whose values may be secret texts.
    pub headers: BTreeMap<String, Expr>,
}

/// The shape of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// `{"text": …}`, as Slack, Mattermost and many others read it.
    Slack,
    /// A JSON document with text, run, pipeline, stage and outcome.
    Webhook,
}

/// `deploy SERVICE to ENV { … }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deploy {
    /// What, with the environment's and the deploy's settings merged in.
    pub service: Service,
    /// Where.
    pub environment: EnvName,
    /// How.
    pub strategy: Strategy,
    /// Before any user is routed to the candidate.
    pub verify: Vec<Step>,
    /// While traffic moves.
    pub watch: Option<Watch>,
    /// After the last step.
    pub validate: Vec<Step>,
    /// For the whole deploy; its expiry rolls back.
    pub timeout_ms: u64,
    /// For the undo.
    pub rollback_timeout_ms: u64,
}

/// `watch every 30s { … }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    /// Between two samples.
    pub every_ms: u64,
    /// How long it lasts, for one that stands alone as a step.
    pub for_ms: Option<u64>,
    /// Looked at in order.
    pub rules: Vec<Rule>,
    /// How long it goes on after the last change of traffic.
    pub after_ms: u64,
    /// What missing data means.
    pub no_data: NoData,
    /// How long `hold` may last before it rolls back.
    pub hold_for_ms: u64,
}

/// One rule of a watch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// What it does when it fires.
    pub action: RuleAction,
    /// When it fires.
    pub when: Expr,
    /// It fires only if it held for so long, in watched time.
    pub for_ms: Option<u64>,
    /// The condition as it was written.
    pub text: String,
    /// Where it stands.
    pub at: SourcePos,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleAction {
    /// Undoes the deploy.
    Rollback,
    /// Fails the step (in a watch that stands alone).
    Fail,
    /// Says so.
    Warn,
}

/// What missing data means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoData {
    /// Stay where we are.
    Hold,
    /// As if the rule had fired.
    Rollback,
    /// As if the rule had not fired.
    Pass,
}

/// `gate NAME { … }`: opens when every check has passed and every approval is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// People.
    pub approvals: Vec<Approval>,
    /// `metric … for 10m`.
    pub metrics: Vec<GateMetric>,
    /// `http`, `run`: each must succeed once.
    pub checks: Vec<Step>,
    /// `window "Mon..Fri 09:00-17:00 Europe/Madrid"`: open only in one of these.
    pub windows: Vec<crate::service::Freeze>,
    /// After so long it fails.
    pub timeout_ms: Option<u64>,
    /// `on … { }` of the gate.
    pub hooks: Vec<Hook>,
}

/// A metric condition of a gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateMetric {
    /// What must hold.
    pub when: Expr,
    /// For how long.
    pub for_ms: u64,
    /// Between two samples.
    pub every_ms: u64,
    /// What missing data means: `Hold` starts the time again, `Rollback` fails the gate.
    pub no_data: NoData,
    /// Of which service, if it measures one.
    pub service: Option<ServiceName>,
    /// Where.
    pub environment: Option<EnvName>,
    /// The condition as it was written.
    pub text: String,
}

/// An approval by people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Who may; empty means anyone who can write the state.
    pub by: Vec<String>,
    /// How many of them.
    pub quorum: u32,
    /// After so long it fails.
    pub expires_ms: Option<u64>,
    /// Also in deployment mode.
    pub always: bool,
}

/// `on failure or timeout { … }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hook {
    /// When it runs.
    pub events: Vec<HookEvent>,
    /// In order; a step that fails ends the hook and changes no outcome.
    pub steps: Vec<Step>,
}

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookEvent {
    /// Succeeded.
    Success,
    /// Failed or timed out; not a clean rollback.
    Failure,
    /// Rolled back.
    Rollback,
    /// The rollback failed.
    RollbackFailed,
    /// Cancelled.
    Cancel,
    /// After each of them.
    Always,
}

impl HookEvent {
    /// All of them.
    pub const ALL: [HookEvent; 6] = [
        HookEvent::Success,
        HookEvent::Failure,
        HookEvent::Rollback,
        HookEvent::RollbackFailed,
        HookEvent::Cancel,
        HookEvent::Always,
    ];

    /// The word of the language.
    pub fn as_str(self) -> &'static str {
        match self {
            HookEvent::Success => "success",
            HookEvent::Failure => "failure",
            HookEvent::Rollback => "rollback",
            HookEvent::RollbackFailed => "rollback_failed",
            HookEvent::Cancel => "cancel",
            HookEvent::Always => "always",
        }
    }

    /// Whether a hook for this event runs after that outcome.
    pub fn answers(self, outcome: Outcome) -> bool {
        match self {
            HookEvent::Always => outcome != Outcome::Skipped,
            HookEvent::Success => outcome == Outcome::Succeeded,
            HookEvent::Failure => matches!(outcome, Outcome::Failed | Outcome::TimedOut),
            HookEvent::Rollback => outcome == Outcome::RolledBack,
            HookEvent::RollbackFailed => outcome == Outcome::RollbackFailed,
            HookEvent::Cancel => outcome == Outcome::Cancelled,
        }
    }
}
