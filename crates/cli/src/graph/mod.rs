//! The stages and gates of a pipeline as a graph to draw. Read from the tree: what is drawn needs no inputs.

pub(crate) mod dot;
pub(crate) mod json;
pub(crate) mod lanes;
pub(crate) mod mermaid;

use cdpipe_syntax::tree::{Entry, Expr, ExprKind, File, KeyKind, Part, Statement};
use std::collections::BTreeMap;

/// What is drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Graph {
    /// The pipeline's name.
    pub name: String,
    /// In an order in which each comes after what it needs.
    pub nodes: Vec<Node>,
}

/// A stage or a gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its name.
    pub name: String,
    /// Whether it is a gate.
    pub gate: bool,
    /// What must have ended before.
    pub needs: Vec<Need>,
    /// `for os in ["linux", "mac"]`, if it is a matrix.
    pub matrix: Option<String>,
    /// Its condition, as it was written.
    pub when: Option<String>,
    /// What it does, a few words for each step.
    pub steps: Vec<String>,
}

/// Something that must have ended before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Need {
    /// Index in `Graph::nodes`; always before the node itself.
    pub node: usize,
    /// Whether it may have been skipped.
    pub optional: bool,
}

impl Node {
    /// Its steps in one line: equal ones are counted.
    pub(crate) fn summary(&self) -> String {
        let mut parts: Vec<(String, usize)> = Vec::new();
        for step in &self.steps {
            match parts.last_mut() {
                Some((last, count)) if last == step => *count += 1,
                _ => parts.push((step.clone(), 1)),
            }
        }
        let mut words: Vec<String> = parts
            .into_iter()
            .map(|(step, count)| if count > 1 { format!("{count} x {step}") } else { step })
            .collect();
        if let Some(matrix) = &self.matrix {
            words.insert(0, matrix.clone());
        }
        if let Some(when) = &self.when {
            words.push(format!("when {when}"));
        }
        words.join(", ")
    }
}

impl Graph {
    /// Reads the graph from a tree without errors; needs that lead nowhere or in a circle are left out.
    pub(crate) fn of(file: &File, text: &str) -> Self {
        let statements = || {
            file.entries.iter().filter_map(|entry| match entry {
                Entry::Statement(statement) => Some(statement),
                _ => None,
            })
        };
        let name = statements()
            .find(|statement| statement.keyword.text == "pipeline")
            .and_then(name_of)
            .unwrap_or_else(|| "pipeline".to_owned());
        let written: Vec<(Node, Vec<(String, bool)>)> = statements()
            .filter(|statement| matches!(statement.keyword.text.as_str(), "stage" | "gate"))
            .filter_map(|statement| read_node(statement, text))
            .collect();

        // Each round takes what has all its needs already; written order decides among those.
        let known: Vec<String> = written.iter().map(|(node, _)| node.name.clone()).collect();
        let mut index_of: BTreeMap<String, usize> = BTreeMap::new();
        let mut nodes: Vec<Node> = Vec::new();
        let mut left = written;
        while !left.is_empty() {
            let next = left
                .iter()
                .position(|(_, needs)| {
                    needs.iter().all(|(need, _)| index_of.contains_key(need) || !known.contains(need))
                })
                .unwrap_or(0);
            let (mut node, needs) = left.remove(next);
            node.needs = needs
                .iter()
                .filter_map(|(need, optional)| {
                    index_of.get(need).map(|at| Need { node: *at, optional: *optional })
                })
                .collect();
            node.needs.sort_by_key(|need| need.node);
            node.needs.dedup_by_key(|need| need.node);
            index_of.insert(node.name.clone(), nodes.len());
            nodes.push(node);
        }
        Self { name, nodes }
    }
}

fn name_of(statement: &Statement) -> Option<String> {
    statement.parts.iter().find_map(|part| match part {
        Part::Expr(expr) => plain(expr),
        _ => None,
    })
}

/// A name or a plain string.
fn plain(expr: &Expr) -> Option<String> {
    match &expr.kind {
        ExprKind::Name(name) => Some(name.text.clone()),
        ExprKind::Str(text) => text.plain(),
        _ => None,
    }
}

fn read_node(statement: &Statement, text: &str) -> Option<(Node, Vec<(String, bool)>)> {
    let slice = |span: cdpipe_syntax::Span| one_line(text.get(span.range()).unwrap_or_default());
    let mut node = Node {
        name: name_of(statement)?,
        gate: statement.keyword.text == "gate",
        needs: Vec::new(),
        matrix: statement.parts.iter().find_map(|part| match part {
            Part::For { span, .. } => Some(slice(*span)),
            _ => None,
        }),
        when: None,
        steps: Vec::new(),
    };
    let mut needs = Vec::new();
    for entry in statement.body.iter().flat_map(|body| &body.entries) {
        match entry {
            Entry::Setting(setting) => match &setting.key.kind {
                KeyKind::Path(path) if path.len() == 1 && path[0].text == "needs" => {
                    read_needs(&setting.value, false, &mut needs);
                }
                KeyKind::Path(path) if path.len() == 1 && path[0].text == "when" => {
                    node.when = Some(slice(setting.value.span));
                }
                _ => {}
            },
            Entry::Statement(step) => node.steps.extend(describe(step, &slice)),
            Entry::Error(_) => {}
        }
    }
    Some((node, needs))
}

fn read_needs(value: &Expr, optional: bool, needs: &mut Vec<(String, bool)>) {
    match &value.kind {
        ExprKind::List(items) => items.iter().for_each(|item| read_needs(item, optional, needs)),
        ExprKind::Paren(inner) => read_needs(inner, optional, needs),
        ExprKind::Call(name, args) if name.text == "optional" => {
            args.iter().for_each(|arg| read_needs(&arg.value, true, needs));
        }
        _ => needs.extend(plain(value).map(|name| (name, optional))),
    }
}

/// A few words for a step; nothing for what is no step (outputs, hooks).
fn describe(step: &Statement, slice: &dyn Fn(cdpipe_syntax::Span) -> String) -> Option<String> {
    match step.keyword.text.as_str() {
        "output" | "on" | "undo" | "lock" => None,
        "deploy" => {
            let strategy = step.body.iter().flat_map(|body| &body.entries).find_map(|entry| match entry {
                Entry::Statement(inner)
                    if matches!(
                        inner.keyword.text.as_str(),
                        "rolling" | "blue_green" | "canary" | "recreate"
                    ) =>
                {
                    Some(inner.keyword.text.clone())
                }
                Entry::Setting(setting) => match &setting.key.kind {
                    KeyKind::Path(path) if path.len() == 1 && path[0].text == "strategy" => {
                        plain(&setting.value)
                    }
                    _ => None,
                },
                _ => None,
            });
            let head = slice(step.head);
            Some(strategy.map_or(head.clone(), |strategy| format!("{head} ({strategy})")))
        }
        "approval" => {
            let by = step.body.iter().flat_map(|body| &body.entries).find_map(|entry| match entry {
                Entry::Setting(setting) => match &setting.key.kind {
                    KeyKind::Path(path) if path.len() == 1 && path[0].text == "by" => {
                        match &setting.value.kind {
                            ExprKind::List(items) => Some(items.iter().filter_map(plain).collect::<Vec<_>>()),
                            _ => plain(&setting.value).map(|one| vec![one]),
                        }
                    }
                    _ => None,
                },
                _ => None,
            });
            Some(match by {
                Some(by) if !by.is_empty() => format!("approval by {}", by.join(" or ")),
                _ => "approval".to_owned(),
            })
        }
        "run" | "exec" | "http" | "notify" => Some(step.keyword.text.clone()),
        _ => Some(slice(step.head)),
    }
}

/// Runs of blanks and line ends as one blank.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
