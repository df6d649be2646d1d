//! Simulated commands, requests, messages, flags, measurements and secrets.

use super::{COMMAND_MS, Command, State, World};
use crate::case::FaultKind;
use crate::finding::FindingKind;
use cdpipe_engine::Clock;
use cdpipe_model::action::{Answer, RunAction, StepRef};
use cdpipe_model::expr::MeasureName;
use cdpipe_model::expr::Subject;
use cdpipe_model::measure::{MeasureRequest, Sample};
use cdpipe_model::observe::Role;
use cdpipe_model::plan::{Channel, FlagProvider};
use cdpipe_model::ports::{
    BoxFuture, Call, HttpRequest, Measurer, Messenger, PortResult, Probe, Runner, Secrets, TrafficNumbers,
};
use cdpipe_model::secret::SecretValue;
use cdpipe_model::{EnvName, Fault, ServiceName, Value};
use std::collections::BTreeMap;

impl State {
    /// Something that must not be done twice is done.
    fn once(&mut self, effect: &str, what: &str, now_ms: u64) {
        let count = self.done.entry(effect.to_owned()).or_default();
        *count += 1;
        if *count > 1 {
            let place = (EnvName::from(""), ServiceName::from(what));
            self.find(FindingKind::DoneTwice, &place, now_ms, format!("{what} was done twice"));
            if let Some(finding) = self.findings.last_mut() {
                what.clone_into(&mut finding.place);
            }
        }
    }
}

impl World {
    /// A command: it goes on when the engine dies, and is found again by its effect.
    pub(super) fn command<'a>(
        &'a self,
        call: Call<'a>,
        run: &'a RunAction,
    ) -> PortResult<'a, BTreeMap<String, String>> {
        Box::pin(async move {
            let strike = self.strike(&call);
            match strike {
                Some(FaultKind::Fail) => {
                    return Err(Fault::new(
                        "simulated",
                        "it could not be started, as the simulation wanted it",
                    ));
                }
                Some(FaultKind::Flaky) => {
                    return Err(Fault::new(
                        "simulated",
                        "it could not be started, as the simulation wanted it",
                    )
                    .transient());
                }
                Some(FaultKind::Hang | FaultKind::Lost | FaultKind::Mute) | None => {}
            }
            let outcome = self.outcome_of(call.step, run);
            let ends_at_ms = self.now_ms() + COMMAND_MS;
            {
                let now_ms = self.now_ms();
                let mut state = self.state();
                state.once(call.effect.as_str(), &format!("`{}`", first_line(&run.script)), now_ms);
                let answer = match &outcome {
                    Ok(outputs) => Probe::Done(Answer::Exited { outputs: outputs.clone() }),
                    Err(fault) => Probe::Failed(fault.clone()),
                };
                let ends_at_ms = (strike != Some(FaultKind::Hang)).then_some(ends_at_ms);
                state.commands.insert(call.effect.to_string(), Command { ends_at_ms, answer });
            }
            if strike == Some(FaultKind::Hang) {
                call.cancel.cancelled().await;
                self.end_command(call.effect.as_str());
                return Err(Fault::new("cancelled", "it was stopped"));
            }
            tokio::select! {
                biased;
                () = self.clock.sleep_until(ends_at_ms) => {}
                () = call.cancel.cancelled() => {
                    self.end_command(call.effect.as_str());
                    return Err(Fault::new("cancelled", "it was stopped"));
                }
            }
            match strike {
                Some(FaultKind::Lost) => {
                    Err(Fault::new("simulated", "its result was lost, as the simulation wanted it")
                        .transient())
                }
                Some(FaultKind::Mute) => {
                    call.cancel.cancelled().await;
                    Err(Fault::new("cancelled", "it was stopped"))
                }
                _ => outcome,
            }
        })
    }

    fn end_command(&self, effect: &str) {
        let now_ms = self.now_ms();
        if let Some(command) = self.state().commands.get_mut(effect) {
            command.ends_at_ms = Some(now_ms);
            command.answer = Probe::Failed(Fault::new("cancelled", "it was stopped"));
        }
    }

    fn outcome_of(&self, step: &StepRef, run: &RunAction) -> Result<BTreeMap<String, String>, Fault> {
        if self.given.fails(step) {
            let what = first_line(&run.script);
            return Err(Fault::new("command-failed", format!("`{what}` exited with 1"))
                .details(["simulated: the test says `fails = true`".to_owned()]));
        }
        let outputs = run.outputs.iter().map(|name| (name.clone(), self.given.output(step, name))).collect();
        Ok(outputs)
    }
}

fn first_line(script: &str) -> &str {
    script.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default()
}

impl Runner for World {
    fn run<'a>(&'a self, call: Call<'a>, run: &'a RunAction) -> PortResult<'a, BTreeMap<String, String>> {
        self.command(call, run)
    }

    fn probe<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Probe> {
        let now_ms = self.now_ms();
        let found = match self.state().commands.get(call.effect.as_str()) {
            None => Probe::NotDone,
            Some(command) if command.ends_at_ms.is_some_and(|ends_ms| ends_ms <= now_ms) => {
                command.answer.clone()
            }
            Some(_) => Probe::Running,
        };
        Box::pin(std::future::ready(found))
    }

    fn stop<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, ()> {
        self.end_command(call.effect.as_str());
        Box::pin(std::future::ready(()))
    }
}

impl Messenger for World {
    fn http<'a>(&'a self, call: Call<'a>, request: HttpRequest<'a>) -> PortResult<'a, u16> {
        let fails = self.given.fails(call.step);
        let effect = call.effect.to_string();
        Box::pin(self.carry(call, move |state, now_ms| {
            if request.method != "GET" {
                state.once(&effect, &format!("{} {}", request.method, request.url), now_ms);
            }
            if fails {
                return Err(Fault::new("http-failed", format!("{} answered 500", request.url))
                    .details(["simulated: the test says `fails = true`".to_owned()]));
            }
            Ok(request.expect_status.first().copied().unwrap_or(200))
        }))
    }

    fn notify<'a>(
        &'a self,
        call: Call<'a>,
        _channel: Channel,
        _url: &'a Value,
        _headers: &'a BTreeMap<String, Value>,
        _text: &'a str,
        _fields: &'a BTreeMap<String, String>,
    ) -> PortResult<'a, ()> {
        let effect = call.effect.to_string();
        Box::pin(self.carry(call, move |state, now_ms| {
            state.once(&effect, "the message", now_ms);
            Ok(())
        }))
    }

    fn set_flag<'a>(
        &'a self,
        call: Call<'a>,
        provider: &'a FlagProvider,
        flag: &'a str,
        value: Option<&'a str>,
    ) -> PortResult<'a, Option<String>> {
        Box::pin(self.carry(call, move |state, _| {
            let key = format!("{provider:?}/{flag}");
            Ok(match value {
                Some(value) => state.flags.insert(key, value.to_owned()),
                None => state.flags.remove(&key),
            })
        }))
    }
}

impl Measurer for World {
    fn measure<'a>(
        &'a self,
        call: Call<'a>,
        requests: &'a [MeasureRequest],
        _traffic: &'a dyn TrafficNumbers,
    ) -> BoxFuture<'a, Vec<Sample>> {
        Box::pin(async move {
            let node = call.step.node;
            let begun = self.state().programmed.contains(call.step);
            // A measurement that can't be made is no data, never an error.
            let reached = self.carry(call, |_, _| Ok(())).await;
            requests
                .iter()
                .map(|request| {
                    let subject = match (request.metric.subject, begun) {
                        (Subject::Service, _) if request.scope.role == Role::Candidate.as_str() => {
                            Subject::Candidate
                        }
                        // Before there is a program, what is measured of stable is the baseline.
                        (Subject::Stable, false) => Subject::Baseline,
                        (subject, _) => subject,
                    };
                    let value = match &reached {
                        Ok(()) => self.given.metric(node, subject, request),
                        Err(_) => None,
                    };
                    let note = match (&reached, &value) {
                        (Err(fault), _) => Some(fault.message.clone()),
                        (Ok(()), None) => Some("simulated: no `when` of the test gives it".to_owned()),
                        (Ok(()), Some(_)) => None,
                    };
                    let asked = match &request.metric.measure {
                        MeasureName::Named { set, name } => format!("simulated {set}.{name}"),
                        _ => "simulated".to_owned(),
                    };
                    Sample { metric: request.metric.clone(), value, asked, note }
                })
                .collect()
        })
    }
}

impl Secrets for World {
    fn resolve<'a>(&'a self, _name: &'a str) -> PortResult<'a, SecretValue> {
        Box::pin(std::future::ready(Ok(SecretValue::new("simulated".to_owned()))))
    }
}
