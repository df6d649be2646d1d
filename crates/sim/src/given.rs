//! What is given before a run: the plan, what serves, what will be measured, and who answers.

use cdpipe_check::testing::{GateAnswer, Test};
use cdpipe_machine::release;
use cdpipe_model::action::{Block, StepRef};
use cdpipe_model::expr::{Expr, MeasureName, MetricRef, Subject};
use cdpipe_model::measure::MeasureRequest;
use cdpipe_model::observe::Observation;
use cdpipe_model::plan::{Deploy, NodeKind, Plan, Stage, Step, StepKind};
use cdpipe_model::record::{GitFacts, JOURNAL_VERSION, RunHeader};
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::service::{Route, TrafficKind};
use cdpipe_model::strategy::{Order, Strategy};
use cdpipe_model::value::Type;
use cdpipe_model::{EnvName, Fault, NodeId, RunId, ServiceName, Value};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

type Place = (EnvName, ServiceName);

/// The run that is simulated.
const RUN: &str = "simulated";

/// A release that serves before the run.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) place: Place,
    pub(crate) spec: ReleaseSpec,
    pub(crate) replicas: u32,
    pub(crate) route: Option<Route>,
}

/// What is said of one stage.
#[derive(Debug, Clone, Default)]
struct Said {
    values: Vec<(MetricRef, Value)>,
    fails: bool,
    /// It has commands or requests that can fail; else its instances do not become ready.
    has_steps: bool,
}

/// Everything that a simulated run begins with.
#[derive(Debug, Clone)]
pub struct Given {
    pub(crate) header: Arc<RunHeader>,
    pub(crate) serving: Vec<Served>,
    said: BTreeMap<NodeId, Said>,
    gates: BTreeMap<NodeId, GateAnswer>,
    routes: BTreeMap<Place, Route>,
    away: BTreeSet<Place>,
    /// Every metric that nobody speaks of has this value.
    otherwise: Option<f64>,
}

impl Given {
    /// What a test gives. `texts` are those of the plan's sources, `file` is the path of the pipeline.
    ///
    /// # Errors
    /// If what serves can't be made: an expression has no value.
    pub fn of_test(test: &Test, plan: &Plan, file: &str, texts: Vec<String>) -> Result<Self, Fault> {
        let mut given = Self::bare(plan, file, texts);
        for serving in &test.serving {
            let place = (serving.environment.clone(), serving.service.clone());
            let served = serve(plan, &place, &serving.version, given.route(&place).cloned())?;
            given.serving.push(served);
        }
        for node in &plan.nodes {
            // One stage of a matrix is named `build[linux]`.
            let name = node.name.split('[').next().unwrap_or_default();
            let mut said = Said::default();
            for measured in test.measured.iter().filter(|said| said.stage == node.name || said.stage == name)
            {
                said.values.extend(measured.values.iter().cloned());
                said.fails |= measured.fails;
            }
            if let NodeKind::Stage(stage) = &node.kind {
                said.has_steps = has_steps(stage);
            }
            given.said.insert(node.id, said);
            if let Some(answer) = test.gates.get(&node.name) {
                given.gates.insert(node.id, *answer);
            }
        }
        Ok(given)
    }

    /// A run of which no test says anything: gates are approved, every metric is `otherwise`, and with `upgrade` an earlier release of
    /// every service serves already.
    ///
    /// # Errors
    /// If what serves can't be made: an expression has no value.
    pub fn assumed(
        plan: &Plan,
        file: &str,
        texts: Vec<String>,
        upgrade: bool,
        otherwise: f64,
    ) -> Result<Self, Fault> {
        let mut given = Self::bare(plan, file, texts);
        given.otherwise = Some(otherwise);
        given.gates = plan.nodes.iter().map(|node| (node.id, GateAnswer::Approved)).collect();
        if upgrade {
            let places: BTreeSet<Place> = deploys(plan).map(place_of).collect();
            for place in places {
                let served = serve(plan, &place, "before", given.route(&place).cloned())?;
                given.serving.push(served);
            }
        }
        Ok(given)
    }

    fn bare(plan: &Plan, file: &str, texts: Vec<String>) -> Self {
        let header = RunHeader {
            journal_version: JOURNAL_VERSION,
            cdpipe_version: env!("CARGO_PKG_VERSION").to_owned(),
            run: RunId::from(RUN),
            started_at_ms: crate::clock::EPOCH_MS,
            started_by: "cdpipe test".to_owned(),
            file: file.to_owned(),
            texts,
            plan: plan.clone(),
            git: GitFacts::default(),
        };
        let mut routes = BTreeMap::new();
        let mut away = BTreeSet::new();
        for deploy in deploys(plan) {
            let place = place_of(deploy);
            let steered = plan
                .environments
                .get(&deploy.environment)
                .and_then(|environment| environment.traffic.as_ref())
                .is_some_and(|traffic| traffic.kind != TrafficKind::Replicas);
            if let Some(route) = deploy.service.route.clone().filter(|_| steered) {
                routes.insert(place.clone(), route);
            }
            let goes_first = match &deploy.strategy {
                Strategy::Recreate => true,
                Strategy::Rolling(rolling) => rolling.order == Order::StopFirst,
                Strategy::BlueGreen(_) | Strategy::Canary(_) => false,
            };
            if goes_first {
                away.insert(place);
            }
        }
        Self {
            header: Arc::new(header),
            serving: Vec::new(),
            said: BTreeMap::new(),
            gates: BTreeMap::new(),
            routes,
            away,
            otherwise: None,
        }
    }

    /// The plan of the run.
    pub fn plan(&self) -> &Plan {
        &self.header.plan
    }

    /// What is run, as a journal has it.
    pub fn header(&self) -> &Arc<RunHeader> {
        &self.header
    }

    pub(crate) fn route(&self, place: &Place) -> Option<&Route> {
        self.routes.get(place)
    }

    /// Whether the strategy itself takes the old release away before the new one is there.
    pub(crate) fn may_be_away(&self, place: &Place) -> bool {
        self.away.contains(place)
    }

    /// How a gate, or a step of a canary, is answered; a person at a step of a deploy always says yes.
    pub(crate) fn answer(&self, node: NodeId) -> Option<GateAnswer> {
        match self.plan().node(node).map(|node| &node.kind) {
            Some(NodeKind::Stage(_)) => Some(GateAnswer::Approved),
            _ => self.gates.get(&node).copied(),
        }
    }

    fn said(&self, node: Option<NodeId>) -> Option<&Said> {
        self.said.get(&node?)
    }

    /// Whether the commands and requests of this step fail.
    pub(crate) fn fails(&self, step: &StepRef) -> bool {
        let own = matches!(step.block, Block::Main | Block::Verify(_) | Block::Validate(_));
        own && self.said(step.node).is_some_and(|said| said.fails)
    }

    /// Whether new instances of this stage do not become ready.
    pub(crate) fn never_ready(&self, node: Option<NodeId>) -> bool {
        self.said(node).is_some_and(|said| said.fails && !said.has_steps)
    }

    /// What the test says of one of the measures that are always there.
    pub(crate) fn measured(
        &self,
        node: Option<NodeId>,
        side: Subject,
        measure: &MeasureName,
    ) -> Option<Value> {
        let fits = |metric: &MetricRef| {
            metric.measure == *measure && (metric.subject == side || metric.subject == Subject::Service)
        };
        let said = self.said(node)?;
        said.values.iter().find(|(metric, _)| fits(metric)).map(|(_, value)| value.clone())
    }

    /// What the test says of a metric.
    pub(crate) fn metric(
        &self,
        node: Option<NodeId>,
        subject: Subject,
        request: &MeasureRequest,
    ) -> Option<Value> {
        let find = |subject: Subject| {
            let values = &self.said(node)?.values;
            let fits =
                |metric: &MetricRef| metric.measure == request.metric.measure && metric.subject == subject;
            values.iter().find(|(metric, _)| fits(metric)).map(|(_, value)| value.clone())
        };
        let baseline = || if subject == Subject::Baseline { find(Subject::Stable) } else { None };
        find(subject).or_else(baseline).or_else(|| {
            let unit = request.definition.as_ref().map(|(_, metric)| metric.unit.clone());
            Some(of_type(&unit.unwrap_or(Type::Number), self.otherwise?))
        })
    }

    /// What a command of this step writes for an output.
    pub(crate) fn output(&self, step: &StepRef, name: &str) -> String {
        let ty = step.node.and_then(|node| match &self.plan().node(node)?.kind {
            NodeKind::Stage(stage) => stage.outputs.iter().find(|output| output.name == name),
            NodeKind::Gate(_) => None,
        });
        match ty.map(|output| &output.ty) {
            Some(Type::Bool) => "true".to_owned(),
            Some(Type::Int | Type::Number) => "1".to_owned(),
            Some(Type::Percent) => "1%".to_owned(),
            Some(Type::Duration) => "1s".to_owned(),
            Some(Type::Size) => "1MB".to_owned(),
            Some(Type::Version) => "1.0.0".to_owned(),
            Some(Type::List(_)) => "[]".to_owned(),
            Some(Type::Map(_)) => "{}".to_owned(),
            _ => format!("simulated-{name}"),
        }
    }
}

fn of_type(ty: &Type, number: f64) -> Value {
    match ty {
        Type::Percent => Value::Percent(number),
        Type::Duration => Value::Duration(number),
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the numbers are chosen here: small and not negative"
        )]
        Type::Size => Value::Size(number as u64),
        #[allow(clippy::cast_possible_truncation, reason = "the numbers are chosen here: small")]
        Type::Int => Value::Int(number as i64),
        _ => Value::Number(number),
    }
}

fn has_steps(stage: &Stage) -> bool {
    fn can_fail(step: &Step) -> bool {
        match &step.kind {
            StepKind::Run(_) | StepKind::Exec(_) | StepKind::Http(_) => true,
            StepKind::Deploy(deploy) => deploy.verify.iter().chain(&deploy.validate).any(can_fail),
            _ => false,
        }
    }
    stage.steps.iter().any(can_fail)
}

/// Every deploy of a plan.
pub(crate) fn deploys(plan: &Plan) -> impl Iterator<Item = &Deploy> {
    plan.nodes
        .iter()
        .filter_map(|node| match &node.kind {
            NodeKind::Stage(stage) => Some(stage),
            NodeKind::Gate(_) => None,
        })
        .flat_map(|stage| &stage.steps)
        .filter_map(|step| match &step.kind {
            StepKind::Deploy(deploy) => Some(&**deploy),
            _ => None,
        })
}

pub(crate) fn place_of(deploy: &Deploy) -> Place {
    (deploy.environment.clone(), deploy.service.name.clone())
}

/// The release of this version as an earlier run of this pipeline would have left it.
fn serve(plan: &Plan, place: &Place, version: &str, route: Option<Route>) -> Result<Served, Fault> {
    let eval = |expr: &Expr| -> Result<Value, Fault> {
        expr.eval(&|symbol| Some(Value::Str(format!("<{symbol}>")))).map_err(|error| {
            Fault::new("known-later", format!("`{expr}` has no value before the run: {error}"))
        })
    };
    // Of several deploys of a service the last one leaves what serves.
    let Some(deploy) = deploys(plan).filter(|deploy| place_of(deploy) == *place).last() else {
        let spec = ReleaseSpec {
            service: place.1.clone(),
            platform_name: None,
            version: version.to_owned(),
            artifact: Artifact::Image { reference: version.to_owned(), digest: None, args: Vec::new() },
            port: None,
            env: BTreeMap::new(),
            health: Vec::new(),
            drain_ms: 0,
            extra: BTreeMap::new(),
        };
        return Ok(Served { place: place.clone(), spec, replicas: 1, route });
    };
    let now = release::release_spec(plan, deploy, &eval)?;
    let replicas = release::wanted(deploy, &now, &Observation::default(), &eval)?;
    let mut spec = now.clone();
    // Whatever is made from the version was made from that one then.
    let then = |text: &str| {
        if now.version.is_empty() { text.to_owned() } else { text.replace(&now.version, version) }
    };
    version.clone_into(&mut spec.version);
    for value in spec.env.values_mut() {
        if let Value::Str(text) = value {
            *text = then(text);
        }
    }
    match &mut spec.artifact {
        Artifact::Command { argv, path, .. } => {
            argv.iter_mut().chain(path).for_each(|text| *text = then(text));
        }
        Artifact::Image { reference, args, .. } => {
            args.iter_mut().chain([reference]).for_each(|text| *text = then(text));
        }
        Artifact::Document { .. } => {}
    }
    let mut spec = resolved(&spec);
    if now.version != version && spec.id() == resolved(&now).id() {
        // Nothing in it says its version, and it was another one all the same.
        spec.extra.insert("simulated-version".to_owned(), Value::Str(version.to_owned()));
    }
    Ok(Served { place: place.clone(), spec, replicas, route })
}

/// The artifact as the simulated target finds it: one for each version.
pub(crate) fn resolved(spec: &ReleaseSpec) -> ReleaseSpec {
    let mut spec = spec.clone();
    let hash = |text: &str| {
        let hash = Sha256::digest(format!("{text} {}", spec.version).as_bytes());
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    };
    match &mut spec.artifact {
        Artifact::Command { path, digest, .. } => {
            *digest = path.as_ref().map(|path| hash(path));
        }
        Artifact::Image { reference, digest, .. } => *digest = Some(hash(reference)),
        Artifact::Document { source, json, .. } => {
            *json = format!("{{\"simulated\":\"{}\"}}", hash(source));
        }
    }
    spec
}
