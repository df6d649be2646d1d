//! The release that a deploy brings in, from what the plan says of it. `plan` asks before anything runs, with stand-ins for what is
//! known only later; a run asks when the deploy begins.

use cdpipe_model::expr::Expr;
use cdpipe_model::observe::Observation;
use cdpipe_model::plan::{Deploy, Plan};
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::service::Workload;
use cdpipe_model::{Fault, Value};
use std::collections::BTreeMap;

/// What an expression is worth.
pub type Eval<'a> = dyn Fn(&Expr) -> Result<Value, Fault> + 'a;

/// The release as the plan describes it, without digests.
///
/// # Errors
/// If an expression has no value, or has a secret where none can stand.
pub fn release_spec(plan: &Plan, spec: &Deploy, eval: &Eval<'_>) -> Result<ReleaseSpec, Fault> {
    let service = &spec.service;
    let text = |expr: &Expr| match eval(expr)? {
        Value::Secret(_) => {
            Err(Fault::new("bad-value", format!("`{expr}` holds a secret, which cannot stand here")))
        }
        value => Ok(value.to_string()),
    };
    let texts = |exprs: &[Expr]| exprs.iter().map(text).collect::<Result<Vec<_>, _>>();
    let artifact = match &service.workload {
        Workload::Kept(kept) => return Ok((**kept).clone()),
        Workload::Command { argv, artifact } => Artifact::Command {
            argv: texts(argv)?,
            path: artifact.as_ref().map(text).transpose()?,
            digest: None,
        },
        Workload::Image { reference, args } => {
            Artifact::Image { reference: text(reference)?, digest: None, args: texts(args)? }
        }
        Workload::Compose { file, service } => {
            Artifact::Document { source: format!("{file}#{service}"), json: String::new(), replicas: None }
        }
        Workload::Manifest { path, workload, text, .. } => Artifact::Document {
            source: workload.as_ref().map_or_else(|| path.clone(), |workload| format!("{path}#{workload}")),
            json: text.clone().unwrap_or_default(),
            replicas: replicas(spec, eval)?,
        },
    };
    let mut env = BTreeMap::new();
    if let Some(environment) = plan.environments.get(&spec.environment) {
        for (key, expr) in &environment.vars {
            env.insert(key.clone(), eval(expr)?);
        }
    }
    for (key, expr) in &service.env {
        env.insert(key.clone(), eval(expr)?);
    }
    let mut extra = service.extra.clone();
    if let Workload::Manifest { image: Some(image), .. } = &service.workload {
        extra.insert("image".to_owned(), Value::Str(text(image)?));
    }
    Ok(ReleaseSpec {
        service: service.name.clone(),
        platform_name: service.platform_name.clone(),
        version: text(&service.version)?,
        artifact,
        port: service.port,
        env,
        health: service.health.clone(),
        drain_ms: service.drain_ms,
        extra,
    })
}

/// Wanted instances as the pipeline says it, if it does.
///
/// # Errors
/// If the expression has no value, or one that is no count.
fn replicas(spec: &Deploy, eval: &Eval<'_>) -> Result<Option<u32>, Fault> {
    let name = &spec.service.name;
    let Some(said) = &spec.service.replicas else { return Ok(None) };
    match eval(said)? {
        Value::Int(n) => u32::try_from(n)
            .map(Some)
            .map_err(|_| Fault::new("bad-value", format!("replicas of {name} is {n}; expected 0 or more"))),
        other => {
            Err(Fault::new("bad-value", format!("replicas of {name} is {other}; expected a whole number")))
        }
    }
}

/// Wanted instances: as the pipeline says, or what the release is made from, or else as many as there are of what serves.
///
/// # Errors
/// If the expression has no value, or one that is no count.
pub fn wanted(
    spec: &Deploy,
    candidate: &ReleaseSpec,
    seen: &Observation,
    eval: &Eval<'_>,
) -> Result<u32, Fault> {
    if let Some(said) = replicas(spec, eval)? {
        return Ok(said);
    }
    if let Artifact::Document { replicas: Some(said), .. } = &candidate.artifact {
        return Ok(*said);
    }
    let stable = crate::strategy::stable_of(seen, &candidate.id());
    Ok(stable.map_or(1, |stable| stable.wanted.max(1)))
}
