//! The command line of cdpipe: it wires the crates together, renders for people, asks them, and chooses exit codes.
//!
//! Uses every other crate. Deliberately not here: decisions. What a pipeline means is `check`'s, what a run does next is
//! `machine`'s, how progress looks is `report`'s.
//!
//! Invariants: a command starts only what it needs (no runtime, no TLS, no database for `check`); standard output holds what was
//! asked for and nothing else; nothing panics on any input.

mod commands;
#[cfg(debug_assertions)]
mod crash;
mod diff;
mod drive;
mod failure;
mod files;
mod found;
mod graph;
mod history;
mod inputs;
mod keyboard;
mod load;
mod override_gate;
mod people;
mod planning;
mod preview;
mod render;
mod saved;
mod state;
mod stdin;
mod targets;
mod testing;
mod times;
mod ui;
mod wiring;

use cdpipe_model::ports::Router;
use cdpipe_proxy::ProxyRouter;
use clap::Parser;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use ui::{ColorChoice, Ui};

/// Continuous delivery from one file: check it, plan it, run it, roll it back.
#[derive(Debug, Parser)]
#[command(name = "cdpipe", version, max_term_width = 100, propagate_version = true)]
#[command(
    after_help = "Exit codes of a run: 0 succeeded, 1 failed, 2 nothing was done (wrong file or command line), \
    3 rolled back, 4 the rollback failed, 5 waiting, 130 interrupted."
)]
pub(crate) struct Cli {
    /// When to use colour.
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_possible_values = false)]
    color: ColorChoice,
    #[command(subcommand)]
    command: commands::Command,
}

/// The proxy of the machine that an agent works on.
fn proxy_there(program: &Path, dir: &Path) -> Arc<dyn Router> {
    Arc::new(ProxyRouter::new(program, dir))
}

fn main() -> ExitCode {
    // The supervisor of an instance is this binary too; it must begin before anything else does.
    if let Some(code) = cdpipe_host::supervise::intercept(std::env::args_os()) {
        return code;
    }
    // So is the agent on a machine over SSH.
    if let Some(code) = cdpipe_hosts::intercept(std::env::args_os(), proxy_there) {
        return code;
    }
    let cli = Cli::parse();
    let ui = Ui::new(cli.color);
    match cli.command.run(&ui) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            ui.note(&failure.render(ui.err));
            ExitCode::from(failure.exit)
        }
    }
}
