//! nginx's processes where it runs: which workers there are, and which of them are on their way out.

use serde::{Deserialize, Serialize};

/// Lists every nginx worker of the place. `grep` and `cat` are wherever `sh` is; `ps` is not.
pub(crate) const LIST: &str = "cd /proc || exit 1\n\
    all=$(grep -ls '^nginx: worker process' [0-9]*/cmdline)\n\
    echo quitting $(grep -ls '^nginx: worker process is shutting down' [0-9]*/cmdline)\n\
    for file in $all; do cat \"${file%cmdline}stat\" 2>/dev/null; done\n\
    exit 0\n";

/// A worker that can't be mistaken for a later process of the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Worker {
    /// Process id.
    pub(crate) pid: u32,
    /// Start time in clock ticks since boot.
    pub(crate) start: u64,
}

/// A worker that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) worker: Worker,
    /// Its master.
    pub(crate) parent: u32,
    /// It takes no new connections and ends with its last one.
    pub(crate) quitting: bool,
}

/// Reads what [`LIST`] says. A process that has ended meanwhile is not in it.
pub(crate) fn parse(text: &str) -> Vec<Seen> {
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    let quitting: Vec<u32> =
        first.split_whitespace().filter_map(|word| word.strip_suffix("/cmdline")?.parse().ok()).collect();
    let seen = |line: &str| {
        let pid = line.split(' ').next()?.parse().ok()?;
        // The name may hold blanks and brackets, so fields are counted from the last bracket.
        let rest: Vec<&str> = line.get(line.rfind(')')? + 1..)?.split_whitespace().collect();
        if matches!(rest.first(), Some(&"Z" | &"X")) {
            return None;
        }
        Some(Seen {
            worker: Worker { pid, start: rest.get(19)?.parse().ok()? },
            parent: rest.get(1)?.parse().ok()?,
            quitting: quitting.contains(&pid),
        })
    };
    lines.filter_map(seen).collect()
}

/// The workers of the same master as this one; `None` if this one is not to be seen.
pub(crate) fn siblings(seen: &[Seen], pid: u32) -> Option<Vec<Seen>> {
    let master = seen.iter().find(|seen| seen.worker.pid == pid)?.parent;
    Some(seen.iter().filter(|seen| seen.parent == master).copied().collect())
}

/// The workers of the one nginx that there is; `None` if there are several, of which nobody says which is meant.
pub(crate) fn only(seen: &[Seen]) -> Option<Vec<Seen>> {
    let master = seen.first().map(|seen| seen.parent);
    seen.iter().all(|seen| Some(seen.parent) == master).then(|| seen.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_told_from_those_that_are_on_their_way_out() {
        let text = "quitting 71/cmdline 9/cmdline\n\
            70 (nginx) S 60 60 60 0 -1 4194624 100 0 0 0 1 2 0 0 20 0 1 0 5555 1 2 3\n\
            71 (ng) x) S 60 60 60 0 -1 4194624 100 0 0 0 1 2 0 0 20 0 1 0 4444 1 2 3\n\
            72 (nginx) Z 60 60 60 0 -1 4194624 100 0 0 0 1 2 0 0 20 0 1 0 6666 1 2 3\n\
            80 (nginx) S 61 61 61 0 -1 4194624 100 0 0 0 1 2 0 0 20 0 1 0 7777 1 2 3\n";
        let seen = parse(text);
        let worker = |pid, start, parent, quitting| Seen { worker: Worker { pid, start }, parent, quitting };
        assert_eq!(
            seen,
            [worker(70, 5555, 60, false), worker(71, 4444, 60, true), worker(80, 7777, 61, false)]
        );
        assert_eq!(siblings(&seen, 71).map(|all| all.len()), Some(2));
        assert_eq!(siblings(&seen, 99), None);
    }
}
