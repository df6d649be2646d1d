//! Mermaid, as code hosts draw it in Markdown.

use super::Graph;

/// A `flowchart`, with a newline at its end.
pub(crate) fn render(graph: &Graph) -> String {
    let mut text = String::from("flowchart LR\n");
    for (at, node) in graph.nodes.iter().enumerate() {
        let summary = node.summary();
        let label = escape(&node.name);
        let label = if summary.is_empty() { label } else { format!("{label}<br/>{}", escape(&summary)) };
        let (open, close) = if node.gate { ("{{", "}}") } else { ("(", ")") };
        text.push_str(&format!("  n{at}{open}\"{label}\"{close}\n"));
    }
    for (at, node) in graph.nodes.iter().enumerate() {
        for need in &node.needs {
            let arrow = if need.optional { "-.->" } else { "-->" };
            text.push_str(&format!("  n{} {arrow} n{at}\n", need.node));
        }
    }
    text
}

/// Mermaid reads `#quot;` and the like inside of quotes.
fn escape(text: &str) -> String {
    text.replace('#', "#35;").replace('"', "#quot;").replace('<', "#lt;").replace('>', "#gt;")
}
