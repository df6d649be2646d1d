//! What is worth telling of an event, in words: the one source of the lines of every reporter for people.

use crate::state::RunState;
use crate::style::{Tone, clean};
use crate::words;
use cdpipe_model::action::{Action, ActionKind, ActionResult, Answer};
use cdpipe_model::event::Event;
use cdpipe_model::measure::Sample;
use cdpipe_model::observe::Role;
use cdpipe_model::plan::{NodeKind, StepKind};
use cdpipe_model::program::{Program, ProgramStep, Routing};
use cdpipe_model::record::{Record, RuleVerdict, Signal, TimerPurpose};
use cdpipe_model::{Fault, NodeId, Outcome};

/// One thing to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// The stage or gate it is about; `None` for the run.
    pub node: Option<NodeId>,
    /// How it is meant.
    pub tone: Tone,
    /// One line.
    pub text: String,
    /// Lines that explain it.
    pub details: Vec<String>,
    /// How much it matters.
    pub weight: Weight,
    /// What kind, for programs and annotations.
    pub topic: Topic,
}

/// How much a fact matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// A line of a log.
    Step,
    /// Stays on the screen of somebody who watches.
    Milestone,
}

/// What a fact is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// The run as a whole.
    Run,
    /// A stage or gate begins or goes on.
    Progress,
    /// A stage or gate has ended.
    NodeFinished,
    /// Something failed.
    Failure,
    /// A warning.
    Warning,
    /// A person is needed.
    Attention,
}

/// What an event says, given the state before it.
pub fn of(before: &RunState, now_ms: u64, event: &Event) -> Vec<Fact> {
    match event {
        Event::Record { at_ms, record, .. } => {
            let mut facts = Facts { at_ms: (*at_ms).max(before.now_ms), list: Vec::new() };
            facts.record(before, record);
            facts.list
        }
        Event::Progress { step, action, text } => {
            // Only waits that someone else causes are told line by line; the rest is for the live display.
            let waits_for_lock = matches!(
                before.actions.get(action).map(|action| &action.kind),
                Some(ActionKind::Lock { .. })
            );
            let known = step
                .node
                .and_then(|node| before.nodes.get(node.0 as usize))
                .is_some_and(|node| node.progress.as_ref() == Some(text));
            if !waits_for_lock || known {
                return Vec::new();
            }
            let mut facts = Facts { at_ms: now_ms, list: Vec::new() };
            facts.tell(step.node, Tone::Caution, text.clone()).weight = Weight::Milestone;
            facts.list
        }
        Event::Opened(_) | Event::Output { .. } | Event::Closed => Vec::new(),
    }
}

struct Facts {
    at_ms: u64,
    list: Vec<Fact>,
}

impl Facts {
    fn tell(&mut self, node: Option<NodeId>, tone: Tone, text: impl Into<String>) -> &mut Fact {
        let at = self.list.len();
        self.list.push(Fact {
            at_ms: self.at_ms,
            node,
            tone,
            text: text.into(),
            details: Vec::new(),
            weight: Weight::Step,
            topic: Topic::Progress,
        });
        &mut self.list[at]
    }

    fn record(&mut self, before: &RunState, record: &Record) {
        match record {
            Record::Opened { at_ms, by, resumed } => {
                self.at_ms = *at_ms;
                let verb = if *resumed { "resumed" } else { "started" };
                let run = before.header.as_ref().map_or("", |header| header.run.as_str());
                let fact = self.tell(None, Tone::Normal, format!("run {run} {verb} by {by}"));
                fact.topic = Topic::Run;
                fact.weight = Weight::Milestone;
            }
            Record::NodeStarted { node, attempt } => self.node_started(before, *node, *attempt),
            Record::NodeFinished { node, outcome, reason } => {
                self.node_finished(before, *node, *outcome, reason.as_ref());
            }
            Record::StepStarted { step, attempt } => {
                let label = before.label(step);
                let text = if *attempt > 1 { format!("{label} (attempt {attempt})") } else { label };
                self.tell(step.node, Tone::Normal, text);
            }
            Record::StepFinished { step, outcome, reason: Some(fault) }
                if !matches!(outcome, Outcome::Succeeded | Outcome::Skipped) =>
            {
                let told = step
                    .node
                    .and_then(|node| before.nodes.get(node.0 as usize))
                    .and_then(|node| node.told.as_ref());
                if told == Some(fault) {
                    return;
                }
                let text = format!("{} {}: {}", before.label(step), words::outcome(*outcome), fault.message);
                let fact = self.tell(step.node, Tone::Bad, text);
                explain(fact, fault);
                fact.topic = Topic::Failure;
            }
            // A message that nobody got: its step has succeeded all the same.
            Record::StepFinished { step, outcome: Outcome::Succeeded, reason: Some(fault) } => {
                let text = format!("{}: not sent: {}", before.label(step), fault.message);
                let fact = self.tell(step.node, Tone::Caution, text);
                explain(fact, fault);
            }
            Record::StepFinished { .. } => {}
            Record::Returned { action, result, .. } => {
                if let Some(action) = before.actions.get(action) {
                    self.returned(before, action, result);
                }
            }
            Record::Programmed { step, program } => {
                let to = words::release(&program.candidate);
                let environment = match before.step(step).map(|step| &step.kind) {
                    Some(StepKind::Deploy(deploy)) => deploy.environment.0.clone(),
                    _ => String::new(),
                };
                let service = &program.candidate.service;
                let text = match (&program.stable, program.steps.is_empty()) {
                    (_, true) => format!("{to} serves already: unchanged"),
                    (Some(stable), false) if stable.id() == program.candidate_id() => {
                        format!("{service} in {environment}: {to} serves already, and is made whole")
                    }
                    (Some(stable), false) => {
                        format!("{service} in {environment}: {} -> {to}", words::release(stable))
                    }
                    (None, false) => format!("{service} in {environment}: {to}, the first release there"),
                };
                self.tell(step.node, Tone::Normal, text);
                for note in &program.notes {
                    self.tell(step.node, Tone::Caution, format!("note: {note}"));
                }
            }
            Record::ProgramAt { step, pc } => {
                let deploy = step
                    .node
                    .and_then(|node| before.nodes.get(node.0 as usize))
                    .and_then(|node| node.deploy.as_ref());
                if let Some(deploy) = deploy {
                    let steps = deploy.undoing.as_ref().map_or(&deploy.program.steps, |(_, steps)| steps);
                    if let Some(next) = steps.get(*pc as usize) {
                        self.program_step(step.node, &deploy.program, next);
                    }
                }
            }
            Record::TimerSet { timer, due_ms } if timer.purpose == TimerPurpose::Retry => {
                let wait = words::duration(due_ms.saturating_sub(self.at_ms));
                self.tell(timer.node, Tone::Caution, format!("tries again in {wait}"));
            }
            Record::ApprovalAsked { node, by, quorum, expires_at_ms, .. } => {
                let run = before.header.as_ref().map_or("", |header| header.run.as_str());
                let whom = if by.is_empty() { "anyone".to_owned() } else { by.join(" or ") };
                let many = if *quorum > 1 { format!(" ({quorum} of them)") } else { String::new() };
                let until = expires_at_ms.map_or(String::new(), |expires| {
                    format!(", expires in {}", words::about(expires.saturating_sub(self.at_ms)))
                });
                let name = before.name(Some(*node)).to_owned();
                let fact = self.tell(
                    Some(*node),
                    Tone::Caution,
                    format!("waits for an approval by {whom}{many}{until}"),
                );
                fact.details.push(format!("cdpipe approve {run} {name}"));
                fact.weight = Weight::Milestone;
                fact.topic = Topic::Attention;
            }
            Record::Verdict { step, samples, findings } => self.verdict(before, step.node, samples, findings),
            Record::Undoing { step, reason, outcome, .. } => {
                let what = match outcome {
                    Outcome::RolledBack => "rolls back",
                    Outcome::Cancelled => "is cancelled, goes back",
                    _ => "goes back",
                };
                // What fired was told a line ago, with its values.
                let told = step
                    .node
                    .and_then(|node| before.nodes.get(node.0 as usize))
                    .and_then(|node| node.verdict.as_ref())
                    .is_some_and(|verdict| {
                        verdict.findings.iter().any(|finding| {
                            finding.verdict == RuleVerdict::Breach && reason.message.contains(&finding.text)
                        })
                    });
                let text = if told { what.to_owned() } else { format!("{what}: {}", reason.message) };
                let fact = self.tell(step.node, Tone::Bad, text);
                explain(fact, reason);
                fact.weight = Weight::Milestone;
                fact.topic = Topic::Failure;
            }
            Record::UndoStarted { node, reason, late } => {
                let state = before.nodes.get(node.0 as usize);
                let under_way = !late && state.is_some_and(|node| !node.steps.is_empty());
                let what = if under_way { "stops" } else { "takes back what it did" };
                let fact = self.tell(Some(*node), Tone::Bad, format!("{what}: {}", reason.message));
                explain(fact, reason);
                fact.weight = Weight::Milestone;
                fact.topic = Topic::Failure;
            }
            Record::HookStarted { node, hook } => {
                let label = before.hook_label(*node, *hook);
                self.tell(*node, Tone::Normal, format!("{label}: begins"));
            }
            Record::HookFinished { node, hook, failed: Some(fault) } => {
                let label = before.hook_label(*node, *hook);
                let fact = self.tell(*node, Tone::Caution, format!("{label} failed: {}", fault.message));
                explain(fact, fault);
                fact.weight = Weight::Milestone;
                fact.topic = Topic::Warning;
            }
            Record::HookFinished { .. } => {}
            Record::Signalled { signal, .. } => self.signalled(signal),
            Record::Suspended { waiting } => {
                let fact = self.tell(None, Tone::Caution, format!("waits: {waiting}"));
                fact.weight = Weight::Milestone;
                fact.topic = Topic::Attention;
            }
            Record::RunFinished { outcome, .. } => {
                let took = words::elapsed(self.at_ms.saturating_sub(before.opened_at_ms));
                let fact =
                    self.tell(None, tone_of(*outcome), format!("{} in {took}", words::outcome(*outcome)));
                fact.topic = Topic::Run;
            }
            Record::TimerFired { .. }
            | Record::Intent { .. }
            | Record::CancelAsked { .. }
            | Record::TimerSet { .. }
            | Record::TimerCleared { .. } => {}
        }
    }

    fn node_started(&mut self, before: &RunState, node: NodeId, attempt: u32) {
        let text = match before.node(node).map(|node| &node.kind) {
            Some(NodeKind::Gate(_)) => "gate: closed until its conditions hold".to_owned(),
            _ if attempt > 1 => format!("started (attempt {attempt})"),
            _ => "started".to_owned(),
        };
        self.tell(Some(node), Tone::Normal, text);
    }

    fn node_finished(&mut self, before: &RunState, node: NodeId, outcome: Outcome, reason: Option<&Fault>) {
        let state = before.nodes.get(node.0 as usize);
        let word = match (before.node(node).map(|node| &node.kind), outcome) {
            (Some(NodeKind::Gate(_)), Outcome::Succeeded) => "open",
            (_, outcome) => words::outcome(outcome),
        };
        let mut text = match state.and_then(|state| state.started_at_ms) {
            Some(started) if outcome != Outcome::Skipped => {
                format!("{word} in {}", words::elapsed(self.at_ms.saturating_sub(started)))
            }
            _ => word.to_owned(),
        };
        let told = state.and_then(|state| state.told.as_ref());
        let news = reason.filter(|reason| told != Some(reason));
        if let Some(reason) = news {
            text.push_str(&format!(": {}", reason.message));
        }
        let fact = self.tell(Some(node), tone_of(outcome), text);
        if let Some(reason) = news {
            explain(fact, reason);
        }
        fact.weight = Weight::Milestone;
        fact.topic = match outcome {
            Outcome::Failed | Outcome::TimedOut | Outcome::RolledBack | Outcome::RollbackFailed => {
                Topic::Failure
            }
            _ => Topic::NodeFinished,
        };
    }

    /// Effects on traffic and instances are told once they are observed.
    fn returned(&mut self, before: &RunState, action: &Action, result: &ActionResult) {
        let node = action.step.node;
        let deploy =
            node.and_then(|node| before.nodes.get(node.0 as usize)).and_then(|node| node.deploy.as_ref());
        let ActionResult::Done(answer) = result else { return };
        match (&action.kind, answer, deploy) {
            (ActionKind::AwaitReady { release, count, .. }, Answer::Instances(instances), _) => {
                let ready = instances.iter().filter(|instance| instance.ready).count();
                let text = format!("{}: {ready} of {count} ready", words::release(release));
                self.tell(node, Tone::Normal, text);
            }
            (ActionKind::AwaitRouted { table, .. }, _, Some(deploy)) => {
                let candidate = deploy.program.candidate_id();
                let text = if table.entries.is_empty() {
                    "no traffic: the route is closed".to_owned()
                } else {
                    match table.weight_bp(&candidate) {
                        10_000 => format!("all traffic on {}", words::release(&deploy.program.candidate)),
                        0 => format!("all traffic on {}", words::side(&deploy.program, Role::Stable)),
                        share => format!(
                            "{} of traffic on {}",
                            words::share(share),
                            words::release(&deploy.program.candidate)
                        ),
                    }
                };
                self.tell(node, Tone::Normal, text).weight = Weight::Milestone;
            }
            (ActionKind::Stop { release, .. }, Answer::Instances(left), _) => {
                let text = if left.is_empty() {
                    format!("{}: drained and stopped", words::release(release))
                } else {
                    let left = words::count(u32::try_from(left.len()).unwrap_or(u32::MAX), "instance");
                    format!("{}: drained and stopped down to {left}", words::release(release))
                };
                self.tell(node, Tone::Normal, text);
            }
            _ => {}
        }
    }

    /// Steps that take a while or decide something are told when they begin; effects when they are observed (see `returned`).
    fn program_step(&mut self, node: Option<NodeId>, program: &Program, step: &ProgramStep) {
        let tell = match step {
            ProgramStep::Sweep { .. }
            | ProgramStep::Ensure { .. }
            | ProgramStep::Soak { .. }
            | ProgramStep::Roll { .. }
            | ProgramStep::Preview { .. }
            | ProgramStep::Verify
            | ProgramStep::Validate
            | ProgramStep::Promote
            | ProgramStep::WatchOn => true,
            ProgramStep::Route(Routing::Closed) => true,
            ProgramStep::Ready { .. }
            | ProgramStep::Route(_)
            | ProgramStep::Shrink { .. }
            | ProgramStep::Approve(_)
            | ProgramStep::WatchOff
            | ProgramStep::Retire { .. }
            | ProgramStep::Heal { .. }
            | ProgramStep::Settled { .. } => false,
        };
        if tell {
            self.tell(node, Tone::Normal, words::step(program, step));
        }
    }

    fn verdict(
        &mut self,
        before: &RunState,
        node: Option<NodeId>,
        samples: &[Sample],
        findings: &[cdpipe_model::record::Finding],
    ) {
        let state = node.and_then(|node| before.nodes.get(node.0 as usize));
        let last = state.and_then(|state| state.verdict.as_ref());
        // Samples that say the same as before are told once for each step of the program, not at every interval.
        let step_began = state.and_then(|state| state.deploy.as_ref()).map(|deploy| deploy.pc_since_ms);
        let first_of_step = match (last, step_began) {
            (Some(last), Some(began)) => last.at_ms < began,
            (Some(_), None) => false,
            (None, _) => true,
        };
        if findings.is_empty() {
            let recovered = last.is_some_and(|last| !last.findings.is_empty());
            if first_of_step || recovered {
                self.tell(node, Tone::Normal, format!("watch: passes: {}", samples_text(samples)));
            }
            return;
        }
        for finding in findings {
            let known = last.is_some_and(|last| {
                last.findings
                    .iter()
                    .any(|other| other.rule == finding.rule && other.verdict == finding.verdict)
            });
            if known && finding.verdict != RuleVerdict::Breach {
                continue;
            }
            let (word, tone, topic) = match finding.verdict {
                RuleVerdict::Breach => ("fires", Tone::Bad, Topic::Failure),
                RuleVerdict::Warn => ("warns", Tone::Caution, Topic::Warning),
                RuleVerdict::Pending => {
                    ("holds, but not for long enough yet", Tone::Caution, Topic::Progress)
                }
                RuleVerdict::NoData => ("has no data", Tone::Caution, Topic::Warning),
            };
            let fact = self.tell(node, tone, format!("watch: {word}: {}", finding.text));
            fact.topic = topic;
            if finding.verdict != RuleVerdict::Pending {
                fact.weight = Weight::Milestone;
            }
            // A finding that has its values and its queries in its text says all there is to say.
            if finding.verdict != RuleVerdict::Pending && !finding.text.contains(" asked ") {
                fact.details.extend(
                    samples
                        .iter()
                        .filter(|sample| finding.text.contains(&sample.metric.to_string()))
                        .map(asked),
                );
            }
        }
    }

    fn signalled(&mut self, signal: &Signal) {
        let (node, tone, text) = match signal {
            Signal::Approve { node, by, person, .. } if person.is_empty() || person == by => {
                (Some(*node), Tone::Good, format!("approved by {by}"))
            }
            Signal::Approve { node, by, person, .. } => {
                (Some(*node), Tone::Good, format!("approved by {person} of {by}"))
            }
            Signal::Reject { node, by, reason } => {
                (Some(*node), Tone::Bad, format!("rejected by {by}{}", because(reason)))
            }
            Signal::Pause { by } => (None, Tone::Caution, format!("paused by {by}: starts nothing new")),
            Signal::Continue { by } => (None, Tone::Normal, format!("goes on, asked by {by}")),
            Signal::Promote { node, full, by } => {
                let what = if *full { "all that is left of the soak" } else { "the rest of this soak" };
                (Some(*node), Tone::Caution, format!("{by} promotes: skips {what}"))
            }
            Signal::Retry { node, by } => (Some(*node), Tone::Normal, format!("tried again, asked by {by}")),
            Signal::Cancel { by, reason } => {
                (None, Tone::Caution, format!("cancelled by {by}{}", because(reason)))
            }
            Signal::Override { node, by, reason } => (
                Some(*node),
                Tone::Caution,
                format!("opened without its conditions by {by}{}", because(reason)),
            ),
        };
        let fact = self.tell(node, tone, text);
        fact.weight = Weight::Milestone;
        fact.topic = Topic::Attention;
    }
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

/// Where a value came from: what it is, what was asked.
fn asked(sample: &Sample) -> String {
    let value = sample.value.as_ref().map_or_else(|| "no data".to_owned(), value_text);
    let note = sample.note.as_ref().map_or(String::new(), |note| format!(" ({note})"));
    if sample.asked.is_empty() {
        format!("{} = {value}{note}", sample.metric)
    } else {
        format!("{} = {value}{note}, asked: {}", sample.metric, sample.asked)
    }
}

/// `error_rate 0.2% (stable 0.1%), ready 100%`: the candidate's values first, the others beside them.
pub fn samples_text(samples: &[Sample]) -> String {
    use cdpipe_model::expr::{MeasureName, Subject};
    let value = |sample: &Sample| sample.value.as_ref().map_or_else(|| "no data".to_owned(), value_text);
    let name = |sample: &Sample| match &sample.metric.measure {
        MeasureName::Ready => "ready".to_owned(),
        MeasureName::Failed => "failed".to_owned(),
        MeasureName::Requests => "requests".to_owned(),
        MeasureName::Named { name, .. } => name.clone(),
    };
    let mut groups: Vec<(String, Vec<&Sample>)> = Vec::new();
    for sample in samples {
        let name = name(sample);
        match groups.iter_mut().find(|(other, _)| *other == name) {
            Some((_, list)) => list.push(sample),
            None => groups.push((name, vec![sample])),
        }
    }
    let parts: Vec<String> = groups
        .into_iter()
        .map(|(name, mut list)| {
            list.sort_by_key(|sample| match sample.metric.subject {
                Subject::Candidate | Subject::Service => 0,
                Subject::Stable => 1,
                Subject::Baseline => 2,
            });
            let others: Vec<String> = list
                .iter()
                .skip(1)
                .map(|sample| format!("{} {}", sample.metric.subject.as_str(), value(sample)))
                .collect();
            let own = list.first().map_or(String::new(), |sample| match sample.metric.subject {
                Subject::Candidate | Subject::Service => value(sample),
                other => format!("{} {}", other.as_str(), value(sample)),
            });
            if others.is_empty() {
                format!("{name} {own}")
            } else {
                format!("{name} {own} ({})", others.join(", "))
            }
        })
        .collect();
    if parts.is_empty() { "nothing measured".to_owned() } else { parts.join(", ") }
}

/// A measured value with as many digits as one wants to read.
fn value_text(value: &cdpipe_model::Value) -> String {
    use cdpipe_model::Value;
    let round = |n: f64| {
        let digits = if n.abs() >= 100.0 { 1.0 } else { 100.0 };
        (n * digits).round() / digits
    };
    match value {
        Value::Percent(n) => Value::Percent(round(*n)).to_string(),
        Value::Duration(ms) if *ms < 1000.0 => Value::Duration(round(*ms)).to_string(),
        Value::Number(n) => Value::Number(round(*n)).to_string(),
        other => other.to_string(),
    }
}

fn explain(fact: &mut Fact, fault: &Fault) {
    fact.details.extend(fault.details.iter().map(|line| clean(line)));
    if let Some(help) = &fault.help {
        fact.details.push(format!("help: {help}"));
    }
}

/// The tone of an outcome.
pub fn tone_of(outcome: Outcome) -> Tone {
    match outcome {
        Outcome::Succeeded => Tone::Good,
        Outcome::Skipped => Tone::Dim,
        Outcome::Cancelled | Outcome::RolledBack => Tone::Caution,
        Outcome::TimedOut | Outcome::Failed | Outcome::RollbackFailed => Tone::Bad,
    }
}
