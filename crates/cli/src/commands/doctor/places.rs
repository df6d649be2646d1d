//! Whether the places that a pipeline uses can be used.

use super::{Finding, Health};
use crate::failure::Failure;
use crate::inputs::{self, InputArgs};
use crate::ui::Ui;
use crate::{files, planning, preview, state, wiring};
use cdpipe_kubernetes::doctor::{self, Checkup, Wants};
use cdpipe_model::action::{Block, StepRef};
use cdpipe_model::id::EffectId;
use cdpipe_model::observe::Observation;
use cdpipe_model::plan::{Deploy, Plan, StepKind};
use cdpipe_model::service::{Environment, TargetKind, TrafficKind};
use cdpipe_model::strategy::Strategy;
use cdpipe_model::{EnvName, Fault, Value};
use std::path::Path;
use std::time::Duration;

/// For all questions to one place.
const WITHIN: Duration = Duration::from_secs(30);

/// Looks at every environment of the file that a step of it uses; `None` if it can't be planned, which has been told.
pub(super) fn look(path: &str, args: &InputArgs, ui: &Ui) -> Result<Option<Vec<Finding>>, Failure> {
    let file = planning::pipeline_path(path)?;
    let (inputs, _) = inputs::gather(args, &file)?;
    let Some(planned) = planning::plan(path, &inputs, ui)? else { return Ok(None) };
    let plan = planned.plan;
    let wiring = wiring::wire(&plan, &file, &state::dir(Some(&file))?)?;
    let base = file.parent().unwrap_or(Path::new("/"));
    let mut found = Vec::new();
    for (name, environment) in &plan.environments {
        let Some(target) = wiring.ports.targets.get(name) else { continue };
        let effect = EffectId("doctor/0".to_owned());
        let step = StepRef { node: None, block: Block::Main, index: 0 };
        let call = preview::call_for(&effect, &step, WITHIN, &*wiring.ports.secrets);
        match environment.target.kind {
            TargetKind::Kubernetes => {
                let wants = wants(&plan, name, environment, base);
                let cluster = wiring::cluster(environment, base);
                found.extend(findings(name, preview::ask(doctor::examine(&cluster, call, &wants))?));
            }
            // This machine was looked at already.
            TargetKind::Local => {}
            TargetKind::Docker | TargetKind::Swarm | TargetKind::Hosts => {
                let Some(deploy) = first_deploy(&plan, name) else { continue };
                let service = &deploy.service;
                let look = target.observe(call, &service.name, service.platform_name.as_deref());
                let look = async { tokio::time::timeout(WITHIN, look).await };
                found.push(answers(name, environment.target.kind, preview::ask(look)?.ok()));
            }
        }
    }
    Ok(Some(found))
}

fn first_deploy(plan: &Plan, name: &EnvName) -> Option<Deploy> {
    let mut found = None;
    wiring::each_step(plan, &mut |step| {
        if let StepKind::Deploy(deploy) = &step.kind
            && deploy.environment == *name
        {
            found.get_or_insert_with(|| (**deploy).clone());
        }
    });
    found
}

/// Whether a place that was asked for a service has answered.
fn answers(name: &EnvName, kind: TargetKind, answer: Option<Result<Observation, Fault>>) -> Finding {
    let what = match kind {
        TargetKind::Docker => "the engine",
        TargetKind::Swarm => "the manager of the Swarm",
        _ => "every machine",
    };
    let mut finding = match answer {
        Some(Ok(_)) => Finding::new("target", Health::Good, format!("{what} answers")),
        Some(Err(fault)) => {
            let mut finding = Finding::new("target", Health::Bad, fault.message);
            finding.help = fault.help;
            finding
        }
        None => {
            let text = format!("{what} has not answered within {} s", WITHIN.as_secs());
            Finding::new("target", Health::Bad, text)
        }
    };
    finding.environment = Some(name.to_string());
    finding
}

fn findings(name: &EnvName, checkup: Checkup) -> Vec<Finding> {
    let Checkup { lines, unknown_context, missing } = checkup;
    lines
        .into_iter()
        .map(|line| {
            let health = match line.health {
                doctor::Health::Good => Health::Good,
                doctor::Health::Missing => Health::Missing,
                doctor::Health::Bad => Health::Bad,
            };
            let mut finding = Finding::new(line.what, health, line.text);
            finding.help = line.help;
            finding.environment = Some(name.to_string());
            match line.what {
                "rights" => finding.missing.clone_from(&missing),
                "kubeconfig" => {
                    if let Some((wanted, there)) = &unknown_context {
                        finding.help = Some(nearest(wanted, there));
                    }
                }
                _ => {}
            }
            finding
        })
        .collect()
}

fn nearest(wanted: &str, there: &[String]) -> String {
    let all = match there {
        [] => "it has none".to_owned(),
        some => format!("it has {}", some.join(", ")),
    };
    let near = there.iter().min_by_key(|name| files::distance(wanted, name));
    match near {
        Some(name) if files::distance(wanted, name) <= 1 + wanted.len() / 3 => {
            format!("did you mean `{name}`? {all}")
        }
        _ => all,
    }
}

/// What the pipeline does there.
fn wants(plan: &Plan, name: &EnvName, environment: &Environment, base: &Path) -> Wants {
    let mut wants = Wants::default();
    let reach = environment.target.settings.get("reach").and_then(Value::as_str);
    wants.forwards = reach.is_some_and(|reach| reach != "direct");
    wiring::each_step(plan, &mut |step| match &step.kind {
        StepKind::Deploy(deploy) if deploy.environment == *name => {
            wants.deploys = true;
            wants.beside |= !matches!(deploy.strategy, Strategy::Rolling(_));
            if let Some(source) = wiring::source_of(&deploy.service) {
                // That they can't be read is said by a plan.
                wants.services.extend(source.read(base).unwrap_or_default());
            }
            wants.exec |= deploy
                .verify
                .iter()
                .chain(&deploy.validate)
                .any(|step| matches!(step.kind, StepKind::Exec(_)));
            let canary = match &deploy.strategy {
                Strategy::Canary(canary) => Some(&canary.env),
                _ => None,
            };
            let variables =
                deploy.service.env.values().chain(canary.into_iter().flat_map(|env| env.values()));
            wants.secrets |= variables.into_iter().any(|value| {
                matches!(value.eval(&|_| Some(Value::Str(String::new()))), Ok(Value::Secret(_)))
            });
        }
        StepKind::Run(run) if run.image.is_some() && run.environment.as_ref() == Some(name) => {
            wants.jobs = true;
        }
        StepKind::Apply(apply) if apply.environment == *name => {
            for file in &apply.files {
                // They were read when it was planned; what has gone wrong since is said by a run.
                let text = std::fs::read_to_string(base.join(&file.path)).unwrap_or_default();
                wants.manifests.extend(cdpipe_kubernetes::manifests(&file.path, &text).unwrap_or_default());
            }
        }
        _ => {}
    });
    wants.subsets =
        environment.traffic.as_ref().is_some_and(|traffic| traffic.settings.contains_key("destination_rule"));
    wants.traffic = environment.traffic.as_ref().map(|traffic| {
        let setting = match traffic.kind {
            TrafficKind::Gateway => "http_route",
            TrafficKind::Istio => "virtual_service",
            _ => "",
        };
        (traffic.kind, traffic.settings.get(setting).and_then(Value::as_str).map(str::to_owned))
    });
    wants
}
