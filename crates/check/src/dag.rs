//! The graph of stages and gates: circles, and who comes before whom.

use crate::build::Need;
use crate::checker::Checker;
use crate::codes::{graph as code, security};
use crate::schema::Id;
use crate::structure::Block;
use cdpipe_model::plan::Mode;
use cdpipe_syntax::{Diagnostic, Span};
use petgraph::graph::{DiGraph, NodeIndex};
use std::collections::{HashMap, VecDeque};

/// Needs of all stages and gates, by their numbers.
pub(crate) struct Graph<'n> {
    needs: &'n [Vec<Need>],
    /// Each after all it needs; empty if there is a circle.
    order: Vec<usize>,
}

impl<'n> Graph<'n> {
    /// Builds it and tells of every circle.
    pub(crate) fn new(checker: &mut Checker<'_>, needs: &'n [Vec<Need>]) -> Self {
        let mut graph: DiGraph<usize, ()> = DiGraph::with_capacity(needs.len(), needs.len());
        for index in 0..needs.len() {
            graph.add_node(index);
        }
        for (index, list) in needs.iter().enumerate() {
            for need in list {
                // From what is needed to what needs it, so that an order of the graph is an order of running.
                graph.add_edge(NodeIndex::new(need.node), NodeIndex::new(index), ());
            }
        }
        let order = match petgraph::algo::toposort(&graph, None) {
            Ok(order) => order.into_iter().map(NodeIndex::index).collect(),
            Err(_) => {
                for component in petgraph::algo::tarjan_scc(&graph) {
                    if component.len() > 1 {
                        let members: Vec<usize> = component.into_iter().map(NodeIndex::index).collect();
                        tell_circle(checker, needs, &members);
                    }
                }
                Vec::new()
            }
        };
        Self { needs, order }
    }

    /// Whether there is no circle.
    pub(crate) fn is_sound(&self) -> bool {
        self.order.len() == self.needs.len()
    }

    /// Position of each stage in the order of running.
    fn positions(&self) -> Vec<usize> {
        let mut positions = vec![0; self.needs.len()];
        for (position, node) in self.order.iter().enumerate() {
            positions[*node] = position;
        }
        positions
    }

    /// For each pair (later, earlier), whether `later` needs `earlier`, directly or through others. Looks at 64 earlier ones at a
    /// time, so a few questions about a large graph cost one walk over it.
    fn reaches(&self, questions: &[(usize, usize)]) -> Vec<bool> {
        let mut answers = vec![false; questions.len()];
        let mut open: Vec<usize> = Vec::new();
        for (at, (later, earlier)) in questions.iter().enumerate() {
            if self.needs[*later].iter().any(|need| need.node == *earlier) {
                answers[at] = true;
            } else if later != earlier {
                open.push(at);
            }
        }
        let mut sources: Vec<usize> = open.iter().map(|at| questions[*at].1).collect();
        sources.sort_unstable();
        sources.dedup();
        // Which of the 64 a stage is; most are none.
        const NONE: u8 = 64;
        let mut bits = vec![NONE; self.needs.len()];
        let mut masks = vec![0_u64; self.needs.len()];
        for chunk in sources.chunks(64) {
            for (source, bit) in chunk.iter().zip(0..) {
                bits[*source] = bit;
            }
            for node in &self.order {
                let mut mask = 0;
                for need in &self.needs[*node] {
                    mask |= masks[need.node];
                    if bits[need.node] != NONE {
                        mask |= 1 << bits[need.node];
                    }
                }
                masks[*node] = mask;
            }
            for at in &open {
                let (later, earlier) = questions[*at];
                if bits[earlier] != NONE {
                    answers[*at] |= masks[later] >> bits[earlier] & 1 == 1;
                }
            }
            for source in chunk {
                bits[*source] = NONE;
            }
        }
        answers
    }
}

/// One shortest circle through these stages, as a message.
fn tell_circle(checker: &mut Checker<'_>, needs: &[Vec<Need>], members: &[usize]) {
    let inside: std::collections::HashSet<usize> = members.iter().copied().collect();
    let Some(start) = members.iter().copied().min() else { return };
    // Breadth first from the stage that stands first in the file back to itself.
    let mut before: HashMap<usize, (usize, Span)> = HashMap::new();
    let mut queue = VecDeque::from([start]);
    let mut closing: Option<(usize, Span)> = None;
    'search: while let Some(node) = queue.pop_front() {
        for need in needs[node].iter().filter(|need| inside.contains(&need.node)) {
            if need.node == start {
                closing = Some((node, need.span));
                break 'search;
            }
            if let std::collections::hash_map::Entry::Vacant(entry) = before.entry(need.node) {
                entry.insert((node, need.span));
                queue.push_back(need.node);
            }
        }
    }
    let Some((last, last_span)) = closing else { return };
    let mut path = vec![(last, last_span)];
    let mut at = last;
    while at != start {
        let Some((previous, span)) = before.get(&at).copied() else { break };
        path.push((previous, span));
        at = previous;
    }
    path.reverse();
    let name = |node: usize| checker.names.nodes[node].name_text().to_owned();
    let mut names: Vec<String> = path.iter().map(|(node, _)| format!("`{}`", name(*node))).collect();
    if names.len() > 12 {
        names.splice(6..names.len() - 5, ["…".to_owned()]);
    }
    names.push(format!("`{}`", name(start)));
    let mut diag = Diagnostic::new(
        &code::CYCLE,
        path[0].1,
        format!("these need each other in a circle: {}", names.join(" needs ")),
    )
    .label("this need is part of the circle")
    .help("remove one of these needs");
    for (node, span) in path.iter().skip(1).take(6) {
        let text = format!("`{}` needs this", name(*node));
        diag = diag.also(*span, text);
    }
    checker.report(diag);
}

/// Everything that the order of stages decides.
pub(crate) fn judge(checker: &mut Checker<'_>, needs: &[Vec<Need>], mode: Option<Mode>) {
    let graph = Graph::new(checker, needs);
    if !graph.is_sound() {
        return;
    }
    outputs(checker, &graph);
    deploys(checker, &graph);
    guards(checker, &graph, mode);
}

/// Each stage that reads something of another one must need it.
fn outputs(checker: &mut Checker<'_>, graph: &Graph<'_>) {
    let uses = std::mem::take(&mut checker.output_uses);
    let questions: Vec<(usize, usize)> = uses.iter().map(|(user, used, _)| (*user, *used)).collect();
    for ((user, used, span), fine) in uses.into_iter().zip(graph.reaches(&questions)) {
        if fine {
            continue;
        }
        let (user, used) = (checker.names.nodes[user], checker.names.nodes[used]);
        let (user_name, used_name) = (user.name_text().to_owned(), used.name_text().to_owned());
        let diag = if user_name == used_name {
            Diagnostic::new(
                &code::OUTPUT_NOT_NEEDED,
                span,
                format!("`{user_name}` reads its own output, which is there only after it has succeeded"),
            )
            .help("read it in a later stage, or in a hook of this one")
        } else {
            let mut diag = Diagnostic::new(
                &code::OUTPUT_NOT_NEEDED,
                span,
                format!("`{user_name}` reads something of `{used_name}`, and does not need it"),
            )
            .also(used.name_span(), "this may run later, or at the same time");
            diag = match user.setting("needs") {
                Some(setting) => match &setting.value.kind {
                    cdpipe_syntax::tree::ExprKind::List(items) => {
                        let edit = match items.last() {
                            Some(last) => cdpipe_syntax::Edit {
                                span: last.span.shrink_to_end(),
                                replacement: format!(", {used_name}"),
                            },
                            None => cdpipe_syntax::Edit {
                                span: setting.value.span,
                                replacement: format!("[{used_name}]"),
                            },
                        };
                        diag.help(format!("add `{used_name}` to its `needs`"))
                            .suggestion(format!("add `{used_name}` to `needs`"), vec![edit])
                    }
                    _ => diag.help(format!("add `{used_name}` to its `needs`")),
                },
                None => diag.help(format!("write `needs = [{used_name}]`")),
            };
            diag
        };
        checker.report(diag);
    }
}

/// One service of one environment is changed by one stage after another, never by two at a time.
fn deploys(checker: &mut Checker<'_>, graph: &Graph<'_>) {
    let positions = graph.positions();
    let mut groups: HashMap<(String, String), Vec<(usize, Span)>> = HashMap::new();
    for (node, service, environment, span) in &checker.deploys {
        let group = groups.entry((service.clone(), environment.clone())).or_default();
        if group.last().is_none_or(|(last, _)| last != node) {
            group.push((*node, *span));
        }
    }
    let mut questions = Vec::new();
    let mut pairs = Vec::new();
    let mut keys: Vec<_> = groups.into_iter().collect();
    keys.sort();
    for ((service, environment), mut group) in keys {
        for (node, span) in &group {
            let block = checker.names.nodes[*node];
            let alone = checker
                .expansions
                .get(*node)
                .is_some_and(|expansion| expansion.nodes.len() == 1 && expansion.nodes[0].0.is_some());
            if block.looped.is_some() && !alone {
                let name = block.name_text().to_owned();
                checker.report(
                    Diagnostic::new(
                        &code::MATRIX_DEPLOY,
                        *span,
                        format!("each stage of the matrix `{name}` deploys `{service}` to `{environment}`, all at once"),
                    )
                    .also(block.name_span(), "the matrix")
                    .help("deploy in a stage of its own that needs the matrix"),
                );
            }
        }
        group.sort_by_key(|(node, _)| positions[*node]);
        group.dedup_by_key(|(node, _)| *node);
        for pair in group.windows(2) {
            questions.push((pair[1].0, pair[0].0));
            pairs.push((pair[0], pair[1], service.clone(), environment.clone()));
        }
    }
    for ((first, second, service, environment), ordered) in pairs.into_iter().zip(graph.reaches(&questions)) {
        if ordered {
            continue;
        }
        let (first, second) = if first.1.start <= second.1.start { (first, second) } else { (second, first) };
        let (a, b) = (
            checker.names.nodes[first.0].name_text().to_owned(),
            checker.names.nodes[second.0].name_text().to_owned(),
        );
        checker.report(
            Diagnostic::new(
                &code::UNORDERED_DEPLOYS,
                second.1,
                format!(
                    "`{a}` and `{b}` both deploy `{service}` to `{environment}`, and neither needs the other"
                ),
            )
            .also(first.1, format!("`{a}` deploys it here"))
            .help(format!("let one need the other: `needs = [{a}]` in `{b}`")),
        );
    }
}

/// Gates before protected environments, irreversible steps after gates.
fn guards(checker: &mut Checker<'_>, graph: &Graph<'_>, mode: Option<Mode>) {
    let count = graph.needs.len();
    let is_gate: Vec<bool> = checker.names.nodes.iter().map(|block| block.spec.id == Id::Gate).collect();
    let mut guarded = vec![false; count];
    for node in &graph.order {
        guarded[*node] = graph.needs[*node].iter().any(|need| is_gate[need.node] || guarded[need.node]);
    }
    if mode == Some(Mode::Delivery) {
        let deployed = checker.deploys.iter().map(|(node, service, environment, span)| {
            (*node, format!("`{service}` reaches"), environment.clone(), *span)
        });
        let applied = checker
            .applies
            .iter()
            .map(|(node, environment, span)| (*node, "this changes".to_owned(), environment.clone(), *span));
        let changes: Vec<_> = deployed.chain(applied).collect();
        for (node, what, environment, span) in changes {
            if guarded[node] {
                continue;
            }
            let Some(block) = checker.names.get(crate::schema::Names::Environment, &environment) else {
                continue;
            };
            let said = block.setting("protected");
            let protected = match said {
                Some(setting) => matches!(
                    setting.value.kind,
                    cdpipe_syntax::tree::ExprKind::Literal(cdpipe_syntax::tree::Literal::Bool(true))
                ),
                None => crate::build::protected_by_name(&environment),
            };
            if protected {
                checker.report(
                    Diagnostic::new(
                        &security::UNGUARDED,
                        span,
                        format!("{what} the protected environment `{environment}` without a gate"),
                    )
                    .also(said.map_or(block.name_span(), |setting| setting.span), "protected")
                    .help("put a gate before it (`gate release { approval { by = [\"ops\"] } }` and `needs = [release]`), or say `mode = deployment`"),
                );
            }
        }
    }
    let mut gate_after = vec![false; count];
    for node in graph.order.iter().rev() {
        if is_gate[*node] || gate_after[*node] {
            for need in &graph.needs[*node] {
                gate_after[need.node] = true;
            }
        }
    }
    for (index, block) in checker.names.nodes.clone().into_iter().enumerate() {
        if !gate_after[index] || is_gate[index] {
            continue;
        }
        for step in irreversible(block) {
            checker.report(
                Diagnostic::new(
                    &security::IRREVERSIBLE_BEFORE_GATE,
                    step,
                    format!("this can't be taken back, and `{}` comes before a gate", block.name_text()),
                )
                .also(block.name_span(), "this stage")
                .help("put it into a stage that needs the gate, or give it an `undo { … }` and leave `effect` out"),
            );
        }
    }
    for span in std::mem::take(&mut checker.irreversible_hooks) {
        checker.report(
            Diagnostic::new(
                &crate::codes::lints::HOOK_CANT_BE_UNDONE,
                span,
                "this hook does something that can't be taken back",
            )
            .help("let a hook only tell and tidy up; do what is irreversible in a stage, behind a gate"),
        );
    }
}

/// Heads of steps that say they are irreversible.
fn irreversible(block: &Block<'_>) -> Vec<Span> {
    block
        .inner
        .children
        .iter()
        .filter(|step| {
            step.setting("effect").is_some_and(|setting| {
                crate::structure::as_name(&setting.value).is_some_and(|name| name.text == "irreversible")
            })
        })
        .map(|step| step.head())
        .collect()
}
