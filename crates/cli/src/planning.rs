//! From a path and inputs to a plan, with everything that is wrong told on the way.

use crate::failure::{self, Failure};
use crate::render::{self, Counts, Found};
use crate::ui::Ui;
use crate::{files, load, stdin};
use cdpipe_check::Inputs;
use cdpipe_model::plan::Plan;
use cdpipe_syntax::Diagnostic;
use std::path::PathBuf;

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
            let texts = checked.sources.iter().map(|(_, source)| source.text.clone()).collect();
            Ok(Some(Planned { plan, texts }))
        }
        Err(_) => {
            ui.note(&format!("{}: nothing was done\n", ui.err.red(&Counts::of(&found).text())));
            Ok(None)
        }
    }
}
