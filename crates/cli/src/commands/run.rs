//! `cdpipe run`: carries a pipeline out.

use crate::commands::{Ended, resume, runs};
use crate::drive::{self, ShowArgs, What};
use crate::failure::{self, Failure};
use crate::inputs::{self, InputArgs};
use crate::override_gate::{self, OverrideArgs};
use crate::planning::{self, Planned};
use crate::preview;
use crate::saved::SavedPlan;
use crate::state;
use crate::ui::Ui;
use crate::wiring;
use cdpipe_engine::{RunState, RunSummary, Store, StoreError};
use cdpipe_model::RunId;
use cdpipe_model::plan::{Concurrency, NodeKind, Plan, StepKind};
use cdpipe_model::ports::LockOwner;
use cdpipe_model::record::{JOURNAL_VERSION, RunHeader, Signal};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often a run that is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Arguments of `cdpipe run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The pipeline.
    #[arg(value_name = "FILE", required_unless_present = "plan")]
    file: Option<String>,
    #[command(flatten)]
    inputs: InputArgs,
    /// Carry out exactly this saved plan, or nothing if the text or what is deployed has changed since.
    #[arg(long, value_name = "PLAN", conflicts_with_all = ["file", "set", "mode"])]
    plan: Option<String>,
    /// Give an unfinished run of this pipeline up, and start anew.
    #[arg(long)]
    abandon: bool,
    #[command(flatten)]
    overrides: OverrideArgs,
    #[command(flatten)]
    show: ShowArgs,
}

/// Runs it; ends with 0 succeeded, 1 failed, 2 nothing was done, 3 rolled back, 4 rollback failed, 5 waiting, 130 interrupted.
pub(crate) fn run(args: &Args, ui: &Ui) -> Ended {
    let (file, planned, git, saved) = match (&args.plan, &args.file) {
        (Some(path), _) => {
            let mut saved = SavedPlan::read(path)?;
            saved.check_sources()?;
            let planned = Planned { plan: saved.plan.clone(), texts: std::mem::take(&mut saved.texts) };
            (PathBuf::from(&saved.file), planned, saved.git.clone(), Some(saved))
        }
        (None, Some(path)) => {
            let file = planning::pipeline_path(path)?;
            let (inputs, git) = inputs::gather(&args.inputs, &file)?;
            let Some(planned) = planning::plan(path, &inputs, ui)? else { return Ok(2) };
            (file, planned, git, None)
        }
        // The command line is refused before it comes to this.
        (None, None) => return Err(Failure::new(&failure::BAD_ARGUMENT, "no pipeline is named")),
    };
    let plan = planned.plan;
    let overrides = args.overrides.signals(&plan, "the pipeline")?;
    if must_last(&plan) && std::env::var_os("CI").is_some_and(|ci| ci == "true") && !state::is_chosen() {
        return Err(Failure::new(
            &failure::NO_STATE,
            "this pipeline deploys or waits, and in CI nothing of this machine lasts: its journal would be lost",
        )
        .help("set CDPIPE_STATE to a directory that stays: a volume, or a path that the CI system keeps"));
    }
    let dir = state::dir(Some(&file))?;
    // Found out before anything is written: what this machine can't do is no run.
    let wiring = wiring::wire(&plan, &file, &dir)?;
    if let Some(saved) = &saved {
        saved.check_seen(&preview::ask(preview::preview(&plan, &wiring.ports))?)?;
    }
    let store = Store::open(&dir)?;
    // Of a run that nobody knows any more, or that can't be read now, nothing is removed.
    cdpipe_host::commands::sweep(&wiring::commands_dir(&dir), |run| {
        store.run(run).is_ok_and(|run| !run.state.is_unfinished())
    });
    let run = state::new_run_id();
    // Held until the run has begun: of several that are started at once, one after the other looks and begins.
    let line = Line::stand(&store, &file, &run);
    if let Some(run) = settle_unfinished(&line, &plan, args, ui)? {
        drop(line);
        let overrides = args.overrides.signals(&store.header(&run)?.plan, &format!("run {run}"))?;
        return resume::go_on(&store, &run, false, overrides, &args.show, ui);
    }
    let header = Arc::new(RunHeader {
        journal_version: JOURNAL_VERSION,
        cdpipe_version: env!("CARGO_PKG_VERSION").to_owned(),
        run,
        started_at_ms: crate::times::now_ms(),
        started_by: state::user_at_host(),
        file: file.display().to_string(),
        texts: planned.texts,
        plan,
        git,
    });
    let journal = store.begin(&header)?;
    override_gate::send(&store, &header.run, overrides)?;
    drop(line);
    drive::drive(What::New(header), journal, &store, wiring, &args.show, ui)
}

/// Whether somebody will need the journal after this process: it deploys, or it can wait for a person.
fn must_last(plan: &Plan) -> bool {
    let mut lasting = plan.nodes.iter().any(|node| match &node.kind {
        NodeKind::Gate(gate) => !gate.approvals.is_empty() || !gate.windows.is_empty(),
        NodeKind::Stage(_) => false,
    });
    wiring::each_step(plan, &mut |step| {
        lasting |= matches!(step.kind, StepKind::Deploy(_) | StepKind::Apply(_));
    });
    lasting
}

/// The line of those who want to begin a run of one pipeline; leaving it is dropping this.
struct Line<'a> {
    store: &'a Arc<Store>,
    file: String,
    name: String,
    owner: LockOwner,
}

impl<'a> Line<'a> {
    fn stand(store: &'a Arc<Store>, file: &Path, run: &RunId) -> Self {
        let file = file.display().to_string();
        let owner = LockOwner { run: run.clone(), who: state::user_at_host(), pid: std::process::id() };
        Self { store, name: format!("pipeline/{file}"), file, owner }
    }

    /// Who is before us, if anyone; asked again and again it keeps our place.
    fn before(&self) -> Result<Option<LockOwner>, Failure> {
        Ok(self.store.line_up_now(&self.name, &self.owner)?)
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        // Where it can't be written, nobody is kept waiting for long: a place that is not asked for again is lost.
        let _ = self.store.leave_line_now(&self.name, &self.owner.run);
    }
}

/// Makes sure that it is our turn and no unfinished run of this pipeline is left: waits for it, ends it, or says what to do. At a
/// terminal it asks, and answers the run that is to be gone on with instead.
fn settle_unfinished(line: &Line<'_>, plan: &Plan, args: &Args, ui: &Ui) -> Result<Option<RunId>, Failure> {
    let mut told = None;
    let mut tell = |about: &RunId, text: String| {
        if told.as_ref() != Some(about) {
            ui.note(&text);
            told = Some(about.clone());
        }
    };
    loop {
        if let Some(before) = line.before()? {
            if plan.concurrency == Concurrency::Fail {
                return Err(Failure::new(
                    &failure::UNFINISHED,
                    format!("run {} of {} is about to begin this pipeline", before.run, before.who),
                ));
            }
            tell(&before.run, format!("run {} of {} waits before this one\n", before.run, before.who));
            std::thread::sleep(LOOK_EVERY);
            continue;
        }
        let Some(run) = line.store.unfinished_of(&line.file)?.into_iter().next() else { return Ok(None) };
        if run.state == RunState::Running {
            match plan.concurrency {
                Concurrency::Queue => tell(
                    &run.run,
                    format!("run {} of this pipeline is under way; waiting for its end\n", run.run),
                ),
                Concurrency::CancelPrevious => {
                    cancel(line.store, &run)?;
                    tell(
                        &run.run,
                        format!("run {} of this pipeline is cancelled; waiting for its end\n", run.run),
                    );
                    // Told once; it hears it once, too.
                    while line.store.run(&run.run)?.state == RunState::Running {
                        line.before()?;
                        std::thread::sleep(LOOK_EVERY);
                    }
                }
                Concurrency::Fail => return Err(unfinished(&run, "is under way").help(runs::way_on(&run))),
            }
            std::thread::sleep(LOOK_EVERY);
            continue;
        }
        if args.abandon {
            let ended = runs::give_up(line.store, &run.run)?;
            ui.note(&format!("run {} is given up; what it did stays as it is{ended}\n", run.run));
            continue;
        }
        if plan.concurrency == Concurrency::CancelPrevious {
            // Nobody drives it, so it is ended from here: what it has begun is undone.
            ui.note(&format!("run {} of this pipeline is cancelled\n", run.run));
            cancel(line.store, &run)?;
            drive::resume(line.store, &run.run, &args.show, ui)?;
            if line.store.run(&run.run)?.state.is_unfinished() {
                return Err(unfinished(&run, "could not be cancelled").help(runs::way_on(&run)));
            }
            continue;
        }
        let what = match &run.state {
            RunState::Suspended { waiting } => format!("waits: {waiting}"),
            RunState::Crashed => "was cut off".to_owned(),
            _ => "was interrupted".to_owned(),
        };
        if ui.err.terminal && std::io::stdin().is_terminal() && !args.show.is_for_programs() {
            match choice(&run, &what, ui) {
                Choice::Resume => return Ok(Some(run.run)),
                Choice::Abandon => {
                    let ended = runs::give_up(line.store, &run.run)?;
                    ui.note(&format!("run {} is given up; what it did stays as it is{ended}\n", run.run));
                    continue;
                }
                Choice::Neither => {}
            }
        }
        return Err(unfinished(&run, &what).help(format!(
            "`cdpipe resume {}` goes on with it\n`cdpipe run {} --abandon` gives it up and starts anew",
            run.run, line.file
        )));
    }
}

fn cancel(store: &Store, run: &RunSummary) -> Result<(), Failure> {
    let reason = "a newer run was started".to_owned();
    match store.send(&run.run, Signal::Cancel { by: state::user(), reason }) {
        // It has come to its end meanwhile, which is as good.
        Ok(_) | Err(StoreError::Over { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What a person wants of an unfinished run.
enum Choice {
    Resume,
    Abandon,
    Neither,
}

/// Asks at the terminal.
fn choice(run: &RunSummary, what: &str, ui: &Ui) -> Choice {
    ui.note(&format!(
        "run {} of this pipeline {what} (started {} by {})\n\
         [r]esume it, give it up and start [a]new, or [q]uit? ",
        run.run,
        crate::times::absolute(run.started_at_ms, false),
        run.started_by
    ));
    let mut line = String::new();
    // Whoever closes the input has not chosen.
    if std::io::stdin().read_line(&mut line).is_err() {
        return Choice::Neither;
    }
    match line.trim().to_ascii_lowercase().as_str() {
        "r" | "resume" => Choice::Resume,
        "a" | "anew" | "abandon" => Choice::Abandon,
        _ => Choice::Neither,
    }
}

fn unfinished(run: &RunSummary, what: &str) -> Failure {
    Failure::new(&failure::UNFINISHED, format!("run {} of this pipeline {what}", run.run)).detail(format!(
        "started {} by {}",
        crate::times::absolute(run.started_at_ms, false),
        run.started_by
    ))
}
