//! Graphviz.

use super::Graph;

/// A `digraph`, with a newline at its end.
pub(crate) fn render(graph: &Graph) -> String {
    let mut text =
        format!("digraph {} {{\n  rankdir = LR\n  node [shape = box, style = rounded]\n", quote(&graph.name));
    for node in &graph.nodes {
        let summary = node.summary();
        let label = if summary.is_empty() { node.name.clone() } else { format!("{}\n{summary}", node.name) };
        let shape = if node.gate { ", shape = diamond, style = solid" } else { "" };
        text.push_str(&format!("  {} [label = {}{shape}]\n", quote(&node.name), quote(&label)));
    }
    for node in &graph.nodes {
        for need in &node.needs {
            let style = if need.optional { " [style = dashed]" } else { "" };
            text.push_str(&format!(
                "  {} -> {}{style}\n",
                quote(&graph.nodes[need.node].name),
                quote(&node.name)
            ));
        }
    }
    text.push_str("}\n");
    text
}

fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
