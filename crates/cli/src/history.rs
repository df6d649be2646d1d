//! A run read back from its journal.

use crate::failure::Failure;
use cdpipe_engine::Store;
use cdpipe_model::RunId;
use cdpipe_model::event::{Event, Stream};
use cdpipe_model::record::RunHeader;
use cdpipe_report::Reporter;
use cdpipe_report::state::RunState;
use std::sync::Arc;

/// Where a run is, with the last lines of output of each stage; and the number of its last record.
pub(crate) fn fold(store: &Store, run: &RunId) -> Result<(RunState, u64), Failure> {
    let header = Arc::new(store.header(run)?);
    let mut state = RunState::default();
    state.apply(header.started_at_ms, &Event::Opened(Arc::clone(&header)));
    let last = store.read(run, 0, |seq, at_ms, record| {
        state.apply(at_ms, &Event::Record { seq, at_ms, record: Arc::new(record) });
    })?;
    let mut output = cdpipe_engine::OutputReader::new(&store.log_dir(), run);
    // Output that can't be read hides nothing of what the journal says.
    let _ = output.read(|line| {
        if let Some(event) = output_event(line) {
            state.apply(0, &event);
        }
    });
    Ok((state, last))
}

/// Reads a journal and the output of a run piece by piece, and tells both to a reporter in the order of their times.
pub(crate) struct Replay {
    run: RunId,
    after: u64,
    output: cdpipe_engine::OutputReader,
}

impl Replay {
    /// From the beginning of a run.
    pub(crate) fn new(store: &Store, header: &Arc<RunHeader>, to: &mut dyn Reporter) -> Self {
        to.event(header.started_at_ms, &Event::Opened(Arc::clone(header)));
        let output = cdpipe_engine::OutputReader::new(&store.log_dir(), &header.run);
        Self { run: header.run.clone(), after: 0, output }
    }

    /// Tells what came since the last call.
    pub(crate) fn tell(&mut self, store: &Store, to: &mut dyn Reporter) -> Result<(), Failure> {
        // Output first: a line that belongs to a record is then never missed, and sorting puts it in its place.
        let mut events: Vec<(u64, Event)> = Vec::new();
        self.output.read(|line| {
            let at_ms = line.at_ms;
            events.extend(output_event(line).map(|event| (at_ms, event)));
        })?;
        self.after = store.read(&self.run, self.after, |seq, at_ms, record| {
            events.push((at_ms, Event::Record { seq, at_ms, record: Arc::new(record) }));
        })?;
        events.sort_by_key(|(at_ms, _)| *at_ms);
        for (at_ms, event) in &events {
            to.event(*at_ms, event);
        }
        Ok(())
    }
}

fn output_event(line: cdpipe_engine::OutputLine) -> Option<Event> {
    let stream = if line.stderr { Stream::Stderr } else { Stream::Stdout };
    Some(Event::Output { step: line.step?, stream, line: line.line })
}
