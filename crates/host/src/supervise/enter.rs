//! Becoming the instance's process: between fork and exec there is something to do that only the new process can do for itself, and
//! doing it in a program of its own keeps the whole crate free of unsafe code.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

/// `enter-instance SUPERVISOR_PID PROGRAM ARG…`: asks the kernel to be killed when the supervisor dies, then becomes the program.
pub(super) fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(supervisor), Some(program)) = (args.next(), args.next()) else { return ExitCode::from(2) };
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
    {
        return fail(&program, &format!("cannot ask to end with the supervisor: {error}"));
    }
    // The supervisor may have died before the kernel was asked.
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().to_string());
    if parent.map(OsString::from) != Some(supervisor) {
        return fail(&program, "its supervisor is gone");
    }
    let error = Command::new(&program).args(args).exec();
    fail(&program, &error.to_string())
}

fn fail(program: &OsString, reason: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "cdpipe: cannot start {}: {reason}", program.display());
    ExitCode::from(126)
}
