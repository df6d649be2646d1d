//! Manifests from the standard input: read once, when a run is planned, and kept in the plan, so that a run that is taken up again
//! deploys the same.

use crate::failure::{self, Failure};
use crate::{files, preview};
use cdpipe_model::plan::{NodeKind, Plan, Step, StepKind};
use cdpipe_model::service::Workload;
use std::io::IsTerminal;

/// Fills in what stands on the standard input, where a service is made from `manifest = "-"`.
///
/// # Errors
/// If nothing is handed over, or it can't be what a service is made from.
pub(crate) fn pin(plan: &mut Plan) -> Result<(), Failure> {
    let mut text: Option<String> = None;
    let mut failed = None;
    each_deploy(plan, &mut |workload| {
        let Workload::Manifest { path, text: pinned, .. } = workload else { return };
        if path != files::STDIN || failed.is_some() {
            return;
        }
        if text.is_none() {
            match read() {
                Ok(found) => text = Some(found),
                Err(failure) => failed = Some(failure),
            }
        }
        pinned.clone_from(&text);
    });
    if let Some(failure) = failed {
        return Err(failure);
    }
    if text.is_some() {
        // Serialising plain data with string keys into memory can't fail.
        plan.hash.clear();
        plan.hash = preview::digest(&serde_json::to_vec(plan).unwrap_or_default());
    }
    Ok(())
}

fn read() -> Result<String, Failure> {
    if std::io::stdin().is_terminal() {
        return Err(Failure::new(
            &failure::CANNOT_RUN,
            "a service is made from `manifest = \"-\"`, and the standard input is a terminal",
        )
        .help("hand the manifests over: `helm template … | cdpipe run pipeline.cd`"));
    }
    let text = files::read(files::STDIN)?;
    cdpipe_kubernetes::screen(&text).map_err(|fault| {
        let failure = Failure::new(&failure::CANNOT_RUN, fault.message);
        match fault.help {
            Some(help) => failure.help(help),
            None => failure,
        }
    })?;
    Ok(text)
}

fn each_deploy(plan: &mut Plan, visit: &mut dyn FnMut(&mut Workload)) {
    fn walk(steps: &mut [Step], visit: &mut dyn FnMut(&mut Workload)) {
        for step in steps {
            match &mut step.kind {
                StepKind::Deploy(deploy) => visit(&mut deploy.service.workload),
                StepKind::Undo { steps } => walk(steps, visit),
                _ => {}
            }
        }
    }
    for node in &mut plan.nodes {
        let hooks = match &mut node.kind {
            NodeKind::Stage(stage) => {
                walk(&mut stage.steps, visit);
                &mut stage.hooks
            }
            NodeKind::Gate(gate) => &mut gate.hooks,
        };
        hooks.iter_mut().for_each(|hook| walk(&mut hook.steps, visit));
    }
    plan.hooks.iter_mut().for_each(|hook| walk(&mut hook.steps, visit));
}
