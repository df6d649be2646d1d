//! What must never be seen, whatever fails.

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind.
    pub kind: FindingKind,
    /// Where: `web in production`, or a stage.
    pub place: String,
    /// One sentence, no full stop: what was seen.
    pub text: String,
    /// When, milliseconds since 1970 in virtual time.
    pub at_ms: u64,
    /// After how many records of the journal.
    pub after: usize,
}

/// The kinds of what must not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FindingKind {
    /// Users are sent to an instance that is not ready, or no longer there.
    UnreadyServes,
    /// Users are left without any ready instance.
    LastRetired,
    /// A lock is held after the end.
    LockStays,
    /// What is there at the end is neither the old state nor the new.
    NeitherState,
    /// The run says that it ended in a way in which it did not.
    WrongEnd,
    /// An effect that is not safe to repeat was done twice.
    DoneTwice,
    /// The run comes to no end, or cdpipe itself gives up.
    NoEnd,
}

impl FindingKind {
    /// All of them.
    pub const ALL: [FindingKind; 7] = [
        FindingKind::UnreadyServes,
        FindingKind::LastRetired,
        FindingKind::LockStays,
        FindingKind::NeitherState,
        FindingKind::WrongEnd,
        FindingKind::DoneTwice,
        FindingKind::NoEnd,
    ];

    /// For programs.
    pub fn as_str(self) -> &'static str {
        match self {
            FindingKind::UnreadyServes => "unready_serves",
            FindingKind::LastRetired => "last_retired",
            FindingKind::LockStays => "lock_stays",
            FindingKind::NeitherState => "neither_state",
            FindingKind::WrongEnd => "wrong_end",
            FindingKind::DoneTwice => "done_twice",
            FindingKind::NoEnd => "no_end",
        }
    }

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            FindingKind::UnreadyServes => "users get an instance that is not ready",
            FindingKind::LastRetired => "the last good release goes",
            FindingKind::LockStays => "a lock stays",
            FindingKind::NeitherState => "the end is neither the old state nor the new",
            FindingKind::WrongEnd => "the run ends as something that did not happen",
            FindingKind::DoneTwice => "something is done twice",
            FindingKind::NoEnd => "the run comes to no end",
        }
    }
}
