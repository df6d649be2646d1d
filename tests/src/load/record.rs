//! What is remembered of each request.

use super::Kind;
use std::fmt;
use std::time::Duration;

/// One request and what became of it. Times are the load's (see [`super::Clock`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Place in the order of arrival, from 0.
    pub index: u64,
    /// What was asked.
    pub kind: Kind,
    /// When the schedule wanted it sent.
    pub due: Duration,
    /// When it began to be sent, a connection to open included.
    pub start: Duration,
    /// When the answer's head was there: whoever chose the release had chosen by then.
    pub answered: Option<Duration>,
    /// When it was over.
    pub end: Duration,
    /// The answer's status.
    pub status: Option<u16>,
    /// The release that answered, by the answer's own word.
    pub release: Option<String>,
    /// The version that answered, by the answer's own word.
    pub version: Option<String>,
    /// Body or message bytes that were sent.
    pub sent_bytes: u64,
    /// Body or message bytes that came back and were what they had to be.
    pub verified_bytes: u64,
    /// Whether the connection had carried a request before.
    pub kept_alive: bool,
    /// What went wrong; `None` for a good answer.
    pub failure: Option<Failure>,
}

/// What went wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its class.
    pub kind: FailureKind,
    /// What happened, expected and found.
    pub detail: String,
}

/// The classes of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureKind {
    /// Never sent: too many were unanswered.
    Crowded,
    /// No connection.
    Connect,
    /// The connection ended or broke before the answer's head was there.
    Dropped,
    /// The answer or session broke off after it had begun.
    Cut,
    /// Not over in time.
    TimedOut,
    /// A status other than the one that was due.
    Status,
    /// Bytes other than those that were due.
    Corrupt,
    /// Another request's answer.
    Crossed,
    /// Earlier than it can have been made.
    Early,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Crowded => "crowded",
            Self::Connect => "no connection",
            Self::Dropped => "dropped",
            Self::Cut => "cut",
            Self::TimedOut => "timed out",
            Self::Status => "status",
            Self::Corrupt => "corrupt",
            Self::Crossed => "crossed",
            Self::Early => "early",
        })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (index, kind) = (self.index, self.kind.name());
        let (start, end) = (self.start.as_millis(), self.end.as_millis());
        write!(f, "#{index} {kind} {start}..{end} ms")?;
        match &self.release {
            Some(release) => write!(f, " by {release}")?,
            None => f.write_str(" by nobody known")?,
        }
        match &self.failure {
            None => f.write_str(": good"),
            Some(failure) => write!(f, ": {}: {}", failure.kind, failure.detail),
        }
    }
}

impl Record {
    pub(super) fn due(index: u64, kind: Kind, due: Duration) -> Self {
        Self {
            index,
            kind,
            due,
            start: due,
            answered: None,
            end: due,
            status: None,
            release: None,
            version: None,
            sent_bytes: 0,
            verified_bytes: 0,
            kept_alive: false,
            failure: None,
        }
    }

    pub(super) fn never_sent(self, now: Duration, failure: Failure) -> Self {
        Self { start: now, end: now, failure: Some(failure), ..self }
    }

    /// Whether the answer was good, to the last byte.
    pub fn good(&self) -> bool {
        self.failure.is_none()
    }

    /// From when it was due to its end: what a user would have felt, a late start included.
    pub fn latency(&self) -> Duration {
        self.end.saturating_sub(self.due)
    }
}
