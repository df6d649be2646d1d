//! The acting half of a run: journal, dispatcher, timers, signals, locks, event fan-out, run registry.
mod clock;
mod events;
mod journal;
mod locks;
mod output;
mod store;
mod wake;
pub use clock::{Clock, SystemClock};
pub use events::{Delivery, Fanout, Reporter};
pub use journal::{Batch, Journal, Letter, MemoryJournal, Status};
pub use locks::{MemoryLocks, NamedLocks, QUEUE_SILENCE_MS};
pub use output::{MAX_LINE_BYTES, MAX_OUTPUT_BYTES, OutputLine, OutputLog, OutputReader};
pub use store::*;
