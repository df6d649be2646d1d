//! Whose the slots of a backend are, as it is written down, beside what HAProxy does.

use super::runtime::{Answers, Live};
use cdpipe_model::id::ReleaseId;
use cdpipe_model::observe::{Member, RouteTable};
use serde::{Deserialize, Serialize};

/// What is written down of a backend.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Book {
    pub(super) version: u32,
    pub(super) epoch: u64,
    /// What HAProxy does.
    pub(super) table: Option<RouteTable>,
    /// What it is being made to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pending: Option<RouteTable>,
    pub(super) slots: Vec<Slot>,
}

/// A slot that was given to an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) release: ReleaseId,
    pub(super) member: Member,
    /// Its address as HAProxy has it.
    pub(super) at: String,
    pub(super) weight: u32,
    /// Requests of the slot when it was given.
    pub(super) base: u64,
    /// What else was counted of it by then.
    #[serde(default)]
    pub(super) before: Answers,
    /// Its mean time then, in milliseconds.
    #[serde(default)]
    pub(super) before_ms: u64,
    /// It is out of the table; requests of before may be in flight.
    pub(super) left: bool,
}

/// Whether HAProxy has forgotten what it was told, as one that was restarted has: the book says that instances serve, and no slot is in
/// use. No change passes through that, for slots are put in use before others are taken out.
pub(super) fn forgotten(book: &Book, live: &[Live]) -> bool {
    let served = book.table.iter().flat_map(|table| &table.entries).any(|entry| !entry.members.is_empty());
    served && live.iter().all(|live| !live.in_use)
}

/// The table that is in force. Of one that HAProxy has forgotten that is who should serve, and none of their instances: so a deploy of the
/// same release has something to do, and of several that run it is still known which one serves.
pub(super) fn in_force(book: &Book, live: &[Live]) -> Option<RouteTable> {
    let mut table = book.table.clone();
    if forgotten(book, live) {
        table.iter_mut().flat_map(|table| &mut table.entries).for_each(|entry| entry.members.clear());
    }
    table
}

/// What HAProxy does otherwise than the book says; `None` if it does the same.
pub(super) fn differs(book: &Book, live: &[Live]) -> Option<String> {
    let of = |live: &Live| book.slots.iter().find(|slot| slot.name == live.name && !slot.left);
    live.iter().find_map(|live| match (of(live), live.in_use) {
        (None, false) => None,
        (None, true) => Some(format!("expected {} out of use, found it serving {}", live.name, live.address)),
        (Some(slot), false) => {
            Some(format!("expected {} serving {}, found it out of use", live.name, slot.at))
        }
        (Some(slot), true) => (slot.at != live.address || slot.weight != live.weight).then(|| {
            format!(
                "expected {} at {} with weight {}, found {} with {}",
                live.name, slot.at, slot.weight, live.address, live.weight
            )
        }),
    })
}
