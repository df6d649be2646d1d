//! One command from beginning to end: environment, output, deadline, outcome.

use super::outputs::OutputFile;
use super::running::{Running, Turn};
use crate::durable::io_fault;
use crate::mask::Masker;
use crate::process::signal_name;
use crate::resolve;
use crate::run_log::RunLog;
use cdpipe_model::action::RunAction;
use cdpipe_model::ports::Call;
use cdpipe_model::secret::SecretValue;
use cdpipe_model::value::format_duration_ms;
use cdpipe_model::{Fault, Value};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a command may take to end after TERM, unless said otherwise.
const GRACE: Duration = Duration::from_secs(5);

/// How long output is read after the command has ended: what it wrote itself is there at once, the rest is of background processes.
const OUTPUT_WAIT: Duration = Duration::from_millis(250);

/// How long killed processes may take to vanish.
const KILL_WAIT: Duration = Duration::from_secs(2);

/// Runs shell text. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Shell {
    masker: Masker,
    /// Variables of cdpipe's own environment that are not passed on.
    hidden: Vec<OsString>,
    grace: Duration,
}

/// What to run, and where.
pub(crate) struct Command<'a> {
    pub(crate) run: &'a RunAction,
    /// Working directory.
    pub(crate) folder: &'a Path,
    /// Environment instead of cdpipe's own.
    pub(crate) base_env: Option<Vec<(OsString, OsString)>>,
    /// Environment on top of that, below the action's.
    pub(crate) env: BTreeMap<String, String>,
    /// For `$CDPIPE_OUTPUT`.
    pub(crate) scratch: &'a Path,
    pub(crate) log: Option<&'a RunLog>,
}

/// Why a command had to be ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    Cancelled,
    TimedOut,
}

impl Shell {
    /// A shell that does not pass on these variables, nor inputs of the run (`CDPIPE_SET_…`).
    pub(crate) fn new(hidden: &[String], masker: Masker) -> Self {
        // Only what is there: a command whose environment is not touched costs less.
        let hidden = std::env::vars_os()
            .map(|(name, _)| name)
            .filter(|name| {
                name.to_str().is_some_and(|name| {
                    name.starts_with("CDPIPE_SET_")
                        || name == "CDPIPE_OUTPUT"
                        || hidden.iter().any(|hidden| hidden == name)
                })
            })
            .collect();
        Self { masker, hidden, grace: GRACE }
    }

    /// The same with another grace.
    pub(crate) fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Runs it to its end.
    pub(crate) async fn run(
        &self,
        call: Call<'_>,
        command: Command<'_>,
    ) -> Result<BTreeMap<String, String>, Fault> {
        let begun = Instant::now();
        let output =
            if command.run.outputs.is_empty() { None } else { Some(OutputFile::create(command.scratch)?) };
        let stdin = match &command.run.stdin {
            Some(value) => Some(resolve::text(value, call.secrets, &self.masker).await?),
            None => None,
        };
        let mut process = self.process(&command, call, output.as_ref()).await?;
        process.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        let spawned =
            Running::spawn(&mut process, &self.masker, stdin).map_err(|error| cannot_start(&command, &error));
        // The environment holds secrets: it goes as soon as the process has it.
        drop(process);
        let mut running = spawned?;
        let cut = self.watch(call, &command, &mut running, begun).await;
        let status = running
            .reap()
            .map_err(|error| Fault::new("command-failed", format!("the command was lost: {error}")))?;
        // Whole milliseconds: what is finer is noise to whoever reads it.
        let took = format_duration_ms((begun.elapsed().as_secs_f64() * 1000.0).round());
        let name = || self.masker.mask(&title(&command.run.script)).into_owned();
        match cut {
            Some(Cut::Cancelled) => {
                Err(Fault::new("cancelled", format!("`{}` was cancelled after {took}", name()))
                    .details(running.last_lines()))
            }
            Some(Cut::TimedOut) => {
                Err(Fault::new("timed-out", format!("`{}` was ended after {took}: it took too long", name()))
                    .details(running.last_lines())
                    .help("raise `timeout` if it only needs longer"))
            }
            None if status.success() => match output {
                Some(output) => output.read(&command.run.outputs, &self.masker, call.sink),
                None => Ok(BTreeMap::new()),
            },
            None => {
                Err(Fault::new("command-failed", format!("`{}` {} after {took}", name(), describe(status)))
                    .details(running.last_lines()))
            }
        }
    }

    /// Reads output until the command has ended, or ends it.
    async fn watch(
        &self,
        call: Call<'_>,
        command: &Command<'_>,
        running: &mut Running,
        begun: Instant,
    ) -> Option<Cut> {
        let mut cancelled = call.cancel.cancelled();
        let deadline = tokio::time::sleep(call.deadline.saturating_sub(begun.elapsed()));
        tokio::pin!(deadline);
        let mut report = Report { call, log: command.log, log_failed: false };
        let cut = loop {
            tokio::select! {
                // First what ends it: a command that never stops writing is always ready.
                biased;
                () = &mut cancelled => break Some(Cut::Cancelled),
                () = &mut deadline => break Some(Cut::TimedOut),
                turn = running.turn() => match turn {
                    Turn::Output => report.give_fairly(running).await,
                    Turn::Exited => break None,
                },
            }
        };
        if cut.is_some() {
            running.ask_to_end();
            report.read_on(running, self.grace, |running| running.is_gone()).await;
            running.kill();
            report.read_on(running, KILL_WAIT, |running| running.is_gone()).await;
        }
        report.read_on(running, OUTPUT_WAIT, |running| running.is_silent()).await;
        running.close();
        report.give(running);
        cut
    }

    async fn process(
        &self,
        command: &Command<'_>,
        call: Call<'_>,
        output: Option<&OutputFile>,
    ) -> Result<std::process::Command, Fault> {
        let mut process = std::process::Command::new("/bin/sh");
        process.arg("-ec").arg(&command.run.script).current_dir(command.folder).process_group(0);
        match &command.base_env {
            Some(env) => {
                process.env_clear().envs(env.iter().map(|(name, value)| (name, value)));
            }
            None => {
                for name in &self.hidden {
                    process.env_remove(name);
                }
            }
        }
        process.envs(&command.env);
        for (name, value) in &command.run.env {
            let text: SecretValue = match value {
                Value::Secret(_) => resolve::text(value, call.secrets, &self.masker).await?,
                plain => SecretValue::new(plain.to_string()),
            };
            resolve::fits_environment(name, text.expose())?;
            process.env(name, text.expose());
        }
        if let Some(output) = output {
            process.env("CDPIPE_OUTPUT", output.path());
        }
        process.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(process)
    }
}

/// Where lines go.
struct Report<'a> {
    call: Call<'a>,
    log: Option<&'a RunLog>,
    log_failed: bool,
}

impl Report<'_> {
    /// Gives lines, and then lets timers and others have their turn: a command that never stops writing is always ready.
    async fn give_fairly(&mut self, running: &mut Running) {
        if self.give(running) {
            tokio::task::yield_now().await;
        }
    }

    /// Whether there were any lines.
    fn give(&mut self, running: &mut Running) -> bool {
        let lines = running.take_lines();
        if lines.is_empty() {
            return false;
        }
        for (stream, line) in &lines {
            self.call.sink.output(*stream, line);
        }
        if let Some(log) = self.log
            && !self.log_failed
            && let Err(fault) = log.append(self.call.step, &lines)
        {
            // The command matters more than the record of its output; it is said once.
            self.log_failed = true;
            self.call.sink.progress(&format!("output is not kept: {}", fault.message));
        }
        true
    }

    /// Reads on until `done`, for at most so long.
    async fn read_on(&mut self, running: &mut Running, at_most: Duration, done: impl Fn(&Running) -> bool) {
        let until = Instant::now() + at_most;
        // Whether others of the group are left can only be looked at, so it is looked at again and again.
        let mut pause = Duration::from_millis(1);
        while !done(running) && Instant::now() < until {
            tokio::select! {
                biased;
                _ = running.turn_of_output(), if !running.is_silent() => self.give_fairly(running).await,
                () = tokio::time::sleep(pause.min(until.saturating_duration_since(Instant::now()))) => {
                    pause = (pause * 2).min(Duration::from_millis(25));
                }
            }
        }
    }
}

fn cannot_start(command: &Command<'_>, error: &std::io::Error) -> Fault {
    match error.kind() {
        std::io::ErrorKind::NotFound if !command.folder.is_dir() => Fault::new(
            "folder-missing",
            format!("the working folder {} does not exist", command.folder.display()),
        )
        .help("correct `dir`; it is relative to the pipeline's file"),
        std::io::ErrorKind::ArgumentListTooLong => Fault::new(
            "command-failed",
            "the command can't be started: script and environment are too large together",
        )
        .help("pass large values by a file or by `stdin`"),
        std::io::ErrorKind::WouldBlock => Fault::new(
            "command-failed",
            "the command can't be started: this machine allows no more processes",
        )
        .transient(),
        _ => io_fault("start /bin/sh in", command.folder, error),
    }
}

/// The first line of a script, for messages.
fn title(script: &str) -> String {
    const LONGEST: usize = 60;
    let line = script.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    if line.chars().count() <= LONGEST {
        return line.to_owned();
    }
    line.chars().take(LONGEST).chain(['…']).collect()
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit status {code}"),
        (None, signal) => format!("was killed by {}", signal_name(signal.unwrap_or_default())),
    }
}
