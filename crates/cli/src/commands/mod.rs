//! The commands, one file each: its arguments and what it does.

mod check;
mod completions;
mod docs;
mod doctor;
mod down;
mod explain;
mod fmt;
mod graph;
mod locks;
mod logs;
mod plan;
mod proxy;
mod resume;
mod rollback;
mod run;
mod runs;
mod signal;
mod status;
mod test;
mod unlock;

use crate::failure::Failure;
use crate::ui::Ui;
use clap::Subcommand;

/// What a command ends with: the exit code, or why it could not do its work.
pub(crate) type Ended = Result<u8, Failure>;

/// All of them.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Say what is wrong with pipelines.
    Check(check::Args),
    /// Lay pipelines out the one way.
    Fmt(fmt::Args),
    /// Draw the stages and gates of a pipeline.
    Graph(graph::Args),
    /// Play the tests of pipelines against simulated targets, in virtual time.
    Test(test::Args),
    /// Show what a run would do, effect by effect, and how each is taken back.
    Plan(plan::Args),
    /// Carry a pipeline out.
    Run(run::Args),
    /// Go on with a run that was interrupted or waits.
    Resume(resume::Args),
    /// Show where a run is.
    Status(status::Args),
    /// List the runs of this project.
    Runs(runs::Args),
    /// Print what a run said.
    Logs(logs::Args),
    /// Let a gate, or a step of a deploy, pass.
    Approve(signal::Approve),
    /// Refuse an approval.
    Reject(signal::Reject),
    /// Start nothing new in a run.
    Pause(signal::Pause),
    /// Skip the rest of a soak.
    Promote(signal::Promote),
    /// Run a failed stage again.
    Retry(signal::Retry),
    /// Stop a run and undo what is under way.
    Cancel(signal::Cancel),
    /// Bring a release back that was deployed before.
    Rollback(rollback::Args),
    /// Stop what a pipeline deployed.
    Down(down::Args),
    /// Show who holds which lock, and who waits for it.
    Locks(locks::Args),
    /// Open a lock whose owner is gone.
    Unlock(unlock::Args),
    /// Look whether this machine has what runs need.
    Doctor(doctor::Args),
    /// Explain an error code or a word of the language.
    Explain(explain::Args),
    /// Look at the built-in reverse proxy, or run it by hand.
    Proxy(proxy::Args),
    /// Print or write the pages that are made from the program.
    #[command(hide = true)]
    Docs(docs::Args),
    /// Print a completion script for a shell.
    Completions(completions::Args),
}

impl Command {
    /// Does it.
    pub(crate) fn run(&self, ui: &Ui) -> Ended {
        match self {
            Command::Check(args) => check::run(args, ui),
            Command::Fmt(args) => fmt::run(args, ui),
            Command::Graph(args) => graph::run(args, ui),
            Command::Test(args) => test::run(args, ui),
            Command::Plan(args) => plan::run(args, ui),
            Command::Run(args) => run::run(args, ui),
            Command::Resume(args) => resume::run(args, ui),
            Command::Status(args) => status::run(args, ui),
            Command::Runs(args) => runs::run(args, ui),
            Command::Logs(args) => logs::run(args, ui),
            Command::Approve(args) => signal::approve(args, ui),
            Command::Reject(args) => signal::reject(args, ui),
            Command::Pause(args) => signal::pause(args, ui),
            Command::Promote(args) => signal::promote(args, ui),
            Command::Retry(args) => signal::retry(args, ui),
            Command::Cancel(args) => signal::cancel(args, ui),
            Command::Rollback(args) => rollback::run(args, ui),
            Command::Down(args) => down::run(args, ui),
            Command::Locks(args) => locks::run(args, ui),
            Command::Unlock(args) => unlock::run(args, ui),
            Command::Doctor(args) => doctor::run(args, ui),
            Command::Explain(args) => explain::run(args, ui),
            Command::Proxy(args) => proxy::run(args, ui),
            Command::Docs(args) => docs::run(args, ui),
            Command::Completions(args) => completions::run(args, ui),
        }
    }
}
