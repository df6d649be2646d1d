//! One action from its start to its result: deadline, cancellation, probing after a crash, and bounds on what comes back.

use crate::builtin::Builtin;
use crate::clock::Clock;
use crate::events::Fanout;
use crate::leases::Leases;
use crate::output::OutputLog;
use crate::perform::{describe, needs_lock, perform, place, probe};
use crate::ports::Ports;
use crate::wake::CancelFlag;
use cdpipe_model::action::{Action, ActionKind, ActionResult, Answer, StepRef};
use cdpipe_model::event::{Event, Stream};
use cdpipe_model::ports::{BoxFuture, Call, Cancel, Probe, Sink};
use cdpipe_model::{ActionId, EffectId, Fault, RunId};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A port is asked to stop at its deadline, and dropped so much later.
const GRACE_MS: u64 = 10_000;

/// How often a command that outlived its engine is looked at.
const PROBE_EVERY_MS: u64 = 500;

/// What a port answers that can't say any more whether it was done.
const LOST: &str = "outcome-unknown";

/// Lines that a fault may carry into the journal, and bytes of each.
const MAX_DETAILS: usize = 100;
const MAX_TEXT_BYTES: usize = 8 << 10;

/// Bytes of all outputs of one command.
const MAX_OUTPUTS_BYTES: usize = 1 << 20;

/// What a person says of an effect of which nobody knows whether it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was done.
    Done,
    /// It was not done, or may be done twice.
    Again,
    /// Let the step fail, or do what its `on_interrupt` says.
    Unknown,
}

/// Asks a person what became of an action, with the fault that says why it is not known.
pub type Ask = Arc<dyn Fn(&Action, &Fault) -> BoxFuture<'static, Verdict> + Send + Sync>;

/// How an action begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// It was just decided.
    Fresh,
    /// Its intent is of an engine that died: it may have been done, or be under way.
    Probe,
}

/// What all actions of a run share.
pub(crate) struct Context {
    pub(crate) run: RunId,
    pub(crate) ports: Arc<Ports>,
    pub(crate) leases: Leases,
    pub(crate) builtin: Builtin,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) events: Fanout,
    pub(crate) log: Option<OutputLog>,
    pub(crate) ask: Option<Ask>,
}

/// Output and progress of one action.
struct ActionSink<'a> {
    context: &'a Context,
    step: &'a StepRef,
    action: ActionId,
    /// The number of the last line that this engine has taken.
    taken: AtomicU64,
    /// An engine before this one may have taken lines too.
    resumed: bool,
}

impl ActionSink<'_> {
    fn line(&self, number: Option<u64>, stream: Stream, line: &str) {
        if let Some(log) = &self.context.log {
            let number = number.map(|number| (self.action, number));
            log.write(self.context.clock.now_ms(), self.step, number, stream, line);
        }
        if !self.context.events.is_empty() {
            self.context.events.publish(Event::Output {
                step: self.step.clone(),
                stream,
                line: bounded(line.to_owned(), crate::output::MAX_LINE_BYTES),
            });
        }
    }
}

impl Sink for ActionSink<'_> {
    fn output(&self, stream: Stream, line: &str) {
        self.line(None, stream, line);
    }

    fn numbered(&self, number: u64, stream: Stream, line: &str) {
        self.taken.fetch_max(number, Ordering::SeqCst);
        self.line(Some(number), stream, line);
    }

    fn taken(&self) -> u64 {
        let before = match &self.context.log {
            Some(log) if self.resumed => log.taken_before(self.action),
            _ => 0,
        };
        before.max(self.taken.load(Ordering::SeqCst))
    }

    fn room(&self) -> Option<BoxFuture<'_, ()>> {
        let log = self.context.log.as_ref().filter(|log| log.is_behind())?;
        Some(Box::pin(log.written()))
    }

    fn progress(&self, text: &str) {
        if !self.context.events.is_empty() {
            self.context.events.publish(Event::Progress {
                step: self.step.clone(),
                action: self.action,
                text: bounded(text.to_owned(), MAX_TEXT_BYTES),
            });
        }
    }
}

/// Does an action, within its deadline, and says what came of it.
pub(crate) async fn act(
    context: &Context,
    action: &Action,
    start: Start,
    cancel: &CancelFlag,
) -> ActionResult {
    if needs_lock(&action.kind) {
        context.leases.renew_overdue(action.step.node).await;
        if let Some(fault) = context.leases.lost(action.step.node) {
            return ActionResult::Failed(fault);
        }
    }
    if cancel.is_cancelled() && start == Start::Fresh {
        // Cancelled before it began: by the run that died, or in the same batch.
        return ActionResult::Cancelled;
    }
    let effect = action.id.effect(&context.run);
    let sink = ActionSink {
        context,
        step: &action.step,
        action: action.id,
        taken: AtomicU64::new(0),
        resumed: start == Start::Probe,
    };
    // The port is told to stop by a flag of its own: the deadline and a cancel both set it, and we keep them apart.
    let stop = CancelFlag::default();
    if cancel.is_cancelled() {
        stop.set();
    }
    let work = async {
        let call = call(context, action, &effect, &sink, &stop);
        match start {
            Start::Fresh => match perform_with(context, action, call).await {
                // Lost sight of while this engine ran: the same as after a crash.
                Err(fault) if fault.kind == LOST => unknown(context, action, call, fault).await,
                answer => returned(answer),
            },
            Start::Probe => look_first(context, action, call).await,
        }
    };
    let result = supervise(context, action, cancel, &stop, work).await;
    if let Some(log) = &context.log {
        // Before the end is journaled: nobody looks for lines of a command that is over.
        log.written().await;
    }
    bound_result(result)
}

fn call<'a>(
    context: &'a Context,
    action: &'a Action,
    effect: &'a EffectId,
    sink: &'a ActionSink<'a>,
    stop: &'a CancelFlag,
) -> Call<'a> {
    let (environment, service) = place(&action.kind);
    Call {
        effect,
        step: &action.step,
        deadline: Duration::from_millis(action.deadline_ms),
        sink,
        cancel: stop,
        secrets: &*context.ports.secrets,
        epoch: context.leases.epoch(action.step.node, environment, service),
    }
}

async fn perform_with(context: &Context, action: &Action, call: Call<'_>) -> Result<Answer, Fault> {
    perform(&context.ports, &context.leases, &context.builtin, action, call).await
}

fn returned(answer: Result<Answer, Fault>) -> ActionResult {
    match answer {
        Ok(answer) => ActionResult::Done(answer),
        Err(fault) if fault.kind == "timed-out" => ActionResult::TimedOut(fault),
        Err(fault) => ActionResult::Failed(fault),
    }
}

/// The future is polled together with the deadline and the cancellation; a port that heeds neither is dropped after the grace.
async fn supervise(
    context: &Context,
    action: &Action,
    cancel: &CancelFlag,
    stop: &CancelFlag,
    work: impl Future<Output = ActionResult>,
) -> ActionResult {
    let mut work = std::pin::pin!(work);
    let stopped = |fault: &Fault| matches!(fault.kind.as_str(), "cancelled" | "timed-out");
    let expired = tokio::select! {
        // What has come back counts, also if the deadline comes at the same moment.
        biased;
        result = &mut work => return match result {
            ActionResult::Failed(fault) if fault.kind == "cancelled" && cancel.is_cancelled() => {
                ActionResult::Cancelled
            }
            result => result,
        },
        () = cancel.cancelled() => false,
        () = context.clock.sleep(action.deadline_ms) => true,
    };
    stop.set();
    let what = describe(&action.kind);
    let late = tokio::select! {
        biased;
        result = &mut work => Some(result),
        () = context.clock.sleep(GRACE_MS) => None,
    };
    match late {
        Some(ActionResult::Failed(fault) | ActionResult::TimedOut(fault)) if stopped(&fault) => {
            if expired {
                ActionResult::TimedOut(timed_out(action, &what).details(fault.details))
            } else {
                ActionResult::Cancelled
            }
        }
        Some(result) => result,
        None if expired => ActionResult::TimedOut(timed_out(action, &what)),
        // A read leaves nothing behind. Of an effect nobody knows how far it got.
        None if !action.kind.is_effect() => ActionResult::Cancelled,
        None => {
            let message = format!("{what} was cancelled and did not stop within {} s", GRACE_MS / 1_000);
            ActionResult::TimedOut(Fault::new("timed-out", message))
        }
    }
}

fn timed_out(action: &Action, what: &str) -> Fault {
    #[allow(clippy::cast_precision_loss, reason = "a duration for people")]
    let within = cdpipe_model::value::format_duration_ms(action.deadline_ms as f64);
    Fault::new("timed-out", format!("{what} took longer than {within}"))
        .help("set a larger `timeout` if it needs more, or look at the output for what it waited for")
}

/// After a crash: an effect that can't simply be done again is looked for first.
async fn look_first(context: &Context, action: &Action, call: Call<'_>) -> ActionResult {
    loop {
        match probe(&context.ports, action, call).await {
            Probe::Done(answer) => return ActionResult::Done(answer),
            Probe::Failed(fault) => return returned(Err(fault)),
            Probe::NotDone if call.cancel.is_cancelled() => return returned(Err(stopped_before())),
            Probe::NotDone => return returned(perform_with(context, action, call).await),
            Probe::Running => {
                call.sink.progress("still running since before cdpipe was stopped");
                tokio::select! {
                    () = context.clock.sleep(PROBE_EVERY_MS) => {}
                    () = call.cancel.cancelled() => {
                        crate::perform::stop(&context.ports, action, call).await;
                        return returned(Err(stopped_before()));
                    }
                }
            }
            Probe::Unknown(fault) => return unknown(context, action, call, fault).await,
        }
    }
}

/// Nobody knows whether it was done: a person says, or the step's `on_interrupt`.
async fn unknown(context: &Context, action: &Action, call: Call<'_>, fault: Fault) -> ActionResult {
    let verdict = match &context.ask {
        Some(ask) => ask(action, &fault).await,
        None => Verdict::Unknown,
    };
    match verdict {
        Verdict::Done => ActionResult::Done(assumed(&action.kind)),
        Verdict::Again => returned(perform_with(context, action, call).await),
        Verdict::Unknown => ActionResult::Unknown(fault),
    }
}

fn stopped_before() -> Fault {
    Fault::new("cancelled", "it was stopped")
}

/// What an action answers of which a person says that it was done.
fn assumed(kind: &ActionKind) -> Answer {
    match kind {
        ActionKind::Run(_) | ActionKind::Exec { .. } => Answer::Exited { outputs: Default::default() },
        ActionKind::Http { expect_status, .. } => {
            Answer::Status(expect_status.first().copied().unwrap_or(200))
        }
        _ => Answer::Nothing,
    }
}

/// The fault of an action whose code panicked.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Fault {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    Fault::new("internal", format!("a bug in cdpipe: {}", bounded(text, MAX_TEXT_BYTES)))
        .help("please report it with the output of `cdpipe status --json`")
}

/// The journal takes no more than this of an answer: a command can write faster than anyone can resume.
fn bound_result(result: ActionResult) -> ActionResult {
    match result {
        ActionResult::Done(Answer::Exited { outputs }) => {
            let bytes: usize = outputs.iter().map(|(key, value)| key.len() + value.len()).sum();
            if bytes > MAX_OUTPUTS_BYTES {
                let message = format!("its outputs are {bytes} bytes; up to {MAX_OUTPUTS_BYTES} are taken");
                return ActionResult::Failed(
                    Fault::new("output-too-large", message)
                        .help("write a path or a digest to $CDPIPE_OUTPUT"),
                );
            }
            ActionResult::Done(Answer::Exited { outputs })
        }
        ActionResult::Done(answer) => ActionResult::Done(answer),
        ActionResult::Failed(fault) => ActionResult::Failed(bound_fault(fault)),
        ActionResult::TimedOut(fault) => ActionResult::TimedOut(bound_fault(fault)),
        ActionResult::Unknown(fault) => ActionResult::Unknown(bound_fault(fault)),
        ActionResult::Cancelled => ActionResult::Cancelled,
    }
}

fn bound_fault(mut fault: Fault) -> Fault {
    let surplus = fault.details.len().saturating_sub(MAX_DETAILS);
    // The last lines say most.
    fault.details.drain(..surplus);
    for line in &mut fault.details {
        *line = bounded(std::mem::take(line), MAX_TEXT_BYTES);
    }
    fault.message = bounded(fault.message, MAX_TEXT_BYTES);
    fault
}

fn bounded(mut text: String, max_bytes: usize) -> String {
    if text.len() > max_bytes {
        let mut end = max_bytes;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

impl Context {
    /// Whether an action of this stage should stop because the stage has lost its lock.
    pub(crate) fn stops_without_lock(kind: &ActionKind) -> bool {
        needs_lock(kind)
            || matches!(
                kind,
                ActionKind::AwaitReady { .. }
                    | ActionKind::AwaitRouted { .. }
                    | ActionKind::AwaitDrained { .. }
                    | ActionKind::Run(_)
                    | ActionKind::Exec { .. }
            )
    }
}
