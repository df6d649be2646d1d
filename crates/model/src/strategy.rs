//! How versions change over, as the plan holds it. What each strategy does is `machine`'s business.

use crate::expr::Expr;
use crate::plan::Approval;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A strategy with all its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Batch by batch.
    Rolling(Rolling),
    /// A whole second set, then one switch.
    BlueGreen(BlueGreen),
    /// A growing share of users.
    Canary(Canary),
    /// Stop, start.
    Recreate,
}

impl Strategy {
    /// The word of the language.
    pub fn kind(&self) -> StrategyKind {
        match self {
            Strategy::Rolling(_) => StrategyKind::Rolling,
            Strategy::BlueGreen(_) => StrategyKind::BlueGreen,
            Strategy::Canary(_) => StrategyKind::Canary,
            Strategy::Recreate => StrategyKind::Recreate,
        }
    }
}

/// The strategies without their settings: the key of the capability table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each is the word of the language")]
pub enum StrategyKind {
    Rolling,
    BlueGreen,
    Canary,
    Recreate,
}

impl StrategyKind {
    /// All of them.
    pub const ALL: [StrategyKind; 4] =
        [StrategyKind::Rolling, StrategyKind::BlueGreen, StrategyKind::Canary, StrategyKind::Recreate];

    /// The word of the language.
    pub fn as_str(self) -> &'static str {
        match self {
            StrategyKind::Rolling => "rolling",
            StrategyKind::BlueGreen => "blue_green",
            StrategyKind::Canary => "canary",
            StrategyKind::Recreate => "recreate",
        }
    }
}

/// A number of instances: absolute, or a share of the wanted ones, rounded up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Count {
    /// So many.
    Instances(u32),
    /// This share of the wanted instances, in percent.
    Percent(f64),
}

impl Count {
    /// How many of `wanted` that is, rounded up, at most `u32::MAX`.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to be in range first"
    )]
    pub fn of(self, wanted: u32) -> u32 {
        match self {
            Count::Instances(count) => count,
            Count::Percent(share) => {
                (f64::from(wanted) * share / 100.0).ceil().clamp(0.0, f64::from(u32::MAX)) as u32
            }
        }
    }
}

/// `rolling { … }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rolling {
    /// Instances replaced at a time.
    pub batch: Count,
    /// Watched time between two batches.
    pub pause_ms: u64,
    /// Watched time in which a new instance counts as failed if it fails.
    pub monitor_ms: u64,
    /// Whether the new or the old goes first.
    pub order: Order,
    /// Share of new instances that may fail before the deploy is undone, in percent.
    pub max_failures_percent: f64,
    /// Instances that may be missing from the wanted number; with `stop_first` one batch if unset.
    pub max_unavailable: Option<Count>,
    /// Instances above the wanted number; with `start_first` one batch if unset.
    pub max_surge: Option<Count>,
    /// What a platform that rolls by itself does when too many fail; if unset it goes back, or does what a compose file says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_action: Option<FailureAction>,
    /// How such a platform goes back, where that is another way than forward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back: Option<RollingBack>,
}

impl Default for Rolling {
    /// What `rolling` without settings means.
    fn default() -> Self {
        Self {
            batch: Count::Instances(1),
            pause_ms: 0,
            monitor_ms: 5_000,
            order: Order::StartFirst,
            max_failures_percent: 0.0,
            max_unavailable: None,
            max_surge: None,
            failure_action: None,
            back: None,
        }
    }
}

/// What a platform that rolls by itself does when too many new instances fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureAction {
    /// It goes back to what was before.
    Rollback,
    /// It stays where it is.
    Pause,
    /// It goes on.
    Continue,
}

/// `rollback_config { … }`: how a platform that rolls by itself goes back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RollingBack {
    /// Instances replaced at a time.
    pub batch: Count,
    /// Between two batches.
    pub pause_ms: u64,
    /// Time in which an instance counts as failed if it fails.
    pub monitor_ms: u64,
    /// Whether the old or the new goes first.
    pub order: Order,
    /// Share of instances that may fail, in percent.
    pub max_failures_percent: f64,
    /// What is done when more fail: never `rollback`.
    pub failure_action: FailureAction,
}

/// How a platform is to roll by itself: `rolling { … }` with counts in instances.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RollPolicy {
    /// Instances replaced at a time, at least 1.
    pub batch: u32,
    /// Between two batches.
    pub pause_ms: u64,
    /// Time in which a new instance counts as failed if it fails.
    pub monitor_ms: u64,
    /// Whether the new or the old goes first.
    pub order: Order,
    /// Share of new instances that may fail before the roll is given up, in percent.
    pub max_failures_percent: f64,
    /// Instances that may be missing from the wanted number.
    pub max_unavailable: u32,
    /// Instances above the wanted number.
    pub max_surge: u32,
    /// The way back: a failure holds the roll where it is and is told, and the platform does not turn round by itself.
    pub undo: bool,
    /// What the platform does when too many fail; if unset it goes back, or does what a compose file says.
    #[serde(default)]
    pub failure_action: Option<FailureAction>,
    /// How the platform goes back, with a batch in instances, where that is another way than forward.
    #[serde(default)]
    pub back: Option<RollingBack>,
    /// Releases of which nothing runs that are kept afterwards.
    #[serde(default = "retained")]
    pub retain: u32,
}

/// What runs of before have kept.
const fn retained() -> u32 {
    5
}

impl Default for RollPolicy {
    /// One at a time, the new one first, no failure allowed.
    fn default() -> Self {
        Self {
            batch: 1,
            pause_ms: 0,
            monitor_ms: 0,
            order: Order::StartFirst,
            max_failures_percent: 0.0,
            max_unavailable: 0,
            max_surge: 1,
            undo: false,
            failure_action: None,
            back: None,
            retain: retained(),
        }
    }
}

/// Which goes first in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// New instances are ready before old ones go.
    StartFirst,
    /// Old instances go before new ones start.
    StopFirst,
}

/// `blue_green { … }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlueGreen {
    /// How long the old release stays ready after the switch.
    pub keep_old_ms: u64,
    /// What becomes of it then.
    pub old: OldRelease,
    /// Where the candidate can be seen before the switch: `HOST:PORT` or `:PORT`.
    pub preview: Option<String>,
}

/// What becomes of the old release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OldRelease {
    /// It is removed with all that it had.
    Remove,
    /// It is stopped and kept for a rollback.
    Stop,
    /// It is scaled to no instances.
    ScaleToZero,
}

/// `canary { … }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    /// Candidate instances while it is a canary; the share of each step if unset.
    pub instances: Option<Count>,
    /// Environment that only canary instances have; it ends with the promotion.
    pub env: BTreeMap<String, Expr>,
    /// Users who get the candidate through every step.
    pub rules: Vec<RouteMatch>,
    /// Shares, rising.
    pub steps: Vec<CanaryStep>,
    /// Whether a user stays on the release that answered first.
    pub sticky: Sticky,
}

/// One step of a canary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CanaryStep {
    /// The candidate's share, in basis points: 10 % is 1000.
    pub weight_bp: u32,
    /// What ends the step.
    pub hold: Hold,
}

/// What ends a step of a canary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// So much watched time.
    For {
        /// Milliseconds.
        ms: u64,
    },
    /// A person.
    UntilApproved(Approval),
}

/// Which requests a rule catches.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteMatch {
    /// The header has this value exactly; names without case.
    Header {
        /// Header name, lower case.
        name: String,
        /// Value.
        value: String,
    },
    /// The cookie has this value exactly.
    Cookie {
        /// Cookie name.
        name: String,
        /// Value.
        value: String,
    },
}

/// Whether a user stays on the release that answered first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sticky {
    /// No.
    #[default]
    None,
    /// By a cookie.
    Cookie,
    /// By the client's address.
    ClientAddress,
}
