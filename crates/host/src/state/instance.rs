//! One instance in the state folder: what it runs, and what its supervisor says of it.

use crate::durable::{Durability, FileLock, read_json, write_json};
use crate::local::Policy;
use crate::process::ProcessRef;
use cdpipe_model::observe::Instance;
use cdpipe_model::service::Health;
use cdpipe_model::{EffectId, EnvName, Fault, InstanceId, ReleaseId, ServiceName, Value};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// What a supervisor runs. Secrets are in it by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct InstanceConfig {
    pub(crate) format: u32,
    pub(crate) id: InstanceId,
    pub(crate) service: ServiceName,
    pub(crate) environment: EnvName,
    pub(crate) release: ReleaseId,
    /// The effect that started it.
    pub(crate) effect: EffectId,
    pub(crate) launch: Launch,
    /// Environment that only canary instances have.
    pub(crate) extra_env: BTreeMap<String, Value>,
    pub(crate) health: Vec<Health>,
    /// Whether the service says that it listens: then an instance without a readiness check is ready when its port answers.
    pub(crate) listens: bool,
    /// How long it may take to end when nobody says otherwise.
    pub(crate) drain_ms: u64,
    pub(crate) policy: Policy,
    /// Address it listens on, also told to it in `$HOST`; `None` is loopback, of which it is told nothing.
    #[serde(default)]
    pub(crate) listen: Option<IpAddr>,
}

impl InstanceConfig {
    /// The address it listens on.
    pub(crate) fn listen(&self) -> IpAddr {
        self.listen.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// Whether its environment needs values of secrets.
    pub(crate) fn holds_secrets(&self) -> bool {
        self.launch.env.values().chain(self.extra_env.values()).any(|value| matches!(value, Value::Secret(_)))
    }

    /// Where it is reached from the machine it runs on.
    pub(crate) fn reached(&self, port: u16) -> SocketAddr {
        let address = match self.listen() {
            IpAddr::V4(any) if any.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(any) if any.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            one => one,
        };
        SocketAddr::new(address, port)
    }
}

/// The command of an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Launch {
    /// Absolute path.
    pub(crate) program: PathBuf,
    /// Arguments after the program.
    pub(crate) args: Vec<String>,
    /// Absolute path.
    pub(crate) folder: PathBuf,
    /// Environment of the release; secrets by name.
    pub(crate) env: BTreeMap<String, Value>,
}

/// What the supervisor says of its instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) format: u32,
    pub(crate) supervisor: ProcessRef,
    pub(crate) phase: Phase,
    /// The port in `$PORT`.
    pub(crate) port: u16,
    /// Whether it may get traffic.
    pub(crate) ready: bool,
    /// How often the process was started again.
    pub(crate) restarts: u32,
    /// How often in a row it ended before it had run long enough to count as stable.
    pub(crate) crashes: u32,
    /// The process, while there is one.
    pub(crate) process: Option<ProcessRef>,
    /// When the supervisor began, milliseconds since 1970.
    pub(crate) started_ms: u64,
    /// How the process ended last.
    pub(crate) last_exit: Option<Exit>,
    /// What was wrong last: a health check's answer, or why it could not be started.
    pub(crate) failure: Option<String>,
}

/// What an instance is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// The process runs.
    Running,
    /// It ended and is started again after a pause.
    Pausing,
    /// It was asked to end.
    Stopping,
    /// It ended because it was asked to.
    Stopped,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// Its status, if it ended by itself.
    pub(crate) code: Option<i32>,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
    /// When, milliseconds since 1970.
    pub(crate) at_ms: u64,
}

impl Exit {
    /// `exit status 3`, `killed by SIGKILL`.
    pub(crate) fn describe(&self) -> String {
        match (self.code, self.signal) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("killed by {}", crate::process::signal_name(signal)),
            (None, None) => "ended".to_owned(),
        }
    }
}

/// How an instance should end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StopRequest {
    /// How long it may take between TERM and KILL.
    pub(crate) drain_ms: u64,
}

/// Where one instance lies.
#[derive(Debug, Clone)]
pub(crate) struct InstanceState {
    folder: PathBuf,
    number: u32,
}

impl InstanceState {
    pub(crate) fn new(folder: PathBuf, number: u32) -> Self {
        Self { folder, number }
    }

    /// The folder that a supervisor was given.
    pub(crate) fn at(folder: &Path) -> Self {
        let number = folder.file_name().and_then(|name| name.to_str()?.parse().ok()).unwrap_or_default();
        Self { folder: folder.to_owned(), number }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Held by the supervisor as long as it lives.
    pub(crate) fn supervisor_lock(&self) -> PathBuf {
        self.folder.join("supervisor.lock")
    }

    /// What the supervisor itself has to say when it fails.
    pub(crate) fn supervisor_log(&self) -> PathBuf {
        self.folder.join("supervisor.log")
    }

    /// Whether its supervisor lives. A lock can't be mistaken as a process id can: it ends with its holder, and with the machine.
    pub(crate) fn is_alive(&self) -> bool {
        FileLock::is_held(&self.supervisor_lock())
    }

    /// What its supervisor was told. Neither this nor the status is synced, for after a power cut no instance runs and both are written
    /// anew; so one that can't be read then is as good as none.
    pub(crate) fn config(&self) -> Option<InstanceConfig> {
        read_json(&self.folder.join("instance.json")).ok().flatten()
    }

    pub(crate) fn write_config(&self, config: &InstanceConfig) -> Result<(), Fault> {
        write_json(&self.folder.join("instance.json"), config, Durability::Atomic)
    }

    pub(crate) fn status(&self) -> Option<Status> {
        read_json(&self.folder.join("status.json")).ok().flatten()
    }

    /// What the supervisor says, for whoever looks.
    pub(crate) fn write_status(&self, status: &Status) -> Result<(), Fault> {
        write_json(&self.folder.join("status.json"), status, Durability::Atomic)
    }

    pub(crate) fn stop_request(&self) -> Option<StopRequest> {
        read_json(&self.folder.join("stop.json")).ok().flatten()
    }

    pub(crate) fn write_stop_request(&self, request: StopRequest) -> Result<(), Fault> {
        write_json(&self.folder.join("stop.json"), &request, Durability::Atomic)
    }

    pub(crate) fn clear_stop_request(&self) {
        // Not there is what it should be.
        let _ = std::fs::remove_file(self.folder.join("stop.json"));
    }

    /// Whether it was asked to end, so that it does not count any more: whoever asked may be gone before it has ended.
    pub(crate) fn is_ending(&self) -> bool {
        self.stop_request().is_some()
            || self.status().is_some_and(|status| matches!(status.phase, Phase::Stopping | Phase::Stopped))
    }

    /// The environment entry by which processes of this instance are known, whoever their parent is by now.
    pub(crate) fn marker(&self) -> (&'static str, String) {
        ("CDPIPE_INSTANCE_DIR", self.folder.display().to_string())
    }

    /// The instance as the engine knows it; `None` if nothing runs here, or only to its end.
    pub(crate) fn observe(&self) -> Option<Instance> {
        if !self.is_alive() || self.is_ending() {
            return None;
        }
        let (config, status) = (self.config()?, self.status()?);
        if !status.supervisor.is_alive() {
            // A new supervisor has the lock and has not spoken yet; this is what the former one said.
            return None;
        }
        Some(Instance {
            address: Some(config.reached(status.port).to_string()),
            id: config.id,
            ready: status.ready,
            reached_at: None,
            restarts: status.restarts,
        })
    }
}
