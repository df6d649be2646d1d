//! One connection to one machine: `ssh` with an agent at its other end.

use crate::binary;
use crate::protocol::{
    FromAgent, Reply, Request, ToAgent, UPLOAD_CHUNK_BYTES, UPLOAD_WINDOW_BYTES, VERSION, line, next_line,
};
use crate::ssh::{HostName, SAYS, SshConfig, fault_of};
use cdpipe_model::Fault;
use cdpipe_model::event::Stream;
use cdpipe_model::ports::Call;
use std::collections::HashMap;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::{mpsc, watch};

/// How long bringing the agent to a machine and starting it may take, beside the upload.
const START_WAIT: Duration = Duration::from_secs(20);

/// How long the upload of the agent may take.
const AGENT_UPLOAD_WAIT: Duration = Duration::from_secs(300);

/// How long the agent may take to answer after its deadline, or after a cancel.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// How often the agent hears that somebody is there.
const PING_EVERY: Duration = Duration::from_secs(20);

/// Messages that wait to be written.
const CONTROL: usize = 64;

/// Chunks of uploads that wait to be written, behind all messages.
const BULK: usize = 1;

/// How much of what `ssh` complains is kept.
const COMPLAINTS_BYTES: usize = 16 << 10;

/// A line, and the bytes that follow it.
type Frame = (Vec<u8>, Vec<u8>);

type Waiting = Arc<Mutex<HashMap<u64, mpsc::UnboundedSender<FromAgent>>>>;

/// One connection. Dropping it ends it, and with it the agent.
pub(crate) struct Session {
    host: String,
    /// Messages, which overtake uploads: a lease that is not renewed in time is lost.
    control: mpsc::Sender<Frame>,
    bulk: mpsc::Sender<Frame>,
    waiting: Waiting,
    next: AtomicU64,
    /// Why it has ended, once it has.
    ended: watch::Receiver<Option<Fault>>,
    /// The machine's own address.
    pub(crate) address: Option<String>,
    // Ends with the session.
    _ssh: Child,
}

impl Session {
    /// Connects, brings the agent there if it is not yet, and starts it.
    ///
    /// # Errors
    /// `ssh-host-key-unknown`, `ssh-host-key-changed`, `ssh-auth`, `ssh-unreachable`, `ssh-config`, `ssh-failed`, `sudo-refused`;
    /// `agent-unfit` if the binary does not run there; `host-dir-unfit` if there is no place for it.
    pub(crate) async fn open(config: &SshConfig, host: &HostName) -> Result<Self, Fault> {
        let name = host.written.clone();
        let identity = binary::identity(config).await?;
        let mut ssh = config.command(host, &config.script(identity)).spawn().map_err(|error| {
            Fault::new("ssh-missing", format!("`ssh` can't be started: {error}"))
                .help("install the OpenSSH client")
        })?;
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (ssh.stdin.take(), ssh.stdout.take(), ssh.stderr.take())
        else {
            return Err(Fault::new("internal", "ssh has no standard streams"));
        };
        let complaints = Arc::new(Mutex::new(Vec::new()));
        let (kept, mut stderr) = (Arc::clone(&complaints), stderr);
        let complaining = tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                let room = COMPLAINTS_BYTES.saturating_sub(kept.len());
                kept.extend_from_slice(&buffer[..count.min(room)]);
            }
        });
        let said = || {
            let complaints = complaints.lock().unwrap_or_else(PoisonError::into_inner);
            String::from_utf8_lossy(&complaints).into_owned()
        };
        let mut stdout = BufReader::new(stdout);
        let begun = begin(config, &name, &mut stdin, &mut stdout).await;
        let address = match begun {
            Ok(Some(address)) => address,
            Ok(None) => {
                // It has ended: what it said last is on its way.
                let _ = tokio::time::timeout(Duration::from_secs(2), complaining).await;
                return Err(fault_of(&name, &said()));
            }
            Err(fault) => return Err(fault),
        };
        let waiting = Waiting::default();
        let (control, messages) = mpsc::channel(CONTROL);
        let (bulk, chunks) = mpsc::channel(BULK);
        tokio::spawn(write(stdin, messages, chunks));
        let (ending, ended) = watch::channel(None);
        tokio::spawn(listen(name.clone(), stdout, Arc::clone(&waiting), ending, complaints));
        Ok(Self { host: name, control, bulk, waiting, next: AtomicU64::new(1), ended, address, _ssh: ssh })
    }

    /// Whether it has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Has the agent do something. `upload` are the bytes that belong to it.
    ///
    /// # Errors
    /// What the agent says; `host-lost` (transient) if the connection ends before it has; `timed-out`; `cancelled`.
    pub(crate) async fn call(
        &self,
        call: Call<'_>,
        request: &Request,
        upload: Option<Box<dyn Read + Send>>,
    ) -> Result<Reply, Fault> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, mut answers) = mpsc::unbounded_channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        let _forget = Forget { session: self, id };
        let deadline_ms = u64::try_from(call.deadline.as_millis()).unwrap_or(u64::MAX);
        let message = ToAgent::Call {
            id,
            effect: call.effect.clone(),
            step: call.step.clone(),
            deadline_ms,
            epoch: call.epoch,
            request: Box::new(request.clone()),
        };
        let mut ended = self.ended.clone();
        let talk = async {
            self.send(&message).await?;
            let (took, taken) = watch::channel(0_usize);
            let mut uploading = request.has_upload();
            let upload = self.upload(id, upload, taken);
            tokio::pin!(upload);
            let mut cancelled = None;
            loop {
                let message = tokio::select! {
                    message = answers.recv() => message,
                    () = call.cancel.cancelled(), if cancelled.is_none() => {
                        cancelled = Some(tokio::time::Instant::now());
                        uploading = false;
                        self.send(&ToAgent::Cancel { id }).await?;
                        continue;
                    }
                    done = &mut upload, if uploading => {
                        uploading = false;
                        done?;
                        continue;
                    }
                    () = wait_after(cancelled) => {
                        return Err(Fault::new("cancelled", format!("cancelled; {} has not said how far it was", self.host)));
                    }
                };
                match message {
                    Some(FromAgent::Answer { result, .. }) => return result,
                    Some(FromAgent::Output { error, line, .. }) => {
                        call.sink.output(if error { Stream::Stderr } else { Stream::Stdout }, &line);
                    }
                    Some(FromAgent::Progress { text, .. }) => {
                        call.sink.progress(&format!("{}: {text}", self.host));
                    }
                    Some(FromAgent::Took { bytes, .. }) => {
                        took.send_modify(|taken| *taken = taken.saturating_add(bytes));
                    }
                    Some(FromAgent::NeedsSecret { name, .. }) => {
                        let value = call.secrets.resolve(&name).await.map(|value| value.expose().to_owned());
                        self.send(&ToAgent::Secret { id, name, value }).await?;
                    }
                    Some(FromAgent::Hello { .. }) | None => return Err(self.lost()),
                }
            }
        };
        tokio::select! {
            answer = tokio::time::timeout(call.deadline.saturating_add(ANSWER_WAIT), talk) => match answer {
                Ok(answer) => answer,
                Err(_) => Err(Fault::new("timed-out", format!("{} did not answer in time", self.host))),
            },
            Ok(_) = ended.wait_for(Option::is_some) => {
                // The answer may have been its last word.
                while let Ok(message) = answers.try_recv() {
                    if let FromAgent::Answer { result, .. } = message {
                        return result;
                    }
                }
                Err(self.lost())
            }
        }
    }

    fn lost(&self) -> Fault {
        self.ended.borrow().clone().unwrap_or_else(|| {
            Fault::new("host-lost", format!("the connection to {} ended", self.host)).transient()
        })
    }

    async fn send(&self, message: &ToAgent) -> Result<(), Fault> {
        let line = self.line(message)?;
        self.control.send((line, Vec::new())).await.map_err(|_| self.lost())
    }

    async fn chunk(&self, id: u64, bytes: Vec<u8>) -> Result<(), Fault> {
        let line = self.line(&ToAgent::Chunk { id, bytes: bytes.len() })?;
        self.bulk.send((line, bytes)).await.map_err(|_| self.lost())
    }

    fn line(&self, message: &ToAgent) -> Result<Vec<u8>, Fault> {
        line(message).map_err(|error| {
            Fault::new("internal", format!("a message for {} can't be written: {error}", self.host))
        })
    }

    /// `taken` tells how many bytes the agent has taken; what is on its way beyond that is bounded.
    async fn upload(
        &self,
        id: u64,
        upload: Option<Box<dyn Read + Send>>,
        mut taken: watch::Receiver<usize>,
    ) -> Result<(), Fault> {
        let (mut reader, mut sent) = (upload, 0_usize);
        while let Some(mut from) = reader.take() {
            let read = tokio::task::spawn_blocking(move || {
                let mut chunk = vec![0; UPLOAD_CHUNK_BYTES];
                let mut filled = 0;
                while filled < chunk.len() {
                    match from.read(&mut chunk[filled..]) {
                        Ok(0) => break,
                        Ok(count) => filled += count,
                        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
                chunk.truncate(filled);
                Ok((from, chunk))
            });
            let (from, chunk) = match read.await {
                Ok(Ok(read)) => read,
                Ok(Err(error)) => {
                    return Err(Fault::new(
                        "artifact-unreadable",
                        format!("the upload can't be read: {error}"),
                    ));
                }
                Err(error) => return Err(Fault::new("internal", format!("an upload ended early: {error}"))),
            };
            if !chunk.is_empty() {
                sent = sent.saturating_add(chunk.len());
                let room = |taken: &usize| sent.saturating_sub(*taken) <= UPLOAD_WINDOW_BYTES;
                // The call itself has a deadline.
                taken.wait_for(room).await.map_err(|_| self.lost())?;
                self.chunk(id, chunk).await?;
                reader = Some(from);
            }
        }
        self.chunk(id, Vec::new()).await
    }
}

async fn wait_after(cancelled: Option<tokio::time::Instant>) {
    match cancelled {
        Some(at) => tokio::time::sleep_until(at + ANSWER_WAIT).await,
        None => std::future::pending().await,
    }
}

/// Takes a call out of those that wait, and cancels it if it is dropped before it is answered.
struct Forget<'a> {
    session: &'a Session,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.session.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        if let Ok(line) = line(&ToAgent::Cancel { id: self.id }) {
            // To a call that was answered it says nothing; where the queue is full, its deadline ends it.
            let _ = self.session.control.try_send((line, Vec::new()));
        }
    }
}

/// Writes what waits: all messages before the next chunk of an upload.
async fn write(
    mut into: impl AsyncWrite + Unpin,
    mut messages: mpsc::Receiver<Frame>,
    mut chunks: mpsc::Receiver<Frame>,
) {
    loop {
        let next = async {
            tokio::select! {
                biased;
                message = messages.recv() => message.map(|message| (message, false)),
                Some(chunk) = chunks.recv() => Some((chunk, true)),
            }
        };
        let (frame, is_chunk) = match tokio::time::timeout(PING_EVERY, next).await {
            Ok(Some(next)) => next,
            // The session was dropped: the end of the stream ends the agent.
            Ok(None) => return,
            Err(_) => match line(&ToAgent::Ping) {
                Ok(line) => ((line, Vec::new()), false),
                Err(_) => continue,
            },
        };
        if is_chunk {
            // The call that a chunk belongs to may have been queued after the queue of messages was looked at.
            while let Ok(message) = messages.try_recv() {
                if put(&mut into, message).await.is_err() {
                    return;
                }
            }
        }
        if put(&mut into, frame).await.is_err() {
            return;
        }
    }
}

async fn put(into: &mut (impl AsyncWrite + Unpin), (mut line, bytes): Frame) -> std::io::Result<()> {
    let written = async {
        into.write_all(&line).await?;
        into.write_all(&bytes).await?;
        into.flush().await
    };
    let written = written.await;
    // It may have held a secret.
    line.fill(0);
    std::hint::black_box(&line);
    written
}

async fn listen(
    host: String,
    mut stdout: BufReader<ChildStdout>,
    waiting: Waiting,
    ending: watch::Sender<Option<Fault>>,
    complaints: Arc<Mutex<Vec<u8>>>,
) {
    while let Ok(Some(line)) = next_line(&mut stdout).await {
        let Ok(message) = serde_json::from_slice::<FromAgent>(&line) else { break };
        let id = match &message {
            FromAgent::Answer { id, .. }
            | FromAgent::Output { id, .. }
            | FromAgent::Progress { id, .. }
            | FromAgent::Took { id, .. }
            | FromAgent::NeedsSecret { id, .. } => *id,
            FromAgent::Hello { .. } => continue,
        };
        if let Some(sender) = waiting.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
            // Whoever waited is gone.
            let _ = sender.send(message);
        }
    }
    // What ssh says of it comes a moment later.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let complaints = complaints.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let complaints = String::from_utf8_lossy(&complaints).into_owned();
    let why = complaints.trim().lines().last().map(|line| format!(": {}", line.trim())).unwrap_or_default();
    let fault = Fault::new("host-lost", format!("the connection to {host} was lost{why}"))
        .help("see whether the machine runs and its network is whole; what had been started there goes on by itself")
        .transient();
    let _ = ending.send(Some(fault));
    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// Talks with the script, then hears the agent's first word. Answers the machine's own address; `None` if ssh has ended.
async fn begin(
    config: &SshConfig,
    host: &str,
    stdin: &mut ChildStdin,
    stdout: &mut BufReader<ChildStdout>,
) -> Result<Option<Option<String>>, Fault> {
    let late =
        |what: &str| Fault::new("ssh-unreachable", format!("{host} took too long to {what}")).transient();
    let next = async |stdout: &mut BufReader<ChildStdout>, wait| {
        loop {
            let mut text = String::new();
            let mut bounded = (&mut *stdout).take(64 << 10);
            let read = bounded.read_line(&mut text);
            match tokio::time::timeout(wait, read).await {
                Err(_) => return Err(late("start the agent")),
                Ok(Err(_) | Ok(0)) => return Ok(None),
                // A login shell may say more than it was asked.
                Ok(Ok(_)) => {
                    if let Some((_, says)) = text.trim_end().split_once(SAYS) {
                        return Ok(Some(says.to_owned()));
                    }
                }
            }
        }
    };
    let Some(mut says) = next(stdout, START_WAIT).await? else { return Ok(None) };
    if let Some(machine) = says.strip_prefix("need ") {
        binary::send(config, host, machine, stdin, AGENT_UPLOAD_WAIT).await?;
        match next(stdout, AGENT_UPLOAD_WAIT).await? {
            Some(next) => says = next,
            None => return Ok(None),
        }
    }
    if let Some(why) = says.strip_prefix("failed ") {
        return Err(match why.split_once(' ').unwrap_or((why, "")) {
            ("folder", _) => Fault::new("host-dir-unfit", format!("{} can't be made on {host}", config.dir))
                .help("set `dir` of the target to a folder that the user may write, or `sudo = true`"),
            ("disk", _) => Fault::new("host-dir-unfit", format!("{} on {host} can't be written", config.dir))
                .help("is its disk full?"),
            ("checksum", _) => Fault::new("upload-damaged", format!("the agent did not arrive whole on {host}")).transient(),
            (_, said) => Fault::new("agent-unfit", format!("cdpipe does not run on {host}: {said}"))
                .help("set `agent` of the target to the path of a cdpipe that is built for that machine (a static one runs on each)"),
        });
    }
    let hello = match tokio::time::timeout(START_WAIT, next_line(stdout)).await {
        Err(_) => return Err(late("start the agent")),
        Ok(Ok(Some(line))) => serde_json::from_slice(&line),
        Ok(Ok(None) | Err(_)) => return Ok(None),
    };
    match hello {
        Ok(FromAgent::Hello { version: VERSION, address }) => Ok(Some(address)),
        _ => Err(Fault::new("agent-unfit", format!("the agent on {host} speaks another version"))
            .help("let `agent` of the target be a cdpipe of this version")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quiet::{Quiet, call};
    use std::process::Stdio;
    use tokio::io::DuplexStream;

    /// A session whose other side is the test: what is written comes out of the stream, and `waiting` is where answers go.
    fn session(written_bytes: usize) -> (Session, BufReader<DuplexStream>) {
        let (near, far) = tokio::io::duplex(written_bytes);
        let (control, messages) = mpsc::channel(CONTROL);
        let (bulk, chunks) = mpsc::channel(BULK);
        tokio::spawn(write(near, messages, chunks));
        let (ending, ended) = watch::channel(None);
        // It lives as long as the test.
        std::mem::forget(ending);
        let ssh = tokio::process::Command::new("sleep")
            .arg("600")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let session = Session {
            host: "web-1".into(),
            control,
            bulk,
            waiting: Waiting::default(),
            next: AtomicU64::new(1),
            ended,
            address: None,
            _ssh: ssh,
        };
        (session, BufReader::new(far))
    }

    async fn next(from: &mut BufReader<DuplexStream>) -> ToAgent {
        let line = next_line(from).await.unwrap().unwrap();
        let message = serde_json::from_slice(&line).unwrap();
        if let ToAgent::Chunk { bytes, .. } = &message {
            from.read_exact(&mut vec![0; *bytes]).await.unwrap();
        }
        message
    }

    fn answer(session: &Session, id: u64, message: FromAgent) {
        let waiting = session.waiting.lock().unwrap();
        waiting.get(&id).unwrap().send(message).unwrap();
    }

    fn command() -> Request {
        Request::Command { argv: vec!["cat".into()] }
    }

    fn endless() -> Option<Box<dyn Read + Send>> {
        Some(Box::new(std::io::repeat(b'x')))
    }

    #[tokio::test]
    async fn a_message_overtakes_an_upload() {
        // The other side reads nothing yet, so the upload stands.
        let (session, mut far) = session(1024);
        let session = Arc::new(session);
        let uploading = Arc::clone(&session);
        let upload = tokio::spawn(async move {
            let quiet = Quiet::default();
            uploading.call(call(&quiet, Duration::from_secs(60)), &command(), endless()).await
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        let asking = Arc::clone(&session);
        let lock = tokio::spawn(async move {
            let quiet = Quiet::default();
            let request = Request::LockOwner { key: cdpipe_model::plan::LockKey::Named("a".into()) };
            asking.call(call(&quiet, Duration::from_secs(60)), &request, None).await
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut before_bytes = 0;
        let id = loop {
            match next(&mut far).await {
                ToAgent::Call { id, request, .. } if matches!(*request, Request::LockOwner { .. }) => {
                    break id;
                }
                ToAgent::Chunk { bytes, .. } => before_bytes += bytes,
                _ => {}
            }
        };
        assert!(before_bytes <= UPLOAD_CHUNK_BYTES, "{before_bytes} bytes of an upload went before it");
        answer(&session, id, FromAgent::Answer { id, result: Ok(Reply::Owner { owner: None }) });
        assert!(matches!(lock.await.unwrap(), Ok(Reply::Owner { owner: None })));
        upload.abort();
    }

    #[tokio::test]
    async fn what_is_on_its_way_of_an_upload_is_bounded() {
        let (session, mut far) = session(4 << 20);
        let session = Arc::new(session);
        let uploading = Arc::clone(&session);
        let upload = tokio::spawn(async move {
            let quiet = Quiet::default();
            uploading.call(call(&quiet, Duration::from_secs(60)), &command(), endless()).await
        });
        assert!(matches!(next(&mut far).await, ToAgent::Call { id: 1, .. }));
        let mut sent = async |most: usize| {
            let mut sent = 0;
            while let Ok(ToAgent::Chunk { bytes, .. }) =
                tokio::time::timeout(Duration::from_millis(500), next(&mut far)).await
            {
                sent += bytes;
                assert!(sent <= most, "{sent}");
            }
            sent
        };
        assert_eq!(sent(UPLOAD_WINDOW_BYTES).await, UPLOAD_WINDOW_BYTES);
        answer(&session, 1, FromAgent::Took { id: 1, bytes: 3 * UPLOAD_CHUNK_BYTES });
        assert_eq!(sent(3 * UPLOAD_CHUNK_BYTES).await, 3 * UPLOAD_CHUNK_BYTES);
        upload.abort();
    }

    #[tokio::test]
    async fn an_answer_or_a_cancel_ends_an_upload() {
        let (session, mut far) = session(1024);
        let quiet = Quiet::default();
        let early = async {
            assert!(matches!(next(&mut far).await, ToAgent::Call { .. }));
            let fault = Fault::new("disk-full", "no space is left");
            answer(&session, 1, FromAgent::Answer { id: 1, result: Err(fault) });
        };
        let (command, deadline) = (command(), Duration::from_secs(60));
        let (done, ()) = tokio::join!(session.call(call(&quiet, deadline), &command, endless()), early);
        assert_eq!(done.unwrap_err().kind, "disk-full");

        let cancelled = async {
            while !matches!(next(&mut far).await, ToAgent::Call { id: 2, .. }) {}
            quiet.cancel();
            while !matches!(next(&mut far).await, ToAgent::Cancel { id: 2 }) {}
            let fault = Fault::new("cancelled", "cancelled there");
            answer(&session, 2, FromAgent::Answer { id: 2, result: Err(fault) });
        };
        let (done, ()) = tokio::join!(session.call(call(&quiet, deadline), &command, endless()), cancelled);
        assert_eq!(done.unwrap_err().message, "cancelled there");
    }
}
