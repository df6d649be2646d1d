//! Watches: when samples are taken, and what is made of them.

use crate::decide::Decide;
use crate::fold::GATE_SAMPLE;
use crate::state::{DeployState, StepRun, WatchState, Work};
use cdpipe_model::action::{ActionKind, StepRef};
use cdpipe_model::expr::{EvalError, Expr, MeasureName, MetricRef, Subject, Symbol};
use cdpipe_model::measure::{MeasureRequest, MeasureScope, Metric, MetricSource, Sample};
use cdpipe_model::observe::{Instance, Role};
use cdpipe_model::plan::{Deploy, GateMetric, NoData, Rule, RuleAction, Watch};
use cdpipe_model::record::{Finding, Record, RuleVerdict, TimerId, TimerPurpose};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::{Fault, Outcome, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The longest that one round of questions may take.
const MEASURE_MS: u64 = 30_000;

/// Values by metric, for rules.
pub(crate) type Bound = BTreeMap<MetricRef, Value>;

fn metrics_of<'a>(exprs: impl Iterator<Item = &'a Expr>) -> BTreeSet<MetricRef> {
    let mut wanted = BTreeSet::new();
    for expr in exprs {
        expr.symbols(&mut |symbol| {
            if let Symbol::Metric(metric) = symbol {
                wanted.insert(metric.clone());
            }
        });
    }
    wanted
}

/// Whether the end of a stretch of watched time was looked at. A look just before it counts: another one right after it would have too
/// short a window to say anything.
pub(crate) fn looked_at_end(state: &WatchState, due_ms: u64, every_ms: u64) -> bool {
    state.judged_at_ms.is_some_and(|at_ms| at_ms.saturating_add(every_ms / 2) >= due_ms)
}

fn names(expr: &Expr, subject: Subject) -> bool {
    metrics_of(std::iter::once(expr)).iter().any(|metric| metric.subject == subject)
}

/// Whether the rule has a meaning in this deploy: on a first deploy there is no stable to compare with.
fn applies(rule: &Rule, has_stable: bool) -> bool {
    has_stable || !(names(&rule.when, Subject::Stable) || names(&rule.when, Subject::Baseline))
}

impl Decide<'_> {
    /// What the watch of a deploy does next; `None` if it waits.
    pub(crate) fn watch_deploy(
        &self,
        work: &Work,
        deploy: &DeployState,
        step: &StepRef,
        spec: &Deploy,
    ) -> Option<Record> {
        let (watch, state) = (spec.watch.as_ref()?, deploy.watch.as_ref()?);
        let program = deploy.program.as_ref()?;
        let stable_spec = program.stable.as_ref().filter(|stable| stable.id() != program.candidate_id());
        if let Some(samples) = &state.samples {
            let mut bound = bind(samples);
            if deploy.promoted {
                bound.extend(state.last_stable.clone());
            }
            bound.extend(deploy.baseline.clone().unwrap_or_default());
            let rules = watch.rules.iter().map(|rule| (rule, applies(rule, stable_spec.is_some())));
            let findings = self.judge(step, watch, state, rules, &bound, samples);
            return Some(Record::Verdict { step: step.clone(), samples: samples.clone(), findings });
        }
        if state.sampling.is_some() {
            return None;
        }
        let soak_due = deploy
            .cursor
            .soak
            .is_some_and(|soak| soak.due && !looked_at_end(state, soak.due_ms, watch.every_ms));
        if !state.sample_due && !soak_due {
            return self.set_sample_timer(work, step, watch.every_ms);
        }
        let wanted = metrics_of(
            watch.rules.iter().filter(|rule| applies(rule, stable_spec.is_some())).map(|rule| &rule.when),
        );
        let requests: Vec<_> = wanted
            .into_iter()
            .filter(|metric| match metric.subject {
                Subject::Baseline => false,
                // Stable has no users any more: its last live window counts.
                Subject::Stable => !deploy.promoted,
                Subject::Candidate | Subject::Service => true,
            })
            .map(|metric| {
                let side = match metric.subject {
                    Subject::Candidate => Some((&program.candidate, &deploy.candidate, Role::Candidate)),
                    Subject::Stable => stable_spec.map(|spec| (spec, &deploy.stable, Role::Stable)),
                    Subject::Baseline | Subject::Service => None,
                };
                self.request(metric, spec, side, watch.every_ms)
            })
            .collect();
        let deadline_ms = watch.every_ms.clamp(1_000, MEASURE_MS);
        let kind = ActionKind::Measure { environment: Some(spec.environment.clone()), requests };
        Some(self.intent(step, kind, deadline_ms))
    }

    /// What a watch that stands alone does next.
    pub(crate) fn watch_step(
        &self,
        work: &Work,
        run: &StepRun,
        step: &StepRef,
        watch: &Watch,
    ) -> Option<Record> {
        let state = run.watch.as_ref()?;
        if let Some(samples) = &state.samples {
            let rules = watch.rules.iter().map(|rule| (rule, true));
            let findings = self.judge(step, watch, state, rules, &bind(samples), samples);
            return Some(Record::Verdict { step: step.clone(), samples: samples.clone(), findings });
        }
        if let Some(findings) = &state.breach {
            let text = findings.iter().map(|finding| finding.text.as_str()).collect::<Vec<_>>().join("; ");
            return Some(self.step_finished(step, Outcome::Failed, Some(Fault::new("watch-breach", text))));
        }
        let Some(until_ms) = run.wait_until_ms else {
            let timer = TimerId { node: step.node, purpose: TimerPurpose::Soak };
            return Some(Record::TimerSet { timer, due_ms: self.state.now_ms + watch.for_ms.unwrap_or(0) });
        };
        if state.sampling.is_some() {
            return None;
        }
        let looked = looked_at_end(state, until_ms, watch.every_ms);
        if run.wait_due && looked && state.hold_since_ms.is_none() {
            return Some(self.step_finished(step, Outcome::Succeeded, None));
        }
        let last_look = run.wait_due && !looked;
        if !state.sample_due && !last_look {
            return self.set_sample_timer(work, step, watch.every_ms);
        }
        let requests = metrics_of(watch.rules.iter().map(|rule| &rule.when))
            .into_iter()
            .map(|metric| self.bare_request(metric, "", "", watch.every_ms))
            .collect();
        let deadline_ms = watch.every_ms.clamp(1_000, MEASURE_MS);
        Some(self.intent(step, ActionKind::Measure { environment: None, requests }, deadline_ms))
    }

    /// The question of a gate's metric conditions.
    pub(crate) fn gate_measure(&self, step: &StepRef, metrics: &[GateMetric]) -> Record {
        let mut requests = Vec::new();
        for gate in metrics {
            let service = gate.service.as_ref().map_or("", |service| service.as_str());
            let environment = gate.environment.as_ref().map_or("", |environment| environment.as_str());
            for metric in metrics_of(std::iter::once(&gate.when)) {
                requests.push(self.bare_request(metric, service, environment, gate.every_ms));
            }
        }
        let environment = metrics.iter().find_map(|gate| gate.environment.clone());
        let step = StepRef { index: GATE_SAMPLE, ..step.clone() };
        self.intent(&step, ActionKind::Measure { environment, requests }, MEASURE_MS)
    }

    pub(crate) fn set_sample_timer(&self, _work: &Work, step: &StepRef, every_ms: u64) -> Option<Record> {
        let timer = TimerId { node: step.node, purpose: TimerPurpose::Sample };
        let set = self.state.timer_due.contains_key(&timer);
        (!set).then(|| Record::TimerSet { timer, due_ms: self.state.now_ms + every_ms.max(1) })
    }

    pub(crate) fn request(
        &self,
        metric: MetricRef,
        spec: &Deploy,
        side: Option<(&ReleaseSpec, &Vec<Instance>, Role)>,
        window_ms: u64,
    ) -> MeasureRequest {
        let environment = spec.environment.as_str();
        let mut request = self.bare_request(metric, spec.service.name.as_str(), environment, window_ms);
        if let Some((release, instances, role)) = side {
            request.scope.release = release.id().0;
            role.as_str().clone_into(&mut request.scope.role);
            request.scope.addresses = instances
                .iter()
                .filter(|instance| instance.ready)
                .filter_map(|instance| instance.asked_at().map(str::to_owned))
                .collect();
        }
        request
    }

    fn bare_request(
        &self,
        metric: MetricRef,
        service: &str,
        environment: &str,
        window_ms: u64,
    ) -> MeasureRequest {
        let definition = match &metric.measure {
            MeasureName::Named { set, name } => self.definition(set, name),
            MeasureName::Ready | MeasureName::Failed | MeasureName::Requests => None,
        };
        MeasureRequest {
            metric,
            scope: MeasureScope {
                service: service.to_owned(),
                environment: environment.to_owned(),
                release: String::new(),
                role: String::new(),
                window_ms,
                addresses: Vec::new(),
            },
            definition,
        }
    }

    fn definition(&self, set: &str, name: &str) -> Option<(MetricSource, Metric)> {
        let set = self.plan.metrics.get(set)?;
        Some((set.source.clone(), set.metrics.get(name)?.clone()))
    }

    /// What each rule says of these values.
    fn judge<'r>(
        &self,
        step: &StepRef,
        watch: &Watch,
        state: &WatchState,
        rules: impl Iterator<Item = (&'r Rule, bool)>,
        bound: &Bound,
        samples: &[Sample],
    ) -> Vec<Finding> {
        let now_ms = self.state.now_ms;
        let scope = self.scope(step);
        let lookup = |symbol: &Symbol| match symbol {
            Symbol::Metric(metric) => bound.get(metric).cloned(),
            other => scope.lookup(other),
        };
        let mut findings = Vec::new();
        for ((rule, applies), index) in rules.zip(0_u32..) {
            if !applies {
                continue;
            }
            let mut finding =
                |verdict: RuleVerdict, text: String| findings.push(Finding { rule: index, verdict, text });
            match rule.when.eval_bool(&lookup) {
                Ok(false) => {}
                Ok(true) => {
                    let text = with_values(rule, bound, &lookup, samples);
                    let long_enough = rule.for_ms.is_none_or(|for_ms| {
                        state
                            .held_since_ms
                            .get(&index)
                            .is_some_and(|since_ms| now_ms.saturating_sub(*since_ms) >= for_ms)
                    });
                    finding(
                        match rule.action {
                            _ if !long_enough => RuleVerdict::Pending,
                            RuleAction::Warn => RuleVerdict::Warn,
                            RuleAction::Rollback | RuleAction::Fail => RuleVerdict::Breach,
                        },
                        text,
                    );
                }
                Err(error) => {
                    let missing = match &error {
                        EvalError::Unknown(Symbol::Metric(metric)) => samples
                            .iter()
                            .find(|sample| sample.metric == *metric)
                            .and_then(|sample| sample.note.clone())
                            .map_or_else(
                                || format!("no data for {metric}"),
                                |note| format!("no data for {metric}: {note}"),
                            ),
                        other => other.to_string(),
                    };
                    let text = format!("{}: {missing}", rule.text);
                    let held_ms = state.hold_since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms));
                    match watch.no_data {
                        _ if rule.action == RuleAction::Warn => finding(RuleVerdict::Warn, text),
                        NoData::Pass => {}
                        NoData::Rollback => finding(RuleVerdict::Breach, text),
                        NoData::Hold if held_ms >= watch.hold_for_ms && state.hold_since_ms.is_some() => {
                            let waited = Value::Duration(ms(watch.hold_for_ms));
                            finding(RuleVerdict::Breach, format!("{text}, for {waited}"));
                        }
                        NoData::Hold => finding(RuleVerdict::NoData, text),
                    }
                }
            }
        }
        findings
    }
}

#[allow(clippy::cast_precision_loss, reason = "milliseconds of a setting, far below 2^53")]
fn ms(ms: u64) -> f64 {
    ms as f64
}

pub(crate) fn bind(samples: &[Sample]) -> Bound {
    samples.iter().filter_map(|sample| Some((sample.metric.clone(), sample.value.clone()?))).collect()
}

/// The condition with its values: `candidate.error_rate > max(2 * stable.error_rate, 1%)` becomes that text followed by what each
/// name was, so that whoever is woken sees the numbers and how they were asked.
fn with_values(
    rule: &Rule,
    bound: &Bound,
    lookup: &dyn Fn(&Symbol) -> Option<Value>,
    samples: &[Sample],
) -> String {
    let mut parts = Vec::new();
    for metric in metrics_of(std::iter::once(&rule.when)) {
        if let Some(value) = bound.get(&metric) {
            parts.push(format!("{metric} was {value}"));
        }
    }
    if let Expr::Binary(_, _, right) = &rule.when
        && !matches!(**right, Expr::Value(_) | Expr::Symbol(_))
        && let Ok(limit) = right.eval(lookup)
    {
        parts.push(format!("the limit {limit}"));
    }
    let asked: BTreeSet<&str> = samples
        .iter()
        .filter(|sample| {
            !sample.asked.is_empty() && metrics_of(std::iter::once(&rule.when)).contains(&sample.metric)
        })
        .map(|sample| sample.asked.as_str())
        .collect();
    let mut text = rule.text.clone();
    if !parts.is_empty() {
        text = format!("{text} ({})", parts.join(", "));
    }
    if !asked.is_empty() {
        text = format!("{text}, asked {}", asked.into_iter().collect::<Vec<_>>().join(" and "));
    }
    text
}
