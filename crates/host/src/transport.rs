//! The `Transport` of this machine: its files, programs and sockets, for routers that are configured by files or runtime sockets.

use crate::durable::{io_fault, sync_parent, temporary_beside};
use crate::mask::Masker;
use crate::process;
use cdpipe_model::Fault;
use cdpipe_model::ports::{Call, PortResult};
use cdpipe_model::transport::{Endpoint, Ran, Transport};
use rustix::process::Signal;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The largest file, and the longest answer of a socket.
const LARGEST_BYTES: usize = 4 << 20;
/// The most that is kept of one stream of a program.
const OUTPUT_BYTES: usize = 1 << 20;
/// How long output is waited for after its program has ended: something it left behind may hold it open.
const LINGER: Duration = Duration::from_millis(500);

/// This machine. Relative paths are relative to `base`, which is also where programs run.
#[derive(Debug, Clone)]
pub struct LocalTransport {
    place: String,
    base: PathBuf,
    masker: Masker,
    hidden_env: Vec<String>,
}

impl LocalTransport {
    /// `base` is the pipeline's folder; no program gets a variable of `hidden_env` (the sources of secrets).
    pub fn new(base: PathBuf, masker: Masker, hidden_env: Vec<String>) -> Self {
        Self { place: "this machine".to_owned(), base, masker, hidden_env }
    }

    /// What faults call this machine: who asks it from another one knows it by another name.
    #[must_use]
    pub fn called(mut self, place: &str) -> Self {
        place.clone_into(&mut self.place);
        self
    }

    fn at(&self, path: &str) -> PathBuf {
        self.base.join(path)
    }

    async fn bounded<T>(
        &self,
        call: Call<'_>,
        what: &str,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        tokio::select! {
            biased;
            done = tokio::time::timeout(call.deadline, work) => done.unwrap_or_else(|_| {
                let ms = call.deadline.as_millis();
                Err(Fault::new("timed-out", format!("{what} on {} took longer than {ms} ms", self.place)).transient())
            }),
            () = call.cancel.cancelled() => {
                Err(Fault::new("cancelled", format!("cancelled while waiting for {what}")))
            }
        }
    }

    async fn run(&self, argv: &[String], stdin: &[u8]) -> Result<Ran, Fault> {
        let [program, arguments @ ..] = argv else {
            return Err(Fault::new("command-failed", "expected a program to run, found an empty list"));
        };
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).current_dir(&self.base).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for name in &self.hidden_env {
            command.env_remove(name);
        }
        let mut child = command.spawn().map_err(|error| {
            let fault = Fault::new("command-failed", format!("cannot start `{program}`: {error}"));
            match error.kind() {
                io::ErrorKind::NotFound => {
                    fault.help(format!("install `{program}`, or say where it is with its whole path"))
                }
                _ => fault,
            }
        })?;
        // Armed until it was waited for: a call that is dropped or out of time leaves nothing of the group.
        let mut group = Group(child.id());
        let feed = feed(child.stdin.take(), stdin);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let status = {
            let streams = async {
                tokio::join!(feed, keep(stdout, &mut out), keep(stderr, &mut err));
            };
            tokio::pin!(streams);
            let mut silent = false;
            loop {
                tokio::select! {
                    status = child.wait() => {
                        if !silent {
                            let _ = tokio::time::timeout(LINGER, &mut streams).await;
                        }
                        break status;
                    }
                    () = &mut streams, if !silent => silent = true,
                }
            }
        };
        group.0 = None;
        let status = status
            .map_err(|error| Fault::new("command-failed", format!("cannot wait for `{program}`: {error}")))?;
        let text = |bytes: &[u8]| self.masker.mask(&String::from_utf8_lossy(bytes)).into_owned();
        Ok(Ran {
            status: status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1),
            stdout: text(&out),
            stderr: text(&err),
        })
    }
}

/// A process group that is killed unless its leader was waited for.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0.take() {
            process::signal_group(group, Signal::KILL);
        }
    }
}

async fn feed(stdin: Option<tokio::process::ChildStdin>, bytes: &[u8]) {
    if let Some(mut stdin) = stdin {
        // A program that does not read its input is no error.
        let _ = stdin.write_all(bytes).await;
    }
}

/// Reads to the end and keeps the beginning.
async fn keep(from: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut chunk = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        let room = OUTPUT_BYTES.saturating_sub(into.len()).min(count);
        into.extend_from_slice(chunk.get(..room).unwrap_or_default());
    }
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, Fault> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_fault("read", path, &error)),
    };
    let mut bytes = Vec::new();
    file.take(LARGEST_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| io_fault("read", path, &error))?;
    if bytes.len() > LARGEST_BYTES {
        return Err(Fault::new(
            "too-large",
            format!("expected a file of at most 4 MiB at {}, found a larger one", path.display()),
        ));
    }
    Ok(Some(bytes))
}

fn write_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // A link leads to the file that is meant; renaming over the link would cut it off.
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let there = std::fs::metadata(&path).ok();
    let temporary = temporary_beside(&path);
    let written = (|| {
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        let mode = there.as_ref().map_or(mode, |there| there.mode() & 0o7777);
        // Not what the umask leaves of it.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        if let Some(there) = &there {
            let own = file.metadata()?;
            if (own.uid(), own.gid()) != (there.uid(), there.gid()) {
                std::os::unix::fs::fchown(&file, Some(there.uid()), Some(there.gid()))?;
            }
        }
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        sync_parent(&path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    stream.take(LARGEST_BYTES as u64).read_to_end(&mut answer).await?;
    Ok(answer)
}

impl Transport for LocalTransport {
    fn place(&self) -> String {
        self.place.clone()
    }

    fn read<'a>(&'a self, call: Call<'a>, path: &'a str) -> PortResult<'a, Option<Vec<u8>>> {
        let path = self.at(path);
        Box::pin(self.bounded(call, "reading a file", blocking(move || read_file(&path))))
    }

    fn write<'a>(&'a self, call: Call<'a>, path: &'a str, bytes: &'a [u8], mode: u32) -> PortResult<'a, ()> {
        let (path, bytes) = (self.at(path), bytes.to_vec());
        let work = move || write_file(&path, &bytes, mode).map_err(|error| io_fault("write", &path, &error));
        Box::pin(self.bounded(call, "writing a file", blocking(work)))
    }

    fn remove<'a>(&'a self, call: Call<'a>, path: &'a str) -> PortResult<'a, ()> {
        let path = self.at(path);
        let work = move || match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_fault("remove", &path, &error)),
            _ => Ok(()),
        };
        Box::pin(self.bounded(call, "removing a file", blocking(work)))
    }

    fn exec<'a>(&'a self, call: Call<'a>, argv: &'a [String], stdin: &'a [u8]) -> PortResult<'a, Ran> {
        Box::pin(self.bounded(call, "a command", self.run(argv, stdin)))
    }

    fn exchange<'a>(
        &'a self,
        call: Call<'a>,
        to: &'a Endpoint,
        request: &'a [u8],
    ) -> PortResult<'a, Vec<u8>> {
        Box::pin(self.bounded(call, "an answer", async move {
            let (name, answer) = match to {
                Endpoint::Unix(path) => {
                    let path = self.at(path);
                    let stream = tokio::net::UnixStream::connect(&path).await;
                    let name = path.display().to_string();
                    (name, stream.map(|stream| Box::pin(ask(stream, request)) as Asked<'_>))
                }
                Endpoint::Tcp(address) => {
                    let stream = tokio::net::TcpStream::connect(address).await;
                    (address.clone(), stream.map(|stream| Box::pin(ask(stream, request)) as Asked<'_>))
                }
            };
            let unreachable = |error: io::Error| {
                Fault::new("unreachable", format!("{name} on {} does not answer: {error}", self.place))
                    .transient()
            };
            answer.map_err(unreachable)?.await.map_err(unreachable)
        }))
    }
}

type Asked<'a> = std::pin::Pin<Box<dyn Future<Output = io::Result<Vec<u8>>> + Send + 'a>>;

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Fault::new("internal", format!("work with a file broke off: {error}"))),
    }
}
