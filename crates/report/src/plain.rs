//! Lines for a log: one for each fact, each with the time since the run was opened and the stage it is about. The words depend on
//! the run alone, so two runs that did the same differ in nothing but the times.

use crate::Reporter;
use crate::facts::{self, Fact};
use crate::state::RunState;
use crate::style::{Line, Style, Tone, clean};
use crate::summary;
use crate::words;
use cdpipe_model::NodeId;
use cdpipe_model::event::Event;
use std::io::Write;
use unicode_width::UnicodeWidthStr;

/// The widest a stage's name may make its column.
const MAX_NAME_COLUMNS: usize = 24;

/// Writes lines to a stream.
pub struct Plain<W> {
    out: W,
    style: Style,
    state: RunState,
    /// Whether the summary is written at the end.
    summary: bool,
    /// The only stage that is told of.
    only: Option<NodeId>,
}

impl<W: Write + Send> Plain<W> {
    /// Writes to `out`. `state` is that of the run before the first event: empty, or folded from its journal.
    pub fn new(out: W, style: Style, state: RunState) -> Self {
        Self { out, style, state, summary: true, only: None }
    }

    /// Leaves the summary to someone else.
    #[must_use]
    pub fn without_summary(mut self) -> Self {
        self.summary = false;
        self
    }

    /// Tells of one stage or gate only.
    #[must_use]
    pub fn only(mut self, node: NodeId) -> Self {
        self.only = Some(node);
        self
    }

    /// The stream.
    pub fn into_inner(self) -> W {
        self.out
    }

    fn line(&mut self, at_ms: u64, node: Option<NodeId>, tone: Tone, text: &str) {
        if self.only.is_some() && node != self.only {
            return;
        }
        let line = prefix(&self.state, at_ms, node).push(tone, text);
        let mut text = line.render_all(self.style);
        let end = text.trim_end().len();
        text.truncate(end);
        text.push('\n');
        // A log that can't be written must not stop a deploy.
        let _ = self.out.write_all(text.as_bytes());
    }

    fn fact(&mut self, fact: &Fact) {
        self.line(fact.at_ms, fact.node, fact.tone, &fact.text);
        for detail in &fact.details {
            self.line(fact.at_ms, fact.node, Tone::Dim, &format!("    {detail}"));
        }
    }
}

/// `[ 12.3s] production  `.
pub(crate) fn prefix(state: &RunState, at_ms: u64, node: Option<NodeId>) -> Line {
    let elapsed = words::elapsed(at_ms.saturating_sub(state.opened_at_ms));
    let name = match node {
        Some(node) => state.name(Some(node)),
        None => "",
    };
    Line::new()
        .push(Tone::Dim, format!("[{elapsed:>6}] "))
        .push(Tone::Strong, name)
        .pad_to(9 + name_columns(state).max(name.width()) + 2)
}

/// How wide the column of names is: as wide as the longest name, within reason.
pub(crate) fn name_columns(state: &RunState) -> usize {
    state.longest_name_columns.min(MAX_NAME_COLUMNS)
}

impl<W: Write + Send> Reporter for Plain<W> {
    fn event(&mut self, now_ms: u64, event: &Event) {
        if let Event::Output { step, line, .. } = event {
            let at_ms = now_ms.max(self.state.now_ms);
            self.line(at_ms, step.node, Tone::Normal, &format!("| {}", clean(line)));
        }
        let facts = facts::of(&self.state, now_ms, event);
        // The time of the first record is the zero of all others.
        let opens = matches!(event, Event::Record { record, .. }
            if matches!(**record, cdpipe_model::record::Record::Opened { .. }));
        if opens {
            self.state.apply(now_ms, event);
        }
        for fact in &facts {
            self.fact(fact);
        }
        if !opens {
            self.state.apply(now_ms, event);
        }
        let _ = self.out.flush();
    }

    fn finish(&mut self, _now_ms: u64) {
        if self.summary {
            let text = summary::render(&self.state, 100, self.style);
            let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        }
    }
}
