//! The few system calls that std has no word for: `wait4` (what a child used), `kill` of a process group, and a signal
//! handler that passes Ctrl-C on to the child instead of ending us before the lab is down.
#![allow(
    unsafe_code,
    reason = "wait4, kill and sigaction have no safe counterpart in std; this module is all of it"
)]

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

static FOREGROUND_GROUP: AtomicI32 = AtomicI32::new(0);
static SIGNALS: AtomicU32 = AtomicU32::new(0);

/// TERM and KILL, the two ways to end a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Asks.
    Term,
    /// Does not ask.
    Kill,
}

/// How a child ended and what it used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// The exit code, or the negated number of the signal that ended it.
    pub(crate) code: i32,
    /// User and system time of the child and the children it waited for.
    pub(crate) cpu: Duration,
    /// The largest resident set of it or of one child it waited for, in KiB. Never under this program's own at the time of
    /// the spawn: until `exec` the child shares our memory, and Linux keeps that mark.
    pub(crate) peak_kib: u64,
}

/// From now on INT, TERM and HUP go to the foreground child's group and leave us running, so that the lab is taken
/// down. The second one kills the group.
pub(crate) fn forward_signals() {
    // SAFETY: `action` is a valid sigaction, zeroed where nothing is asked for, and the handler uses only atomics and
    // kill(2), which POSIX lists as safe in a handler.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
        libc::sigemptyset(&raw mut action.sa_mask);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

extern "C" fn on_signal(signal: libc::c_int) {
    let earlier = SIGNALS.fetch_add(1, Ordering::SeqCst);
    let group = FOREGROUND_GROUP.load(Ordering::SeqCst);
    if group > 1 {
        let signal = if earlier == 0 { signal } else { libc::SIGKILL };
        // SAFETY: kill(2) takes plain numbers; the group is that of a child not yet waited for.
        unsafe { libc::kill(-group, signal) };
    }
}

/// Whether a person (or CI) asked us to stop.
pub(crate) fn interrupted() -> bool {
    SIGNALS.load(Ordering::SeqCst) > 0
}

/// Names the group that signals are passed on to; 0 for none.
pub(crate) fn set_foreground(group: u32) {
    FOREGROUND_GROUP.store(i32::try_from(group).unwrap_or(0), Ordering::SeqCst);
}

/// Sends a signal to a whole process group.
pub(crate) fn kill_group(group: u32, signal: Signal) {
    let group = i32::try_from(group).unwrap_or(0);
    // 0 and 1 would mean "my own group" and "everybody": never.
    if group <= 1 {
        return;
    }
    let number = match signal {
        Signal::Term => libc::SIGTERM,
        Signal::Kill => libc::SIGKILL,
    };
    // SAFETY: kill(2) takes plain numbers and touches no memory of ours.
    unsafe { libc::kill(-group, number) };
}

/// Waits for a child of ours and says what it used. The caller sees to a deadline (`process::run` has one).
///
/// # Errors
/// `pid` is not a child of this process.
pub(crate) fn wait4(pid: u32) -> io::Result<Usage> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    loop {
        let mut status = 0;
        // SAFETY: both out pointers are valid for the call; rusage is plain numbers, for which zero is a value.
        let (found, usage) = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            (libc::wait4(pid, &raw mut status, 0, &raw mut usage), usage)
        };
        if found == pid {
            let code =
                if libc::WIFSIGNALED(status) { -libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
            let time = |value: libc::timeval| {
                Duration::from_secs(u64::try_from(value.tv_sec).unwrap_or(0))
                    + Duration::from_micros(u64::try_from(value.tv_usec).unwrap_or(0))
            };
            return Ok(Usage {
                code,
                cpu: time(usage.ru_utime) + time(usage.ru_stime),
                peak_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
            });
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Whether we run as root.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid(2) has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// When a process started, in clock ticks since boot: with it a pid names one process and not a later one of the same
/// number. `None` when there is no such process, or only its corpse.
pub(crate) fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may hold blanks and parentheses itself.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_start_is_stable_and_no_process_has_none() {
        let me = std::process::id();
        assert_eq!(start_ticks(me), start_ticks(me));
        assert!(start_ticks(me).unwrap() > 0);
        assert_eq!(start_ticks(u32::MAX), None);
    }

    #[test]
    fn wait4_tells_code_signal_and_use() {
        let pid = |script| std::process::Command::new("sh").args(["-c", script]).spawn().unwrap().id();
        let usage = wait4(pid("exit 7")).unwrap();
        assert_eq!(usage.code, 7);
        assert!(usage.peak_kib > 100);
        assert_eq!(wait4(pid("kill -9 $$")).unwrap().code, -9);
        assert!(wait4(1).is_err());
    }
}
