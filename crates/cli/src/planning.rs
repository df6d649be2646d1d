//! From a path and inputs to a plan, with everything that is wrong told on the way.

use crate::failure::{self, Failure};
use crate::render::{self, Counts, Found};
use crate::ui::Ui;
use crate::wiring::each_step_mut;
use crate::{files, load, stdin};
use cdpipe_check::Inputs;
use cdpipe_model::Value;
use cdpipe_model::plan::{Plan, StepKind};
use cdpipe_syntax::Diagnostic;
use std::path::{Path, PathBuf};

/// A plan with the texts it was made from.
pub(crate) struct Planned {
    /// The plan.
    pub plan: Plan,
    /// In the order of `Plan::sources`.
    pub texts: Vec<String>,
}

/// The absolute path of a pipeline that is to be run.
pub(crate) fn pipeline_path(path: &str) -> Result<PathBuf, Failure> {
    if path == files::STDIN {
        return Err(Failure::new(
            &failure::BAD_ARGUMENT,
            "a run needs a file: it is resumed and rolled back by its name",
        )
        .help("write the text to a file; `cdpipe check -` and `cdpipe graph -` read the standard input"));
    }
    // Reading gives the better errors; the text is read again when it is planned.
    files::read(path)?;
    std::fs::canonicalize(path).map_err(|error| {
        Failure::new(&failure::UNREADABLE, format!("`{path}` cannot be found: {}", files::reason(&error)))
    })
}

/// Plans it. `None` if it can't be run; why has been told. Warnings are told too.
pub(crate) fn plan(path: &str, inputs: &Inputs, ui: &Ui) -> Result<Option<Planned>, Failure> {
    let checked = load::load(path)?;
    let result = cdpipe_check::plan(&checked, inputs);
    let shown: Vec<&Diagnostic> = match &result {
        Ok(_) => checked.diagnostics.iter().collect(),
        Err(errors) => errors.iter().filter(|diagnostic| diagnostic.is_error()).collect(),
    };
    let found = [Found { sources: &checked.sources, diagnostics: shown }];
    ui.note(&render::text::render(&found, ui.err));
    match result {
        Ok(mut plan) => {
            stdin::pin(&mut plan)?;
            pin(path, &mut plan)?;
            let texts = checked.sources.iter().map(|(_, source)| source.text.clone()).collect();
            Ok(Some(Planned { plan, texts }))
        }
        Err(_) => {
            ui.note(&format!("{}: nothing was done\n", ui.err.red(&Counts::of(&found).text())));
            Ok(None)
        }
    }
}

/// Reads the manifests of `apply` steps now, so that the plan is of these and no others. Where the path is known only later, or a step before
/// writes the files, that is done when the step begins.
fn pin(path: &str, plan: &mut Plan) -> Result<(), Failure> {
    let base = Path::new(path).parent().unwrap_or(Path::new(""));
    let mut found = Ok(false);
    each_step_mut(plan, &mut |step| {
        let StepKind::Apply(apply) = &mut step.kind else { return };
        let (Some(Value::Str(pattern)), false, Ok(any)) = (apply.path.known(), apply.generated, &mut found)
        else {
            return;
        };
        match cdpipe_kubernetes::pin(base, pattern) {
            Ok(files) => {
                apply.files = files;
                *any = true;
            }
            Err(fault) => found = Err(fault),
        }
    });
    match found {
        Ok(true) => cdpipe_check::seal(plan),
        Ok(false) => {}
        Err(fault) => {
            let failure = Failure::new(&failure::UNREADABLE, fault.message);
            return Err(match fault.help {
                Some(help) => failure
                    .help(format!("{help}; if a step of the pipeline writes it, say `generated = true`")),
                None => failure,
            });
        }
    }
    Ok(())
}
