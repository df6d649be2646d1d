//! One command from beginning to end: what it gets, and what its end means.

use super::execute::{Limits, Output, execute};
use super::outputs::OutputFile;
use super::running::Running;
use crate::commands::{EFFECT_VARIABLE, Ended, How, Start};
use crate::durable::io_fault;
use crate::mask::Masker;
use crate::process::signal_name;
use crate::resolve;
use cdpipe_model::action::RunAction;
use cdpipe_model::event::Stream;
use cdpipe_model::ports::{Call, Sink};
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

/// Runs shell text as a child of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Shell {
    masker: Masker,
}

/// What to run, and where.
pub(crate) struct Command<'a> {
    pub(crate) run: &'a RunAction,
    /// Working directory.
    pub(crate) folder: &'a Path,
    /// Environment instead of cdpipe's own.
    pub(crate) base_env: &'a [(OsString, OsString)],
    /// Environment on top of that, below the action's.
    pub(crate) env: BTreeMap<String, String>,
    /// For `$CDPIPE_OUTPUT`.
    pub(crate) scratch: &'a Path,
}

impl Shell {
    pub(crate) fn new(masker: Masker) -> Self {
        Self { masker }
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
        let mut start = prepare(call, command.run, command.folder, command.env, &self.masker).await?;
        let env = std::mem::take(&mut start.env);
        let path = output.as_ref().map(OutputFile::path);
        let ended = match spawn(&mut start, env, Some(command.base_env), path, &self.masker) {
            Ok(running) => {
                let limits = Limits { cancel: call.cancel, deadline: call.deadline, grace: GRACE, begun };
                execute(running, limits, &mut Direct(call.sink)).await
            }
            Err(fault) => Ended { how: How::NotStarted(fault), took_ms: 0, last: Vec::new() },
        };
        let output = output.as_ref().map(|output| (output.path(), command.run.outputs.as_slice()));
        conclude(ended, &start.title, output, &self.masker, call.sink)
    }
}

/// Lines straight to the sink.
struct Direct<'a>(&'a dyn Sink);

impl Output for Direct<'_> {
    fn lines(&mut self, lines: Vec<(Stream, String)>) {
        for (stream, line) in lines {
            self.0.output(stream, &line);
        }
    }

    async fn room(&mut self) {}
}

/// Everything that must be known before it can be started; secrets are resolved.
///
/// # Errors
/// `secret-missing`, `value-unfit`, and the like.
pub(super) async fn prepare(
    call: Call<'_>,
    run: &RunAction,
    folder: &Path,
    mut env: BTreeMap<String, String>,
    masker: &Masker,
) -> Result<Start, Fault> {
    let stdin = match &run.stdin {
        Some(value) => Some(resolve::text(value, call.secrets, masker).await?.expose().to_owned()),
        None => None,
    };
    for (name, value) in &run.env {
        let text: SecretValue = match value {
            Value::Secret(_) => resolve::text(value, call.secrets, masker).await?,
            plain => SecretValue::new(plain.to_string()),
        };
        resolve::fits_environment(name, text.expose())?;
        env.insert(name.clone(), text.expose().to_owned());
    }
    Ok(Start {
        effect: call.effect.to_string(),
        title: masker.mask(&title(&run.script)).into_owned(),
        script: run.script.clone(),
        folder: std::path::absolute(folder).map_err(|error| io_fault("find", folder, &error))?,
        env,
        stdin,
        outputs: run.outputs.clone(),
        deadline_ms: u64::try_from(call.deadline.as_millis()).unwrap_or(u64::MAX),
        grace_ms: 0,
        mask: Vec::new(),
    })
}

/// Starts it as a child of this process. `base_env` is instead of this process's own environment.
///
/// # Errors
/// Why it can't be started.
pub(crate) fn spawn(
    start: &mut Start,
    env: BTreeMap<String, String>,
    base_env: Option<&[(OsString, OsString)]>,
    output: Option<&Path>,
    masker: &Masker,
) -> Result<Running, Fault> {
    let mut process = std::process::Command::new("/bin/sh");
    process.arg("-ec").arg(&start.script).current_dir(&start.folder).process_group(0);
    if let Some(base_env) = base_env {
        process.env_clear().envs(base_env.iter().map(|(name, value)| (name, value)));
    }
    process.envs(env).env(EFFECT_VARIABLE, &start.effect);
    if let Some(output) = output {
        process.env("CDPIPE_OUTPUT", output);
    }
    let stdin = start.stdin.take().map(SecretValue::new);
    process.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    process.stdout(Stdio::piped()).stderr(Stdio::piped());
    // The environment holds secrets: `process` goes as soon as the command has it.
    Running::spawn(&mut process, masker, stdin).map_err(|error| cannot_start(&start.folder, &error))
}

/// What the end of a command means.
///
/// # Errors
/// `command-failed` with the exit status and the last lines; `cancelled`; `timed-out`.
pub(super) fn conclude(
    ended: Ended,
    title: &str,
    output: Option<(&Path, &[String])>,
    masker: &Masker,
    sink: &dyn Sink,
) -> Result<BTreeMap<String, String>, Fault> {
    #[allow(clippy::cast_precision_loss, reason = "a duration for people")]
    let took = format_duration_ms(ended.took_ms as f64);
    let failed = |text: String| Fault::new("command-failed", text);
    Err(match ended.how {
        How::Exited(0) => {
            return match output {
                Some((path, declared)) => super::outputs::read(path, declared, masker, sink),
                None => Ok(BTreeMap::new()),
            };
        }
        How::Exited(status) => {
            let how = describe(ExitStatus::from_raw(status));
            failed(format!("`{title}` {how} after {took}")).details(ended.last)
        }
        How::Cancelled => {
            Fault::new("cancelled", format!("`{title}` was cancelled after {took}")).details(ended.last)
        }
        How::TimedOut => {
            Fault::new("timed-out", format!("`{title}` was ended after {took}: it took too long"))
                .details(ended.last)
                .help("raise `timeout` if it only needs longer")
        }
        How::NotStarted(fault) => fault,
        How::Lost(reason) => failed(format!("the command was lost: {reason}")).details(ended.last),
    })
}

fn cannot_start(folder: &Path, error: &std::io::Error) -> Fault {
    match error.kind() {
        std::io::ErrorKind::NotFound if !folder.is_dir() => {
            Fault::new("folder-missing", format!("the working folder {} does not exist", folder.display()))
                .help("correct `dir`; it is relative to the pipeline's file")
        }
        std::io::ErrorKind::ArgumentListTooLong => too_large(),
        std::io::ErrorKind::WouldBlock => Fault::new(
            "command-failed",
            "the command can't be started: this machine allows no more processes",
        )
        .transient(),
        _ => io_fault("start /bin/sh in", folder, error),
    }
}

/// More than the kernel takes.
pub(crate) fn too_large() -> Fault {
    Fault::new(
        "command-failed",
        "the command can't be started: script and environment are too large together",
    )
    .help("pass large values by a file or by `stdin`")
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

/// Names of variables of cdpipe's own environment that no command gets: sources of secrets, inputs of the run (`CDPIPE_SET_…`), and
/// what belongs to a command that cdpipe itself runs in.
pub(super) fn hidden_variables(sources: &[String]) -> Vec<OsString> {
    std::env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| {
            name.to_str().is_some_and(|name| {
                name.starts_with("CDPIPE_SET_")
                    || name == "CDPIPE_OUTPUT"
                    || name == EFFECT_VARIABLE
                    || sources.iter().any(|source| source == name)
            })
        })
        .collect()
}
