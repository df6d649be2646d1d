//! A started command until its end: output out, deadline and cancel in. Whoever started it: the engine itself, or the supervisor.

use super::running::{Running, Turn};
use crate::commands::{Ended, How};
use cdpipe_model::event::Stream;
use cdpipe_model::ports::Cancel;
use std::future::Future;
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

/// How long output is read after the command has ended: what it wrote itself is there at once, the rest is of background processes.
const OUTPUT_WAIT: Duration = Duration::from_millis(250);

/// How long killed processes may take to vanish.
const KILL_WAIT: Duration = Duration::from_secs(2);

/// Where output goes.
pub(crate) trait Output: Send {
    /// Takes lines, masked.
    fn lines(&mut self, lines: Vec<(Stream, String)>);
    /// Resolves when it can take more.
    fn room(&mut self) -> impl Future<Output = ()> + Send;
}

/// What ends a command before it ends by itself.
pub(crate) struct Limits<'a> {
    pub(crate) cancel: &'a dyn Cancel,
    /// Since `begun`.
    pub(crate) deadline: Duration,
    /// How long it may take to end after TERM.
    pub(crate) grace: Duration,
    pub(crate) begun: Instant,
}

/// Reads output until the command has ended, or ends it.
pub(crate) async fn execute(mut running: Running, limits: Limits<'_>, out: &mut impl Output) -> Ended {
    let cut = watch(&mut running, &limits, out).await;
    let how = match (running.reap(), cut) {
        (Err(error), _) => How::Lost(error.to_string()),
        (Ok(_), Some(how)) => how,
        (Ok(status), None) => How::Exited(status.into_raw()),
    };
    let took_ms = u64::try_from(limits.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let last = if how == How::Exited(0) { Vec::new() } else { running.last_lines() };
    Ended { how, took_ms, last }
}

async fn watch(running: &mut Running, limits: &Limits<'_>, out: &mut impl Output) -> Option<How> {
    let mut cancelled = limits.cancel.cancelled();
    let deadline = tokio::time::sleep(limits.deadline.saturating_sub(limits.begun.elapsed()));
    tokio::pin!(deadline);
    let cut = loop {
        tokio::select! {
            // First what ends it: a command that never stops writing is always ready.
            biased;
            () = &mut cancelled => break Some(How::Cancelled),
            () = &mut deadline => break Some(How::TimedOut),
            turn = async {
                out.room().await;
                running.turn().await
            } => match turn {
                Turn::Output => give_fairly(running, out).await,
                Turn::Exited => break None,
            },
        }
    };
    if cut.is_some() {
        running.ask_to_end();
        read_on(running, out, limits.grace, |running| running.is_gone()).await;
        running.kill();
        read_on(running, out, KILL_WAIT, |running| running.is_gone()).await;
    }
    read_on(running, out, OUTPUT_WAIT, |running| running.is_silent()).await;
    running.close();
    give(running, out);
    cut
}

/// Gives lines, and then lets timers and others have their turn: a command that never stops writing is always ready.
async fn give_fairly(running: &mut Running, out: &mut impl Output) {
    if give(running, out) {
        tokio::task::yield_now().await;
    }
}

/// Whether there were any lines.
fn give(running: &mut Running, out: &mut impl Output) -> bool {
    let lines = running.take_lines();
    let any = !lines.is_empty();
    if any {
        out.lines(lines);
    }
    any
}

/// Reads on until `done`, for at most so long.
async fn read_on(
    running: &mut Running,
    out: &mut impl Output,
    at_most: Duration,
    done: impl Fn(&Running) -> bool,
) {
    let until = Instant::now() + at_most;
    // Whether others of the group are left can only be looked at, so it is looked at again and again.
    let mut pause = Duration::from_millis(1);
    while !done(running) && Instant::now() < until {
        tokio::select! {
            biased;
            _ = running.turn_of_output(), if !running.is_silent() => give_fairly(running, out).await,
            () = tokio::time::sleep(pause.min(until.saturating_duration_since(Instant::now()))) => {
                pause = (pause * 2).min(Duration::from_millis(25));
            }
        }
    }
}
