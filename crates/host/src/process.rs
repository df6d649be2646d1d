//! Processes as Linux shows them in `/proc`: who is alive, who belongs to whom, and signals that can't hit the wrong one.
//!
//! A process id alone identifies nothing: it is reused, and after a reboot all of them are. So what is written down is the id with
//! the start time and the boot, and a signal is sent through a pidfd that was checked against them.

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io;
use std::path::Path;

/// A process that can't be mistaken for a later one with the same id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessRef {
    /// Process id.
    pub(crate) pid: u32,
    /// Start time in clock ticks since boot.
    pub(crate) start_ticks: u64,
    /// Which boot, and which pid namespace: ids of another container mean nothing here.
    pub(crate) world: String,
}

impl ProcessRef {
    /// The process of this id now; `None` if there is none, or only a zombie.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = Stat::read(pid)?;
        (!stat.is_dead()).then(|| Self { pid, start_ticks: stat.start_ticks, world: world() })
    }

    /// This very process.
    pub(crate) fn current() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// Whether it still runs. A zombie does not.
    pub(crate) fn is_alive(&self) -> bool {
        self.is_of_this_world()
            && Stat::read(self.pid)
                .is_some_and(|stat| stat.start_ticks == self.start_ticks && !stat.is_dead())
    }

    /// Whether the id means anything here: same boot, same pid namespace.
    pub(crate) fn is_of_this_world(&self) -> bool {
        self.world == world()
    }

    /// Sends a signal to exactly this process; answers `false` if it is gone.
    ///
    /// # Errors
    /// If the signal may not be sent.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<bool> {
        let Some(pid) = to_pid(self.pid) else { return Ok(false) };
        // The pidfd is taken before the check: what it refers to can't change afterwards.
        let handle = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if !self.is_alive() {
            return Ok(false);
        }
        match rustix::process::pidfd_send_signal(&handle, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Boot and pid namespace, in which process ids have a meaning.
fn world() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {}", boot.trim(), namespace.display())
}

/// The fields of `/proc/PID/stat` that matter here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stat {
    state: u8,
    /// Parent.
    pub(crate) parent: u32,
    /// Process group.
    pub(crate) group: u32,
    /// Start time in clock ticks since boot.
    pub(crate) start_ticks: u64,
}

impl Stat {
    /// Reads it; `None` if there is no such process.
    pub(crate) fn read(pid: u32) -> Option<Self> {
        Self::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The command name may hold blanks and brackets, so fields are counted from the last `)`.
    fn parse(text: &[u8]) -> Option<Self> {
        let end_of_name = text.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(text.get(end_of_name + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        Some(Self {
            state: *fields.first()?.as_bytes().first()?,
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
        })
    }

    /// A zombie, or on its way out.
    pub(crate) fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }
}

/// All processes that can be seen.
pub(crate) fn scan() -> Vec<(u32, Stat)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| Some((pid, Stat::read(pid)?)))
        .collect()
}

/// Living members of a process group.
pub(crate) fn group_members(group: u32) -> Vec<u32> {
    scan()
        .into_iter()
        .filter(|(_, stat)| stat.group == group && !stat.is_dead())
        .map(|(pid, _)| pid)
        .collect()
}

/// Living descendants of a process, itself not included.
pub(crate) fn descendants(root: u32) -> Vec<u32> {
    let all = scan();
    let mut family = BTreeSet::from([root]);
    // Parents have no order by id, so repeat until nobody is added; a generation a round.
    loop {
        let before = family.len();
        family.extend(
            all.iter()
                .filter(|(_, stat)| family.contains(&stat.parent))
                .map(|(pid, _)| *pid)
                .collect::<Vec<_>>(),
        );
        if family.len() == before {
            break;
        }
    }
    all.iter()
        .filter(|(pid, stat)| *pid != root && family.contains(pid) && !stat.is_dead())
        .map(|(pid, _)| *pid)
        .collect()
}

/// Whether the process of this id lives and carries this entry (`KEY=value`) in the environment it was started with.
pub(crate) fn carries(pid: u32, entry: &str) -> bool {
    Stat::read(pid).is_some_and(|stat| !stat.is_dead()) && has_entry(pid, entry)
}

fn has_entry(pid: u32, entry: &str) -> bool {
    std::fs::read(Path::new("/proc").join(pid.to_string()).join("environ"))
        .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|item| item == entry.as_bytes()))
}

/// Living processes that carry this entry (`KEY=value`) in the environment they were started with.
pub(crate) fn with_environment(entry: &str) -> Vec<ProcessRef> {
    scan()
        .into_iter()
        .filter(|(_, stat)| !stat.is_dead())
        .filter(|(pid, _)| has_entry(*pid, entry))
        .filter_map(|(pid, _)| ProcessRef::of(pid))
        .collect()
}

/// Living members of the group of a command that nobody supervises any more, known by the entry that all it starts carries. Without
/// the id of its leader the group is that of a member which leads one.
pub(crate) fn orphans_of(leader: Option<u32>, entry: &str) -> Vec<ProcessRef> {
    let carriers: Vec<(u32, Stat)> =
        scan().into_iter().filter(|(pid, stat)| !stat.is_dead() && has_entry(*pid, entry)).collect();
    let leads = |(pid, stat): &&(u32, Stat)| *pid == stat.group;
    let Some(group) = leader.or_else(|| carriers.iter().find(leads).map(|(pid, _)| *pid)) else {
        return Vec::new();
    };
    let members = carriers.into_iter().filter(|(_, stat)| stat.group == group);
    members.filter_map(|(pid, _)| ProcessRef::of(pid)).collect()
}

/// Sends a signal to a process group; that it is gone already is fine.
pub(crate) fn signal_group(group: u32, signal: Signal) {
    if let Some(group) = to_pid(group) {
        // ESRCH: nobody is left. EPERM: what is left changed its user, and is not ours to end.
        let _ = rustix::process::kill_process_group(group, signal);
    }
}

/// Sends a signal to one process; that it is gone already is fine. Only for processes that can't have been reaped yet.
pub(crate) fn signal_process(pid: u32, signal: Signal) {
    if let Some(pid) = to_pid(pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn to_pid(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

/// `SIGTERM` for 15 and so on; `signal N` for one without a name.
pub(crate) fn signal_name(number: i32) -> String {
    let name = match number {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        other => return format!("signal {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_does_not_shift_the_fields() {
        let text = b"4121 (a) b (c) S 17 4000 3999 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 2";
        let stat = Stat::parse(text).expect("parses");
        assert_eq!((stat.parent, stat.group, stat.start_ticks), (17, 4000, 987_654));
        assert!(!stat.is_dead());
    }

    #[test]
    fn a_reused_id_is_not_the_same_process() {
        let me = ProcessRef::current().expect("this test runs");
        assert!(me.is_alive());
        assert!(!ProcessRef { start_ticks: me.start_ticks + 1, ..me.clone() }.is_alive());
        assert!(!ProcessRef { world: "another boot".to_owned(), ..me }.is_alive());
    }
}
