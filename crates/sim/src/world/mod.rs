//! The simulated world: what is there, what happens to a call, and what must never be seen.
//!
//! It outlives engines, as the real one does: an engine that dies leaves behind what its effects did.

mod others;
mod roll;
pub(crate) mod router;
pub(crate) mod target;

use crate::case::{Fault as Strike, FaultKind};
use crate::clock::VirtualClock;
use crate::finding::{Finding, FindingKind};
use crate::given::Given;
use crate::trace::Note;
use cdpipe_engine::Clock;
use cdpipe_model::action::{Action, ActionKind, StepRef};
use cdpipe_model::id::InstanceId;
use cdpipe_model::observe::{Instance, RouteTable};
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::{Call, LockState, Probe};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::service::Route;
use cdpipe_model::{EnvName, Fault, ReleaseId, ServiceName};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One service in one environment.
pub(crate) type Place = (EnvName, ServiceName);

/// From a call to its effect, and from the effect to the answer.
const HALF_WAY_MS: u64 = 10;

/// From the start of an instance to its readiness.
const READY_AFTER_MS: u64 = 1_500;

/// From a router's yes to what it does.
const ROUTED_AFTER_MS: u64 = 200;

/// How long a simulated command takes.
const COMMAND_MS: u64 = 1_000;

/// Bugs that tests plant, to show that they are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// The router says that it follows before it does.
    RoutedTooEarly,
    /// The target says that instances are ready as soon as they are started.
    ReadyTooEarly,
    /// A lock that is given back stays.
    LockStays,
    /// What is stopped goes on running.
    StopForgets,
    /// Nothing can be stopped, however often it is tried.
    StopRefuses,
}

/// What is there.
pub(crate) struct World {
    clock: Arc<VirtualClock>,
    state: Mutex<State>,
    given: Arc<Given>,
    bug: Option<Bug>,
}

/// A release on the simulated target.
#[derive(Debug, Clone)]
pub(crate) struct Release {
    pub(crate) id: ReleaseId,
    pub(crate) spec: ReleaseSpec,
    pub(crate) wanted: u32,
    pub(crate) instances: Vec<SimInstance>,
}

/// An instance on the simulated target.
#[derive(Debug, Clone)]
pub(crate) struct SimInstance {
    pub(crate) id: InstanceId,
    pub(crate) address: String,
    /// `None`: it never will be.
    pub(crate) ready_at_ms: Option<u64>,
    pub(crate) canary: bool,
}

impl SimInstance {
    fn is_ready(&self, now_ms: u64) -> bool {
        self.ready_at_ms.is_some_and(|ready_ms| ready_ms <= now_ms)
    }

    fn seen(&self, now_ms: u64) -> Instance {
        Instance {
            id: self.id.clone(),
            address: Some(self.address.clone()),
            ready: self.is_ready(now_ms),
            reached_at: None,
            restarts: 0,
        }
    }
}

/// What the simulated router does for one route.
#[derive(Debug, Clone, Default)]
pub(crate) struct Routed {
    /// What it was told last.
    pub(crate) told: Option<RouteTable>,
    /// What it does until `live_at_ms`; from then on what it was told.
    before: Option<RouteTable>,
    live_at_ms: u64,
    epoch: u64,
    counted: BTreeMap<ReleaseId, u64>,
    counted_at_ms: u64,
}

impl Routed {
    pub(crate) fn live(&self, now_ms: u64) -> Option<&RouteTable> {
        if now_ms >= self.live_at_ms { self.told.as_ref() } else { self.before.as_ref() }
    }
}

/// A command that was started.
struct Command {
    /// When it ends; `None`: never.
    ends_at_ms: Option<u64>,
    answer: Probe,
}

#[derive(Default)]
struct State {
    services: BTreeMap<Place, Vec<Release>>,
    rolls: BTreeMap<Place, roll::Roll>,
    routes: BTreeMap<(EnvName, Route), Routed>,
    locks: BTreeMap<LockKey, LockState>,
    epochs: BTreeMap<LockKey, u64>,
    flags: BTreeMap<String, String>,
    commands: HashMap<String, Command>,
    next_instance: u32,
    strike: Option<Strike>,
    struck: bool,
    /// The actions of the run by number, as the journal tells them.
    actions: HashMap<u64, ActionKind>,
    programmed: BTreeSet<StepRef>,
    good: BTreeSet<(Place, ReleaseId)>,
    done: HashMap<String, u32>,
    findings: Vec<Finding>,
    notes: Vec<Note>,
    /// Records in the journal by now.
    records: usize,
}

impl World {
    pub(crate) fn new(
        clock: Arc<VirtualClock>,
        given: Arc<Given>,
        strike: Option<Strike>,
        bug: Option<Bug>,
    ) -> Self {
        let mut state = State { strike, ..State::default() };
        for served in &given.serving {
            state.serve(served);
        }
        Self { clock, state: Mutex::new(state), given, bug }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // What a platform does by itself goes on while nobody looks, and while no engine is there.
        state.roll_on(&self.given, self.clock.now_ms());
        state
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Whether this action gives locks back.
    pub(crate) fn is_unlock(&self, action: u64) -> bool {
        matches!(self.state().actions.get(&action), Some(ActionKind::Unlock { .. }))
    }

    /// Reads the journal with the engine: the world must know what an effect id stands for.
    pub(crate) fn learn(&self, action: &Action) {
        self.state().actions.insert(action.id.0, action.kind.clone());
    }

    pub(crate) fn programmed(&self, step: &StepRef) {
        self.state().programmed.insert(step.clone());
    }

    /// From now on this release is one that users may be left with.
    pub(crate) fn is_good(&self, place: Place, release: ReleaseId) {
        self.state().good.insert((place, release));
    }

    pub(crate) fn set_records(&self, records: usize) {
        self.state().records = records;
    }

    /// Remarks for the trace.
    pub(crate) fn note(&self, text: impl Into<String>) {
        let at_ms = self.now_ms();
        let mut state = self.state();
        let after = state.records;
        state.notes.push(Note { after, at_ms, text: text.into() });
    }

    pub(crate) fn notes(&self) -> Vec<Note> {
        self.state().notes.clone()
    }

    pub(crate) fn findings(&self) -> Vec<Finding> {
        self.state().findings.clone()
    }

    /// Whether the fault of this case has happened.
    pub(crate) fn was_struck(&self) -> bool {
        self.state().struck
    }

    /// Locks that somebody holds whose lease goes on.
    pub(crate) fn locks(&self) -> Vec<LockKey> {
        let now_ms = self.now_ms();
        let state = self.state();
        let held = state.locks.iter().filter(|(_, held)| held.expires_ms > now_ms);
        held.map(|(key, _)| key.clone()).collect()
    }

    /// The releases of a service.
    pub(crate) fn releases(&self, place: &Place) -> Vec<Release> {
        self.state().services.get(place).cloned().unwrap_or_default()
    }

    /// What users of a service get: the router's table where there is one.
    pub(crate) fn table(&self, place: &Place) -> Option<RouteTable> {
        let now_ms = self.now_ms();
        let state = self.state();
        let routed = state.routes.iter().find(|((environment, route), _)| {
            *environment == place.0
                && route.service == place.1
                && self.given.route(place).is_none_or(|own| own == route)
        });
        routed.and_then(|(_, routed)| routed.live(now_ms)).cloned()
    }

    /// Whether anything is still shown on another route of the service than its own.
    pub(crate) fn preview_open(&self, place: &Place) -> bool {
        let state = self.state();
        state.routes.iter().any(|((environment, route), routed)| {
            *environment == place.0
                && route.service == place.1
                && self.given.route(place).is_some_and(|own| own != route)
                && routed.told.as_ref().is_some_and(|table| !table.entries.is_empty())
        })
    }

    pub(crate) fn ready_of(&self, release: &Release) -> usize {
        let now_ms = self.now_ms();
        release.instances.iter().filter(|instance| instance.is_ready(now_ms)).count()
    }

    /// Share of users by version, in percent.
    pub(crate) fn shares(&self, place: &Place) -> BTreeMap<String, f64> {
        let releases = self.releases(place);
        let version = |id: &ReleaseId| {
            let found = releases.iter().find(|release| release.id == *id);
            found.map_or_else(|| id.to_string(), |release| release.spec.version.clone())
        };
        let mut shares: BTreeMap<String, f64> = BTreeMap::new();
        if let Some(table) = self.table(place) {
            for entry in table.entries.iter().filter(|entry| entry.weight_bp > 0) {
                *shares.entry(version(&entry.release)).or_default() += f64::from(entry.weight_bp) / 100.0;
            }
            return shares;
        }
        // Nobody steers: each ready instance gets its part.
        let ready: Vec<(String, usize)> = releases
            .iter()
            .map(|release| (release.spec.version.clone(), self.ready_of(release)))
            .filter(|(_, ready)| *ready > 0)
            .collect();
        let all: usize = ready.iter().map(|(_, ready)| ready).sum();
        for (version, ready) in ready {
            let share = 100.0 * f64::from(u32::try_from(ready).unwrap_or(u32::MAX))
                / f64::from(u32::try_from(all.max(1)).unwrap_or(u32::MAX));
            *shares.entry(version).or_default() += share;
        }
        shares
    }

    /// The fault that hits this call, if one does: the first call of the action that the case names.
    fn strike(&self, call: &Call<'_>) -> Option<FaultKind> {
        let number = number_of(call)?;
        let mut state = self.state();
        let strike = state.strike.filter(|strike| strike.action == number && !state.struck)?;
        state.struck = true;
        let (after, at_ms) = (state.records, self.now_ms());
        let what = state.actions.get(&number).map_or("the call", |kind| crate::trace::word(kind));
        let text = format!("fault: {what} (action {number}) {}", strike.kind.words());
        state.notes.push(Note { after, at_ms, text });
        Some(strike.kind)
    }

    /// One call from its start to its answer: half way, the effect, the way back; and whatever this case does to it.
    async fn carry<T>(
        &self,
        call: Call<'_>,
        effect: impl FnOnce(&mut State, u64) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let strike = self.strike(&call);
        match strike {
            Some(FaultKind::Fail) => {
                self.clock.sleep(HALF_WAY_MS).await;
                return Err(Fault::new("simulated", "it failed, as the simulation wanted it"));
            }
            Some(FaultKind::Flaky) => {
                self.clock.sleep(HALF_WAY_MS).await;
                return Err(Fault::new(
                    "simulated",
                    "the connection was refused, as the simulation wanted it",
                )
                .transient());
            }
            Some(FaultKind::Hang) => {
                call.cancel.cancelled().await;
                return Err(Fault::new("cancelled", "it was stopped"));
            }
            Some(FaultKind::Lost | FaultKind::Mute) | None => {}
        }
        tokio::select! {
            biased;
            () = call.cancel.cancelled() => return Err(Fault::new("cancelled", "it was stopped")),
            () = self.clock.sleep(HALF_WAY_MS) => {}
        }
        let answer = {
            let now_ms = self.now_ms();
            effect(&mut self.state(), now_ms)
        };
        self.clock.sleep(HALF_WAY_MS).await;
        match strike {
            Some(FaultKind::Lost) => {
                Err(Fault::new("simulated", "the answer was lost, as the simulation wanted it").transient())
            }
            Some(FaultKind::Mute) => {
                call.cancel.cancelled().await;
                Err(Fault::new("cancelled", "it was stopped"))
            }
            _ => answer,
        }
    }

    /// Whether this call is part of measuring.
    fn measures(&self, call: &Call<'_>) -> bool {
        let number = number_of(call);
        let state = self.state();
        number
            .and_then(|number| state.actions.get(&number))
            .is_some_and(|kind| matches!(kind, ActionKind::Measure { .. }))
    }
}

fn number_of(call: &Call<'_>) -> Option<u64> {
    call.effect.as_str().rsplit_once('/')?.1.parse().ok()
}

impl State {
    fn find(&mut self, kind: FindingKind, place: &Place, now_ms: u64, text: String) {
        let finding = Finding {
            kind,
            place: format!("{} in {}", place.1, place.0),
            text,
            at_ms: now_ms,
            after: self.records,
        };
        if !self.findings.iter().any(|known| known.kind == kind && known.place == finding.place) {
            self.findings.push(finding);
        }
    }

    /// What serves before the run.
    fn serve(&mut self, served: &crate::given::Served) {
        let id = served.spec.id();
        let place = served.place.clone();
        let mut instances = Vec::new();
        for _ in 0..served.replicas {
            instances.push(self.new_instance(&served.spec, Some(0), false));
        }
        if let Some(route) = &served.route {
            let members = instances
                .iter()
                .map(|instance| cdpipe_model::observe::Member {
                    instance: instance.id.clone(),
                    address: instance.address.clone(),
                })
                .collect();
            let table = RouteTable {
                route: route.clone(),
                entries: vec![cdpipe_model::observe::RouteEntry {
                    release: id.clone(),
                    role: cdpipe_model::observe::Role::Stable,
                    weight_bp: 10_000,
                    members,
                }],
                rules: Vec::new(),
                sticky: cdpipe_model::strategy::Sticky::None,
            };
            let routed = Routed {
                before: Some(table.clone()),
                told: Some(table),
                counted_at_ms: crate::clock::EPOCH_MS,
                ..Routed::default()
            };
            self.routes.insert((place.0.clone(), route.clone()), routed);
        }
        let release =
            Release { id: id.clone(), spec: served.spec.clone(), wanted: served.replicas, instances };
        self.services.entry(place.clone()).or_default().push(release);
        self.good.insert((place, id));
    }

    fn new_instance(&mut self, spec: &ReleaseSpec, ready_at_ms: Option<u64>, canary: bool) -> SimInstance {
        self.next_instance += 1;
        let number = self.next_instance;
        SimInstance {
            id: InstanceId(format!("{}-{}-{number}", spec.service, spec.version)),
            address: format!("10.0.{}.{}:80", number / 250, number % 250 + 1),
            ready_at_ms,
            canary,
        }
    }

    /// Ready instances that users can reach now.
    fn reachable(&self, place: &Place, given: &Given, now_ms: u64) -> usize {
        let releases = self.services.get(place).map(Vec::as_slice).unwrap_or_default();
        let ready = |id: &InstanceId| {
            releases
                .iter()
                .flat_map(|release| &release.instances)
                .any(|instance| instance.id == *id && instance.is_ready(now_ms))
        };
        match given.route(place) {
            Some(route) => {
                let routed = self.routes.get(&(place.0.clone(), route.clone()));
                let Some(table) = routed.and_then(|routed| routed.live(now_ms)) else { return 0 };
                let serving = table.entries.iter().filter(|entry| entry.weight_bp > 0);
                serving.flat_map(|entry| &entry.members).filter(|member| ready(&member.instance)).count()
            }
            None => releases
                .iter()
                .flat_map(|release| &release.instances)
                .filter(|instance| instance.is_ready(now_ms))
                .count(),
        }
    }

    /// After a change: users who had somebody to serve them must still have.
    fn check_served(&mut self, place: &Place, given: &Given, before: usize, now_ms: u64, what: &str) {
        let had_good = self.good.iter().any(|(of, _)| of == place);
        if before > 0 && had_good && !given.may_be_away(place) && self.reachable(place, given, now_ms) == 0 {
            let text = format!("{what}, and no ready instance is left for users");
            self.find(FindingKind::LastRetired, place, now_ms, text);
        }
    }
}
