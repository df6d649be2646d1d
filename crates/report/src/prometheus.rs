//! Numbers of a run as Prometheus text in a file, for node_exporter's textfile collector. Written whole when something has ended.

use crate::Reporter;
use crate::state::RunState;
use crate::summary;
use cdpipe_model::event::Event;
use cdpipe_model::plan::NodeKind;
use cdpipe_model::record::Record;
use std::fmt::Write;
use std::path::PathBuf;

/// Writes a file.
pub struct MetricsFile {
    path: PathBuf,
    state: RunState,
}

impl MetricsFile {
    /// Writes to `path`, by renaming a finished temporary file over it. `state` is that of the run before the first event.
    pub fn new(path: PathBuf, state: RunState) -> Self {
        Self { path, state }
    }

    fn save(&self, now_ms: u64) {
        let mut temporary = self.path.clone().into_os_string();
        temporary.push(".tmp");
        // Metrics that can't be written must not stop a deploy.
        let _ = std::fs::write(&temporary, render(&self.state, now_ms))
            .and_then(|()| std::fs::rename(&temporary, &self.path));
    }
}

impl Reporter for MetricsFile {
    fn event(&mut self, now_ms: u64, event: &Event) {
        self.state.apply(now_ms, event);
        if let Event::Record { record, .. } = event
            && matches!(
                **record,
                Record::NodeFinished { .. } | Record::RunFinished { .. } | Record::Suspended { .. }
            )
        {
            self.save(now_ms);
        }
    }

    fn finish(&mut self, now_ms: u64) {
        self.save(now_ms);
    }
}

/// The text of the file.
pub fn render(state: &RunState, now_ms: u64) -> String {
    let Some(header) = &state.header else { return String::new() };
    let mut text = String::new();
    let pipeline = escape(&header.plan.name);
    let mut family = |name: &str, kind: &str, help: &str, series: Vec<(String, f64)>| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in series {
            let _ = writeln!(text, "{name}{{pipeline=\"{pipeline}\"{labels}}} {value}");
        }
    };
    let seconds = |ms: u64| std::time::Duration::from_millis(ms).as_secs_f64();
    let outcome = state.finished.as_ref().map_or("unfinished", |(outcome, _)| outcome.as_str());
    family(
        "cdpipe_run_info",
        "gauge",
        "The last run: its id and how it ended.",
        vec![(format!(",run=\"{}\",outcome=\"{outcome}\"", escape(header.run.as_str())), 1.0)],
    );
    family(
        "cdpipe_run_exit_code",
        "gauge",
        "Exit code of the last run: 0 succeeded, 1 failed, 3 rolled back, 4 rollback failed, 5 waiting, 130 interrupted.",
        vec![(String::new(), f64::from(summary::exit_code(state)))],
    );
    family(
        "cdpipe_run_start_time_seconds",
        "gauge",
        "When the last run began, in seconds since 1970.",
        vec![(String::new(), seconds(header.started_at_ms))],
    );
    family(
        "cdpipe_run_duration_seconds",
        "gauge",
        "How long the last run has taken since it began.",
        vec![(String::new(), seconds(state.now_ms.max(now_ms).saturating_sub(header.started_at_ms)))],
    );
    family(
        "cdpipe_run_rollbacks",
        "gauge",
        "Deploys that the last run took back.",
        vec![(String::new(), f64::from(state.rollbacks))],
    );
    let mut durations = Vec::new();
    for (node, now) in header.plan.nodes.iter().zip(&state.nodes) {
        if let (Some(finished), Some(started)) = (&now.finished, now.started_at_ms) {
            let kind = if matches!(node.kind, NodeKind::Gate(_)) { "gate" } else { "stage" };
            let labels =
                format!(",{kind}=\"{}\",outcome=\"{}\"", escape(&node.name), finished.outcome.as_str());
            durations.push((labels, seconds(finished.at_ms.saturating_sub(started))));
        }
    }
    family(
        "cdpipe_node_duration_seconds",
        "gauge",
        "How long each stage and gate of the last run took.",
        durations,
    );
    let mut shares = Vec::new();
    for (environment, service, releases) in state.serving.iter() {
        for (version, share) in releases {
            let labels = format!(
                ",environment=\"{}\",service=\"{}\",version=\"{}\",release=\"{}\"",
                escape(environment.as_str()),
                escape(service.as_str()),
                escape(&version),
                escape(share.release.as_str()),
            );
            shares.push((labels, f64::from(share.weight_bp) / 10_000.0));
        }
    }
    family(
        "cdpipe_release_traffic_ratio",
        "gauge",
        "Share of a service's traffic that a release gets, 0 to 1.",
        shares,
    );
    text
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
