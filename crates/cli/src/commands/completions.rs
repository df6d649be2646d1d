//! `cdpipe completions`: a script that completes the command line in a shell.

use crate::commands::Ended;
use crate::ui::Ui;
use clap::CommandFactory;

/// Arguments of `cdpipe completions`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which shell.
    shell: clap_complete::Shell,
}

/// Prints the script.
pub(crate) fn run(args: &Args, ui: &Ui) -> Ended {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "cdpipe", &mut script);
    ui.print(&String::from_utf8_lossy(&script));
    Ok(0)
}
