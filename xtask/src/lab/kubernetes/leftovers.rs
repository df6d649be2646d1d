//! What pods leave behind when their node goes: shims and the processes under them, mounts, network namespaces, rules. All of it is found by
//! what carries this checkout's own path or name, so that no other cluster or engine of the machine is touched.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::{Place, Trouble};
use super::{ONE_CALL_WITHIN, settings};
use crate::process::Job;
use crate::{project, sys};

/// How long the processes of pods may take to go after KILL.
const GONE_WITHIN: Duration = Duration::from_secs(15);
/// Which checkout's kube-proxy has written the rules of this machine: `PID TICKS`, then the path of its folder.
const CLAIM: &str = "/run/cdpipe-lab-kube-proxy";

/// Says that the rules of kube-proxy are ours.
pub(super) fn claim(place: &Place) -> Result<(), Trouble> {
    let pid = fs::read_to_string(place.dir.join("kube-proxy.pid"))
        .map_err(|error| Trouble::Broken(format!("kube-proxy.pid: {error}")))?;
    fs::write(CLAIM, format!("{}\n{}\n", pid.trim(), place.dir.display()))
        .map_err(|error| Trouble::Broken(format!("{CLAIM}: {error}")))
}

/// The folder of the other checkout whose kube-proxy is at work on this machine.
pub(super) fn claimed() -> Option<String> {
    let text = fs::read_to_string(CLAIM).ok()?;
    let (process, folder) = text.trim().split_once('\n')?;
    let (pid, ticks) = process.split_once(' ')?;
    let runs = sys::start_ticks(pid.parse().ok()?).is_some_and(|found| found.to_string() == ticks);
    runs.then(|| folder.to_owned())
}

fn ctr(place: &Place, args: &[&str]) -> Option<Job> {
    let binary = project::find("ctr")?;
    let socket = settings::socket(place).display().to_string();
    let args = [&["--address", &socket, "--namespace", "k8s.io"], args].concat();
    Some(Job::new(binary, args, ONE_CALL_WITHIN))
}

fn listed(place: &Place, args: &[&str]) -> Vec<String> {
    let said = ctr(place, args).and_then(|job| job.capture().ok()).filter(|ended| ended.ok());
    said.map(|ended| ended.output.split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
}

/// Ends what runs in pods, while containerd still answers; then the shims that are left, and the network namespaces.
pub(super) fn end_pods(place: &Place) -> Result<(), String> {
    let containers = listed(place, &["containers", "list", "--quiet"]);
    let mut namespaces = BTreeSet::new();
    for id in &containers {
        let said = ctr(place, &["containers", "info", id]).and_then(|job| job.capture().ok());
        let output = said.map(|ended| ended.output).unwrap_or_default();
        namespaces.extend(
            output
                .split('"')
                .filter(|word| word.contains("/run/netns/cni-"))
                .map(|word| word.rsplit('/').next().unwrap_or(word).to_owned()),
        );
    }
    for id in listed(place, &["tasks", "list", "--quiet"]) {
        if let Some(job) = ctr(place, &["tasks", "delete", "--force", &id]) {
            job.capture()?;
        }
    }
    for id in &containers {
        if let Some(job) = ctr(place, &["containers", "delete", id]) {
            job.capture()?;
        }
    }
    end_shims(place)?;
    if let Some(ip) = project::find("ip") {
        for namespace in namespaces {
            Job::new(&ip, ["netns", "delete", &namespace], ONE_CALL_WITHIN).capture()?;
        }
    }
    Ok(())
}

/// Shims name the socket of their containerd. Each is the leader of a group of its own.
fn end_shims(place: &Place) -> Result<(), String> {
    let socket = settings::socket(place).display().to_string();
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        let shims = shims(&socket);
        if shims.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("shims of pods do not end: {shims:?}"));
        }
        for pid in shims {
            sys::kill_group(pid, sys::Signal::Kill);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn shims(socket: &str) -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        let is_shim = words.next().is_some_and(|name| name.ends_with(b"containerd-shim-runc-v2"));
        is_shim && words.any(|word| word == socket.as_bytes()) && sys::start_ticks(*pid).is_some()
    })
    .collect()
}

/// Takes away mounts, rules, the bridge and the files of the network.
pub(super) fn clear(place: &Place) -> Result<(), String> {
    for mount in mounts(&place.dir) {
        if let Some(umount) = project::find("umount") {
            Job::new(umount, ["--lazy".as_ref(), mount.as_os_str()], ONE_CALL_WITHIN).capture()?;
        }
    }
    let ours = fs::read_to_string(CLAIM)
        .is_ok_and(|text| text.lines().nth(1).is_some_and(|dir| Path::new(dir) == place.dir));
    if let (true, Some(nft)) = (ours, project::find("nft")) {
        for family in ["ip", "ip6"] {
            Job::new(&nft, ["delete", "table", family, "kube-proxy"], ONE_CALL_WITHIN).capture()?;
        }
        fs::remove_file(CLAIM).map_err(|error| format!("{CLAIM}: {error}"))?;
    }
    let bridge = settings::bridge();
    if let Some(ip) = project::find("ip").filter(|_| Path::new("/sys/class/net").join(&bridge).exists()) {
        Job::new(ip, ["link", "delete", &bridge], ONE_CALL_WITHIN).capture()?;
    }
    // What the plugins remember of each address they gave.
    let prefix = format!("{bridge}-");
    for entry in fs::read_dir("/var/lib/cni/results").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            fs::remove_file(entry.path()).map_err(|error| format!("{}: {error}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Mounts in a folder, the innermost first.
fn mounts(dir: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(path.replace("\\040", " ")))
        .filter(|path| path.starts_with(dir) && path != dir)
        .collect();
    found.reverse();
    found
}
