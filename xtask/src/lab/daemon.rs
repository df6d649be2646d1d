//! A service of the lab as a process: started in a group of its own, found again by pid and start time, ended by TERM and
//! then KILL. Several of them may make one part.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::Trouble;
use crate::sys::{self, Signal};

/// How long a service may take until it answers.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long a service may take to end after TERM.
const DOWN_WITHIN: Duration = Duration::from_secs(10);
/// Tries with a new port: somebody else may take the free one before the service does.
const TRIES: u32 = 3;

/// One process of a part.
pub(crate) struct Daemon {
    /// The folder with `NAME.pid`, `NAME.port` and `NAME.log`.
    pub(crate) dir: PathBuf,
    /// Its name in that folder.
    pub(crate) name: &'static str,
}

impl Daemon {
    fn file(&self, what: &str) -> PathBuf {
        self.dir.join(format!("{}.{what}", self.name))
    }

    /// The pid, if what we started still runs.
    fn running(&self) -> Option<u32> {
        let text = fs::read_to_string(self.file("pid")).ok()?;
        let (pid, ticks) = text.trim().split_once(' ')?;
        let (pid, ticks) = (pid.parse().ok()?, ticks.parse::<u64>().ok()?);
        (sys::start_ticks(pid) == Some(ticks)).then_some(pid)
    }

    /// The port it serves on, if it runs and answers.
    pub(crate) fn port(&self, ready: impl Fn(u16) -> bool) -> Option<u16> {
        self.running()?;
        let port = fs::read_to_string(self.file("port")).ok()?.trim().parse().ok()?;
        ready(port).then_some(port)
    }

    /// Starts it on a free port and waits until it answers, unless it does already.
    ///
    /// # Errors
    /// It ends, or does not answer in time: the message has the end of its log.
    pub(crate) fn up(
        &self,
        command: impl Fn(u16) -> Result<Command, Trouble>,
        ready: impl Fn(u16) -> bool,
    ) -> Result<u16, Trouble> {
        self.up_at(None, command, ready)
    }

    /// As [`Daemon::up`], first on the `usual` port if nobody else has it.
    ///
    /// # Errors
    /// Those of [`Daemon::up`].
    pub(crate) fn up_at(
        &self,
        mut usual: Option<u16>,
        command: impl Fn(u16) -> Result<Command, Trouble>,
        ready: impl Fn(u16) -> bool,
    ) -> Result<u16, Trouble> {
        if let Some(port) = self.port(&ready) {
            return Ok(port);
        }
        self.down()?;
        let mut last = String::new();
        for _ in 0..TRIES {
            let port = match usual.take().filter(|port| crate::net::is_free(*port)) {
                Some(port) => port,
                None => crate::net::free_port()?,
            };
            let pid = self.start(command(port)?, port)?;
            // Our child: a corpse has no start ticks, so `gone` sees its end although nobody waits for it.
            if crate::net::until(READY_WITHIN, || ready(port), || sys::start_ticks(pid).is_none()) {
                return Ok(port);
            }
            self.down()?;
            last = self.tail();
            if sys::interrupted() {
                break;
            }
        }
        Err(Trouble::Broken(format!(
            "{} did not become ready; the end of {}:\n{last}",
            self.name,
            crate::project::shown(&self.file("log"))
        )))
    }

    fn start(&self, mut command: Command, port: u16) -> Result<u32, String> {
        use std::os::unix::process::CommandExt as _;
        let failed = |error: std::io::Error| format!("{}: {error}", self.name);
        fs::create_dir_all(&self.dir).map_err(failed)?;
        let log = File::create(self.file("log")).map_err(failed)?;
        command.stdin(Stdio::null()).stderr(log.try_clone().map_err(failed)?).stdout(log).process_group(0);
        let child = command.spawn().map_err(failed)?;
        let pid = child.id();
        let ticks = sys::start_ticks(pid).unwrap_or(0);
        fs::write(self.file("port"), port.to_string()).map_err(failed)?;
        fs::write(self.file("pid"), format!("{pid} {ticks}")).map_err(failed)?;
        Ok(pid)
    }

    /// Ends it, if it is ours and runs. Says whether it ran.
    ///
    /// # Errors
    /// It does not even end on KILL.
    pub(crate) fn down(&self) -> Result<bool, String> {
        let running = self.running();
        if let Some(pid) = running {
            let gone = || self.running().is_none();
            sys::kill_group(pid, Signal::Term);
            let mut ended = wait_gone(DOWN_WITHIN, gone);
            if !ended {
                sys::kill_group(pid, Signal::Kill);
                ended = wait_gone(DOWN_WITHIN, gone);
            }
            if !ended {
                return Err(format!("{} (pid {pid}) does not end", self.name));
            }
        }
        for what in ["pid", "port"] {
            let _ = fs::remove_file(self.file(what));
        }
        Ok(running.is_some())
    }

    fn tail(&self) -> String {
        let text = fs::read(self.file("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..]
            .iter()
            .map(|line| format!("    {line}"))
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// Like `net::until`, but goes on when a person has interrupted us: that is when the lab has to go down.
fn wait_gone(within: Duration, gone: impl Fn() -> bool) -> bool {
    let deadline = std::time::Instant::now() + within;
    while std::time::Instant::now() < deadline {
        if gone() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    gone()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("cdpipe-xtask-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn sleeper(_: u16) -> Result<Command, Trouble> {
        let mut command = Command::new("sleep");
        command.arg("60");
        Ok(command)
    }

    #[test]
    fn up_twice_is_once_and_down_ends_it() {
        let daemon = Daemon { dir: scratch("twice"), name: "sleeper" };
        let port = daemon.up(sleeper, |_| true).unwrap();
        let pid = daemon.running().unwrap();
        assert_eq!(daemon.up(sleeper, |_| true), Ok(port));
        assert_eq!(daemon.running(), Some(pid));
        assert_eq!(daemon.down(), Ok(true));
        assert_eq!(sys::start_ticks(pid), None);
        assert_eq!(daemon.down(), Ok(false));
        fs::remove_dir_all(&daemon.dir).unwrap();
    }

    #[test]
    fn a_pid_that_is_now_somebody_else_is_left_alone() {
        let daemon = Daemon { dir: scratch("else"), name: "other" };
        // This test's own process, under a start time that is not its own.
        fs::write(daemon.file("pid"), format!("{} 1", std::process::id())).unwrap();
        assert_eq!(daemon.down(), Ok(false));
        fs::remove_dir_all(&daemon.dir).unwrap();
    }

    #[test]
    fn one_that_ends_at_once_shows_its_log() {
        let daemon = Daemon { dir: scratch("ends"), name: "ends" };
        let command = |_| {
            let mut command = Command::new("sh");
            command.args(["-c", "echo cannot read my configuration; exit 1"]);
            Ok(command)
        };
        let Err(Trouble::Broken(error)) = daemon.up(command, |_| false) else {
            unreachable!("it cannot be up")
        };
        assert!(error.contains("cannot read my configuration"), "{error}");
        fs::remove_dir_all(&daemon.dir).unwrap();
    }
}
