//! Two runs want one environment: one at a time, and whoever was stopped for longer than its lease changes nothing any more.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

use cdpipe_tests::deployed::comes_true;
use cdpipe_tests::place::Place;
use rustix::process::{Pid, Signal, kill_process};
use std::process::{Child, Stdio};
use std::time::Duration;

/// A service whose deploy takes its time: three instances, one after the other, and a while between them.
const PIPELINE: &str = r#"
pipeline NAME {
  mode = deployment
}

param version: string

environment here {
  target local {}
}

service web {
  command  = ["sh", "-c", "exec sleep 600"]
  version  = version
  replicas = 2
  env      { VERSION = version }
  health command "true" { every = 100ms, timeout = 2s, within = 20s }
  drain    = 0s
}

stage production {
  deploy web to here {
    rolling { monitor = 0s, pause = PAUSE }
  }
}
"#;

const LONG: Duration = Duration::from_secs(60);

struct Run {
    child: Child,
    said: std::path::PathBuf,
}

impl Run {
    /// Starts a run of the pipeline `name`, which is written first.
    fn start(place: &Place, name: &str, version: &str, pause: &str) -> Self {
        let text = PIPELINE.replace("NAME", name).replace("PAUSE", pause);
        place.write(&format!("{name}.cd"), text).unwrap();
        let said = place.work().join(format!("{name}-{version}.txt"));
        let out = std::fs::File::create(&said).unwrap();
        let child = place
            .command(["run", &format!("{name}.cd"), "--set", &format!("version={version}")])
            .stdin(Stdio::null())
            .stderr(out.try_clone().unwrap())
            .stdout(out)
            .spawn()
            .unwrap();
        Self { child, said }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap()
    }

    #[track_caller]
    fn says(&self, text: &str) {
        assert!(comes_true(LONG, || self.said().contains(text)), "{text:?} is missing from\n{}", self.said());
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    #[track_caller]
    fn ends(&mut self) -> Option<i32> {
        let mut code = None;
        let ended = comes_true(LONG, || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        assert!(ended, "it does not end; it said\n{}", self.said());
        code.unwrap().code()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // One that was stopped can't be ended by anything gentler; most have ended by now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is written down for each release, and which processes run: all that a run could change.
fn state(place: &Place) -> (Vec<(String, String)>, Vec<i32>) {
    let mut files = Vec::new();
    let mut folders = vec![place.state().join("local")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name == "release.json" || name == "instance.json") {
                files.push((path.display().to_string(), std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.sort();
    let mut services: Vec<i32> = place
        .running()
        .into_iter()
        .filter(|process| process.command.starts_with("sleep 600"))
        .map(|process| process.pid)
        .collect();
    services.sort_unstable();
    (files, services)
}

#[test]
fn two_runs_that_race_for_one_environment_take_turns() {
    let place = Place::new().unwrap();
    let mut first = Run::start(&place, "one", "v1", "2s");
    let mut second = Run::start(&place, "two", "v2", "2s");
    let ended = (first.ends(), second.ends());
    assert_eq!(ended, (Some(0), Some(0)), "{}\n{}", first.said(), second.said());
    let (files, services) = state(&place);
    assert!(!files.is_empty());
    assert_eq!(services.len(), 2, "two instances of whoever came last, and none of the other");
    let held = place.run(["locks"]).unwrap();
    assert!(held.stderr.contains("no lock is held"), "{held:?}");
}

#[test]
fn an_owner_that_is_stopped_past_its_lease_is_fenced_out() {
    let mut place = Place::new().unwrap();
    place.set("CDPIPE_LEASE", "2s");
    assert_eq!(Run::start(&place, "zero", "v0", "0s").ends(), Some(0));
    // In the middle of its deploy, between two batches.
    let mut first = Run::start(&place, "one", "v1", "4s");
    first.says("pause");
    first.signal(Signal::STOP);
    // Its lease ends, and after as long again the next in line may have the lock.
    let mut second = Run::start(&place, "two", "v2", "0s");
    second.says("waiting for lock");
    assert_eq!(second.ends(), Some(0), "{}", second.said());
    let before = state(&place);
    assert_eq!(before.1.len(), 2);
    first.signal(Signal::CONT);
    let code = first.ends();
    assert!(matches!(code, Some(1 | 4)), "{code:?}: {}", first.said());
    assert!(first.said().contains("was lost") || first.said().contains("was taken"), "{}", first.said());
    assert_eq!(state(&place), before, "nothing it does after that changes anything: {}", first.said());
    let status = place.run(["locks"]).unwrap();
    assert!(status.stderr.contains("no lock is held"), "{status:?}");
}
