//! The graph for a terminal: one line for each stage or gate, and lanes at the left that lead from each to what needs it.

use super::Graph;
use crate::ui::Look;

/// Sides of a cell that a line leaves through.
const UP: u8 = 1;
const DOWN: u8 = 2;
const LEFT: u8 = 4;
const RIGHT: u8 = 8;

/// One column of the drawing: a node whose dependents are not all drawn yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lane {
    /// The node it comes from.
    from: usize,
    /// How many dependents are still to be drawn.
    left: usize,
}

/// The drawing, with a newline at its end.
pub(crate) fn render(graph: &Graph, look: Look) -> String {
    let mut dependents = vec![0usize; graph.nodes.len()];
    for need in graph.nodes.iter().flat_map(|node| &node.needs) {
        dependents[need.node] += 1;
    }
    let mut lanes: Vec<Option<Lane>> = Vec::new();
    // Cells of each row, and the node that the row is about.
    let mut rows: Vec<(Vec<Cell>, Option<usize>)> = Vec::new();
    for (at, node) in graph.nodes.iter().enumerate() {
        let needed: Vec<usize> = (0..lanes.len())
            .filter(|column| {
                lanes[*column].is_some_and(|lane| node.needs.iter().any(|need| need.node == lane.from))
            })
            .collect();
        let ends = |lane: Option<Lane>| lane.is_some_and(|lane| lane.left == 1);
        // It stands in the lane of a need that leads nowhere else, or in the first free column.
        let reused = needed.iter().copied().find(|column| ends(lanes[*column]));
        let column = reused.unwrap_or_else(|| {
            lanes.iter().position(Option::is_none).unwrap_or_else(|| {
                lanes.push(None);
                lanes.len() - 1
            })
        });
        if needed.iter().any(|other| *other != column) {
            rows.push((connect(&lanes, &needed, column, reused.is_some()), None));
        }
        for other in &needed {
            if let Some(lane) = &mut lanes[*other] {
                lane.left -= 1;
            }
        }
        for lane in &mut lanes {
            if lane.is_some_and(|lane| lane.left == 0) {
                *lane = None;
            }
        }
        let cells = (0..lanes.len())
            .map(|other| {
                if other == column {
                    Cell::Node { gate: node.gate }
                } else if lanes[other].is_some() {
                    Cell::Line(UP | DOWN)
                } else {
                    Cell::Line(0)
                }
            })
            .collect();
        rows.push((cells, Some(at)));
        lanes[column] = (dependents[at] > 0).then_some(Lane { from: at, left: dependents[at] });
        while lanes.last() == Some(&None) {
            lanes.pop();
        }
    }
    let columns = rows.iter().map(|(cells, _)| cells.len()).max().unwrap_or(0);
    let name_width = graph.nodes.iter().map(|node| node.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (cells, node) in rows {
        let mut line = String::new();
        for at in 0..columns {
            let cell = cells.get(at).copied().unwrap_or(Cell::Line(0));
            line.push_str(&cell.draw(look));
            let joined = matches!(cell, Cell::Line(sides) if sides & RIGHT != 0) || cell == Cell::Crossed;
            let into = cells.get(at + 1).is_some_and(|next| {
                matches!(next, Cell::Line(sides) if sides & LEFT != 0) || *next == Cell::Crossed
            });
            line.push_str(match (joined && into, look.unicode) {
                (true, true) => "─",
                (true, false) => "-",
                (false, _) => " ",
            });
        }
        if let Some(node) = node.and_then(|at| graph.nodes.get(at)) {
            let pad = " ".repeat(name_width - node.name.chars().count());
            let used = 2 * columns + name_width + 2;
            let summary = cut(&node.summary(), look.width.saturating_sub(used));
            let name = if node.gate { look.yellow(&node.name) } else { look.bold(&node.name) };
            line.push_str(&format!("{name}{pad}  {}", look.dim(&summary)));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The row between two nodes in which lanes come together in the column of the next one.
fn connect(lanes: &[Option<Lane>], needed: &[usize], column: usize, reused: bool) -> Vec<Cell> {
    let first = needed.iter().copied().chain([column]).min().unwrap_or(column);
    let last = needed.iter().copied().chain([column]).max().unwrap_or(column);
    (0..lanes.len())
        .map(|at| {
            let joins = at == column || needed.contains(&at);
            let across = first <= at && at <= last;
            if across && !joins {
                return if lanes[at].is_some() { Cell::Crossed } else { Cell::Line(LEFT | RIGHT) };
            }
            let mut sides = 0;
            if let Some(lane) = lanes[at] {
                sides |= UP;
                if !needed.contains(&at) || lane.left > 1 {
                    sides |= DOWN;
                }
            }
            if at == column {
                sides |= DOWN;
                if reused {
                    sides |= UP;
                }
            }
            if joins && at > first {
                sides |= LEFT;
            }
            if joins && at < last {
                sides |= RIGHT;
            }
            Cell::Line(sides)
        })
        .collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell {
    /// A line that leaves through these sides; blank if through none.
    Line(u8),
    /// A lane that another line passes without touching it.
    Crossed,
    /// The node itself.
    Node { gate: bool },
}

impl Cell {
    fn draw(self, look: Look) -> String {
        match self {
            Cell::Node { gate } => {
                let mark = match (gate, look.unicode) {
                    (true, true) => "◆",
                    (false, true) => "●",
                    (true, false) => "#",
                    (false, false) => "*",
                };
                if gate { look.yellow(mark) } else { look.cyan(mark) }
            }
            Cell::Crossed => if look.unicode { "│" } else { "|" }.to_owned(),
            Cell::Line(sides) => {
                let (unicode, ascii) = match sides {
                    0 => (" ", " "),
                    s if s == UP | DOWN => ("│", "|"),
                    s if s == LEFT | RIGHT => ("─", "-"),
                    s if s == UP | RIGHT => ("╰", "'"),
                    s if s == UP | LEFT => ("╯", "'"),
                    s if s == DOWN | RIGHT => ("╭", "."),
                    s if s == DOWN | LEFT => ("╮", "."),
                    s if s == UP | DOWN | RIGHT => ("├", "+"),
                    s if s == UP | DOWN | LEFT => ("┤", "+"),
                    s if s == UP | LEFT | RIGHT => ("┴", "+"),
                    s if s == DOWN | LEFT | RIGHT => ("┬", "+"),
                    s if s == UP | DOWN | LEFT | RIGHT => ("┼", "+"),
                    _ => ("│", "|"),
                };
                if look.unicode { unicode } else { ascii }.to_owned()
            }
        }
    }
}

/// At most this many characters; what is cut off is shown as dots.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    if width < 8 {
        return String::new();
    }
    let kept: String = text.chars().take(width - 3).collect();
    format!("{}...", kept.trim_end())
}

#[cfg(test)]
mod tests {
    use super::super::{Need, Node};
    use super::*;

    fn draw(nodes: &[(&str, &[usize])]) -> String {
        let nodes = nodes
            .iter()
            .map(|(name, needs)| Node {
                name: (*name).to_owned(),
                gate: name.starts_with('g'),
                needs: needs.iter().map(|need| Need { node: *need, optional: false }).collect(),
                matrix: None,
                when: None,
                steps: Vec::new(),
            })
            .collect();
        let look = Look { color: false, unicode: true, terminal: false, width: 60 };
        render(&Graph { name: "p".to_owned(), nodes }, look)
    }

    #[test]
    fn a_chain_is_one_lane() {
        insta::assert_snapshot!(draw(&[("a", &[]), ("b", &[0]), ("g", &[1])]), @r"
        ● a
        ● b
        ◆ g
        ");
    }

    #[test]
    fn a_diamond_forks_and_joins() {
        insta::assert_snapshot!(draw(&[("a", &[]), ("b", &[0]), ("c", &[0]), ("d", &[1, 2])]), @r"
        ●   a
        ├─╮
        │ ● b
        ● │ c
        ├─╯
        ●   d
        ");
    }

    #[test]
    fn lanes_pass_each_other() {
        insta::assert_snapshot!(
            draw(&[("a", &[]), ("b", &[]), ("c", &[]), ("d", &[0, 2]), ("e", &[0, 1]), ("f", &[3, 4])]), @r"
        ●     a
        │ ●   b
        │ │ ● c
        ├─│─┤
        │ │ ● d
        ├─╯ │
        ●   │ e
        ├───╯
        ●     f
        ");
    }
}
