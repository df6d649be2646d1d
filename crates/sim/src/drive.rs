//! One simulated run from its beginning to its end: engines come, die and go on, the world stays.

use crate::case::Case;
use crate::clock::{Executor, Halt, VirtualClock};
use crate::finding::{Finding, FindingKind};
use crate::given::{Given, deploys, place_of};
use crate::journal::{DeployEnd, SimJournal};
use crate::trace::Trace;
use crate::world::router::SimRouter;
use crate::world::target::SimTarget;
use crate::world::{Bug, Place, World};
use cdpipe_engine::{Clock, Engine, Fanout, Journal, MemoryLocks, Options, Past, Ports, RunEnd};
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::{Router, Target};
use cdpipe_model::{EnvName, Outcome, ReleaseId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::watch;

/// A process that died is missed, and the run is resumed, after so long.
const RESUMED_AFTER_MS: u64 = 5_000;

/// Resumes after which nobody would try again.
const MAX_RESUMES: u32 = 200;

/// How a simulated run ended.
#[derive(Debug, Clone)]
pub struct Ending {
    /// How it stands at the end.
    pub end: End,
    /// All that happened.
    pub trace: Trace,
    /// What must not be and was seen.
    pub findings: Vec<Finding>,
    /// Virtual time from the beginning to the end, milliseconds.
    pub took_ms: u64,
    /// Users of each service by version, in percent.
    pub traffic: BTreeMap<Place, BTreeMap<String, f64>>,
    /// Writes to the journal.
    pub writes: u32,
    /// Writes of the engine that was there last.
    pub last_writes: u32,
    /// Whether the fault of the case came to be.
    pub struck: bool,
    /// Releases that serve at the end with their ready instances, by place.
    pub state: BTreeMap<Place, Vec<(String, usize)>>,
}

/// How a run stands at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It is over.
    Finished(Outcome),
    /// It waits for a person, and nobody comes.
    Waiting(String),
    /// It stands still, goes on for ever, or cdpipe gave up.
    Stuck(String),
}

/// Plays runs, one after the other, on the thread that made it.
pub struct Simulator {
    executor: Executor,
    bug: Option<Bug>,
}

impl Simulator {
    /// A simulator.
    ///
    /// # Errors
    /// If the system has no room for a runtime.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { executor: Executor::new()?, bug: None })
    }

    #[cfg(test)]
    pub(crate) fn with_bug(bug: Bug) -> Self {
        Self { executor: Executor::new().unwrap(), bug: Some(bug) }
    }

    /// Plays one run.
    pub fn play(&self, given: &Arc<Given>, case: &Case) -> Ending {
        let clock = &self.executor.clock;
        clock.reset();
        let world = Arc::new(World::new(Arc::clone(clock), Arc::clone(given), case.fault, self.bug));
        let journal = Arc::new(SimJournal::new(Arc::clone(clock), Arc::clone(&world), Arc::clone(given)));
        let locks = Arc::new(MemoryLocks::new());
        let (interrupt, interrupts) = watch::channel(0);
        let mut options = Options::new("cdpipe@simulation", interrupts);
        // A run that waits for a person ends and is resumed, as one in CI does.
        options.wait = false;
        options.interrupt_grace_ms = 0;
        let began_ms = clock.now_ms();
        let mut crashes = case.crashes.iter();
        let mut resumes = 0;
        let end = loop {
            journal.begin(crashes.next().copied());
            let mut past = Past::new(Arc::clone(given.header()));
            for (_, record) in journal.records() {
                past.fold(&record);
            }
            let engine = Engine {
                ports: ports(given, &world),
                locks: Arc::clone(&locks) as _,
                clock: Arc::clone(clock) as _,
                events: Fanout::new(),
                log: None,
                options: options.clone(),
            };
            let ended = self.executor.run(engine.resume(past, Arc::clone(&journal) as Arc<dyn Journal>));
            resumes += 1;
            match ended {
                Ok(RunEnd::Finished(outcome)) => break End::Finished(outcome),
                Ok(RunEnd::Suspended { waiting }) => {
                    if !wait_for_timer(given, &journal, clock) {
                        break End::Waiting(waiting);
                    }
                }
                Ok(RunEnd::Interrupted) => break End::Stuck("it was interrupted".to_owned()),
                Ok(RunEnd::Stopped(fault)) => break End::Stuck(fault.message),
                Err(Halt::Crash) => clock.advance(RESUMED_AFTER_MS),
                Err(Halt::Idle) => break End::Stuck("nothing goes on and nothing is waited for".to_owned()),
                Err(Halt::Endless) => break End::Stuck("it goes on for ever".to_owned()),
            }
            if resumes > MAX_RESUMES {
                break End::Stuck(format!("it was resumed {MAX_RESUMES} times"));
            }
        };
        drop(interrupt);
        let took_ms = clock.now_ms() - began_ms;
        // Whatever is on its way to the router arrives.
        clock.advance(RESUMED_AFTER_MS);
        let mut findings = world.findings();
        judge(given, &world, &locks, &journal.ends(), &end, case, &mut findings, journal.records().len());
        let places: BTreeSet<Place> = deploys(given.plan())
            .map(place_of)
            .chain(given.serving.iter().map(|served| served.place.clone()))
            .collect();
        let state = |place: &Place| {
            let releases = world.releases(place);
            let running = releases.iter().filter(|release| !release.instances.is_empty());
            running.map(|release| (release.spec.version.clone(), world.ready_of(release))).collect()
        };
        Ending {
            end,
            trace: Trace { records: journal.records(), notes: world.notes() },
            findings,
            took_ms,
            traffic: places.iter().map(|place| (place.clone(), world.shares(place))).collect(),
            writes: journal.total_writes(),
            last_writes: journal.last_writes(),
            struck: world.was_struck(),
            state: places.iter().map(|place| (place.clone(), state(place))).collect(),
        }
    }
}

/// A run that was suspended is resumed when one of its timers is due; false if it has none.
fn wait_for_timer(given: &Given, journal: &SimJournal, clock: &VirtualClock) -> bool {
    let mut machine = cdpipe_machine::Machine::new(Arc::clone(given.header()));
    for (_, record) in journal.records() {
        machine.apply(&record);
    }
    let Some((due_ms, _)) = machine.next_timer() else { return false };
    clock.advance(due_ms.saturating_sub(clock.now_ms()));
    true
}

fn ports(given: &Given, world: &Arc<World>) -> Ports {
    let mut targets: BTreeMap<EnvName, Arc<dyn Target>> = BTreeMap::new();
    let mut routers: BTreeMap<EnvName, Arc<dyn Router>> = BTreeMap::new();
    for (name, environment) in &given.plan().environments {
        let target = SimTarget { world: Arc::clone(world), environment: name.clone() };
        targets.insert(name.clone(), Arc::new(target));
        if environment.traffic.is_some() {
            let router = SimRouter { world: Arc::clone(world), environment: name.clone() };
            routers.insert(name.clone(), Arc::new(router));
        }
    }
    Ports {
        targets,
        routers,
        measurer: Arc::clone(world) as _,
        runner: Arc::clone(world) as _,
        messenger: Arc::clone(world) as _,
        secrets: Arc::clone(world) as _,
    }
}

/// Looks at what is there after the end.
#[allow(clippy::too_many_arguments, reason = "everything that is left when a run is over")]
fn judge(
    given: &Given,
    world: &World,
    locks: &MemoryLocks,
    ends: &[DeployEnd],
    end: &End,
    case: &Case,
    findings: &mut Vec<Finding>,
    records: usize,
) {
    let at_ms = world.now_ms();
    let mut find = |kind: FindingKind, place: String, text: String| {
        findings.push(Finding { kind, place, text, at_ms, after: records });
    };
    if let End::Stuck(why) = end {
        find(FindingKind::NoEnd, "the run".to_owned(), why.clone());
    }
    let End::Finished(outcome) = end else { return };
    if *outcome == Outcome::Cancelled {
        find(
            FindingKind::WrongEnd,
            "the run".to_owned(),
            "it ends cancelled, and nobody has cancelled it".to_owned(),
        );
    }
    for key in world.locks() {
        // A lock that could not be given back ends with its lease; what else is left is left for ever.
        if !unlock_was_hit(case, world) {
            find(FindingKind::LockStays, name_of(&key), "the lock is held after the end".to_owned());
        }
    }
    for key in named_locks(given) {
        if locks.holder(&key).is_some() {
            find(FindingKind::LockStays, format!("`{key}`"), "the lock is held after the end".to_owned());
        }
    }
    let mut judged: BTreeSet<Place> = BTreeSet::new();
    for deploy in ends {
        judged.insert(deploy.place.clone());
        let Err(text) = settled(world, &deploy.place, deploy.serves.as_ref()) else { continue };
        let whole = |release: &ReleaseId| settled(world, &deploy.place, Some(release)).is_ok();
        let text = match &deploy.given_up {
            None => text,
            // What the deploy was to bring is there whole: an end that nobody asked for, and no broken one.
            Some(candidate) if whole(candidate) => continue,
            Some(_) => format!("the rollback failed: {text}"),
        };
        find(FindingKind::NeitherState, format!("{} in {}", deploy.place.1, deploy.place.0), text);
    }
    for served in &given.serving {
        if !judged.contains(&served.place)
            && let Err(text) = settled(world, &served.place, Some(&served.spec.id()))
        {
            find(FindingKind::NeitherState, format!("{} in {}", served.place.1, served.place.0), text);
        }
    }
}

fn unlock_was_hit(case: &Case, world: &World) -> bool {
    case.fault.is_some_and(|fault| world.is_unlock(fault.action)) && world.was_struck()
}

fn named_locks(given: &Given) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for node in &given.plan().nodes {
        if let cdpipe_model::plan::NodeKind::Stage(stage) = &node.kind {
            names.extend(stage.locks.iter().filter_map(|key| match key {
                LockKey::Named(name) => Some(name.clone()),
                LockKey::Service { .. } => None,
            }));
        }
    }
    names
}

fn name_of(key: &LockKey) -> String {
    match key {
        LockKey::Named(name) => format!("`{name}`"),
        LockKey::Service { environment, service } => format!("{service} in {environment}"),
    }
}

/// Whether exactly this release serves there, whole, and nothing of any other runs.
fn settled(world: &World, place: &Place, serves: Option<&ReleaseId>) -> Result<(), String> {
    let releases = world.releases(place);
    let name = |id: &ReleaseId| {
        let found = releases.iter().find(|release| release.id == *id);
        found.map_or_else(|| id.to_string(), |release| release.spec.version.clone())
    };
    for release in &releases {
        let ready = world.ready_of(release);
        if serves == Some(&release.id) {
            if ready < release.wanted.max(1) as usize {
                return Err(format!(
                    "{} of {} instances of {} are ready",
                    ready, release.wanted, release.spec.version
                ));
            }
            if release.instances.iter().any(|instance| instance.canary) {
                return Err(format!("{} has canary instances still", release.spec.version));
            }
        } else if !release.instances.is_empty() {
            return Err(format!(
                "{} of {} still run",
                plural(release.instances.len(), "instance"),
                release.spec.version
            ));
        }
    }
    if let Some(id) = serves
        && !releases.iter().any(|release| release.id == *id)
    {
        return Err(format!("{} should serve and is gone", name(id)));
    }
    if let Some(table) = world.table(place) {
        for entry in &table.entries {
            if Some(&entry.release) != serves {
                return Err(format!("{} % of the users get {}", entry.weight_bp / 100, name(&entry.release)));
            }
        }
        if table.entries.is_empty() && serves.is_some() {
            return Err("the route is closed".to_owned());
        }
        if !table.rules.is_empty() {
            return Err("rules of the canary still steer users".to_owned());
        }
    }
    if world.preview_open(place) {
        return Err("the preview is still open".to_owned());
    }
    Ok(())
}

fn plural(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}
