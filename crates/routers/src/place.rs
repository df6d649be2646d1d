//! A place for tests: a folder of this machine, and a router that says what it is told to say.
#![allow(clippy::unwrap_used, reason = "a test says that something is wrong by panicking")]

use cdpipe_model::action::{Block, StepRef};
use cdpipe_model::event::Stream;
use cdpipe_model::fault::Fault;
use cdpipe_model::id::EffectId;
use cdpipe_model::ports::{BoxFuture, Call, Cancel, PortResult, Secrets, Sink};
use cdpipe_model::secret::SecretValue;
use cdpipe_model::transport::{Endpoint, Ran, Transport};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// Answers a request in its folder; `None`: nobody listens.
type Says = Box<dyn Fn(&Path, &str) -> Option<String> + Send + Sync>;
/// What a script says instead of being run; `None`: it is run.
type Lists = Box<dyn Fn(&[String]) -> Option<String> + Send + Sync>;

pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    says: Says,
    lists: Lists,
}

impl Place {
    pub(crate) fn new(
        says: impl Fn(&Path, &str) -> Option<String> + Send + Sync + 'static,
        lists: impl Fn(&[String]) -> Option<String> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { folder: tempfile::tempdir().unwrap(), says: Box::new(says), lists: Box::new(lists) })
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

/// A call of this epoch with so much time.
pub(crate) fn call(epoch: u64, deadline: Duration) -> Call<'static> {
    let effect: &'static EffectId = Box::leak(Box::new(EffectId("run/1".to_owned())));
    let step: &'static StepRef = Box::leak(Box::new(StepRef { node: None, block: Block::Main, index: 0 }));
    Call { effect, step, deadline, sink: &Quiet, cancel: &Quiet, secrets: &Quiet, epoch }
}

struct Quiet;

impl Sink for Quiet {
    fn output(&self, _: Stream, _: &str) {}
    fn progress(&self, _: &str) {}
}

impl Cancel for Quiet {
    fn is_cancelled(&self) -> bool {
        false
    }

    fn cancelled(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

impl Secrets for Quiet {
    fn resolve<'a>(&'a self, name: &'a str) -> PortResult<'a, SecretValue> {
        Box::pin(async move { Err(Fault::new("secret-missing", name)) })
    }
}

impl Transport for Place {
    fn place(&self) -> String {
        "a test".to_owned()
    }

    fn read<'a>(&'a self, _: Call<'a>, path: &'a str) -> PortResult<'a, Option<Vec<u8>>> {
        Box::pin(async move { Ok(std::fs::read(path).ok()) })
    }

    fn write<'a>(&'a self, _: Call<'a>, path: &'a str, bytes: &'a [u8], _: u32) -> PortResult<'a, ()> {
        Box::pin(async move {
            std::fs::write(path, bytes).unwrap();
            Ok(())
        })
    }

    fn remove<'a>(&'a self, _: Call<'a>, path: &'a str) -> PortResult<'a, ()> {
        Box::pin(async move {
            std::fs::remove_file(path).unwrap();
            Ok(())
        })
    }

    fn exec<'a>(&'a self, _: Call<'a>, argv: &'a [String], stdin: &'a [u8]) -> PortResult<'a, Ran> {
        Box::pin(async move {
            if let Some(stdout) = (self.lists)(argv) {
                return Ok(Ran { status: 0, stdout, stderr: String::new() });
            }
            let mut command = Command::new(&argv[0]);
            command.args(&argv[1..]).current_dir(self.folder.path());
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            // One that does not read has its status to say why.
            let _ = child.stdin.take().unwrap().write_all(stdin);
            let output = child.wait_with_output().unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            Ok(Ran {
                status: output.status.code().unwrap_or(128),
                stdout: text(&output.stdout),
                stderr: text(&output.stderr),
            })
        })
    }

    fn exchange<'a>(&'a self, _: Call<'a>, _: &'a Endpoint, request: &'a [u8]) -> PortResult<'a, Vec<u8>> {
        Box::pin(async move {
            match (self.says)(self.folder.path(), std::str::from_utf8(request).unwrap()) {
                Some(answer) => Ok(answer.into_bytes()),
                None => Err(Fault::new("unreachable", "nobody listens").transient()),
            }
        })
    }
}
