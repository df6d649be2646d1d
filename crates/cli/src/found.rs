//! What a resume finds: what was under way, what became of it as far as can be seen now, and which timers are set.

use crate::times;
use cdpipe_host::commands::{self, Found};
use cdpipe_model::RunId;
use cdpipe_model::action::{Action, ActionKind};
use cdpipe_model::record::{TimerId, TimerPurpose};
use cdpipe_report::state::RunState;
use std::path::Path;

/// Lines that are told of each; the rest is counted.
const MOST: usize = 10;

/// Says it, a line each; empty if nothing was under way and no timer is set.
pub(crate) fn text(run: &RunId, state: &RunState, commands: &Path) -> String {
    let now_ms = times::now_ms();
    let effects = state.actions.values().filter(|action| action.kind.is_effect());
    let effects: Vec<String> = effects
        .map(|action| {
            let (name, label) = (state.name(action.step.node), state.label(&action.step));
            format!("{name}: {label}: {}", became(run, action, commands))
        })
        .collect();
    let timers: Vec<String> = state
        .timers
        .iter()
        .map(|(timer, due_ms)| {
            format!("{}: {} {}", state.name(timer.node), what(timer), due(*due_ms, now_ms))
        })
        .collect();
    let mut text = String::new();
    for (title, lines) in [("was under way", effects), ("timers", timers)] {
        if lines.is_empty() {
            continue;
        }
        text.push_str(&format!("{title}:\n"));
        for line in lines.iter().take(MOST) {
            text.push_str(&format!("  {line}\n"));
        }
        if lines.len() > MOST {
            text.push_str(&format!("  and {} more\n", lines.len() - MOST));
        }
    }
    text
}

fn became(run: &RunId, action: &Action, commands: &Path) -> &'static str {
    match &action.kind {
        ActionKind::Run(_) => match commands::look(commands, &action.id.effect(run)) {
            Ok(Found::NotBegun) => "had not begun, is run now",
            Ok(Found::Runs) => "still runs, is waited for",
            Ok(Found::Ended) => "has ended, its result is taken",
            Ok(Found::Unknown) | Err(_) => "nobody knows how it ended, its `on_interrupt` decides",
        },
        kind if kind.is_convergent() => "is looked at, and done if it was not",
        _ => "may have been done, its `on_interrupt` decides",
    }
}

fn what(timer: &TimerId) -> &'static str {
    match timer.purpose {
        TimerPurpose::NodeTimeout | TimerPurpose::DeployTimeout | TimerPurpose::UndoTimeout => "timeout",
        TimerPurpose::Soak => "wait",
        TimerPurpose::Sample => "next look of the watch",
        TimerPurpose::Retry => "next attempt",
        TimerPurpose::ApprovalExpires => "end of the wait for an approval",
        TimerPurpose::Window => "next look at the window",
    }
}

fn due(due_ms: u64, now_ms: u64) -> String {
    if due_ms <= now_ms {
        return "is due".to_owned();
    }
    format!("in {}", cdpipe_report::words::elapsed(due_ms - now_ms))
}
