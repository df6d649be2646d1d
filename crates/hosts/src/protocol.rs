//! What goes between cdpipe and an agent: JSON, one message a line, of bounded length. After the line of a chunk come its bytes, as they
//! are.

use cdpipe_host::Packed;
use cdpipe_model::action::{RunAction, StepRef};
use cdpipe_model::observe::{Instance, Observation, RouteTable};
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::{LockOwner, LockState};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::service::Route;
use cdpipe_model::strategy::OldRelease;
use cdpipe_model::{EffectId, Fault, InstanceId, ReleaseId, ServiceName, Value};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

/// Version of what is spoken. The binary on both sides is the same, so it changes only where an `agent` of another build is given.
pub(crate) const VERSION: u32 = 3;

/// Longest message in bytes.
pub(crate) const LINE_LIMIT_BYTES: u64 = 16 << 20;

/// Longest chunk in bytes.
pub(crate) const CHUNK_LIMIT_BYTES: usize = 256 << 10;

/// How much of an upload goes into one chunk. What is urgent waits for one of them at most before it is written.
pub(crate) const UPLOAD_CHUNK_BYTES: usize = 64 << 10;

/// How much of an upload may be on its way: what is urgent goes behind that in the buffers of `ssh` and of the network, which nobody
/// overtakes, and must come through within a few seconds on a slow link too.
pub(crate) const UPLOAD_WINDOW_BYTES: usize = 1 << 20;

/// The largest file that a transport reads or writes, in bytes.
pub(crate) const FILE_LIMIT_BYTES: usize = 4 << 20;

/// From cdpipe to the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToAgent {
    /// Do something.
    Call {
        /// Numbers the calls of one connection.
        id: u64,
        /// Which effect.
        effect: EffectId,
        /// For which step.
        step: StepRef,
        /// How long it may take.
        deadline_ms: u64,
        /// The epoch of the caller's lock.
        epoch: u64,
        /// What.
        request: Box<Request>,
    },
    /// Stop a call.
    Cancel {
        /// Which.
        id: u64,
    },
    /// Bytes of the upload of a call follow the line.
    Chunk {
        /// Of which call.
        id: u64,
        /// How many; none says that this was all.
        bytes: usize,
    },
    /// The value of a secret that was asked for.
    Secret {
        /// By which call.
        id: u64,
        /// Its name.
        name: String,
        /// Its value, or why there is none.
        value: Result<String, Fault>,
    },
    /// Nothing: says that somebody is there.
    Ping,
}

/// What an agent can do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "one of them exists for each call, in a box")]
pub(crate) enum Request {
    Resolve {
        spec: ReleaseSpec,
    },
    Observe {
        service: ServiceName,
        platform_name: Option<String>,
    },
    /// How many instances run that `ensure` would count, and whether the artifact must come first.
    Survey {
        spec: ReleaseSpec,
        extra_env: BTreeMap<String, Value>,
    },
    Upload {
        packed: Packed,
    },
    Ensure {
        spec: ReleaseSpec,
        count: u32,
        extra_env: BTreeMap<String, Value>,
    },
    AwaitReady {
        spec: ReleaseSpec,
        count: u32,
        may_fail: u32,
    },
    Stop {
        spec: ReleaseSpec,
        instances: Vec<Instance>,
        old: Option<OldRelease>,
        retain: u32,
    },
    Remove {
        service: ServiceName,
    },
    Exec {
        spec: ReleaseSpec,
        instance: Instance,
        run: RunAction,
    },
    Logs {
        service: ServiceName,
        instance: Instance,
        lines: usize,
    },
    Lock {
        key: LockKey,
        owner: LockOwner,
        lease_ms: u64,
    },
    RaiseLock {
        key: LockKey,
        owner: LockOwner,
        epoch: u64,
    },
    Unlock {
        key: LockKey,
        owner: LockOwner,
    },
    LockOwner {
        key: LockKey,
    },
    /// Something of the built-in proxy there, whose state lies in `dir`.
    Router {
        dir: Option<String>,
        ask: Box<RouterAsk>,
    },
    /// The bytes of a file, in hexadecimal digits.
    Read {
        path: String,
    },
    /// Bytes come as an upload.
    Write {
        path: String,
        mode: u32,
    },
    RemoveFile {
        path: String,
    },
    /// Standard input comes as an upload.
    Command {
        argv: Vec<String>,
    },
    /// What is sent comes as an upload.
    Exchange {
        unix: bool,
        to: String,
    },
}

impl Request {
    /// Whether bytes follow.
    pub(crate) fn has_upload(&self) -> bool {
        matches!(
            self,
            Request::Upload { .. }
                | Request::Write { .. }
                | Request::Command { .. }
                | Request::Exchange { .. }
        )
    }
}

/// What the built-in proxy of a machine is asked: the calls of a router.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RouterAsk {
    Observe { route: Route },
    Apply { table: RouteTable, seen: Option<RouteTable> },
    AwaitRouted { table: RouteTable },
    AwaitDrained { route: Route, release: ReleaseId, instances: Vec<Instance>, drain_ms: u64 },
    Requests { route: Route },
    Numbers { route: Route, release: Option<ReleaseId> },
    Forget { route: Route },
}

/// What an agent answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    Nothing,
    Resolved {
        spec: ReleaseSpec,
    },
    Observed {
        observation: Observation,
        canaries: Vec<InstanceId>,
    },
    Surveyed {
        running: u32,
        wants_upload: bool,
    },
    Instances {
        instances: Vec<Instance>,
        canaries: Vec<InstanceId>,
    },
    Count {
        count: usize,
    },
    Outputs {
        outputs: BTreeMap<String, String>,
    },
    Lines {
        lines: Vec<String>,
    },
    Locked {
        epoch: u64,
        was_ours: bool,
    },
    Owner {
        owner: Option<LockState>,
    },
    Table {
        table: Option<RouteTable>,
    },
    Requests {
        releases: Option<BTreeMap<ReleaseId, u64>>,
    },
    Numbers {
        text: Option<String>,
    },
    /// In hexadecimal digits.
    Bytes {
        hex: Option<String>,
    },
    Ran {
        status: i32,
        stdout: String,
        stderr: String,
    },
}

/// From the agent to cdpipe.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "each is read, handed on and gone")]
pub(crate) enum FromAgent {
    /// The first message.
    Hello {
        /// Version of the protocol.
        version: u32,
        /// The machine's own address, as the SSH server was reached at.
        address: Option<String>,
    },
    /// What became of a call. The last message about it.
    Answer {
        /// Which call.
        id: u64,
        /// What became of it.
        result: Result<Reply, Fault>,
    },
    /// A line of output.
    Output {
        /// Of which call.
        id: u64,
        /// Whether it is standard error.
        error: bool,
        /// Masked, without its line end.
        line: String,
    },
    /// How far a call is.
    Progress {
        /// Which.
        id: u64,
        /// For people.
        text: String,
    },
    /// So many bytes more of the upload of a call were taken.
    Took {
        /// Of which call.
        id: u64,
        /// How many.
        bytes: usize,
    },
    /// A call needs the value of a secret.
    NeedsSecret {
        /// Which.
        id: u64,
        /// The secret's name.
        name: String,
    },
}

/// A message as a line.
pub(crate) fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    if line.len() as u64 > LINE_LIMIT_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
    }
    Ok(line)
}

/// The next line without its end; `None` at the end of the stream.
///
/// # Errors
/// If it is too long, or the stream fails.
pub(crate) async fn next_line(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let read = (&mut *from).take(LINE_LIMIT_BYTES).read_until(b'\n', &mut line).await?;
    if line.last() == Some(&b'\n') {
        line.pop();
        return Ok(Some(line));
    }
    match read {
        0 => Ok(None),
        _ if line.len() as u64 >= LINE_LIMIT_BYTES => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"))
        }
        // The other side ended in the middle of it.
        _ => Ok(None),
    }
}

/// Hexadecimal digits.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Their bytes; `None` if they are none.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_bounded_and_a_half_one_is_none() {
        let mut stream = &b"{}\n\nhalf"[..];
        assert_eq!(next_line(&mut stream).await.unwrap(), Some(b"{}".to_vec()));
        assert_eq!(next_line(&mut stream).await.unwrap(), Some(Vec::new()));
        assert_eq!(next_line(&mut stream).await.unwrap(), None);
        let long = vec![b'x'; usize::try_from(LINE_LIMIT_BYTES).unwrap() + 1];
        assert!(next_line(&mut long.as_slice()).await.is_err());
    }

    #[test]
    fn hex_there_and_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&bytes)), Some(bytes));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("zz"), None);
    }
}
