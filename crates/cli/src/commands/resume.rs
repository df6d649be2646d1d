//! `cdpipe resume`: goes on with a run from where its journal ends.

use crate::commands::{Ended, runs};
use crate::drive::{self, ShowArgs};
use crate::failure::{self, Failure};
use crate::override_gate::{self, OverrideArgs};
use crate::state;
use crate::ui::Ui;
use cdpipe_engine::{RunState, Store};
use cdpipe_model::record::Signal;
use cdpipe_model::{Outcome, RunId};
use std::sync::Arc;

/// Lines of a difference that are shown.
const DIFFERENCE_LINES: usize = 60;

/// Arguments of `cdpipe resume`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which run: some letters of its id. Without one, the only unfinished one.
    #[arg(value_name = "RUN")]
    run: Option<String>,
    /// Go on though the file has changed since: this run keeps to the text it was started with, the next takes the new one.
    #[arg(long, visible_alias = "as-started")]
    accept_changes: bool,
    #[command(flatten)]
    overrides: OverrideArgs,
    #[command(flatten)]
    show: ShowArgs,
}

/// Goes on with it; the exit codes are those of `run`.
pub(crate) fn run(args: &Args, ui: &Ui) -> Ended {
    let store = state::open_existing()?;
    let run = match &args.run {
        Some(part) => state::find_run(&store, part)?,
        None => state::only_unfinished(&store)?,
    };
    let overrides = args.overrides.signals(&store.header(&run.run)?.plan, &format!("run {}", run.run))?;
    if run.state == RunState::Running {
        let (folded, _) = crate::history::fold(&store, &run.run)?;
        if folded.paused {
            override_gate::send(&store, &run.run, overrides)?;
            store.send(&run.run, Signal::Continue { by: state::user() })?;
            ui.print(&format!("run {} goes on\n", run.run));
            return Ok(0);
        }
    }
    if run.state == RunState::Finished(Outcome::RollbackFailed) {
        if !args.accept_changes {
            unchanged(&store, &run.run)?;
        }
        // The way back failed, and someone has mended what was in its way.
        store.reopen(&run.run, Signal::Continue { by: state::user() })?;
        override_gate::send(&store, &run.run, overrides)?;
        return drive::resume(&store, &run.run, &args.show, ui);
    }
    runs::resumable(&run)?;
    go_on(&store, &run.run, args.accept_changes, overrides, &args.show, ui)
}

/// Goes on with a run that can be resumed. Says first what it finds.
pub(crate) fn go_on(
    store: &Arc<Store>,
    run: &RunId,
    accept_changes: bool,
    overrides: Vec<Signal>,
    show: &ShowArgs,
    ui: &Ui,
) -> Ended {
    if !accept_changes {
        unchanged(store, run)?;
    }
    let (folded, _) = crate::history::fold(store, run)?;
    override_gate::send(store, run, overrides)?;
    if folded.paused {
        store.send(run, Signal::Continue { by: state::user() })?;
    }
    ui.note(&crate::found::text(run, &folded, &crate::wiring::commands_dir(store.dir())));
    drive::resume(store, run, show, ui)
}

/// Refuses if a source is not what it was when the run was started: a person should know which text is carried out.
fn unchanged(store: &Store, run: &RunId) -> Result<(), Failure> {
    let header = store.header(run)?;
    let dir = std::path::Path::new(&header.file).parent().unwrap_or(std::path::Path::new("/"));
    for (at, (source, text)) in header.plan.sources.iter().zip(&header.texts).enumerate() {
        let path = if at == 0 {
            std::path::PathBuf::from(&header.file)
        } else {
            // Used files are named relative to where the command was started; beside the root is the best that is known.
            let name = std::path::Path::new(&source.path);
            if name.exists() { name.to_owned() } else { dir.join(name.file_name().unwrap_or_default()) }
        };
        let now = match std::fs::read_to_string(&path) {
            Ok(now) if now == *text => continue,
            now => now.unwrap_or_default(),
        };
        let difference = crate::diff::unified(&source.path, text, &now);
        let failure = Failure::new(
            &failure::MOVED,
            format!("`{}` is not what it was when run {run} was started", path.display()),
        );
        return Err(difference
            .lines()
            .take(DIFFERENCE_LINES)
            .fold(failure, |failure, line| failure.detail(line))
            .help(format!(
                "`cdpipe resume {run} --accept-changes` goes on with the text of then; \
             `cdpipe run {} --abandon` gives the run up and starts anew",
                header.file
            )));
    }
    Ok(())
}
