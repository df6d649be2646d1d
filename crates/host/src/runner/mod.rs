//! The command runner: `run` steps as real processes of this machine.
//!
//! A script is read by `/bin/sh -e`: it ends at the first command that fails. Not `-u`: scripts test optional variables. Each command is
//! the leader of a process group of its own, so that cancel and deadline end all of it: TERM to the group, a grace, KILL. A program that
//! makes a session of its own (a daemon, `setsid`) leaves the group and is on its own; so is what a script leaves in the background when it
//! ends by itself. Output that such a process still writes is read for a moment only.
//!
//! Values reach the script as environment or standard input, never as shell text. Ten thousand small commands must cost little more
//! than the processes themselves: no thread and no file for a command that does not need one, and `posix_spawn` (no code runs between
//! fork and exec).

mod outputs;
mod running;
mod shell;

pub(crate) use shell::{Command, Shell};

use crate::mask::Masker;
use crate::run_log::RunLog;
use cdpipe_model::Fault;
use cdpipe_model::action::RunAction;
use cdpipe_model::ports::{BoxFuture, Call, PortResult, Probe, Runner};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// What the runner of a pipeline needs to know.
#[derive(Debug, Clone)]
pub struct RunnerConfig {
    /// Folder that working directories are relative to: the pipeline's.
    pub base: PathBuf,
    /// Folder for files of a moment (`$CDPIPE_OUTPUT`); made when it is needed, only for the owner.
    pub scratch: PathBuf,
    /// Where output is kept; `None` keeps none.
    pub log: Option<RunLog>,
    /// How long a command may take to end after TERM.
    pub grace: Duration,
    /// Environment variables that no command may inherit: sources of secrets.
    pub hidden_env: Vec<String>,
}

/// Runs shell commands on this machine.
#[derive(Debug)]
pub struct HostRunner {
    config: RunnerConfig,
    shell: Shell,
}

impl HostRunner {
    /// A runner; the environment that commands inherit is that of now.
    pub fn new(config: RunnerConfig, masker: Masker) -> Self {
        let shell = Shell::new(&config.hidden_env, masker).with_grace(config.grace);
        Self { config, shell }
    }
}

impl Runner for HostRunner {
    fn run<'a>(&'a self, call: Call<'a>, run: &'a RunAction) -> PortResult<'a, BTreeMap<String, String>> {
        Box::pin(async move {
            if let Some(image) = &run.image {
                return Err(Fault::new(
                    "image-unsupported",
                    format!("this machine can't run a command in the image {image}"),
                )
                .help("set `environment` to one with a target that runs containers, or leave out `image`"));
            }
            let folder = match &run.dir {
                Some(dir) => self.config.base.join(dir),
                None => self.config.base.clone(),
            };
            let command = Command {
                run,
                folder: &folder,
                base_env: None,
                env: BTreeMap::new(),
                scratch: &self.config.scratch,
                log: self.config.log.as_ref(),
            };
            self.shell.run(call, command).await
        })
    }

    fn probe<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Probe> {
        let fault = Fault::new(
            "outcome-unknown",
            format!("nobody knows how the command of {} ended: cdpipe was ended while it ran", call.effect),
        )
        .help("look at what it should have done; where that is not there, run the pipeline again");
        Box::pin(std::future::ready(Probe::Unknown(fault)))
    }
}
