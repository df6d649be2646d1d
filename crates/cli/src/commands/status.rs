//! `cdpipe status`: where a run is.

use crate::commands::{Ended, runs};
use crate::history;
use crate::state;
use crate::times;
use crate::ui::Ui;
use cdpipe_engine::{RunState, RunSummary, Store};
use cdpipe_model::plan::NodeKind;
use cdpipe_report::style::Style;
use cdpipe_report::{summary, terminal, words};
use serde_json::{Value, json};
use std::sync::Arc;

/// Arguments of `cdpipe status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which run: some letters of its id. Without one, all that are under way, or else the last one.
    #[arg(value_name = "RUN")]
    run: Option<String>,
    /// Times in UTC.
    #[arg(long)]
    utc: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Shows them.
pub(crate) fn run(args: &Args, ui: &Ui) -> Ended {
    let store = state::open_existing()?;
    let meant = match &args.run {
        Some(part) => vec![state::find_run(&store, part)?],
        None => {
            let unfinished = store.unfinished()?;
            if unfinished.is_empty() { store.runs(1)? } else { unfinished }
        }
    };
    if args.json {
        let all: Result<Vec<Value>, _> = meant.iter().map(|run| to_json(&store, run)).collect();
        ui.print(&format!("{:#}\n", json!({ "version": 1, "runs": all? })));
        return Ok(0);
    }
    for (at, run) in meant.iter().enumerate() {
        if at > 0 {
            ui.print("\n");
        }
        show(&store, run, args.utc, ui)?;
    }
    Ok(0)
}

fn show(store: &Arc<Store>, run: &RunSummary, utc: bool, ui: &Ui) -> Result<(), crate::failure::Failure> {
    let look = ui.out;
    let style = Style { color: look.color, unicode: look.unicode };
    let now_ms = times::now_ms();
    let (word, _) = runs::state_word(&run.state, look);
    let mut text = format!("{} {word}\n", look.bold(&run.pipeline));
    let mut about = format!(
        "run {}, started {} ({}) by {}",
        run.run,
        times::absolute(run.started_at_ms, utc),
        times::ago(run.started_at_ms, now_ms),
        run.started_by,
    );
    if let Some(ended) = run.ended_at_ms {
        about.push_str(&format!(", took {}", words::elapsed(ended.saturating_sub(run.started_at_ms))));
    }
    if let Some(owner) = run.owner.as_ref().filter(|owner| owner.alive) {
        about.push_str(&format!(", driven by {}", owner.process));
    }
    text.push_str(&look.dim(&about));
    text.push_str("\n\n");
    if run.pruned {
        text.push_str("  its journal was pruned; only this summary was kept\n");
        ui.print(&text);
        return Ok(());
    }
    let (state, _) = history::fold(store, &run.run)?;
    for line in summary::body(&state, style) {
        for part in line.wrap(look.width, 4) {
            text.push_str(part.render_all(style).trim_end());
            text.push('\n');
        }
    }
    if run.state.is_unfinished() {
        text.push('\n');
        for line in terminal::lines(&state, now_ms, look.width, 1_000, style) {
            text.push_str(line.render(look.width, style).trim_end());
            text.push('\n');
        }
        for line in waits_for_locks(store, &state)? {
            text.push_str(&format!("  {}\n", look.yellow(&line)));
        }
        if run.state != RunState::Running {
            text.push_str(&format!("\n  {}\n", look.cyan(&format!("cdpipe resume {}", run.run))));
        }
    }
    ui.print(&text);
    Ok(())
}

/// Locks that the run waits for, with who holds them.
fn waits_for_locks(
    store: &Arc<Store>,
    state: &cdpipe_report::state::RunState,
) -> Result<Vec<String>, crate::failure::Failure> {
    use cdpipe_model::action::ActionKind;
    use cdpipe_model::plan::LockKey;
    let mut wanted = Vec::new();
    for action in state.actions.values() {
        let ActionKind::Lock { keys, .. } = &action.kind else { continue };
        wanted.extend(keys.iter().map(|key| match key {
            LockKey::Service { environment, service } => format!("{service} {environment}"),
            LockKey::Named(name) => name.clone(),
        }));
    }
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let me = state.header.as_ref().map(|header| &header.run);
    let held = super::locks::held(store)?;
    let others = held.iter().filter(|lock| wanted.contains(&lock.name) && Some(&lock.state.owner.run) != me);
    Ok(others
        .map(|lock| {
            let gone = if lock.alive { "" } else { ", which is gone" };
            format!("waits for lock `{}`: {}{gone}", lock.name, super::unlock::seen(&lock.state))
        })
        .collect())
}

fn to_json(store: &Store, run: &RunSummary) -> Result<Value, crate::failure::Failure> {
    let mut value = runs::to_json(run);
    if run.pruned {
        return Ok(value);
    }
    let (state, records) = history::fold(store, &run.run)?;
    let nodes: Vec<Value> = state
        .plan()
        .into_iter()
        .flat_map(|plan| &plan.nodes)
        .zip(&state.nodes)
        .map(|(node, now)| {
            json!({
                "name": node.name,
                "kind": if matches!(node.kind, NodeKind::Gate(_)) { "gate" } else { "stage" },
                "state": match (&now.finished, now.started_at_ms) {
                    (Some(finished), _) => finished.outcome.as_str(),
                    (None, Some(_)) => "running",
                    (None, None) => "pending",
                },
                "attempt": now.attempt,
                "started_at_ms": now.started_at_ms,
                "ended_at_ms": now.finished.as_ref().map(|finished| finished.at_ms),
                "reason": now.finished.as_ref().and_then(|finished| finished.reason.as_ref()).map(|fault| &fault.message),
                "waits_for_approval_by": now.approval.as_ref().map(|approval| &approval.by),
                "doing": now.steps.iter().map(|step| state.label(step)).collect::<Vec<_>>(),
            })
        })
        .collect();
    let serving: Vec<Value> = state
        .serving
        .iter()
        .map(|(environment, service, shares)| {
            let releases: Vec<Value> = shares
                .iter()
                .map(|(version, share)| {
                    json!({
                        "release": share.release.0,
                        "version": version,
                        "percent": f64::from(share.weight_bp) / 100.0,
                    })
                })
                .collect();
            json!({ "environment": environment.0, "service": service.0, "releases": releases })
        })
        .collect();
    value["nodes"] = json!(nodes);
    value["serving"] = json!(serving);
    value["records"] = json!(records);
    Ok(value)
}
