//! Running a program to its end within a deadline, and finding what it left running.

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long the output of a program that has ended may stay open.
const LINGER: Duration = Duration::from_secs(3);
/// The most output that is kept of a stream.
const OUTPUT_LIMIT_BYTES: u64 = 64 << 20;

/// What a program said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    /// From its start to its end.
    pub took: Duration,
}

/// A program that could not be run as it should.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// Its path.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It did not end; it was killed with its whole process group.
    #[error("{program} did not end within {limit:?}; it said:\n{said}")]
    Hung {
        /// Its path.
        program: String,
        /// How long it had.
        limit: Duration,
        /// Both streams so far.
        said: String,
    },
    /// It ended, but something it left running holds its output open: whoever reads it through a pipe would hang.
    #[error(
        "{program} ended, but a process that it left running still holds its output open; it said:\n{said}"
    )]
    HoldsOutput {
        /// Its path.
        program: String,
        /// Both streams so far.
        said: String,
    },
    /// It said something that is no text.
    #[error("{program} wrote bytes to {stream} that are not UTF-8: {said}")]
    NotText {
        /// Its path.
        program: String,
        /// Which stream.
        stream: &'static str,
        /// What it said, as far as it is text.
        said: String,
    },
}

/// Runs a command with its own process group and nothing on standard input, and waits for its end.
///
/// # Errors
/// See [`RunError`]; whatever happens, the process group is gone after `Hung`.
pub fn run(command: &mut Command, limit: Duration) -> Result<Ended, RunError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let began = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|source| RunError::Start { program: program.clone(), source })?;
    let stdout = Stream::read(child.stdout.take());
    let stderr = Stream::read(child.stderr.take());
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if began.elapsed() < limit => std::thread::sleep(Duration::from_millis(2)),
            Ok(None) | Err(_) => {
                if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
                    // It may have ended by itself just now.
                    let _ = kill_process_group(group, Signal::KILL);
                }
                let _ = child.wait();
                let deadline = Instant::now() + LINGER;
                let said = format!("{}{}", stdout.end(deadline).0.lossy(), stderr.end(deadline).0.lossy());
                return Err(RunError::Hung { program, limit, said });
            }
        }
    };
    let took = began.elapsed();
    let deadline = Instant::now() + LINGER;
    let ((stdout, out_closed), (stderr, err_closed)) = (stdout.end(deadline), stderr.end(deadline));
    if !(out_closed && err_closed) {
        return Err(RunError::HoldsOutput { program, said: format!("{}{}", stdout.lossy(), stderr.lossy()) });
    }
    let text = |bytes: Bytes, stream| match String::from_utf8(bytes.0) {
        Ok(text) => Ok(text),
        Err(error) => {
            let said = String::from_utf8_lossy(error.as_bytes()).into_owned();
            Err(RunError::NotText { program: program.clone(), stream, said })
        }
    };
    Ok(Ended { stdout: text(stdout, "stdout")?, stderr: text(stderr, "stderr")?, code: status.code(), took })
}

struct Bytes(Vec<u8>);

impl Bytes {
    fn lossy(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

/// A stream that is read by a thread of its own, so that neither stream can block the other.
struct Stream(mpsc::Receiver<Vec<u8>>);

impl Stream {
    fn read(from: Option<impl Read + Send + 'static>) -> Self {
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let Some(from) = from else { return };
            let (mut from, mut chunk) = (from.take(OUTPUT_LIMIT_BYTES), [0; 8192]);
            while let Ok(read @ 1..) = from.read(&mut chunk) {
                if tell.send(chunk[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self(told)
    }

    /// Everything, and whether the stream was closed before the deadline.
    fn end(self, deadline: Instant) -> (Bytes, bool) {
        let mut bytes = Vec::new();
        loop {
            match self.0.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(chunk) => bytes.extend(chunk),
                Err(mpsc::RecvTimeoutError::Disconnected) => return (Bytes(bytes), true),
                Err(mpsc::RecvTimeoutError::Timeout) => return (Bytes(bytes), false),
            }
        }
    }
}

/// A process that runs now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its id.
    pub pid: i32,
    /// Its command line, blank-separated.
    pub command: String,
}

/// The processes, other than this one, that belong to `folder`: by their environment, their command line or the
/// folder they run in. `folder` must be a name that nothing else mentions.
pub fn belonging_to(folder: &Path) -> Vec<Running> {
    let own = std::process::id().cast_signed();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let belongs = |pid: i32| {
        let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let needle = folder.as_os_str().as_encoded_bytes();
        let mentions = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        let command = read("cmdline");
        // A process that has ended and was not waited for yet has no command line any more.
        let alive = !command.is_empty();
        let within = std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
        (alive && (within || mentions(&command) || mentions(&read("environ")))).then(|| Running {
            pid,
            command: String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " "),
        })
    };
    pids.filter(|pid| *pid != own).filter_map(belongs).collect()
}

/// Ends every process that belongs to `folder`: asks first, then insists.
pub fn end_all_belonging_to(folder: &Path) {
    for (signal, patience) in [(Signal::TERM, Duration::from_secs(3)), (Signal::KILL, Duration::from_secs(3))]
    {
        let deadline = Instant::now() + patience;
        let mut signalled = Vec::new();
        loop {
            let running = belonging_to(folder);
            if running.is_empty() {
                return;
            }
            for process in running {
                // A supervisor may start a new process after its child ended: each gets its own signal, once.
                if !signalled.contains(&process.pid) {
                    signalled.push(process.pid);
                    if let Some(pid) = Pid::from_raw(process.pid) {
                        let _ = kill_process(pid, signal);
                    }
                }
            }
            if Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{RunError, belonging_to, end_all_belonging_to, run};
    use std::process::Command;
    use std::time::Duration;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn keeps_streams_apart_and_the_exit_code() {
        let ended = run(&mut shell("echo out; echo err >&2; exit 7"), Duration::from_secs(10)).unwrap();
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str(), ended.code), ("out\n", "err\n", Some(7)));
    }

    #[test]
    fn a_program_that_hangs_is_ended_and_its_words_kept() {
        let error = run(&mut shell("echo begun; sleep 60; :"), Duration::from_millis(300)).unwrap_err();
        assert_eq!(error.to_string(), "/bin/sh did not end within 300ms; it said:\nbegun\n");
    }

    #[test]
    fn what_holds_the_output_open_is_found_and_can_be_ended() {
        let folder = tempfile::tempdir().unwrap();
        let script = "sleep 61 & echo done";
        let error =
            run(shell(script).env("CDPIPE_STATE", folder.path()), Duration::from_secs(10)).unwrap_err();
        assert!(matches!(&error, RunError::HoldsOutput { said, .. } if said == "done\n"), "{error}");
        let left: Vec<String> =
            belonging_to(folder.path()).into_iter().map(|process| process.command).collect();
        assert_eq!(left, ["sleep 61"]);
        end_all_belonging_to(folder.path());
        assert_eq!(belonging_to(folder.path()), []);
    }
}
