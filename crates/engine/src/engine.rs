//! Running and resuming: what a caller hands in, and how a run ends.

use crate::act::{Ask, Context};
use crate::builtin::Builtin;
use crate::clock::Clock;
use crate::dispatch::{Decider, Dispatcher};
use crate::events::Fanout;
use crate::journal::Journal;
use crate::leases::{Inherited, Leases};
use crate::locks::NamedLocks;
use crate::output::OutputLog;
use crate::ports::Ports;
use crate::store::{Store, StoreError};
use cdpipe_machine::Machine;
use cdpipe_model::action::{Action, ActionKind, ActionResult, Answer};
use cdpipe_model::event::Event;
use cdpipe_model::observe::Instance;
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::LockOwner;
use cdpipe_model::record::{Record, RunHeader};
use cdpipe_model::{ActionId, Fault, Outcome, RunId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long instances may take to be reachable again where an engine before this one reached them.
const REACH_AGAIN_MS: u64 = 5_000;
/// Reporters have so long to finish after the run.
const REPORTERS_GRACE_MS: u64 = 2_000;

/// How a run ends, for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEnd {
    /// It is over.
    Finished(Outcome),
    /// It waits for a person, and can be resumed.
    Suspended {
        /// What it waits for.
        waiting: String,
    },
    /// It was interrupted between two steps, and can be resumed.
    Interrupted,
    /// The journal can't be written, or cdpipe has a bug: nothing was done after the last record, and it can be resumed.
    Stopped(Fault),
}

impl RunEnd {
    /// The exit code of `cdpipe run`.
    pub fn exit_code(&self) -> u8 {
        match self {
            RunEnd::Finished(outcome) => outcome.exit_code(),
            RunEnd::Suspended { .. } => 5,
            RunEnd::Interrupted => 130,
            RunEnd::Stopped(_) => 1,
        }
    }
}

/// How a run is driven.
#[derive(Clone)]
pub struct Options {
    /// `user@host`, for the journal and for locks.
    pub who: String,
    /// Whether to wait for a person; else the run is suspended when only a person can move it on.
    pub wait: bool,
    /// How often the user has asked to stop. At 1 the run is interrupted, at 2 it no longer waits for what is under way.
    pub interrupts: watch::Receiver<u32>,
    /// How long effects under way may take to come back after an interrupt.
    pub interrupt_grace_ms: u64,
    /// How long a lock lasts without being renewed, instead of what the run's records say: an owner that is silent for that long loses it.
    pub lease_ms: Option<u64>,
    /// Asked about effects of which nobody knows whether they were done; without it their `on_interrupt` decides.
    pub ask: Option<Ask>,
}

impl Options {
    /// Waits for people, asks nobody, gives effects ten seconds.
    pub fn new(who: &str, interrupts: watch::Receiver<u32>) -> Self {
        Self {
            who: who.to_owned(),
            wait: true,
            interrupts,
            interrupt_grace_ms: 10_000,
            lease_ms: None,
            ask: None,
        }
    }
}

/// A run as its journal tells it.
pub struct Past {
    machine: Machine,
    notes: Notes,
    last_seq: u64,
}

/// What the engine itself must know of the past.
#[derive(Default)]
pub(crate) struct Notes {
    locks: HashMap<ActionId, (Option<cdpipe_model::NodeId>, Vec<LockKey>, u64)>,
    pub(crate) held: BTreeMap<LockKey, Inherited>,
    pub(crate) cancel_asked: HashSet<ActionId>,
    builtin: Builtin,
}

impl Notes {
    pub(crate) fn fold(&mut self, record: &Record) {
        self.builtin.learn(record);
        match record {
            Record::Intent { action } => match &action.kind {
                ActionKind::Lock { keys, lease_ms } => {
                    self.locks.insert(action.id, (action.step.node, keys.clone(), *lease_ms));
                }
                ActionKind::Unlock { keys } => {
                    // From here on it is being given back, and a resume does that again; it must not be taken for that.
                    for key in keys {
                        self.held.remove(key);
                    }
                }
                _ => {}
            },
            Record::CancelAsked { action } => {
                self.cancel_asked.insert(*action);
            }
            Record::Returned { action, result, .. } => {
                self.cancel_asked.remove(action);
                if let ActionResult::Done(Answer::Locked { epoch }) = result
                    && let Some((node, keys, lease_ms)) = self.locks.remove(action)
                {
                    for key in keys {
                        self.held.insert(key, Inherited { node, lease_ms, epoch: *epoch });
                    }
                }
            }
            _ => {}
        }
    }
}

impl Past {
    /// A run that has not begun.
    pub fn new(header: Arc<RunHeader>) -> Self {
        Self { machine: Machine::new(header), notes: Notes::default(), last_seq: 0 }
    }

    /// Folds the next record. Decides nothing.
    pub fn fold(&mut self, record: &Record) {
        self.machine.apply(record);
        self.notes.fold(record);
        self.last_seq += 1;
    }

    /// Reads a run from the store and folds it. To go on with it, take the run first (`Store::take`): what is read before may be
    /// overtaken by the engine that still has it.
    ///
    /// # Errors
    /// As `Store::header` and `Store::read`.
    pub fn read(store: &Store, run: &RunId) -> Result<Self, StoreError> {
        let mut past = Self::new(Arc::new(store.header(run)?));
        store.read(run, 0, |_, _, record| past.fold(&record))?;
        Ok(past)
    }

    /// What is run.
    pub fn header(&self) -> &Arc<RunHeader> {
        self.machine.header()
    }

    /// The state that the records fold to.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// How many records were folded.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// What was under way when the last engine stopped.
    pub fn in_flight(&self) -> impl Iterator<Item = &Action> {
        self.machine.in_flight()
    }
}

/// Drives one run.
pub struct Engine {
    /// What it acts through.
    pub ports: Ports,
    /// Named locks, and the queue before every lock.
    pub locks: Arc<dyn NamedLocks>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Reporters.
    pub events: Fanout,
    /// Where the output of commands is kept.
    pub log: Option<OutputLog>,
    /// How.
    pub options: Options,
}

impl Engine {
    /// Runs a new run to where it ends, for now. The journal has the header already.
    pub async fn run(self, header: Arc<RunHeader>, journal: Arc<dyn Journal>) -> RunEnd {
        self.resume(Past::new(header), journal).await
    }

    /// Goes on with a run from where its journal ends.
    pub async fn resume(mut self, past: Past, journal: Arc<dyn Journal>) -> RunEnd {
        self.clock = crate::clock::going_on(self.clock, past.machine.now_ms());
        let header = Arc::clone(past.header());
        let mut known: BTreeMap<_, Vec<Instance>> = BTreeMap::new();
        for (environment, instance) in past.machine.instances().filter(|(_, one)| one.reached_at.is_some()) {
            known.entry(environment).or_default().push(instance.clone());
        }
        for (environment, instances) in known {
            if let Some(target) = self.ports.targets.get(environment) {
                // Who can't be reached is told by who asks there.
                let again = target.reach_again(&instances);
                let _ = tokio::time::timeout(Duration::from_millis(REACH_AGAIN_MS), again).await;
            }
        }
        self.drive(header, past.machine, past.notes, past.last_seq, journal).await
    }

    pub(crate) async fn drive<D: Decider>(
        self,
        header: Arc<RunHeader>,
        decider: D,
        notes: Notes,
        last_seq: u64,
        journal: Arc<dyn Journal>,
    ) -> RunEnd {
        let ports = Arc::new(self.ports);
        let owner =
            LockOwner { run: header.run.clone(), who: self.options.who.clone(), pid: std::process::id() };
        let leases =
            Leases::new(owner, Arc::clone(&ports), self.locks, Arc::clone(&self.clock), Arc::clone(&journal))
                .with_lease(self.options.lease_ms);
        if last_seq > 0 {
            notes.builtin.set_resumed();
        }
        let context = Arc::new(Context {
            run: header.run.clone(),
            ports,
            leases,
            builtin: notes.builtin,
            clock: self.clock,
            events: self.events,
            log: self.log,
            ask: self.options.ask.clone(),
        });
        context.events.publish(Event::Opened(header));
        let dispatcher = Dispatcher::new(decider, last_seq + 1, journal, Arc::clone(&context), self.options);
        let drive = async {
            match context.leases.inherit(&notes.held).await {
                Ok(()) => dispatcher.drive(&notes.cancel_asked).await,
                Err(fault) => RunEnd::Stopped(fault),
            }
        };
        let end = tokio::select! {
            end = drive => end,
            // Renews leases for as long as the run is driven; it never ends by itself.
            () = context.leases.keep() => RunEnd::Interrupted,
        };
        context.events.publish(Event::Closed);
        context.events.close(Duration::from_millis(REPORTERS_GRACE_MS)).await;
        // The last one to hold the context: dropping it writes what is left of the output.
        drop(context);
        end
    }
}
