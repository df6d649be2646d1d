//! `cdpipe plan`: what a run would do, effect by effect, with how each is taken back. Changes nothing.

use crate::commands::Ended;
use crate::failure::Failure;
use crate::inputs::{self, InputArgs};
use crate::preview::{self, Preview};
use crate::saved::SavedPlan;
use crate::ui::{Look, Ui};
use crate::{files, planning, state, wiring};
use cdpipe_model::observe::Role;
use cdpipe_model::plan::{Deploy, Mode, Node, NodeKind, Plan, Step, StepKind};
use cdpipe_model::program::{Program, ProgramStep, Routing};
use cdpipe_report::words;
use serde_json::{Value, json};
use std::fmt::Write;

/// Arguments of `cdpipe plan`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The pipeline.
    #[arg(value_name = "FILE")]
    file: String,
    #[command(flatten)]
    inputs: InputArgs,
    /// Save the plan here; `cdpipe run --plan` carries exactly it out.
    #[arg(long, value_name = "PLAN")]
    out: Option<String>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Plans and shows.
pub(crate) fn run(args: &Args, ui: &Ui) -> Ended {
    let file = planning::pipeline_path(&args.file)?;
    let (inputs, git) = inputs::gather(&args.inputs, &file)?;
    let Some(planned) = planning::plan(&args.file, &inputs, ui)? else { return Ok(2) };
    let plan = planned.plan;
    let wiring = wiring::wire(&plan, &file, &state::dir(Some(&file))?)?;
    let previews = preview::ask(preview::preview(&plan, &wiring.ports))?;
    if args.json {
        ui.print(&format!("{:#}\n", to_json(&plan, &previews)));
    } else {
        ui.print(&text(&plan, &previews, ui.out));
    }
    let failed = previews.iter().any(|preview| preview.program.is_err());
    if let Some(out) = &args.out {
        if failed {
            return Err(Failure::new(
                &crate::failure::CANNOT_RUN,
                "the plan is not saved: a deploy of it could not be planned",
            ));
        }
        let saved = SavedPlan::new(file.display().to_string(), planned.texts, git, plan, &previews);
        files::replace(out, &saved.to_json()?)?;
        ui.note(&format!("saved: run it with `cdpipe run --plan {out}`\n"));
    }
    Ok(if failed { 2 } else { 0 })
}

/// The plan for people.
pub(crate) fn text(plan: &Plan, previews: &[Preview], look: Look) -> String {
    let mut text = String::new();
    let mode = match plan.mode {
        Mode::Delivery => "delivery: approvals need a person",
        Mode::Deployment => "deployment: approvals pass by themselves",
    };
    let _ = writeln!(text, "{}  {}", look.bold(&plan.name), look.dim(mode));
    let _ = writeln!(text, "{}", look.dim(&format!("plan {}", plan.hash)));
    for (name, value) in &plan.inputs {
        let _ = writeln!(text, "  {name} = {}", quoted(value));
    }
    for id in preview::order(plan) {
        let Some(node) = plan.node(id) else { continue };
        text.push('\n');
        text.push_str(&head(plan, node, look));
        match &node.kind {
            NodeKind::Stage(stage) => {
                for (index, step) in stage.steps.iter().enumerate() {
                    let preview = previews.iter().find(|p| p.node == id && p.index as usize == index);
                    text.push_str(&step_text(step, preview, look));
                }
                for hook in &stage.hooks {
                    text.push_str(&hook_text(hook, look));
                }
            }
            NodeKind::Gate(gate) => {
                for approval in &gate.approvals {
                    let by =
                        if approval.by.is_empty() { "anyone".to_owned() } else { approval.by.join(" or ") };
                    let auto = plan.mode == Mode::Deployment && !approval.always;
                    let how = if auto {
                        "passes by itself".to_owned()
                    } else {
                        format!("{} of {by}", approval.quorum.max(1))
                    };
                    let _ = writeln!(text, "  - approval: {how}");
                }
                for metric in &gate.metrics {
                    let _ = writeln!(text, "  - {} for {}", metric.text, words::duration(metric.for_ms));
                }
                for window in &gate.windows {
                    let _ = writeln!(text, "  - window {}", window.text);
                }
                for check in &gate.checks {
                    let _ = writeln!(text, "  - {}", check.label);
                }
            }
        }
    }
    for hook in &plan.hooks {
        text.push('\n');
        text.push_str(&hook_text(hook, look));
    }
    text
}

fn quoted(value: &cdpipe_model::Value) -> String {
    match value {
        cdpipe_model::Value::Str(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}

fn head(plan: &Plan, node: &Node, look: Look) -> String {
    let needs: Vec<&str> =
        node.needs.iter().filter_map(|need| plan.node(need.node)).map(|node| node.name.as_str()).collect();
    let mut about = String::new();
    if matches!(node.kind, NodeKind::Gate(_)) {
        about.push_str(" gate");
    }
    if !needs.is_empty() {
        about.push_str(&format!(" after {}", needs.join(", ")));
    }
    match &node.when {
        Some(when) if when.known() == Some(&cdpipe_model::Value::Bool(false)) => {
            about.push_str(", skipped: its `when` is false")
        }
        Some(when) if when.known().is_none() => about.push_str(&format!(", when {when}")),
        _ => {}
    }
    format!("{}{}\n", look.bold(&node.name), look.dim(&about))
}

fn hook_text(hook: &cdpipe_model::plan::Hook, look: Look) -> String {
    let events: Vec<&str> = hook.events.iter().map(|event| event.as_str()).collect();
    let mut text = format!("  {}\n", look.dim(&format!("on {}", events.join(" or "))));
    for step in &hook.steps {
        let _ = writeln!(text, "    - {}", step.label);
    }
    text
}

fn step_text(step: &Step, preview: Option<&Preview>, look: Look) -> String {
    let StepKind::Deploy(deploy) = &step.kind else {
        let back = match &step.kind {
            StepKind::Flag(_) => "  undo: the value it had",
            StepKind::Apply(_) => "  undo: the objects as they were",
            StepKind::Undo { .. } => return String::new(),
            _ => "",
        };
        return format!("  - {}{}\n", step.label, look.dim(back));
    };
    let mut text = format!("  - {}, {}\n", step.label, words::strategy(&deploy.strategy));
    let Some(preview) = preview else { return text };
    let program = match &preview.program {
        Ok(program) => program,
        Err(fault) => {
            let _ = writeln!(text, "    {} {}", look.red("cannot be planned:"), fault.message);
            if let Some(help) = &fault.help {
                let _ = writeln!(text, "    {} {help}", look.cyan("help:"));
            }
            return text;
        }
    };
    let from = match &program.stable {
        Some(stable) => preview::named(stable),
        None => "nothing".to_owned(),
    };
    let assumed = if preview.assumed { " (as an earlier stage leaves it)" } else { "" };
    let to = preview::named(&program.candidate);
    if program.steps.is_empty() {
        let _ = writeln!(text, "    {to} serves already{assumed}: nothing is done");
        return text;
    }
    let _ = writeln!(
        text,
        "    {} -> {} {}{assumed}",
        from,
        look.bold(&to),
        look.dim(&format!("({})", program.candidate_id()))
    );
    let width = program.steps.len().to_string().len();
    let lines: Vec<(String, Option<String>)> =
        program.steps.iter().map(|step| (words::step(program, step), inverse(program, step))).collect();
    let column = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0).min(48);
    for (at, (line, back)) in lines.iter().enumerate() {
        let back = back.as_ref().map_or(String::new(), |back| format!("undo: {back}"));
        let row = format!("    {:>width$}. {line:<column$}  {}", at + 1, look.dim(&back));
        let _ = writeln!(text, "{}", row.trim_end());
    }
    text.push_str(&blocks(deploy, look));
    for note in &program.notes {
        let _ = writeln!(text, "    {} {note}", look.yellow("note:"));
    }
    text
}

/// What `verify`, `watch` and `validate` hold.
fn blocks(deploy: &Deploy, look: Look) -> String {
    let mut text = String::new();
    for (name, steps) in [("verify", &deploy.verify), ("validate", &deploy.validate)] {
        for step in steps {
            let _ = writeln!(text, "    {} {}", look.dim(name), step.label);
        }
    }
    if let Some(watch) = &deploy.watch {
        let every = words::duration(watch.every_ms);
        for rule in &watch.rules {
            let action = match rule.action {
                cdpipe_model::plan::RuleAction::Rollback => "rollback",
                cdpipe_model::plan::RuleAction::Fail => "fail",
                cdpipe_model::plan::RuleAction::Warn => "warn",
            };
            let _ = writeln!(
                text,
                "    {} {action} when {}",
                look.dim(&format!("watch every {every}")),
                rule.text
            );
        }
    }
    text
}

/// How an effect is taken back; `None` for what changes nothing.
fn inverse(program: &Program, step: &ProgramStep) -> Option<String> {
    let candidate = words::side(program, Role::Candidate);
    let stable = program.stable.as_ref().map(preview::named);
    match step {
        ProgramStep::Ensure { side: Role::Candidate, .. } => Some(format!("remove {candidate}")),
        ProgramStep::Ensure { side: Role::Stable, .. } => stable.map(|stable| {
            format!("bring {stable} back to {}", words::count(program.stable_replicas, "instance"))
        }),
        ProgramStep::Route(Routing::Closed | Routing::Weighted { .. } | Routing::ByInstances) => {
            Some(match stable {
                Some(stable) => format!("route everyone to {stable}"),
                None => "close the route".to_owned(),
            })
        }
        ProgramStep::Shrink { side: Role::Stable, .. } | ProgramStep::Retire { side: Role::Stable, .. } => {
            stable.map(|stable| {
                format!("bring {stable} back to {}", words::count(program.stable_replicas, "instance"))
            })
        }
        ProgramStep::Roll { side: Role::Candidate, .. } => stable.map(|stable| format!("roll to {stable}")),
        ProgramStep::Preview { open: true } => Some("close the preview".to_owned()),
        ProgramStep::Sweep { .. } => Some("none: it served nobody".to_owned()),
        ProgramStep::Shrink { side: Role::Candidate, .. }
        | ProgramStep::Retire { side: Role::Candidate, .. }
        | ProgramStep::Roll { side: Role::Stable, .. }
        | ProgramStep::Ready { .. }
        | ProgramStep::Preview { open: false }
        | ProgramStep::Verify
        | ProgramStep::WatchOn
        | ProgramStep::Soak { .. }
        | ProgramStep::Approve(_)
        | ProgramStep::Validate
        | ProgramStep::Promote
        | ProgramStep::WatchOff
        | ProgramStep::Heal { .. }
        | ProgramStep::Settled { .. } => None,
    }
}

fn to_json(plan: &Plan, previews: &[Preview]) -> Value {
    let nodes: Vec<Value> = preview::order(plan)
        .into_iter()
        .filter_map(|id| plan.node(id))
        .map(|node| {
            let steps: Vec<Value> = match &node.kind {
                NodeKind::Stage(stage) => stage
                    .steps
                    .iter()
                    .enumerate()
                    .map(|(index, step)| {
                        let preview = previews.iter().find(|p| p.node == node.id && p.index as usize == index);
                        json!({ "label": step.label, "deploy": preview.map(preview_json) })
                    })
                    .collect(),
                NodeKind::Gate(gate) => gate.checks.iter().map(|step| json!({ "label": step.label })).collect(),
            };
            json!({
                "name": node.name,
                "kind": if matches!(node.kind, NodeKind::Gate(_)) { "gate" } else { "stage" },
                "needs": node.needs.iter().filter_map(|need| plan.node(need.node)).map(|need| &need.name).collect::<Vec<_>>(),
                "steps": steps,
            })
        })
        .collect();
    json!({
        "version": 1,
        "pipeline": plan.name,
        "hash": plan.hash,
        "mode": plan.mode,
        "inputs": plan.inputs.iter().map(|(name, value)| (name.clone(), Value::String(value.to_string()))).collect::<serde_json::Map<_, _>>(),
        "nodes": nodes,
    })
}

fn preview_json(preview: &Preview) -> Value {
    match &preview.program {
        Err(fault) => {
            json!({ "error": { "kind": fault.kind, "message": fault.message, "help": fault.help } })
        }
        Ok(program) => json!({
            "service": program.candidate.service.0,
            "candidate": { "release": program.candidate_id().0, "version": program.candidate.version },
            "stable": program.stable.as_ref().map(|spec| json!({ "release": spec.id().0, "version": spec.version })),
            "assumed": preview.assumed,
            "seen_hash": preview.seen_hash,
            "effects": program.steps.iter().map(|step| json!({
                "text": words::step(program, step),
                "undo": inverse(program, step),
                "step": step,
            })).collect::<Vec<_>>(),
            "notes": program.notes,
        }),
    }
}
