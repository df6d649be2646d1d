//! Stages and gates: matrices, needs, conditions, locks, and what they hold.

use super::Defaults;
use crate::checker::{Checker, Expansion};
use crate::codes::{
    graph as graph_code, lints, metrics as metric_code, names as name_code, types as type_code,
};
use crate::schema::{Id, Names};
use crate::scope::{Around, Looped, Place, Scope};
use crate::structure::{Block, as_name};
use crate::suggest::nearest;
use cdpipe_model::expr::Expr as Lowered;
use cdpipe_model::id::{EnvName, NodeId, ServiceName};
use cdpipe_model::plan::{
    Gate, GateMetric, LockKey, NoData, Node, NodeKind, Output, Retry, Stage, Step, StepKind,
};
use cdpipe_model::value::{Type, Value};
use cdpipe_syntax::tree::{Expr, ExprKind};
use cdpipe_syntax::{Diagnostic, Edit, Span};

/// More stages than that are a slip in a matrix.
const MAX_NODES: u32 = 100_000;

/// One thing that a stage needs, before matrices are expanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    pub(crate) node: usize,
    pub(crate) optional: bool,
    pub(crate) span: Span,
}

impl<'b> Checker<'b> {
    /// Values of all matrices, and the numbers of the nodes that come of them.
    pub(crate) fn expand(&mut self) {
        let mut next = 0_u32;
        for block in self.names.nodes.clone() {
            let mut expansion = Expansion::default();
            let mut values: Option<Vec<Value>> = None;
            if let Some((name, list)) = block.looped {
                expansion.is_matrix = true;
                if self.names.get(Names::Param, &name.text).is_some()
                    || self.names.get(Names::Service, &name.text).is_some()
                {
                    self.report(
                        Diagnostic::new(
                            &name_code::DUPLICATE_NAME,
                            name.span,
                            format!("`{}` is declared already", name.text),
                        )
                        .help("choose another name for the matrix's variable"),
                    );
                }
                let low = self.expr(list, &Scope::file());
                match &low.ty {
                    Some(Type::List(item)) => {
                        if matches!(**item, Type::List(_) | Type::Map(_) | Type::Secret) {
                            self.report(
                                Diagnostic::new(
                                    &type_code::WRONG_TYPE,
                                    list.span,
                                    format!("a matrix runs over single values, found a list of {item}"),
                                )
                                .help("list strings or numbers"),
                            );
                        } else {
                            expansion.ty = Some((**item).clone());
                        }
                        if let Some(Value::List(items)) = low.known() {
                            let items = items.clone();
                            if self.distinct(&items, list) {
                                values = Some(items);
                            } else {
                                values = Some(Vec::new());
                            }
                        }
                    }
                    Some(found) => {
                        let found = crate::values::a_type(found);
                        self.report(
                            Diagnostic::new(
                                &type_code::WRONG_TYPE,
                                list.span,
                                format!("a matrix runs over a list, found {found}"),
                            )
                            .help(
                                "write `for x in [\"a\", \"b\"]`, or name a parameter of type `list(string)`",
                            ),
                        );
                    }
                    None => {}
                }
            }
            match values {
                Some(values) if self.planning() => {
                    for value in values {
                        expansion.nodes.push((Some(value), next));
                        next = next.saturating_add(1).min(MAX_NODES);
                    }
                }
                _ => {
                    expansion.nodes.push((None, next));
                    next = next.saturating_add(1).min(MAX_NODES);
                }
            }
            self.expansions.push(expansion);
        }
        if next >= MAX_NODES {
            let span = self.names.nodes.last().map(|block| block.head());
            if let Some(span) = span {
                self.report(
                    Diagnostic::new(
                        &crate::codes::values::OUT_OF_RANGE,
                        span,
                        format!("the pipeline has more than {MAX_NODES} stages"),
                    )
                    .help("make a matrix smaller"),
                );
            }
        }
    }

    /// All stages and gates with their needs. Without inputs there is no plan that they could be part of, so none are kept then.
    pub(crate) fn nodes(&mut self, defaults: Defaults) -> (Vec<Node>, Vec<Vec<Need>>) {
        let blocks = self.names.nodes.clone();
        let mut nodes = Vec::with_capacity(if self.planning() { blocks.len() } else { 0 });
        let mut all_needs = Vec::with_capacity(blocks.len());
        for (index, block) in blocks.into_iter().enumerate() {
            let needs = self.needs(index, block);
            let expansion = self.expansions.get(index).cloned().unwrap_or_default();
            for (value, id) in expansion.nodes {
                let looped = block.looped.map(|(name, _)| Looped {
                    name: name.text.clone(),
                    ty: expansion.ty.clone(),
                    value: value.clone(),
                });
                let scope =
                    Scope { place: Place::Step, node: Some(index), looped: looped.as_ref(), ..Scope::file() };
                let when = self.condition(block, &scope);
                let kind = if block.spec.id == Id::Gate {
                    NodeKind::Gate(Box::new(self.gate(block, &scope, defaults)))
                } else {
                    NodeKind::Stage(Box::new(self.stage(block, &scope, defaults)))
                };
                if !self.planning() {
                    continue;
                }
                let name = match &value {
                    Some(value) => format!("{}[{value}]", block.name_text()),
                    None => block.name_text().to_owned(),
                };
                let mut node_needs = Vec::with_capacity(needs.len());
                for need in &needs {
                    if let Some(expansion) = self.expansions.get(need.node) {
                        node_needs.extend(expansion.nodes.iter().map(|(_, id)| cdpipe_model::plan::Need {
                            node: NodeId(*id),
                            optional: need.optional,
                        }));
                    }
                }
                nodes.push(Node {
                    id: NodeId(id),
                    name,
                    needs: node_needs,
                    when,
                    kind,
                    at: self.sources.pos(block.stmt.span),
                });
            }
            all_needs.push(needs);
        }
        (nodes, all_needs)
    }

    fn condition(&mut self, block: &'b Block<'b>, scope: &Scope<'_>) -> Option<Lowered> {
        let setting = block.setting("when")?;
        let low = self.expr(&setting.value, scope);
        if let (Some(Value::Bool(value)), false) = (low.known(), self.planning()) {
            self.report(
                Diagnostic::new(
                    &lints::CONSTANT,
                    setting.value.span,
                    format!("this condition is always {value}"),
                )
                .also(block.name_span(), if *value { "it always runs" } else { "it never runs" })
                .help(if *value {
                    "leave `when` out"
                } else {
                    "remove it, or compare with a parameter or `git.branch`"
                }),
            );
        }
        low.expr
    }

    fn needs(&mut self, index: usize, block: &'b Block<'b>) -> Vec<Need> {
        let Some(setting) = block.setting("needs") else { return Vec::new() };
        let items: &[Expr] = match &setting.value.kind {
            ExprKind::List(items) => items,
            ExprKind::Error => return Vec::new(),
            ExprKind::Name(_) | ExprKind::Call(..) => {
                let text = self.slice(setting.value.span).to_owned();
                self.report(
                    Diagnostic::new(
                        &type_code::WRONG_TYPE,
                        setting.value.span,
                        "`needs` is a list of stages and gates",
                    )
                    .help(format!("write `needs = [{text}]`"))
                    .fix(
                        "make it a list",
                        vec![Edit { span: setting.value.span, replacement: format!("[{text}]") }],
                    ),
                );
                std::slice::from_ref(&setting.value)
            }
            _ => {
                self.report(
                    Diagnostic::new(
                        &type_code::WRONG_TYPE,
                        setting.value.span,
                        "`needs` is a list of stages and gates",
                    )
                    .help("write `needs = [build, test]`"),
                );
                return Vec::new();
            }
        };
        let mut needs: Vec<Need> = Vec::with_capacity(items.len());
        for item in items {
            let (expr, optional) = match &item.kind {
                ExprKind::Call(name, args) if name.text == "optional" && args.len() == 1 => {
                    (&args[0].value, true)
                }
                ExprKind::Error => continue,
                _ => (item, false),
            };
            let Some(name) = as_name(expr) else {
                let mut diag = Diagnostic::new(
                    &graph_code::UNKNOWN_NEED,
                    item.span,
                    "expected the name of a stage or a gate",
                );
                diag = match crate::values::as_text(expr).and_then(cdpipe_syntax::tree::StrLit::plain) {
                    Some(plain) => diag
                        .help("names stand without quotes")
                        .suggestion("remove the quotes", vec![Edit { span: expr.span, replacement: plain }]),
                    None => diag.help("write `needs = [build, optional(lint)]`"),
                };
                self.report(diag);
                continue;
            };
            let Some(node) = self.names.take_node(&name.text) else {
                let known = self.names.all(Names::Node);
                let mut diag = Diagnostic::new(
                    &graph_code::UNKNOWN_NEED,
                    name.span,
                    format!(
                        "`{}` needs `{}`, and there is no such stage or gate",
                        block.name_text(),
                        name.text
                    ),
                );
                diag = match nearest(&name.text, known.iter().copied()) {
                    Some(near) => diag
                        .label(format!("did you mean `{near}`?"))
                        .help(format!("write `{near}`"))
                        .suggestion(
                            format!("write `{near}`"),
                            vec![Edit { span: name.span, replacement: near.to_owned() }],
                        ),
                    None => {
                        diag.help(format!("declare `stage {} {{ … }}`, or remove it from `needs`", name.text))
                    }
                };
                self.report(diag);
                continue;
            };
            if node == index {
                self.report(
                    Diagnostic::new(
                        &graph_code::SELF_NEED,
                        name.span,
                        format!("`{}` needs itself, so it can never start", name.text),
                    )
                    .help("remove it from its own `needs`"),
                );
                continue;
            }
            if let Some(first) = needs.iter().find(|need| need.node == node) {
                let first = first.span;
                self.report(
                    Diagnostic::new(
                        &graph_code::DUPLICATE_NEED,
                        name.span,
                        format!("`{}` stands twice in `needs`", name.text),
                    )
                    .label("again here")
                    .also(first, "first here")
                    .help("remove one of them"),
                );
                continue;
            }
            needs.push(Need { node, optional, span: name.span });
        }
        needs
    }

    fn stage(&mut self, block: &'b Block<'b>, scope: &Scope<'_>, defaults: Defaults) -> Stage {
        let found = self.found(block, scope);
        let steps = self.steps(&block.inner.children, scope, defaults);
        let hook_scope = Scope { place: Place::Hook, ..*scope };
        let hooks = block.children(Id::On).filter_map(|on| self.hook(on, &hook_scope, defaults)).collect();
        let mut outputs: Vec<Output> = Vec::new();
        for output in block.children(Id::Output) {
            let name = output.name_text().to_owned();
            if outputs.iter().any(|other| other.name == name) || name == "outcome" {
                self.report(
                    Diagnostic::new(
                        &name_code::DUPLICATE_NAME,
                        output.name_span(),
                        format!("the output `{name}` is declared already"),
                    )
                    .help(if name == "outcome" {
                        "`outcome` is how the stage ended; choose another name"
                    } else {
                        "rename one of them"
                    }),
                );
                continue;
            }
            let mut wrong = Vec::new();
            let ty = output.ty.and_then(|ty| crate::names::read_type(ty, &mut wrong));
            wrong.into_iter().for_each(|diag| self.report(diag));
            if let Some(ty) = ty {
                outputs.push(Output { name, ty });
            }
        }
        if let Some(output) = block.child(Id::Output)
            && block.child(Id::Run).is_none()
        {
            self.report(
                Diagnostic::new(
                    &graph_code::OUTPUT_WITHOUT_RUN,
                    output.head(),
                    "no `run` of this stage could write this output",
                )
                .help(format!("add `run \"echo {}=… >> $CDPIPE_OUTPUT\"`", output.name_text())),
            );
        }
        let mut locks: Vec<LockKey> = steps
            .iter()
            .filter_map(|step| match &step.kind {
                StepKind::Deploy(deploy) => Some(LockKey::Service {
                    environment: deploy.environment.clone(),
                    service: deploy.service.name.clone(),
                }),
                // The namespace that would hold a lock of the cluster may be one of the objects.
                StepKind::Apply(apply) => Some(LockKey::Named(format!("apply/{}", apply.environment))),
                _ => None,
            })
            .collect();
        locks.extend(found.text("lock").map(LockKey::Named));
        locks.sort();
        locks.dedup();
        let timeout_ms = found.ms("timeout");
        if let Some(timeout) = timeout_ms {
            let least = steps.iter().map(least_ms).fold(0, u64::saturating_add);
            if least > timeout {
                self.report(
                    Diagnostic::new(
                        &graph_code::SHORT_TIMEOUT,
                        found.span("timeout").unwrap_or(block.head()),
                        format!(
                            "the stage may take {}, and its steps are told to wait for {}",
                            super::deploy::duration(timeout),
                            super::deploy::duration(least)
                        ),
                    )
                    .help(format!("give it more than {}", super::deploy::duration(least))),
                );
            }
        }
        if !self.planning() {
            self.judge_stage(block);
        }
        Stage {
            steps,
            timeout_ms,
            retry: Retry {
                more: found.count_u32("retry").unwrap_or(0),
                delay_ms: found.ms("retry_delay").unwrap_or(defaults.retry.delay_ms),
                ..defaults.retry
            },
            locks,
            outputs,
            hooks,
            undo_on_failure: found.bool("undo_on_failure").unwrap_or(false),
        }
    }

    fn judge_stage(&mut self, block: &'b Block<'b>) {
        let undoable = super::steps::undoable(block);
        for on in block.children(Id::On) {
            let Some(expr) = on.arg("EVENTS") else { continue };
            let names = event_names(expr);
            if !undoable
                && !names.is_empty()
                && names.iter().all(|name| matches!(*name, "rollback" | "rollback_failed"))
            {
                self.report(
                    Diagnostic::new(&lints::NEVER_FIRES, expr.span, format!("nothing in `{}` can be rolled back, so this hook never runs", block.name_text()))
                        .help("a stage rolls back what it deployed, or what an `undo { … }` says; for a failed step use `on failure`"),
                );
            }
        }
        let mut before = false;
        for child in &block.inner.children {
            match child.spec.id {
                Id::Undo if !before => self.report(
                    Diagnostic::new(
                        &lints::UNDO_OF_NOTHING,
                        child.head(),
                        "no step stands before this `undo`",
                    )
                    .help("put it after the steps that it takes back"),
                ),
                Id::Output | Id::On | Id::Undo => {}
                _ => before = true,
            }
        }
        if !block.inner.children.is_empty() || !block.inner.settings.is_empty() {
            let steps = block
                .inner
                .children
                .iter()
                .any(|child| !matches!(child.spec.id, Id::Output | Id::On | Id::Undo));
            let broken = block.stmt.body.as_ref().is_some_and(|body| {
                body.entries
                    .iter()
                    .filter(|entry| !matches!(entry, cdpipe_syntax::tree::Entry::Setting(_)))
                    .count()
                    > block.inner.children.len()
            });
            if !steps && !broken {
                self.report(
                    Diagnostic::new(
                        &name_code::EMPTY_BODY,
                        block.head(),
                        format!("`stage {}` has no step", block.name_text()),
                    )
                    .help("add one: `run \"…\"`, `deploy SERVICE to ENVIRONMENT`"),
                );
            }
        }
    }

    fn gate(&mut self, block: &'b Block<'b>, scope: &Scope<'_>, defaults: Defaults) -> Gate {
        let found = self.found(block, scope);
        let mut approvals = Vec::new();
        for approval in block.children(Id::Approval) {
            let found = self.found(approval, scope);
            approvals.push(self.approval(approval, &found));
        }
        let metrics =
            block.children(Id::GateMetric).filter_map(|metric| self.gate_metric(metric, scope)).collect();
        let checks = self.steps(&block.inner.children, scope, defaults);
        let windows = block.children(Id::Window).flat_map(|window| self.windows(window, scope)).collect();
        let hook_scope = Scope { place: Place::Hook, ..*scope };
        let hooks = block.children(Id::On).filter_map(|on| self.hook(on, &hook_scope, defaults)).collect();
        let asks = block.inner.children.iter().any(|child| child.spec.id != Id::On);
        let broken = block.stmt.body.as_ref().is_none_or(|body| {
            body.entries.is_empty()
                || body.entries.iter().any(|entry| matches!(entry, cdpipe_syntax::tree::Entry::Error(_)))
                || body
                    .entries
                    .iter()
                    .filter(|entry| matches!(entry, cdpipe_syntax::tree::Entry::Statement(_)))
                    .count()
                    > block.inner.children.len()
        });
        if !asks && !broken {
            self.report(
                Diagnostic::new(
                    &graph_code::HEADLESS_GATE,
                    block.head(),
                    format!("the gate `{}` asks for nothing, so it holds nothing back", block.name_text()),
                )
                .help("add `approval { by = [\"ops\"] }`, a `metric`, a check or a `window`"),
            );
        }
        Gate { approvals, metrics, checks, windows, timeout_ms: found.ms("timeout"), hooks }
    }

    fn gate_metric(&mut self, block: &'b Block<'b>, scope: &Scope<'_>) -> Option<GateMetric> {
        let condition = block.arg("CONDITION")?;
        let scope = &Scope { measures: true, ..*scope };
        let found = self.found(block, scope);
        let around = found.name("environment").map(str::to_owned);
        let scope = &Scope { around: around.as_deref().map_or(scope.around, Around::Of), ..*scope };
        let every_ms = found.ms("every").unwrap_or(30_000);
        let for_ms = found.ms("FOR").unwrap_or(0);
        if found.ms("FOR").is_some() && for_ms < every_ms && !found.is_open("every") {
            let mut diag = Diagnostic::new(
                &metric_code::TOO_FEW_SAMPLES,
                found.span("FOR").unwrap_or(block.head()),
                format!(
                    "it must hold for {}, and is sampled every {}",
                    super::deploy::duration(for_ms),
                    super::deploy::duration(every_ms)
                ),
            )
            .help("let it hold for several samples, or sample more often: `{ every = 5s }`");
            if let Some(span) = found.span("every") {
                diag = diag.also(span, "between two samples");
            }
            self.report(diag);
        }
        let low = self.expr(condition, scope);
        if let (Some(Value::Bool(value)), false) = (low.known(), self.planning()) {
            self.report(
                Diagnostic::new(
                    &lints::CONSTANT,
                    condition.span,
                    format!("this condition is always {value}"),
                )
                .help("compare a metric with a limit: `error_rate < 1%`"),
            );
        }
        Some(GateMetric {
            when: low.expr.unwrap_or(Lowered::Value(Value::Bool(true))),
            for_ms,
            every_ms,
            no_data: match found.word("no_data") {
                Some("rollback") => NoData::Rollback,
                Some("pass") => NoData::Pass,
                _ => NoData::Hold,
            },
            service: found.name("service").map(ServiceName::from),
            environment: found.name("environment").map(EnvName::from),
            text: self.slice(condition.span).split_whitespace().collect::<Vec<_>>().join(" "),
        })
    }
}

/// The names in `a or b`.
fn event_names(expr: &Expr) -> Vec<&str> {
    match &expr.kind {
        ExprKind::Binary(_, _, left, right) => {
            let mut names = event_names(left);
            names.extend(event_names(right));
            names
        }
        ExprKind::Paren(inner) => event_names(inner),
        ExprKind::Name(name) => vec![name.text.as_str()],
        _ => Vec::new(),
    }
}

/// How long a step waits at least if everything goes well, in milliseconds.
fn least_ms(step: &Step) -> u64 {
    match &step.kind {
        StepKind::Wait { ms } => *ms,
        StepKind::Watch(watch) => watch.for_ms.unwrap_or(0),
        StepKind::Deploy(deploy) => super::strategies::soak(&deploy.strategy)
            .saturating_add(deploy.watch.as_ref().map_or(0, |watch| watch.after_ms)),
        _ => 0,
    }
}
