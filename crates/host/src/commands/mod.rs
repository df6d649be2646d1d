//! The supervisor of commands: one small process for each run, started with the run's first command, which outlives the engine that
//! started it. It starts the commands, reads their output, ends them at their deadlines, and keeps what became of each in a file. So a
//! killed engine's resume finds a command still running and waits for it, or finds its result, and never runs it a second time.
//!
//! ```text
//! STATE/commands/RUN/
//!   lock       held by the supervisor for as long as it lives
//!   socket     where an engine talks to it; one engine at a time, the newest counts
//!   record     what became of each command: started, its process, ended; and output that maybe no engine has taken
//!   boots      the boots of this machine in which there was a supervisor; synced before the first command of each
//!   log        what a supervisor complained of
//!   output-N   `$CDPIPE_OUTPUT` of a command that has outputs
//! ```
//!
//! The record is written with plain writes: it survives the end of any process, not a power cut. So after a reboot a command that has
//! no end in it is one of which nobody knows how it ended, also if not even its start is there.
//!
//! Secrets come over the socket and are in memory only; output is masked before it is written or passed on. The supervisor is in a
//! session of its own, so neither Ctrl-C nor a closed terminal reaches it. It ends when its engine is gone and no command is left: each
//! command has a deadline, so it can't linger. Deliberately not here: what to run, and what a result means for the run.

mod client;
mod protocol;
mod record;
mod socket;
mod supervisor;

pub(crate) use client::{Client, ClientConfig, Event, Following, Past, Tale};
pub(crate) use protocol::{Ended, How, NumberedLine, Start};

use crate::durable::{FileLock, remove_folder};
use crate::process::{self, ProcessRef};
use cdpipe_model::{EffectId, Fault, RunId};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The hidden subcommand that supervises the commands of a run.
pub const SUPERVISE_COMMANDS: &str = "supervise-commands";

/// The variable that tells a command which effect it is: it stays the same for as long as it is the same attempt.
pub const EFFECT_VARIABLE: &str = "CDPIPE_EFFECT";

/// How often a supervisor that should end is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// How long a command without a supervisor may take to end after TERM.
const ORPHAN_GRACE: Duration = Duration::from_secs(5);

/// How often one is looked at, and told again: what it has started meanwhile has not heard it.
const ORPHAN_LOOK_EVERY: Duration = Duration::from_millis(50);

/// The whole life of a supervisor: `supervise-commands DIR`.
pub(crate) fn main(folder: &Path) -> ExitCode {
    supervisor::main(folder)
}

/// The folder of one run.
#[derive(Debug, Clone)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// That of a run; `all` is the folder of all runs.
    pub(crate) fn of_run(all: &Path, run: &str) -> Self {
        // Ids that cdpipe makes have neither; a folder must not lead elsewhere whatever an id looks like.
        Self(all.join(run.replace(['/', '\0'], "-").replace("..", "-")))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    fn record(&self) -> PathBuf {
        self.0.join("record")
    }

    fn boots(&self) -> PathBuf {
        self.0.join("boots")
    }

    fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// `$CDPIPE_OUTPUT` of this effect.
    pub(crate) fn output(&self, effect: &str) -> PathBuf {
        let number = effect.rsplit('/').next().unwrap_or_default();
        self.0.join(format!("output-{number}"))
    }
}

/// What became of a command, as far as it can be seen without talking to anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It was never started.
    NotBegun,
    /// It runs.
    Runs,
    /// It has ended, and how is known.
    Ended,
    /// Nobody knows how it ended.
    Unknown,
}

/// Looks what became of the command of this effect.
///
/// # Errors
/// If what is kept of it can't be read.
pub fn look(all: &Path, effect: &EffectId) -> Result<Found, Fault> {
    let effect = effect.as_str();
    let folder = Folder::of_run(all, effect.rsplit_once('/').map_or(effect, |(run, _)| run));
    let supervised = FileLock::is_held(&folder.lock());
    let told = record::read(&folder, effect)?;
    let of_this_boot = record::is_of_this_boot(&folder);
    Ok(if told.ended.is_some() {
        Found::Ended
    } else if of_this_boot && told.start.is_none() {
        Found::NotBegun
    } else if of_this_boot && (supervised || record::living(&told, effect).is_some()) {
        Found::Runs
    } else {
        Found::Unknown
    })
}

/// Removes what is kept of the commands of a run that is over. A supervisor that is just ending is waited for, for at most `wait`.
///
/// # Errors
/// `busy` if there is a supervisor still; if the folder can't be removed.
pub fn forget(all: &Path, run: &RunId, wait: Duration) -> Result<(), Fault> {
    let folder = Folder::of_run(all, run.as_str());
    wait_for_end(&folder, wait)?;
    remove_folder(folder.path())
}

/// Removes what is kept of the commands of runs that are over: an engine that was killed in its last clean-up has left it. What has a
/// supervisor still is left alone, and so is what can't be removed; the next call tries again. Answers how many there were.
pub fn sweep(all: &Path, is_over: impl Fn(&RunId) -> bool) -> usize {
    let Ok(entries) = std::fs::read_dir(all) else { return 0 };
    let mut swept = 0;
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let folder = Folder::at(entry.path());
        // What a removal that was cut short has left bears the name of no run.
        let removed_half = name.starts_with('.') && name.ends_with(".tmp");
        if FileLock::is_held(&folder.lock()) || !(removed_half || is_over(&RunId(name))) {
            continue;
        }
        swept += usize::from(remove_folder(folder.path()).is_ok());
    }
    swept
}

/// Ends every command of a run that nobody drives, and with them their supervisor: TERM, a grace, KILL; also those whose supervisor was
/// killed. For a run that is given up. Answers how many commands there were.
///
/// # Errors
/// `busy` if they did not end in time; if what is kept of them can't be read.
pub fn end_all(all: &Path, run: &RunId, wait: Duration) -> Result<usize, Fault> {
    let folder = Folder::of_run(all, run.as_str());
    let supervised = if FileLock::is_held(&folder.lock()) { end_supervised(&folder, run, wait)? } else { 0 };
    Ok(supervised + end_orphans(&folder, run, wait)?)
}

/// Those whose supervisor is gone. They are known by the effect they were started for, never by a process id alone.
fn end_orphans(folder: &Folder, run: &RunId, wait: Duration) -> Result<usize, Fault> {
    let unended = record::unended(folder)?;
    let living = || -> Vec<Vec<ProcessRef>> {
        let of = |(effect, pid): &(String, Option<u32>)| {
            process::orphans_of(*pid, &format!("{EFFECT_VARIABLE}={effect}"))
        };
        unended.iter().map(of).filter(|members| !members.is_empty()).collect()
    };
    let count = living().len();
    let begun = Instant::now();
    let mut signal = Signal::TERM;
    loop {
        let left = living();
        if left.is_empty() {
            return Ok(count);
        }
        if begun.elapsed() >= wait {
            let message = format!("{count} commands of run {run} do not end although they were killed");
            return Err(Fault::new("busy", message).transient());
        }
        if begun.elapsed() >= ORPHAN_GRACE.min(wait / 2) {
            signal = Signal::KILL;
        }
        for member in left.iter().flatten() {
            member.signal(signal).map_err(|error| {
                Fault::new("busy", format!("process {} of run {run} can't be ended: {error}", member.pid))
            })?;
        }
        std::thread::sleep(ORPHAN_LOOK_EVERY);
    }
}

fn end_supervised(folder: &Folder, run: &RunId, wait: Duration) -> Result<usize, Fault> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fault::new("busy", format!("the commands of run {run} can't be ended: {error}")))?;
    let count = runtime.block_on(client::end_all(folder, wait))?;
    // With it goes the connection, and a supervisor does not end while it has one.
    drop(runtime);
    wait_for_end(folder, wait)?;
    Ok(count)
}

fn wait_for_end(folder: &Folder, wait: Duration) -> Result<(), Fault> {
    let until = Instant::now() + wait;
    while FileLock::is_held(&folder.lock()) {
        if Instant::now() >= until {
            return Err(Fault::new(
                "busy",
                format!("the commands in {} have a supervisor still", folder.path().display()),
            )
            .transient());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
