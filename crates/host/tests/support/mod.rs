//! A place with a local target in it. What a test leaves running ends with the place.
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod context;

use cdpipe_host::{Local, LocalConfig, Masker, Policy};
use cdpipe_model::Value;
use cdpipe_model::observe::Instance;
use cdpipe_model::ports::Target as _;
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::service::{Health, HealthCheck, HealthKind};
use context::Context;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) const HELPER: &str = env!("CARGO_BIN_EXE_cdpipe-host-helper");

pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) local: Local,
    pub(crate) context: Context,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self::with_policy(quick_policy())
    }

    pub(crate) fn with_policy(policy: Policy) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let local = local_at(folder.path(), policy);
        Self { folder, local, context: Context::default() }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// A second cdpipe that knows nothing of the first.
    pub(crate) fn another(&self) -> Local {
        local_at(self.folder.path(), quick_policy())
    }

    pub(crate) async fn deploy(&self, spec: &ReleaseSpec, count: u32) -> Vec<Instance> {
        self.local.ensure(self.context.call(), spec, count, &BTreeMap::new()).await.expect("starts");
        self.local.await_ready(self.context.call(), spec, count, 0).await.expect("gets ready")
    }

    pub(crate) async fn observe(&self) -> cdpipe_model::observe::Observation {
        self.local.observe(self.context.call(), &"web".into(), None).await.expect("is seen")
    }

    /// Instances of the only release.
    pub(crate) async fn instances(&self) -> Vec<Instance> {
        self.observe().await.releases.into_iter().flat_map(|release| release.instances).collect()
    }

    /// The folder of an instance.
    pub(crate) fn instance_folder(&self, spec: &ReleaseSpec, number: u32) -> PathBuf {
        self.state().join(format!("services/web/releases/{}/instances/{number}", spec.id()))
    }

    pub(crate) fn status(&self, spec: &ReleaseSpec, number: u32) -> serde_json::Value {
        let text = std::fs::read(self.instance_folder(spec, number).join("status.json")).expect("a status");
        serde_json::from_slice(&text).expect("JSON")
    }

    pub(crate) fn supervisor_pid(&self, spec: &ReleaseSpec, number: u32) -> u32 {
        pid(&self.status(spec, number)["supervisor"]["pid"])
    }

    pub(crate) fn process_pid(&self, spec: &ReleaseSpec, number: u32) -> u32 {
        pid(&self.status(spec, number)["process"]["pid"])
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // By what they were started with, so that nothing of another test is met.
        let prefix = format!("{}", self.folder.path().display());
        for pid in all_pids() {
            let place = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let env = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let env = String::from_utf8_lossy(&env).into_owned();
            if place.contains(&prefix) || env.contains(&format!("CDPIPE_INSTANCE_DIR={prefix}")) {
                kill(pid, "KILL");
            }
        }
    }
}

fn pid(value: &serde_json::Value) -> u32 {
    value.as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid")
}

fn local_at(folder: &Path, policy: Policy) -> Local {
    Local::new(
        LocalConfig {
            state: folder.join("state"),
            environment: "test".into(),
            base: folder.to_owned(),
            supervisor: PathBuf::from(HELPER),
            policy,
        },
        Masker::default(),
    )
}

/// Supervisors that a test need not wait for.
pub(crate) fn quick_policy() -> Policy {
    Policy { backoff_first_ms: 20, backoff_max_ms: 200, ..Policy::default() }
}

/// A release that runs this command.
pub(crate) fn command(argv: &[&str]) -> ReleaseSpec {
    ReleaseSpec {
        service: "web".into(),
        platform_name: None,
        version: "v1".to_owned(),
        artifact: Artifact::Command {
            argv: argv.iter().map(|arg| (*arg).to_owned()).collect(),
            path: None,
            digest: None,
        },
        port: Some(80),
        env: BTreeMap::from([("VERSION".to_owned(), Value::Str("v1".to_owned()))]),
        health: vec![http_health()],
        drain_ms: 2_000,
        extra: BTreeMap::new(),
    }
}

/// The helper's HTTP service.
pub(crate) fn serve(args: &[&str]) -> ReleaseSpec {
    command(&[&[HELPER, "serve"], args].concat())
}

/// A shell script as a service without a port.
pub(crate) fn script(text: &str) -> ReleaseSpec {
    ReleaseSpec { port: None, health: Vec::new(), ..command(&["/bin/sh", "-c", text]) }
}

pub(crate) fn http_health() -> Health {
    Health {
        kind: HealthKind::Ready,
        check: HealthCheck::Http { path: "/health".to_owned() },
        every_ms: 50,
        timeout_ms: 1_000,
        failures: 3,
        within_ms: 20_000,
    }
}

pub(crate) fn all_pids() -> Vec<u32> {
    std::fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// Whether a process runs; a zombie does not.
pub(crate) fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|text| !text.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

pub(crate) fn kill(pid: u32, signal: &str) {
    let _ = std::process::Command::new("/bin/sh")
        .args(["-c", &format!("kill -{signal} {pid} 2>/dev/null")])
        .status();
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One GET, as users do it.
pub(crate) fn get(address: &str) -> std::io::Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned())
}
