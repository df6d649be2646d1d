//! A command that runs: its process, its group, its output.

use crate::lines::Lines;
use crate::mask::{MaskStream, Masker};
use crate::process;
use cdpipe_model::event::Stream;
use cdpipe_model::secret::SecretValue;
use rustix::process::{PidfdFlags, Signal};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

/// Lines that explain a failure.
const LAST_LINES: usize = 20;

/// Read at once; also what is given at most between two looks at deadline and cancel.
const CHUNK_BYTES: usize = 16 * 1024;

/// What a turn brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Maybe output: see `take_lines`.
    Output,
    /// The process has ended. There may be output still.
    Exited,
}

/// A running command. Dropping it kills its group.
#[derive(Debug)]
pub(crate) struct Running {
    /// `None` once it was reaped. Until then its id, and by that the id of its group, can't belong to anybody else.
    child: Option<Child>,
    pid: u32,
    exit: AsyncFd<OwnedFd>,
    exited: bool,
    stdout: Output,
    stderr: Output,
    stdin: Option<Input>,
    lines: Vec<(Stream, String)>,
    last: VecDeque<String>,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Output {
    stream: Stream,
    pipe: Option<pipe::Receiver>,
    mask: MaskStream,
    cut: Lines,
}

#[derive(Debug)]
struct Input {
    pipe: pipe::Sender,
    text: SecretValue,
    written: usize,
}

impl Running {
    /// Starts it; standard output and error must be pipes, input one if there is a text for it.
    pub(super) fn spawn(
        command: &mut std::process::Command,
        masker: &Masker,
        stdin: Option<SecretValue>,
    ) -> io::Result<Self> {
        let mut child = Guard(Some(command.spawn()?));
        let Some(process) = &mut child.0 else { return Err(io::ErrorKind::NotFound.into()) };
        let pid = process.id();
        let handle = rustix::process::Pid::from_child(process);
        let exit = end_of(handle)?;
        let output = |stream, pipe: Option<OwnedFd>| -> io::Result<Output> {
            let pipe = pipe.map(pipe::Receiver::from_owned_fd).transpose()?;
            Ok(Output { stream, pipe, mask: MaskStream::new(masker.clone()), cut: Lines::default() })
        };
        let stdout = output(Stream::Stdout, process.stdout.take().map(OwnedFd::from))?;
        let stderr = output(Stream::Stderr, process.stderr.take().map(OwnedFd::from))?;
        let stdin = match (stdin, process.stdin.take()) {
            (Some(text), Some(pipe)) => {
                Some(Input { pipe: pipe::Sender::from_owned_fd(pipe.into())?, text, written: 0 })
            }
            _ => None,
        };
        Ok(Self {
            child: child.0.take(),
            pid,
            exit,
            exited: false,
            stdout,
            stderr,
            stdin,
            lines: Vec::new(),
            last: VecDeque::new(),
            buffer: Vec::new(),
        })
    }

    /// Its process, which leads its group.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for output, for room for input, or for the end. Can be dropped at any await.
    pub(super) async fn turn(&mut self) -> Turn {
        tokio::select! {
            () = readable(&self.stdout) => self.read(Stream::Stdout),
            () = readable(&self.stderr) => self.read(Stream::Stderr),
            () = writable(self.stdin.as_ref()) => self.write(),
            _ = self.exit.readable(), if !self.exited => {
                // A pidfd that is readable once stays so.
                self.exited = true;
                return Turn::Exited;
            }
        }
        Turn::Output
    }

    /// The same after the end, or when the end is not what is waited for.
    pub(super) async fn turn_of_output(&mut self) -> Turn {
        tokio::select! {
            () = readable(&self.stdout) => self.read(Stream::Stdout),
            () = readable(&self.stderr) => self.read(Stream::Stderr),
        }
        Turn::Output
    }

    fn read(&mut self, stream: Stream) {
        let output = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let Some(pipe) = &output.pipe else { return };
        self.buffer.clear();
        self.buffer.reserve(CHUNK_BYTES);
        match pipe.try_read_buf(&mut self.buffer) {
            Ok(0) => output.finish(&mut self.lines),
            Ok(_) => output.feed(&self.buffer, &mut self.lines),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => output.finish(&mut self.lines),
        }
    }

    fn write(&mut self) {
        let Some(input) = &mut self.stdin else { return };
        let rest = input.text.expose().as_bytes().get(input.written..).unwrap_or_default();
        match input.pipe.try_write(rest) {
            Ok(count) => input.written += count,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return;
            }
            // It does not want to read it.
            Err(_) => input.written = input.text.expose().len(),
        }
        if input.written >= input.text.expose().len() {
            self.stdin = None;
        }
    }

    /// Lines since the last time.
    pub(super) fn take_lines(&mut self) -> Vec<(Stream, String)> {
        let lines = std::mem::take(&mut self.lines);
        for (_, line) in &lines {
            if self.last.len() == LAST_LINES {
                self.last.pop_front();
            }
            self.last.push_back(line.clone());
        }
        lines
    }

    /// The last lines that were taken.
    pub(super) fn last_lines(&self) -> Vec<String> {
        self.last.iter().cloned().collect()
    }

    /// Whether nobody can write any more.
    pub(super) fn is_silent(&self) -> bool {
        self.stdout.pipe.is_none() && self.stderr.pipe.is_none()
    }

    /// Whether nothing of the group is left.
    pub(super) fn is_gone(&self) -> bool {
        process::group_members(self.pid).is_empty()
    }

    /// TERM to all of the group.
    pub(super) fn ask_to_end(&mut self) {
        self.stdin = None;
        process::signal_group(self.pid, Signal::TERM);
    }

    /// KILL to all of the group.
    pub(super) fn kill(&self) {
        process::signal_group(self.pid, Signal::KILL);
    }

    /// Reads no more.
    pub(super) fn close(&mut self) {
        self.stdout.finish(&mut self.lines);
        self.stderr.finish(&mut self.lines);
    }

    /// How it ended. It has, so this does not wait.
    pub(super) fn reap(&mut self) -> io::Result<ExitStatus> {
        let Some(mut child) = self.child.take() else { return Err(io::ErrorKind::NotFound.into()) };
        match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => {
                self.child = Some(child);
                Err(io::Error::other("it does not end although it was killed"))
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Not reaped: the caller has given up, and the id still belongs to this group alone.
        drop(Guard(self.child.take()));
    }
}

/// Becomes readable when the process ends.
#[allow(
    deprecated,
    reason = "unsound only for types whose descriptor can change; an OwnedFd keeps its own, and the other constructor is unsafe"
)]
fn end_of(process: rustix::process::Pid) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(rustix::process::pidfd_open(process, PidfdFlags::empty())?, Interest::READABLE)
}

/// A child that is not forgotten: it is killed with its group and reaped.
struct Guard(Option<Child>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            process::signal_group(child.id(), Signal::KILL);
            // A killed process ends at once, unless the kernel holds it; nobody's thread may wait for that.
            std::thread::spawn(move || child.wait());
        }
    }
}

impl Output {
    fn feed(&mut self, bytes: &[u8], lines: &mut Vec<(Stream, String)>) {
        let stream = self.stream;
        self.cut.feed(&self.mask.feed(bytes), &mut |line| lines.push((stream, line.to_owned())));
    }

    fn finish(&mut self, lines: &mut Vec<(Stream, String)>) {
        if self.pipe.take().is_some() {
            let stream = self.stream;
            let mut keep = |line: &str| lines.push((stream, line.to_owned()));
            self.cut.feed(&self.mask.finish(), &mut keep);
            self.cut.finish(&mut keep);
        }
    }
}

/// Pending for a stream that has ended.
async fn readable(output: &Output) {
    match &output.pipe {
        // An error shows itself at the read that follows.
        Some(pipe) => drop(pipe.readable().await),
        None => std::future::pending().await,
    }
}

async fn writable(input: Option<&Input>) {
    match input {
        Some(input) => drop(input.pipe.writable().await),
        None => std::future::pending().await,
    }
}
