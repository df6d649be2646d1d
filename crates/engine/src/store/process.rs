//! Who a process is, so that another one can tell whether it still lives.

use serde::{Deserialize, Serialize};
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

/// An owner of another host or container is taken for dead when it has not been heard of for so long.
pub(super) const FOREIGN_SILENCE_MS: u64 = 60_000;

/// A process, told from every other one that ever had its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Name of the host.
    pub host: String,
    /// Boot of the kernel, and the namespace that `pid` counts in: two containers of one host have different ones. Empty where
    /// the system does not say.
    pub place: String,
    /// When it started, in ticks since that boot; 0 where the system does not say.
    pub started_ticks: u64,
}

impl Process {
    /// This process.
    pub fn current() -> Self {
        let pid = std::process::id();
        Self { pid, host: host_name(), place: place(), started_ticks: started_ticks(pid).unwrap_or(0) }
    }

    /// Whether it lives. A process of this host and namespace is looked up; one of another place is believed alive for
    /// `FOREIGN_SILENCE_MS` after it was last heard of.
    pub(super) fn is_alive(&self, heartbeat_ms: u64, now_ms: u64) -> bool {
        if self.host != host_name() || self.place != place() {
            // After a reboot of this host the boot id differs and nothing of before lives. Only the namespace may differ.
            let same_boot = self.place.split('/').next() == place().split('/').next();
            let rebooted = self.host == host_name() && !same_boot;
            return !rebooted && now_ms.saturating_sub(heartbeat_ms) < FOREIGN_SILENCE_MS;
        }
        match started_ticks(self.pid) {
            Some(ticks) => ticks == self.started_ticks,
            None => self.started_ticks == 0 && exists(self.pid),
        }
    }
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} on {}", self.pid, self.host)
    }
}

/// Milliseconds since 1970.
pub(super) fn wall_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn place() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let text = format!("{}/{}", boot.trim(), namespace.display());
    if text == "/" { String::new() } else { text }
}

/// Field 22 of `/proc/PID/stat`; the name in field 2 may hold blanks and brackets. A zombie no longer lives.
fn started_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn exists(pid: u32) -> bool {
    i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_a_later_one_of_its_number_is_another() {
        let me = Process::current();
        assert!(me.is_alive(0, u64::MAX));
        let other = Process { started_ticks: me.started_ticks + 1, ..me };
        assert!(!other.is_alive(u64::MAX, u64::MAX));
    }

    #[test]
    fn a_process_of_before_the_reboot_is_dead_and_one_elsewhere_is_believed_for_a_while() {
        let me = Process::current();
        let namespace = me.place.split_once('/').map_or("", |(_, namespace)| namespace).to_owned();
        let before = Process { place: format!("another-boot/{namespace}"), ..me.clone() };
        assert!(!before.is_alive(1_000, 1_000));
        let elsewhere = Process { host: "elsewhere".into(), ..me };
        assert!(elsewhere.is_alive(1_000, 1_000 + FOREIGN_SILENCE_MS - 1));
        assert!(!elsewhere.is_alive(1_000, 1_000 + FOREIGN_SILENCE_MS));
    }
}
