//! How things end.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How a stage, a gate or a run ends. Ordered by how bad it is for a run: the worst one is the outcome of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Not needed, or something it needs did not succeed.
    Skipped,
    /// Done as asked.
    Succeeded,
    /// Stopped by a person or a newer run.
    Cancelled,
    /// The new release was bad; the old one serves.
    RolledBack,
    /// Took longer than it may.
    TimedOut,
    /// Did not do what was asked.
    Failed,
    /// The undo failed too: a person is needed now.
    RollbackFailed,
}

impl Outcome {
    /// As pipelines and JSON spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Skipped => "skipped",
            Outcome::Succeeded => "succeeded",
            Outcome::Cancelled => "cancelled",
            Outcome::RolledBack => "rolled_back",
            Outcome::TimedOut => "timed_out",
            Outcome::Failed => "failed",
            Outcome::RollbackFailed => "rollback_failed",
        }
    }

    /// All of them, best first.
    pub const ALL: [Outcome; 7] = [
        Outcome::Skipped,
        Outcome::Succeeded,
        Outcome::Cancelled,
        Outcome::RolledBack,
        Outcome::TimedOut,
        Outcome::Failed,
        Outcome::RollbackFailed,
    ];

    /// Reads what `as_str` writes.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == text)
    }

    /// The exit code of `cdpipe run` for a run that ended like this.
    pub fn exit_code(self) -> u8 {
        match self {
            Outcome::Skipped | Outcome::Succeeded => 0,
            Outcome::Cancelled | Outcome::TimedOut | Outcome::Failed => 1,
            Outcome::RolledBack => 3,
            Outcome::RollbackFailed => 4,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
