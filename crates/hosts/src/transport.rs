//! Files, commands and sockets of one machine: what routers there are driven through. Both sides of it.

use crate::agent::Upload;
use crate::hosts::Hosts;
use crate::protocol::{FILE_LIMIT_BYTES, Reply, Request, from_hex, to_hex};
use cdpipe_host::{LocalTransport, Masker};
use cdpipe_model::Fault;
use cdpipe_model::ports::{Call, PortResult};
use cdpipe_model::transport::{Endpoint, Ran, Transport};
use std::path::PathBuf;
use std::sync::Arc;

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

/// The agent's side: this machine's own files, commands and sockets. Relative paths are of the folder in which the agent was started.
pub(crate) async fn serve(
    call: Call<'_>,
    request: Request,
    mut upload: Upload,
    masker: &Masker,
) -> Result<Reply, Fault> {
    let here = LocalTransport::new(PathBuf::from("."), masker.clone(), Vec::new()).called("the machine");
    let bytes = |bytes: Option<Vec<u8>>| Reply::Bytes { hex: bytes.map(|bytes| to_hex(&bytes)) };
    match request {
        Request::Read { path } => here.read(call, &path).await.map(bytes),
        Request::Write { path, mode } => {
            let whole = whole(call, &mut upload).await?;
            here.write(call, &path, &whole, mode).await.map(|()| Reply::Nothing)
        }
        Request::RemoveFile { path } => here.remove(call, &path).await.map(|()| Reply::Nothing),
        Request::Command { argv } => {
            let stdin = whole(call, &mut upload).await?;
            let Ran { status, stdout, stderr } = here.exec(call, &argv, &stdin).await?;
            Ok(Reply::Ran { status, stdout, stderr })
        }
        Request::Exchange { unix, to } => {
            let request = whole(call, &mut upload).await?;
            let to = if unix { Endpoint::Unix(to) } else { Endpoint::Tcp(to) };
            here.exchange(call, &to, &request).await.map(|answer| bytes(Some(answer)))
        }
        _ => Err(Fault::new("unsupported", "this agent does not know what it was asked")),
    }
}

/// All that belongs to the call.
async fn whole(call: Call<'_>, upload: &mut Upload) -> Result<Vec<u8>, Fault> {
    let read = async {
        let mut bytes = Vec::new();
        while let Some(chunk) = upload.next().await {
            if bytes.len() + chunk.len() > FILE_LIMIT_BYTES {
                return Err(Fault::new("too-large", format!("more than {FILE_LIMIT_BYTES} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    };
    tokio::select! {
        read = tokio::time::timeout(call.deadline, read) => {
            read.unwrap_or_else(|_| Err(Fault::new("timed-out", "the upload took longer than it was given")))
        }
        () = call.cancel.cancelled() => Err(Fault::new("cancelled", "cancelled")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::upload;
    use crate::quiet::{Quiet, call};
    use std::time::{Duration, Instant};

    async fn command(script: &str) -> Result<Reply, Fault> {
        let (chunks, _said, bytes) = upload();
        drop(chunks);
        let quiet = Quiet::default();
        let request = Request::Command { argv: ["sh", "-c", script].map(str::to_owned).into() };
        serve(call(&quiet, Duration::from_secs(30)), request, bytes, &Masker::default()).await
    }

    /// What a command leaves behind, as `nginx` does that starts its workers, keeps its streams open, and lives on.
    #[tokio::test]
    async fn a_command_is_not_waited_for_longer_than_it_runs_and_what_it_left_lives() {
        let begun = Instant::now();
        let Ok(Reply::Ran { status: 0, stdout, .. }) = command("sleep 20 & echo $!").await else {
            panic!("it ran")
        };
        assert!(begun.elapsed() < Duration::from_secs(15), "its child was waited for");
        let child = stdout.trim();
        let alive = std::path::Path::new("/proc").join(child).exists();
        let _ = std::process::Command::new("kill").arg(child).status();
        assert!(alive, "its child was killed");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_said_so() {
        let (chunks, _said, bytes) = upload();
        drop(chunks);
        let quiet = Quiet::default();
        let request = Request::Command { argv: vec!["no-such-program".into()] };
        let fault = serve(call(&quiet, Duration::from_secs(30)), request, bytes, &Masker::default()).await;
        assert!(fault.unwrap_err().message.contains("no-such-program"));
    }
}
