//! Running a program to its end: in its own process group, with a deadline, with its use of the machine, and killed whole
//! when the time is up.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::{self, Signal};

/// After TERM, how long a group has before KILL.
const GRACE: Duration = Duration::from_secs(3);

/// A program to run: a value, so that it can be shown before and after.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    program: OsString,
    args: Vec<OsString>,
    env: BTreeMap<OsString, Option<OsString>>,
    dir: PathBuf,
    deadline: Duration,
}

/// How it went.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    /// Exit code; negative is a signal.
    pub(crate) code: i32,
    /// From before the spawn to after the wait.
    pub(crate) wall: Duration,
    /// User and system time.
    pub(crate) cpu: Duration,
    /// Largest resident set, KiB (see [`sys::Usage`]).
    pub(crate) peak_kib: u64,
    /// Whether the deadline ended it.
    pub(crate) timed_out: bool,
    /// What it wrote, where that was asked for.
    pub(crate) output: String,
}

impl Ended {
    /// Whether it ended by itself with code 0.
    pub(crate) fn ok(&self) -> bool {
        self.code == 0 && !self.timed_out
    }

    /// `exit code 3`, `signal 9`, `deadline passed`.
    pub(crate) fn how(&self) -> String {
        match self.code {
            _ if self.timed_out => {
                format!("stopped: its deadline passed after {}", crate::say::duration(self.wall))
            }
            code if code < 0 => format!("ended by signal {}", -code),
            code => format!("exit code {code}"),
        }
    }
}

/// Where the output of a job goes.
enum Sink<'a> {
    /// To the terminal, as it is.
    Inherit,
    /// Into `Ended::output`.
    Capture,
    /// Each line to a function, in the order of arrival.
    Lines(&'a mut dyn FnMut(Stream, &str)),
    /// Into a file.
    File(&'a Path),
}

/// Which of its two outputs a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl Job {
    /// A program and its arguments, in the root of the checkout, with a deadline.
    pub(crate) fn new<A: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
        deadline: Duration,
    ) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: args.into_iter().map(|arg| arg.as_ref().to_owned()).collect(),
            env: BTreeMap::new(),
            dir: crate::project::root(),
            deadline,
        }
    }

    /// `cargo ARGS`, of the toolchain that built this program.
    pub(crate) fn cargo<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>, deadline: Duration) -> Self {
        Self::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), args, deadline)
    }

    /// Sets an environment variable.
    pub(crate) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.insert(name.as_ref().to_owned(), Some(value.as_ref().to_owned()));
        self
    }

    /// Takes an environment variable away.
    pub(crate) fn without_env(mut self, name: impl AsRef<OsStr>) -> Self {
        self.env.insert(name.as_ref().to_owned(), None);
        self
    }

    /// Runs it in another folder.
    pub(crate) fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = dir.into();
        self
    }

    /// The command as a person would type it.
    pub(crate) fn shown(&self) -> String {
        let program = Path::new(&self.program).file_name().unwrap_or(&self.program).to_string_lossy();
        let args = self.args.iter().map(|arg| {
            let arg = arg.to_string_lossy();
            if arg.is_empty() || arg.contains([' ', '"', '\'', '$', '*', ';']) {
                format!("{arg:?}")
            } else {
                arg.into_owned()
            }
        });
        std::iter::once(program.into_owned()).chain(args).collect::<Vec<_>>().join(" ")
    }

    /// Runs it with our own output.
    ///
    /// # Errors
    /// It cannot be started. How it ended is in the answer.
    pub(crate) fn run(&self) -> Result<Ended, String> {
        self.start(Sink::Inherit)
    }

    /// Runs it and keeps what it writes (both outputs, in order of arrival).
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn capture(&self) -> Result<Ended, String> {
        self.start(Sink::Capture)
    }

    /// Runs it and hands over each line.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn lines(&self, each: &mut dyn FnMut(Stream, &str)) -> Result<Ended, String> {
        self.start(Sink::Lines(each))
    }

    /// Runs it with both outputs in a file. The way for measuring: nobody has to keep up with reading.
    ///
    /// # Errors
    /// It cannot be started, or the file cannot be made.
    pub(crate) fn to_file(&self, file: &Path) -> Result<Ended, String> {
        self.start(Sink::File(file))
    }

    /// Runs it; anything but exit code 0 is an error that shows the end of what it wrote.
    ///
    /// # Errors
    /// It cannot be started, or it failed.
    pub(crate) fn must(&self) -> Result<Ended, String> {
        let ended = self.capture()?;
        if ended.ok() {
            return Ok(ended);
        }
        let lines: Vec<&str> = ended.output.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n  ");
        Err(format!("`{}`: {}\n  {tail}", self.shown(), ended.how()))
    }

    fn command(&self) -> Command {
        use std::os::unix::process::CommandExt as _;
        let mut command = Command::new(&self.program);
        command.args(&self.args).current_dir(&self.dir).stdin(Stdio::null()).process_group(0);
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    fn start(&self, sink: Sink<'_>) -> Result<Ended, String> {
        let failed = |error: std::io::Error| format!("`{}` could not be started: {error}", self.shown());
        let mut command = self.command();
        match &sink {
            Sink::Inherit => {}
            Sink::Capture | Sink::Lines(_) => {
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
            }
            Sink::File(path) => {
                let file = File::create(path).map_err(|error| format!("{}: {error}", path.display()))?;
                command.stderr(file.try_clone().map_err(failed)?).stdout(file);
            }
        }
        let begin = Instant::now();
        let mut child = command.spawn().map_err(failed)?;
        let group = child.id();
        sys::set_foreground(group);
        let (done, watch) = mpsc::channel::<()>();
        let deadline = self.deadline;
        let watchdog = thread::spawn(move || {
            let late = |limit| watch.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
            if !late(deadline) {
                return false;
            }
            sys::kill_group(group, Signal::Term);
            if late(GRACE) {
                sys::kill_group(group, Signal::Kill);
            }
            true
        });

        let mut output = String::new();
        let mut keep = |_: Stream, line: &str| {
            output.push_str(line);
            output.push('\n');
        };
        match sink {
            Sink::Capture => pump(child.stdout.take(), child.stderr.take(), &mut keep),
            Sink::Lines(each) => pump(child.stdout.take(), child.stderr.take(), each),
            Sink::Inherit | Sink::File(_) => {}
        }
        let usage = sys::wait4(group);
        let wall = begin.elapsed();
        sys::set_foreground(0);
        drop(done);
        let timed_out = watchdog.join().unwrap_or(false);
        if timed_out {
            // Grandchildren may have outlived the one we waited for.
            sys::kill_group(group, Signal::Kill);
        }
        let usage = usage.map_err(failed)?;
        Ok(Ended { code: usage.code, wall, cpu: usage.cpu, peak_kib: usage.peak_kib, timed_out, output })
    }
}

/// Reads both outputs to their ends, line by line. Bytes that are no UTF-8 are shown as the replacement character.
fn pump(
    out: Option<impl Read + Send + 'static>,
    err: Option<impl Read + Send + 'static>,
    each: &mut dyn FnMut(Stream, &str),
) {
    let (send, lines) = mpsc::sync_channel::<(Stream, String)>(1024);
    let readers = [
        out.map(|out| reader(Stream::Out, out, send.clone())),
        err.map(|err| reader(Stream::Err, err, send.clone())),
    ];
    drop(send);
    for (stream, line) in lines {
        each(stream, &line);
    }
    for reader in readers.into_iter().flatten() {
        let _ = reader.join();
    }
}

fn reader(
    stream: Stream,
    from: impl Read + Send + 'static,
    to: mpsc::SyncSender<(Stream, String)>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut bytes = Vec::new();
        while from.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
            let line = String::from_utf8_lossy(&bytes);
            if to.send((stream, line.trim_end_matches(['\n', '\r']).to_owned())).is_err() {
                return;
            }
            bytes.clear();
        }
    })
}

/// Writes a file whole or not at all.
///
/// # Errors
/// The folder or the file cannot be written.
pub(crate) fn write_file(path: &Path, text: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let part = path.with_extension("part");
    File::create(&part).and_then(|mut file| file.write_all(text.as_bytes())).map_err(failed)?;
    std::fs::rename(&part, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, deadline_ms: u64) -> Job {
        Job::new("sh", ["-c", script], Duration::from_millis(deadline_ms))
    }

    #[test]
    fn code_output_and_environment() {
        let ended = sh("echo $X; echo oops >&2; exit 3", 10_000).env("X", "a b").capture().unwrap();
        assert_eq!(ended.code, 3);
        assert!(!ended.ok());
        assert!(ended.output.contains("a b\n") && ended.output.contains("oops\n"), "{}", ended.output);
    }

    #[test]
    fn a_deadline_ends_the_whole_group_even_one_that_ignores_term() {
        let begin = Instant::now();
        let ended = sh("trap '' TERM; sleep 60 & sleep 60", 200).run().unwrap();
        assert!(ended.timed_out);
        assert!(begin.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_failure_shows_the_end_of_the_output() {
        let error = sh("echo first; echo last; exit 2", 10_000).must().unwrap_err();
        assert!(error.contains("exit code 2") && error.ends_with("first\n  last"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error_with_its_name() {
        let error = Job::new("no-such-program", ["x"], Duration::from_secs(1)).run().unwrap_err();
        assert!(error.starts_with("`no-such-program x` could not be started"), "{error}");
    }
}
