//! Measures the journal against the disk that it lies on: `cargo run --release -p cdpipe-engine --example journal_rate [DIR]`; it is what
//! `cargo xtask bench journal resume` runs. One line `name value` for each number.
//!
//! - how often a second this machine can `fdatasync` 4 KiB, which no journal that syncs can beat;
//! - appends a second of one run, synced (effects on targets) and not (commands), and of eight runs at once;
//! - what a whole stage costs (machine, dispatcher, journal) whose command does nothing at all, and resuming that run at its end.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program to measure with, not part of cdpipe")]

use cdpipe_engine::{
    Batch, Engine, Fanout, Journal, Options, Past, Ports, RunEnd, RunJournal, Store, SystemClock,
};
use cdpipe_model::action::{Action, ActionKind, ActionResult, Answer, Block, RunAction, StepRef};
use cdpipe_model::measure::{MeasureRequest, Sample};
use cdpipe_model::plan::{
    Channel, Concurrency, FlagProvider, Mode, Node, NodeKind, OnInterrupt, Plan, Retry, Run, SourcePos,
    Stage, Step, StepKind,
};
use cdpipe_model::ports::{
    BoxFuture, Call, HttpRequest, Measurer, Messenger, PortResult, Probe, Runner, Secrets, TrafficNumbers,
};
use cdpipe_model::record::{GitFacts, JOURNAL_VERSION, Record, RunHeader};
use cdpipe_model::secret::SecretValue;
use cdpipe_model::{ActionId, NodeId, Outcome, RunId, Value};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Six records each and a few more: 100,000.
const STAGES: u32 = 16_700;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let temporary = tempfile::tempdir().unwrap();
    let (what, dir) = match words.as_slice() {
        // Whoever wants to have it built first asks for nothing.
        ["--build-only"] => return,
        ["--numbers", what, dir] => (*what, Path::new(dir)),
        [dir] => ("all", Path::new(dir)),
        _ => ("all", temporary.path()),
    };
    if matches!(what, "all" | "journal") {
        journal(dir).await;
    }
    if matches!(what, "all" | "resume") {
        stages_through_the_engine(&Store::open(dir).unwrap()).await;
    }
}

async fn journal(dir: &Path) {
    println!("fdatasync {:.1}", fdatasync_rate(dir));
    let store = Store::open(dir).unwrap();
    for (name, sync, batches) in [("synced", true, 2_000), ("unsynced", false, 20_000)] {
        let journal = store.begin(&header(&format!("rate-{name}"), 0)).unwrap();
        let began = Instant::now();
        append_stages(&journal, batches, sync).await;
        println!("appends_{name} {:.1}", f64::from(batches) / began.elapsed().as_secs_f64());
        journal.release().await.unwrap();
    }
    let began = Instant::now();
    let tasks: Vec<_> = (0..8)
        .map(|number| {
            let journal = store.begin(&header(&format!("rate-eight-{number}"), 0)).unwrap();
            tokio::spawn(async move { append_stages(&journal, 500, true).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    println!("appends_eight {:.1}", 4_000.0 / began.elapsed().as_secs_f64());
}

/// Very many stages, eight at a time, through the engine as it is, but for a runner that starts nothing.
async fn stages_through_the_engine(store: &Arc<Store>) {
    let run = RunId::from("rate-stages");
    let header = header(run.as_str(), STAGES);
    let journal = Arc::new(store.begin(&header).unwrap());
    let (_interrupt, interrupts) = tokio::sync::watch::channel(0);
    let nothing = Arc::new(Nothing);
    let engine = Engine {
        ports: Ports {
            targets: BTreeMap::new(),
            routers: BTreeMap::new(),
            measurer: nothing.clone(),
            runner: nothing.clone(),
            messenger: nothing.clone(),
            secrets: nothing,
        },
        locks: Arc::new(Arc::clone(store)),
        clock: Arc::new(SystemClock::default()),
        events: Fanout::new(),
        log: None,
        options: Options::new("ann@example", interrupts),
    };
    let began = Instant::now();
    let end = engine.run(Arc::new(header), journal.clone()).await;
    let ms = began.elapsed().as_secs_f64() * 1e3;
    assert_eq!(end, RunEnd::Finished(Outcome::Succeeded));
    journal.release().await.unwrap();
    let records = store.record_count(&run).unwrap();
    println!("stage_ms {:.4}", ms / f64::from(STAGES));
    println!("resume_records {records}");
    // The first time the pages come from wherever they are; what is said is the middle of a few.
    let mut times: Vec<f64> = (0..5)
        .map(|_| {
            let began = Instant::now();
            let past = Past::read(store, &run).unwrap();
            assert_eq!(past.machine().outcome(), Some(Outcome::Succeeded));
            began.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("resume_ms {:.2}", times[2]);
}

/// Ports that do nothing.
struct Nothing;

impl Runner for Nothing {
    fn run<'a>(&'a self, _call: Call<'a>, _run: &'a RunAction) -> PortResult<'a, BTreeMap<String, String>> {
        Box::pin(std::future::ready(Ok(BTreeMap::new())))
    }
    fn probe<'a>(&'a self, _call: Call<'a>) -> BoxFuture<'a, Probe> {
        Box::pin(std::future::ready(Probe::NotDone))
    }
}

impl Measurer for Nothing {
    fn measure<'a>(
        &'a self,
        _call: Call<'a>,
        _requests: &'a [MeasureRequest],
        _traffic: &'a dyn TrafficNumbers,
    ) -> BoxFuture<'a, Vec<Sample>> {
        Box::pin(std::future::ready(Vec::new()))
    }
}

impl Messenger for Nothing {
    fn http<'a>(&'a self, _call: Call<'a>, _request: HttpRequest<'a>) -> PortResult<'a, u16> {
        Box::pin(std::future::ready(Ok(200)))
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
        Box::pin(std::future::ready(Ok(())))
    }
    fn set_flag<'a>(
        &'a self,
        _call: Call<'a>,
        _provider: &'a FlagProvider,
        _flag: &'a str,
        _value: Option<&'a str>,
    ) -> PortResult<'a, Option<String>> {
        Box::pin(std::future::ready(Ok(None)))
    }
}

impl Secrets for Nothing {
    fn resolve<'a>(&'a self, name: &'a str) -> PortResult<'a, SecretValue> {
        Box::pin(std::future::ready(Ok(SecretValue::new(name.to_owned()))))
    }
}

fn fdatasync_rate(dir: &Path) -> f64 {
    let mut file = tempfile::tempfile_in(dir).unwrap();
    let page = [7_u8; 4096];
    let began = Instant::now();
    let mut times = 0;
    while began.elapsed().as_millis() < 1_000 {
        file.write_all(&page).unwrap();
        file.sync_data().unwrap();
        times += 1;
    }
    f64::from(times) / began.elapsed().as_secs_f64()
}

/// What a stage of one command writes in the middle of a run: its command comes back, the stage ends, the next one begins.
async fn append_stages(journal: &RunJournal, stages: u32, sync: bool) -> u64 {
    let mut seq = 1;
    for number in 0..stages {
        let step = StepRef { node: Some(NodeId(number)), block: Block::Main, index: 0 };
        let action = Action {
            id: ActionId(u64::from(number) + 1),
            step: step.clone(),
            deadline_ms: 600_000,
            kind: ActionKind::Run(RunAction {
                script: "true".into(),
                env: BTreeMap::new(),
                dir: None,
                stdin: None,
                image: None,
                environment: None,
                outputs: Vec::new(),
            }),
        };
        let result = ActionResult::Done(Answer::Exited { outputs: BTreeMap::new() });
        let at_ms = 1_795_000_000_000 + u64::from(number);
        let records = [
            Record::NodeStarted { node: NodeId(number), attempt: 1 },
            Record::StepStarted { step: step.clone(), attempt: 1 },
            Record::Intent { action },
            Record::Returned { at_ms, action: ActionId(u64::from(number) + 1), result },
            Record::StepFinished { step, outcome: Outcome::Succeeded, reason: None },
            Record::NodeFinished { node: NodeId(number), outcome: Outcome::Succeeded, reason: None },
        ]
        .map(Arc::new);
        journal
            .append(Batch { first_seq: seq, at_ms, records: &records, sync, taken: None, status: None })
            .await
            .unwrap();
        seq += records.len() as u64;
    }
    seq - 1
}

/// A pipeline of so many stages that run `true`.
fn header(run: &str, stages: u32) -> RunHeader {
    let at = SourcePos { source: 0, line: 1, col: 1 };
    let node = |number: u32| Node {
        id: NodeId(number),
        name: format!("stage-{number}"),
        needs: Vec::new(),
        when: None,
        kind: NodeKind::Stage(Box::new(Stage {
            steps: vec![Step {
                label: "run true".into(),
                kind: StepKind::Run(Run {
                    script: "true".into(),
                    args: Vec::new(),
                    env: BTreeMap::new(),
                    dir: None,
                    stdin: None,
                    image: None,
                    environment: None,
                }),
                timeout_ms: 600_000,
                retry: Retry::default(),
                on_interrupt: OnInterrupt::Ask,
                at,
            }],
            timeout_ms: None,
            retry: Retry::default(),
            locks: Vec::new(),
            outputs: Vec::new(),
            hooks: Vec::new(),
            undo_on_failure: false,
        })),
        at,
    };
    RunHeader {
        journal_version: JOURNAL_VERSION,
        cdpipe_version: "0.1.0".into(),
        run: RunId::from(run),
        started_at_ms: 1_795_000_000_000,
        started_by: "ann@example".into(),
        file: "/srv/shop.cd".into(),
        texts: Vec::new(),
        plan: Plan {
            name: "shop".into(),
            mode: Mode::Delivery,
            max_parallel: 8,
            concurrency: Concurrency::Queue,
            sources: Vec::new(),
            inputs: BTreeMap::new(),
            secrets: BTreeMap::new(),
            environments: BTreeMap::new(),
            metrics: BTreeMap::new(),
            flags: BTreeMap::new(),
            nodes: (0..stages).map(node).collect(),
            hooks: Vec::new(),
            hash: "sha256:0".into(),
        },
        git: GitFacts::default(),
    }
}
