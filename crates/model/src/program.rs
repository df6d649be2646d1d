//! The step program of one deploy: what a strategy compiles to. One interpreter runs every program on every target; `plan` prints
//! it, a resume is a position in it.

use crate::id::ReleaseId;
use crate::observe::{Observation, Role};
use crate::plan::Approval;
use crate::release::ReleaseSpec;
use crate::strategy::OldRelease;
use serde::{Deserialize, Serialize};

/// A program with what it was made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// The release being brought in, as it will stand at the end.
    pub candidate: ReleaseSpec,
    /// The release that served when the program was made; `None` on a first deploy.
    pub stable: Option<ReleaseSpec>,
    /// Wanted instances of the candidate at the end.
    pub replicas: u32,
    /// Instances stable had.
    pub stable_replicas: u32,
    /// What was seen when the program was made: undo restores it.
    pub seen: Observation,
    /// In order.
    pub steps: Vec<ProgramStep>,
    /// What the target or the router can't do exactly as written, one sentence each.
    pub notes: Vec<String>,
}

impl Program {
    /// Id of the candidate.
    pub fn candidate_id(&self) -> ReleaseId {
        self.candidate.id()
    }
}

/// One step of a program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgramStep {
    /// Remove what a dead run left: releases that are neither candidate nor stable and have instances.
    Sweep {
        /// Which.
        release: ReleaseId,
    },
    /// Have at least this many instances of this side; starts missing ones, stops none.
    Ensure {
        /// Which side.
        side: Role,
        /// How many.
        count: u32,
        /// With the canary's extra environment.
        canary: bool,
    },
    /// Wait until that many instances of this side are ready; failing that the deploy fails.
    Ready {
        /// Which side.
        side: Role,
        /// How many.
        count: u32,
        /// How many of them may fail to become ready.
        may_fail: u32,
    },
    /// Have the router send these shares, and observe that it does.
    Route(Routing),
    /// Have at most this many instances of this side: take the rest out of the route, drain them, then stop them.
    Shrink {
        /// Which side.
        side: Role,
        /// How many stay.
        count: u32,
    },
    /// Show the candidate at the strategy's preview address, or stop doing so (`blue_green`).
    Preview {
        /// Whether it is shown.
        open: bool,
    },
    /// The deploy's `verify` block.
    Verify,
    /// Begin to watch.
    WatchOn,
    /// Watched time.
    Soak {
        /// How long.
        ms: u64,
        /// For people: `canary 10%`, `after`.
        label: String,
    },
    /// A person.
    Approve(Approval),
    /// The deploy's `validate` block.
    Validate,
    /// From here on the candidate is what serves: outcomes before this undo by routing back, and the old release may go.
    Promote,
    /// End the watch.
    WatchOff,
    /// The old side is no longer needed. Only after the route was observed to be without it, and drained.
    Retire {
        /// Which side.
        side: Role,
        /// What becomes of it.
        old: OldRelease,
    },
    /// The platform rolls by itself: one long-lived effect that is probed and undone as a whole.
    Roll {
        /// To which side.
        side: Role,
        /// How many instances.
        count: u32,
    },
    /// The way back, where this side should be whole already: start again what was lost meanwhile (a machine that died), have users
    /// reach exactly what is ready, and check that ready equals wanted.
    Heal {
        /// Which side.
        side: Role,
        /// How many.
        count: u32,
    },
    /// Check that ready equals wanted on this side.
    Settled {
        /// Which side.
        side: Role,
        /// How many.
        count: u32,
    },
}

/// Shares of traffic. They are symbolic: which instances get them is filled in from what is ready at that moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Routing {
    /// Nobody: the route answers 503 (`recreate`).
    Closed,
    /// By weight.
    Weighted {
        /// The candidate's share in basis points; the rest is stable's.
        candidate_bp: u32,
        /// Whether the strategy's header and cookie rules are in force.
        rules: bool,
    },
    /// By the number of ready instances on each side (`rolling`).
    ByInstances,
}
