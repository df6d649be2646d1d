//! For the log of a CI job: facts as plain lines, each stage's output folded away in a group, failures as annotations.

use crate::Reporter;
use crate::facts::{self, Fact, Topic};
use crate::plain::prefix;
use crate::state::RunState;
use crate::style::{Style, clean};
use crate::summary;
use cdpipe_model::event::Event;
use cdpipe_model::record::Record;
use cdpipe_model::{NodeId, Outcome};
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;

/// Lines of output that are kept for a stage's group; older ones are counted.
const MAX_GROUP_LINES: usize = 5_000;

/// Writes a GitHub Actions log. Groups cannot be nested or interleaved there, so a stage's output is written when it ends.
pub struct GitHub<W> {
    out: W,
    state: RunState,
    output: BTreeMap<Option<NodeId>, Held>,
}

#[derive(Default)]
struct Held {
    lines: VecDeque<String>,
    dropped: usize,
}

impl<W: Write + Send> GitHub<W> {
    /// Writes to `out`. `state` is that of the run before the first event.
    pub fn new(out: W, state: RunState) -> Self {
        Self { out, state, output: BTreeMap::new() }
    }

    /// The stream.
    pub fn into_inner(self) -> W {
        self.out
    }

    fn write(&mut self, text: &str) {
        let _ = writeln!(self.out, "{text}").and_then(|()| self.out.flush());
    }

    fn fact(&mut self, fact: &Fact) {
        let line = prefix(&self.state, fact.at_ms, fact.node).push(fact.tone, fact.text.clone());
        let line = line.render_all(Style::PLAIN);
        self.write(line.trim_end());
        for detail in &fact.details {
            self.write(&format!("             {detail}"));
        }
        let command = match fact.topic {
            Topic::Failure => "error",
            Topic::Warning => "warning",
            Topic::Attention => "notice",
            Topic::Run | Topic::Progress | Topic::NodeFinished => return,
        };
        let title = self.state.name(fact.node).to_owned();
        let mut text = fact.text.clone();
        for detail in &fact.details {
            text.push('\n');
            text.push_str(detail);
        }
        self.write(&format!("::{command} title={}::{}", property(&title), data(&text)));
    }

    fn group(&mut self, node: Option<NodeId>) {
        let Some(held) = self.output.remove(&node) else { return };
        let name = self.state.name(node).to_owned();
        let total = held.lines.len() + held.dropped;
        self.write(&format!("::group::{name}: output ({total} lines)"));
        if held.dropped > 0 {
            self.write(&format!("... {} earlier lines: `cdpipe logs` has them", held.dropped));
        }
        for line in held.lines {
            // A line that looks like a command would be obeyed.
            let line = if line.trim_start().starts_with("::") {
                format!(" {}", line.replacen("::", ": :", 1))
            } else {
                line
            };
            self.write(&line);
        }
        self.write("::endgroup::");
    }
}

fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

impl<W: Write + Send> Reporter for GitHub<W> {
    fn event(&mut self, now_ms: u64, event: &Event) {
        if let Event::Output { step, line, .. } = event {
            let held = self.output.entry(step.node).or_default();
            if held.lines.len() == MAX_GROUP_LINES {
                held.lines.pop_front();
                held.dropped += 1;
            }
            held.lines.push_back(clean(line));
        }
        let facts = facts::of(&self.state, now_ms, event);
        self.state.apply(now_ms, event);
        if let Event::Record { record, .. } = event
            && let Record::NodeFinished { node, .. } = &**record
        {
            self.group(Some(*node));
        }
        for fact in &facts {
            self.fact(fact);
        }
    }

    fn finish(&mut self, _now_ms: u64) {
        let open: Vec<Option<NodeId>> = self.output.keys().copied().collect();
        for node in open {
            self.group(node);
        }
        let text = summary::render(&self.state, 120, Style::PLAIN);
        self.write(text.trim_end());
        if let Some((outcome, reason)) = self.state.finished.clone()
            && !matches!(outcome, Outcome::Succeeded | Outcome::Skipped)
        {
            let name = self.state.name(None).to_owned();
            let why = reason.map_or(String::new(), |reason| format!(": {}", reason.message));
            let text = format!("{}{why}", crate::words::outcome(outcome));
            self.write(&format!("::error title={}::{}", property(&name), data(&text)));
        }
    }
}
