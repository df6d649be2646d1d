//! A command inside a container that runs: with its input, its output line by line, and its exit status.

use crate::client::{Engine, Session, cancelled, is_away};
use bollard::container::LogOutput;
use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::ExecConfig;
use cdpipe_model::Fault;
use cdpipe_model::event::Stream;
use cdpipe_model::ports::Call;
use futures_util::StreamExt as _;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;

/// After the last output, how long the engine may take to say how a command ended.
const STATUS_LIMIT: Duration = Duration::from_secs(10);

/// How often one is looked after that is not heard any more.
const LOOK_EVERY: Duration = Duration::from_millis(200);

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
    command: &Command<'_>,
    mut output: impl FnMut(Stream, &[u8]),
) -> Result<i64, Fault> {
    let id = prepare(session, command).await?;
    listen(session, &id, command.stdin, &mut output).await?;
    ended(session, &id).await
}

/// The same through an engine that may go away for a while. The command goes on meanwhile: what it says then is lost, its exit status
/// is not, and it is never run twice.
pub(crate) async fn run_through(
    engine: &Engine,
    call: Call<'_>,
    command: &Command<'_>,
    mut output: impl FnMut(Stream, &[u8]),
) -> Result<i64, Fault> {
    let until = Instant::now() + call.deadline;
    let left = || Call { deadline: until.saturating_duration_since(Instant::now()), ..call };
    let id = engine.patiently(left(), |session| async move { prepare(&session, command).await }).await?;
    let id = id.as_str();
    loop {
        let heard = match engine.session(left()).await {
            Ok(session) => listen(&session, id, command.stdin, &mut output).await,
            Err(fault) => Err(fault),
        };
        match heard {
            Ok(()) => {
                return engine.patiently(left(), |session| async move { ended(&session, id).await }).await;
            }
            Err(fault) if !is_away(&fault) => return Err(fault),
            Err(lost) => {
                let found = engine.patiently(left(), |session| async move { look(&session, id).await }).await;
                match found {
                    Ok(State::NotStarted) => {}
                    Ok(State::Ended(code)) => return Ok(code),
                    Ok(State::Runs) => {
                        call.sink
                            .progress("what the command says is not heard any more; waiting for its end");
                        return wait(engine, &left, id).await;
                    }
                    // An engine that was started again knows nothing of it.
                    Err(fault) if fault.kind == "not-found" => return Err(lost),
                    Err(fault) => return Err(fault),
                }
            }
        }
    }
}

async fn wait<'a>(engine: &Engine, left: &impl Fn() -> Call<'a>, id: &str) -> Result<i64, Fault> {
    loop {
        let call = left();
        if let State::Ended(code) =
            engine.patiently(call, |session| async move { look(&session, id).await }).await?
        {
            return Ok(code);
        }
        if call.deadline.is_zero() {
            return Err(still_runs());
        }
        tokio::select! {
            () = call.cancel.cancelled() => return Err(cancelled()),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

async fn prepare(session: &Session<'_>, command: &Command<'_>) -> Result<String, Fault> {
    let config = ExecConfig {
        attach_stdin: Some(command.stdin.is_some()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: Some(command.argv.clone()),
        env: Some(command.env.clone()),
        working_dir: command.dir.clone(),
        ..Default::default()
    };
    let made = session.api.create_exec(command.container, config);
    Ok(session.ask("prepare a command in a container", made).await?.id)
}

/// Starts it and hears it out.
async fn listen(
    session: &Session<'_>,
    id: &str,
    stdin: Option<&[u8]>,
    output: &mut impl FnMut(Stream, &[u8]),
) -> Result<(), Fault> {
    let options = StartExecOptions { detach: false, tty: false, output_capacity: Some(64 * 1024) };
    let started =
        session.ask("start a command in a container", session.api.start_exec(id, Some(options))).await?;
    let StartExecResults::Attached { output: mut stream, mut input } = started else { return Ok(()) };
    let feed = async {
        if let Some(bytes) = stdin {
            // A command that does not read its input has ended; its status says more.
            let _ = input.write_all(bytes).await;
        }
        let _ = input.shutdown().await;
    };
    let late = |fault| late(fault, session.left());
    let read = async {
        loop {
            let next = async { Ok(stream.next().await) };
            match session
                .ask_within("run a command in a container", session.left(), next)
                .await
                .map_err(late)?
            {
                None => return Ok(()),
                Some(Ok(said)) => {
                    let (stream, bytes) = piece(said);
                    output(stream, &bytes);
                }
                Some(Err(error)) => return Err(session.fault("run a command in a container", &error)),
            }
        }
    };
    let ((), heard) = tokio::join!(feed, read);
    heard
}

/// A command that says nothing until its time is over is slow; the engine does not hang.
fn late(fault: Fault, left: Duration) -> Fault {
    if fault.kind == "engine-hangs" && left.is_zero() { still_runs() } else { fault }
}

fn still_runs() -> Fault {
    Fault::new("timed-out", "the command still runs, and the time for it is over")
}

/// What the engine says of a command.
enum State {
    NotStarted,
    Runs,
    Ended(i64),
}

async fn look(session: &Session<'_>, id: &str) -> Result<State, Fault> {
    let state = session.ask("say how a command ended", session.api.inspect_exec(id)).await?;
    Ok(match (state.running, state.exit_code) {
        (Some(true), _) => State::Runs,
        (_, Some(code)) => State::Ended(code),
        (_, None) => State::NotStarted,
    })
}

/// The exit status of one that has said its last.
async fn ended(session: &Session<'_>, id: &str) -> Result<i64, Fault> {
    let begun = Instant::now();
    loop {
        if let State::Ended(code) = look(session, id).await? {
            return Ok(code);
        }
        if begun.elapsed() > STATUS_LIMIT {
            return Err(Fault::new("engine-answer", "the engine does not say how a command ended"));
        }
        tokio::time::sleep(LOOK_EVERY / 10).await;
    }
}

/// A piece of output, and where it was written to.
pub(crate) fn piece(said: LogOutput) -> (Stream, bytes::Bytes) {
    let stream = if matches!(said, LogOutput::StdErr { .. }) { Stream::Stderr } else { Stream::Stdout };
    (stream, said.into_bytes())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_without_time_left_is_late_and_the_engine_does_not_hang() {
        let hangs = || Fault::new("engine-hangs", "no answer").transient();
        let over = late(hangs(), Duration::ZERO);
        assert_eq!((over.kind.as_str(), over.transient), ("timed-out", false));
        assert_eq!(late(hangs(), Duration::from_secs(1)).kind, "engine-hangs");
        assert_eq!(late(Fault::new("engine-lost", "gone"), Duration::ZERO).kind, "engine-lost");
    }
}
