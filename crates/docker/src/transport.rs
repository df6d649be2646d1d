//! Files, commands and sockets inside a container: for a router that runs in one.
//!
//! Files go through the engine's archive API, which replaces a file in two steps; so a file is put beside its place and moved there by the
//! container's own `mv`, which renames.

use crate::archive::{self, File};
use crate::client::{Engine, Session};
use crate::exec::{Command, run};
use bollard::query_parameters::{DownloadFromContainerOptions, UploadToContainerOptions};
use bytes::Bytes;
use cdpipe_host::Masker;
use cdpipe_model::Fault;
use cdpipe_model::event::Stream;
use cdpipe_model::ports::{Call, PortResult};
use cdpipe_model::transport::{Endpoint, Ran, Transport};
use futures_util::StreamExt as _;

const FILE_LIMIT: usize = 4 << 20;
const OUTPUT_LIMIT: usize = 1 << 20;

/// Sends standard input to host and port, from inside: a container's loopback is its own, and its addresses may not be reachable from
/// where cdpipe runs. With what the images of routers have.
const TALK: &str = r#"if command -v nc >/dev/null; then exec nc -w 5 "$1" "$2"; fi
if command -v socat >/dev/null; then exec socat -t 5 - "TCP:$1:$2"; fi
if command -v bash >/dev/null; then exec bash -c 'exec 3<>"/dev/tcp/$1/$2" && cat >&3 && cat <&3' cdpipe "$1" "$2"; fi
if command -v curl >/dev/null; then exec curl --silent --show-error --max-time 5 "telnet://$1:$2"; fi
exit 70
"#;
/// How [`TALK`] ends where the image has nothing to talk with.
const NO_TALKER: i32 = 70;

/// A container by its name.
#[derive(Debug, Clone)]
pub struct InContainer {
    engine: Engine,
    container: String,
    masker: Masker,
}

impl InContainer {
    /// A container of this engine.
    pub fn new(engine: Engine, container: impl Into<String>, masker: Masker) -> Self {
        Self { engine, container: container.into(), masker }
    }

    async fn file(&self, session: &Session<'_>, path: &str) -> Result<Option<File>, Fault> {
        let options = DownloadFromContainerOptions { path: path.to_owned() };
        let mut pieces = std::pin::pin!(session.api.download_from_container(&self.container, Some(options)));
        let mut tar = Vec::new();
        loop {
            let next = async { Ok(pieces.next().await) };
            match session.ask("read a file in a container", next).await? {
                None => break,
                Some(Ok(piece)) => tar.extend_from_slice(&piece),
                Some(Err(error)) => {
                    let fault = session.fault("read a file in a container", &error);
                    let no_file = fault.kind == "not-found" && !fault.message.contains("No such container");
                    return if no_file { Ok(None) } else { Err(fault) };
                }
            }
            if tar.len() > FILE_LIMIT + 4096 {
                return Err(Fault::new(
                    "file-too-large",
                    format!("{path} in {} is larger than 4 MiB", self.place()),
                ));
            }
        }
        match archive::unpack(&tar) {
            Some(file) => Ok(Some(file)),
            None => {
                Err(Fault::new("file-unreadable", format!("{path} in {} is no regular file", self.place())))
            }
        }
    }

    async fn put(&self, session: &Session<'_>, path: &str, bytes: &[u8], mode: u32) -> Result<(), Fault> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let folder = if folder.is_empty() { "/" } else { folder };
        let former = self.file(session, path).await?;
        let file = match former {
            Some(former) => File { bytes: bytes.to_vec(), ..former },
            None => File { bytes: bytes.to_vec(), mode, uid: 0, gid: 0 },
        };
        let beside = format!(".{name}.cdpipe");
        let tar = archive::pack(&beside, &file)
            .ok_or_else(|| Fault::new("bad-value", format!("{path} is too long a name for a file")))?;
        let options = UploadToContainerOptions { path: folder.to_owned(), ..Default::default() };
        let body = bollard::body_full(Bytes::from(tar));
        let upload = session.api.upload_to_container(&self.container, Some(options), body);
        session.ask("write a file in a container", upload).await?;
        let argv = ["mv".to_owned(), "-f".to_owned(), format!("{folder}/{beside}"), path.to_owned()];
        let ran = self.ran(session, &argv, &[]).await?;
        if ran.ok() {
            return Ok(());
        }
        Err(Fault::new(
            "file-unwritable",
            format!(
                "{path} in {} can't be replaced: `mv` ended with {}: {}",
                self.place(),
                ran.status,
                ran.stderr.trim()
            ),
        )
        .help("the image must have `mv`, and the folder must be writable"))
    }

    async fn ran(&self, session: &Session<'_>, argv: &[String], stdin: &[u8]) -> Result<Ran, Fault> {
        let command = Command {
            container: &self.container,
            argv: argv.to_vec(),
            env: Vec::new(),
            dir: None,
            stdin: (!stdin.is_empty()).then_some(stdin),
        };
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = run(session, &command, |stream, bytes| {
            let kept = if stream == Stream::Stderr { &mut stderr } else { &mut stdout };
            let room = OUTPUT_LIMIT.saturating_sub(kept.len());
            kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        })
        .await?;
        let text = |bytes: Vec<u8>| self.masker.mask(&String::from_utf8_lossy(&bytes)).into_owned();
        Ok(Ran {
            status: i32::try_from(status).unwrap_or(i32::MAX),
            stdout: text(stdout),
            stderr: text(stderr),
        })
    }

    async fn talk(&self, session: &Session<'_>, to: &Endpoint, request: &[u8]) -> Result<Vec<u8>, Fault> {
        let unreachable = |why: String| {
            Fault::new("unreachable", format!("{to:?} in {} can't be reached: {why}", self.place()))
        };
        match to {
            Endpoint::Unix(path) => {
                let argv = ["socat".to_owned(), "-".to_owned(), format!("UNIX-CONNECT:{path}")];
                let ran = self.ran(session, &argv, request).await?;
                if ran.ok() {
                    Ok(ran.stdout.into_bytes())
                } else {
                    Err(unreachable(ran.stderr.trim().to_owned()))
                }
            }
            Endpoint::Tcp(address) => {
                let (host, port) = address.rsplit_once(':').unwrap_or((address, "80"));
                let argv = ["sh", "-c", TALK, "cdpipe", host, port].map(str::to_owned);
                let ran = self.ran(session, &argv, request).await?;
                match ran.status {
                    0 => Ok(ran.stdout.into_bytes()),
                    NO_TALKER => Err(Fault::new(
                        "command-failed",
                        format!(
                            "{} has none of nc, socat, bash and curl, so {address} in it can't be asked",
                            self.place()
                        ),
                    )
                    .help("use an image that has one of them; those of nginx and haproxy have")),
                    // What was said before the other side reset the connection counts.
                    _ if !ran.stdout.is_empty() => Ok(ran.stdout.into_bytes()),
                    _ => Err(unreachable(ran.stderr.trim().to_owned())),
                }
            }
        }
    }
}

impl Transport for InContainer {
    fn place(&self) -> String {
        format!("container {}", self.container)
    }

    fn read<'a>(&'a self, call: Call<'a>, path: &'a str) -> PortResult<'a, Option<Vec<u8>>> {
        Box::pin(self.engine.patiently(call, move |session| async move {
            Ok(self.file(&session, path).await?.map(|file| file.bytes))
        }))
    }

    fn write<'a>(&'a self, call: Call<'a>, path: &'a str, bytes: &'a [u8], mode: u32) -> PortResult<'a, ()> {
        Box::pin(
            self.engine
                .patiently(call, move |session| async move { self.put(&session, path, bytes, mode).await }),
        )
    }

    fn remove<'a>(&'a self, call: Call<'a>, path: &'a str) -> PortResult<'a, ()> {
        Box::pin(self.engine.patiently(call, move |session| async move {
            let ran = self.ran(&session, &["rm".to_owned(), "-f".to_owned(), path.to_owned()], &[]).await?;
            if ran.ok() {
                return Ok(());
            }
            Err(Fault::new(
                "file-unwritable",
                format!("{path} in {} can't be removed: {}", self.place(), ran.stderr.trim()),
            ))
        }))
    }

    fn exec<'a>(&'a self, call: Call<'a>, argv: &'a [String], stdin: &'a [u8]) -> PortResult<'a, Ran> {
        Box::pin(async move {
            let session = self.engine.session(call).await?;
            self.ran(&session, argv, stdin).await
        })
    }

    fn exchange<'a>(
        &'a self,
        call: Call<'a>,
        to: &'a Endpoint,
        request: &'a [u8],
    ) -> PortResult<'a, Vec<u8>> {
        Box::pin(
            self.engine.patiently(call, move |session| async move { self.talk(&session, to, request).await }),
        )
    }
}
