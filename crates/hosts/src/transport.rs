//! Files, commands and sockets of one machine: what routers there are driven through. Both sides of it.

use crate::agent::Upload;
use crate::hosts::Hosts;
use crate::protocol::{FILE_LIMIT_BYTES, OUTPUT_LIMIT_BYTES, Reply, Request, from_hex, to_hex};
use cdpipe_host::Masker;
use cdpipe_model::Fault;
use cdpipe_model::ports::{Call, PortResult};
use cdpipe_model::transport::{Endpoint, Ran, Transport};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// One machine of a target, or one that is reached as its machines are.
pub struct HostTransport {
    hosts: Arc<Hosts>,
}

impl HostTransport {
    /// The first machine of these; make one for it alone.
    pub fn new(hosts: Arc<Hosts>) -> Self {
        Self { hosts }
    }

    async fn ask(&self, call: Call<'_>, request: Request, upload: Vec<u8>) -> Result<Reply, Fault> {
        self.hosts.ask_first(call, request, Some(upload)).await
    }
}

fn strange() -> Fault {
    Fault::new("internal", "the agent answered something else than it was asked")
}

impl Transport for HostTransport {
    fn place(&self) -> String {
        self.hosts.first_name()
    }

    fn read<'a>(&'a self, call: Call<'a>, path: &'a str) -> PortResult<'a, Option<Vec<u8>>> {
        Box::pin(async move {
            match self.ask(call, Request::Read { path: path.to_owned() }, Vec::new()).await? {
                Reply::Bytes { hex: None } => Ok(None),
                Reply::Bytes { hex: Some(hex) } => from_hex(&hex).map(Some).ok_or_else(strange),
                _ => Err(strange()),
            }
        })
    }

    fn write<'a>(&'a self, call: Call<'a>, path: &'a str, bytes: &'a [u8], mode: u32) -> PortResult<'a, ()> {
        Box::pin(async move {
            self.ask(call, Request::Write { path: path.to_owned(), mode }, bytes.to_vec()).await.map(|_| ())
        })
    }

    fn remove<'a>(&'a self, call: Call<'a>, path: &'a str) -> PortResult<'a, ()> {
        Box::pin(async move {
            self.ask(call, Request::RemoveFile { path: path.to_owned() }, Vec::new()).await.map(|_| ())
        })
    }

    fn exec<'a>(&'a self, call: Call<'a>, argv: &'a [String], stdin: &'a [u8]) -> PortResult<'a, Ran> {
        Box::pin(async move {
            match self.ask(call, Request::Command { argv: argv.to_vec() }, stdin.to_vec()).await? {
                Reply::Ran { status, stdout, stderr } => Ok(Ran { status, stdout, stderr }),
                _ => Err(strange()),
            }
        })
    }

    fn exchange<'a>(
        &'a self,
        call: Call<'a>,
        to: &'a Endpoint,
        request: &'a [u8],
    ) -> PortResult<'a, Vec<u8>> {
        Box::pin(async move {
            let (unix, to) = match to {
                Endpoint::Unix(path) => (true, path.clone()),
                Endpoint::Tcp(address) => (false, address.clone()),
            };
            match self.ask(call, Request::Exchange { unix, to }, request.to_vec()).await? {
                Reply::Bytes { hex: Some(hex) } => from_hex(&hex).ok_or_else(strange),
                _ => Err(strange()),
            }
        })
    }
}

/// The agent's side.
pub(crate) async fn serve(
    call: Call<'_>,
    request: Request,
    upload: Upload,
    masker: &Masker,
) -> Result<Reply, Fault> {
    let work = async {
        match request {
            Request::Read { path } => read(&path),
            Request::Write { path, mode } => write(&path, mode, &whole(upload).await?),
            Request::RemoveFile { path } => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(unusable("remove", &path, &error))
                }
                _ => Ok(Reply::Nothing),
            },
            Request::Command { argv } => command(&argv, whole(upload).await?, masker).await,
            Request::Exchange { unix, to } => exchange(unix, &to, &whole(upload).await?).await,
            _ => Err(Fault::new("unsupported", "this agent does not know what it was asked")),
        }
    };
    tokio::select! {
        done = tokio::time::timeout(call.deadline, work) => {
            done.unwrap_or_else(|_| Err(Fault::new("timed-out", "the machine took longer than it was given")))
        }
        () = call.cancel.cancelled() => Err(Fault::new("cancelled", "cancelled")),
    }
}

async fn whole(mut upload: Upload) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    while let Some(chunk) = upload.next().await {
        if bytes.len() + chunk.len() > FILE_LIMIT_BYTES {
            return Err(Fault::new("too-large", format!("more than {FILE_LIMIT_BYTES} bytes")));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn unusable(what: &str, path: &str, error: &io::Error) -> Fault {
    Fault::new("io", format!("cannot {what} {path}: {error}"))
}

fn read(path: &str) -> Result<Reply, Fault> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Reply::Bytes { hex: None }),
        Err(error) => return Err(unusable("read", path, &error)),
        Ok(metadata) if metadata.len() > FILE_LIMIT_BYTES as u64 => {
            return Err(Fault::new("too-large", format!("{path} has more than {FILE_LIMIT_BYTES} bytes")));
        }
        Ok(_) => {}
    }
    let bytes = std::fs::read(path).map_err(|error| unusable("read", path, &error))?;
    Ok(Reply::Bytes { hex: Some(to_hex(&bytes)) })
}

fn write(path: &str, mode: u32, bytes: &[u8]) -> Result<Reply, Fault> {
    // What a link points to is written, not the link: its owner wants it there.
    let place = std::fs::canonicalize(path).unwrap_or_else(|_| Path::new(path).to_owned());
    let failed = |error: io::Error| unusable("write", path, &error);
    let name = place.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let beside = place.with_file_name(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
    let former = std::fs::metadata(&place).ok();
    let written = || {
        let mode = former.as_ref().map_or(mode, |former| former.mode() & 0o7777);
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        if let Some(former) = &former {
            std::os::unix::fs::fchown(&file, Some(former.uid()), Some(former.gid()))?;
        }
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, &place)?;
        std::fs::File::open(place.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    written().map_err(|error| {
        let _ = std::fs::remove_file(&beside);
        failed(error)
    })?;
    Ok(Reply::Nothing)
}

async fn command(argv: &[String], stdin: Vec<u8>, masker: &Masker) -> Result<Reply, Fault> {
    let (program, args) =
        argv.split_first().ok_or_else(|| Fault::new("program-missing", "the command is empty"))?;
    let mut child = tokio::process::Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Fault::new("program-missing", format!("`{program}` can't be started: {error}")))?;
    let _group = Group(child.id());
    let (input, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut input) = input {
            // A program need not read what it is given.
            let _ = input.write_all(&stdin).await;
        }
    };
    let (status, (), stdout, stderr) = tokio::join!(child.wait(), feed, drained(stdout), drained(stderr));
    let status = status.map_err(|error| Fault::new("io", format!("`{program}` was lost: {error}")))?;
    let text = |bytes: Vec<u8>| masker.mask(&String::from_utf8_lossy(&bytes)).into_owned();
    Ok(Reply::Ran {
        status: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        stdout: text(stdout),
        stderr: text(stderr),
    })
}

/// Kills a group of processes when it goes, so that a cancelled command leaves none of its children.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0.and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?)) {
            // Mostly there is none any more.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

async fn drained(from: Option<impl tokio::io::AsyncRead + Unpin>) -> Vec<u8> {
    let (mut kept, mut buffer) = (Vec::new(), [0; 8192]);
    let Some(mut from) = from else { return kept };
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let room = OUTPUT_LIMIT_BYTES.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
    kept
}

async fn exchange(unix: bool, to: &str, request: &[u8]) -> Result<Reply, Fault> {
    let unreachable =
        |error: io::Error| Fault::new("unreachable", format!("nobody answers at {to}: {error}")).transient();
    let mut answer = Vec::new();
    let limit = FILE_LIMIT_BYTES as u64;
    if unix {
        let mut stream = tokio::net::UnixStream::connect(to).await.map_err(unreachable)?;
        stream.write_all(request).await.map_err(unreachable)?;
        stream.take(limit).read_to_end(&mut answer).await.map_err(unreachable)?;
    } else {
        let mut stream = tokio::net::TcpStream::connect(to).await.map_err(unreachable)?;
        stream.write_all(request).await.map_err(unreachable)?;
        stream.take(limit).read_to_end(&mut answer).await.map_err(unreachable)?;
    }
    Ok(Reply::Bytes { hex: Some(to_hex(&answer)) })
}
