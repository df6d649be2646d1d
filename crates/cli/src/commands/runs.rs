//! `cdpipe runs`: the runs of this project.

use crate::commands::Ended;
use crate::failure::Failure;
use crate::ui::{Look, Ui};
use crate::{state, times};
use cdpipe_engine::{RunState, RunSummary, Store};
use cdpipe_model::{Outcome, RunId};
use serde_json::{Value, json};
use std::time::Duration;

/// Arguments of `cdpipe runs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many, newest first.
    #[arg(long, short = 'n', default_value_t = 20, value_name = "COUNT")]
    limit: u32,
    /// Times in UTC.
    #[arg(long)]
    utc: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// Give this unfinished run up: nothing is touched, its locks are free.
    #[arg(long, value_name = "RUN")]
    abandon: Option<String>,
}

/// Lists them.
pub(crate) fn run(args: &Args, ui: &Ui) -> Ended {
    if let Some(part) = &args.abandon {
        let store = state::open_existing()?;
        let run = state::find_run(&store, part)?;
        let ended = give_up(&store, &run.run)?;
        ui.print(&format!("run {} is given up; what it did stays as it is{ended}\n", run.run));
        return Ok(0);
    }
    let dir = state::dir(None)?;
    let runs = match cdpipe_engine::Store::open_existing(&dir)? {
        Some(store) => store.runs(args.limit)?,
        None => Vec::new(),
    };
    if args.json {
        let runs: Vec<Value> = runs.iter().map(to_json).collect();
        ui.print(&format!(
            "{:#}\n",
            json!({ "version": 1, "state": dir.display().to_string(), "runs": runs })
        ));
        return Ok(0);
    }
    if runs.is_empty() {
        ui.note(&format!("no runs yet in {}\n", dir.display()));
        return Ok(0);
    }
    ui.print(&table(&runs, args.utc, times::now_ms(), ui.out));
    Ok(0)
}

/// How long the commands of a run that is given up may take to end: a grace, and a busy machine.
const COMMANDS_END_WITHIN: Duration = Duration::from_secs(20);

/// Gives an unfinished run up, and ends its commands. Answers what to say of those, if there were any.
pub(crate) fn give_up(store: &Store, run: &RunId) -> Result<String, Failure> {
    store.abandon(run)?;
    let commands = crate::wiring::commands_dir(store.dir());
    let cannot = |fault| Failure::from_fault(&crate::failure::CANNOT_RUN, fault);
    let ended = cdpipe_host::commands::end_all(&commands, run, COMMANDS_END_WITHIN).map_err(cannot)?;
    cdpipe_host::commands::forget(&commands, run, COMMANDS_END_WITHIN).map_err(cannot)?;
    Ok(match ended {
        0 => String::new(),
        1 => "; a command of it was ended".to_owned(),
        more => format!("; {more} commands of it were ended"),
    })
}

/// What a run is, in a word with its tone.
pub(crate) fn state_word(state: &RunState, look: Look) -> (String, usize) {
    let word = match state {
        RunState::Finished(outcome) => cdpipe_report::words::outcome(*outcome),
        other => match other {
            RunState::Running => "running",
            RunState::Crashed => "cut off",
            RunState::Interrupted => "interrupted",
            RunState::Suspended { .. } => "waits",
            RunState::Abandoned => "given up",
            RunState::Finished(_) => "",
        },
    };
    let painted = match state {
        RunState::Finished(Outcome::Succeeded | Outcome::Skipped) => look.green(word),
        RunState::Finished(Outcome::RolledBack | Outcome::Cancelled) => look.yellow(word),
        RunState::Finished(_) => look.red(word),
        RunState::Running => look.cyan(word),
        RunState::Abandoned => look.dim(word),
        RunState::Crashed | RunState::Interrupted | RunState::Suspended { .. } => look.yellow(word),
    };
    (painted, word.chars().count())
}

fn table(runs: &[RunSummary], utc: bool, now_ms: u64, look: Look) -> String {
    let name = runs.iter().map(|run| run.pipeline.chars().count()).max().unwrap_or(0).clamp(8, 30);
    let mut text = format!(
        "{}\n",
        look.dim(&format!(
            "{:<21}  {:<name$}  {:<15}  {:>7}  {}",
            "RUN", "PIPELINE", "STATE", "TOOK", "STARTED"
        ))
    );
    for run in runs {
        let (word, width) = state_word(&run.state, look);
        let pad = " ".repeat(15usize.saturating_sub(width));
        let took = match (run.ended_at_ms, &run.state) {
            (Some(ended), _) => cdpipe_report::words::elapsed(ended.saturating_sub(run.started_at_ms)),
            (None, RunState::Running) => {
                cdpipe_report::words::elapsed(now_ms.saturating_sub(run.started_at_ms))
            }
            (None, _) => String::new(),
        };
        let pipeline: String = run.pipeline.chars().take(name).collect();
        let line = format!(
            "{:<21}  {pipeline:<name$}  {word}{pad}  {took:>7}  {} {}",
            run.run.as_str(),
            times::absolute(run.started_at_ms, utc),
            look.dim(&format!("({}) by {}", times::ago(run.started_at_ms, now_ms), run.started_by)),
        );
        text.push_str(line.trim_end());
        text.push('\n');
        if let RunState::Suspended { waiting } = &run.state {
            text.push_str(&format!("{:<21}  {}\n", "", look.yellow(&format!("waits: {waiting}"))));
        }
    }
    text
}

/// A run for programs.
pub(crate) fn to_json(run: &RunSummary) -> Value {
    json!({
        "run": run.run.0,
        "pipeline": run.pipeline,
        "file": run.file,
        "plan_hash": run.plan_hash,
        "state": run.state.as_str(),
        "waiting": match &run.state { RunState::Suspended { waiting } => Some(waiting), _ => None },
        "resumable": run.state.is_resumable(),
        "started_by": run.started_by,
        "started_at_ms": run.started_at_ms,
        "ended_at_ms": run.ended_at_ms,
        "driven_by": run.owner.as_ref().filter(|owner| owner.alive).map(|owner| owner.process.to_string()),
        "pruned": run.pruned,
    })
}

/// What one could do with an unfinished run; for messages.
pub(crate) fn way_on(run: &RunSummary) -> String {
    match &run.state {
        RunState::Running => format!("`cdpipe status {}` shows it, `cdpipe cancel {0}` ends it", run.run),
        _ => format!("`cdpipe resume {}` goes on with it", run.run),
    }
}

/// The run, or why it can't be resumed.
pub(crate) fn resumable(run: &RunSummary) -> Result<(), Failure> {
    if run.state.is_resumable() {
        return Ok(());
    }
    let message = match &run.state {
        RunState::Running => {
            let by = run.owner.as_ref().map_or_else(String::new, |owner| format!(" by {}", owner.process));
            format!("run {} is under way{by}", run.run)
        }
        state => format!("run {} is over: {}", run.run, state.as_str()),
    };
    let failure = Failure::new(&crate::failure::NOT_POSSIBLE, message);
    Err(match run.state {
        RunState::Running => failure.help(way_on(run)),
        _ => failure.help(format!("start a new one with `cdpipe run {}`", run.file)),
    })
}
