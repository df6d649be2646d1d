//! Small plans, built by hand.

use cdpipe_model::expr::{Expr, MeasureName, MetricRef, Op, Subject, Symbol};
use cdpipe_model::plan::{
    Concurrency, Deploy, Hook, LockKey, Mode, Need, NoData, Node, NodeKind, OnInterrupt, Plan, Retry, Rule,
    RuleAction, Run, SourcePos, Stage, Step, StepKind, Watch,
};
use cdpipe_model::record::{GitFacts, JOURNAL_VERSION, RunHeader};
use cdpipe_model::service::{
    Environment, Route, Service, TargetKind, TargetSpec, TrafficKind, TrafficSpec, Workload,
};
use cdpipe_model::strategy::{
    BlueGreen, Canary, CanaryStep, Count, Hold, OldRelease, Order, Rolling, Sticky, Strategy,
};
use cdpipe_model::{NodeId, RunId, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) fn step(kind: StepKind) -> Step {
    Step {
        label: String::new(),
        kind,
        timeout_ms: 60_000,
        retry: Retry::default(),
        on_interrupt: OnInterrupt::Ask,
        at: SourcePos::default(),
    }
}

pub(super) fn run(script: &str) -> Step {
    step(StepKind::Run(Run {
        script: script.to_owned(),
        args: Vec::new(),
        env: BTreeMap::new(),
        dir: None,
        stdin: None,
        image: None,
        environment: None,
    }))
}

pub(super) fn route() -> Route {
    Route { service: "web".into(), host: None, path: None, listen: Some(":8080".into()), object: None }
}

pub(super) fn service(version: &str, replicas: i64) -> Service {
    Service {
        name: "web".into(),
        platform_name: None,
        adopt: false,
        workload: Workload::Command { argv: vec![Expr::text(format!("./web-{version}"))], artifact: None },
        version: Expr::text(version),
        port: None,
        replicas: Some(Expr::Value(Value::Int(replicas))),
        env: BTreeMap::new(),
        health: Vec::new(),
        route: Some(route()),
        drain_ms: 1_000,
        retain: 5,
        extra: BTreeMap::new(),
    }
}

pub(super) fn metric(subject: Subject) -> Expr {
    let measure = MeasureName::Named { set: "shop".into(), name: "error_rate".into() };
    Expr::Symbol(Symbol::Metric(MetricRef { subject, measure }))
}

pub(super) fn watch() -> Watch {
    let when = Expr::Binary(
        Op::Gt,
        Box::new(metric(Subject::Candidate)),
        Box::new(Expr::Value(Value::Percent(5.0))),
    );
    Watch {
        every_ms: 1_000,
        for_ms: None,
        rules: vec![Rule {
            action: RuleAction::Rollback,
            when,
            for_ms: None,
            text: "candidate.error_rate > 5%".into(),
            at: SourcePos::default(),
        }],
        after_ms: 3_000,
        no_data: NoData::Hold,
        hold_for_ms: 10_000,
    }
}

pub(super) fn deploy(version: &str, replicas: i64, strategy: Strategy) -> Deploy {
    Deploy {
        service: service(version, replicas),
        environment: "here".into(),
        strategy,
        verify: vec![run("smoke")],
        watch: Some(watch()),
        validate: vec![run("validate")],
        timeout_ms: 600_000,
        rollback_timeout_ms: 600_000,
    }
}

pub(super) fn strategies() -> Vec<Strategy> {
    let canary_step = |weight_bp| CanaryStep { weight_bp, hold: Hold::For { ms: 2_000 } };
    let rolling = |order| {
        Strategy::Rolling(Rolling {
            batch: Count::Instances(2),
            pause_ms: 1_000,
            monitor_ms: 500,
            order,
            max_failures_percent: 20.0,
            ..Rolling::default()
        })
    };
    vec![
        rolling(Order::StartFirst),
        rolling(Order::StopFirst),
        Strategy::BlueGreen(BlueGreen {
            keep_old_ms: 5_000,
            old: OldRelease::Stop,
            preview: Some(":9090".into()),
        }),
        Strategy::Canary(Canary {
            instances: None,
            env: BTreeMap::new(),
            rules: vec![cdpipe_model::strategy::RouteMatch::Header {
                name: "canary".into(),
                value: "true".into(),
            }],
            steps: vec![canary_step(1_000), canary_step(5_000)],
            sticky: Sticky::Cookie,
        }),
        Strategy::Recreate,
        Strategy::Canary(Canary {
            instances: Some(Count::Instances(1)),
            env: BTreeMap::from([("CANARY".into(), Expr::text("yes"))]),
            rules: Vec::new(),
            steps: vec![canary_step(2_000)],
            sticky: Sticky::None,
        }),
    ]
}

pub(super) fn stage(steps: Vec<Step>, hooks: Vec<Hook>) -> NodeKind {
    let locks = steps
        .iter()
        .any(|step| matches!(step.kind, StepKind::Deploy(_)))
        .then(|| LockKey::Service { environment: "here".into(), service: "web".into() })
        .into_iter()
        .collect();
    NodeKind::Stage(Box::new(Stage {
        steps,
        timeout_ms: None,
        retry: Retry::default(),
        locks,
        outputs: Vec::new(),
        hooks,
        undo_on_failure: false,
    }))
}

pub(super) fn node(id: u32, needs: &[u32], kind: NodeKind) -> Node {
    Node {
        id: NodeId(id),
        name: format!("n{id}"),
        needs: needs.iter().map(|need| Need { node: NodeId(*need), optional: false }).collect(),
        when: None,
        kind,
        at: SourcePos::default(),
    }
}

pub(super) fn header(nodes: Vec<Node>, hooks: Vec<Hook>) -> Arc<RunHeader> {
    let environment = Environment {
        name: "here".into(),
        target: TargetSpec { kind: TargetKind::Local, settings: BTreeMap::new() },
        traffic: Some(TrafficSpec { kind: TrafficKind::Proxy, settings: BTreeMap::new() }),
        vars: BTreeMap::new(),
        freezes: Vec::new(),
        protected: false,
    };
    Arc::new(RunHeader {
        journal_version: JOURNAL_VERSION,
        cdpipe_version: "0.0.0".into(),
        run: RunId("r1".into()),
        started_at_ms: 0,
        started_by: "test".into(),
        file: "test.cd".into(),
        texts: Vec::new(),
        plan: Plan {
            name: "test".into(),
            mode: Mode::Delivery,
            max_parallel: 4,
            concurrency: Concurrency::Queue,
            sources: Vec::new(),
            inputs: BTreeMap::new(),
            secrets: BTreeMap::new(),
            environments: BTreeMap::from([("here".into(), environment)]),
            metrics: BTreeMap::new(),
            flags: BTreeMap::new(),
            nodes,
            hooks,
            hash: "sha256:test".into(),
        },
        git: GitFacts::default(),
    })
}

pub(super) fn one_deploy(strategy: Strategy, replicas: i64) -> Arc<RunHeader> {
    let deploy = step(StepKind::Deploy(Box::new(deploy("v2", replicas, strategy))));
    header(vec![node(0, &[], stage(vec![deploy], Vec::new()))], Vec::new())
}
