//! Runs told by hand, event by event: what a reporter would see of a canary that goes well, of one that goes bad, of a failed build.

#![allow(dead_code, reason = "each test file tells some of the stories")]

use cdpipe_model::action::{Action, ActionKind, ActionResult, Answer, Block, StepRef};
use cdpipe_model::event::{Event, Stream};
use cdpipe_model::expr::{Expr, MeasureName, MetricRef, Subject};
use cdpipe_model::measure::Sample;
use cdpipe_model::observe::{Instance, Observation, Role, RouteEntry, RouteTable};
use cdpipe_model::plan::*;
use cdpipe_model::program::{Program, ProgramStep, Routing};
use cdpipe_model::record::{
    Finding, GitFacts, Record, RuleVerdict, RunHeader, Signal, TimerId, TimerPurpose,
};
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::service::{Route, Service, Workload};
use cdpipe_model::strategy::{Canary, OldRelease, Sticky, Strategy};
use cdpipe_model::{ActionId, Fault, NodeId, Outcome, Value};
use cdpipe_report::Reporter;
use std::sync::Arc;

/// When every story begins.
pub(crate) const START_MS: u64 = 1_795_448_345_000;

/// Tells events to a reporter at moments of a story.
pub(crate) struct Story<'a> {
    pub(crate) to: &'a mut dyn Reporter,
    pub(crate) now_ms: u64,
    seq: u64,
    actions: u64,
}

pub(crate) const BUILD: NodeId = NodeId(0);
pub(crate) const RELEASE: NodeId = NodeId(1);
pub(crate) const PRODUCTION: NodeId = NodeId(2);

fn step(label: &str, kind: StepKind) -> Step {
    Step {
        label: label.into(),
        kind,
        timeout_ms: 600_000,
        retry: Retry::default(),
        on_interrupt: OnInterrupt::Ask,
        at: SourcePos::default(),
    }
}

fn run(script: &str) -> Step {
    let run = Run {
        script: script.into(),
        args: vec![],
        env: Default::default(),
        dir: None,
        stdin: None,
        image: None,
        environment: None,
    };
    step(&format!("run {script}"), StepKind::Run(run))
}

fn stage(steps: Vec<Step>, hooks: Vec<Hook>) -> NodeKind {
    NodeKind::Stage(Box::new(Stage {
        steps,
        timeout_ms: None,
        retry: Retry::default(),
        locks: vec![],
        outputs: vec![],
        hooks,
        undo_on_failure: false,
    }))
}

pub(crate) fn spec(version: &str) -> ReleaseSpec {
    ReleaseSpec {
        service: "web".into(),
        platform_name: None,
        version: version.into(),
        artifact: Artifact::Command { argv: vec![format!("web-{version}")], path: None, digest: None },
        port: None,
        env: Default::default(),
        health: vec![],
        drain_ms: 30_000,
        extra: Default::default(),
    }
}

fn route() -> Route {
    Route { service: "web".into(), host: None, path: None, listen: Some(":8080".into()), object: None }
}

pub(crate) fn table(candidate_bp: u32) -> RouteTable {
    let entry = |version: &str, role, weight_bp| RouteEntry {
        release: spec(version).id(),
        role,
        weight_bp,
        members: vec![],
    };
    let mut entries = vec![];
    if candidate_bp < 10_000 {
        entries.push(entry("v1.0.0", Role::Stable, 10_000 - candidate_bp));
    }
    if candidate_bp > 0 {
        entries.push(entry("v2.0.0", Role::Candidate, candidate_bp));
    }
    RouteTable { route: route(), entries, rules: vec![], sticky: Sticky::None }
}

pub(crate) fn header() -> Arc<RunHeader> {
    let service = Service {
        name: "web".into(),
        platform_name: None,
        adopt: false,
        workload: Workload::Command { argv: vec![], artifact: None },
        version: Expr::text("v2.0.0"),
        port: None,
        replicas: Some(Expr::Value(Value::Int(3))),
        env: Default::default(),
        health: vec![],
        route: Some(route()),
        drain_ms: 30_000,
        retain: 5,
        extra: Default::default(),
    };
    let canary = Canary {
        instances: None,
        env: Default::default(),
        rules: vec![],
        steps: vec![],
        sticky: Sticky::None,
    };
    let deploy = Deploy {
        service,
        environment: "production".into(),
        strategy: Strategy::Canary(canary),
        verify: vec![],
        watch: None,
        validate: vec![],
        timeout_ms: 600_000,
        rollback_timeout_ms: 600_000,
    };
    let gate = Gate {
        approvals: vec![],
        metrics: vec![],
        checks: vec![],
        windows: vec![],
        timeout_ms: None,
        hooks: vec![],
    };
    let on_rollback = Hook { events: vec![HookEvent::Rollback], steps: vec![run("./tell-ops")] };
    let node = |id: NodeId, name: &str, needs: Vec<NodeId>, kind| Node {
        id,
        name: name.into(),
        needs: needs.into_iter().map(|node| Need { node, optional: false }).collect(),
        when: None,
        kind,
        at: SourcePos::default(),
    };
    let nodes = vec![
        node(BUILD, "build", vec![], stage(vec![run("npm ci"), run("npm test")], vec![])),
        node(RELEASE, "release", vec![BUILD], NodeKind::Gate(Box::new(gate))),
        node(
            PRODUCTION,
            "production",
            vec![RELEASE],
            stage(
                vec![step("deploy web to production", StepKind::Deploy(Box::new(deploy)))],
                vec![on_rollback],
            ),
        ),
    ];
    let plan = Plan {
        name: "webshop".into(),
        mode: Mode::Delivery,
        max_parallel: 4,
        concurrency: Concurrency::Queue,
        sources: vec![],
        inputs: Default::default(),
        secrets: Default::default(),
        environments: Default::default(),
        metrics: Default::default(),
        flags: Default::default(),
        nodes,
        hooks: vec![],
        hash: "sha256:5e1f".into(),
    };
    Arc::new(RunHeader {
        journal_version: 1,
        cdpipe_version: "0.1.0".into(),
        run: "20261123-151905-7f3a".to_owned().into(),
        started_at_ms: START_MS,
        started_by: "ada@host".into(),
        file: "/srv/webshop.cd".into(),
        texts: vec![],
        plan,
        git: GitFacts::default(),
    })
}

fn at(node: NodeId, index: u32) -> StepRef {
    StepRef { node: Some(node), block: Block::Main, index }
}

fn sample(subject: Subject, name: &str, value: Value) -> Sample {
    Sample {
        metric: MetricRef { subject, measure: MeasureName::Named { set: "shop".into(), name: name.into() } },
        value: Some(value),
        asked: format!("http://127.0.0.1:4100/metrics ratio({name})"),
        note: Some("412 requests".into()),
    }
}

impl<'a> Story<'a> {
    pub(crate) fn begin(to: &'a mut dyn Reporter) -> Self {
        let mut story = Self { to, now_ms: START_MS, seq: 0, actions: 0 };
        story.event(Event::Opened(header()));
        story.record(Record::Opened { at_ms: START_MS, by: "ada@host pid 41".into(), resumed: false });
        story
    }

    pub(crate) fn wait(&mut self, ms: u64) {
        self.now_ms += ms;
        self.to.tick(self.now_ms);
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.to.event(self.now_ms, &event);
    }

    pub(crate) fn record(&mut self, record: Record) {
        self.seq += 1;
        self.event(Event::Record { seq: self.seq, at_ms: self.now_ms, record: Arc::new(record) });
    }

    pub(crate) fn output(&mut self, node: NodeId, index: u32, line: &str) {
        self.event(Event::Output { step: at(node, index), stream: Stream::Stdout, line: line.into() });
    }

    fn done(&mut self, node: NodeId, kind: ActionKind, takes_ms: u64, answer: Answer) {
        self.actions += 1;
        let id = ActionId(self.actions);
        self.record(Record::Intent { action: Action { id, step: at(node, 0), deadline_ms: 60_000, kind } });
        self.wait(takes_ms);
        self.record(Record::Returned { at_ms: self.now_ms, action: id, result: ActionResult::Done(answer) });
    }

    pub(crate) fn build(&mut self) {
        self.record(Record::NodeStarted { node: BUILD, attempt: 1 });
        self.record(Record::StepStarted { step: at(BUILD, 0), attempt: 1 });
        self.wait(700);
        self.output(BUILD, 0, "added 212 packages");
        self.wait(500);
        self.record(Record::StepFinished { step: at(BUILD, 0), outcome: Outcome::Succeeded, reason: None });
        self.record(Record::StepStarted { step: at(BUILD, 1), attempt: 1 });
        self.wait(2_000);
        self.output(BUILD, 1, "\u{1b}[32m✓\u{1b}[0m 41 passed");
    }

    pub(crate) fn build_ends(&mut self) {
        self.record(Record::StepFinished { step: at(BUILD, 1), outcome: Outcome::Succeeded, reason: None });
        self.record(Record::NodeFinished { node: BUILD, outcome: Outcome::Succeeded, reason: None });
    }

    pub(crate) fn build_fails(&mut self) {
        self.output(BUILD, 1, "✗ cart: expected 3 items, found 2");
        let fault = Fault::new("command-failed", "`npm test` ended with exit status 1")
            .details(["✗ cart: expected 3 items, found 2".to_owned()]);
        self.record(Record::StepFinished {
            step: at(BUILD, 1),
            outcome: Outcome::Failed,
            reason: Some(fault.clone()),
        });
        self.record(Record::NodeFinished { node: BUILD, outcome: Outcome::Failed, reason: Some(fault) });
        for (node, needs) in [(RELEASE, "build"), (PRODUCTION, "release")] {
            let why = Fault::new("needs", format!("needs {needs}, which did not succeed"));
            self.record(Record::NodeFinished { node, outcome: Outcome::Skipped, reason: Some(why) });
        }
        self.record(Record::RunFinished { outcome: Outcome::Failed, reason: None });
        self.event(Event::Closed);
    }

    pub(crate) fn gate_asks(&mut self) {
        self.record(Record::NodeStarted { node: RELEASE, attempt: 1 });
        self.record(Record::ApprovalAsked {
            node: RELEASE,
            by: vec!["ops".into(), "release-managers".into()],
            quorum: 1,
            effect_hash: "sha256:aa".into(),
            expires_at_ms: Some(self.now_ms + 86_400_000),
        });
    }

    pub(crate) fn gate_opens(&mut self) {
        self.wait(65_000);
        self.record(Record::Signalled {
            at_ms: self.now_ms,
            signal: Signal::Approve {
                node: RELEASE,
                by: "grace".into(),
                person: String::new(),
                effect_hash: String::new(),
            },
        });
        self.record(Record::NodeFinished { node: RELEASE, outcome: Outcome::Succeeded, reason: None });
    }

    fn program_at(&mut self, pc: u32) {
        self.record(Record::ProgramAt { step: at(PRODUCTION, 0), pc });
    }

    fn ready(&mut self, version: &str, count: u32) {
        let instances = (0..count)
            .map(|n| Instance {
                id: format!("i{n}").into(),
                address: None,
                ready: true,
                reached_at: None,
                restarts: 0,
            })
            .collect();
        let kind = ActionKind::AwaitReady {
            environment: "production".into(),
            release: Box::new(spec(version)),
            count,
            may_fail: 0,
        };
        self.done(PRODUCTION, kind, 800, Answer::Instances(instances));
    }

    fn routed(&mut self, candidate_bp: u32) {
        let kind = ActionKind::AwaitRouted {
            environment: "production".into(),
            table: Box::new(table(candidate_bp)),
        };
        self.done(PRODUCTION, kind, 100, Answer::Nothing);
    }

    fn soak(&mut self, ms: u64) {
        let timer = TimerId { node: Some(PRODUCTION), purpose: TimerPurpose::Soak };
        self.record(Record::TimerSet { timer, due_ms: self.now_ms + ms });
    }

    pub(crate) fn samples(&mut self, error_rate: f64, findings: Vec<Finding>) {
        self.record(Record::Verdict {
            step: at(PRODUCTION, 0),
            samples: vec![
                sample(Subject::Candidate, "error_rate", Value::Percent(error_rate)),
                sample(Subject::Stable, "error_rate", Value::Percent(0.1)),
                sample(Subject::Candidate, "response_time", Value::Duration(12.345_678)),
            ],
            findings,
        });
    }

    /// Up to the middle of the first soak.
    pub(crate) fn canary_begins(&mut self) {
        self.record(Record::NodeStarted { node: PRODUCTION, attempt: 1 });
        self.record(Record::StepStarted { step: at(PRODUCTION, 0), attempt: 1 });
        self.wait(100);
        let ensure = |count, canary| ProgramStep::Ensure { side: Role::Candidate, count, canary };
        let ready = |count| ProgramStep::Ready { side: Role::Candidate, count, may_fail: 0 };
        let weight = |candidate_bp| ProgramStep::Route(Routing::Weighted { candidate_bp, rules: false });
        let soak = |label: &str| ProgramStep::Soak { ms: 20_000, label: label.into() };
        let program = Program {
            candidate: spec("v2.0.0"),
            stable: Some(spec("v1.0.0")),
            replicas: 3,
            stable_replicas: 3,
            seen: Observation { table: Some(table(0)), ..Observation::default() },
            steps: vec![
                ensure(1, true),
                ready(1),
                ProgramStep::WatchOn,
                weight(1_000),
                soak("canary 10%"),
                ensure(3, false),
                ready(3),
                weight(10_000),
                ProgramStep::Promote,
                soak("after"),
                ProgramStep::WatchOff,
                ProgramStep::Shrink { side: Role::Stable, count: 0 },
                ProgramStep::Retire { side: Role::Stable, old: OldRelease::Stop },
            ],
            notes: vec![],
        };
        self.record(Record::Programmed { step: at(PRODUCTION, 0), program: Box::new(program) });
        self.program_at(0);
        self.program_at(1);
        self.ready("v2.0.0", 1);
        self.program_at(2);
        self.program_at(3);
        self.routed(1_000);
        self.program_at(4);
        self.soak(20_000);
        self.wait(5_000);
        self.samples(0.2, vec![]);
        self.wait(5_000);
        self.samples(0.25, vec![]);
    }

    pub(crate) fn canary_ends_well(&mut self) {
        self.wait(10_000);
        self.program_at(5);
        self.program_at(6);
        self.ready("v2.0.0", 3);
        self.program_at(7);
        self.routed(10_000);
        self.program_at(8);
        self.program_at(9);
        self.soak(20_000);
        self.wait(20_000);
        self.program_at(10);
        self.program_at(11);
        let kind = ActionKind::Stop {
            environment: "production".into(),
            release: Box::new(spec("v1.0.0")),
            instances: vec![],
            old: Some(OldRelease::Stop),
            retain: 5,
        };
        self.done(PRODUCTION, kind, 300, Answer::Instances(vec![]));
        self.program_at(13);
        self.record(Record::StepFinished {
            step: at(PRODUCTION, 0),
            outcome: Outcome::Succeeded,
            reason: None,
        });
        self.record(Record::NodeFinished { node: PRODUCTION, outcome: Outcome::Succeeded, reason: None });
        self.record(Record::RunFinished { outcome: Outcome::Succeeded, reason: None });
        self.event(Event::Closed);
    }

    pub(crate) fn canary_goes_bad(&mut self) {
        self.wait(5_000);
        let text = "candidate.error_rate 9% > max(2 * 0.1%, 1%) = 1%";
        let finding = Finding { rule: 0, verdict: RuleVerdict::Breach, text: text.into() };
        self.samples(9.0, vec![finding]);
        let reason = Fault::new("watch", format!("a rule of the watch fired: {text}"));
        self.record(Record::Undoing {
            step: at(PRODUCTION, 0),
            reason: reason.clone(),
            outcome: Outcome::RolledBack,
            program: vec![
                ProgramStep::Ready { side: Role::Stable, count: 3, may_fail: 0 },
                ProgramStep::Route(Routing::Weighted { candidate_bp: 0, rules: false }),
                ProgramStep::Shrink { side: Role::Candidate, count: 0 },
            ],
        });
        self.program_at(0);
        self.ready("v1.0.0", 3);
        self.program_at(1);
        self.routed(0);
        self.program_at(2);
    }

    pub(crate) fn canary_is_gone(&mut self) {
        let kind = ActionKind::Stop {
            environment: "production".into(),
            release: Box::new(spec("v2.0.0")),
            instances: vec![],
            old: Some(OldRelease::Remove),
            retain: 5,
        };
        self.done(PRODUCTION, kind, 300, Answer::Instances(vec![]));
        let reason = Fault::new(
            "watch",
            "a rule of the watch fired: candidate.error_rate 9% > max(2 * 0.1%, 1%) = 1%",
        );
        self.record(Record::StepFinished {
            step: at(PRODUCTION, 0),
            outcome: Outcome::RolledBack,
            reason: Some(reason.clone()),
        });
        self.record(Record::HookStarted { node: Some(PRODUCTION), hook: 0 });
        self.wait(200);
        self.record(Record::HookFinished { node: Some(PRODUCTION), hook: 0, failed: None });
        self.record(Record::NodeFinished {
            node: PRODUCTION,
            outcome: Outcome::RolledBack,
            reason: Some(reason),
        });
        self.record(Record::RunFinished { outcome: Outcome::RolledBack, reason: None });
        self.event(Event::Closed);
    }

    pub(crate) fn end(self) {
        self.to.finish(self.now_ms);
    }
}
