//! Progress on a terminal: what is done scrolls up, what is under way is drawn below it and redrawn in place.

mod live;

pub use live::lines;

use crate::Reporter;
use crate::facts::{self, Fact, Topic, Weight};
use crate::state::RunState;
use crate::style::{Line, Style, Tone};
use crate::summary;
use cdpipe_model::event::Event;
use cdpipe_model::record::Record;
use cdpipe_model::{NodeId, Outcome};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use std::time::Duration;
use unicode_width::UnicodeWidthStr;

/// The shortest time between two drawings.
const REDRAW_MS: u64 = 100;

/// Lines of a failed step's output that stay on the screen.
const FAILED_OUTPUT_LINES: usize = 15;

/// Asks how large the screen is: columns and rows.
pub type Size = Box<dyn Fn() -> (usize, usize) + Send>;

/// Draws on a terminal.
pub struct Terminal {
    /// One bar whose message has all live lines: they come and go together, so nothing stale stays on the screen.
    screen: ProgressBar,
    /// Writes below everything once the live lines are gone.
    below: Box<dyn Fn(&str) + Send>,
    size: Size,
    style: Style,
    state: RunState,
    drawn_at_ms: u64,
    drawn: Vec<String>,
    /// What the person is asked, below everything else.
    question: Option<String>,
}

impl Terminal {
    /// Draws on standard error. `size` is asked before each drawing, so a resize is followed. `state` is that of the run before the
    /// first event.
    pub fn new(style: Style, size: Size, state: RunState) -> Self {
        let below = Box::new(|text: &str| {
            use std::io::Write;
            let mut stream = std::io::stderr().lock();
            // A screen that is gone must not stop a deploy.
            let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.flush());
        });
        Self::on(ProgressDrawTarget::stderr_with_hz(20), below, style, size, state)
    }

    /// Draws on something like a terminal; for tests.
    pub fn on_term(term: impl TermLike + Clone + 'static, style: Style, size: Size, state: RunState) -> Self {
        let last = term.clone();
        let below = Box::new(move |text: &str| {
            for line in text.lines() {
                let _ = last.write_line(line);
            }
            let _ = last.flush();
        });
        Self::on(ProgressDrawTarget::term_like(Box::new(term)), below, style, size, state)
    }

    fn on(
        target: ProgressDrawTarget,
        below: Box<dyn Fn(&str) + Send>,
        style: Style,
        size: Size,
        state: RunState,
    ) -> Self {
        let screen = ProgressBar::with_draw_target(None, target);
        // A template that can't be read would show indicatif's own, which is harmless.
        screen.set_style(
            ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        Self { screen, below, size, style, state, drawn_at_ms: 0, drawn: Vec::new(), question: None }
    }

    /// Where the run is.
    pub fn state(&self) -> &RunState {
        &self.state
    }

    /// Asks something, or nothing any more; the answer is read elsewhere.
    pub fn ask(&mut self, question: Option<String>) {
        self.question = question;
    }

    /// Says something about this process and not about the run.
    pub fn notice(&self, text: &str) {
        let mark = self.style.pick("■", "!");
        self.print(&[Line::new().push(Tone::Caution, format!("{mark} {text}"))], 2);
    }

    fn draw(&mut self, now_ms: u64) {
        let (columns, rows) = (self.size)();
        // One column stays free, so that no terminal wraps; a third of the screen stays for what has scrolled up.
        let columns = columns.saturating_sub(1).max(20);
        let lines = live::lines(&self.state, now_ms, columns, (rows * 2 / 3).max(4), self.style);
        let question = self.question.iter().flat_map(|text| {
            Line::new().push(Tone::Caution, "? ").push(Tone::Strong, text.clone()).wrap(columns, 2)
        });
        let texts: Vec<String> =
            lines.into_iter().chain(question).map(|line| line.render(columns, self.style)).collect();
        if texts == self.drawn {
            return;
        }
        self.screen.set_message(texts.join("\n"));
        self.drawn = texts;
        self.drawn_at_ms = now_ms;
    }

    /// Prints lines that stay. They are broken, not cut: what is wrong has to be readable in full.
    fn print(&self, lines: &[Line], indent: usize) {
        let (columns, _) = (self.size)();
        let columns = columns.saturating_sub(1).max(20);
        for line in lines {
            for part in line.wrap(columns, indent.min(columns / 2)) {
                self.screen.println(part.render_all(self.style).trim_end());
            }
        }
    }

    /// Prints a fact with its mark and the stage it is about.
    fn fact(&self, mark: &str, fact: &Fact, details: Vec<String>) {
        let columns = crate::plain::name_columns(&self.state) + 4;
        let name = self.state.name(fact.node);
        let mut lines = vec![
            Line::new()
                .push(fact.tone, format!("{mark} "))
                .push(Tone::Strong, name)
                .pad_to(columns.max(name.width() + 4))
                .push(fact.tone, fact.text.clone()),
        ];
        lines.extend(
            details
                .into_iter()
                .map(|detail| Line::new().push(Tone::Normal, " ".repeat(columns)).push(Tone::Dim, detail)),
        );
        self.print(&lines, columns);
    }

    fn milestone(&self, fact: &Fact) {
        let mark = match fact.topic {
            Topic::Failure => self.style.pick("✘", "x"),
            Topic::Warning => self.style.pick("▲", "!"),
            Topic::Attention => self.style.pick("◆", "#"),
            Topic::Run | Topic::Progress | Topic::NodeFinished => self.style.pick("▸", ">"),
        };
        let mut details = fact.details.clone();
        if fact.topic == Topic::Failure
            && details.is_empty()
            && let Some(node) = fact.node
        {
            details = self.output_of(node);
        }
        self.fact(mark, fact, details);
    }

    fn output_of(&self, node: NodeId) -> Vec<String> {
        let Some(state) = self.state.nodes.get(node.0 as usize) else { return Vec::new() };
        let skip = state.tail.len().saturating_sub(FAILED_OUTPUT_LINES);
        state.tail.iter().skip(skip).map(|line| format!("{} {line}", self.style.pick("│", "|"))).collect()
    }

    /// The line that stays when a stage has ended.
    fn finished(&self, node: NodeId, outcome: Outcome, fact: &Fact) {
        let told = self.state.nodes.get(node.0 as usize).is_some_and(|state| state.told.is_some());
        let details = if fact.topic == Topic::Failure && fact.details.is_empty() && !told {
            self.output_of(node)
        } else {
            fact.details.clone()
        };
        self.fact(summary::mark(outcome, self.style), fact, details);
    }

    /// Takes the live lines off the screen.
    fn clear(&mut self) {
        self.screen.finish_and_clear();
        self.drawn.clear();
    }
}

impl Reporter for Terminal {
    fn event(&mut self, now_ms: u64, event: &Event) {
        let facts = facts::of(&self.state, now_ms, event);
        let ended = match event {
            Event::Record { record, .. } => match &**record {
                Record::NodeFinished { node, outcome, .. } => Some((*node, *outcome)),
                _ => None,
            },
            _ => None,
        };
        let opens =
            matches!(event, Event::Record { record, .. } if matches!(**record, Record::Opened { .. }));
        if opens {
            self.state.apply(now_ms, event);
        }
        for fact in &facts {
            match ended {
                Some((node, outcome)) if outcome != Outcome::Skipped => self.finished(node, outcome, fact),
                Some((node, outcome)) => {
                    self.finished(node, outcome, &Fact { tone: Tone::Dim, ..fact.clone() })
                }
                None if fact.weight == Weight::Milestone || fact.topic == Topic::Failure => {
                    self.milestone(fact)
                }
                None => {}
            }
        }
        if !opens {
            self.state.apply(now_ms, event);
        }
        if now_ms.saturating_sub(self.drawn_at_ms) >= REDRAW_MS {
            self.draw(now_ms);
        }
    }

    fn tick(&mut self, now_ms: u64) {
        if now_ms.saturating_sub(self.drawn_at_ms) >= REDRAW_MS {
            self.draw(now_ms);
        }
    }

    fn finish(&mut self, _now_ms: u64) {
        self.clear();
        let (columns, _) = (self.size)();
        let text = summary::render(&self.state, columns.saturating_sub(1), self.style);
        (self.below)(&text);
    }
}

/// How often [`Reporter::tick`] should be called for a calm display.
pub const TICK: Duration = Duration::from_millis(125);
