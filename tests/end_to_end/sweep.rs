//! The real binary, the real target and the real proxy, killed before and after every batch of the journal, and once more
//! inside the recovery: the same end as the run that did not crash, and nothing done twice.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

use cdpipe_tests::deployed::{Deployed, FILE, comes_true};
use cdpipe_tests::processes::{self, Ended};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(90);

struct Sweep {
    shop: Deployed,
    starts: std::path::PathBuf,
    ran: std::path::PathBuf,
    releases: u32,
    stable: String,
}

impl Sweep {
    fn begin(strategy: &str) -> Self {
        let folder = tempfile::tempdir().unwrap().keep();
        let (starts, ran) = (folder.join("starts"), folder.join("ran"));
        let pipeline = include_str!("../pipelines/sweep.cd")
            .replace("@STRATEGY@", strategy)
            .replace("@STARTS@", &starts.to_string_lossy())
            .replace("@RAN@", &ran.to_string_lossy());
        let shop = Deployed::with(&pipeline).unwrap();
        let first = shop.deploy("v0", "").unwrap();
        assert_eq!(first.code, Some(0), "{first:?}");
        Self { shop, starts, ran, releases: 0, stable: "v0".to_owned() }
    }

    fn cdpipe(&self, arguments: &[&str], crash: &str) -> Ended {
        let mut command = self.shop.place.command(arguments);
        if !crash.is_empty() {
            command.env("CDPIPE_CRASH", crash);
        }
        processes::run(&mut command, LIMIT).unwrap()
    }

    /// One deploy with a crash at a boundary, and one in its recovery; whether the boundary was reached.
    fn crash(&mut self, fault: &str, crash: &str, again: &str) -> bool {
        self.releases += 1;
        let version = format!("v{}", self.releases);
        let case = format!("{version} {fault} {crash} then {again}");
        let (version_is, fault_is) = (format!("version={version}"), format!("fault={fault}"));
        let run = self.cdpipe(&["run", FILE, "--set", &version_is, "--set", &fault_is], crash);
        let expected = if fault.is_empty() { 0 } else { 3 };
        let mut told = format!("{case}\n{}{}", run.stdout, run.stderr);
        let reached = run.code.is_none();
        let mut code = run.code;
        if reached && !self.is_over() {
            let mut resumed = self.cdpipe(&["resume"], again);
            told = format!("{told}\n-- resumed\n{}{}", resumed.stdout, resumed.stderr);
            if resumed.code.is_none() && !self.is_over() {
                resumed = self.cdpipe(&["resume"], "");
                told = format!("{told}\n-- resumed again\n{}{}", resumed.stdout, resumed.stderr);
            }
            code = resumed.code;
        }
        if code.is_none() {
            // Killed by its last record: there is nothing left to resume, and the list of runs says how it ended.
            code = Some(self.exit_code());
        }
        assert_eq!(code, Some(expected), "{told}");
        if fault.is_empty() {
            self.stable = version.clone();
        }
        let answer = self.shop.ask().unwrap();
        assert_eq!((answer.status, &answer.version), (200, &self.stable), "{told}");
        // What was started, was started once for each instance; a resume adopts what its dead engine began.
        let starts = std::fs::read_to_string(&self.starts).unwrap();
        let started = starts.lines().filter(|line| *line == version).count();
        let fine = if fault.is_empty() { started == 2 } else { started <= 2 };
        assert!(fine, "{version} was started {started} times\n{told}");
        let ran = std::fs::read_to_string(&self.ran).unwrap();
        let ran: Vec<&str> =
            ran.lines().filter(|line| line.split(' ').nth(1) == Some(version.as_str())).collect();
        let commands = [format!("verify {version}"), format!("after {version}")];
        assert_eq!(ran, if fault.is_empty() { commands.as_slice() } else { &[] }, "{told}");
        let alone = comes_true(Duration::from_secs(10), || self.instances() == 2);
        assert!(alone, "{} instances\n{told}\n{:#?}", self.instances(), self.shop.place.running());
        reached
    }

    fn newest_run(&self) -> serde_json::Value {
        let runs = self.cdpipe(&["runs", "--json", "--limit", "1"], "");
        let runs: serde_json::Value = serde_json::from_str(&runs.stdout).unwrap();
        runs["runs"][0].clone()
    }

    fn is_over(&self) -> bool {
        !self.newest_run()["ended_at_ms"].is_null()
    }

    fn exit_code(&self) -> i32 {
        match self.newest_run()["state"].as_str() {
            Some("succeeded") => 0,
            Some("rolled_back") => 3,
            other => panic!("it ended as {other:?}"),
        }
    }

    /// Processes of the shop, of whatever release.
    fn instances(&self) -> usize {
        let shop = cdpipe_tests::place::binary("shop").unwrap();
        let shop = shop.to_string_lossy();
        self.shop.place.running().iter().filter(|process| process.command.trim_end() == shop).count()
    }

    fn sweep(strategy: &str, fault: &str) {
        let mut sweep = Self::begin(strategy);
        let mut boundaries = 0;
        for batch in 1.. {
            // The recovery has its own boundaries, and each of its first ones gets its turn.
            let again = format!("after:{}", 1 + batch % 7);
            if !sweep.crash(fault, &format!("before:{batch}"), &again) {
                break;
            }
            assert!(sweep.crash(fault, &format!("after:{batch}"), ""), "it ended sooner than before");
            boundaries += 1;
        }
        assert!(boundaries >= 10, "{strategy} has only {boundaries} boundaries");
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        let _ = self.starts.parent().map(std::fs::remove_dir_all);
    }
}

#[test]
fn rolling() {
    Sweep::sweep("rolling { monitor = 100ms }", "");
}

#[test]
fn blue_green() {
    Sweep::sweep("blue_green { keep_old = 100ms }", "");
}

#[test]
fn canary() {
    Sweep::sweep("canary { step 50% for 100ms }", "");
}

#[test]
fn recreate() {
    Sweep::sweep("recreate {}", "");
}

#[test]
fn the_way_back() {
    Sweep::sweep("canary { step 50% for 100ms }\n    timeout = 2s", "never-healthy");
}
