//! The end of a run on one screen: how it ended, what each stage did, what serves now where, and what to do next.

use crate::facts::tone_of;
use crate::state::RunState;
use crate::style::{Line, Style, Tone};
use crate::words;
use cdpipe_model::plan::NodeKind;
use cdpipe_model::{NodeId, Outcome};

/// Stages that are listed one by one; of more, only those that did not simply succeed.
const MAX_LISTED: usize = 40;

/// The summary, with an empty line before it and a newline at its end. Empty if nothing was opened.
pub fn render(state: &RunState, columns: usize, style: Style) -> String {
    let Some(header) = &state.header else { return String::new() };
    let mut lines: Vec<Line> = Vec::new();
    lines.push(Line::new());
    lines.push(headline(state));
    let code = exit_code(state);
    lines.push(
        Line::new()
            .push(Tone::Dim, format!("run {}, exit code {code}: {}", header.run, words::exit_code(code))),
    );
    lines.push(Line::new());
    lines.extend(body(state, style));
    let next = next_steps(state, header.run.as_str());
    if !next.is_empty() {
        lines.push(Line::new());
        lines.extend(next);
    }
    let mut text = String::new();
    for line in lines {
        for part in line.wrap(columns.max(20), 4) {
            text.push_str(part.render_all(style).trim_end());
            text.push('\n');
        }
    }
    text
}

/// Stages and gates, why those failed that did, and what serves.
pub fn body(state: &RunState, style: Style) -> Vec<Line> {
    let mut lines = nodes(state, style);
    for part in [reasons(state), serving(state)] {
        if !part.is_empty() {
            lines.push(Line::new());
            lines.extend(part);
        }
    }
    lines
}

/// The exit code of the process, from where the run is.
pub fn exit_code(state: &RunState) -> u8 {
    match (&state.finished, &state.suspended) {
        (Some((outcome, _)), _) => outcome.exit_code(),
        (None, Some(_)) => 5,
        (None, None) => 130,
    }
}

fn headline(state: &RunState) -> Line {
    let name = state.name(None).to_owned();
    let took = words::elapsed(state.now_ms.saturating_sub(state.opened_at_ms));
    let line = Line::new().push(Tone::Strong, name);
    match (&state.finished, &state.suspended) {
        (Some((outcome, _)), _) => line
            .push(tone_of(*outcome), format!(" {}", words::outcome(*outcome)))
            .push(Tone::Normal, format!(" in {took}")),
        (None, Some(waiting)) => line.push(Tone::Caution, format!(" waits: {waiting}")),
        (None, None) => line.push(Tone::Caution, " interrupted").push(Tone::Normal, format!(" after {took}")),
    }
}

/// Why stages did not succeed, in full.
fn reasons(state: &RunState) -> Vec<Line> {
    let mut lines = Vec::new();
    for (at, node) in state.nodes.iter().enumerate() {
        let Some(finished) = &node.finished else { continue };
        let Some(reason) = &finished.reason else { continue };
        if finished.outcome == Outcome::Skipped {
            continue;
        }
        let name = state.name(u32::try_from(at).ok().map(NodeId));
        lines.push(
            Line::new()
                .push(tone_of(finished.outcome), format!("  {name}: "))
                .push(Tone::Normal, reason.message.clone()),
        );
        if let Some(help) = &reason.help {
            lines.push(Line::new().push(Tone::Live, "    help: ").push(Tone::Normal, help.clone()));
        }
    }
    if let Some((_, Some(reason))) = &state.finished
        && lines.is_empty()
    {
        lines.push(Line::new().push(Tone::Normal, format!("  {}", reason.message)));
    }
    lines
}

fn nodes(state: &RunState, style: Style) -> Vec<Line> {
    let Some(plan) = state.plan() else { return Vec::new() };
    let all = plan.nodes.len() <= MAX_LISTED;
    let width = crate::plain::name_columns(state);
    let mut lines = Vec::new();
    let mut quiet = 0;
    for (at, node) in plan.nodes.iter().enumerate() {
        let Some(now) = state.nodes.get(at) else { continue };
        let (mark, tone, word) = match &now.finished {
            Some(finished) => {
                let word = match (&node.kind, finished.outcome) {
                    (NodeKind::Gate(_), Outcome::Succeeded) => "open",
                    (_, outcome) => words::outcome(outcome),
                };
                (mark(finished.outcome, style), tone_of(finished.outcome), word)
            }
            None if now.approval.is_some() => (style.pick("…", "."), Tone::Caution, "waits"),
            None if now.started_at_ms.is_some() => (style.pick("…", "."), Tone::Live, "under way"),
            None => (style.pick("·", "."), Tone::Dim, "not begun"),
        };
        let calm = matches!(
            now.finished.as_ref().map(|f| f.outcome),
            None | Some(Outcome::Succeeded | Outcome::Skipped)
        );
        if !all && calm {
            quiet += 1;
            continue;
        }
        let took = match (&now.finished, now.started_at_ms) {
            (Some(finished), Some(started)) if finished.outcome != Outcome::Skipped => {
                words::elapsed(finished.at_ms.saturating_sub(started))
            }
            _ => String::new(),
        };
        let mut line = Line::new()
            .push(tone, format!("  {mark} "))
            .push(Tone::Strong, node.name.clone())
            .pad_to(4 + width + 2)
            .push(tone, word)
            .pad_to(4 + width + 2 + 15)
            .push(Tone::Normal, format!("{took:>7}"));
        let skipped = now.finished.as_ref().filter(|finished| finished.outcome == Outcome::Skipped);
        if let Some(reason) = skipped.and_then(|finished| finished.reason.as_ref()) {
            line = line.push(Tone::Dim, format!("  {}", reason.message));
        }
        lines.push(line);
    }
    if quiet > 0 {
        lines.push(
            Line::new().push(Tone::Dim, format!("  {quiet} more succeeded, were skipped or did not begin")),
        );
    }
    lines
}

/// The mark of an outcome.
pub(crate) fn mark(outcome: Outcome, style: Style) -> &'static str {
    match outcome {
        Outcome::Succeeded => style.pick("✔", "+"),
        Outcome::Skipped => style.pick("–", "-"),
        Outcome::Cancelled => style.pick("■", "!"),
        Outcome::RolledBack => style.pick("↩", "<"),
        Outcome::TimedOut | Outcome::Failed | Outcome::RollbackFailed => style.pick("✘", "x"),
    }
}

fn serving(state: &RunState) -> Vec<Line> {
    state
        .serving
        .iter()
        .map(|(environment, service, shares)| {
            let line = Line::new()
                .push(Tone::Strong, format!("  {service}"))
                .push(Tone::Normal, format!(" in {environment}: "));
            if shares.is_empty() {
                return line.push(Tone::Caution, "nothing serves");
            }
            let text: Vec<String> = shares
                .iter()
                .map(|(version, share)| {
                    if share.weight_bp == 10_000 {
                        format!("{version} serves")
                    } else {
                        format!("{version} {}", words::share(share.weight_bp))
                    }
                })
                .collect();
            line.push(Tone::Normal, text.join(", "))
        })
        .collect()
}

/// What a person could type now.
fn next_steps(state: &RunState, run: &str) -> Vec<Line> {
    let command = |text: String, why: &str| {
        Line::new().push(Tone::Live, format!("  {text}")).push(Tone::Dim, format!("  # {why}"))
    };
    let mut lines = Vec::new();
    match (&state.finished, &state.suspended) {
        (Some((Outcome::Failed | Outcome::TimedOut | Outcome::RolledBack, _)), _) => {
            let failed =
                failed_node(state).map_or(String::new(), |node| format!(" {}", state.name(Some(node))));
            lines.push(command(format!("cdpipe logs {run}{failed}"), "all it said"));
        }
        (Some((Outcome::RollbackFailed, _)), _) => {
            lines.push(command(format!("cdpipe status {run}"), "what is there now"));
            lines.push(command(format!("cdpipe resume {run}"), "try the way back again"));
            for (environment, service, _) in state.serving.iter() {
                lines.push(command(
                    format!("cdpipe rollback {service} {environment}"),
                    "go back to the release before",
                ));
            }
        }
        (Some(_), _) => {}
        (None, Some(_)) => {
            for (at, node) in state.nodes.iter().enumerate() {
                if node.approval.is_some() {
                    let name = state.name(Some(NodeId(u32::try_from(at).unwrap_or(u32::MAX))));
                    lines.push(command(format!("cdpipe approve {run} {name}"), "let it pass"));
                }
            }
            lines.push(command(format!("cdpipe resume {run}"), "go on"));
        }
        (None, None) => lines.push(command(format!("cdpipe resume {run}"), "go on where it stopped")),
    }
    lines
}

fn failed_node(state: &RunState) -> Option<NodeId> {
    let at = state.nodes.iter().position(|node| {
        node.finished.as_ref().is_some_and(|finished| {
            matches!(
                finished.outcome,
                Outcome::Failed | Outcome::TimedOut | Outcome::RolledBack | Outcome::RollbackFailed
            )
        })
    })?;
    u32::try_from(at).ok().map(NodeId)
}
