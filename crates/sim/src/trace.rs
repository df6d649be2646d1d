//! What happened, in order: the records of the journal, and the remarks of the simulation between them.

use cdpipe_model::action::ActionKind;
use cdpipe_model::record::Record;
use std::sync::Arc;

/// A remark of the simulation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// After so many records.
    pub after: usize,
    /// When, milliseconds since 1970 in virtual time.
    pub at_ms: u64,
    /// One line.
    pub text: String,
}

/// What happened in one run.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// Each with its virtual time.
    pub records: Vec<(u64, Arc<Record>)>,
    /// By position, then in the order in which they were made.
    pub notes: Vec<Note>,
}

/// One line of a trace.
#[derive(Debug, Clone, Copy)]
pub enum Line<'a> {
    /// A record and its time.
    Record(u64, &'a Arc<Record>),
    /// A remark.
    Note(&'a Note),
}

impl Trace {
    /// Records and remarks in order.
    pub fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let mut notes: Vec<&Note> = self.notes.iter().collect();
        notes.sort_by_key(|note| note.after);
        let mut lines = Vec::with_capacity(self.records.len() + notes.len());
        let mut notes = notes.into_iter().peekable();
        for (at, (at_ms, record)) in self.records.iter().enumerate() {
            while let Some(note) = notes.next_if(|note| note.after <= at) {
                lines.push(Line::Note(note));
            }
            lines.push(Line::Record(*at_ms, record));
        }
        lines.extend(notes.map(Line::Note));
        lines.into_iter()
    }
}

/// An action in a few words.
pub(crate) fn word(kind: &ActionKind) -> &'static str {
    match kind {
        ActionKind::Resolve { .. } => "finding the artifact",
        ActionKind::Observe { .. } => "observing",
        ActionKind::AwaitReady { .. } => "waiting for readiness",
        ActionKind::AwaitRouted { .. } => "waiting for the route",
        ActionKind::AwaitDrained { .. } => "draining",
        ActionKind::Measure { .. } => "measuring",
        ActionKind::Lock { .. } => "taking the lock",
        ActionKind::Unlock { .. } => "giving the lock back",
        ActionKind::Ensure { .. } => "starting instances",
        ActionKind::Stop { .. } => "stopping instances",
        ActionKind::Route { .. } => "changing the route",
        ActionKind::Roll { .. } => "rolling",
        ActionKind::Run(_) => "running a command",
        ActionKind::Exec { .. } => "running a command in an instance",
        ActionKind::Http { .. } => "making a request",
        ActionKind::SetFlag { .. } => "setting a flag",
        ActionKind::Notify { .. } => "sending a message",
        ActionKind::Survey { .. } => "reading manifests",
        ActionKind::Apply { .. } => "applying manifests",
        ActionKind::Unapply { .. } => "taking manifests back",
    }
}
