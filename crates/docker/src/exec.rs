//! A command inside a container that runs: with its input, its output line by line, and its exit status.

use crate::client::Session;
use bollard::container::LogOutput;
use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::ExecConfig;
use cdpipe_model::Fault;
use cdpipe_model::event::Stream;
use futures_util::StreamExt as _;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;

/// After the last output, how long the engine may take to say how a command ended.
const STATUS_LIMIT: Duration = Duration::from_secs(10);

/// What to run.
pub(crate) struct Command<'a> {
    pub(crate) container: &'a str,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) dir: Option<String>,
    pub(crate) stdin: Option<&'a [u8]>,
}

/// Runs it to its end and answers its exit status. Output comes in pieces, as it comes.
pub(crate) async fn run(
    session: &Session<'_>,
    command: Command<'_>,
    mut output: impl FnMut(Stream, &[u8]),
) -> Result<i64, Fault> {
    let config = ExecConfig {
        attach_stdin: Some(command.stdin.is_some()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: Some(command.argv),
        env: Some(command.env),
        working_dir: command.dir,
        ..Default::default()
    };
    let made = session
        .ask("prepare a command in a container", session.api.create_exec(command.container, config))
        .await?;
    let options = StartExecOptions { detach: false, tty: false, output_capacity: Some(64 * 1024) };
    let started = session
        .ask("start a command in a container", session.api.start_exec(&made.id, Some(options)))
        .await?;
    if let StartExecResults::Attached { output: mut stream, mut input } = started {
        let feed = async {
            if let Some(bytes) = command.stdin {
                // A command that does not read its input has ended; its status says more.
                let _ = input.write_all(bytes).await;
            }
            let _ = input.shutdown().await;
        };
        let read = async {
            loop {
                let next = async { Ok(stream.next().await) };
                match session.ask_within("run a command in a container", session.left(), next).await? {
                    None => return Ok::<(), Fault>(()),
                    Some(Ok(LogOutput::StdErr { message })) => output(Stream::Stderr, &message),
                    Some(Ok(other)) => output(Stream::Stdout, &other.into_bytes()),
                    Some(Err(error)) => return Err(session.fault("run a command in a container", &error)),
                }
            }
        };
        let ((), result) = tokio::join!(feed, read);
        result?;
    }
    let begun = std::time::Instant::now();
    loop {
        let state = session.ask("say how a command ended", session.api.inspect_exec(&made.id)).await?;
        if let (Some(code), Some(false) | None) = (state.exit_code, state.running) {
            return Ok(code);
        }
        if begun.elapsed() > STATUS_LIMIT {
            return Err(Fault::new("engine-answer", "the engine does not say how a command ended"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Cuts pieces of output into lines.
#[derive(Default)]
pub(crate) struct Lines {
    rest: [Vec<u8>; 2],
}

impl Lines {
    /// A longer line is cut.
    const LONGEST: usize = 64 * 1024;

    pub(crate) fn feed(&mut self, stream: Stream, bytes: &[u8], mut each: impl FnMut(Stream, &str)) {
        let rest = &mut self.rest[usize::from(stream == Stream::Stderr)];
        for byte in bytes {
            if *byte == b'\n' || rest.len() >= Self::LONGEST {
                each(stream, String::from_utf8_lossy(rest).trim_end_matches('\r'));
                rest.clear();
            }
            if *byte != b'\n' {
                rest.push(*byte);
            }
        }
    }

    pub(crate) fn finish(self, mut each: impl FnMut(Stream, &str)) {
        for (stream, rest) in [Stream::Stdout, Stream::Stderr].into_iter().zip(self.rest) {
            if !rest.is_empty() {
                each(stream, &String::from_utf8_lossy(&rest));
            }
        }
    }
}
