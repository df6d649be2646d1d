//! Runs a proxy from its start to its end.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::conns::TICK_MS;
use crate::control::server::Control;
use crate::control::socket;
use crate::keeper::Keeper;
use crate::options::ServeOptions;
use crate::plane::Plane;
use crate::state;

/// Held locked by the one proxy of a state directory for as long as it lives.
const LOCK_FILE: &str = "proxy.lock";
/// How long a proxy that no longer answers may still hold its place.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Holds the process id while the proxy serves.
pub(crate) const PID_FILE: &str = "proxy.pid";

/// Why a proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The state directory can not be used.
    #[error("the state directory {} can not be used: {error}", path.display())]
    StateDir {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// There is one already.
    #[error("another proxy serves from {}: stop it first, or use another state directory", path.display())]
    AlreadyRunning {
        /// The state directory.
        path: PathBuf,
    },
    /// The state file is there and can not be served.
    #[error(
        "the routing table in {} can not be read: {what}. Nothing is served. Restore the file, or move it away to start with no routes",
        path.display()
    )]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// An address of the table, or the admin address, can not be listened on.
    #[error("{address} can not be listened on: {error}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// Threads, signals or the control socket can not be made.
    #[error("the proxy can not start: {0}")]
    Start(#[from] io::Error),
}

/// Runs a proxy until SIGTERM, SIGINT or a `shutdown` call, then drains it. Blocks; to be called outside of async code.
///
/// # Errors
/// [`ServeError`] if it can not start. Once it serves it ends well.
pub fn serve(options: &ServeOptions) -> Result<(), ServeError> {
    if options.own_session {
        // Fails only for a process that leads a group already, which no terminal can take down with its session either.
        let _ = rustix::process::setsid();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(options))
}

async fn run(options: &ServeOptions) -> Result<(), ServeError> {
    let directory = options.state_dir.as_path();
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| ServeError::StateDir { path, error }
    };
    make_directory(directory).map_err(at(directory))?;
    let lock = lock(directory).await?;
    raise_file_limit();
    let table = state::load(directory)
        .map_err(|what| ServeError::State { path: directory.join(state::FILE), what })?
        .unwrap_or_default();
    // Before anything is served, so that no signal falls between.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let plane = Arc::new(Plane::start(options)?);
    let control = Arc::new(Control {
        plane: plane.clone(),
        keeper: Keeper::new(directory.to_owned(), plane.clone()),
        shutdown: Notify::new(),
        stopping: AtomicBool::new(false),
    });
    let sweeper = tokio::spawn({
        let plane = plane.clone();
        async move {
            let mut tick = tokio::time::interval(Duration::from_millis(TICK_MS));
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                plane.sweep();
            }
        }
    });
    let revision = table.revision;
    control.keeper.restore(table).await.map_err(|(address, error)| ServeError::Bind { address, error })?;
    let admin = match options.admin_listen {
        Some(address) => Some(
            tokio::net::TcpListener::bind(address)
                .await
                .map_err(|error| ServeError::Bind { address, error })?,
        ),
        None => None,
    };
    let admin = admin.map(|listener| tokio::spawn(control.clone().listen_admin(listener)));
    // The socket comes last: whoever reaches it reaches a proxy that serves.
    let listener = socket::bind(directory).map_err(at(&directory.join(socket::FILE)))?;
    write_pid(directory).map_err(at(&directory.join(PID_FILE)))?;
    let calls = tokio::spawn(control.clone().listen(listener));
    tracing::info!(state = %directory.display(), revision, workers = options.workers, "the proxy serves");

    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        () = control.shutdown.notified() => tracing::info!("asked to stop"),
    }
    control.stopping.store(true, Ordering::SeqCst);
    control.keeper.stop().await;
    let left = plane.drain(Duration::from_millis(options.limits.shutdown_timeout_ms)).await;
    if left > 0 {
        tracing::warn!(
            connections = left,
            after_ms = options.limits.shutdown_timeout_ms,
            "connections are cut"
        );
    }
    calls.abort();
    sweeper.abort();
    if let Some(admin) = admin {
        admin.abort();
    }
    plane.stop_workers();
    // What comes after this finds no socket and knows that there is no proxy.
    let _ = fs::remove_file(directory.join(socket::FILE));
    let _ = fs::remove_file(directory.join(PID_FILE));
    tracing::info!("the proxy has stopped");
    drop(lock);
    Ok(())
}

/// Takes the place of the one proxy of this directory. One that answers has it; one that does not is just going.
async fn lock(directory: &Path) -> Result<File, ServeError> {
    let path = directory.join(LOCK_FILE);
    let fail = |error| ServeError::StateDir { path: path.clone(), error };
    let file = File::create(&path).map_err(fail)?;
    let end = tokio::time::Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(fail(error)),
            Err(TryLockError::WouldBlock) => {
                if socket::connect(directory).await.is_ok() || tokio::time::Instant::now() >= end {
                    return Err(ServeError::AlreadyRunning { path: directory.to_owned() });
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

/// Makes a directory only its owner can enter; one that is there is left as it is.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn write_pid(directory: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(directory.join(PID_FILE))?;
    writeln!(file, "{}", std::process::id())
}

/// Each connection through us takes two descriptors; the soft limit is often 1024.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "the limit of open files could not be raised");
        }
    }
}
