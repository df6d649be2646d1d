//! Manifests from the standard input: read once, when a run is planned, and kept in the plan, so that a run that is taken up again
//! deploys the same.

use crate::failure::{self, Failure};
use crate::wiring::each_step_mut;
use crate::{files, preview};
use cdpipe_model::plan::{Plan, StepKind};
use cdpipe_model::service::Workload;
use std::io::IsTerminal;

/// Fills in what stands on the standard input, where a service is made from `manifest = "-"`.
///
/// # Errors
/// If nothing is handed over, or it can't be what a service is made from.
pub(crate) fn pin(plan: &mut Plan) -> Result<(), Failure> {
    let mut text: Option<String> = None;
    let mut failed = None;
    each_step_mut(plan, &mut |step| {
        let StepKind::Deploy(deploy) = &mut step.kind else { return };
        let Workload::Manifest { path, text: pinned, .. } = &mut deploy.service.workload else { return };
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
