//! The simulated router: it says yes at once and follows a moment later.

use super::{Bug, ROUTED_AFTER_MS, Routed, World};
use crate::finding::FindingKind;
use cdpipe_engine::Clock;
use cdpipe_model::expr::{MeasureName, Subject};
use cdpipe_model::observe::{Instance, Role, RouteTable};
use cdpipe_model::ports::{Call, PortResult, Router};
use cdpipe_model::service::Route;
use cdpipe_model::{EnvName, Fault, ReleaseId, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Requests a second that users make of a service.
const REQUESTS_PER_S: u64 = 50;

/// How long requests in flight take to finish.
const DRAINED_AFTER_MS: u64 = 100;

/// One environment's router.
pub(crate) struct SimRouter {
    pub(crate) world: Arc<World>,
    pub(crate) environment: EnvName,
}

impl SimRouter {
    fn key(&self, route: &Route) -> (EnvName, Route) {
        (self.environment.clone(), route.clone())
    }
}

impl Routed {
    /// Users go on asking.
    fn count(&mut self, now_ms: u64) {
        let passed_ms = now_ms.saturating_sub(self.counted_at_ms);
        self.counted_at_ms = now_ms;
        let entries = self.live(now_ms).map(|table| table.entries.clone()).unwrap_or_default();
        for entry in entries {
            let requests = passed_ms * REQUESTS_PER_S * u64::from(entry.weight_bp) / 10_000 / 1_000;
            *self.counted.entry(entry.release).or_default() += requests;
        }
    }
}

impl Router for SimRouter {
    fn observe<'a>(&'a self, call: Call<'a>, route: &'a Route) -> PortResult<'a, Option<RouteTable>> {
        let key = self.key(route);
        Box::pin(
            self.world.carry(call, move |state, _| {
                Ok(state.routes.get(&key).and_then(|routed| routed.told.clone()))
            }),
        )
    }

    fn apply<'a>(
        &'a self,
        call: Call<'a>,
        table: &'a RouteTable,
        seen: Option<&'a RouteTable>,
    ) -> PortResult<'a, ()> {
        Box::pin(async move {
            let key = self.key(&table.route);
            let place = (self.environment.clone(), table.route.service.clone());
            let given = Arc::clone(&self.world.given);
            let epoch = call.epoch;
            self.world
                .carry(call, move |state, now_ms| {
                    let told = state.routes.get(&key).and_then(|routed| routed.told.as_ref());
                    if told != Some(table) && told != seen {
                        return Err(Fault::new("moved", "somebody else has changed the route"));
                    }
                    let written = state.routes.get(&key).map_or(0, |routed| routed.epoch);
                    if epoch < written {
                        return Err(Fault::new("stale-epoch", "a newer owner has written the route"));
                    }
                    let before = state.reachable(&place, &given, now_ms);
                    let routed = state.routes.entry(key.clone()).or_default();
                    routed.count(now_ms);
                    routed.epoch = epoch;
                    if routed.told.as_ref() != Some(table) {
                        routed.before = routed.live(now_ms).cloned();
                        routed.told = Some(table.clone());
                        routed.live_at_ms = now_ms + ROUTED_AFTER_MS;
                    }
                    let live_ms = routed.live_at_ms;
                    let ready: Vec<_> = state
                        .services
                        .get(&place)
                        .into_iter()
                        .flatten()
                        .flat_map(|release| &release.instances)
                        .filter(|instance| instance.is_ready(now_ms))
                        .map(|instance| instance.id.clone())
                        .collect();
                    let unready = table
                        .entries
                        .iter()
                        .flat_map(|entry| &entry.members)
                        .find(|member| !ready.contains(&member.instance));
                    if let Some(member) = unready {
                        let text = format!("users are sent to {}, which is not ready", member.instance);
                        state.find(FindingKind::UnreadyServes, &place, now_ms, text);
                    }
                    if given.route(&place) == Some(&table.route) {
                        let what = if table.entries.is_empty() {
                            "the route is closed"
                        } else {
                            "the route is changed"
                        };
                        // Judged by what it will do in a moment.
                        state.check_served(&place, &given, before, live_ms, what);
                    }
                    Ok(())
                })
                .await
        })
    }

    fn await_routed<'a>(&'a self, call: Call<'a>, table: &'a RouteTable) -> PortResult<'a, ()> {
        Box::pin(async move {
            let key = self.key(&table.route);
            self.world.carry(call, |_, _| Ok(())).await?;
            if self.world.bug == Some(Bug::RoutedTooEarly) {
                return Ok(());
            }
            loop {
                let now_ms = self.world.now_ms();
                let live_at_ms = {
                    let state = self.world.state();
                    let routed = state.routes.get(&key);
                    if routed.is_some_and(|routed| routed.live(now_ms) == Some(table)) {
                        return Ok(());
                    }
                    routed
                        .filter(|routed| routed.told.as_ref() == Some(table))
                        .map(|routed| routed.live_at_ms)
                };
                let Some(live_at_ms) = live_at_ms else {
                    return Err(Fault::new("not-routed", "the router does something else"));
                };
                tokio::select! {
                    biased;
                    () = call.cancel.cancelled() => return Err(Fault::new("cancelled", "it was stopped")),
                    () = self.world.clock.sleep_until(live_at_ms) => {}
                }
            }
        })
    }

    fn await_drained<'a>(
        &'a self,
        call: Call<'a>,
        _route: &'a Route,
        _release: &'a ReleaseId,
        _instances: &'a [Instance],
        drain: Duration,
    ) -> PortResult<'a, ()> {
        Box::pin(async move {
            self.world.carry(call, |_, _| Ok(())).await?;
            let drain_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX);
            tokio::select! {
                biased;
                () = call.cancel.cancelled() => Err(Fault::new("cancelled", "it was stopped")),
                () = self.world.clock.sleep(drain_ms.min(DRAINED_AFTER_MS)) => Ok(()),
            }
        })
    }

    fn requests<'a>(
        &'a self,
        call: Call<'a>,
        route: &'a Route,
    ) -> PortResult<'a, Option<BTreeMap<ReleaseId, u64>>> {
        let key = self.key(route);
        let node = call.step.node;
        let given = Arc::clone(&self.world.given);
        Box::pin(self.world.carry(call, move |state, now_ms| {
            let Some(routed) = state.routes.get_mut(&key) else { return Ok(None) };
            let before = routed.counted.clone();
            routed.count(now_ms);
            let mut counted = routed.counted.clone();
            for entry in routed.told.iter().flat_map(|table| &table.entries) {
                let side = if entry.role == Role::Candidate { Subject::Candidate } else { Subject::Stable };
                let said = given.measured(node, side, &MeasureName::Requests);
                if let Some(requests) = said.as_ref().and_then(Value::magnitude) {
                    #[allow(
                        clippy::cast_possible_truncation,
                        clippy::cast_sign_loss,
                        reason = "clamped to what fits"
                    )]
                    let requests = requests.clamp(0.0, 1e15) as u64;
                    let total = before.get(&entry.release).copied().unwrap_or(0) + requests;
                    routed.counted.insert(entry.release.clone(), total);
                    counted.insert(entry.release.clone(), total);
                }
            }
            Ok(Some(counted))
        }))
    }
}
