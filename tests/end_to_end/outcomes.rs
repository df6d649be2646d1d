//! Each outcome of a run with its exit code, what users are answered after it, and what is left running.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

use cdpipe_tests::deployed::{Deployed, comes_true};
use cdpipe_tests::lab;
use cdpipe_tests::load::{Kind, Load, Mix, Running};
use cdpipe_tests::place::{Place, binary};
use cdpipe_tests::processes::Ended;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The shop of `pipelines/shop.cd`, whose binary has a name of its own for each version.
fn shop() -> Deployed {
    let shop = Deployed::with(include_str!("../pipelines/shop.cd")).unwrap();
    for version in ["v1", "v2"] {
        std::fs::copy(binary("shop").unwrap(), shop.place.work().join(format!("shop-{version}"))).unwrap();
    }
    shop
}

fn visitors(shop: &Deployed) -> Running {
    Load { mix: Mix::only(Kind::Short), ..Load::on(shop.address) }.start().unwrap()
}

fn answers(shop: &Deployed) -> (u16, String) {
    let answer = shop.ask().unwrap();
    (answer.status, answer.version)
}

/// How many instances of a version run.
fn instances(shop: &Deployed, version: &str) -> usize {
    let program = format!("shop-{version}");
    shop.place
        .running()
        .iter()
        .filter(|process| process.command.split(' ').next().unwrap().ends_with(&program))
        .count()
}

#[track_caller]
fn assert_ended(ended: &Ended, code: i32, says: &[&str]) {
    assert_eq!(ended.code, Some(code), "stdout:\n{}\nstderr:\n{}", ended.stdout, ended.stderr);
    let said = format!("{}{}", ended.stdout, ended.stderr);
    for part in says {
        assert!(said.contains(part), "{part:?} is missing from\n{said}");
    }
}

#[test]
fn a_good_release_takes_over_and_the_old_one_goes() {
    let shop = shop();
    assert_ended(&shop.deploy("v1", "").unwrap(), 0, &[]);
    assert_eq!(answers(&shop), (200, "v1".to_owned()));
    let users = visitors(&shop);
    assert_ended(&shop.deploy("v2", "").unwrap(), 0, &[]);
    assert_eq!(answers(&shop), (200, "v2".to_owned()));
    let report = users.stop().unwrap();
    assert!(report.failures().is_empty(), "{report}");
    assert!(comes_true(Duration::from_secs(5), || instances(&shop, "v1") == 0), "{:?}", shop.place.running());
    assert_eq!(instances(&shop, "v2"), 1);
    // The same again is nothing to do.
    assert_ended(&shop.deploy("v2", "").unwrap(), 0, &["unchanged"]);
}

#[test]
fn a_release_whose_errors_rise_is_rolled_back() {
    let shop = shop();
    assert_ended(&shop.deploy("v1", "").unwrap(), 0, &[]);
    let users = visitors(&shop);
    assert_ended(&shop.deploy("v2", "errors=40%").unwrap(), 3, &["error_rate"]);
    assert_eq!(answers(&shop), (200, "v1".to_owned()));
    let report = users.stop().unwrap();
    // Its errors were real answers to users; nothing else went wrong.
    assert!(!report.failures().is_empty());
    assert!(report.failures().iter().all(|record| record.status == Some(500)), "{report}");
    assert!(comes_true(Duration::from_secs(5), || instances(&shop, "v2") == 0), "{:?}", shop.place.running());
}

#[test]
fn a_first_release_that_never_becomes_healthy_fails_and_is_removed() {
    let shop = shop();
    assert_ended(&shop.deploy("v1", "never-healthy").unwrap(), 1, &["/health", "503"]);
    assert!(comes_true(Duration::from_secs(5), || instances(&shop, "v1") == 0), "{:?}", shop.place.running());
}

#[test]
fn a_later_release_that_never_becomes_healthy_is_rolled_back_and_no_user_meets_it() {
    let shop = shop();
    assert_ended(&shop.deploy("v1", "").unwrap(), 0, &[]);
    let users = visitors(&shop);
    assert_ended(&shop.deploy("v2", "never-healthy").unwrap(), 3, &["/health", "503"]);
    let report = users.stop().unwrap();
    assert!(report.failures().is_empty(), "{report}");
    assert!(report.records().iter().all(|record| record.version.as_deref() == Some("v1")), "{report}");
    assert!(comes_true(Duration::from_secs(5), || instances(&shop, "v2") == 0), "{:?}", shop.place.running());
}

#[test]
fn a_release_that_crashes_is_rolled_back() {
    let shop = shop();
    assert_ended(&shop.deploy("v1", "").unwrap(), 0, &[]);
    assert_ended(&shop.deploy("v2", "crash-after=50ms").unwrap(), 3, &[]);
    assert_eq!(answers(&shop), (200, "v1".to_owned()));
}

#[test]
fn when_the_old_release_can_not_come_back_a_person_is_called() {
    let shop = shop();
    assert_ended(&shop.deploy("v1", "").unwrap(), 0, &[]);
    let users = visitors(&shop);
    // While the candidate goes bad, the stable release's program vanishes and its instance dies: there is nothing to
    // go back to.
    let mut run = shop.place.command(["run", "shop.cd", "--set", "version=v2", "--set", "fault=errors=40%"]);
    let run = run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(comes_true(Duration::from_secs(20), || instances(&shop, "v2") == 1));
    std::fs::remove_file(shop.place.work().join("shop-v1")).unwrap();
    for process in shop.place.running().iter().filter(|process| process.command.contains("shop-v1")) {
        let _ = kill_process(Pid::from_raw(process.pid).unwrap(), Signal::KILL);
    }
    let output = run.wait_with_output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(4), "{said}");
    drop(users.stop());
    // A release that makes mistakes serves better than none.
    assert_eq!(instances(&shop, "v2"), 1, "{said}");
}

#[test]
fn a_taken_port_is_said_and_nothing_is_left() {
    let shop = shop();
    let taken = TcpListener::bind(shop.address).unwrap();
    assert_ended(
        &shop.deploy("v1", "").unwrap(),
        1,
        &[&format!("another program listens on {}", shop.address)],
    );
    assert!(comes_true(Duration::from_secs(5), || instances(&shop, "v1") == 0), "{:?}", shop.place.running());
    drop(taken);
    assert_ended(&shop.deploy("v1", "").unwrap(), 0, &[]);
    assert_eq!(answers(&shop), (200, "v1".to_owned()));
}

#[test]
fn ctrl_c_leaves_a_run_that_resumes() {
    let place = Place::new().unwrap();
    let pipeline = "stage first {\n  run \"echo one >> done\"\n}\nstage second {\n  needs = [first]\n  wait 2s\n  run \"echo two >> done\"\n}\n";
    place.write("slow.cd", pipeline).unwrap();
    let mut run = place.command(["run", "slow.cd"]);
    let run = run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(comes_true(Duration::from_secs(10), || place.work().join("done").exists()));
    kill_process(Pid::from_raw(run.id().cast_signed()).unwrap(), Signal::INT).unwrap();
    let output = run.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("cdpipe resume"), "{said}");
    assert_ended(&place.run(["resume"]).unwrap(), 0, &[]);
    assert_eq!(std::fs::read_to_string(place.work().join("done")).unwrap(), "one\ntwo\n");
}

/// A file system of a given size that is gone with the value.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn at(path: std::path::PathBuf, size: &str) -> Option<Self> {
        std::fs::create_dir_all(&path).ok()?;
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "cdpipe-test"])
            .arg(&path)
            .output();
        mount.is_ok_and(|mount| mount.status.success()).then_some(Self(path))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_full_disk_under_the_journal_stops_the_run_and_loses_nothing() {
    let place = Place::new().unwrap();
    let Some(_disk) = SmallDisk::at(place.state(), "2m") else {
        return lab::skip("a_full_disk_under_the_journal", "root and mount, for a disk that is full")
            .unwrap();
    };
    let pipeline = "stage first {\n  run \"echo one >> done\"\n  wait 3s\n}\n\
                    stage second {\n  needs = [first]\n  run \"echo two >> done\"\n}\n";
    place.write("full.cd", pipeline).unwrap();
    let mut run =
        place.command(["run", "full.cd"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A line is told when its record is in the journal, so from here on the first command is known to have ended.
    let mut lines = BufReader::new(run.stdout.take().unwrap());
    let mut told = String::new();
    while !told.contains("wait 3s") {
        assert_ne!(lines.read_line(&mut told).unwrap(), 0, "it ended without waiting:\n{told}");
    }
    // The wait gives time to fill the disk to its last byte.
    let filler = place.state().join("filler");
    assert!(std::fs::write(&filler, vec![0; 4 << 20]).is_err(), "the disk is larger than it was made");
    lines.read_to_string(&mut told).unwrap();
    let output = run.wait_with_output().unwrap();
    let said = told + &String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("full") && said.contains("cdpipe resume"), "{said}");
    assert_eq!(
        std::fs::read_to_string(place.work().join("done")).unwrap(),
        "one\n",
        "went on without a journal"
    );

    std::fs::remove_file(filler).unwrap();
    assert_ended(&place.run(["resume"]).unwrap(), 0, &[]);
    assert_eq!(std::fs::read_to_string(place.work().join("done")).unwrap(), "one\ntwo\n");
}

/// A disk whose writes fail although it has room: it is in a file, and nothing is left below that.
struct FailingDisk {
    below: SmallDisk,
    mount: std::path::PathBuf,
}

impl FailingDisk {
    fn at(mount: std::path::PathBuf, below: std::path::PathBuf) -> Option<Self> {
        let below = SmallDisk::at(below, "24m")?;
        let image = below.0.join("image");
        std::fs::File::create(&image).and_then(|file| file.set_len(64 << 20)).ok()?;
        std::fs::create_dir_all(&mount).ok()?;
        // Without a journal of its own it stays writable after an error.
        let made = Command::new("mkfs.ext4").args(["-q", "-O", "^has_journal"]).arg(&image).output();
        let mounted = || Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount).output();
        let done = |output: std::io::Result<std::process::Output>| output.is_ok_and(|it| it.status.success());
        (done(made) && done(mounted())).then_some(Self { below, mount })
    }

    fn fails(&self) {
        assert!(
            std::fs::write(self.below.0.join("filler"), vec![0; 32 << 20]).is_err(),
            "there is room left"
        );
    }

    fn works(&self) {
        std::fs::remove_file(self.below.0.join("filler")).unwrap();
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mount).output();
    }
}

#[test]
fn a_disk_that_fails_under_a_live_run_stops_it_before_the_effect_and_loses_nothing() {
    let place = Place::new().unwrap();
    let below = place.work().join("below");
    let Some(disk) = FailingDisk::at(place.state(), below) else {
        return lab::skip("a_disk_that_fails", "root, mount and mkfs.ext4, for a disk that fails").unwrap();
    };
    let pipeline = "environment here {\n  target local {}\n}\n\n\
                    service napper {\n  command = [\"/bin/sh\", \"-c\", \"echo napping >> $NOTES; exec sleep 600\"]\n  \
                    version = \"v1\"\n  env { NOTES = \"@NOTES@\" }\n  health command \"true\" { every = 100ms, within = 30s }\n}\n\n\
                    stage first {\n  run \"echo one >> done\"\n  wait 3s\n}\n\
                    stage second {\n  needs = [first]\n  deploy napper to here {\n    recreate {}\n  }\n}\n";
    let notes = place.work().join("notes");
    place.write("failing.cd", pipeline.replace("@NOTES@", notes.to_str().unwrap())).unwrap();
    let mut run =
        place.command(["run", "failing.cd"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(run.stdout.take().unwrap());
    let mut told = String::new();
    while !told.contains("wait 3s") {
        assert_ne!(lines.read_line(&mut told).unwrap(), 0, "it ended without waiting:\n{told}");
    }
    disk.fails();
    lines.read_to_string(&mut told).unwrap();
    let output = run.wait_with_output().unwrap();
    let said = told + &String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("disk I/O error") && said.contains("cdpipe resume"), "{said}");
    assert!(!notes.exists(), "an instance was started whose start is not on the disk:\n{said}");

    disk.works();
    assert_ended(&place.run(["resume"]).unwrap(), 0, &[]);
    assert_eq!(std::fs::read_to_string(place.work().join("done")).unwrap(), "one\n");
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), "napping\n");
    assert_ended(&place.run(["down", "failing.cd"]).unwrap(), 0, &[]);
}

#[test]
fn a_command_that_fills_the_disk_is_not_done_twice_behind_ones_back() {
    let place = Place::new().unwrap();
    let Some(_disk) = SmallDisk::at(place.state(), "1m") else {
        return lab::skip("a_command_that_fills_the_disk", "root and mount, for a disk that is full")
            .unwrap();
    };
    let pipeline = "stage only {\n  run \"echo one >> done; head -c 2000000 /dev/zero > $CDPIPE_STATE/filler; true\"\n}\n";
    place.write("fill.cd", pipeline).unwrap();
    assert_ended(&place.run(["run", "fill.cd"]).unwrap(), 1, &["cdpipe resume"]);
    std::fs::remove_file(place.state().join("filler")).unwrap();
    // The journal has no word of its end; its supervisor has, in what was left of the disk.
    assert_ended(
        &place.run(["resume"]).unwrap(),
        1,
        &["ended with exit status 1", "No space left on device"],
    );
    assert_eq!(std::fs::read_to_string(place.work().join("done")).unwrap(), "one\n");
}
