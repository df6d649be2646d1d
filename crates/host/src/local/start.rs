//! Starting supervisors: a process each, told its secrets through a pipe, heard until it says that it has begun.

use super::units::{self, Units};
use crate::durable::io_fault;
use crate::state::InstanceState;
use crate::supervise::{STARTED, SUPERVISE, TAKEN, log::last_lines, machine_environment};
use cdpipe_model::Fault;
use cdpipe_model::ports::Call;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

/// How long a new supervisor may take to say that it has begun. It reads a file and binds a port; the rest is a busy machine.
const START_WAIT: Duration = Duration::from_secs(20);

/// Supervisors that are started at a time.
const AT_ONCE: usize = 8;

/// Starts a supervisor for each of these instances. What was started stays, also if another one fails or the call is cancelled.
///
/// # Errors
/// The first of their faults; `cancelled`.
pub(super) async fn start(
    binary: &Path,
    units: Units,
    instances: &[InstanceState],
    handover: &[u8],
    call: Call<'_>,
) -> Result<(), Fault> {
    let handover: Arc<[u8]> = handover.into();
    let mut waiting = instances.iter();
    let mut starting = JoinSet::new();
    let mut started = 0;
    let mut result = Ok(());
    loop {
        while starting.len() < AT_ONCE && result.is_ok() {
            let Some(instance) = waiting.next() else { break };
            starting.spawn(start_one(binary.to_owned(), units, instance.clone(), Arc::clone(&handover)));
        }
        let ended = tokio::select! {
            ended = starting.join_next() => ended,
            () = call.cancel.cancelled() => {
                return Err(Fault::new("cancelled", "cancelled before all instances were started"));
            }
        };
        match ended {
            None => return result,
            Some(Ok(Ok(()))) => {
                started += 1;
                if instances.len() > 1 {
                    call.sink.progress(&format!("{started} of {} started", instances.len()));
                }
            }
            Some(Ok(Err(fault))) => result = result.and(Err(fault)),
            Some(Err(error)) => {
                result = result
                    .and(Err(Fault::new("internal", format!("starting an instance ended early: {error}"))));
            }
        }
    }
}

/// Starts one supervisor and waits until it says that it has begun.
async fn start_one(
    binary: PathBuf,
    units: Units,
    instance: InstanceState,
    handover: Arc<[u8]>,
) -> Result<(), Fault> {
    let said = match units {
        Units::Process => start_process(&binary, &instance, &handover).await?,
        Units::Systemd => units::start(&binary, &instance, &handover, START_WAIT).await?,
    };
    // `taken`: a cdpipe that was killed has started it a moment ago. That is what was asked for.
    if said == STARTED || said == TAKEN {
        return Ok(());
    }
    let reason = if said.is_empty() { "it ended without a word".to_owned() } else { said };
    Err(Fault::new("supervisor-failed", format!("the supervisor of an instance could not begin: {reason}"))
        .details(last_lines(&instance.supervisor_log(), 20))
        .help(format!("{} must be a cdpipe that knows `{SUPERVISE}`", binary.display())))
}

/// Starts it as a process of its own, and answers what it says.
async fn start_process(binary: &Path, instance: &InstanceState, handover: &[u8]) -> Result<String, Fault> {
    let complaints = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(instance.supervisor_log())
        .map_err(|error| io_fault("open", &instance.supervisor_log(), &error))?;
    let folder = std::path::absolute(instance.folder())
        .map_err(|error| io_fault("find", instance.folder(), &error))?;
    let mut child = tokio::process::Command::new(binary)
        .arg(SUPERVISE)
        .arg("--dir")
        .arg(&folder)
        .env_clear()
        .envs(machine_environment())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(complaints)
        .spawn()
        .map_err(|error| io_fault("start the supervisor", binary, &error))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let talk = async {
        let mut said = Vec::new();
        if let Some(mut stdin) = stdin {
            // A supervisor that can't begin may close its end first; what it says on stdout is the better message.
            let _ = stdin.write_all(handover).await;
        }
        if let Some(stdout) = stdout {
            stdout.take(4096).read_to_end(&mut said).await?;
        }
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&said).trim().to_owned())
    };
    match tokio::time::timeout(START_WAIT, talk).await {
        Ok(Ok(said)) => Ok(said),
        Ok(Err(error)) => Err(io_fault("hear from the supervisor", binary, &error)),
        Err(_) => {
            let _ = child.start_kill();
            let message = format!("the supervisor of {} said nothing for 20s", instance.folder().display());
            Err(Fault::new("supervisor-failed", message).transient())
        }
    }
}
