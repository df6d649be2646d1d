//! What is under way, as lines for the bottom of the screen. A pure function of state, time and size, so it can be read in a test.

use crate::facts::samples_text;
use crate::state::{DeployState, NodeState, RunState};
use crate::style::{Line, Style, Tone};
use crate::words;
use cdpipe_model::NodeId;
use cdpipe_model::observe::Role;
use cdpipe_model::plan::{Node, NodeKind, Plan};
use cdpipe_model::program::{Program, ProgramStep};
use cdpipe_model::record::RuleVerdict;

/// Lines of output that are shown for a running command.
const OUTPUT_LINES: usize = 3;

/// Columns of the bar that shows a candidate's share.
const BAR_COLUMNS: usize = 20;

/// The lines, at most `rows` of them; each fits `columns` when rendered.
pub fn lines(state: &RunState, now_ms: u64, columns: usize, rows: usize, style: Style) -> Vec<Line> {
    let Some(plan) = state.plan() else { return Vec::new() };
    let running: Vec<(usize, &Node, &NodeState)> = plan
        .nodes
        .iter()
        .enumerate()
        .filter_map(|(at, node)| state.nodes.get(at).map(|now| (at, node, now)))
        .filter(|(_, _, now)| now.started_at_ms.is_some() && now.finished.is_none())
        .collect();
    // With little room, each stage says less; with very little, only the first stages are named.
    let mut blocks = Vec::new();
    for detail in (0..=3).rev() {
        blocks = running
            .iter()
            .map(|(at, node, now)| block(state, *at, node, now, now_ms, columns, detail, style))
            .collect::<Vec<_>>();
        if blocks.iter().map(Vec::len).sum::<usize>() < rows {
            break;
        }
    }
    let mut lines: Vec<Line> = Vec::new();
    let mut hidden = 0;
    for block in blocks {
        if lines.len() + block.len() + 2 > rows && !lines.is_empty() {
            hidden += 1;
        } else {
            lines.extend(block);
        }
    }
    if hidden > 0 {
        lines.push(Line::new().push(Tone::Dim, format!("  and {hidden} more under way")));
    }
    for (node, hook) in &state.hooks {
        if node.is_none() {
            lines.push(
                Line::new()
                    .push(Tone::Live, format!("{} ", spinner(now_ms, style)))
                    .push(Tone::Strong, state.hook_label(*node, *hook)),
            );
        }
    }
    lines.push(footer(state, plan, running.len(), now_ms, columns));
    lines.truncate(rows);
    lines
}

/// A stage that is under way. `detail`: 0 one line, 1 what it does, 2 its numbers, 3 its output.
#[allow(clippy::too_many_arguments, reason = "a drawing depends on all of these and keeps none")]
fn block(
    state: &RunState,
    at: usize,
    node: &Node,
    now: &NodeState,
    now_ms: u64,
    columns: usize,
    detail: usize,
    style: Style,
) -> Vec<Line> {
    let id = NodeId(u32::try_from(at).unwrap_or(u32::MAX));
    let took = words::elapsed(now_ms.saturating_sub(now.started_at_ms.unwrap_or(now_ms)));
    let gate = matches!(node.kind, NodeKind::Gate(_));
    let undoing = now.deploy.as_ref().is_some_and(|deploy| deploy.undoing.is_some());
    let (mark, tone) = if now.approval.is_some() || gate {
        (style.pick("◆", "#"), Tone::Caution)
    } else if undoing {
        (style.pick("↩", "<"), Tone::Bad)
    } else {
        (spinner(now_ms, style), Tone::Live)
    };
    let doing = now.steps.last().map_or_else(String::new, |step| {
        if gate && now.approval.is_none() { String::new() } else { state.label(step) }
    });
    let doing = if undoing {
        "rolls back".to_owned()
    } else if now.approval.is_some() {
        "waits for an approval".to_owned()
    } else if gate && doing.is_empty() {
        "waits for its conditions".to_owned()
    } else {
        doing
    };
    let attempt = if now.attempt > 1 { format!(" (attempt {})", now.attempt) } else { String::new() };
    let width = crate::plain::name_columns(state).min(columns / 3);
    let head = Line::new()
        .push(tone, format!("{mark} "))
        .push(Tone::Strong, node.name.clone())
        .pad_to(2 + width + 1)
        .push(Tone::Normal, format!(" {doing}{attempt}"));
    let mut lines = vec![right(head, took, columns)];
    if detail == 0 {
        return lines;
    }
    let row = |name: &str, value: Line| {
        let mut line = Line::new().push(Tone::Dim, format!("    {name:<8}"));
        line.0.extend(value.0);
        line
    };
    if let Some(deploy) = &now.deploy {
        if let Some(bar) = share_bar(deploy, columns, style) {
            lines.push(row("traffic", bar));
        }
        lines.push(row("step", program_line(state, deploy, id, now_ms)));
        if detail >= 2
            && let Some(ready) = &deploy.ready
        {
            lines.push(row("ready", Line::new().push(Tone::Normal, ready.clone())));
        }
    } else if let Some(due_ms) = state.soak_due_ms(id) {
        let left = words::elapsed(due_ms.saturating_sub(now_ms));
        lines.push(row("wait", Line::new().push(Tone::Normal, format!("{left} left"))));
    }
    if detail >= 2
        && let Some(verdict) = &now.verdict
    {
        let worst = verdict.findings.iter().min_by_key(|finding| match finding.verdict {
            RuleVerdict::Breach => 0,
            RuleVerdict::NoData => 1,
            RuleVerdict::Warn => 2,
            RuleVerdict::Pending => 3,
        });
        let (tone, word) = match worst.map(|finding| finding.verdict) {
            None => (Tone::Good, "passes"),
            Some(RuleVerdict::Breach) => (Tone::Bad, "fires"),
            Some(RuleVerdict::NoData) => (Tone::Caution, "no data"),
            Some(RuleVerdict::Warn) => (Tone::Caution, "warns"),
            Some(RuleVerdict::Pending) => (Tone::Caution, "pending"),
        };
        lines.push(row(
            "watch",
            Line::new().push(tone, word).push(Tone::Normal, format!("  {}", samples_text(&verdict.samples))),
        ));
        if let Some(worst) = worst {
            lines.push(row("", Line::new().push(tone, worst.text.clone())));
        }
    }
    if let Some(approval) = &now.approval {
        let whom = if approval.by.is_empty() { "anyone".to_owned() } else { approval.by.join(" or ") };
        let given = if approval.quorum > 1 {
            format!(", {} of {} given", approval.given.len(), approval.quorum)
        } else {
            String::new()
        };
        let until = approval.expires_at_ms.map_or(String::new(), |expires| {
            format!(", expires in {}", words::elapsed(expires.saturating_sub(now_ms)))
        });
        lines.push(row("asks", Line::new().push(Tone::Normal, format!("{whom}{given}{until}"))));
        let run = state.header.as_ref().map_or("", |header| header.run.as_str());
        lines.push(row("", Line::new().push(Tone::Live, format!("cdpipe approve {run} {}", node.name))));
    }
    if detail >= 2
        && now.deploy.is_none()
        && let Some(progress) = &now.progress
    {
        lines.push(row("", Line::new().push(Tone::Dim, progress.clone())));
    }
    if detail >= 3 && !now.steps.is_empty() {
        let skip = now.tail.len().saturating_sub(OUTPUT_LINES);
        for text in now.tail.iter().skip(skip) {
            lines.push(Line::new().push(Tone::Dim, format!("    {} {text}", style.pick("│", "|"))));
        }
    }
    lines
}

/// Where the program is: the step, how far, and how long it still soaks.
fn program_line(state: &RunState, deploy: &DeployState, node: NodeId, now_ms: u64) -> Line {
    let steps = deploy.undoing.as_ref().map_or(&deploy.program.steps, |(_, steps)| steps);
    let Some(step) = steps.get(deploy.pc) else {
        return Line::new().push(Tone::Normal, "done");
    };
    let text = step_text(&deploy.program, step);
    let line = Line::new().push(Tone::Normal, text);
    let line = match (step, state.soak_due_ms(node)) {
        (ProgramStep::Soak { .. }, Some(due_ms)) => {
            line.push(Tone::Normal, format!(", {} left", words::elapsed(due_ms.saturating_sub(now_ms))))
        }
        _ => {
            let ms = now_ms.saturating_sub(deploy.pc_since_ms);
            if ms >= 2_000 { line.push(Tone::Dim, format!(", since {}", words::elapsed(ms))) } else { line }
        }
    };
    line.push(Tone::Dim, format!("  ({} of {})", deploy.pc + 1, steps.len()))
}

fn step_text(program: &Program, step: &ProgramStep) -> String {
    words::step(program, step)
}

/// `v1 ████████░░ v2 10%`.
fn share_bar(deploy: &DeployState, columns: usize, style: Style) -> Option<Line> {
    let share_bp = deploy.candidate_bp?;
    let bar = BAR_COLUMNS.min(columns.saturating_sub(30)).max(6);
    let filled = usize::try_from(u64::from(share_bp) * bar as u64 / 10_000).unwrap_or(0);
    // A share that is there is to be seen.
    let filled = if share_bp > 0 { filled.max(1) } else { 0 };
    let tone = if deploy.undoing.is_some() { Tone::Bad } else { Tone::Live };
    Some(
        Line::new()
            .push(tone, style.pick("█", "#").repeat(filled))
            .push(Tone::Dim, style.pick("░", ".").repeat(bar - filled))
            .push(Tone::Strong, format!(" {}", words::share(share_bp)))
            .push(Tone::Normal, format!(" {}", words::side(&deploy.program, Role::Candidate)))
            .push(
                Tone::Dim,
                if deploy.program.stable.is_some() && share_bp < 10_000 {
                    format!(
                        ", {} {}",
                        words::share(10_000 - share_bp),
                        words::side(&deploy.program, Role::Stable)
                    )
                } else {
                    String::new()
                },
            ),
    )
}

fn footer(state: &RunState, plan: &Plan, running: usize, now_ms: u64, columns: usize) -> Line {
    let done = state.nodes.iter().filter(|node| node.finished.is_some()).count();
    let took = words::elapsed(now_ms.saturating_sub(state.opened_at_ms));
    let mut text = format!("{done} of {} done", plan.nodes.len());
    if running > 0 {
        text.push_str(&format!(", {running} under way"));
    }
    let mut line = Line::new().push(Tone::Dim, text);
    if state.paused {
        line = line.push(Tone::Caution, ", paused");
    }
    right(line, took, columns)
}

/// The line with a text at its right end; the line gives way.
fn right(line: Line, text: String, columns: usize) -> Line {
    let room = columns.saturating_sub(text.len() + 1);
    if line.width() > room {
        // Cut here and not at the end, so that the time stays to be seen.
        let cut = line.render(room, Style { color: false, unicode: false });
        let mut kept = Line::new();
        let mut left = cut.chars().count();
        for (tone, piece) in line.0 {
            let take = piece.chars().count().min(left);
            left -= take;
            kept = kept.push(tone, piece.chars().take(take).collect::<String>());
        }
        return kept.pad_to(room + 1).push(Tone::Dim, text);
    }
    line.pad_to(room + 1).push(Tone::Dim, text)
}

fn spinner(now_ms: u64, style: Style) -> &'static str {
    const UNICODE: [&str; 8] = ["⠋", "⠙", "⠸", "⠴", "⠦", "⠧", "⠇", "⠏"];
    const ASCII: [&str; 4] = ["-", "\\", "|", "/"];
    let at = usize::try_from(now_ms / 125).unwrap_or(0);
    if style.unicode { UNICODE[at % UNICODE.len()] } else { ASCII[at % ASCII.len()] }
}
