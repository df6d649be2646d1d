//! The life of one instance: start, watch, restart with backoff, stop.

use super::health::{Health, Verdict};
use super::log::Log;
use super::port::Port;
use super::reaper::Reaper;
use super::{ENTER, Handover, instance_environment, this_binary};
use crate::clock::now_ms;
use crate::durable::FileLock;
use crate::mask::Masker;
use crate::process::{self, ProcessRef};
use crate::state::{Exit, InstanceConfig, InstanceState, Phase, Status};
use rustix::process::{Signal, WaitStatus};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal as Listener, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How long the rest of the output may take to arrive after the process has ended.
const OUTPUT_WAIT: Duration = Duration::from_millis(500);

/// How long an instance that fails its liveness check may take to end.
const UNHEALTHY_DRAIN: Duration = Duration::from_secs(5);

/// How often a supervisor looks whether its folder is still there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Rounds of killing what is left below the supervisor; a process can fork while it is being killed.
const SWEEP_ROUNDS: u32 = 100;

/// What a supervisor knows.
pub(super) struct Supervisor {
    state: InstanceState,
    config: InstanceConfig,
    secrets: BTreeMap<String, String>,
    port: Port,
    status: Status,
    log: Log,
    // Held as long as the supervisor lives: it is what says that there is one.
    lock: FileLock,
}

/// A running process of the instance.
struct Running {
    pid: u32,
    since: Instant,
    exit: oneshot::Receiver<WaitStatus>,
    pumps: Vec<JoinHandle<()>>,
}

/// Why a process is watched no longer.
enum Ended {
    /// It ended by itself, or was killed.
    Exited(Option<WaitStatus>),
    /// It does not answer its liveness check.
    Unhealthy(String),
    /// The supervisor was asked to stop it.
    Asked,
}

/// How a process is started: as the supervisor's own environment, so that health commands are the same.
#[derive(Clone)]
pub(super) struct Starter {
    pub(super) env: BTreeMap<String, String>,
    pub(super) folder: std::path::PathBuf,
}

impl Starter {
    /// A command that becomes this program, in a group of its own, ended with the supervisor.
    pub(super) fn command(
        &self,
        program: &Path,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Command {
        let mut command = Command::new(this_binary());
        command
            .arg0("cdpipe")
            .arg(ENTER)
            .arg(std::process::id().to_string())
            .arg(program)
            .args(args)
            .envs(&self.env)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .process_group(0);
        command
    }
}

impl Supervisor {
    pub(super) fn new(
        state: InstanceState,
        config: InstanceConfig,
        handover: Handover,
        port: Port,
        status: Status,
        lock: FileLock,
    ) -> Self {
        let masker = Masker::default();
        for value in &handover.mask {
            masker.learn_text(value);
        }
        let log = Log::new(state.log(), config.policy.log_limit_bytes, masker);
        Self { state, config, secrets: handover.env, port, status, log, lock }
    }

    /// Writes a line of its own into the instance's log.
    pub(super) fn note(&self, text: &str) {
        self.log.note(text);
    }

    /// Runs the instance until it was asked to stop.
    pub(super) async fn run(&mut self) {
        let (reaper, mut asked) = match listen() {
            Ok(both) => both,
            Err(error) => return self.note(&format!("the supervisor can't listen to signals: {error}")),
        };
        loop {
            let ended = self.run_once(&reaper, &mut asked).await;
            self.status.process = None;
            if matches!(ended, Ended::Asked) {
                self.status.phase = Phase::Stopped;
                self.tell();
                return;
            }
            self.status.restarts = self.status.restarts.saturating_add(1);
            self.status.phase = Phase::Pausing;
            self.tell();
            let pause = self.config.policy.backoff(self.status.crashes);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = asked.recv() => {
                    self.status.phase = Phase::Stopped;
                    self.tell();
                    return;
                }
                () = abandoned(&self.lock, &self.state) => return,
            }
        }
    }

    /// One life of the process.
    async fn run_once(&mut self, reaper: &Reaper, asked: &mut Listener) -> Ended {
        if !self.port.is_free() {
            self.change_port();
        }
        let starter = self.starter();
        let mut running = match self.start(&starter, reaper) {
            Ok(running) => running,
            Err(error) => {
                self.failed(format!("cannot start {}: {error}", self.config.launch.program.display()));
                self.status.crashes = self.status.crashes.saturating_add(1);
                return Ended::Exited(None);
            }
        };
        self.status.phase = Phase::Running;
        self.status.process = ProcessRef::of(running.pid);
        self.tell();
        let mut health =
            Health::begin(&self.config, starter, self.config.reached(self.port.number()), reaper.clone());
        let ended = loop {
            tokio::select! {
                status = &mut running.exit => break Ended::Exited(status.ok()),
                _ = asked.recv() => break Ended::Asked,
                () = abandoned(&self.lock, &self.state) => break Ended::Asked,
                verdict = health.next() => match verdict {
                    Verdict::Ready => {
                        self.status.ready = true;
                        self.status.failure = None;
                        self.tell();
                    }
                    Verdict::NotReady(reason) => {
                        self.status.ready = false;
                        self.failed(reason);
                    }
                    Verdict::Missed(reason) => self.failed(reason),
                    Verdict::Dead(reason) => break Ended::Unhealthy(reason),
                },
            }
        };
        drop(health);
        // Before anything that takes time: it must not get traffic any more.
        self.status.ready = false;
        self.tell();
        let lived = running.since.elapsed();
        let stable = lived >= Duration::from_millis(self.config.policy.stable_after_ms);
        match &ended {
            Ended::Exited(status) => {
                self.exited(*status);
                self.status.crashes = if stable { 1 } else { self.status.crashes.saturating_add(1) };
            }
            Ended::Unhealthy(reason) => {
                self.note(&format!("restarted: {reason}"));
                self.failed(reason.clone());
                self.status.crashes = if stable { 1 } else { self.status.crashes.saturating_add(1) };
                let exit = end(&mut running, UNHEALTHY_DRAIN).await;
                self.exited(exit);
            }
            Ended::Asked => {
                self.status.phase = Phase::Stopping;
                self.tell();
                let drain_ms =
                    self.state.stop_request().map_or(self.config.drain_ms, |request| request.drain_ms);
                let exit = end(&mut running, Duration::from_millis(drain_ms)).await;
                self.exited(exit);
            }
        }
        self.sweep().await;
        for pump in running.pumps {
            // Nobody is left to write; what is in the pipe still has to be read.
            let _ = tokio::time::timeout(OUTPUT_WAIT, pump).await;
        }
        ended
    }

    fn starter(&self) -> Starter {
        let mut env = instance_environment(&self.config, &self.state, self.port.number());
        env.extend(self.secrets.iter().map(|(name, value)| (name.clone(), value.clone())));
        Starter { env, folder: self.config.launch.folder.clone() }
    }

    fn start(&self, starter: &Starter, reaper: &Reaper) -> io::Result<Running> {
        let mut child = starter
            .command(&self.config.launch.program, &self.config.launch.args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let exit = reaper.expect(child.id());
        let pipes = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
        let pumps =
            pipes.into_iter().flatten().map(|pipe| self.log.pump(pipe)).collect::<io::Result<Vec<_>>>()?;
        Ok(Running { pid: child.id(), since: Instant::now(), exit, pumps })
    }

    fn change_port(&mut self) {
        let taken = self.port.number();
        match Port::choose(self.config.listen(), None) {
            Ok(port) => {
                self.note(&format!(
                    "port {taken} was taken by someone else; this instance has port {} now",
                    port.number()
                ));
                self.port = port;
                self.status.port = self.port.number();
            }
            Err(error) => self.note(&format!("port {taken} is taken, and there is no other: {error}")),
        }
    }

    fn exited(&mut self, status: Option<WaitStatus>) {
        let exit = Exit {
            code: status.and_then(WaitStatus::exit_status),
            signal: status.and_then(WaitStatus::terminating_signal),
            at_ms: now_ms(),
        };
        self.note(&exit.describe());
        self.status.last_exit = Some(exit);
    }

    fn failed(&mut self, reason: String) {
        if self.status.failure.as_ref() != Some(&reason) {
            self.status.failure = Some(reason);
            self.tell();
        }
    }

    fn tell(&self) {
        if let Err(fault) = self.state.write_status(&self.status) {
            // The instance is worth more than what is known of it.
            self.note(&fault.message);
        }
    }

    /// Ends everything that the instance has left below the supervisor, also what left its group and session.
    async fn sweep(&self) {
        let me = std::process::id();
        for _ in 0..SWEEP_ROUNDS {
            let left = process::descendants(me);
            if left.is_empty() {
                return;
            }
            for pid in left {
                process::signal_process(pid, Signal::KILL);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.note("some processes of this instance could not be ended");
    }
}

/// Resolves when the instance's folder was removed: nobody can find this instance any more, so it must not go on.
async fn abandoned(lock: &FileLock, state: &InstanceState) {
    let path = state.supervisor_lock();
    // Looked at before each pause too, for a select that begins anew with each health report would never get to its end.
    while lock.is_at(&path) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Asks the group to end, waits, and kills it.
async fn end(running: &mut Running, drain: Duration) -> Option<WaitStatus> {
    process::signal_group(running.pid, Signal::TERM);
    if let Ok(status) = tokio::time::timeout(drain, &mut running.exit).await {
        return status.ok();
    }
    process::signal_group(running.pid, Signal::KILL);
    (&mut running.exit).await.ok()
}

/// Signals are listened to before the first process is started. What a terminal would send is ignored.
fn listen() -> io::Result<(Reaper, Listener)> {
    for kind in [SignalKind::hangup(), SignalKind::interrupt()] {
        // Having a listener is what keeps the signal from ending the process.
        let mut ignored = signal(kind)?;
        tokio::spawn(async move { while ignored.recv().await.is_some() {} });
    }
    Ok((Reaper::start()?, signal(SignalKind::terminate())?))
}
