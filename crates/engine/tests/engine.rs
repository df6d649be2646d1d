//! Engine, machine and store together: a disk that gets full while a command runs, and a person who stops the run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "helpers of tests fail as tests do"
)]

mod common;

use cdpipe_engine::{Engine, Fanout, Options, OutputLog, Past, Ports, RunEnd, RunState, Store, SystemClock};
use cdpipe_model::action::{Answer, RunAction};
use cdpipe_model::measure::{MeasureRequest, Sample};
use cdpipe_model::plan::{
    Channel, FlagProvider, LockKey, Node, NodeKind, OnInterrupt, Retry, Run, SourcePos, Stage, Step, StepKind,
};
use cdpipe_model::ports::{
    BoxFuture, Call, HttpRequest, Measurer, Messenger, PortResult, Probe, Runner, Secrets, TrafficNumbers,
};
use cdpipe_model::record::RunHeader;
use cdpipe_model::secret::SecretValue;
use cdpipe_model::{Fault, NodeId, Outcome, RunId, Value};
use common::{SmallDisk, header};
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// Calls what the test gives for each command, and knows afterwards what it did.
struct Commands<F> {
    each: F,
    done: Mutex<HashSet<String>>,
    calls: Mutex<Vec<String>>,
}

impl<F: Fn(&str) -> Duration + Send + Sync> Commands<F> {
    fn new(each: F) -> Arc<Self> {
        Arc::new(Self { each, done: Mutex::default(), calls: Mutex::default() })
    }
}

impl<F: Fn(&str) -> Duration + Send + Sync> Runner for Commands<F> {
    fn run<'a>(&'a self, call: Call<'a>, run: &'a RunAction) -> PortResult<'a, BTreeMap<String, String>> {
        Box::pin(async move {
            self.calls.lock().unwrap().push(run.script.clone());
            tokio::time::sleep((self.each)(&run.script)).await;
            self.done.lock().unwrap().insert(call.effect.to_string());
            Ok(BTreeMap::new())
        })
    }

    fn probe<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Probe> {
        let done = self.done.lock().unwrap().contains(call.effect.as_str());
        let answer = Answer::Exited { outputs: BTreeMap::new() };
        Box::pin(std::future::ready(if done { Probe::Done(answer) } else { Probe::NotDone }))
    }
}

/// Ports that these pipelines do not use.
struct Unused;

fn unused<T: Send + 'static>() -> PortResult<'static, T> {
    Box::pin(std::future::ready(Err(Fault::new("internal", "this test does not use that port"))))
}

impl Measurer for Unused {
    fn measure<'a>(
        &'a self,
        _call: Call<'a>,
        _requests: &'a [MeasureRequest],
        _traffic: &'a dyn TrafficNumbers,
    ) -> BoxFuture<'a, Vec<Sample>> {
        Box::pin(std::future::ready(Vec::new()))
    }
}

impl Messenger for Unused {
    fn http<'a>(&'a self, _call: Call<'a>, _request: HttpRequest<'a>) -> PortResult<'a, u16> {
        unused()
    }
    fn notify<'a>(
        &'a self,
        _call: Call<'a>,
        _channel: Channel,
        _url: &'a Value,
        _headers: &'a BTreeMap<String, Value>,
        _text: &'a str,
        _fields: &'a BTreeMap<String, String>,
    ) -> PortResult<'a, ()> {
        unused()
    }
    fn set_flag<'a>(
        &'a self,
        _call: Call<'a>,
        _provider: &'a FlagProvider,
        _flag: &'a str,
        _value: Option<&'a str>,
    ) -> PortResult<'a, Option<String>> {
        unused()
    }
}

impl Secrets for Unused {
    fn resolve<'a>(&'a self, _name: &'a str) -> PortResult<'a, SecretValue> {
        unused()
    }
}

fn engine(store: &Arc<Store>, runner: Arc<dyn Runner>, interrupts: watch::Receiver<u32>) -> Engine {
    Engine {
        ports: Ports {
            targets: BTreeMap::new(),
            routers: BTreeMap::new(),
            measurer: Arc::new(Unused),
            runner,
            messenger: Arc::new(Unused),
            secrets: Arc::new(Unused),
        },
        locks: Arc::new(Arc::clone(store)),
        clock: Arc::new(SystemClock::default()),
        events: Fanout::new(),
        log: Some(OutputLog::open(&store.log_dir(), &RunId::from("r1")).unwrap()),
        options: Options { interrupt_grace_ms: 1_000, ..Options::new("ann@example", interrupts) },
    }
}

/// One stage, under a named lock, with these commands.
fn pipeline(scripts: &[&str]) -> Arc<RunHeader> {
    let at = SourcePos::default();
    let step = |script: &&str| Step {
        label: format!("run {script}"),
        kind: StepKind::Run(Run {
            script: (*script).to_owned(),
            args: Vec::new(),
            env: BTreeMap::new(),
            dir: None,
            stdin: None,
            image: None,
            environment: None,
        }),
        timeout_ms: 60_000,
        retry: Retry::default(),
        on_interrupt: OnInterrupt::Fail,
        at,
    };
    let stage = Stage {
        steps: scripts.iter().map(step).collect(),
        timeout_ms: None,
        retry: Retry::default(),
        locks: vec![LockKey::Named("db".into())],
        outputs: Vec::new(),
        hooks: Vec::new(),
        undo_on_failure: false,
    };
    let mut header = header("r1");
    header.plan.nodes = vec![Node {
        id: NodeId(0),
        name: "build".into(),
        needs: Vec::new(),
        when: None,
        kind: NodeKind::Stage(Box::new(stage)),
        at,
    }];
    Arc::new(header)
}

async fn resume(store: &Arc<Store>, runner: Arc<dyn Runner>) -> RunEnd {
    let (_interrupt, interrupts) = watch::channel(0);
    let run = RunId::from("r1");
    let journal = Arc::new(store.take(&run).unwrap());
    let past = Past::read(store, &run).unwrap();
    let end = engine(store, runner, interrupts).resume(past, journal.clone()).await;
    journal.release().await.unwrap();
    end
}

#[tokio::test]
async fn a_disk_that_gets_full_stops_the_run_and_nothing_is_done_twice_once_there_is_room() {
    let Some(disk) = SmallDisk::new() else { return };
    let disk = Arc::new(disk);
    let filled = Arc::clone(&disk);
    let commands = Commands::new(move |script| {
        if script == "fill" {
            filled.fill();
        }
        Duration::ZERO
    });
    let store = Store::open(disk.path()).unwrap();
    // Enough commands after it that the pages which the log has left are used up.
    let scripts: Vec<&str> = std::iter::once("fill").chain(std::iter::repeat_n("next", 400)).collect();
    let header = pipeline(&scripts);
    let (_interrupt, interrupts) = watch::channel(0);
    let journal = Arc::new(store.begin(&header).unwrap());
    let end = engine(&store, commands.clone(), interrupts).run(header, journal.clone()).await;
    let RunEnd::Stopped(fault) = end else { panic!("{end:?}") };
    assert_eq!(fault.kind, "state-full", "{fault:?}");
    let before = commands.calls.lock().unwrap().len();
    assert!(before < scripts.len(), "it stopped on the way");
    disk.free();
    journal.release().await.unwrap();
    assert_eq!(store.run(&RunId::from("r1")).unwrap().state, RunState::Crashed);
    assert_eq!(resume(&store, commands.clone()).await, RunEnd::Finished(Outcome::Succeeded));
    assert_eq!(*commands.calls.lock().unwrap(), scripts, "each once, in order");
    assert_eq!(store.named_locks().unwrap(), []);
    drop(store);
}

#[tokio::test]
async fn an_interrupted_run_is_resumed_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (interrupt, interrupts) = watch::channel(0);
    let commands = Commands::new(move |script| {
        if script == "second" {
            interrupt.send_replace(1);
        }
        Duration::from_millis(50)
    });
    let header = pipeline(&["first", "second", "third"]);
    let journal = Arc::new(store.begin(&header).unwrap());
    let end = engine(&store, commands.clone(), interrupts).run(header, journal.clone()).await;
    assert_eq!(end, RunEnd::Interrupted);
    drop(journal);
    assert_eq!(commands.done.lock().unwrap().len(), 2, "what was under way came back");
    // The owner goes with its journal, a moment later.
    for _ in 0..100 {
        if store.run(&RunId::from("r1")).unwrap().state == RunState::Interrupted {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(store.named_locks().unwrap().len(), 1, "its lock waits for it, as long as the lease");
    assert_eq!(resume(&store, commands.clone()).await, RunEnd::Finished(Outcome::Succeeded));
    assert_eq!(*commands.calls.lock().unwrap(), ["first", "second", "third"]);
    assert_eq!(store.named_locks().unwrap(), []);
    assert_eq!(store.run(&RunId::from("r1")).unwrap().state, RunState::Finished(Outcome::Succeeded));
}
