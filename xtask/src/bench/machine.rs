//! The facts without which a figure means nothing: machine, system, compiler, commit, and how busy the machine was.

use std::time::Duration;

use crate::process::Job;

/// Names and values, in the order of showing.
pub(crate) fn facts(profile: &str) -> Vec<(&'static str, String)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read("/proc/meminfo");
    let memory_kib: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or(0);
    let load = read("/proc/loadavg");
    let load: Vec<&str> = load.split(' ').take(3).collect();
    vec![
        ("date", said("date", &["-u", "+%Y-%m-%d %H:%M UTC"])),
        ("commit", said("git", &["describe", "--always", "--dirty", "--abbrev=10"])),
        ("cpu", format!("{}, {cores} cores", model.unwrap_or("unknown"))),
        ("memory", format!("{} GiB", memory_kib >> 20)),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("load", format!("{} before the run (1, 5, 15 min)", load.join(" "))),
        ("rustc", said("rustc", &["--version"])),
        ("profile", profile.to_owned()),
    ]
}

fn said(program: &str, args: &[&str]) -> String {
    Job::new(program, args, Duration::from_secs(10))
        .capture()
        .ok()
        .filter(crate::process::Ended::ok)
        .map_or_else(|| "unknown".to_owned(), |ended| ended.output.trim().to_owned())
}
