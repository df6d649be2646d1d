//! The loop: take what is ready, let the machine decide, make it durable, then act.
//!
//! Invariants: nothing is done whose intent is not durable; when the journal refuses, or the locks beside it, nothing more is done at all
//! and no stage is blamed; what comes back
//! while the run is being interrupted is neither lost nor decided on; one turn of the loop costs no more than what it takes in.

use crate::act::{Context, Start, act, panicked};
use crate::engine::{Options, RunEnd};
use crate::journal::{Batch, Journal, Letter, Status};
use crate::perform::describe;
use crate::store::is_of_state;
use crate::wake::CancelFlag;
use cdpipe_machine::Machine;
use cdpipe_model::action::{Action, ActionResult};
use cdpipe_model::event::Event;
use cdpipe_model::ports::BoxFuture;
use cdpipe_model::record::{Record, TimerId};
use cdpipe_model::{ActionId, Fault, NodeId, Outcome};
use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokio::task::{Id, JoinError, JoinSet};

/// Inputs that one batch takes in; the rest waits for the next.
const MAX_INPUTS: usize = 256;

/// Tasks that were dropped have so long to be gone.
const SHUTDOWN_MS: u64 = 1_000;

/// Who decides: the machine, and scripts in the tests of the loop.
pub(crate) trait Decider: Send {
    /// As `Machine::apply`.
    fn apply(&mut self, record: &Record);
    /// As `Machine::accept`.
    fn accept(&mut self, input: Record) -> Vec<Record>;
    /// As `Machine::in_flight`, cloned: asked once, at the start.
    fn in_flight(&self) -> Vec<Action>;
    /// As `Machine::next_timer`.
    fn next_timer(&self) -> Option<(u64, &TimerId)>;
    /// As `Machine::outcome`.
    fn outcome(&self) -> Option<Outcome>;
    /// As `Machine::waiting`.
    fn waiting(&self) -> Option<String>;
}

impl Decider for Machine {
    fn apply(&mut self, record: &Record) {
        Machine::apply(self, record);
    }
    fn accept(&mut self, input: Record) -> Vec<Record> {
        Machine::accept(self, input)
    }
    fn in_flight(&self) -> Vec<Action> {
        Machine::in_flight(self).cloned().collect()
    }
    fn next_timer(&self) -> Option<(u64, &TimerId)> {
        Machine::next_timer(self)
    }
    fn outcome(&self) -> Option<Outcome> {
        Machine::outcome(self)
    }
    fn waiting(&self) -> Option<String> {
        Machine::waiting(self)
    }
}

/// An action under way.
struct Running {
    record: Arc<Record>,
    cancel: Arc<CancelFlag>,
}

/// The loop of one run.
pub(crate) struct Dispatcher<D> {
    decider: D,
    journal: Arc<dyn Journal>,
    context: Arc<Context>,
    options: Options,
    next_seq: u64,
    /// The last letter of the inbox that was taken in.
    taken: u64,
    tasks: JoinSet<(ActionId, ActionResult)>,
    /// A panic tells only the id of its task.
    task_actions: HashMap<Id, ActionId>,
    running: HashMap<ActionId, Running>,
}

/// What ended a wait.
enum Woke {
    Interrupted,
    Returned(ActionId, ActionResult),
    Letters(Result<Vec<Letter>, Fault>),
    TimerDue,
    LocksLost(Vec<Option<NodeId>>),
}

impl<D: Decider> Dispatcher<D> {
    pub(crate) fn new(
        decider: D,
        next_seq: u64,
        journal: Arc<dyn Journal>,
        context: Arc<Context>,
        options: Options,
    ) -> Self {
        Self {
            decider,
            journal,
            context,
            options,
            next_seq,
            taken: 0,
            tasks: JoinSet::new(),
            task_actions: HashMap::new(),
            running: HashMap::new(),
        }
    }

    /// Drives the run to where it ends, for now. `cancel_asked` are actions in flight whose cancellation was decided before.
    pub(crate) async fn drive(mut self, cancel_asked: &HashSet<ActionId>) -> RunEnd {
        let end = match self.drive_on(cancel_asked).await {
            Ok(end) => end,
            Err(fault) => self.stop(fault).await,
        };
        // What is dropped is dropped before we answer; a port that blocks its thread is not waited for.
        let clock = Arc::clone(&self.context.clock);
        tokio::select! {
            biased;
            () = self.tasks.shutdown() => {}
            () = clock.sleep(SHUTDOWN_MS) => {}
        }
        end
    }

    async fn drive_on(&mut self, cancel_asked: &HashSet<ActionId>) -> Result<RunEnd, Fault> {
        self.open(cancel_asked).await?;
        let mut letters: Option<BoxFuture<'static, Result<Vec<Letter>, Fault>>> = None;
        let mut timer: Option<(u64, BoxFuture<'static, ()>)> = None;
        loop {
            if let Some(outcome) = self.decider.outcome() {
                return Ok(RunEnd::Finished(outcome));
            }
            if let Some(end) = self.rest().await? {
                return Ok(end);
            }
            let due_ms = self.decider.next_timer().map(|(due_ms, _)| due_ms);
            if timer.as_ref().map(|(armed_ms, _)| *armed_ms) != due_ms {
                timer = due_ms.map(|due_ms| (due_ms, sleep_until(&self.context, due_ms)));
            }
            let letters_wait = letters.get_or_insert_with(|| wait_letters(&self.journal, self.taken));
            let woke = {
                let Self { options, tasks, context, .. } = &mut *self;
                tokio::select! {
                    biased;
                    () = interrupted(options, 1) => Woke::Interrupted,
                    Some(joined) = tasks.join_next_with_id() => self.joined(joined),
                    lost = context.leases.next_losses() => Woke::LocksLost(lost),
                    () = due(&mut timer) => Woke::TimerDue,
                    got = letters_wait => Woke::Letters(got),
                }
            };
            let mut inputs = Vec::new();
            let mut last_letter = None;
            match woke {
                Woke::Interrupted => return self.interrupt().await,
                Woke::Returned(action, result) => inputs.push(self.returned(action, result)?),
                Woke::LocksLost(nodes) => self.stop_without_lock(&nodes),
                Woke::TimerDue => timer = None,
                Woke::Letters(got) => {
                    letters = None;
                    last_letter = self.read_letters(got?, &mut inputs);
                }
            }
            while inputs.len() < MAX_INPUTS
                && let Some(joined) = self.tasks.try_join_next_with_id()
            {
                if let Woke::Returned(action, result) = self.joined(joined) {
                    inputs.push(self.returned(action, result)?);
                }
            }
            self.turn(inputs, last_letter).await?;
        }
    }

    /// The first turn: tells the machine that an engine is there, hands it what waited in the inbox, and goes on with what was in
    /// flight.
    async fn open(&mut self, cancel_asked: &HashSet<ActionId>) -> Result<(), Fault> {
        let before: Vec<Action> = self.decider.in_flight();
        let resumed = self.next_seq > 1;
        let by = format!("{} pid {}", self.options.who, std::process::id());
        let mut inputs = vec![Record::Opened { at_ms: self.context.clock.now_ms(), by, resumed }];
        let mut letters = Vec::new();
        loop {
            let more = self.journal.letters(letters.last().map_or(0, |letter: &Letter| letter.id))?;
            if more.is_empty() {
                break;
            }
            letters.extend(more);
        }
        let parked: HashSet<ActionId> = letters
            .iter()
            .filter_map(|letter| match &letter.input {
                Record::Returned { action, .. } => Some(*action),
                _ => None,
            })
            .collect();
        for action in &before {
            // What came back after the interrupt needs no probing.
            if !parked.contains(&action.id) {
                let record = Arc::new(Record::Intent { action: action.clone() });
                let cancel = Arc::new(CancelFlag::default());
                self.running.insert(action.id, Running { record, cancel });
            }
        }
        let in_flight: HashSet<ActionId> = before.iter().map(|action| action.id).collect();
        let last_letter = letters.last().map(|letter| letter.id);
        inputs.extend(letters.into_iter().map(|letter| letter.input).filter(|input| match input {
            Record::Returned { action, .. } => in_flight.contains(action),
            _ => true,
        }));
        self.taken = last_letter.unwrap_or(0);
        self.turn(inputs, last_letter).await?;
        // Durable now: an engine has the run, and goes on with what was begun.
        for action in before {
            let Some(running) = self.running.get(&action.id) else { continue };
            let cancel = Arc::clone(&running.cancel);
            if cancel_asked.contains(&action.id) {
                cancel.set();
            }
            let start = if action.kind.is_convergent() { Start::Fresh } else { Start::Probe };
            self.spawn(Arc::clone(&running.record), cancel, start);
        }
        Ok(())
    }

    /// Decides on these inputs and on every timer that is due, makes it durable, then acts on it.
    async fn turn(&mut self, inputs: Vec<Record>, last_letter: Option<u64>) -> Result<(), Fault> {
        let now_ms = self.context.clock.now_ms();
        let mut records: Vec<Arc<Record>> = Vec::new();
        for input in inputs {
            records.extend(self.decide(input)?.into_iter().map(Arc::new));
        }
        let mut fired = 0;
        while let Some((due_ms, timer)) = self.decider.next_timer().filter(|(due_ms, _)| *due_ms <= now_ms) {
            let timer = timer.clone();
            if fired == MAX_INPUTS {
                break;
            }
            fired += 1;
            let decided = self.decide(Record::TimerFired { at_ms: now_ms, timer: timer.clone() })?;
            records.extend(decided.into_iter().map(Arc::new));
            if self.decider.next_timer() == Some((due_ms, &timer)) {
                return Err(Fault::new(
                    "internal",
                    format!("a bug in cdpipe: timer {timer:?} fires for ever"),
                ));
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        let status = records.iter().rev().find_map(|record| match &**record {
            Record::RunFinished { outcome, .. } => {
                Some(Status::Finished { outcome: *outcome, at_ms: now_ms })
            }
            _ => None,
        });
        self.append(&records, now_ms, last_letter, status).await?;
        for record in records {
            match &*record {
                Record::Intent { action } => {
                    self.context.builtin.learn(&record);
                    let cancel = Arc::new(CancelFlag::default());
                    let running = Running { record: Arc::clone(&record), cancel: Arc::clone(&cancel) };
                    self.running.insert(action.id, running);
                    self.spawn(Arc::clone(&record), cancel, Start::Fresh);
                }
                Record::CancelAsked { action } => {
                    if let Some(running) = self.running.get(action) {
                        running.cancel.set();
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A panic of the machine is a bug; the run stops with nothing of it done, and can be resumed by a cdpipe without it.
    fn decide(&mut self, input: Record) -> Result<Vec<Record>, Fault> {
        catch_unwind(AssertUnwindSafe(|| self.decider.accept(input))).map_err(|panic| panicked(&*panic))
    }

    async fn append(
        &mut self,
        records: &[Arc<Record>],
        at_ms: u64,
        taken: Option<u64>,
        status: Option<Status>,
    ) -> Result<(), Fault> {
        let sync = records
            .iter()
            .any(|record| matches!(&**record, Record::Intent { action } if action.kind.needs_sync()));
        let batch = Batch { first_seq: self.next_seq, at_ms, records, sync, taken, status };
        self.journal.append(batch).await?;
        if !self.context.events.is_empty() {
            for (seq, record) in (self.next_seq..).zip(records) {
                self.context.events.publish(Event::Record { seq, at_ms, record: Arc::clone(record) });
            }
        }
        self.next_seq += records.len() as u64;
        Ok(())
    }

    fn spawn(&mut self, record: Arc<Record>, cancel: Arc<CancelFlag>, start: Start) {
        let Record::Intent { action } = &*record else { return };
        let id = action.id;
        let context = Arc::clone(&self.context);
        let record = Arc::clone(&record);
        let handle = self.tasks.spawn(async move {
            let result = match &*record {
                Record::Intent { action } => act(&context, action, start, &cancel).await,
                // Only intents get here; see above.
                _ => ActionResult::Cancelled,
            };
            (id, result)
        });
        self.task_actions.insert(handle.id(), id);
    }

    fn joined(&mut self, joined: Result<(Id, (ActionId, ActionResult)), JoinError>) -> Woke {
        match joined {
            Ok((task, (action, result))) => {
                self.task_actions.remove(&task);
                Woke::Returned(action, result)
            }
            Err(error) => {
                let action = self.task_actions.remove(&error.id()).unwrap_or(ActionId(0));
                let fault = match error.try_into_panic() {
                    Ok(panic) => panicked(&*panic),
                    Err(error) => Fault::new("internal", format!("the task of an action ended: {error}")),
                };
                Woke::Returned(action, ActionResult::Failed(fault))
            }
        }
    }

    /// # Errors
    /// The fault of a lock that could not be asked for because the state can't be used: a resume asks again.
    fn returned(&mut self, action: ActionId, mut result: ActionResult) -> Result<Record, Fault> {
        let running = self.running.remove(&action);
        if let ActionResult::Failed(fault) = &result
            && is_of_state(fault)
        {
            return Err(fault.clone());
        }
        if let Some(Running { record, .. }) = running
            && let Record::Intent { action } = &*record
            && result == ActionResult::Cancelled
            && Context::stops_without_lock(&action.kind)
            && let Some(fault) = self.context.leases.lost(action.step.node)
        {
            // Not the machine asked for it to stop but the loss of the lock.
            result = ActionResult::Failed(fault);
        }
        Ok(Record::Returned { at_ms: self.context.clock.now_ms(), action, result })
    }

    /// Takes letters in as inputs. Answers the id of the last one.
    fn read_letters(&mut self, letters: Vec<Letter>, inputs: &mut Vec<Record>) -> Option<u64> {
        let last = letters.last().map(|letter| letter.id);
        self.taken = last.unwrap_or(self.taken);
        // A result is only ever parked for the next engine, and `open` has read those.
        inputs.extend(
            letters
                .into_iter()
                .map(|letter| letter.input)
                .filter(|input| matches!(input, Record::Signalled { .. })),
        );
        last
    }

    fn stop_without_lock(&self, nodes: &[Option<NodeId>]) {
        for running in self.running.values() {
            if let Record::Intent { action } = &*running.record
                && nodes.contains(&action.step.node)
                && Context::stops_without_lock(&action.kind)
            {
                running.cancel.set();
            }
        }
    }

    /// Where nothing is under way and nothing is timed: a wait for a person, which may be left to a resume, or a bug.
    async fn rest(&mut self) -> Result<Option<RunEnd>, Fault> {
        if !self.tasks.is_empty() {
            return Ok(None);
        }
        let Some(waiting) = self.decider.waiting() else {
            if self.decider.next_timer().is_none() {
                return Err(Fault::new(
                    "internal",
                    "a bug in cdpipe: the run has not ended and nothing is left to do",
                ));
            }
            return Ok(None);
        };
        if self.options.wait || !self.journal.letters(self.taken)?.is_empty() {
            return Ok(None);
        }
        let record = Record::Suspended { waiting: waiting.clone() };
        self.decider.apply(&record);
        let status = Status::Suspended { waiting: waiting.clone() };
        self.append(&[Arc::new(record)], self.context.clock.now_ms(), None, Some(status)).await?;
        Ok(Some(RunEnd::Suspended { waiting }))
    }

    /// Stops between two steps: reads are dropped, effects get a moment to come back, and what comes back is kept for the resume. The
    /// machine is told nothing, so nothing new is decided, and the journal says nothing that did not happen.
    async fn interrupt(&mut self) -> Result<RunEnd, Fault> {
        let results = self.wind_down(2).await;
        let at_ms = self.context.clock.now_ms();
        let inputs = results
            .into_iter()
            // Cancelled by us just now: the resume begins it again.
            .filter(|(_, result)| *result != ActionResult::Cancelled)
            .map(|(action, result)| Record::Returned { at_ms, action, result })
            .collect();
        self.journal.park(inputs, Status::Interrupted).await?;
        Ok(RunEnd::Interrupted)
    }

    /// Results of effects that came back in time, and before there were so many interrupts.
    async fn wind_down(&mut self, interrupts: u32) -> Vec<(ActionId, ActionResult)> {
        let mut waits_for: HashSet<ActionId> = HashSet::new();
        for (id, running) in &self.running {
            let Record::Intent { action } = &*running.record else { continue };
            match &action.kind {
                // Whoever only stands in line goes; a lock that is being taken comes back taken or not.
                cdpipe_model::action::ActionKind::Lock { .. } => {
                    running.cancel.set();
                    waits_for.insert(*id);
                }
                kind if kind.is_effect() => {
                    waits_for.insert(*id);
                }
                _ => {}
            }
        }
        let mut results = Vec::new();
        let context = Arc::clone(&self.context);
        let mut over = context.clock.sleep(self.options.interrupt_grace_ms);
        let mut options = self.options.clone();
        while !waits_for.is_empty() {
            let woke = tokio::select! {
                biased;
                () = interrupted(&mut options, interrupts) => break,
                Some(joined) = self.tasks.join_next_with_id() => self.joined(joined),
                () = &mut over => break,
            };
            if let Woke::Returned(action, result) = woke
                && waits_for.remove(&action)
            {
                self.running.remove(&action);
                results.push((action, result));
            }
        }
        self.tasks.abort_all();
        results
    }

    /// The journal refused, or the machine has a bug: nothing more is done. What is under way may come back, but can't be recorded.
    async fn stop(&mut self, fault: Fault) -> RunEnd {
        tracing::error!(%fault, "the run stops");
        // Nobody has asked for this, so the first Ctrl-C that comes now ends the wait.
        let asked = *self.options.interrupts.borrow();
        let done = self.wind_down(asked + 1).await;
        let mut details: Vec<String> = Vec::new();
        for (action, result) in done {
            let how = match result {
                ActionResult::Done(_) => "was done",
                ActionResult::Cancelled => "was stopped",
                _ => "failed",
            };
            details.push(format!(
                "action {} {how}; the journal does not say so, a resume looks for it",
                action.0
            ));
        }
        for running in self.running.values() {
            if let Record::Intent { action } = &*running.record {
                details.push(format!("left under way: {} (action {})", describe(&action.kind), action.id.0));
            }
        }
        details.sort();
        RunEnd::Stopped(fault.details(details))
    }
}

fn sleep_until(context: &Arc<Context>, due_ms: u64) -> BoxFuture<'static, ()> {
    let clock = Arc::clone(&context.clock);
    Box::pin(async move { clock.sleep_until(due_ms).await })
}

fn wait_letters(journal: &Arc<dyn Journal>, after: u64) -> BoxFuture<'static, Result<Vec<Letter>, Fault>> {
    let journal = Arc::clone(journal);
    Box::pin(async move { journal.wait_letters(after).await })
}

async fn due(timer: &mut Option<(u64, BoxFuture<'static, ()>)>) {
    match timer {
        Some((_, due)) => due.await,
        None => std::future::pending().await,
    }
}

/// Resolves once there have been so many interrupts.
async fn interrupted(options: &mut Options, times: u32) {
    // Without a sender there are no more to come.
    if options.interrupts.wait_for(|count| *count >= times).await.is_err() {
        std::future::pending::<()>().await;
    }
}
