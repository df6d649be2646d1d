//! What happened in a simulated run, in the words of every other run.

use cdpipe_model::event::Event;
use cdpipe_model::record::{Record, RunHeader};
use cdpipe_report::Reporter;
use cdpipe_report::plain::Plain;
use cdpipe_report::state::RunState;
use cdpipe_report::style::Style;
use cdpipe_report::words;
use cdpipe_sim::{EPOCH_MS, Line, Trace};
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

/// A stream into memory that two writers share.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The trace in lines, each with its virtual time, and whether it is a remark of the simulation.
pub(crate) fn lines(header: &Arc<RunHeader>, trace: &Trace, style: Style) -> Vec<(String, bool)> {
    let out = Shared::default();
    let mut plain = Plain::new(out.clone(), style, RunState::default()).without_summary();
    plain.event(EPOCH_MS, &Event::Opened(Arc::clone(header)));
    let mut lines = Vec::new();
    // The engine writes who drives it; which process that is says nothing here.
    let by = format!(" by cdpipe@simulation pid {}", std::process::id());
    let take = |out: &Shared, lines: &mut Vec<(String, bool)>| {
        let bytes = std::mem::take(&mut *out.0.lock().unwrap_or_else(PoisonError::into_inner));
        lines.extend(String::from_utf8_lossy(&bytes).lines().map(|line| (line.replace(&by, ""), false)));
    };
    let mut seq = 0;
    for line in trace.lines() {
        match line {
            Line::Record(at_ms, record) => {
                seq += 1;
                // Times count from the first beginning, so a resume is told here.
                if matches!(**record, Record::Opened { resumed: true, .. }) {
                    let elapsed = words::elapsed(at_ms.saturating_sub(EPOCH_MS));
                    lines.push((format!("[{elapsed:>6}] >> another engine goes on with the run"), true));
                    continue;
                }
                plain.event(at_ms, &Event::Record { seq, at_ms, record: Arc::clone(record) });
                take(&out, &mut lines);
            }
            Line::Note(note) => {
                let elapsed = words::elapsed(note.at_ms.saturating_sub(EPOCH_MS));
                lines.push((format!("[{elapsed:>6}] >> {}", note.text), true));
            }
        }
    }
    lines
}
