//! `cdpipe rollback`: a new run that brings a release back that was deployed before and is kept.

use crate::commands::Ended;
use crate::commands::plan as plan_command;
use crate::drive::{self, ShowArgs, What};
use crate::failure::{self, Failure};
use crate::preview::{self, digest};
use crate::state;
use crate::targets;
use crate::ui::Ui;
use crate::wiring;
use cdpipe_model::expr::Expr;
use cdpipe_model::observe::Observation;
use cdpipe_model::plan::{
    Deploy, Node, NodeKind, OnInterrupt, Plan, Retry, SourcePos, Stage, Step, StepKind,
};
use cdpipe_model::record::{JOURNAL_VERSION, RunHeader};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::service::Workload;
use cdpipe_model::strategy::{BlueGreen, Count, OldRelease, Order, Rolling, Strategy};
use cdpipe_model::{NodeId, Value};
use cdpipe_report::words;
use std::io::{BufRead, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Arguments of `cdpipe rollback`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which service.
    #[arg(value_name = "SERVICE")]
    service: String,
    /// Where.
    #[arg(value_name = "ENVIRONMENT")]
    environment: String,
    /// To which release: its id or version; the one before without it.
    #[arg(value_name = "RELEASE")]
    release: Option<String>,
    /// Don't ask.
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    show: ShowArgs,
}

/// Rolls back; the exit codes are those of `run`.
pub(crate) fn run(args: &Args, ui: &Ui) -> Ended {
    let store = state::open_existing()?;
    let (before, deploy) = targets::find(&store, &args.service, &args.environment)?;
    if let Some(unfinished) = store.unfinished_of(&before.file)?.first() {
        return Err(Failure::new(
            &failure::UNFINISHED,
            format!("run {} of `{}` is not finished", unfinished.run, before.file),
        )
        .help(crate::commands::runs::way_on(unfinished)));
    }
    let file = Path::new(&before.file);
    let look = wiring::wire(&before.plan, file, store.dir())?;
    let target = look.ports.targets.get(&deploy.environment).cloned();
    let router = look.ports.routers.get(&deploy.environment).cloned();
    let seen = preview::ask(async {
        let target = target?;
        let (step, effect) = (targets::no_step(), targets::effect("rollback"));
        let call = preview::call_for(&effect, &step, Duration::from_secs(30), &*look.ports.secrets);
        let mut seen =
            target.observe(call, &deploy.service.name, deploy.service.platform_name.as_deref()).await;
        if let (Ok(seen), Some(router), Some(route)) = (&mut seen, router, &deploy.service.route)
            && let Ok(table) = router.observe(call, route).await
        {
            seen.table = table;
        }
        Some(seen)
    })?;
    let seen = match seen {
        Some(Ok(seen)) => seen,
        Some(Err(fault)) => return Err(Failure::from_fault(&failure::TARGET, fault)),
        None => return Err(Failure::new(&failure::CANNOT_RUN, "the environment has no target")),
    };
    let release = choose(&seen, args.release.as_deref(), &deploy)?;
    let plan = plan_of(&before.plan, &deploy, release, &seen);
    let wiring = wiring::wire(&plan, file, store.dir())?;
    if std::io::stdin().is_terminal() && ui.err.terminal && !args.yes {
        let previews = preview::ask(preview::preview(&plan, &wiring.ports))?;
        ui.note(&plan_command::text(&plan, &previews, ui.err));
        if !confirmed("roll back? [y/N] ", ui) {
            ui.note("nothing was done\n");
            return Ok(2);
        }
    }
    let header = Arc::new(RunHeader {
        journal_version: JOURNAL_VERSION,
        cdpipe_version: env!("CARGO_PKG_VERSION").to_owned(),
        run: state::new_run_id(),
        started_at_ms: crate::times::now_ms(),
        started_by: state::user_at_host(),
        file: before.file.clone(),
        texts: before.texts.clone(),
        plan,
        git: before.git.clone(),
    });
    let journal = store.begin(&header)?;
    drive::drive(What::New(header), journal, &store, wiring, &args.show, ui)
}

/// Asks for a `y`.
pub(crate) fn confirmed(question: &str, ui: &Ui) -> bool {
    ui.note(question);
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).is_ok() && answer.trim().eq_ignore_ascii_case("y")
}

/// The release to go back to: the one that is named, or the one that was there before what serves.
fn choose(seen: &Observation, named: Option<&str>, deploy: &Deploy) -> Result<ReleaseSpec, Failure> {
    let serving = seen
        .table
        .as_ref()
        .and_then(|table| table.entries.iter().max_by_key(|entry| entry.weight_bp))
        .map(|entry| entry.release.clone())
        .or_else(|| {
            seen.releases.iter().rev().find(|release| release.wanted > 0).map(|release| release.id.clone())
        });
    let place = format!("`{}` in `{}`", deploy.service.name, deploy.environment);
    let kept: Vec<String> = seen
        .releases
        .iter()
        .filter(|release| Some(&release.id) != serving.as_ref())
        .map(|release| format!("{} ({})", words::release(&release.spec), release.id))
        .collect();
    let kept_text =
        if kept.is_empty() { "none is kept".to_owned() } else { format!("kept are {}", kept.join(", ")) };
    let found = match named {
        Some(name) => seen.releases.iter().rev().find(|release| {
            release.spec.version == name || (name.len() >= 4 && release.id.as_str().starts_with(name))
        }),
        None => {
            let at = seen.releases.iter().position(|release| Some(&release.id) == serving.as_ref());
            match at {
                Some(0) => seen.releases.last().filter(|release| Some(&release.id) != serving.as_ref()),
                Some(at) => seen.releases.get(at - 1),
                None => seen.releases.last(),
            }
        }
    };
    match (found, named) {
        (Some(release), _) if Some(&release.id) == serving.as_ref() => Err(Failure::new(
            &failure::NOT_POSSIBLE,
            format!("{} ({}) serves already", words::release(&release.spec), release.id),
        )
        .help(kept_text)),
        (Some(release), _) => Ok(release.spec.clone()),
        (None, Some(name)) => {
            Err(Failure::new(&failure::NOT_POSSIBLE, format!("no release `{name}` of {place} is kept"))
                .help(kept_text))
        }
        (None, None) => {
            Err(Failure::new(&failure::NOT_POSSIBLE, format!("there is no release of {place} to go back to"))
                .help("deploy the version you want with `cdpipe run`"))
        }
    }
}

/// A plan with one stage that brings the release back: at once where there is a router, batch by batch where there is none.
fn plan_of(before: &Plan, deploy: &Deploy, release: ReleaseSpec, seen: &Observation) -> Plan {
    let mut deploy = deploy.clone();
    let version = words::release(&release);
    let wanted = seen.releases.iter().map(|release| release.wanted).max().unwrap_or(1).max(1);
    if deploy.service.replicas.as_ref().is_some_and(|said| said.known().is_none()) {
        deploy.service.replicas = Some(Expr::Value(Value::Int(i64::from(wanted))));
    }
    let routed = deploy.service.route.is_some()
        && before
            .environments
            .get(&deploy.environment)
            .is_some_and(|environment| environment.traffic.is_some());
    deploy.strategy = if routed {
        Strategy::BlueGreen(BlueGreen { keep_old_ms: 0, old: OldRelease::Stop, preview: None })
    } else {
        Strategy::Rolling(Rolling {
            batch: Count::Percent(50.0),
            pause_ms: 0,
            monitor_ms: 0,
            order: Order::StartFirst,
            max_failures_percent: 0.0,
            ..Rolling::default()
        })
    };
    deploy.service.workload = Workload::Kept(Box::new(release));
    // What was proven when it was deployed is not asked again: going back has to be quick.
    deploy.verify = Vec::new();
    deploy.watch = None;
    deploy.validate = Vec::new();
    let lock = targets::lock_key(&deploy.environment, &deploy.service.name);
    let (service, environment) = (deploy.service.name.clone(), deploy.environment.clone());
    let timeout_ms = deploy.timeout_ms;
    let step = Step {
        label: format!("roll {service} in {environment} back to {version}"),
        kind: StepKind::Deploy(Box::new(deploy)),
        timeout_ms,
        retry: Retry::default(),
        on_interrupt: OnInterrupt::Retry,
        at: SourcePos::default(),
    };
    let stage = Stage {
        steps: vec![step],
        timeout_ms: None,
        retry: Retry::default(),
        locks: vec![lock],
        outputs: Vec::new(),
        hooks: Vec::new(),
        undo_on_failure: false,
    };
    let node = Node {
        id: NodeId(0),
        name: "rollback".to_owned(),
        needs: Vec::new(),
        when: None,
        kind: NodeKind::Stage(Box::new(stage)),
        at: SourcePos::default(),
    };
    let name = format!("{}: rollback", before.name.trim_end_matches(": rollback"));
    let mut plan = Plan { name, nodes: vec![node], hooks: Vec::new(), hash: String::new(), ..before.clone() };
    plan.hash = digest(serde_json::to_string(&plan).unwrap_or_default().as_bytes());
    plan
}
