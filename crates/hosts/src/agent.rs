//! The agent: the other side of a session, on the machine itself. Does what it is told with the local target there, and ends when nobody
//! is at its standard input any more; what it was doing is cancelled then, what it has started goes on.

use crate::here::Here;
use crate::protocol::{
    FromAgent, Reply, Request, ToAgent, UPLOAD_CHUNK_BYTES, UPLOAD_WINDOW_BYTES, VERSION, line, next_line,
};
use crate::router::{self, ProxyThere};
use crate::ssh::ContainersThere;
use crate::transport::serve as serve_transport;
use cdpipe_host::{Local, LocalConfig, Masker, Policy, Serve, Units};
use cdpipe_model::event::Stream;
use cdpipe_model::ports::{BoxFuture, Call, Cancel, PortResult, Secrets, Sink, Target};
use cdpipe_model::secret::SecretValue;
use cdpipe_model::{EnvName, Fault, ServiceName};
use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, Read, Write as _};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// The hidden subcommand.
pub const HOST_AGENT: &str = "host-agent";

/// Messages that wait to be written.
const OUTGOING: usize = 256;

/// Chunks of one upload that wait to be taken: all that may be on their way, so that none of them holds up what comes behind it.
const CHUNKS: usize = UPLOAD_WINDOW_BYTES / UPLOAD_CHUNK_BYTES + 1;

/// How long the next bytes of an artifact may be waited for.
const UPLOAD_IDLE: Duration = Duration::from_secs(60);

/// How long an agent that hears nothing goes on: the network was cut, and the SSH server has not noticed.
const SILENCE: Duration = Duration::from_secs(90);

/// How long calls may take to end after their connection has.
const END_WAIT: Duration = Duration::from_secs(8);

/// What is said on the command line.
struct Options {
    dir: PathBuf,
    environment: EnvName,
    listen: IpAddr,
    units: Units,
    containers: Option<ContainersThere>,
}

/// Does the hidden subcommand, if the command line is its. `proxy` is what reaches the built-in proxy of a machine. To be called early in `main`; costs nothing if it is not meant.
pub fn intercept(mut args: impl Iterator<Item = OsString>, proxy: ProxyThere) -> Option<ExitCode> {
    if args.nth(1)? != HOST_AGENT {
        return None;
    }
    let words: Vec<String> = args.map(|arg| arg.to_string_lossy().into_owned()).collect();
    Some(match options(&words) {
        Some(options) => main(options, proxy),
        None => {
            let _ = writeln!(
                io::stderr(),
                "usage: cdpipe {HOST_AGENT} DIR ENVIRONMENT ADDRESS process|systemd [ENGINE NETWORK [ADOPTED]...]"
            );
            ExitCode::from(2)
        }
    })
}

fn options(words: &[String]) -> Option<Options> {
    let [dir, environment, listen, units, containers @ ..] = words else { return None };
    let units = match units.as_str() {
        "process" => Units::Process,
        "systemd" => Units::Systemd,
        _ => return None,
    };
    let containers = match containers {
        [] => None,
        [engine, network, adopt @ ..] => Some(ContainersThere {
            engine: engine.clone(),
            network: network.clone(),
            adopt: adopt.iter().map(|name| ServiceName::from(name.as_str())).collect(),
        }),
        _ => return None,
    };
    Some(Options {
        dir: dir.into(),
        environment: EnvName::from(environment.as_str()),
        listen: listen.parse().ok()?,
        units,
        containers,
    })
}

fn main(options: Options, proxy: ProxyThere) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = runtime.map(|runtime| {
        let served = runtime.block_on(serve(options, proxy));
        // Someone may still wait for standard input, which may never come.
        runtime.shutdown_background();
        served
    });
    match served {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) | Err(error) => {
            let _ = writeln!(io::stderr(), "cdpipe {HOST_AGENT}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What all calls share.
struct Agent {
    here: Here,
    proxy: ProxyThere,
    /// The folder of the target.
    dir: PathBuf,
    masker: Masker,
    out: mpsc::Sender<FromAgent>,
    calls: Mutex<HashMap<u64, Doing>>,
}

/// A call that is under way.
struct Doing {
    cancel: watch::Sender<bool>,
    chunks: Option<mpsc::Sender<Vec<u8>>>,
    secrets: HashMap<String, Vec<oneshot::Sender<Result<String, Fault>>>>,
}

async fn serve(options: Options, proxy: ProxyThere) -> io::Result<()> {
    let binary = std::env::current_exe()?;
    let masker = Masker::default();
    let environment = options.dir.join("environments").join(options.environment.as_str());
    let local = Local::new(
        LocalConfig {
            state: environment.clone(),
            environment: options.environment.clone(),
            base: options.dir.clone(),
            supervisor: binary,
            policy: Policy::default(),
        },
        masker.clone(),
    )
    .listening_on(options.listen)
    .serving(Serve { artifacts: environment.join("artifacts"), units: options.units });
    let (out, outgoing) = mpsc::channel(OUTGOING);
    let here = Here::new(
        local,
        options.containers.as_ref(),
        &options.environment,
        options.listen,
        &options.dir,
        &masker,
    );
    let agent = Arc::new(Agent { here, proxy, dir: options.dir, masker, out, calls: Mutex::default() });
    let writing = tokio::spawn(write(outgoing));
    agent.say(FromAgent::Hello { version: VERSION, address: own_address() }).await;
    let mut tasks = JoinSet::new();
    let result = listen(&agent, &mut tasks).await;
    for doing in agent.calls.lock().unwrap_or_else(PoisonError::into_inner).values() {
        let _ = doing.cancel.send(true);
    }
    let _ = tokio::time::timeout(END_WAIT, async { while tasks.join_next().await.is_some() {} }).await;
    writing.abort();
    result
}

/// The address of this machine at which the SSH server was reached: the third word of `$SSH_CONNECTION`.
fn own_address() -> Option<String> {
    Some(std::env::var("SSH_CONNECTION").ok()?.split(' ').nth(2)?.to_owned())
}

/// A standard stream without the buffer that the library keeps for it.
fn stream(of: impl AsFd) -> io::Result<tokio::fs::File> {
    Ok(tokio::fs::File::from_std(std::fs::File::from(of.as_fd().try_clone_to_owned()?)))
}

async fn write(mut outgoing: mpsc::Receiver<FromAgent>) {
    let Ok(mut stdout) = stream(io::stdout()) else { return };
    while let Some(message) = outgoing.recv().await {
        let Ok(line) = line(&message) else { continue };
        if stdout.write_all(&line).await.is_err() || stdout.flush().await.is_err() {
            return;
        }
    }
}

async fn listen(agent: &Arc<Agent>, tasks: &mut JoinSet<()>) -> io::Result<()> {
    let mut stdin = BufReader::new(stream(io::stdin())?);
    loop {
        let line = match tokio::time::timeout(SILENCE, next_line(&mut stdin)).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "nobody is there any more")),
        };
        while tasks.try_join_next().is_some() {}
        match serde_json::from_slice(&line).map_err(io::Error::from)? {
            ToAgent::Ping => {}
            ToAgent::Cancel { id } => agent.with(id, |doing| {
                let _ = doing.cancel.send(true);
            }),
            ToAgent::Secret { id, name, value } => agent.with(id, |doing| {
                for waiting in doing.secrets.remove(&name).unwrap_or_default() {
                    let _ = waiting.send(value.clone());
                }
            }),
            ToAgent::Chunk { id, bytes } => {
                let mut chunk = vec![0; bytes.min(crate::protocol::CHUNK_LIMIT_BYTES)];
                stdin.read_exact(&mut chunk).await?;
                let chunks = agent.chunks(id, bytes == 0);
                if let (Some(chunks), true) = (chunks, bytes > 0) {
                    // A call that has ended early does not want the rest.
                    let _ = chunks.send(chunk).await;
                }
            }
            ToAgent::Call { id, effect, step, deadline_ms, epoch, request } => {
                let (cancel, cancelled) = watch::channel(false);
                let (chunks, chunked) = mpsc::channel(CHUNKS);
                let upload = Upload { id, from: chunked, out: agent.out.clone() };
                let chunks = request.has_upload().then_some(chunks);
                let doing = Doing { cancel, chunks, secrets: HashMap::new() };
                agent.calls.lock().unwrap_or_else(PoisonError::into_inner).insert(id, doing);
                let agent = Arc::clone(agent);
                tasks.spawn(async move {
                    let doing = Ports { id, agent: Arc::clone(&agent), cancelled };
                    let call = Call {
                        effect: &effect,
                        step: &step,
                        deadline: Duration::from_millis(deadline_ms),
                        sink: &doing,
                        cancel: &doing,
                        secrets: &doing,
                        epoch,
                    };
                    let result = agent.act(call, *request, upload).await;
                    agent.calls.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                    agent.say(FromAgent::Answer { id, result }).await;
                });
            }
        }
    }
}

impl Agent {
    async fn say(&self, message: FromAgent) {
        // Nobody hears it any more: the connection has ended, and so will the agent.
        let _ = self.out.send(message).await;
    }

    fn with(&self, id: u64, act: impl FnOnce(&mut Doing)) {
        if let Some(doing) = self.calls.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&id) {
            act(doing);
        }
    }

    fn chunks(&self, id: u64, last: bool) -> Option<mpsc::Sender<Vec<u8>>> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let doing = calls.get_mut(&id)?;
        if last { doing.chunks.take() } else { doing.chunks.clone() }
    }

    async fn act(&self, call: Call<'_>, request: Request, upload: Upload) -> Result<Reply, Fault> {
        let (here, local) = (&self.here, &self.here.local);
        match request {
            Request::Resolve { spec } => Ok(Reply::Resolved { spec: here.resolve(call, &spec).await? }),
            Request::Observe { service, platform_name } => {
                here.observe(call, &service, platform_name.as_deref()).await
            }
            Request::Survey { spec, extra_env } => here.survey(call, &spec, &extra_env).await,
            Request::Upload { packed } => {
                let artifacts = local.artifacts();
                received(call, upload, UPLOAD_IDLE, move |bytes| packed.unpack(&artifacts, bytes)).await?;
                Ok(Reply::Nothing)
            }
            Request::Ensure { spec, count, extra_env } => here.ensure(call, &spec, count, &extra_env).await,
            Request::AwaitReady { spec, count, may_fail } => {
                here.await_ready(call, &spec, count, may_fail).await
            }
            Request::Stop { spec, instances, old, retain } => {
                here.stop(call, &spec, &instances, old, retain).await
            }
            Request::Remove { service } => here.remove(call, &service).await,
            Request::Exec { spec, instance, run } => here.exec(call, &spec, &instance, &run).await,
            Request::Logs { service, instance, lines } => here.logs(call, &service, &instance, lines).await,
            Request::Lock { key, owner, lease_ms } => {
                let before = local.lock_owner(call, &key).await?;
                let was_ours = before.is_some_and(|held| held.owner.run == owner.run);
                let epoch = local.lock(call, &key, &owner, Duration::from_millis(lease_ms)).await?;
                Ok(Reply::Locked { epoch, was_ours })
            }
            Request::RaiseLock { key, owner, epoch } => {
                local.leases().raise(&key, &owner, epoch, call.deadline, call.cancel).await?;
                Ok(Reply::Nothing)
            }
            Request::Unlock { key, owner } => {
                local.unlock(call, &key, &owner).await?;
                Ok(Reply::Nothing)
            }
            Request::LockOwner { key } => Ok(Reply::Owner { owner: local.lock_owner(call, &key).await? }),
            Request::Router { dir, ask } => {
                router::serve(call, self.proxy, &self.dir, dir.as_deref(), *ask).await
            }
            request => serve_transport(call, request, upload, &self.masker).await,
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Fault::new("internal", format!("a task of the agent ended early: {error}"))),
    }
}

/// The bytes that belong to a call, as they come.
pub(crate) struct Upload {
    id: u64,
    from: mpsc::Receiver<Vec<u8>>,
    out: mpsc::Sender<FromAgent>,
}

impl Upload {
    /// The next of them; `None` at the end. Whoever sends them hears that they were taken, and sends more.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        let chunk = self.from.recv().await?;
        // Nobody hears it any more: the connection has ended, and the call is cancelled.
        let _ = self.out.send(FromAgent::Took { id: self.id, bytes: chunk.len() }).await;
        Some(chunk)
    }
}

/// Hands the bytes of an upload to work on a thread of its own, which is never left waiting: it comes to an end when the call is
/// cancelled or out of time, and when nothing has come for too long.
async fn received<T: Send + 'static>(
    call: Call<'_>,
    mut upload: Upload,
    idle: Duration,
    work: impl FnOnce(&mut Chunks) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let (chunks, from) = mpsc::channel(1);
    let feed = async {
        let forward = async {
            loop {
                let next = tokio::select! {
                    // It has failed, or has all that it wants.
                    () = chunks.closed() => return Ok(()),
                    next = tokio::time::timeout(idle, upload.next()) => next,
                };
                match next {
                    Err(_) => {
                        let text = format!("no bytes of the upload came for {} s", idle.as_secs());
                        return Err(Fault::new("timed-out", text).transient());
                    }
                    Ok(None) => return Ok(()),
                    Ok(Some(chunk)) => {
                        if chunks.send(Ok(chunk)).await.is_err() {
                            return Ok(());
                        }
                    }
                }
            }
        };
        let fed = tokio::select! {
            fed = tokio::time::timeout(call.deadline, forward) => fed.unwrap_or_else(|_| {
                Err(Fault::new("timed-out", "the upload took longer than it was given"))
            }),
            () = call.cancel.cancelled() => Err(Fault::new("cancelled", "cancelled")),
        };
        if let Err(fault) = &fed {
            // What came so far must not be taken for all of it. The work may have ended meanwhile.
            let _ = chunks.send(Err(io::Error::other(fault.message.clone()))).await;
        }
        drop(chunks);
        fed
    };
    let work = blocking(move || work(&mut Chunks { from, chunk: Vec::new(), at: 0 }));
    let (fed, done) = tokio::join!(feed, work);
    fed?;
    done
}

/// The chunks of an upload as a reader, for a thread that may wait.
struct Chunks {
    from: mpsc::Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    at: usize,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() {
            match self.from.blocking_recv() {
                Some(chunk) => (self.chunk, self.at) = (chunk?, 0),
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.chunk.len() - self.at);
        buffer[..count].copy_from_slice(&self.chunk[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// What a call of the local target has of the outside: all of it is at the other end of the connection.
struct Ports {
    id: u64,
    agent: Arc<Agent>,
    cancelled: watch::Receiver<bool>,
}

impl Sink for Ports {
    fn output(&self, stream: Stream, line: &str) {
        let error = stream == Stream::Stderr;
        // A full queue drops output rather than hold up the call.
        let _ = self.agent.out.try_send(FromAgent::Output { id: self.id, error, line: line.to_owned() });
    }

    fn progress(&self, text: &str) {
        let _ = self.agent.out.try_send(FromAgent::Progress { id: self.id, text: text.to_owned() });
    }
}

impl Cancel for Ports {
    fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow()
    }

    fn cancelled(&self) -> BoxFuture<'_, ()> {
        let mut cancelled = self.cancelled.clone();
        Box::pin(async move {
            if cancelled.wait_for(|cancelled| *cancelled).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

impl Secrets for Ports {
    fn resolve<'a>(&'a self, name: &'a str) -> PortResult<'a, SecretValue> {
        Box::pin(async move {
            let (sender, receiver) = oneshot::channel();
            self.agent.with(self.id, |doing| doing.secrets.entry(name.to_owned()).or_default().push(sender));
            self.agent.say(FromAgent::NeedsSecret { id: self.id, name: name.to_owned() }).await;
            let answer = tokio::select! {
                answer = receiver => answer.ok(),
                () = self.cancelled() => None,
            };
            match answer {
                Some(value) => value.map(SecretValue::new),
                None => Err(Fault::new("cancelled", format!("nobody is there to tell the secret `{name}`"))),
            }
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::quiet::{Quiet, call};

    const LATE: Duration = Duration::from_secs(60);

    /// An upload of which nothing comes but what is sent here.
    pub(crate) fn upload() -> (mpsc::Sender<Vec<u8>>, mpsc::Receiver<FromAgent>, Upload) {
        let ((chunks, from), (out, said)) = (mpsc::channel(CHUNKS), mpsc::channel(OUTGOING));
        (chunks, said, Upload { id: 1, from, out })
    }

    /// Reads to the end, and says so where it could not.
    fn read_all(bytes: &mut Chunks) -> Result<Vec<u8>, Fault> {
        let mut all = Vec::new();
        match bytes.read_to_end(&mut all) {
            Ok(_) => Ok(all),
            Err(error) => Err(Fault::new("broken", error.to_string())),
        }
    }

    #[tokio::test]
    async fn an_upload_comes_whole_and_each_part_is_acknowledged() {
        let (chunks, mut said, upload) = upload();
        let feed = async move {
            for part in ["ab", "cde"] {
                chunks.send(part.into()).await.unwrap();
            }
        };
        let quiet = Quiet::default();
        let reading = received(call(&quiet, LATE), upload, LATE, read_all);
        let (all, ()) = tokio::join!(reading, feed);
        assert_eq!(all.unwrap(), b"abcde");
        for expected in [2, 3] {
            assert!(matches!(said.recv().await, Some(FromAgent::Took { id: 1, bytes }) if bytes == expected));
        }
    }

    /// The sender is there and sends nothing: no thread is left waiting for it.
    #[tokio::test]
    async fn an_upload_that_stands_still_ends() {
        let quiet = Quiet::default();
        let soon = Duration::from_millis(50);
        for (deadline, idle, said) in [(soon, LATE, "longer"), (LATE, soon, "no bytes")] {
            let (chunks, _said, upload) = upload();
            chunks.send(b"ab".to_vec()).await.unwrap();
            let fault = received(call(&quiet, deadline), upload, idle, read_all).await.unwrap_err();
            assert_eq!(fault.kind, "timed-out");
            assert!(fault.message.contains(said), "{}", fault.message);
            drop(chunks);
        }
        let (chunks, _said, upload) = upload();
        quiet.cancel();
        let fault = received(call(&quiet, LATE), upload, LATE, read_all).await.unwrap_err();
        assert_eq!(fault.kind, "cancelled");
        drop(chunks);
    }

    #[tokio::test]
    async fn work_that_fails_does_not_wait_for_the_rest_of_its_upload() {
        let (chunks, _said, upload) = upload();
        let quiet = Quiet::default();
        let fails = |_: &mut Chunks| Err::<(), _>(Fault::new("disk-full", "no space is left"));
        let fault = received(call(&quiet, LATE), upload, LATE, fails).await.unwrap_err();
        assert_eq!(fault.kind, "disk-full");
        drop(chunks);
    }
}
