//! Small ports whose behaviour is in the text that they are given, and a harness around one engine.

use super::script::Script;
use crate::engine::Notes;
use crate::{Clock, Engine, Fanout, Journal, MemoryJournal, MemoryLocks, Options, Ports, RunEnd};
use cdpipe_model::action::{ActionResult, Answer, RunAction};
use cdpipe_model::measure::{MeasureRequest, Sample};
use cdpipe_model::observe::{Instance, Observation};
use cdpipe_model::plan::{Channel, Concurrency, FlagProvider, LockKey, Mode, Plan};
use cdpipe_model::ports::{
    BoxFuture, Call, HttpRequest, LockOwner, LockState, Measurer, Messenger, PortResult, Probe, Runner,
    Secrets, Target, TrafficNumbers,
};
use cdpipe_model::record::{GitFacts, JOURNAL_VERSION, Record, RunHeader};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::secret::SecretValue;
use cdpipe_model::strategy::OldRelease;
use cdpipe_model::{ActionId, EnvName, Fault, RunId, ServiceName, Value};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Tokio's paused time, from `EPOCH_MS`, and so many milliseconds that it jumped.
pub(super) struct TokioClock(pub(super) Instant, pub(super) Arc<AtomicU64>);

/// Where the tests' time begins.
pub(super) const EPOCH_MS: u64 = 1_000_000;

impl Clock for TokioClock {
    fn now_ms(&self) -> u64 {
        EPOCH_MS + self.1.load(Ordering::SeqCst) + u64::try_from(self.0.elapsed().as_millis()).unwrap()
    }

    fn sleep_until(&self, due_ms: u64) -> BoxFuture<'_, ()> {
        self.sleep(due_ms.saturating_sub(self.now_ms()))
    }

    fn sleep(&self, ms: u64) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(Duration::from_millis(ms)))
    }
}

/// What was done, in order, and what the ports answer.
#[derive(Default)]
pub(super) struct World {
    pub(super) done: Mutex<Vec<String>>,
    pub(super) probes: Mutex<HashMap<String, Vec<Probe>>>,
    pub(super) locks: Mutex<HashMap<LockKey, (RunId, u64)>>,
    pub(super) lock_faults: Mutex<Vec<Fault>>,
    pub(super) journal: Mutex<Option<Arc<MemoryJournal>>>,
    pub(super) jumped_ms: Arc<AtomicU64>,
    /// Commands that came to their end, by effect: what a probe finds if the test does not say otherwise.
    ended: Mutex<HashMap<String, Probe>>,
}

impl World {
    pub(super) fn log(&self, what: impl Into<String>) {
        self.done.lock().unwrap().push(what.into());
    }

    pub(super) fn done(&self) -> Vec<String> {
        self.done.lock().unwrap().clone()
    }

    /// The invariant of the house: what is done has an intent in the journal.
    fn check_intent(&self, call: &Call<'_>) {
        let journal = self.journal.lock().unwrap().clone().unwrap();
        let number: u64 = call.effect.as_str().rsplit_once('/').unwrap().1.parse().unwrap();
        let written = journal.records().iter().any(
            |(_, record)| matches!(&**record, Record::Intent { action } if action.id == ActionId(number)),
        );
        assert!(written, "effect {} is done before its intent is durable", call.effect);
    }

    async fn behave(&self, call: Call<'_>, script: &str) -> Result<BTreeMap<String, String>, Fault> {
        self.check_intent(&call);
        let (verb, rest) = script.split_once(' ').unwrap_or((script, ""));
        self.log(format!("{script} [{}]", call.effect));
        match verb {
            "true" => Ok(BTreeMap::new()),
            "false" => Err(Fault::new("command-failed", "it exited with 1")),
            "print" => {
                call.sink.output(cdpipe_model::event::Stream::Stdout, rest);
                Ok(BTreeMap::from([("said".to_owned(), rest.to_owned())]))
            }
            "sleep" => {
                let ms = rest.parse().unwrap();
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(ms)) => {
                        self.log(format!("slept {ms}"));
                        Ok(BTreeMap::new())
                    }
                    () = call.cancel.cancelled() => {
                        self.log("stopped");
                        Err(Fault::new("cancelled", "it was stopped"))
                    }
                }
            }
            // The process is stopped meanwhile: no timer of it fires, and somebody else takes the lock.
            "stopped" => {
                self.jumped_ms.fetch_add(rest.parse().unwrap(), Ordering::SeqCst);
                for (run, epoch) in self.locks.lock().unwrap().values_mut() {
                    *run = RunId::from("r9");
                    *epoch += 1;
                }
                Ok(BTreeMap::new())
            }
            "hang" => std::future::pending().await,
            "panic" => panic!("a bug of a port"),
            "flood" => Ok(BTreeMap::from([("x".to_owned(), "x".repeat(2 << 20))])),
            other => panic!("the world does not know `{other}`"),
        }
    }
}

impl Runner for World {
    fn run<'a>(&'a self, call: Call<'a>, run: &'a RunAction) -> PortResult<'a, BTreeMap<String, String>> {
        Box::pin(async move {
            let answer = self.behave(call, &run.script).await;
            let found = match &answer {
                Ok(outputs) => Some(Probe::Done(Answer::Exited { outputs: outputs.clone() })),
                Err(fault) if fault.kind == "cancelled" => None,
                Err(fault) => Some(Probe::Failed(fault.clone())),
            };
            if let Some(found) = found {
                self.ended.lock().unwrap().insert(call.effect.to_string(), found);
            }
            answer
        })
    }

    fn probe<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Probe> {
        self.log(format!("probe [{}]", call.effect));
        let mut probes = self.probes.lock().unwrap();
        let answer = match probes.get_mut(call.effect.as_str()) {
            Some(answers) if answers.len() > 1 => answers.remove(0),
            Some(answers) => answers[0].clone(),
            None => self.ended.lock().unwrap().get(call.effect.as_str()).cloned().unwrap_or(Probe::NotDone),
        };
        Box::pin(std::future::ready(answer))
    }

    fn stop<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, ()> {
        self.log(format!("stop [{}]", call.effect));
        Box::pin(std::future::ready(()))
    }
}

impl Target for World {
    fn resolve<'a>(&'a self, _call: Call<'a>, spec: &'a ReleaseSpec) -> PortResult<'a, ReleaseSpec> {
        Box::pin(std::future::ready(Ok(spec.clone())))
    }

    fn observe<'a>(
        &'a self,
        call: Call<'a>,
        service: &'a ServiceName,
        _platform_name: Option<&'a str>,
    ) -> PortResult<'a, Observation> {
        self.log(format!("observe {service} epoch {}", call.epoch));
        Box::pin(async move {
            // A service that is named so takes long to be seen.
            if service.as_str() == "slow" {
                tokio::time::sleep(Duration::from_secs(30)).await;
                self.log("observed");
            }
            Ok(Observation::default())
        })
    }

    fn ensure<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        count: u32,
        _extra_env: &'a BTreeMap<String, Value>,
    ) -> PortResult<'a, Vec<Instance>> {
        self.check_intent(&call);
        self.log(format!("ensure {count} of {} epoch {}", spec.service, call.epoch));
        Box::pin(async move {
            if spec.service.as_str() == "slow" {
                call.cancel.cancelled().await;
                return Err(Fault::new("cancelled", "it was stopped"));
            }
            Ok(Vec::new())
        })
    }

    fn await_ready<'a>(
        &'a self,
        _call: Call<'a>,
        _spec: &'a ReleaseSpec,
        _count: u32,
        _may_fail: u32,
    ) -> PortResult<'a, Vec<Instance>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    fn stop<'a>(
        &'a self,
        _call: Call<'a>,
        _spec: &'a ReleaseSpec,
        _instances: &'a [Instance],
        _old: Option<OldRelease>,
        _retain: u32,
    ) -> PortResult<'a, Vec<Instance>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    fn exec<'a>(
        &'a self,
        call: Call<'a>,
        _spec: &'a ReleaseSpec,
        _instance: &'a Instance,
        run: &'a RunAction,
    ) -> PortResult<'a, BTreeMap<String, String>> {
        Box::pin(self.behave(call, &run.script))
    }

    fn logs<'a>(
        &'a self,
        _call: Call<'a>,
        _service: &'a ServiceName,
        _instance: &'a Instance,
        _lines: usize,
    ) -> PortResult<'a, Vec<String>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    fn lock<'a>(
        &'a self,
        _call: Call<'a>,
        key: &'a LockKey,
        owner: &'a LockOwner,
        _lease: Duration,
    ) -> PortResult<'a, u64> {
        let fault = self.lock_faults.lock().unwrap().pop();
        let mut locks = self.locks.lock().unwrap();
        let answer = match (fault, locks.get(key)) {
            (Some(fault), _) => Err(fault),
            (None, Some((run, _))) if *run != owner.run && run.as_str() != "" => {
                Err(Fault::new("locked", format!("run {run} holds it")).transient())
            }
            (None, held) => {
                let ours = held.filter(|(run, _)| *run == owner.run);
                let epoch = held.map_or(0, |(_, epoch)| *epoch) + u64::from(ours.is_none());
                self.log(format!("lock epoch {epoch}"));
                locks.insert(key.clone(), (owner.run.clone(), epoch));
                Ok(epoch)
            }
        };
        Box::pin(std::future::ready(answer))
    }

    fn unlock<'a>(&'a self, _call: Call<'a>, key: &'a LockKey, owner: &'a LockOwner) -> PortResult<'a, ()> {
        let mut locks = self.locks.lock().unwrap();
        if let Some((run, _)) = locks.get_mut(key).filter(|(run, _)| *run == owner.run) {
            *run = RunId::from("");
            self.log("unlock");
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn lock_owner<'a>(&'a self, _call: Call<'a>, _key: &'a LockKey) -> PortResult<'a, Option<LockState>> {
        Box::pin(std::future::ready(Ok(None)))
    }
}

impl Measurer for World {
    fn measure<'a>(
        &'a self,
        _call: Call<'a>,
        requests: &'a [MeasureRequest],
        _traffic: &'a dyn TrafficNumbers,
    ) -> BoxFuture<'a, Vec<Sample>> {
        let sample = |request: &MeasureRequest| Sample {
            metric: request.metric.clone(),
            value: Some(Value::Number(f64::NAN)),
            asked: "0/0".into(),
            note: None,
        };
        Box::pin(std::future::ready(requests.iter().map(sample).collect()))
    }
}

impl Messenger for World {
    fn http<'a>(&'a self, call: Call<'a>, request: HttpRequest<'a>) -> PortResult<'a, u16> {
        self.check_intent(&call);
        self.log(format!("{} {}", request.method, request.url));
        Box::pin(std::future::ready(Ok(200)))
    }

    fn notify<'a>(
        &'a self,
        _call: Call<'a>,
        _channel: Channel,
        _url: &'a Value,
        _headers: &'a BTreeMap<String, Value>,
        text: &'a str,
        _fields: &'a BTreeMap<String, String>,
    ) -> PortResult<'a, ()> {
        self.log(format!("notify {text}"));
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

impl Secrets for World {
    fn resolve<'a>(&'a self, name: &'a str) -> PortResult<'a, SecretValue> {
        Box::pin(std::future::ready(Ok(SecretValue::new(name.to_owned()))))
    }
}

/// One run and everything around it; engines come and go.
pub(super) struct Harness {
    pub(super) world: Arc<World>,
    pub(super) journal: Arc<MemoryJournal>,
    pub(super) locks: Arc<MemoryLocks>,
    pub(super) clock: Arc<TokioClock>,
    pub(super) interrupt: watch::Sender<u32>,
    pub(super) options: Options,
    pub(super) run: RunId,
}

impl Harness {
    pub(super) fn new() -> Self {
        let (interrupt, interrupts) = watch::channel(0);
        let journal = Arc::new(MemoryJournal::new());
        let world = World { journal: Mutex::new(Some(Arc::clone(&journal))), ..World::default() };
        let clock = TokioClock(Instant::now(), Arc::clone(&world.jumped_ms));
        Self {
            world: Arc::new(world),
            journal,
            locks: Arc::new(MemoryLocks::new()),
            clock: Arc::new(clock),
            interrupt,
            options: Options::new("ann@example", interrupts),
            run: RunId::from("r1"),
        }
    }

    pub(super) fn engine(&self) -> Engine {
        let world = Arc::clone(&self.world);
        let target: Arc<dyn Target> = world.clone();
        Engine {
            ports: Ports {
                targets: BTreeMap::from([(EnvName::from("prod"), target)]),
                routers: BTreeMap::new(),
                measurer: world.clone(),
                runner: world.clone(),
                messenger: world.clone(),
                secrets: world,
            },
            locks: Arc::clone(&self.locks) as _,
            clock: Arc::clone(&self.clock) as _,
            events: Fanout::new(),
            log: None,
            options: self.options.clone(),
        }
    }

    /// Runs a script from its beginning.
    pub(super) async fn drive(&self, script: Script) -> RunEnd {
        let header = Arc::new(header(&self.run));
        let journal: Arc<dyn Journal> = Arc::clone(&self.journal) as _;
        self.engine().drive(header, script, Notes::default(), 0, journal).await
    }

    /// Another engine goes on with what the journal says.
    pub(super) async fn resume(&self, script: Script) -> RunEnd {
        let records: Vec<Record> =
            self.journal.records().iter().map(|(_, record)| (**record).clone()).collect();
        let mut notes = Notes::default();
        for record in &records {
            notes.fold(record);
        }
        let header = Arc::new(header(&self.run));
        let journal: Arc<dyn Journal> = Arc::clone(&self.journal) as _;
        let script = script.with_past(&records);
        self.engine().drive(header, script, notes, records.len() as u64, journal).await
    }

    /// A past that ends in the middle of this: an engine was opened, the intents are there, and then it died.
    pub(super) async fn die_with(&self, records: Vec<Record>) {
        let opened = Record::Opened { at_ms: EPOCH_MS, by: "dead".into(), resumed: false };
        let records: Vec<Arc<Record>> = std::iter::once(opened).chain(records).map(Arc::new).collect();
        let batch = crate::Batch {
            first_seq: 1,
            at_ms: EPOCH_MS,
            records: &records,
            sync: false,
            taken: None,
            status: None,
        };
        self.journal.append(batch).await.unwrap();
    }

    /// What came back for each action, in order.
    pub(super) fn results(&self) -> Vec<(u64, ActionResult)> {
        let records = self.journal.records();
        records
            .iter()
            .filter_map(|(_, record)| match &**record {
                Record::Returned { action, result, .. } => Some((action.0, result.clone())),
                _ => None,
            })
            .collect()
    }

    pub(super) fn elapsed_ms(&self) -> u64 {
        self.clock.now_ms() - EPOCH_MS
    }
}

pub(super) fn exited() -> ActionResult {
    ActionResult::Done(Answer::Exited { outputs: BTreeMap::new() })
}

pub(super) fn header(run: &RunId) -> RunHeader {
    RunHeader {
        journal_version: JOURNAL_VERSION,
        cdpipe_version: "0.1.0".into(),
        run: run.clone(),
        started_at_ms: EPOCH_MS,
        started_by: "ann@example".into(),
        file: "/srv/shop.cd".into(),
        texts: Vec::new(),
        plan: Plan {
            name: "shop".into(),
            mode: Mode::Delivery,
            max_parallel: 2,
            concurrency: Concurrency::Queue,
            sources: Vec::new(),
            inputs: BTreeMap::new(),
            secrets: BTreeMap::new(),
            environments: BTreeMap::new(),
            metrics: BTreeMap::new(),
            flags: BTreeMap::new(),
            nodes: Vec::new(),
            hooks: Vec::new(),
            hash: "sha256:0".into(),
        },
        git: GitFacts::default(),
    }
}
