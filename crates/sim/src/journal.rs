//! The journal of a simulated run: in memory, with an engine that dies at a given write, people who answer, and a world that reads along.

use crate::case::Crash;
use crate::clock::{Halt, VirtualClock};
use crate::given::Given;
use crate::world::World;
use cdpipe_check::testing::GateAnswer;
use cdpipe_engine::{Batch, Clock, Journal, Letter, MemoryJournal, Status};
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::BoxFuture;
use cdpipe_model::record::{Record, Signal};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::{Fault, Outcome, ReleaseId};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A run with more records than this is one that never ends.
const MAX_RECORDS: usize = 50_000;

/// What a deploy does to its place.
#[derive(Debug, Clone)]
pub(crate) struct DeployEnd {
    pub(crate) place: (cdpipe_model::EnvName, cdpipe_model::ServiceName),
    /// What should serve now; `None` for nothing.
    pub(crate) serves: Option<ReleaseId>,
    /// The undo failed, and says so: then this is what the deploy was to bring, and it may be there whole all the same.
    pub(crate) given_up: Option<ReleaseId>,
}

pub(crate) struct SimJournal {
    memory: MemoryJournal,
    clock: Arc<VirtualClock>,
    world: Arc<World>,
    given: Arc<Given>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Writes of the engine that is there now.
    writes: u32,
    /// Where it dies.
    crash: Option<Crash>,
    /// Writes of the first engine, and of all.
    total: u32,
    records: usize,
    /// By deploy: what it brings in, and what served before.
    programs: HashMap<cdpipe_model::action::StepRef, (ReleaseSpec, Option<ReleaseId>)>,
    ends: BTreeMap<(cdpipe_model::EnvName, cdpipe_model::ServiceName), DeployEnd>,
}

impl SimJournal {
    pub(crate) fn new(clock: Arc<VirtualClock>, world: Arc<World>, given: Arc<Given>) -> Self {
        Self { memory: MemoryJournal::new(), clock, world, given, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another engine takes over, and dies there.
    pub(crate) fn begin(&self, crash: Option<Crash>) {
        let mut state = self.state();
        state.writes = 0;
        state.crash = crash;
    }

    pub(crate) fn records(&self) -> Vec<(u64, Arc<Record>)> {
        self.memory.records()
    }

    /// Writes of all engines.
    pub(crate) fn total_writes(&self) -> u32 {
        self.state().total
    }

    /// Writes of the engine that was there last.
    pub(crate) fn last_writes(&self) -> u32 {
        self.state().writes
    }

    pub(crate) fn ends(&self) -> Vec<DeployEnd> {
        self.state().ends.values().cloned().collect()
    }

    fn read_along(&self, record: &Record) {
        match record {
            Record::Intent { action } => self.world.learn(action),
            Record::Programmed { step, program } => {
                self.world.programmed(step);
                let stable = program.stable.as_ref().map(ReleaseSpec::id);
                self.state().programs.insert(step.clone(), (program.candidate.clone(), stable));
            }
            Record::StepFinished { step, outcome, .. } => self.step_finished(step, *outcome),
            Record::ApprovalAsked { node, by, quorum, .. } => self.people(*node, by, *quorum),
            _ => {}
        }
    }

    fn step_finished(&self, step: &cdpipe_model::action::StepRef, outcome: Outcome) {
        let mut state = self.state();
        let Some((candidate, before)) = state.programs.get(step).cloned() else { return };
        let Some(place) = self.place(step) else { return };
        let succeeded = outcome == Outcome::Succeeded;
        let serves = if succeeded { Some(candidate.id()) } else { before };
        let given_up = (outcome == Outcome::RollbackFailed).then(|| candidate.id());
        state.ends.insert(place.clone(), DeployEnd { place: place.clone(), serves, given_up });
        drop(state);
        if succeeded {
            self.world.is_good(place, candidate.id());
        }
    }

    fn place(
        &self,
        step: &cdpipe_model::action::StepRef,
    ) -> Option<(cdpipe_model::EnvName, cdpipe_model::ServiceName)> {
        let node = self.given.plan().node(step.node?)?;
        let cdpipe_model::plan::NodeKind::Stage(stage) = &node.kind else { return None };
        match &stage.steps.get(step.index as usize)?.kind {
            cdpipe_model::plan::StepKind::Deploy(deploy) => Some(crate::given::place_of(deploy)),
            _ => None,
        }
    }

    /// People answer at once, or never.
    fn people(&self, node: cdpipe_model::NodeId, by: &[String], quorum: u32) {
        let named = |at: u32| by.get(at as usize).or(by.first()).cloned();
        let name = |at: u32| named(at).unwrap_or_else(|| format!("person-{}", at + 1));
        let now_ms = self.clock.now_ms();
        match self.given.answer(node) {
            Some(GateAnswer::Approved) => {
                for at in 0..quorum.max(1) {
                    self.memory.send(
                        now_ms,
                        Signal::Approve {
                            node,
                            by: name(at),
                            // Two that give it are two people, also where the file names one group.
                            person: if by.get(at as usize).is_some() {
                                String::new()
                            } else {
                                format!("person {at}")
                            },
                            effect_hash: String::new(),
                        },
                    );
                }
            }
            Some(GateAnswer::Rejected) => {
                let reason = "the test rejects it".to_owned();
                self.memory.send(now_ms, Signal::Reject { node, by: name(0), reason });
            }
            Some(GateAnswer::Expired) | None => {}
        }
    }

    fn dies(&self, after: bool) -> bool {
        let state = self.state();
        state.crash.is_some_and(|crash| crash.write == state.writes && crash.after == after)
    }

    fn die(&self, when: &str) {
        self.world.note(format!("crash: the engine dies {when} it writes what it decided"));
        self.clock.halt(Halt::Crash);
    }
}

impl Journal for SimJournal {
    fn append<'a>(&'a self, batch: Batch<'a>) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            if self.dies(false) {
                self.die("before");
                std::future::pending::<()>().await;
            }
            let records = batch.records;
            self.memory.append(batch).await?;
            let count = {
                let mut state = self.state();
                state.records += records.len();
                state.total += 1;
                state.records
            };
            self.world.set_records(count);
            for record in records {
                self.read_along(record);
            }
            if self.dies(true) {
                self.die("after");
                std::future::pending::<()>().await;
            }
            self.state().writes += 1;
            if count > MAX_RECORDS {
                self.clock.halt(Halt::Endless);
                std::future::pending::<()>().await;
            }
            Ok(())
        })
    }

    fn letters(&self, after: u64) -> Result<Vec<Letter>, Fault> {
        self.memory.letters(after)
    }

    fn wait_letters(&self, after: u64) -> BoxFuture<'_, Result<Vec<Letter>, Fault>> {
        self.memory.wait_letters(after)
    }

    fn note_epoch<'a>(&'a self, key: &'a LockKey, epoch: u64) -> BoxFuture<'a, Result<(), Fault>> {
        self.memory.note_epoch(key, epoch)
    }

    fn epochs(&self) -> Result<BTreeMap<LockKey, u64>, Fault> {
        self.memory.epochs()
    }

    fn park(&self, inputs: Vec<Record>, status: Status) -> BoxFuture<'_, Result<(), Fault>> {
        self.memory.park(inputs, status)
    }
}
