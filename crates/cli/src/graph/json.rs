//! JSON, for programs.

use super::Graph;
use serde_json::{Value, json};

/// A document, with a newline at its end.
pub(crate) fn render(graph: &Graph) -> String {
    let nodes: Vec<Value> = graph
        .nodes
        .iter()
        .map(|node| {
            let needs: Vec<Value> = node
                .needs
                .iter()
                .map(|need| json!({ "name": graph.nodes[need.node].name, "optional": need.optional }))
                .collect();
            json!({
                "name": node.name,
                "kind": if node.gate { "gate" } else { "stage" },
                "needs": needs,
                "for": node.matrix,
                "when": node.when,
                "steps": node.steps,
            })
        })
        .collect();
    format!("{:#}\n", json!({ "version": 1, "pipeline": graph.name, "nodes": nodes }))
}
