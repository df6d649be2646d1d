//! What happens when processes of cdpipe and of others die, race or are in the way.

#![allow(clippy::expect_used, reason = "a test says what it expects by panicking")]

mod support;

use cdpipe_model::Value;
use cdpipe_model::ports::Target as _;
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::secret::{SecretPart, SecretText};
use cdpipe_model::strategy::OldRelease;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{HELPER, Place, all_pids, eventually, kill, runs, script, serve};

const NONE: [u32; 0] = [];

/// A cdpipe of its own that ensures so many instances.
fn starter(place: &Place, spec: &ReleaseSpec, count: u32) -> Child {
    let file = place.folder.path().join("spec.json");
    if !file.exists() {
        std::fs::write(&file, serde_json::to_vec(spec).expect("JSON")).expect("writes");
    }
    Command::new(HELPER)
        .arg("ensure")
        .args([place.state().as_path(), place.folder.path(), file.as_path()])
        .arg(count.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts")
}

/// Processes of instances below this folder, supervisors not among them.
fn instance_processes(folder: &Path) -> Vec<u32> {
    let entry = format!("CDPIPE_INSTANCE_DIR={}", folder.display());
    all_pids()
        .into_iter()
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|env| String::from_utf8_lossy(&env).contains(&entry))
        })
        .filter(|pid| runs(*pid))
        .collect()
}

fn supervisors(folder: &Path) -> Vec<u32> {
    all_pids()
        .into_iter()
        .filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                line.contains("supervise-instance") && line.contains(&folder.display().to_string())
            })
        })
        .filter(|pid| runs(*pid))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_ensure_at_once_start_no_more_than_asked() {
    let place = Place::new();
    let spec = serve(&[]);
    let mut starters: Vec<Child> = (0..4).map(|_| starter(&place, &spec, 3)).collect();
    for starter in &mut starters {
        assert!(starter.wait().expect("ends").success());
    }
    assert_eq!(place.local.await_ready(place.context.call(), &spec, 3, 0).await.expect("ready").len(), 3);
    assert_eq!(supervisors(place.folder.path()).len(), 3);
    let addresses: BTreeSet<_> =
        place.instances().await.into_iter().map(|instance| instance.address).collect();
    assert_eq!(addresses.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_starter_that_is_killed_anywhere_leaves_what_the_next_can_finish() {
    for pause_ms in [0, 5, 15, 30, 60, 120] {
        let place = Place::new();
        let spec = serve(&[]);
        let mut killed = starter(&place, &spec, 4);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        killed.kill().expect("is killed");
        killed.wait().expect("ends");
        // Whatever it has started is seen or on its way out; nothing is started twice.
        place.deploy(&spec, 4).await;
        eventually("there are four", || supervisors(place.folder.path()).len() == 4);
        assert_eq!(place.instances().await.len(), 4, "killed after {pause_ms} ms");
        place.local.stop(place.context.call(), &spec, &[], Some(OldRelease::Remove), 0).await.expect("stops");
        assert_eq!(supervisors(place.folder.path()), NONE);
        assert_eq!(instance_processes(place.folder.path()), NONE);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_outlives_its_starter_and_its_terminal() {
    let place = Place::new();
    let spec = serve(&[]);
    let mut starter = starter(&place, &spec, 1);
    assert!(starter.wait().expect("ends").success());
    place.local.await_ready(place.context.call(), &spec, 1, 0).await.expect("ready");
    let supervisor = place.supervisor_pid(&spec, 1);
    // A session of its own: what closes a terminal does not know of it. And if it does, it is not impressed.
    let stat = std::fs::read_to_string(format!("/proc/{supervisor}/stat")).expect("runs");
    let session =
        stat.rsplit(')').next().expect("fields").split_whitespace().nth(3).expect("a session").to_owned();
    assert_eq!(session, supervisor.to_string());
    kill(supervisor, "HUP");
    kill(supervisor, "INT");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(place.status(&spec, 1)["restarts"], 0);
    assert!(place.instances().await[0].ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_supervisor_takes_its_instance_along_and_is_replaced() {
    let place = Place::new();
    // The process has a child in a session of its own, which no signal to a group reaches.
    let spec = serve_with_daemon(&place);
    let before = place.deploy(&spec, 1).await.remove(0);
    let process = place.process_pid(&spec, 1);
    let daemon =
        || std::fs::read_to_string(place.folder.path().join("daemon")).ok()?.trim().parse::<u32>().ok();
    eventually("the daemon is there", || daemon().is_some());
    kill(place.supervisor_pid(&spec, 1), "KILL");
    eventually("the kernel has killed the instance", || !runs(process));
    assert_eq!(place.instances().await, [], "what is not supervised is not there");
    let wanted = place.observe().await.releases[0].wanted;
    assert_eq!(wanted, 1, "it is still wanted, so a plan shows what is missing");

    let after = place.deploy(&spec, 1).await.remove(0);
    assert_eq!((&after.id, &after.address), (&before.id, &before.address));
    assert!(!runs(daemon().expect("a pid")), "what it had left was ended first");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_a_power_cut_has_damaged_are_written_anew() {
    let place = Place::new();
    let spec = serve(&[]);
    place.deploy(&spec, 2).await;
    for number in [1, 2] {
        let (supervisor, process) = (place.supervisor_pid(&spec, number), place.process_pid(&spec, number));
        kill(supervisor, "KILL");
        eventually("it is dead", || !runs(supervisor) && !runs(process));
        for file in ["instance.json", "status.json"] {
            std::fs::write(place.instance_folder(&spec, number).join(file), "\0\0\0").expect("writes");
        }
    }
    assert_eq!(place.instances().await, []);
    assert_eq!(place.deploy(&spec, 2).await.len(), 2);
    place.local.stop(place.context.call(), &spec, &[], Some(OldRelease::Remove), 0).await.expect("stops");
    assert_eq!(supervisors(place.folder.path()), NONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binary_that_is_no_supervisor_is_told() {
    let place = Place::new();
    let local = cdpipe_host::Local::new(
        cdpipe_host::LocalConfig {
            state: place.state(),
            environment: "test".into(),
            base: place.folder.path().to_owned(),
            supervisor: "/bin/true".into(),
            policy: support::quick_policy(),
        },
        cdpipe_host::Masker::default(),
    );
    let fault =
        local.ensure(place.context.call(), &serve(&[]), 2, &BTreeMap::new()).await.expect_err("fails");
    assert_eq!(fault.message, "the supervisor of an instance could not begin: it ended without a word");
    assert_eq!(place.instances().await, []);
    place.deploy(&serve(&[]), 2).await;
}

fn serve_with_daemon(place: &Place) -> ReleaseSpec {
    let ready = place.folder.path().join("daemon");
    ReleaseSpec {
        port: Some(80),
        health: vec![support::http_health()],
        ..script(&format!(
            "test -e {0} || setsid sh -c 'echo $$ > {0}; trap \"\" TERM; while :; do sleep 1; done' & exec {HELPER} serve",
            ready.display()
        ))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_ends_everything_also_what_ignores_term_or_left_the_group() {
    let place = Place::new();
    let mut spec = script(
        "trap '' TERM; setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 0.2; done' & while :; do sleep 0.2; done",
    );
    spec.drain_ms = 300;
    place.deploy(&spec, 2).await;
    eventually("all are there", || instance_processes(place.folder.path()).len() >= 4);
    let begun = Instant::now();
    place.local.stop(place.context.call(), &spec, &[], Some(OldRelease::Remove), 0).await.expect("stops");
    assert!(begun.elapsed() >= Duration::from_millis(300), "the drain time was given");
    assert!(begun.elapsed() < Duration::from_secs(5), "both ended at the same time");
    assert_eq!(instance_processes(place.folder.path()), NONE);
    assert_eq!(supervisors(place.folder.path()), NONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_ends_when_asked_is_not_waited_for() {
    let place = Place::new();
    let mut spec = script("trap 'echo bye; exit 0' TERM; while :; do sleep 0.02; done");
    spec.drain_ms = 30_000;
    let instance = place.deploy(&spec, 1).await.remove(0);
    let begun = Instant::now();
    place.local.stop(place.context.call(), &spec, &[instance], None, 5).await.expect("stops");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_was_cut_short_does_not_fool_the_next_ensure() {
    let place = Place::new();
    let mut spec = script("trap '' TERM; while :; do sleep 0.05; done");
    spec.drain_ms = 3_000;
    place.deploy(&spec, 2).await;
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let _ = place.context.cancel.0.send_replace(true);
    };
    let (stopped, ()) =
        tokio::join!(place.local.stop(place.context.call(), &spec, &[], Some(OldRelease::Stop), 5), cancel);
    assert_eq!(stopped.expect_err("is cancelled").kind, "cancelled");
    let _ = place.context.cancel.0.send_replace(false);
    assert_eq!(place.instances().await, [], "those that are on their way out do not count");
    let again = place.deploy(&spec, 2).await;
    assert_eq!(again.len(), 2);
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    assert_eq!(place.instances().await.len(), 2, "the new ones stay when the old ones are gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_was_taken_meanwhile_is_given_up() {
    let place = Place::new();
    let go = place.folder.path().join("go");
    // It listens nowhere until it is told to, so that the test can take its port.
    let spec = ReleaseSpec {
        port: Some(80),
        health: vec![support::http_health()],
        ..script(&format!("while ! test -e {0}; do sleep 0.02; done; exec {HELPER} serve", go.display()))
    };
    place.local.ensure(place.context.call(), &spec, 1, &BTreeMap::new()).await.expect("starts");
    let port = u16::try_from(place.status(&spec, 1)["port"].as_u64().expect("a port")).expect("a port");
    let taken = std::net::TcpListener::bind(("127.0.0.1", port)).expect("is free");
    std::fs::write(&go, "").expect("writes");
    let ready = place.local.await_ready(place.context.call(), &spec, 1, 0).await.expect("gets another port");
    assert_ne!(ready[0].address.as_deref(), Some(format!("127.0.0.1:{port}").as_str()));
    let log = place.local.logs(place.context.call(), &"web".into(), &ready[0], 100).await.expect("a log");
    assert!(
        log.iter().any(|line| line.contains(&format!("port {port} was taken by someone else"))),
        "{log:?}"
    );
    drop(taken);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_in_the_process_and_nowhere_else() {
    let mut place = Place::new();
    place.context.secrets.0.insert("key".to_owned(), "hunter22-secret".to_owned());
    let text = SecretText(vec![SecretPart::Text("k:".to_owned()), SecretPart::Secret("key".to_owned())]);
    let mut spec = script("echo \"leak $API_KEY\" \"$(echo \"${API_KEY#k:}\" | base64)\"; exec sleep 1000");
    spec.env.insert("API_KEY".to_owned(), Value::Secret(text));
    let instance = place.deploy(&spec, 1).await.remove(0);
    let process = place.process_pid(&spec, 1);
    let environ = std::fs::read(format!("/proc/{process}/environ")).expect("runs");
    assert!(String::from_utf8_lossy(&environ).contains("API_KEY=k:hunter22-secret"));

    let log = place.local.logs(place.context.call(), &"web".into(), &instance, 10).await.expect("a log");
    // Base64 of the value and a line end: what the line end adds says nothing.
    assert_eq!(log, ["leak *** ***Cg=="]);

    let grep = Command::new("grep")
        .args(["-raE", "hunter22|aHVudGVyMjI"])
        .arg(place.folder.path())
        .output()
        .expect("grep");
    assert_eq!(String::from_utf8_lossy(&grep.stdout), "");
    let supervisor = place.supervisor_pid(&spec, 1);
    for pid in [supervisor, process] {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).expect("runs");
        assert!(!String::from_utf8_lossy(&line).contains("hunter22"));
    }
    let environ = std::fs::read(format!("/proc/{supervisor}/environ")).expect("runs");
    assert!(!String::from_utf8_lossy(&environ).contains("hunter22"));

    // It survives a restart of the process, though it is written down nowhere.
    kill(process, "KILL");
    eventually("it runs again", || {
        place.status(&spec, 1)["restarts"] == 1 && place.status(&spec, 1)["process"]["pid"].is_u64()
    });
    // A process that becomes another program just now has no environment to be read for a moment.
    eventually("it has its secret again", || {
        let environ =
            std::fs::read(format!("/proc/{}/environ", place.process_pid(&spec, 1))).unwrap_or_default();
        String::from_utf8_lossy(&environ).contains("hunter22-secret")
    });

    // Without its value nothing is changed.
    place.context.secrets.0.clear();
    let fault =
        place.local.ensure(place.context.call(), &spec, 2, &BTreeMap::new()).await.expect_err("is missing");
    assert_eq!(fault.kind, "secret-missing");
    assert_eq!(place.observe().await.releases[0].wanted, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_whose_folder_is_removed_does_not_go_on_unseen() {
    let place = Place::new();
    let spec = serve(&[]);
    place.deploy(&spec, 2).await;
    let all = [supervisors(place.folder.path()), instance_processes(place.folder.path())].concat();
    assert_eq!(all.len(), 4);
    std::fs::remove_dir_all(place.state()).expect("is removed");
    eventually("all have ended", || !all.iter().any(|pid| runs(*pid)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chatty_instance_does_not_fill_the_disk() {
    let place =
        Place::with_policy(cdpipe_host::Policy { log_limit_bytes: 20_000, ..support::quick_policy() });
    let spec =
        script("i=0; while test $i -lt 5000; do echo \"line $i of many\"; i=$((i+1)); done; exec sleep 1000");
    let instance = place.deploy(&spec, 1).await.remove(0);
    let folder = place.instance_folder(&spec, 1);
    let last =
        || std::fs::read_to_string(folder.join("log")).unwrap_or_default().contains("line 4999 of many");
    eventually("all is written", last);
    let size = |name: &str| std::fs::metadata(folder.join(name)).expect("is there").len();
    assert!(size("log") <= 20_000 && size("log.1") <= 20_000);
    let log = place.local.logs(place.context.call(), &"web".into(), &instance, 1500).await.expect("a log");
    assert_eq!(log.last().map(String::as_str), Some("line 4999 of many"));
    assert!(log.len() > 1000, "both files are read");
}

#[tokio::test(flavor = "multi_thread")]
async fn canaries_have_more_environment_and_do_not_count_as_others() {
    let place = Place::new();
    let spec = serve(&[]);
    let extra = BTreeMap::from([("CANARY".to_owned(), Value::Str("yes".to_owned()))]);
    place.local.ensure(place.context.call(), &spec, 1, &extra).await.expect("starts");
    let again = place.local.ensure(place.context.call(), &spec, 1, &extra).await.expect("is there");
    assert_eq!(again.len(), 1);
    place.local.await_ready(place.context.call(), &spec, 1, 0).await.expect("ready");
    let environ = std::fs::read(format!("/proc/{}/environ", place.process_pid(&spec, 1))).expect("runs");
    assert!(String::from_utf8_lossy(&environ).contains("CANARY=yes"));
    let promoted =
        place.local.ensure(place.context.call(), &spec, 2, &BTreeMap::new()).await.expect("starts");
    let ids: Vec<&str> = promoted.iter().map(|instance| instance.id.as_str()).collect();
    let id = spec.id();
    assert_eq!(ids, [format!("web-{id}-2"), format!("web-{id}-3"), format!("web-{id}-1")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_releases_are_pruned_but_never_running_ones() {
    let place = Place::new();
    let release = |number: u32| {
        let mut spec = script("exec sleep 1000");
        spec.env.insert("VERSION".to_owned(), Value::Str(format!("v{number}")));
        spec
    };
    for number in 1..=4 {
        place.deploy(&release(number), 1).await;
    }
    for number in 1..=3 {
        place
            .local
            .stop(place.context.call(), &release(number), &[], Some(OldRelease::Stop), 2)
            .await
            .expect("stops");
    }
    let ids =
        async || place.observe().await.releases.into_iter().map(|release| release.id).collect::<Vec<_>>();
    assert_eq!(ids().await, [release(2).id(), release(3).id(), release(4).id()], "in the order of creation");
    // Back to 2: it is used again, so 3 is the one that was not used for longest.
    place.deploy(&release(2), 1).await;
    place.local.stop(place.context.call(), &release(4), &[], Some(OldRelease::Stop), 1).await.expect("stops");
    assert_eq!(ids().await, [release(2).id(), release(4).id()]);
    assert_eq!(place.local.remove(place.context.call(), &"web".into()).await.expect("is removed"), 1);
    assert_eq!(ids().await, []);
    assert!(!place.state().join("services/web").exists());
    assert_eq!(supervisors(place.folder.path()), NONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_in_the_place_of_an_instance() {
    let mut place = Place::new();
    place.context.secrets.0.insert("key".to_owned(), "hunter22".to_owned());
    let mut spec = serve(&[]);
    spec.env.insert("KEY".to_owned(), Value::Secret(SecretText(vec![SecretPart::Secret("key".to_owned())])));
    let instance = place.deploy(&spec, 1).await.remove(0);
    let run = cdpipe_model::action::RunAction {
        script: "test $KEY = hunter22; echo port=$PORT >> $CDPIPE_OUTPUT; echo $CDPIPE_RELEASE $VERSION $KEY $EXTRA".to_owned(),
        env: BTreeMap::from([("EXTRA".to_owned(), Value::Str("more".to_owned()))]),
        dir: None,
        stdin: None,
        image: None,
        environment: None,
        outputs: vec!["port".to_owned()],
    };
    let outputs = place.local.exec(place.context.call(), &spec, &instance, &run).await.expect("succeeds");
    assert_eq!(format!("127.0.0.1:{}", outputs["port"]), instance.address.clone().expect("an address"));
    let said = place.context.sink.0.lock().expect("not poisoned").clone();
    assert_eq!(said.last(), Some(&format!("out: {} v1 *** more", spec.id())));
}
