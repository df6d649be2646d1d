//! The supervisor: one small process for each instance, which outlives the cdpipe that started it.
//!
//! It gives the instance a port and its environment, writes its log, asks its health, restarts it with backoff, and ends it whole.
//! It is in a session of its own, so closing a terminal does not reach it. It is the subreaper of all that the instance starts, so
//! nothing of it gets away by forking; if the supervisor itself is killed, the kernel kills the instance (parent death signal), and
//! what that had started is found by its environment and ended before the instance is started again.
//!
//! Secrets come through standard input and live in memory only. Nobody talks to it but through files and SIGTERM: a status file out,
//! a stop request in. Deliberately not here: how many instances there should be, and everything that needs the engine.
//!
//! All processes are started from the one thread there is: a parent death signal belongs to the thread, not to the process.

mod child;
mod enter;
mod health;
pub(crate) mod log;
mod port;
mod reaper;

use crate::commands::SUPERVISE_COMMANDS;
use crate::durable::FileLock;
use crate::process::ProcessRef;
use crate::state::{FORMAT, InstanceConfig, InstanceState, Phase, Status};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// The hidden subcommand that supervises an instance.
pub const SUPERVISE: &str = "supervise-instance";

/// The hidden subcommand that becomes the instance's process.
pub const ENTER: &str = "enter-instance";

/// Says to the supervisor that a service manager starts it: nobody is at its standard input.
pub(crate) const AS_UNIT: &str = "--unit";

/// What a starter hands over on standard input, as JSON.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Handover {
    /// Environment whose values hold secrets, resolved.
    pub(crate) env: BTreeMap<String, String>,
    /// Values to mask in the log.
    pub(crate) mask: Vec<String>,
}

/// Longest handover that is read: secrets are small.
const HANDOVER_LIMIT_BYTES: u64 = 4 << 20;

/// Where a starter waits for a supervisor that is a unit, in the folder of the instance.
const HANDOVER_SOCKET: &str = "handover.sock";

/// The path of that socket through an open folder: a socket's path may have 107 bytes only, and the folder's own is often longer.
/// It is good as long as the file that comes with it is open.
pub(crate) fn handover_socket(folder: &Path) -> io::Result<(PathBuf, std::fs::File)> {
    use std::os::fd::AsRawFd as _;
    let open = std::fs::File::open(folder)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd())).join(HANDOVER_SOCKET), open))
}

/// How long such a starter may take to say all.
const HANDOVER_WAIT: Duration = Duration::from_secs(10);

/// How long a new supervisor waits for its lock: someone who looks holds it for a moment.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// What a supervisor says on standard output once it has begun.
pub(crate) const STARTED: &str = "started";

/// What it says if the instance has a supervisor already.
pub(crate) const TAKEN: &str = "taken";

/// Does the hidden subcommands, if the command line is one of theirs. To be called first in `main`, before anything else starts a
/// thread: it costs nothing if it is not meant.
pub fn intercept(mut args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let command = args.nth(1)?;
    if command == SUPERVISE {
        let first = args.next()?;
        let as_unit = first == AS_UNIT;
        let folder = if as_unit { args.next()? } else { first };
        let folder = if folder == "--dir" { args.next()? } else { folder };
        Some(if as_unit { unit_main(Path::new(&folder)) } else { main(Path::new(&folder)) })
    } else if command == SUPERVISE_COMMANDS {
        Some(crate::commands::main(Path::new(&args.next()?)))
    } else if command == ENTER {
        Some(enter::main(args))
    } else {
        None
    }
}

/// The whole life of a supervisor: `supervise-instance --dir DIR`. Reads the handover from standard input, says `started`, `taken` or
/// what is wrong on standard output, and then runs until the instance was asked to stop.
pub fn main(folder: &Path) -> ExitCode {
    match read_handover(&mut io::stdin()).and_then(|handover| begin(folder, handover)) {
        Ok(supervisor) => {
            say(STARTED);
            detach();
            live(supervisor)
        }
        Err(reason) => {
            say(&reason);
            ExitCode::FAILURE
        }
    }
}

/// The same as the main process of a unit. Whoever starts the unit waits at a socket in the folder, with the secrets; nobody does when the
/// service manager starts it by itself (after a boot, or after the supervisor was killed), and then there must be none to have.
fn unit_main(folder: &Path) -> ExitCode {
    let starter = handover_socket(folder).and_then(|(socket, _open)| UnixStream::connect(socket)).ok();
    let handover = match &starter {
        Some(stream) => {
            let _ = stream.set_read_timeout(Some(HANDOVER_WAIT));
            read_handover(&mut &*stream)
        }
        None => match InstanceState::at(folder).config() {
            Some(config) if config.holds_secrets() => {
                Err("its environment holds secrets, which are kept nowhere: deploy it again".to_owned())
            }
            Some(_) => Ok(Handover::default()),
            None => Err("instance.json is not there".to_owned()),
        },
    };
    let tell = |text: &str| {
        if let Some(mut stream) = starter.as_ref() {
            // The starter may be gone by now; the supervisor goes on without it.
            let _ = writeln!(stream, "{text}");
        }
    };
    match handover.and_then(|handover| begin(folder, handover)) {
        Ok(supervisor) => {
            tell(STARTED);
            drop(starter);
            live(supervisor)
        }
        Err(reason) => {
            tell(&reason);
            let _ = writeln!(io::stderr(), "{reason}");
            // `taken`: another one has it, and the service manager need not try again.
            if reason == TAKEN { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
    }
}

fn live(mut supervisor: child::Supervisor) -> ExitCode {
    match runtime() {
        Ok(runtime) => {
            runtime.block_on(supervisor.run());
            ExitCode::SUCCESS
        }
        Err(error) => {
            supervisor.note(&format!("the supervisor could not begin: {error}"));
            ExitCode::FAILURE
        }
    }
}

pub(crate) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()
}

pub(crate) fn say(text: &str) {
    // The starter may be gone by now; the supervisor goes on without it.
    let _ = writeln!(io::stdout(), "{text}").and_then(|()| io::stdout().flush());
}

/// Lets go of the starter's pipes.
pub(crate) fn detach() {
    if let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

/// Everything up to the first start, which is what a starter waits for.
fn begin(folder: &Path, handover: Handover) -> Result<child::Supervisor, String> {
    // Fails only for a group leader, which has left its starter's group already.
    let _ = rustix::process::setsid();
    let state = InstanceState::at(folder);
    let lock = take_lock(&state.supervisor_lock())?;
    let me = ProcessRef::current().ok_or("/proc is not there: the supervisor needs it")?;
    let config = state.config().ok_or("instance.json is not there")?;
    if config.format > FORMAT {
        return Err("instance.json was written by a newer cdpipe".to_owned());
    }
    std::env::set_current_dir(folder)
        .map_err(|error| format!("cannot enter {}: {error}", folder.display()))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| format!("cannot become the reaper of the instance's processes: {error}"))?;
    state.clear_stop_request();
    let former = state.status();
    let port = port::Port::choose(config.listen(), former.as_ref().map(|status| status.port))
        .map_err(|error| format!("no free port on {}: {error}", config.listen()))?;
    let status = Status {
        format: FORMAT,
        supervisor: me,
        phase: Phase::Pausing,
        port: port.number(),
        ready: false,
        restarts: 0,
        crashes: 0,
        process: None,
        started_ms: crate::clock::now_ms(),
        last_exit: None,
        failure: None,
    };
    state.write_status(&status).map_err(|fault| fault.message)?;
    Ok(child::Supervisor::new(state, config, handover, port, status, lock))
}

fn read_handover(from: &mut dyn Read) -> Result<Handover, String> {
    let mut text = Vec::new();
    from.take(HANDOVER_LIMIT_BYTES)
        .read_to_end(&mut text)
        .map_err(|error| format!("cannot read from the starter: {error}"))?;
    // A starter that was killed midway leaves half a text: then nothing is started.
    let handover =
        serde_json::from_slice(&text).map_err(|_| "the starter ended before it had said all".to_owned());
    text.fill(0);
    handover
}

fn take_lock(path: &Path) -> Result<FileLock, String> {
    let until = std::time::Instant::now() + LOCK_WAIT;
    loop {
        match FileLock::try_exclusive(path) {
            Ok(Some(lock)) => return Ok(lock),
            Ok(None) if std::time::Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            Ok(None) => return Err(TAKEN.to_owned()),
            Err(error) => return Err(format!("cannot lock {}: {error}", path.display())),
        }
    }
}

/// Environment that instances and supervisors have from the machine. Nothing else is inherited: a release must not depend on the shell
/// of whoever deployed it, and secrets of cdpipe's own environment must not get into it.
pub(crate) fn machine_environment() -> Vec<(OsString, OsString)> {
    const KEPT: [&str; 9] =
        ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH"];
    std::env::vars_os()
        .filter(|(name, _)| {
            name.to_str().is_some_and(|name| {
                KEPT.contains(&name) || name.starts_with("LC_") || name.starts_with("XDG_")
            })
        })
        .collect()
}

/// Environment of the processes of an instance, without secrets.
pub(crate) fn instance_environment(
    config: &InstanceConfig,
    folder: &InstanceState,
    port: u16,
) -> BTreeMap<String, String> {
    let (marker, place) = folder.marker();
    let mut env: BTreeMap<String, String> = config
        .launch
        .env
        .iter()
        .chain(&config.extra_env)
        .filter(|(_, value)| !matches!(value, cdpipe_model::Value::Secret(_)))
        .map(|(name, value)| (name.clone(), value.to_string()))
        .collect();
    env.extend([
        ("PORT".to_owned(), port.to_string()),
        ("CDPIPE_RELEASE".to_owned(), config.release.to_string()),
        ("CDPIPE_SERVICE".to_owned(), config.service.to_string()),
        ("CDPIPE_ENVIRONMENT".to_owned(), config.environment.to_string()),
        ("CDPIPE_INSTANCE".to_owned(), config.id.to_string()),
        (marker.to_owned(), place),
    ]);
    if config.listen.is_some() {
        // The word of the pipeline counts more: its author knows how the program is told.
        env.entry("HOST".to_owned()).or_insert_with(|| config.listen().to_string());
    }
    env
}

/// The binary that is running, also if a newer one has taken its name since.
pub(crate) fn this_binary() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}
