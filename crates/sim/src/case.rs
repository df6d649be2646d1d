//! One case of an exploration: what fails where, and where the engine dies. It has a name by which it can be played again.

use std::fmt;

/// What happens in one case.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Case {
    /// A fault of one action.
    pub fault: Option<Fault>,
    /// Where engines die: the first one, then the one that resumed, and so on.
    pub crashes: Vec<Crash>,
}

/// A fault: it hits the first call of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fault {
    /// The number of the action in the run.
    pub action: u64,
    /// What happens to it.
    pub kind: FaultKind,
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultKind {
    /// It is not done, and the answer says that another try won't help.
    Fail,
    /// It is not done, and the answer says that another try may help.
    Flaky,
    /// It is not done, and no answer comes before the deadline.
    Hang,
    /// It is done, and the answer is an error.
    Lost,
    /// It is done, and no answer comes before the deadline.
    Mute,
}

/// Where an engine dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Crash {
    /// At its so many-th write to the journal, from 0.
    pub write: u32,
    /// Just after the write; else just before it, with nothing of it written.
    pub after: bool,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [FaultKind; 5] =
        [FaultKind::Fail, FaultKind::Hang, FaultKind::Lost, FaultKind::Mute, FaultKind::Flaky];

    /// As it stands in the name of a case.
    pub fn as_str(self) -> &'static str {
        match self {
            FaultKind::Fail => "fail",
            FaultKind::Flaky => "flaky",
            FaultKind::Hang => "hang",
            FaultKind::Lost => "lost",
            FaultKind::Mute => "mute",
        }
    }

    /// What it does, after a name: "is refused".
    pub(crate) fn words(self) -> &'static str {
        match self {
            FaultKind::Fail => "fails",
            FaultKind::Flaky => "fails for a moment",
            FaultKind::Hang => "hangs and is not done",
            FaultKind::Lost => "is done, but its answer is an error",
            FaultKind::Mute => "is done, but never answers",
        }
    }

    /// Whether it can happen to a read too; what is done and not answered is the same as not done for one.
    pub(crate) fn hits_reads(self) -> bool {
        matches!(self, FaultKind::Fail | FaultKind::Flaky | FaultKind::Hang)
    }
}

impl Case {
    /// How much goes wrong.
    pub fn weight(&self) -> usize {
        usize::from(self.fault.is_some()) + self.crashes.len()
    }

    /// Reads what `Display` writes.
    pub fn parse(text: &str) -> Option<Self> {
        let mut case = Case::default();
        if text == "none" {
            return Some(case);
        }
        for part in text.split('+') {
            if let Some((write, side)) = part.strip_prefix("crash").and_then(|rest| rest.split_once('-')) {
                let after = match side {
                    "before" => false,
                    "after" => true,
                    _ => return None,
                };
                case.crashes.push(Crash { write: write.parse().ok()?, after });
            } else {
                let (kind, action) = part.split_once('@')?;
                let kind = FaultKind::ALL.into_iter().find(|known| known.as_str() == kind)?;
                if case.fault.replace(Fault { action: action.parse().ok()?, kind }).is_some() {
                    return None;
                }
            }
        }
        Some(case)
    }
}

/// `hang@12+crash7-after`.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Case::default() {
            return f.write_str("none");
        }
        let mut between = "";
        if let Some(fault) = &self.fault {
            write!(f, "{}@{}", fault.kind.as_str(), fault.action)?;
            between = "+";
        }
        for crash in &self.crashes {
            write!(f, "{between}crash{}-{}", crash.write, if crash.after { "after" } else { "before" })?;
            between = "+";
        }
        Ok(())
    }
}
