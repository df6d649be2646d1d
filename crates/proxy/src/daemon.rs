//! Has a proxy running: finds the one of a state directory, or starts one that outlives whoever asked.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::control::client::{ClientError, ProxyClient};
use crate::serve::make_directory;

/// Held locked while somebody starts a proxy, so that two starters make one.
const START_LOCK_FILE: &str = "start.lock";
/// Where a started proxy writes.
pub const LOG_FILE: &str = "proxy.log";
/// A longer log is put aside at the next start.
const MAX_LOG_BYTES: u64 = 16 * 1024 * 1024;
/// How often a start looks whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How much of the log an error shows.
const LOG_TAIL_BYTES: u64 = 4 * 1024;

/// How to start a proxy.
#[derive(Clone, Debug)]
pub struct Start {
    /// The program; it is run as `PROGRAM proxy --state DIR`.
    pub program: PathBuf,
    /// The state directory.
    pub state_dir: PathBuf,
    /// How long a proxy may take until it answers, in milliseconds.
    pub timeout_ms: u64,
}

/// Why there is no proxy.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory can not be used.
    #[error("the state directory {} can not be used: {error}", path.display())]
    StateDir {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The program can not be run.
    #[error("{} can not be run: {error}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It ended before it served.
    #[error("the proxy ended before it served ({status}): {}", log.last().map_or("it said nothing", String::as_str))]
    Ended {
        /// How.
        status: ExitStatus,
        /// The last lines of its log.
        log: Vec<String>,
    },
    /// It runs and does not answer.
    #[error("the proxy of {} does not answer after {timeout_ms} ms", state_dir.display())]
    Deadline {
        /// The state directory.
        state_dir: PathBuf,
        /// How long it was waited for.
        timeout_ms: u64,
        /// The last lines of its log.
        log: Vec<String>,
    },
    /// One is there and can not be spoken to.
    #[error("{0}")]
    Client(ClientError),
}

/// Has a proxy running for this state directory and returns its client. One that answers is left alone; otherwise one is started
/// in its own session, with its output in [`LOG_FILE`].
///
/// # Errors
/// [`StartError`]; a proxy that could not be made ready is ended again.
pub async fn ensure_running(start: &Start) -> Result<ProxyClient, StartError> {
    let client = ProxyClient::new(&start.state_dir);
    if look(&client).await? == Look::Serves {
        return Ok(client);
    }
    let deadline = Instant::now() + Duration::from_millis(start.timeout_ms);
    let at = |path: PathBuf| move |error| StartError::StateDir { path, error };
    make_directory(&start.state_dir).map_err(at(start.state_dir.clone()))?;
    let lock_path = start.state_dir.join(START_LOCK_FILE);
    let lock = File::create(&lock_path).map_err(at(lock_path.clone()))?;
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(LOOK_EVERY).await,
            Err(TryLockError::WouldBlock) => return Err(start.deadline()),
            Err(TryLockError::Error(error)) => return Err(at(lock_path)(error)),
        }
    }
    // Somebody else may have started it while we waited; and one that is going holds the place until it is gone.
    loop {
        match look(&client).await? {
            Look::Serves => return Ok(client),
            Look::Nobody => break,
            Look::Stopping if Instant::now() < deadline => sleep(LOOK_EVERY).await,
            Look::Stopping => return Err(start.deadline()),
        }
    }
    let mut child = start.spawn()?;
    loop {
        if look(&client).await? == Look::Serves {
            tracing::info!(pid = child.id(), state = %start.state_dir.display(), "started the proxy");
            return Ok(client);
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(StartError::Ended { status, log: start.log_tail() });
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(start.deadline());
        }
        sleep(LOOK_EVERY).await;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Serves,
    Stopping,
    Nobody,
}

async fn look(client: &ProxyClient) -> Result<Look, StartError> {
    match client.clone().with_timeout_ms(2_000).ping().await {
        Ok(pong) if pong.stopping => Ok(Look::Stopping),
        Ok(_) => Ok(Look::Serves),
        Err(ClientError::NotRunning { .. } | ClientError::Broken(_) | ClientError::Deadline(_)) => {
            Ok(Look::Nobody)
        }
        Err(error) => Err(StartError::Client(error)),
    }
}

impl Start {
    fn spawn(&self) -> Result<Child, StartError> {
        let log_path = self.state_dir.join(LOG_FILE);
        let at = |error| StartError::StateDir { path: log_path.clone(), error };
        if fs::metadata(&log_path).is_ok_and(|meta| meta.len() > MAX_LOG_BYTES) {
            fs::rename(&log_path, self.state_dir.join(format!("{LOG_FILE}.old"))).map_err(at)?;
        }
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&log_path).map_err(at)?;
        let errors = log.try_clone().map_err(at)?;
        let state_dir = fs::canonicalize(&self.state_dir).map_err(at)?;
        // A name with a slash is relative to where we are, and the child is somewhere else.
        let program = if self.program.components().count() > 1 {
            fs::canonicalize(&self.program)
                .map_err(|error| StartError::Spawn { program: self.program.clone(), error })?
        } else {
            self.program.clone()
        };
        Command::new(program)
            .arg("proxy")
            .arg("--state")
            .arg(&state_dir)
            // It must not hold anybody's working directory, terminal or pipe.
            .current_dir(&state_dir)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|error| StartError::Spawn { program: self.program.clone(), error })
    }

    fn deadline(&self) -> StartError {
        StartError::Deadline {
            state_dir: self.state_dir.clone(),
            timeout_ms: self.timeout_ms,
            log: self.log_tail(),
        }
    }

    fn log_tail(&self) -> Vec<String> {
        tail(&self.state_dir.join(LOG_FILE)).unwrap_or_default()
    }
}

/// The last few lines of a file.
fn tail(path: &Path) -> io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
    Ok(lines[lines.len().saturating_sub(20)..].to_vec())
}
