//! The runner with real commands.

#![allow(clippy::expect_used, reason = "a test says what it expects by panicking")]

#[allow(dead_code, reason = "each test binary uses a part")]
#[path = "support/context.rs"]
mod context;

use cdpipe_host::{HostRunner, Masker, RunnerConfig};
use cdpipe_model::action::{Answer, RunAction};
use cdpipe_model::ports::{Probe, Runner as _};
use cdpipe_model::secret::{SecretPart, SecretText};
use cdpipe_model::{Fault, Value};
use context::Context;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

struct Place {
    folder: tempfile::TempDir,
    runner: HostRunner,
    context: Context,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let runner = HostRunner::new(
            RunnerConfig {
                base: folder.path().to_owned(),
                commands: folder.path().join("commands"),
                supervisor: env!("CARGO_BIN_EXE_cdpipe-host-helper").into(),
                grace: Duration::from_millis(300),
                hidden_env: vec!["CARGO_PKG_NAME".to_owned()],
            },
            Masker::default(),
        );
        Self { folder, runner, context: Context::default() }
    }

    async fn run(&self, run: &RunAction) -> Result<BTreeMap<String, String>, Fault> {
        self.runner.run(self.context.call(), run).await
    }

    async fn script(&self, text: &str) -> Result<BTreeMap<String, String>, Fault> {
        self.run(&action(text)).await
    }

    fn said(&self) -> Vec<String> {
        self.context.sink.0.lock().expect("not poisoned").clone()
    }

    /// Everything that is on disk of the run, but sockets.
    fn kept(&self) -> String {
        let folder = self.folder.path().join("commands").join("20261123-151905-7f3a");
        let mut kept = String::new();
        for entry in std::fs::read_dir(folder).expect("is there") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                kept.push_str(&String::from_utf8_lossy(&std::fs::read(path).expect("reads")));
            }
        }
        kept
    }
}

fn action(script: &str) -> RunAction {
    RunAction {
        script: script.to_owned(),
        env: BTreeMap::new(),
        dir: None,
        stdin: None,
        image: None,
        environment: None,
        outputs: Vec::new(),
    }
}

fn secret(before: &str, name: &str) -> Value {
    Value::Secret(SecretText(vec![SecretPart::Text(before.to_owned()), SecretPart::Secret(name.to_owned())]))
}

#[tokio::test]
async fn output_of_both_streams_is_seen_and_kept() {
    let place = Place::new();
    place
        .script("echo one; sleep 0.05; echo two >&2; printf 'a\\rb\\377\\n'; printf end")
        .await
        .expect("succeeds");
    let mut said = place.said();
    let err = said.iter().position(|line| line == "err: two").expect("stderr");
    said.remove(err);
    assert_eq!(said, ["out: one", "out: a", "out: b\u{fffd}", "out: end"]);
}

#[tokio::test]
async fn a_script_ends_at_its_first_failure_and_says_why() {
    let place = Place::new();
    let fault = place
        .script("for i in $(seq 30); do echo $i; done\n(exit 3)\necho not here")
        .await
        .expect_err("fails");
    assert_eq!(fault.kind, "command-failed");
    assert!(
        fault.message.starts_with("`for i in $(seq 30); do echo $i; done` ended with exit status 3 after "),
        "{}",
        fault.message
    );
    assert_eq!(fault.details.len(), 20);
    assert_eq!(fault.details.last().map(String::as_str), Some("30"));
    let fault = place.script("kill -SEGV $$").await.expect_err("fails");
    assert!(fault.message.contains("was killed by SIGSEGV"), "{}", fault.message);
}

#[tokio::test]
async fn values_are_data_and_outputs_come_back() {
    let place = Place::new();
    std::fs::create_dir(place.folder.path().join("sub")).expect("a folder");
    let nasty = "$(touch /tmp/oops); `id` \"'\\ *\nsecond";
    let run = RunAction {
        env: BTreeMap::from([("CDPIPE_ARG_0".to_owned(), Value::Str(nasty.to_owned()))]),
        dir: Some("sub".to_owned()),
        stdin: Some(Value::Str("from stdin".to_owned())),
        outputs: vec!["arg".to_owned(), "in".to_owned(), "here".to_owned()],
        ..action(
            "{ printf 'arg<<E\\n%s\\nE\\n' \"$CDPIPE_ARG_0\"; echo in=$(cat); echo here=$(basename $PWD); echo other=x; } > $CDPIPE_OUTPUT",
        )
    };
    let outputs = place.run(&run).await.expect("succeeds");
    let expected = [("arg", nasty), ("here", "sub"), ("in", "from stdin")];
    assert_eq!(outputs, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    assert_eq!(place.said(), ["progress: output `other` is ignored: the stage does not declare it"]);
}

#[tokio::test]
async fn secrets_reach_the_command_and_nobody_else() {
    let mut place = Place::new();
    place.context.secrets.0.insert("token".to_owned(), "hunter22-long".to_owned());
    let run = RunAction {
        env: BTreeMap::from([("AUTH".to_owned(), secret("Bearer ", "token"))]),
        stdin: Some(secret("", "token")),
        ..action(
            "test \"$AUTH\" = 'Bearer hunter22'-long; test \"$(cat)\" = hunter22\"\"-long
             printf hunt; sleep 0.05; printf 'er22-long\\n'; echo $AUTH; printf %s \"x:${AUTH#* }\" | base64 >&2; false",
        )
    };
    let fault = place.run(&run).await.expect_err("ends with false");
    let all = format!("{:?} {:?} {fault:?}", place.said(), place.kept());
    assert!(!all.contains("hunter22-long") && !all.contains("b25n"), "{all}");
    assert!(all.contains("out: ***") && all.contains("out: Bearer ***") && all.contains("err: e"), "{all}");

    let run = RunAction { outputs: vec!["x".to_owned()], ..action("echo x=hunter22-long > $CDPIPE_OUTPUT") };
    assert_eq!(place.run(&run).await.expect_err("is refused").kind, "output-secret");
    assert!(!place.kept().contains("hunter22-long"), "{}", place.kept());
}

#[tokio::test]
async fn sources_of_secrets_are_not_inherited() {
    let place = Place::new();
    // Cargo sets both for this test; one of them was named as the source of a secret.
    place
        .script("echo ${CARGO_PKG_NAME-none} ${CARGO_PKG_VERSION-none} ${CDPIPE_OUTPUT-none}")
        .await
        .expect("succeeds");
    assert_eq!(place.said(), [format!("out: none {} none", env!("CARGO_PKG_VERSION"))]);
}

/// Processes whose command line has this mark.
fn marked(mark: &str) -> usize {
    std::fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("cmdline")).ok())
        .filter(|line| line.contains(mark))
        .count()
}

#[tokio::test]
async fn cancel_and_deadline_leave_nothing_of_the_group() {
    for cancelled in [true, false] {
        let mut place = Place::new();
        place.context.deadline = Duration::from_millis(if cancelled { 60_000 } else { 250 });
        let mark = format!("mark-{}-{cancelled}", std::process::id());
        // A child that ends when asked, and a grandchild that does not.
        let text = format!(
            "trap 'echo asked; exit 1' TERM; sh -c \"trap '' TERM; sh -c 'while :; do sleep 0.05; done' {mark}\" {mark} & echo up; while :; do sleep 0.05; done # {mark}"
        );
        let begun = Instant::now();
        let cancel = async {
            tokio::time::sleep(Duration::from_millis(250)).await;
            if cancelled {
                let _ = place.context.cancel.0.send_replace(true);
            }
        };
        let run = action(&text);
        let (result, ()) = tokio::join!(place.run(&run), cancel);
        let fault = result.expect_err("is ended");
        assert_eq!(fault.kind, if cancelled { "cancelled" } else { "timed-out" });
        // The shell itself says on stderr that its `sleep` was ended too.
        let mut said = place.said();
        said.retain(|line| line.starts_with("out"));
        assert_eq!(said, ["out: up", "out: asked"]);
        assert!(begun.elapsed() > Duration::from_millis(500), "the grace was given");
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert_eq!(marked(&mark), 0);
    }
}

#[tokio::test]
async fn a_background_process_that_holds_the_pipe_does_not_hold_the_step() {
    let place = Place::new();
    let begun = Instant::now();
    place.script("sleep 5 & echo done").await.expect("succeeds");
    assert_eq!(place.said(), ["out: done"]);
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_flood_of_output_is_bounded_in_memory_and_complete() {
    let place = Place::new();
    place
        .script("yes 0123456789 | head -n 200000; head -c 100000 /dev/zero | tr '\\0' x")
        .await
        .expect("succeeds");
    let said = place.said();
    assert_eq!(said.iter().filter(|line| *line == "out: 0123456789").count(), 200_000);
    assert_eq!(
        said.iter().filter(|line| line.starts_with("out: x")).map(|line| line.len() - 5).sum::<usize>(),
        100_000
    );
}

#[tokio::test]
async fn a_command_that_never_stops_writing_can_be_ended() {
    let mut place = Place::new();
    place.context.deadline = Duration::from_secs(1);
    let begun = Instant::now();
    let fault = place.script("exec yes 0123456789").await.expect_err("takes too long");
    assert_eq!((fault.kind.as_str(), fault.details.len()), ("timed-out", 20));
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_can_not_be_started_says_what_to_do() {
    let place = Place::new();
    let fault =
        place.run(&RunAction { dir: Some("nowhere".to_owned()), ..action("true") }).await.expect_err("fails");
    assert_eq!(fault.kind, "folder-missing");
    let fault = place
        .run(&RunAction { image: Some("alpine".to_owned()), ..action("true") })
        .await
        .expect_err("fails");
    assert_eq!(fault.kind, "image-unsupported");
    let fault = place
        .run(&RunAction {
            env: BTreeMap::from([("A".to_owned(), Value::Str("x".repeat(4 << 20)))]),
            ..action("true")
        })
        .await
        .expect_err("fails");
    assert!(fault.message.contains("too large"), "{}", fault.message);
}

/// How many supervisors of commands there are for this place.
fn supervisors(place: &Place) -> usize {
    marked(&place.folder.path().join("commands").display().to_string())
}

async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !reached() {
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Place {
    /// Another engine that goes on where this one stopped.
    fn resumed(self) -> Self {
        let runner = HostRunner::new(
            RunnerConfig {
                base: self.folder.path().to_owned(),
                commands: self.folder.path().join("commands"),
                supervisor: env!("CARGO_BIN_EXE_cdpipe-host-helper").into(),
                grace: Duration::from_millis(300),
                hidden_env: Vec::new(),
            },
            Masker::default(),
        );
        Self { folder: self.folder, runner, context: Context::default() }
    }

    /// Starts it and goes away before it has ended: the script waits for the file `go`.
    async fn begin(&self, outputs: &[&str], rest: &str) {
        let script =
            format!("echo x >> runs; echo before; touch up; until [ -e go ]; do sleep 0.01; done; {rest}");
        let run =
            RunAction { outputs: outputs.iter().map(|name| (*name).to_owned()).collect(), ..action(&script) };
        let up = self.folder.path().join("up");
        tokio::select! {
            _ = self.run(&run) => unreachable!("it waits"),
            () = until("the command is up", || up.exists()) => {}
        }
    }

    fn go(&self) {
        std::fs::write(self.folder.path().join("go"), "").expect("writes");
    }

    fn runs(&self) -> usize {
        std::fs::read_to_string(self.folder.path().join("runs")).expect("is there").lines().count()
    }

    async fn probe(&self) -> Probe {
        self.runner.probe(self.context.call()).await
    }
}

#[tokio::test]
async fn a_command_outlives_the_call_and_is_found_running() {
    let place = Place::new();
    place.begin(&["x"], "echo after; echo x=1 > $CDPIPE_OUTPUT").await;
    let place = place.resumed();
    let (probe, ()) = tokio::join!(place.probe(), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        place.go();
    });
    let outputs = BTreeMap::from([("x".to_owned(), "1".to_owned())]);
    assert_eq!(probe, Probe::Done(Answer::Exited { outputs }));
    assert!(place.said().contains(&"out: after".to_owned()), "{:?}", place.said());
    assert_eq!(place.runs(), 1);
    let place = place.resumed();
    until("the supervisor has ended", || supervisors(&place) == 0).await;
}

#[tokio::test]
async fn what_ended_without_an_engine_is_found_with_its_output() {
    for (rest, kind) in
        [("echo after; echo x=1 > $CDPIPE_OUTPUT", None), ("echo why >&2; exit 3", Some("command-failed"))]
    {
        let place = Place::new();
        place.begin(&["x"], rest).await;
        let place = place.resumed();
        place.go();
        until("the supervisor has ended", || supervisors(&place) == 0).await;
        // Asked twice it says the same.
        for _ in 0..2 {
            match (place.probe().await, kind) {
                (Probe::Done(Answer::Exited { outputs }), None) => {
                    assert_eq!(outputs, BTreeMap::from([("x".to_owned(), "1".to_owned())]));
                    assert!(place.said().contains(&"out: after".to_owned()), "{:?}", place.said());
                }
                (Probe::Failed(fault), Some(kind)) => {
                    assert_eq!(fault.kind, kind);
                    assert!(fault.message.contains("exit status 3"), "{}", fault.message);
                    assert_eq!(fault.details.last().map(String::as_str), Some("why"));
                }
                (probe, _) => unreachable!("{probe:?}"),
            }
        }
        assert_eq!(place.runs(), 1);
    }
}

#[tokio::test]
async fn a_deadline_holds_without_an_engine() {
    let mut place = Place::new();
    place.context.deadline = Duration::from_millis(1_500);
    place.begin(&[], "echo never").await;
    let place = place.resumed();
    until("the supervisor has ended", || supervisors(&place) == 0).await;
    let Probe::Failed(fault) = place.probe().await else { unreachable!("it took too long") };
    assert_eq!(fault.kind, "timed-out");
}

#[tokio::test]
async fn without_its_supervisor_a_command_is_waited_for_and_then_unknown() {
    let place = Place::new();
    place.begin(&[], "exit 0").await;
    let folder = place.folder.path().join("commands").display().to_string();
    let pid = std::fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(&folder))
        })
        .and_then(rustix::process::Pid::from_raw)
        .expect("a supervisor");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("is killed");
    let place = place.resumed();
    let probe = async {
        let probe = place.probe().await;
        assert!(place.folder.path().join("go").exists(), "it was waited for");
        probe
    };
    let (probe, ()) = tokio::join!(probe, async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        place.go();
    });
    let Probe::Unknown(fault) = probe else { unreachable!("nobody knows") };
    assert_eq!(fault.kind, "outcome-unknown");
    assert!(fault.message.contains("the process that supervised it was killed"), "{}", fault.message);
    // What was never begun is not unknown, and is begun by a new supervisor.
    let other =
        Context { effect: cdpipe_model::EffectId("20261123-151905-7f3a/2".to_owned()), ..Context::default() };
    assert_eq!(place.runner.probe(other.call()).await, Probe::NotDone);
    place.runner.run(other.call(), &action("true")).await.expect("succeeds");
}

#[tokio::test]
async fn all_commands_of_a_run_that_is_given_up_are_ended() {
    let place = Place::new();
    place.begin(&[], "echo never").await;
    let place = place.resumed();
    let (all, run) =
        (place.folder.path().join("commands"), cdpipe_model::RunId::from("20261123-151905-7f3a"));
    let ended = tokio::task::spawn_blocking({
        let (all, run) = (all.clone(), run.clone());
        move || cdpipe_host::commands::end_all(&all, &run, Duration::from_secs(20))
    });
    assert_eq!(ended.await.expect("no panic").expect("is ended"), 1);
    assert_eq!(supervisors(&place), 0);
    let Probe::Failed(fault) = place.probe().await else { unreachable!("it was ended") };
    assert_eq!(fault.kind, "cancelled");
    cdpipe_host::commands::forget(&all, &run, Duration::ZERO).expect("is removed");
    assert!(!all.join(run.as_str()).exists());
}

#[tokio::test]
async fn a_run_folder_with_a_long_path_has_a_socket_too() {
    let mut place = Place::new();
    place.context.effect = cdpipe_model::EffectId(format!("{}/1", "long-".repeat(40)));
    place.script("echo hello").await.expect("succeeds");
    assert_eq!(place.said(), ["out: hello"]);
}
