//! The real binary under kill -9: what it was doing is gone on with, and nothing is done twice.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says that something is wrong by panicking")]

use cdpipe_tests::deployed::{Deployed, FILE, comes_true};
use cdpipe_tests::load::{Kind, Load, Mix};
use cdpipe_tests::place::Place;
use cdpipe_tests::processes::Ended;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Seeds that are always tried. `cargo xtask soak` tries 1 to 200: `$CDPIPE_KILLED_CASES` is how many, counted from 1, or `FROM..TO`,
/// both tried.
const SEEDS: [u64; 5] = [3, 17, 29, 58, 101];

/// Seeds that are tried one after the other on one service under one load; then come a new service and a new load.
const SEEDS_OF_ONE_SHOP: usize = 25;

/// For what only a very busy machine delays.
const PATIENCE: Duration = Duration::from_secs(60);

/// A pipeline of one command that waits until the file `go` is there, and says each time it begins.
fn waiting(on_interrupt: &str) -> String {
    format!(
        "stage only {{\n  output answer: string\n  run \"echo begun >> effects; until [ -e go ]; do sleep 0.02; done; \
         echo said; echo answer=42 > $CDPIPE_OUTPUT\" {{ on_interrupt = {on_interrupt} }}\n}}\n\
         stage later {{\n  needs = [only]\n  run \"echo later ${{stage.only.answer}} >> effects\"\n}}\n"
    )
}

fn spawn(place: &Place, arguments: &[&str]) -> Child {
    let mut command = place.command(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn kill(child: &mut Child) {
    // It may have ended by itself just now.
    let _ = child.kill();
    child.wait().unwrap();
}

fn effects(place: &Place) -> String {
    std::fs::read_to_string(place.work().join("effects")).unwrap_or_default()
}

fn supervisors(place: &Place) -> Vec<i32> {
    let running = place.running().into_iter();
    running
        .filter(|running| running.command.contains("supervise-commands"))
        .map(|running| running.pid)
        .collect()
}

fn assert_code(ended: &Ended, code: i32) {
    assert_eq!(ended.code, Some(code), "{}{}", ended.stdout, ended.stderr);
}

/// Starts the pipeline and kills the engine while its command waits.
fn killed_while_waiting(on_interrupt: &str) -> Place {
    let place = Place::new().unwrap();
    place.write("wait.cd", waiting(on_interrupt)).unwrap();
    let mut run = spawn(&place, &["run", "wait.cd"]);
    assert!(comes_true(PATIENCE, || effects(&place) == "begun\n"), "the command never began");
    kill(&mut run);
    place
}

#[test]
fn a_command_that_still_runs_is_waited_for_and_its_result_taken() {
    let place = killed_while_waiting("ask");
    assert_eq!(supervisors(&place).len(), 1);
    let mut resume = spawn(&place, &["resume"]);
    // A second crash, inside the recovery.
    std::thread::sleep(Duration::from_millis(200));
    kill(&mut resume);
    assert_eq!(effects(&place), "begun\n");
    let go = place.work().join("go");
    let goes = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        std::fs::write(go, "").unwrap();
    });
    let ended = place.run(["resume"]).unwrap();
    goes.join().unwrap();
    assert_code(&ended, 0);
    assert!(ended.stdout.contains("| said"), "{}", ended.stdout);
    assert!(ended.stderr.contains("still runs, is waited for"), "{}", ended.stderr);
    assert_eq!(effects(&place), "begun\nlater 42\n");
    assert!(comes_true(PATIENCE, || place.running().is_empty()), "left: {:?}", place.running());
}

#[test]
fn the_result_of_a_command_that_ended_meanwhile_is_taken_and_it_is_not_run_again() {
    let place = killed_while_waiting("retry");
    place.write("go", "").unwrap();
    // Nobody is there to be told, so the supervisor ends with its last command.
    assert!(comes_true(PATIENCE, || place.running().is_empty()), "left: {:?}", place.running());
    let ended = place.run(["resume"]).unwrap();
    assert_code(&ended, 0);
    assert!(ended.stdout.contains("| said"), "{}", ended.stdout);
    assert!(ended.stderr.contains("has ended, its result is taken"), "{}", ended.stderr);
    assert_eq!(effects(&place), "begun\nlater 42\n");
    assert!(comes_true(PATIENCE, || place.running().is_empty()), "left: {:?}", place.running());
}

#[test]
fn of_what_a_command_says_no_line_is_missing_and_none_is_there_twice() {
    const LINES: usize = 40_000;
    let place = Place::new().unwrap();
    let script = format!(
        "i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; [ $((i % 200)) -ne 0 ] || sleep 0.01; done"
    );
    place.write("talks.cd", format!("stage only {{\n  run \"{script}\"\n}}\n")).unwrap();
    let log = |place: &Place| {
        let ended = place.run(["logs"]).unwrap();
        let said = |line: &str| {
            line.rsplit_once("line ").and_then(|(_, number)| number.trim().parse::<usize>().ok())
        };
        ended.stdout.lines().filter_map(said).collect::<Vec<_>>()
    };
    let mut engine = spawn(&place, &["run", "talks.cd"]);
    // Killed while it talks, at moments that are nobody's choice; at last while nobody listens to its end.
    for pause_ms in [150, 230, 90, 310] {
        assert!(comes_true(PATIENCE, || !log(&place).is_empty()), "the command said nothing");
        std::thread::sleep(Duration::from_millis(pause_ms));
        kill(&mut engine);
        engine = spawn(&place, &["resume"]);
    }
    kill(&mut engine);
    assert!(comes_true(PATIENCE, || place.running().is_empty()), "left: {:?}", place.running());
    assert_code(&place.run(["resume"]).unwrap(), 0);
    let said = log(&place);
    let wrong = said.iter().zip(1..).find(|(said, number)| *said != number);
    assert_eq!((said.len(), wrong), (LINES, None));
}

#[test]
fn without_its_supervisor_the_policy_of_the_step_decides() {
    for (on_interrupt, code, expected) in
        [("ask", 1, "begun\n"), ("fail", 1, "begun\n"), ("retry", 0, "begun\nbegun\nlater 42\n")]
    {
        let place = killed_while_waiting(on_interrupt);
        for pid in supervisors(&place) {
            kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        }
        place.write("go", "").unwrap();
        assert!(comes_true(PATIENCE, || place.running().is_empty()), "left: {:?}", place.running());
        let ended = place.run(["resume"]).unwrap();
        assert_code(&ended, code);
        assert_eq!(ended.stdout.contains("nobody knows how"), code == 1, "{}", ended.stdout);
        assert!(ended.stderr.contains("nobody knows how it ended"), "{}", ended.stderr);
        assert_eq!(effects(&place), expected);
        assert!(comes_true(PATIENCE, || place.running().is_empty()), "left: {:?}", place.running());
    }
}

#[test]
fn a_run_that_is_given_up_leaves_no_command() {
    let place = killed_while_waiting("ask");
    let ended = place.run(["runs", "--abandon", ""]).unwrap();
    assert_code(&ended, 0);
    assert!(ended.stdout.contains("a command of it was ended"), "{}", ended.stdout);
    assert!(place.running().is_empty(), "left: {:?}", place.running());
}

#[test]
fn a_run_that_is_given_up_leaves_no_command_whose_supervisor_was_killed_either() {
    let place = Place::new().unwrap();
    // One that hears TERM, and one that does not, each with a child of its own.
    let stage = |name: &str, trap: &str| {
        format!("stage {name} {{\n  run \"{trap}sleep 600 & echo begun >> effects; sleep 600; wait\"\n}}\n")
    };
    place.write("wait.cd", stage("polite", "") + &stage("deaf", "trap '' TERM; ")).unwrap();
    let mut run = spawn(&place, &["run", "wait.cd"]);
    assert!(comes_true(PATIENCE, || effects(&place) == "begun\nbegun\n"), "the commands never began");
    kill(&mut run);
    for pid in supervisors(&place) {
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }
    assert!(comes_true(PATIENCE, || supervisors(&place).is_empty()));
    assert!(place.running().len() >= 4, "the commands should go on: {:?}", place.running());
    let ended = place.run(["runs", "--abandon", ""]).unwrap();
    assert_code(&ended, 0);
    assert!(ended.stdout.contains("2 commands of it were ended"), "{}", ended.stdout);
    assert!(comes_true(PATIENCE, || place.running().is_empty()), "left: {:?}", place.running());
}

#[test]
fn what_is_kept_of_commands_goes_with_the_next_run_if_its_own_was_killed_in_its_last_clean_up() {
    let place = killed_while_waiting("ask");
    let kept = || -> Vec<String> {
        let entries = std::fs::read_dir(place.state().join("commands")).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let unfinished = kept();
    assert_eq!(unfinished.len(), 1);
    // As it stands when an engine is killed after the last record and before its clean-up, or within it.
    place.write("other.cd", "stage only {\n  run \"true\"\n}\n").unwrap();
    assert_code(&place.run(["run", "other.cd"]).unwrap(), 0);
    let over = place.run(["runs", "--json", "--limit", "1"]).unwrap();
    let over: serde_json::Value = serde_json::from_str(&over.stdout).unwrap();
    let over = over["runs"][0]["run"].as_str().unwrap();
    for left in [over.to_owned(), format!(".{over}.1.1.1.tmp")] {
        std::fs::create_dir(place.state().join("commands").join(&left)).unwrap();
        std::fs::write(place.state().join("commands").join(&left).join("record"), "\n").unwrap();
    }
    assert_eq!(kept().len(), 3);
    assert_code(&place.run(["run", "other.cd"]).unwrap(), 0);
    // What an unfinished run needs stays, and its command goes on.
    assert_eq!(kept(), unfinished);
    place.write("go", "").unwrap();
    assert_code(&place.run(["resume"]).unwrap(), 0);
    assert_eq!(effects(&place), "begun\nlater 42\n");
}

/// Steele, Lea, Flood: the same seed gives the same numbers.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % limit.max(1)
    }
}

/// How many processes of which kind run in a place: a supervisor by its subcommand, a service by its name.
fn kinds(place: &Place) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for running in place.running() {
        let words: Vec<&str> = running.command.split(' ').collect();
        let program = words.first().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        let kind = format!("{program} {}", words.get(1).unwrap_or(&"")).trim().to_owned();
        *kinds.entry(kind).or_insert(0) += 1;
    }
    kinds
}

/// How many runs there are, and whether one can be resumed. Without a limit it would be told of the newest twenty.
fn runs(place: &Place) -> (usize, bool) {
    let ended = place.run(["runs", "--json", "--limit", "100000"]).unwrap();
    assert_code(&ended, 0);
    let said: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let runs = said["runs"].as_array().unwrap();
    (runs.len(), runs.iter().any(|run| run["resumable"] == true))
}

/// A run of this version that is killed at up to three moments of its life, and gone on with to its end.
fn deploy_and_kill(shop: &Deployed, version: &str, seed: u64, usual: Duration) {
    let mut random = SplitMix(seed);
    let moments = 1 + random.below(3);
    let before = runs(&shop.place).0;
    let set = format!("version={version}");
    let mut arguments = vec!["run", FILE, "--set", &set];
    let usual_ms = u64::try_from(usual.as_millis()).unwrap();
    for _ in 0..moments {
        let mut engine = spawn(&shop.place, &arguments);
        std::thread::sleep(Duration::from_millis(random.below(usual_ms)));
        kill(&mut engine);
        if runs(&shop.place).0 > before {
            arguments = vec!["resume"];
        }
    }
    let (count, resumable) = runs(&shop.place);
    if count == before || resumable {
        assert_code(&shop.place.run(&arguments).unwrap(), 0);
    }
}

/// The seeds to try.
fn seeds() -> Vec<u64> {
    let Ok(asked) = std::env::var("CDPIPE_KILLED_CASES") else { return SEEDS.to_vec() };
    let (from, to) = asked.split_once("..").unwrap_or(("1", &asked));
    (from.parse().unwrap()..=to.parse().unwrap()).collect()
}

#[test]
fn killed_at_any_moment_a_run_ends_as_if_it_had_not_been() {
    let seeds = seeds();
    assert!(!seeds.is_empty(), "no seed to try");
    for seeds in seeds.chunks(SEEDS_OF_ONE_SHOP) {
        killed_at_any_moment(seeds, &|line| println!("{line}"));
    }
}

/// Seeds one after the other on one service, with load on it all the while.
fn killed_at_any_moment(seeds: &[u64], say: &dyn Fn(&str)) {
    let shop = Deployed::with(include_str!("../pipelines/killed.cd")).unwrap();
    let deploy = |version: &str| {
        assert_code(&shop.place.run(["run", FILE, "--set", &format!("version={version}")]).unwrap(), 0);
    };
    deploy("v0");
    let mix = Mix::new([
        (Kind::Short, 50),
        (Kind::Fresh, 20),
        (Kind::Slow { ms: 400 }, 20),
        (Kind::Echo { bytes: 20_000 }, 10),
    ]);
    let length = Duration::from_secs(3_000);
    let load = Load { rate_per_s: 40, length, mix: mix.unwrap(), ..Load::on(shop.address) };
    let load = load.start().unwrap();
    let began = Instant::now();
    deploy("uncrashed");
    let usual = began.elapsed();
    assert!(comes_true(PATIENCE, || !kinds(&shop.place).contains_key("cdpipe run")));
    let expected = kinds(&shop.place);

    let mut effects_expected = "before v0\nafter v0\nbefore uncrashed\nafter uncrashed\n".to_owned();
    for seed in seeds {
        let version = format!("seed-{seed}");
        deploy_and_kill(&shop, &version, *seed, usual);
        effects_expected += &format!("before {version}\nafter {version}\n");
        assert_eq!(effects(&shop.place), effects_expected, "seed {seed}");
        let answer = shop.ask().unwrap();
        assert_eq!((answer.status, &answer.version), (200, &version), "seed {seed}");
        let same = comes_true(PATIENCE, || kinds(&shop.place) == expected);
        assert!(same, "seed {seed}: runs {:?}, expected {expected:?}", kinds(&shop.place));
        let lock = shop.place.run(["unlock", "shop", "here"]).unwrap();
        assert!(lock.stdout.contains("is free\n"), "seed {seed}: {lock:?}");
        say(&format!("seed {seed}: as if it had not been killed"));
    }
    // The load must have lasted: a service that nobody asks loses no request.
    assert!(began.elapsed() < length, "the load was over before the seeds {seeds:?} were");
    let report = load.stop().unwrap();
    assert!(report.failures().is_empty(), "seeds {seeds:?}: {report}");
    say(&report.to_string());
}
