//! `--override GATE --reason TEXT`: a person opens a gate without its conditions. It is journaled with name and reason.

use crate::failure::{self, Failure};
use crate::state;
use cdpipe_engine::Store;
use cdpipe_model::plan::{NodeKind, Plan};
use cdpipe_model::record::Signal;
use cdpipe_model::{NodeId, RunId};

/// Arguments of the commands that drive a run.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct OverrideArgs {
    /// Open this gate without its conditions, also one that is not reached yet; needs a reason, and is journaled.
    #[arg(long = "override", value_name = "GATE", requires = "reason")]
    gates: Vec<String>,
    /// Why.
    #[arg(long, value_name = "TEXT", requires = "gates")]
    reason: Option<String>,
}

impl OverrideArgs {
    /// The gates that are named; nothing is written yet.
    ///
    /// # Errors
    /// If there is no gate of a name.
    pub(crate) fn signals(&self, plan: &Plan, what: &str) -> Result<Vec<Signal>, Failure> {
        let gate = |name: &String| {
            let node = gate(plan, state::node_named(plan, what, name)?)?;
            let reason = self.reason.clone().unwrap_or_default();
            Ok(Signal::Override { node, by: state::user(), reason })
        };
        self.gates.iter().map(gate).collect()
    }
}

/// Leaves the signals for the engine that drives the run next.
pub(crate) fn send(store: &Store, run: &RunId, signals: Vec<Signal>) -> Result<(), Failure> {
    for signal in signals {
        store.send(run, signal)?;
    }
    Ok(())
}

/// This node, which must be a gate: a stage has no conditions.
pub(crate) fn gate(plan: &Plan, node: NodeId) -> Result<NodeId, Failure> {
    let is_gate = |kind: &NodeKind| matches!(kind, NodeKind::Gate(_));
    match plan.node(node) {
        Some(found) if !is_gate(&found.kind) => {
            let gates = plan.nodes.iter().filter(|node| is_gate(&node.kind));
            let names: Vec<&str> = gates.map(|node| node.name.as_str()).take(12).collect();
            let has = if names.is_empty() { "no gate".to_owned() } else { names.join(", ") };
            Err(Failure::new(
                &failure::NOT_POSSIBLE,
                format!("`{}` is a stage, and only a gate can be opened", found.name),
            )
            .help(format!("the pipeline has {has}")))
        }
        _ => Ok(node),
    }
}
