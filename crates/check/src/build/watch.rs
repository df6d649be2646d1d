//! Watches and their rules.

use crate::checker::Checker;
use crate::codes::{lints, metrics as code};
use crate::schema::{Id, Names};
use crate::scope::{Around, Scope};
use crate::structure::Block;
use crate::values::Found;
use cdpipe_model::capability;
use cdpipe_model::expr::{Expr as Lowered, MeasureName, Subject, Symbol};
use cdpipe_model::plan::{NoData, Rule, RuleAction, Watch};
use cdpipe_model::value::{Type, Value};
use cdpipe_syntax::Diagnostic;
use cdpipe_syntax::tree::{Expr, ExprKind};

impl<'b> Checker<'b> {
    /// A watch: one that the file names, one that stands here, or the first refined by the second.
    pub(crate) fn watch_of(
        &mut self,
        named: Option<&'b Block<'b>>,
        own: Option<&'b Block<'b>>,
        scope: &Scope<'_>,
    ) -> Option<Watch> {
        let main = own.or(named)?;
        let alone = main.spec.id == Id::StepWatch;
        let scope = &Scope { measures: true, sides: !alone, ..*scope };
        let own_found = own.map(|block| self.found(block, scope));
        let named_found = named.map(|block| self.found(block, scope));
        let pick = |name: &str| -> Option<&Found> {
            own_found
                .as_ref()
                .filter(|found| found.has(name))
                .or(named_found.as_ref().filter(|found| found.has(name)))
        };
        let no_data = match pick("no_data").and_then(|found| found.word("no_data")) {
            Some("rollback") => NoData::Rollback,
            Some("pass") => NoData::Pass,
            _ => NoData::Hold,
        };
        let mut rules = Vec::new();
        for block in named.into_iter().chain(own) {
            for rule in &block.inner.children {
                let action = match rule.spec.id {
                    Id::RollbackWhen => RuleAction::Rollback,
                    Id::FailWhen => RuleAction::Fail,
                    Id::WarnWhen => RuleAction::Warn,
                    _ => continue,
                };
                if let Some(rule) = self.rule(rule, action, scope) {
                    rules.push(rule);
                }
            }
        }
        if !self.planning() {
            let has_rules = named
                .into_iter()
                .chain(own)
                .any(|block| block.inner.children.iter().any(|child| child.stmt.parts.len() > 1));
            if !has_rules && main.stmt.body.as_ref().is_some_and(|body| !body.entries.is_empty()) {
                self.report(
                    Diagnostic::new(
                        &code::NO_RULES,
                        main.head(),
                        "the watch has no rule, so it looks at nothing",
                    )
                    .help(if alone {
                        "add one: `fail when error_rate > 1%`"
                    } else {
                        "add one: `rollback when candidate.error_rate > 5%`"
                    }),
                );
            }
            let measured = rules.iter().any(|rule| {
                let mut named = false;
                rule.when.symbols(&mut |symbol| {
                    named |= matches!(symbol, Symbol::Metric(metric) if matches!(metric.measure, MeasureName::Named { .. }));
                });
                named
            });
            if measured && pick("no_data").is_none() {
                self.report(
                    Diagnostic::new(&code::NO_DATA_POLICY, main.head(), "the watch does not say what missing data means")
                        .label("no `no_data` in it")
                        .help("add `no_data = hold`, `rollback` or `pass`; without it, it holds for 10 minutes and then rolls back"),
                );
            }
            match (pick("hold_for"), no_data) {
                (None, NoData::Hold) if measured && pick("no_data").is_some() => self.report(
                    Diagnostic::new(
                        &code::HOLD_FOR,
                        pick("no_data").and_then(|found| found.span("no_data")).unwrap_or(main.head()),
                        "`hold` has no end of its own",
                    )
                    .help("say how long it may last before it rolls back: `hold_for = 10m`"),
                ),
                (Some(found), NoData::Rollback | NoData::Pass)
                    if pick("no_data").is_some_and(|found| found.word("no_data").is_some()) =>
                {
                    self.report(
                        Diagnostic::new(
                            &code::HOLD_FOR,
                            found.span("hold_for").unwrap_or(main.head()),
                            "`hold_for` has no meaning without `no_data = hold`",
                        )
                        .help("remove it, or say `no_data = hold`"),
                    );
                }
                _ => {}
            }
        }
        let every_open = pick("EVERY").is_some_and(|found| found.is_open("EVERY"));
        let every_ms = pick("EVERY").and_then(|found| found.ms("EVERY")).unwrap_or(30_000);
        let for_ms = pick("FOR").and_then(|found| found.ms("FOR"));
        if let (Some(length), true) = (for_ms, alone)
            && length < every_ms
            && !every_open
        {
            self.report(
                Diagnostic::new(
                    &code::TOO_FEW_SAMPLES,
                    main.arg("FOR").map_or(main.head(), |expr| expr.span),
                    "the watch ends before its first sample",
                )
                .also(main.arg("EVERY").map_or(main.head(), |expr| expr.span), "between two samples")
                .help("let it last for several samples"),
            );
        }
        Some(Watch {
            every_ms,
            for_ms,
            rules,
            after_ms: pick("after").and_then(|found| found.ms("after")).unwrap_or(0),
            no_data,
            hold_for_ms: pick("hold_for").and_then(|found| found.ms("hold_for")).unwrap_or(600_000),
        })
    }

    fn rule(&mut self, block: &'b Block<'b>, action: RuleAction, scope: &Scope<'_>) -> Option<Rule> {
        let condition = block.arg("CONDITION")?;
        let uses = self.requests_uses.len();
        let found = self.found(block, scope);
        self.counted(uses, scope);
        let expr = found.expr("CONDITION");
        if !self.planning() {
            self.judge_rule(block, condition, expr.as_ref(), action);
        }
        Some(Rule {
            action,
            when: expr.unwrap_or(Lowered::Value(Value::Bool(false))),
            for_ms: found.ms("FOR"),
            text: self.slice(condition.span).split_whitespace().collect::<Vec<_>>().join(" "),
            at: self.sources.pos(block.stmt.span),
        })
    }

    /// `candidate.requests`, and metrics of `source traffic`, need a router that counts.
    fn counted(&mut self, from: usize, scope: &Scope<'_>) {
        let uses = self.requests_uses.split_off(from);
        let Around::Of(name) = scope.around else { return };
        let Some(environment) = self.names.get(Names::Environment, name) else { return };
        let router = super::place::traffic_kind(environment);
        if router.is_some_and(|kind| capability::router(kind).counts_requests) {
            return;
        }
        for span in uses {
            let what = router.map_or("no router".to_owned(), |kind| format!("`traffic {}`", kind.as_str()));
            self.report(
                Diagnostic::new(&code::NOT_COUNTED, span, format!("`{name}` has {what}, and nothing counts requests for each release"))
                    .also(environment.name_span(), "this environment")
                    .help("count them with a metric of another source: `requests: number = 'sum(rate(http_requests_total{release=\"$release\"}[1m]))'`"),
            );
        }
    }

    fn judge_rule(
        &mut self,
        block: &Block<'_>,
        condition: &Expr,
        expr: Option<&Lowered>,
        action: RuleAction,
    ) {
        let mut measures = 0;
        if let Some(expr) = expr {
            expr.symbols(&mut |symbol| measures += usize::from(matches!(symbol, Symbol::Metric(_))));
            if let Some(Value::Bool(value)) = expr.known() {
                self.report(
                    Diagnostic::new(&lints::CONSTANT, condition.span, format!("this rule is always {value}"))
                        .help("compare a measurement with a limit: `candidate.error_rate > 5%`"),
                );
                return;
            }
            if measures == 0 {
                self.report(
                    Diagnostic::new(
                        &code::NO_MEASURE,
                        condition.span,
                        "this rule names no measurement, so it says the same at every sample",
                    )
                    .help("compare a measurement with a limit: `candidate.error_rate > 5%`"),
                );
            }
        } else if !mentions_measure(condition, self) {
            self.report(
                Diagnostic::new(
                    &code::NO_MEASURE,
                    condition.span,
                    "this rule names no measurement, so it says the same at every sample",
                )
                .help("compare a measurement with a limit: `candidate.error_rate > 5%`"),
            );
        }
        if action == RuleAction::Rollback
            && let Some(expr) = expr
        {
            let mut bare = None;
            let units = &self.names.metric_units;
            no_floor(expr, &|set, name| units.get(&(set, name)) == Some(&Type::Duration), &mut bare);
            if let Some(metric) = bare {
                self.report(
                    Diagnostic::new(
                        &code::NO_FLOOR,
                        condition.span,
                        format!("if `{metric}` is 0, any value at all of the candidate fires this rule"),
                    )
                    .also(block.stmt.keyword.span, "and rolls back")
                    .help("give it a floor: `> max(2 * stable.error_rate, 1%)`"),
                );
            }
        }
    }
}

/// Whether a condition that depends on inputs names a measurement.
fn mentions_measure(expr: &Expr, checker: &Checker<'_>) -> bool {
    match &expr.kind {
        ExprKind::Name(name) => {
            matches!(name.text.as_str(), "ready" | "failed")
                || checker.names.metric_blocks.contains_key(name.text.as_str())
        }
        // A field is `candidate.x`, or something of the pipeline that is no measurement; the root decides.
        ExprKind::Field(base, field) => {
            matches!(&base.kind, ExprKind::Name(root) if matches!(root.text.as_str(), "candidate" | "stable" | "baseline"))
                || checker.names.metric_blocks.contains_key(field.text.as_str())
                || matches!(&base.kind, ExprKind::Field(..)) && mentions_measure(base, checker)
        }
        ExprKind::Index(a, b) => mentions_measure(a, checker) || mentions_measure(b, checker),
        ExprKind::Binary(_, _, a, b) => mentions_measure(a, checker) || mentions_measure(b, checker),
        ExprKind::Unary(_, inner) | ExprKind::Paren(inner) => mentions_measure(inner, checker),
        ExprKind::If(a, b, c) => [a, b, c].into_iter().any(|each| mentions_measure(each, checker)),
        ExprKind::Call(_, args) => args.iter().any(|arg| mentions_measure(&arg.value, checker)),
        ExprKind::List(items) => items.iter().any(|item| mentions_measure(item, checker)),
        ExprKind::Error => true,
        ExprKind::Map(_) | ExprKind::Literal(_) | ExprKind::Str(_) => false,
    }
}

/// Finds `candidate.x > k * stable.x` without anything that keeps the limit above 0. A duration is never 0 for a release that
/// answers, so only rates and counts are looked at.
fn no_floor(expr: &Lowered, slow: &dyn Fn(&str, &str) -> bool, bare: &mut Option<String>) {
    use cdpipe_model::expr::Op;
    match expr {
        Lowered::Binary(Op::And | Op::Or, a, b) => {
            no_floor(a, slow, bare);
            no_floor(b, slow, bare);
        }
        Lowered::Not(inner) => no_floor(inner, slow, bare),
        Lowered::Binary(op @ (Op::Gt | Op::Ge | Op::Lt | Op::Le), a, b) => {
            let (large, limit) = if matches!(op, Op::Gt | Op::Ge) { (a, b) } else { (b, a) };
            let mut candidate = false;
            large.symbols(&mut |symbol| {
                candidate |= matches!(symbol, Symbol::Metric(metric) if metric.subject == Subject::Candidate);
            });
            if candidate && let Some(found) = scaled_side(limit, slow) {
                bare.get_or_insert(found);
            }
        }
        _ => {}
    }
}

/// The measurement that the limit is proportional to, if it is nothing else.
fn scaled_side(limit: &Lowered, slow: &dyn Fn(&str, &str) -> bool) -> Option<String> {
    use cdpipe_model::expr::Op;
    match limit {
        Lowered::Symbol(Symbol::Metric(metric))
            if matches!(metric.subject, Subject::Stable | Subject::Baseline) =>
        {
            let slow = matches!(&metric.measure, MeasureName::Named { set, name } if slow(set, name));
            (!slow).then(|| metric.to_string())
        }
        Lowered::Binary(Op::Mul | Op::Div, a, b) => scaled_side(a, slow).or_else(|| scaled_side(b, slow)),
        _ => None,
    }
}
