//! The measures that are always there: `ready` and `failed` from the target, `requests` from the router.

use crate::ports::Ports;
use cdpipe_model::action::ActionKind;
use cdpipe_model::expr::MeasureName;
use cdpipe_model::measure::{MeasureRequest, MeasureScope, Sample};
use cdpipe_model::observe::{Observation, Role};
use cdpipe_model::ports::{BoxFuture, Call, TrafficNumbers};
use cdpipe_model::record::Record;
use cdpipe_model::service::Route;
use cdpipe_model::{EnvName, Fault, ReleaseId, ServiceName, Value};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

type Place = (EnvName, ServiceName);

/// What measuring must remember: where a service is found, and what its counters said last.
#[derive(Default)]
pub(crate) struct Builtin {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    routes: HashMap<Place, Route>,
    platform_names: HashMap<Place, String>,
    /// Requests of a release when it was last asked.
    counted: HashMap<(Place, String), u64>,
    resumed: bool,
}

impl Builtin {
    /// For an engine that goes on with a run: its first reading of a counter is the start of the first interval.
    pub(crate) fn set_resumed(&self) {
        self.state().resumed = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns from an action where a service is found; requests carry only names.
    pub(crate) fn learn(&self, record: &Record) {
        let Record::Intent { action } = record else { return };
        match &action.kind {
            ActionKind::Observe { environment, service, platform_name, route } => {
                let place = (environment.clone(), service.clone());
                let mut state = self.state();
                if let Some(name) = platform_name {
                    state.platform_names.insert(place.clone(), name.clone());
                }
                if let Some(route) = route {
                    state.routes.insert(place, route.clone());
                }
            }
            ActionKind::Route { environment, table, .. } => {
                let place = (environment.clone(), table.service().clone());
                self.state().routes.insert(place, table.route.clone());
            }
            _ => {}
        }
    }

    /// Answers all requests, in order. One without data is a sample without a value.
    pub(crate) async fn measure(
        &self,
        ports: &Ports,
        call: Call<'_>,
        requests: &[MeasureRequest],
    ) -> Vec<Sample> {
        let named: Vec<MeasureRequest> =
            requests.iter().filter(|request| is_named(request)).cloned().collect();
        let named_answers = async {
            if named.is_empty() {
                return Vec::new();
            }
            ports.measurer.measure(call, &named, &Counted { builtin: self, ports }).await
        };
        let (answers, own) = tokio::join!(named_answers, self.own(ports, call, requests));
        let mut answers = answers.into_iter();
        let mut own = own.into_iter();
        requests
            .iter()
            .map(|request| {
                let sample = if is_named(request) { answers.next() } else { own.next() };
                sample.unwrap_or_else(|| no_data(request, String::new(), "it was not answered".to_owned()))
            })
            .map(finite)
            .collect()
    }

    async fn own(&self, ports: &Ports, call: Call<'_>, requests: &[MeasureRequest]) -> Vec<Sample> {
        // One observation answers `ready` and `failed` of both sides.
        let mut observations: HashMap<Place, Result<Observation, Fault>> = HashMap::new();
        let mut samples = Vec::new();
        for request in requests.iter().filter(|request| !is_named(request)) {
            let place =
                (EnvName(request.scope.environment.clone()), ServiceName(request.scope.service.clone()));
            if request.metric.measure == MeasureName::Requests {
                samples.push(self.requests(ports, call, request, place).await);
                continue;
            }
            if !observations.contains_key(&place) {
                let seen = self.observe(ports, call, &place).await;
                observations.insert(place.clone(), seen);
            }
            let asked = format!("instances of `{}` in `{}`", place.1, place.0);
            samples.push(match observations.get(&place) {
                Some(Ok(seen)) => instances(request, seen, asked),
                Some(Err(fault)) => no_data(request, asked, fault.message.clone()),
                None => no_data(request, asked, "it was not asked".to_owned()),
            });
        }
        samples
    }

    async fn observe(&self, ports: &Ports, call: Call<'_>, place: &Place) -> Result<Observation, Fault> {
        let target = ports.targets.get(&place.0).ok_or_else(|| crate::leases::no_target(&place.0))?;
        let platform_name = self.state().platform_names.get(place).cloned();
        target.observe(call, &place.1, platform_name.as_deref()).await
    }

    async fn requests(
        &self,
        ports: &Ports,
        call: Call<'_>,
        request: &MeasureRequest,
        place: Place,
    ) -> Sample {
        let asked = format!("requests that the router of `{}` counted for `{}`", place.0, place.1);
        let route = self.state().routes.get(&place).cloned();
        let (Some(route), Some(router)) = (route, ports.routers.get(&place.0)) else {
            return no_data(request, asked, "it has no router".to_owned());
        };
        let counted = match router.requests(call, &route).await {
            Ok(Some(counted)) => counted,
            Ok(None) => return no_data(request, asked, "the router does not count requests".to_owned()),
            Err(fault) => return no_data(request, asked, fault.message),
        };
        let release = &request.scope.release;
        let total = if release.is_empty() {
            counted.values().sum()
        } else {
            counted.iter().find(|(id, _)| id.as_str() == release).map_or(0, |(_, count)| *count)
        };
        let mut state = self.state();
        let before = state.counted.insert((place, release.clone()), total);
        let count = match before {
            // A counter that went back was begun again.
            Some(before) => total.checked_sub(before).unwrap_or(total),
            // The candidate is new to the router: all it counted is of this interval.
            None if request.scope.role == Role::Candidate.as_str() && !state.resumed => total,
            None => return no_data(request, asked, "the first reading begins the interval".to_owned()),
        };
        let value = Value::Int(i64::try_from(count).unwrap_or(i64::MAX));
        Sample { metric: request.metric.clone(), value: Some(value), asked, note: None }
    }
}

/// The routers' numbers, asked by the names that a measurement has.
struct Counted<'a> {
    builtin: &'a Builtin,
    ports: &'a Ports,
}

impl TrafficNumbers for Counted<'_> {
    fn numbers<'a>(
        &'a self,
        call: Call<'a>,
        scope: &'a MeasureScope,
    ) -> BoxFuture<'a, Result<String, String>> {
        Box::pin(async move {
            let place = (EnvName(scope.environment.clone()), ServiceName(scope.service.clone()));
            let route = self.builtin.state().routes.get(&place).cloned();
            let (Some(route), Some(router)) = (route, self.ports.routers.get(&place.0)) else {
                return Err(format!("`{}` has no router in `{}`", place.1, place.0));
            };
            let release = (!scope.release.is_empty()).then(|| ReleaseId(scope.release.clone()));
            match router.numbers(call, &route, release.as_ref()).await {
                Ok(Some(text)) => Ok(text),
                Ok(None) => Err(format!("the router of `{}` does not count answers", place.0)),
                Err(fault) => Err(fault.message),
            }
        })
    }
}

fn is_named(request: &MeasureRequest) -> bool {
    matches!(request.metric.measure, MeasureName::Named { .. })
}

fn no_data(request: &MeasureRequest, asked: String, note: String) -> Sample {
    Sample { metric: request.metric.clone(), value: None, asked, note: Some(note) }
}

fn instances(request: &MeasureRequest, seen: &Observation, asked: String) -> Sample {
    let MeasureScope { release, .. } = &request.scope;
    let (mut wanted, mut ready, mut failed) = (0_u32, 0_u32, 0_u32);
    for side in seen.releases.iter().filter(|side| release.is_empty() || side.id.as_str() == release) {
        let ready_here = u32::try_from(side.ready().count()).unwrap_or(u32::MAX);
        let there = u32::try_from(side.instances.len()).unwrap_or(u32::MAX);
        // One that is not ready and has been started again had stopped; one that never was is still starting or sick.
        let fell = side.instances.iter().filter(|instance| !instance.ready && instance.restarts > 0).count();
        wanted += side.wanted;
        ready += ready_here.min(side.wanted);
        failed += side.wanted.saturating_sub(there) + u32::try_from(fell).unwrap_or(u32::MAX);
    }
    if wanted == 0 {
        return no_data(request, asked, "no instances are wanted".to_owned());
    }
    let value = match request.metric.measure {
        MeasureName::Failed => Value::Int(i64::from(failed)),
        _ => Value::Percent(100.0 * f64::from(ready) / f64::from(wanted)),
    };
    let note = Some(format!("{ready} of {wanted} ready"));
    Sample { metric: request.metric.clone(), value: Some(value), asked, note }
}

/// A value that is no number is no data: JSON could not even hold it.
fn finite(mut sample: Sample) -> Sample {
    if sample.value.as_ref().and_then(Value::magnitude).is_some_and(|value| !value.is_finite()) {
        sample.note =
            Some(format!("the answer was {}", sample.value.map_or_else(String::new, |v| v.to_string())));
        sample.value = None;
    }
    sample
}
