//! `cdpipe resume`: goes on with a run from where its journal ends.

use crate::commands::{Ended, runs};
use crate::drive::{self, ShowArgs};
use crate::failure::{self, Failure};
use crate::state;
use crate::ui::Ui;
use cdpipe_engine::{RunState, Store};
use cdpipe_model::RunId;
use cdpipe_model::record::Signal;

/// Arguments of `cdpipe resume`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which run: some letters of its id. Without one, the only unfinished one.
    #[arg(value_name = "RUN")]
    run: Option<String>,
    /// Go on with the text that it was started with, though the file has changed since.
    #[arg(long)]
    as_started: bool,
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
    if run.state == RunState::Running {
        let (folded, _) = crate::history::fold(&store, &run.run)?;
        if folded.paused {
            store.send(&run.run, Signal::Continue { by: state::user() })?;
            ui.print(&format!("run {} goes on\n", run.run));
            return Ok(0);
        }
    }
    runs::resumable(&run)?;
    if !args.as_started {
        unchanged(&store, &run.run)?;
    }
    let (folded, _) = crate::history::fold(&store, &run.run)?;
    if folded.paused {
        store.send(&run.run, Signal::Continue { by: state::user() })?;
    }
    drive::resume(&store, &run.run, &args.show, ui)
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
        let now = std::fs::read_to_string(&path);
        if now.is_ok_and(|now| now == *text) {
            continue;
        }
        return Err(Failure::new(
            &failure::MOVED,
            format!("`{}` is not what it was when run {run} was started", path.display()),
        )
        .help(format!(
            "`cdpipe resume {run} --as-started` goes on with the text of then; \
             `cdpipe run {} --abandon` gives the run up and starts anew",
            header.file
        )));
    }
    Ok(())
}
