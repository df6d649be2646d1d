//! A platform that rolls by itself: from the moment it is asked, instances come and go at their times, whether anybody looks or not.
//!
//! As on the real ones: a batch at a time, the next when the last is ready; a release that never gets ready is taken back
//! (`reverted`) or, on the way back, held where it is (`paused`); another roll of the same workload replaces what was planned.

use super::target::instances_of;
use super::{Place, READY_AFTER_MS, Release, State, World};
use crate::given::Given;
use cdpipe_engine::Clock;
use cdpipe_model::Fault;
use cdpipe_model::id::ReleaseId;
use cdpipe_model::observe::Instance;
use cdpipe_model::ports::Call;
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::strategy::{Order, RollPolicy};
use std::collections::VecDeque;

/// The roll of one workload that was asked for last.
pub(crate) struct Roll {
    effect: String,
    to: ReleaseSpec,
    from: Option<ReleaseSpec>,
    wanted: u32,
    steps: VecDeque<(u64, Step)>,
    ended: Option<End>,
}

/// What the platform does at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// New instances; they are ready some time later, or never.
    Start { count: u32, healthy: bool },
    /// Old instances go.
    End { count: u32 },
    /// The old release is what is wanted again.
    Revert,
    /// It is over.
    Finish(End),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Done,
    Reverted,
    Paused,
}

impl World {
    pub(super) async fn roll(
        &self,
        call: Call<'_>,
        place: Place,
        spec: &ReleaseSpec,
        count: u32,
        policy: &RollPolicy,
    ) -> Result<Vec<Instance>, Fault> {
        let never = self.given.never_ready(call.step.node);
        let within_ms = spec.health.iter().map(|health| health.within_ms).max().unwrap_or(60_000);
        let begun = {
            let place = place.clone();
            self.carry(call, move |state, now_ms| {
                state.begin_roll(
                    call.effect.as_str(),
                    &place,
                    spec,
                    count,
                    policy,
                    never.then_some(within_ms),
                    now_ms,
                );
                Ok(())
            })
        };
        begun.await?;
        loop {
            let now_ms = self.now_ms();
            let next_ms = {
                let state = self.state();
                let Some(roll) = state.rolls.get(&place).filter(|roll| roll.effect == call.effect.as_str())
                else {
                    return Err(Fault::new("moved", "another roll of the workload was asked for"));
                };
                let ready = instances_of(&state, &place, spec, now_ms);
                match roll.ended {
                    Some(End::Done) => return Ok(ready),
                    Some(End::Reverted) => {
                        let text = format!(
                            "{} did not get ready, and the platform went back by itself",
                            spec.version
                        );
                        return Err(Fault::new("reverted", text));
                    }
                    Some(End::Paused) => {
                        let ready = ready.iter().filter(|instance| instance.ready).count();
                        let text =
                            format!("the platform holds the roll: {ready} of {count} instances are ready");
                        return Err(Fault::new("not-ready", text));
                    }
                    None => roll.steps.front().map_or(now_ms + READY_AFTER_MS, |(at_ms, _)| *at_ms),
                }
            };
            tokio::select! {
                biased;
                () = call.cancel.cancelled() => return Err(Fault::new("cancelled", "it was stopped")),
                () = self.clock.sleep_until(next_ms.max(now_ms + 1)) => {}
            }
        }
    }
}

impl State {
    #[allow(clippy::too_many_arguments, reason = "what a platform is told, and when")]
    fn begin_roll(
        &mut self,
        effect: &str,
        place: &Place,
        spec: &ReleaseSpec,
        wanted: u32,
        policy: &RollPolicy,
        fails_after_ms: Option<u64>,
        now_ms: u64,
    ) {
        if self.rolls.get(place).is_some_and(|roll| roll.effect == effect) {
            return;
        }
        let id = spec.id();
        let healthy = fails_after_ms.is_none() || self.good.contains(&(place.clone(), id.clone()));
        let releases = self.services.entry(place.clone()).or_default();
        if !releases.iter().any(|release| release.id == id) {
            releases.push(Release { id: id.clone(), spec: spec.clone(), wanted: 0, instances: Vec::new() });
        }
        let size = |release: &Release| u32::try_from(release.instances.len()).unwrap_or(u32::MAX);
        let there: u32 = releases.iter().filter(|release| release.id == id).map(size).sum();
        let mut others: u32 = releases.iter().filter(|release| release.id != id).map(size).sum();
        let from = releases.iter().find(|release| release.id != id && release.wanted > 0);
        let from = from.map(|release| release.spec.clone());
        want(releases, &id, wanted);
        let mut steps = VecDeque::new();
        let mut at_ms = now_ms;
        let mut missing = wanted.saturating_sub(there);
        let mut end = End::Done;
        while missing > 0 {
            let batch = policy.batch.max(1).min(missing);
            let going = batch.min(others);
            if policy.order == Order::StopFirst {
                steps.push_back((at_ms, Step::End { count: going }));
            }
            steps.push_back((at_ms, Step::Start { count: batch, healthy }));
            if !healthy {
                at_ms += fails_after_ms.unwrap_or_default();
                end = if policy.undo || from.is_none() { End::Paused } else { End::Reverted };
                break;
            }
            at_ms += READY_AFTER_MS;
            if policy.order == Order::StartFirst {
                steps.push_back((at_ms, Step::End { count: going }));
            }
            missing -= batch;
            others -= going;
            at_ms += if missing > 0 { policy.pause_ms.max(policy.monitor_ms) } else { policy.monitor_ms };
        }
        match end {
            End::Done => steps.push_back((at_ms, Step::End { count: u32::MAX })),
            End::Reverted => {
                steps.push_back((at_ms, Step::Revert));
                at_ms += READY_AFTER_MS;
            }
            End::Paused => {}
        }
        steps.push_back((at_ms, Step::Finish(end)));
        let effect = effect.to_owned();
        self.rolls.insert(place.clone(), Roll { effect, to: spec.clone(), from, wanted, steps, ended: None });
    }

    /// Does what has come due.
    pub(super) fn roll_on(&mut self, given: &Given, now_ms: u64) {
        let places: Vec<Place> = self.rolls.keys().cloned().collect();
        for place in places {
            while let Some(roll) = self.rolls.get_mut(&place) {
                let Some((at_ms, step)) = roll.steps.front().copied().filter(|(at_ms, _)| *at_ms <= now_ms)
                else {
                    break;
                };
                roll.steps.pop_front();
                let (to, from, wanted) = (roll.to.clone(), roll.from.clone(), roll.wanted);
                let before = self.reachable(&place, given, at_ms);
                match step {
                    Step::Start { count, healthy } => self.start(&place, &to, count, healthy, at_ms),
                    Step::End { count } => {
                        self.end_others(&place, &to, count);
                        want(self.services.entry(place.clone()).or_default(), &to.id(), wanted);
                    }
                    Step::Revert => {
                        if let Some(from) = &from {
                            let there = instances_of(self, &place, from, at_ms).len();
                            let there = u32::try_from(there).unwrap_or(u32::MAX);
                            self.start(&place, from, wanted.saturating_sub(there), true, at_ms);
                            self.end_others(&place, from, u32::MAX);
                            want(self.services.entry(place.clone()).or_default(), &from.id(), wanted);
                        }
                    }
                    Step::Finish(end) => {
                        if let Some(roll) = self.rolls.get_mut(&place) {
                            roll.ended = Some(end);
                        }
                    }
                }
                let what = format!("the platform rolls to {}", to.version);
                self.check_served(&place, given, before, at_ms, &what);
            }
        }
    }

    fn start(&mut self, place: &Place, spec: &ReleaseSpec, count: u32, healthy: bool, at_ms: u64) {
        for _ in 0..count {
            let instance = self.new_instance(spec, healthy.then_some(at_ms + READY_AFTER_MS), false);
            let releases = self.services.entry(place.clone()).or_default();
            if let Some(release) = releases.iter_mut().find(|release| release.id == spec.id()) {
                release.instances.push(instance);
            }
        }
    }

    /// Instances of every other release, the ones that serve nobody first.
    fn end_others(&mut self, place: &Place, keep: &ReleaseSpec, mut count: u32) {
        let keep = keep.id();
        for release in self.services.entry(place.clone()).or_default() {
            if release.id == keep {
                continue;
            }
            release.instances.sort_by_key(|instance| instance.ready_at_ms.is_some());
            let going = release.instances.len().min(count as usize);
            release.instances.drain(..going);
            count -= u32::try_from(going).unwrap_or(count);
        }
    }
}

/// What still runs of the others is wanted until the new one has taken its place, as platforms count it in the middle of a roll.
fn want(releases: &mut [Release], to: &ReleaseId, wanted: u32) {
    let mut missing = wanted;
    for release in releases.iter_mut().filter(|release| release.id != *to) {
        release.wanted = u32::try_from(release.instances.len()).unwrap_or(u32::MAX);
        missing = missing.saturating_sub(release.wanted);
    }
    for release in releases.iter_mut().filter(|release| release.id == *to) {
        release.wanted = missing;
    }
}
