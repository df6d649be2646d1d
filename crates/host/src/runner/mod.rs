//! The command runner: `run` steps as real processes of this machine.
//!
//! A script is read by `/bin/sh -e`: it ends at the first command that fails. Not `-u`: scripts test optional variables. Each command is
//! the leader of a process group of its own, so that cancel and deadline end all of it: TERM to the group, a grace, KILL. A program that
//! makes a session of its own (a daemon, `setsid`) leaves the group and is on its own; so is what a script leaves in the background when it
//! ends by itself. Output that such a process still writes is read for a moment only.
//!
//! The commands of `run` steps are children of the run's supervisor (`commands`), so they and what they said survive the engine. A call
//! that is dropped leaves its command running, for the next engine or its deadline; a call that is cancelled ends it. What is executed
//! inside of an instance is a child of this process (`Shell`).
//!
//! Values reach the script as environment or standard input, never as shell text. Ten thousand small commands must cost little more
//! than the processes themselves: no thread and no file for a command that does not need one, and `posix_spawn` (no code runs between
//! fork and exec).

mod execute;
mod outputs;
mod running;
mod shell;

pub(crate) use execute::{Limits, Output, execute};
pub(crate) use outputs::create as create_output;
pub use outputs::read_text as read_outputs;
pub(crate) use shell::{Command, Shell, spawn, too_large};

use crate::commands::{Client, ClientConfig, Ended, Event, Following, NumberedLine, Past, Tale};
use crate::mask::Masker;
use crate::process;
use cdpipe_model::Fault;
use cdpipe_model::action::{Answer, RunAction};
use cdpipe_model::ports::{BoxFuture, Call, PortResult, Probe, Runner, Sink};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often a command whose supervisor is gone is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Lines that are handed over between two looks whether there is room.
const LINES_AT_ONCE: usize = 1_000;

/// What the runner of a pipeline needs to know.
#[derive(Debug, Clone)]
pub struct RunnerConfig {
    /// Folder that working directories are relative to: the pipeline's.
    pub base: PathBuf,
    /// Folder where the supervisors of all runs keep what became of their commands; made when it is needed, only for the owner.
    pub commands: PathBuf,
    /// The program that becomes a supervisor: this cdpipe.
    pub supervisor: PathBuf,
    /// How long a command may take to end after TERM.
    pub grace: Duration,
    /// Environment variables that no command may inherit: sources of secrets.
    pub hidden_env: Vec<String>,
}

/// Runs shell commands on this machine.
#[derive(Debug)]
pub struct HostRunner {
    base: PathBuf,
    grace: Duration,
    masker: Masker,
    client: Client,
}

/// What came of hearing of a command.
enum Heard {
    /// How it ended.
    Ended(Ended),
    /// Its supervisor is gone.
    Lost,
}

impl HostRunner {
    /// A runner; the environment that commands inherit is that of now.
    pub fn new(config: RunnerConfig, masker: Masker) -> Self {
        let client = Client::new(ClientConfig {
            program: config.supervisor,
            all: config.commands,
            hidden: shell::hidden_variables(&config.hidden_env),
            masker: masker.clone(),
        });
        Self { base: config.base, grace: config.grace, masker, client }
    }

    async fn run_supervised(
        &self,
        call: Call<'_>,
        run: &RunAction,
    ) -> Result<BTreeMap<String, String>, Fault> {
        let folder = match &run.dir {
            Some(dir) => self.base.join(dir),
            None => self.base.clone(),
        };
        let mut start = shell::prepare(call, run, &folder, BTreeMap::new(), &self.masker).await?;
        start.grace_ms = u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX);
        let title = start.title.clone();
        let following = self.client.start(start).await?;
        match self.hear(call, following).await {
            Heard::Ended(ended) => {
                let tale = Tale { title, outputs: run.outputs.clone(), lines: Vec::new() };
                self.conclude(call, ended, &tale)
            }
            Heard::Lost => match self.look(call).await? {
                Some(result) => result,
                None => Err(Fault::new(
                    "supervisor-failed",
                    format!("`{title}` was not started: the supervisor of commands was killed"),
                )
                .transient()),
            },
        }
    }

    /// Hears of a command until it has ended; has it ended on cancel.
    async fn hear(&self, call: Call<'_>, mut following: Following) -> Heard {
        let mut cancelled = call.cancel.cancelled();
        let mut told = false;
        loop {
            tokio::select! {
                biased;
                event = following.next() => match event {
                    Some(Event::Lines(lines)) => self.give(call.sink, &lines).await,
                    Some(Event::Ended(ended)) => return Heard::Ended(ended),
                    None => return Heard::Lost,
                },
                () = &mut cancelled, if !told => {
                    told = true;
                    following.stop();
                }
            }
        }
    }

    async fn give(&self, sink: &dyn Sink, lines: &[NumberedLine]) {
        // What is told after a crash may have been taken before it.
        let taken = sink.taken();
        for part in lines.chunks(LINES_AT_ONCE) {
            if let Some(room) = sink.room() {
                room.await;
            }
            for line in part.iter().filter(|line| line.number > taken) {
                // Masked already, but for what became a secret of this run since.
                sink.numbered(line.number, line.stream, &self.masker.mask(&line.text));
            }
        }
    }

    fn conclude(&self, call: Call<'_>, ended: Ended, tale: &Tale) -> Result<BTreeMap<String, String>, Fault> {
        let path = self.client.folder(call.effect.as_str()).output(call.effect.as_str());
        let output = (!tale.outputs.is_empty()).then_some((path.as_path(), tale.outputs.as_slice()));
        shell::conclude(ended, &tale.title, output, &self.masker, call.sink)
    }

    /// What became of a command that this process has not started, or has lost sight of: waits for its end if it runs. `None` if it was
    /// never started.
    async fn look(&self, call: Call<'_>) -> Result<Option<Result<BTreeMap<String, String>, Fault>>, Fault> {
        let mut said = false;
        loop {
            match self.client.past(call.effect.as_str()).await? {
                Past::NotStarted => return Ok(None),
                Past::Ended(ended, tale) => {
                    self.give(call.sink, &tale.lines).await;
                    return Ok(Some(self.conclude(call, ended, &tale)));
                }
                Past::Running(following, tale) => {
                    call.sink.progress("still running since before cdpipe was stopped");
                    self.give(call.sink, &tale.lines).await;
                    if let Heard::Ended(ended) = self.hear(call, following).await {
                        return Ok(Some(self.conclude(call, ended, &tale)));
                    }
                }
                Past::Unknown(fault) => return Ok(Some(Err(fault))),
                Past::Orphan(pid) => {
                    if !std::mem::replace(&mut said, true) {
                        call.sink.progress("its supervisor was killed; waits for the command to end");
                    }
                    tokio::select! {
                        () = call.cancel.cancelled() => {
                            self.end_group(pid).await;
                            return Ok(Some(Err(Fault::new("cancelled", "it was ended"))));
                        }
                        () = tokio::time::sleep(LOOK_EVERY) => {}
                    }
                }
            }
        }
    }

    /// TERM, the grace, KILL. The leader was seen alive a moment ago, so the group is its own.
    async fn end_group(&self, pid: u32) {
        process::signal_group(pid, Signal::TERM);
        let until = Instant::now() + self.grace;
        while !process::group_members(pid).is_empty() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        process::signal_group(pid, Signal::KILL);
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
            self.run_supervised(call, run).await
        })
    }

    fn probe<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Probe> {
        Box::pin(async move {
            match self.look(call).await {
                Ok(None) => Probe::NotDone,
                Ok(Some(Ok(outputs))) => Probe::Done(Answer::Exited { outputs }),
                Ok(Some(Err(fault))) if fault.kind == "outcome-unknown" => Probe::Unknown(fault),
                Ok(Some(Err(fault))) => Probe::Failed(fault),
                Err(fault) => Probe::Unknown(fault),
            }
        })
    }
}
