//! The locks of one run: waiting for them in order, renewing them while they are held, and noticing when one is lost.
//!
//! Invariant: a stage whose lock was lost changes nothing on its target any more; what it has under way is asked to stop.

use crate::clock::Clock;
use crate::journal::Journal;
use crate::locks::NamedLocks;
use crate::ports::Ports;
use crate::wake::{Bell, CancelFlag};
use cdpipe_model::action::{Block, StepRef};
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::{Call, LockOwner, Sink};
use cdpipe_model::{EffectId, EnvName, Fault, NodeId, ServiceName};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a target that holds the locks may be away while a lock is waited for.
const AWAY_MS: u64 = 15_000;

/// How often someone who waits for a lock looks again.
const LOOK_EVERY_MS: u64 = 1_000;

/// How often it says so while nothing changes.
const TELL_EVERY_MS: u64 = 60_000;

/// How long one call to a target about a lock may take.
const CALL_MS: u64 = 10_000;

/// The locks of one run.
pub(crate) struct Leases {
    owner: LockOwner,
    ports: Arc<Ports>,
    named: Arc<dyn NamedLocks>,
    clock: Arc<dyn Clock>,
    journal: Arc<dyn Journal>,
    /// Instead of what is asked for.
    lease_ms: Option<u64>,
    state: Mutex<State>,
    bell: Bell,
}

#[derive(Default)]
struct State {
    held: BTreeMap<LockKey, Held>,
    lost: HashMap<Option<NodeId>, Fault>,
    /// Losses that the dispatcher has not been told yet.
    news: Vec<Option<NodeId>>,
    /// Renewing and giving back take turns: a renewal on its way would else take again what was just given back.
    turn: Arc<tokio::sync::Mutex<()>>,
}

struct Held {
    node: Option<NodeId>,
    /// `None` while it is only claimed: nobody else of this run goes for it meanwhile.
    epoch: Option<u64>,
    lease_ms: u64,
    renewed_at_ms: u64,
}

/// A lock that a run held when its engine died, as its journal says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inherited {
    pub(crate) node: Option<NodeId>,
    pub(crate) lease_ms: u64,
    /// The largest of the epochs that were answered for the locks taken with it.
    pub(crate) epoch: u64,
}

impl Leases {
    pub(crate) fn new(
        owner: LockOwner,
        ports: Arc<Ports>,
        named: Arc<dyn NamedLocks>,
        clock: Arc<dyn Clock>,
        journal: Arc<dyn Journal>,
    ) -> Self {
        Self {
            owner,
            ports,
            named,
            clock,
            journal,
            lease_ms: None,
            state: Mutex::default(),
            bell: Bell::default(),
        }
    }

    /// The same, with this length of every lease instead of what is asked for.
    pub(crate) fn with_lease(self, lease_ms: Option<u64>) -> Self {
        Self { lease_ms, ..self }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The epoch to act under: of the service's lock, or of any lock that the stage holds in that environment, else 0.
    pub(crate) fn epoch(
        &self,
        node: Option<NodeId>,
        environment: Option<&EnvName>,
        service: Option<&ServiceName>,
    ) -> u64 {
        let Some(environment) = environment else { return 0 };
        let state = self.state();
        let mut best = 0;
        for (key, held) in state.held.iter().filter(|(_, held)| held.node == node) {
            if let LockKey::Service { environment: theirs, service: locked } = key
                && theirs == environment
            {
                if Some(locked) == service {
                    return held.epoch.unwrap_or(0);
                }
                best = best.max(held.epoch.unwrap_or(0));
            }
        }
        best
    }

    /// Why this stage may change nothing any more, if so.
    pub(crate) fn lost(&self, node: Option<NodeId>) -> Option<Fault> {
        self.state().lost.get(&node).cloned()
    }

    /// Resolves with stages that have lost a lock, once for each.
    pub(crate) async fn next_losses(&self) -> Vec<Option<NodeId>> {
        loop {
            let rung = self.bell.listen();
            let news = std::mem::take(&mut self.state().news);
            if !news.is_empty() {
                return news;
            }
            rung.await;
        }
    }

    /// Takes all of these, in order, or none. Waits until the deadline of the call. Answers the largest epoch.
    pub(crate) async fn acquire(
        &self,
        keys: &[LockKey],
        lease_ms: u64,
        call: Call<'_>,
    ) -> Result<u64, Fault> {
        let lease_ms = self.lease_ms.unwrap_or(lease_ms);
        let node = call.step.node;
        let give_up_ms =
            self.clock.now_ms().saturating_add(u64::try_from(call.deadline.as_millis()).unwrap_or(u64::MAX));
        self.state().lost.remove(&node);
        let mut epochs = 0;
        let mut taken = Vec::new();
        for key in keys {
            match self.acquire_one(key, lease_ms, call, give_up_ms).await {
                Ok((epoch, is_new)) => {
                    epochs = epochs.max(epoch);
                    if is_new {
                        taken.push(key.clone());
                    }
                }
                Err(fault) => {
                    if let Err(error) = self.release(&taken, call).await {
                        tracing::warn!(%error, "a lock was not given back; it ends with its lease");
                    }
                    return Err(fault);
                }
            }
        }
        Ok(epochs)
    }

    async fn acquire_one(
        &self,
        key: &LockKey,
        lease_ms: u64,
        call: Call<'_>,
        give_up_ms: u64,
    ) -> Result<(u64, bool), Fault> {
        if let Some(epoch) = self.claim(key, lease_ms, call, give_up_ms).await? {
            return Ok((epoch, false));
        }
        let line = line_of(key);
        let taken = match self.stand_in_line(key, &line, lease_ms, call, give_up_ms).await {
            Ok(epoch) => match self.journal.note_epoch(key, epoch).await {
                Ok(()) => Ok(epoch),
                Err(fault) => {
                    self.give_back(key, call).await?;
                    Err(fault)
                }
            },
            Err(fault) => Err(fault),
        };
        self.named.leave(&line, &self.owner).await;
        let mut state = self.state();
        match taken {
            Ok(epoch) => {
                let renewed_at_ms = self.clock.now_ms();
                state.held.insert(
                    key.clone(),
                    Held { node: call.step.node, epoch: Some(epoch), lease_ms, renewed_at_ms },
                );
                drop(state);
                self.bell.ring();
                Ok((epoch, true))
            }
            Err(fault) => {
                state.held.remove(key);
                drop(state);
                self.bell.ring();
                Err(fault)
            }
        }
    }

    /// Claims the key among the stages of this run; answers its epoch if this stage holds it already.
    async fn claim(
        &self,
        key: &LockKey,
        lease_ms: u64,
        call: Call<'_>,
        give_up_ms: u64,
    ) -> Result<Option<u64>, Fault> {
        loop {
            let rung = self.bell.listen();
            {
                let mut state = self.state();
                match state.held.get(key) {
                    Some(Held { node, epoch: Some(epoch), .. }) if *node == call.step.node => {
                        return Ok(Some(*epoch));
                    }
                    Some(_) => {}
                    None => {
                        let claim = Held { node: call.step.node, epoch: None, lease_ms, renewed_at_ms: 0 };
                        state.held.insert(key.clone(), claim);
                        return Ok(None);
                    }
                }
            }
            call.sink
                .progress(&format!("waiting for lock {}: another stage of this run holds it", name_of(key)));
            let left_ms = self.left_ms(key, give_up_ms, "another stage of this run holds it")?;
            tokio::select! {
                () = rung => {}
                () = self.clock.sleep(left_ms) => {}
                () = call.cancel.cancelled() => return Err(cancelled(key)),
            }
        }
    }

    async fn stand_in_line(
        &self,
        key: &LockKey,
        line: &str,
        lease_ms: u64,
        call: Call<'_>,
        give_up_ms: u64,
    ) -> Result<u64, Fault> {
        let mut told: Option<(String, u64)> = None;
        let mut away_since_ms: Option<u64> = None;
        loop {
            if call.cancel.is_cancelled() {
                return Err(cancelled(key));
            }
            let why = match self.named.line_up(line, &self.owner).await? {
                Some(first) => format!("run {} of {} is before us", first.run, first.who),
                None => match self.take(key, lease_ms, call).await {
                    Ok(epoch) => return Ok(epoch),
                    Err(fault) if fault.kind == "locked" => {
                        away_since_ms = None;
                        fault.message
                    }
                    // A target that can't be asked is no lock that somebody holds: that ends long before a wait for a lock does.
                    Err(fault) if fault.transient => {
                        let now_ms = self.clock.now_ms();
                        if now_ms.saturating_sub(*away_since_ms.get_or_insert(now_ms)) >= AWAY_MS {
                            return Err(fault);
                        }
                        fault.message
                    }
                    Err(fault) => return Err(fault),
                },
            };
            // Who holds it is told at once; for how long already, now and then.
            let who =
                why.split(" since ").next().and_then(|text| text.split(", for ").next()).unwrap_or_default();
            let now_ms = self.clock.now_ms();
            if told.as_ref().is_none_or(|(before, at_ms)| before != who || now_ms >= at_ms + TELL_EVERY_MS) {
                call.sink.progress(&format!("waiting for lock {}: {why}", name_of(key)));
                told = Some((who.to_owned(), now_ms));
            }
            let left_ms = self.left_ms(key, give_up_ms, &why)?;
            tokio::select! {
                () = self.clock.sleep(left_ms.min(LOOK_EVERY_MS)) => {}
                () = call.cancel.cancelled() => return Err(cancelled(key)),
            }
        }
    }

    fn left_ms(&self, key: &LockKey, give_up_ms: u64, why: &str) -> Result<u64, Fault> {
        match give_up_ms.saturating_sub(self.clock.now_ms()) {
            0 => Err(Fault::new("timed-out", format!("lock {} was not free in time: {why}", name_of(key)))
                .help("`cdpipe locks` shows who holds it; `cdpipe unlock` frees it if its owner is dead")),
            left_ms => Ok(left_ms),
        }
    }

    async fn take(&self, key: &LockKey, lease_ms: u64, call: Call<'_>) -> Result<u64, Fault> {
        match key {
            LockKey::Named(name) => self.named.acquire(name, &self.owner, lease_ms).await,
            LockKey::Service { environment, .. } => {
                let target = self.ports.targets.get(environment).ok_or_else(|| no_target(environment))?;
                let call = Call { deadline: Duration::from_millis(CALL_MS), ..call };
                // A wait for a lock may be long; one call that never answers must not be the whole of it.
                tokio::select! {
                    biased;
                    answer = target.lock(call, key, &self.owner, Duration::from_millis(lease_ms)) => answer,
                    () = self.clock.sleep(CALL_MS) => Err(silent()),
                }
            }
        }
    }

    /// Gives these back, unless another stage of this run holds them. That this one holds them is not known after a crash in the middle
    /// of giving back; giving back twice is giving back once.
    pub(crate) async fn release(&self, keys: &[LockKey], call: Call<'_>) -> Result<(), Fault> {
        let mut answer = Ok(());
        let node = call.step.node;
        let turn = Arc::clone(&self.state().turn);
        let _turn = turn.lock().await;
        for key in keys {
            if self.state().held.get(key).is_some_and(|held| held.node != node) {
                continue;
            }
            let given = self.give_back(key, call).await;
            // Whatever came of it, we no longer renew it, so it ends with its lease at the latest.
            self.state().held.remove(key);
            self.bell.ring();
            answer = answer.and(given);
        }
        self.state().lost.remove(&node);
        answer
    }

    async fn give_back(&self, key: &LockKey, call: Call<'_>) -> Result<(), Fault> {
        match key {
            LockKey::Named(name) => self.named.release(name, &self.owner).await,
            LockKey::Service { environment, .. } => match self.ports.targets.get(environment) {
                Some(target) => target.unlock(call, key, &self.owner).await,
                None => Err(no_target(environment)),
            },
        }
    }

    /// Takes back what the run held when its engine died.
    ///
    /// # Errors
    /// If the journal can't be read or written.
    pub(crate) async fn inherit(&self, inherited: &BTreeMap<LockKey, Inherited>) -> Result<(), Fault> {
        if inherited.is_empty() {
            return Ok(());
        }
        let noted = self.journal.epochs()?;
        for (key, was) in inherited {
            let lease_ms = self.lease_ms.unwrap_or(was.lease_ms);
            let renewed_at_ms = self.clock.now_ms();
            let before = noted.get(key).copied().unwrap_or(was.epoch);
            let epoch = match self.renew(key, was.node, lease_ms).await {
                // One more than ours: it had ended, and nobody but us has taken it since.
                Ok(epoch) if epoch <= before + 1 => epoch,
                Ok(_) => {
                    self.lose(key, was.node, "another run has held it since").await;
                    continue;
                }
                Err(fault) if fault.kind == "locked" => {
                    self.lose(key, was.node, &fault.message).await;
                    continue;
                }
                // Renewed again soon; it is lost when that fails for the length of the lease.
                Err(_unreachable) => before,
            };
            self.journal.note_epoch(key, epoch).await?;
            let held = Held { node: was.node, epoch: Some(epoch), lease_ms, renewed_at_ms };
            self.state().held.insert(key.clone(), held);
        }
        self.bell.ring();
        Ok(())
    }

    /// Renews what is held, for ever.
    pub(crate) async fn keep(&self) {
        loop {
            let rung = self.bell.listen();
            let shortest = self
                .state()
                .held
                .values()
                .filter(|held| held.epoch.is_some())
                .map(|held| held.lease_ms)
                .min();
            match shortest {
                None => rung.await,
                Some(lease_ms) => {
                    self.clock.sleep((lease_ms / 3).max(1)).await;
                    self.renew_all().await;
                }
            }
        }
    }

    /// Renews first if a lease of this stage is over by the clock: after a machine slept or a process was stopped, the next effect would
    /// else be begun before the renewal has found out who holds the lock by now.
    pub(crate) async fn renew_overdue(&self, node: Option<NodeId>) {
        let now_ms = self.clock.now_ms();
        let overdue = self.state().held.values().any(|held| {
            held.node == node
                && held.epoch.is_some()
                && now_ms.saturating_sub(held.renewed_at_ms) >= held.lease_ms
        });
        if overdue {
            self.renew_all().await;
        }
    }

    async fn renew_all(&self) {
        let held: Vec<(LockKey, Option<NodeId>, u64, u64)> = self
            .state()
            .held
            .iter()
            .filter_map(|(key, held)| Some((key.clone(), held.node, held.epoch?, held.lease_ms)))
            .collect();
        let turn = Arc::clone(&self.state().turn);
        for (key, node, epoch, lease_ms) in held {
            let _turn = turn.lock().await;
            if !self.state().held.contains_key(&key) {
                continue;
            }
            let began_ms = self.clock.now_ms();
            let renewed = self.renew(&key, node, lease_ms).await;
            // One more than ours: it had ended, and nobody but us has taken it since; a machine that slept.
            let kept = renewed.as_ref().ok().filter(|new| **new <= epoch + 1).copied();
            if let Some(new) = kept.filter(|new| *new != epoch)
                && let Err(fault) = self.journal.note_epoch(&key, new).await
            {
                // A journal that refuses stops the run at its next record.
                tracing::warn!(%fault, "the epoch of a lock was not noted");
            }
            let silent_ms = {
                let mut state = self.state();
                let Some(held) = state.held.get_mut(&key).filter(|held| held.epoch == Some(epoch)) else {
                    // Given back meanwhile.
                    continue;
                };
                if kept.is_some() {
                    (held.epoch, held.renewed_at_ms) = (kept, began_ms);
                }
                self.clock.now_ms().saturating_sub(held.renewed_at_ms)
            };
            match renewed {
                Ok(_) if kept.is_some() => {}
                Ok(_) => self.lose(&key, node, "another run has held it meanwhile").await,
                Err(fault) if fault.kind == "locked" => self.lose(&key, node, &fault.message).await,
                Err(fault) if silent_ms >= lease_ms => {
                    self.lose(&key, node, &format!("it could not be renewed: {}", fault.message)).await;
                }
                Err(_unreachable) => {}
            }
        }
    }

    async fn renew(&self, key: &LockKey, node: Option<NodeId>, lease_ms: u64) -> Result<u64, Fault> {
        let within_ms = CALL_MS.min(lease_ms);
        self.aside(node, within_ms, async |call| self.take(key, lease_ms, call).await).await
    }

    /// A call that belongs to no action.
    async fn aside<T>(
        &self,
        node: Option<NodeId>,
        within_ms: u64,
        body: impl AsyncFnOnce(Call<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let effect = EffectId(format!("{}/lock", self.owner.run));
        let step = StepRef { node, block: Block::Main, index: 0 };
        let cancel = CancelFlag::default();
        let call = Call {
            effect: &effect,
            step: &step,
            deadline: Duration::from_millis(within_ms),
            sink: &Nowhere,
            cancel: &cancel,
            secrets: &*self.ports.secrets,
            epoch: 0,
        };
        tokio::select! {
            answer = body(call) => answer,
            () = self.clock.sleep(within_ms) => {
                Err(silent())
            }
        }
    }

    async fn lose(&self, key: &LockKey, node: Option<NodeId>, why: &str) {
        let fault = Fault::new("lock-lost", format!("lock {} was lost: {why}", name_of(key)))
            .help("nothing more is changed there by this run; see who holds it with `cdpipe locks`");
        tracing::warn!(%fault, "a lock was lost");
        {
            let mut state = self.state();
            state.held.remove(key);
            state.lost.insert(node, fault);
            state.news.push(node);
        }
        self.bell.ring();
        // Asking for it may have made it ours again, and a stage that may no longer act must not keep it from others.
        if let Err(fault) = self.aside(node, CALL_MS, async |call| self.give_back(key, call).await).await {
            tracing::warn!(%fault, "a lock that was lost was not given back; it ends with its lease");
        }
    }
}

/// The queue before a lock, in the table that all runs of the state directory share.
fn line_of(key: &LockKey) -> String {
    match key {
        LockKey::Named(name) => format!("name/{name}"),
        LockKey::Service { environment, service } => format!("service/{environment}/{service}"),
    }
}

fn name_of(key: &LockKey) -> String {
    match key {
        LockKey::Named(name) => format!("`{name}`"),
        LockKey::Service { environment, service } => format!("of `{service}` in `{environment}`"),
    }
}

fn silent() -> Fault {
    Fault::new("timed-out", "the target did not answer about a lock in time").transient()
}

fn cancelled(key: &LockKey) -> Fault {
    Fault::new("cancelled", format!("waiting for lock {} was cancelled", name_of(key)))
}

/// An environment of the plan without a target is a bug of the caller, told as a fault.
pub(crate) fn no_target(environment: &EnvName) -> Fault {
    Fault::new("internal", format!("environment `{environment}` has no target"))
}

/// Renewals say nothing to anyone.
struct Nowhere;

impl Sink for Nowhere {
    fn output(&self, _stream: cdpipe_model::event::Stream, _line: &str) {}
    fn progress(&self, _text: &str) {}
}
