//! Strategies: settings, steps and routes, and whether target and router can do them.

use crate::checker::Checker;
use crate::codes::{names as name_code, strategies as code};
use crate::schema::Id;
use crate::scope::Scope;
use crate::structure::Block;
use crate::values::{Found, as_text};
use cdpipe_model::plan::Approval;
use cdpipe_model::strategy::{
    BlueGreen, Canary, CanaryStep, Count, FailureAction, Hold, OldRelease, Order, Rolling, RollingBack,
    RouteMatch, Sticky, Strategy, StrategyKind,
};
use cdpipe_model::value::Value;
use cdpipe_syntax::tree::{Expr, ExprKind, StrLit};
use cdpipe_syntax::{Diagnostic, Span};

impl<'b> Checker<'b> {
    /// The strategy that stands in the deploy.
    pub(crate) fn own_strategy(&mut self, block: &'b Block<'b>) -> Option<&'b Block<'b>> {
        let mut all =
            block.inner.children.iter().filter(|child| {
                matches!(child.spec.id, Id::Rolling | Id::BlueGreen | Id::Canary | Id::Recreate)
            });
        let first = all.next();
        if let (Some(first), Some(second)) = (first, all.next())
            && first.spec.id != second.spec.id
        {
            self.report(
                Diagnostic::new(
                    &name_code::EXCLUSIVE,
                    second.head(),
                    format!(
                        "a deploy has one strategy, and this has `{}` and `{}`",
                        first.spec.keyword, second.spec.keyword
                    ),
                )
                .also(first.head(), "the other one")
                .help("keep one of them"),
            );
        }
        first
    }

    /// The strategy that the file names, refined by the one that stands here.
    pub(crate) fn strategy_of(
        &mut self,
        named: Option<&'b Block<'b>>,
        own: Option<&'b Block<'b>>,
        scope: &Scope<'_>,
    ) -> Option<Strategy> {
        let kind_of = |block: &Block<'_>| match block.spec.id {
            Id::Rolling => Some(StrategyKind::Rolling),
            Id::BlueGreen => Some(StrategyKind::BlueGreen),
            Id::Canary => Some(StrategyKind::Canary),
            Id::Recreate => Some(StrategyKind::Recreate),
            _ => StrategyKind::ALL.into_iter().find(|kind| kind.as_str() == block.word()),
        };
        if let (Some(named), Some(own)) = (named, own)
            && let (Some(a), Some(b)) = (kind_of(named), kind_of(own))
            && a != b
        {
            self.report(
                Diagnostic::new(
                    &code::WRONG_STRATEGY,
                    own.head(),
                    format!(
                        "`{}` is a {}, and here stand settings of a {}",
                        named.name_text(),
                        a.as_str(),
                        b.as_str()
                    ),
                )
                .also(named.name_span(), format!("a {}", a.as_str()))
                .help(format!("refine it with `{} {{ … }}`, or leave one of the two out", a.as_str())),
            );
            return None;
        }
        let main = own.or(named)?;
        let named_found = named.map(|block| self.found(block, scope));
        let own_found = own.map(|block| self.found(block, scope));
        let pick = |name: &str| -> Option<&Found> {
            own_found
                .as_ref()
                .filter(|found| found.has(name))
                .or(named_found.as_ref().filter(|found| found.has(name)))
        };
        Some(match kind_of(main)? {
            StrategyKind::Rolling => {
                let back =
                    [own, named].into_iter().flatten().find_map(|block| block.child(Id::RollbackConfig));
                let back = back.map(|block| self.found(block, scope));
                self.rolling(main, &pick, back.as_ref())
            }
            StrategyKind::BlueGreen => Strategy::BlueGreen(BlueGreen {
                keep_old_ms: pick("keep_old").and_then(|found| found.ms("keep_old")).unwrap_or(30_000),
                old: match pick("old").and_then(|found| found.word("old")) {
                    Some("remove") => OldRelease::Remove,
                    Some("scale_to_zero") => OldRelease::ScaleToZero,
                    _ => OldRelease::Stop,
                },
                preview: pick("preview").and_then(|found| found.text("preview")),
            }),
            StrategyKind::Canary => {
                let instances = pick("instances").and_then(|found| found.count("instances"));
                let sticky = match pick("sticky").and_then(|found| found.word("sticky")) {
                    Some("cookie") => Sticky::Cookie,
                    Some("client_address") => Sticky::ClientAddress,
                    _ => Sticky::None,
                };
                self.canary(named, own, main, instances, sticky, scope)
            }
            StrategyKind::Recreate => Strategy::Recreate,
        })
    }

    pub(crate) fn rolling<'f>(
        &mut self,
        main: &Block<'_>,
        pick: &dyn Fn(&str) -> Option<&'f Found>,
        back: Option<&Found>,
    ) -> Strategy {
        let defaults = Rolling::default();
        let count = |name: &str| pick(name).and_then(|found| found.count(name));
        let ms = |name: &str| pick(name).and_then(|found| found.ms(name));
        let rolling = Rolling {
            batch: count("batch").unwrap_or(defaults.batch),
            pause_ms: ms("pause").unwrap_or(defaults.pause_ms),
            monitor_ms: ms("monitor").unwrap_or(defaults.monitor_ms),
            order: match pick("order").and_then(|found| found.word("order")) {
                Some("stop_first") => Order::StopFirst,
                _ => Order::StartFirst,
            },
            max_failures_percent: pick("max_failures")
                .and_then(|found| found.percent("max_failures"))
                .unwrap_or(0.0),
            max_unavailable: count("max_unavailable"),
            max_surge: count("max_surge"),
            failure_action: pick("failure_action").and_then(|found| action_of(found.word("failure_action"))),
            back: None,
        };
        let rolling = Rolling { back: back.map(|found| going_back(found, &rolling)), ..rolling };
        let zero = |count: Option<Count>| {
            matches!(count, Some(Count::Instances(0)))
                || matches!(count, Some(Count::Percent(share)) if share == 0.0)
        };
        if zero(rolling.max_surge) && zero(rolling.max_unavailable) {
            let span = pick("max_surge").and_then(|found| found.span("max_surge")).unwrap_or(main.head());
            let mut diag = Diagnostic::new(
                &code::STUCK_ROLLING,
                span,
                "no instance may be added and none may be missing, so none can be replaced",
            )
            .help("allow one of them: `max_surge = 1`");
            if let Some(other) = pick("max_unavailable").and_then(|found| found.span("max_unavailable")) {
                diag = diag.also(other, "and this is 0 too");
            }
            self.report(diag);
        }
        if pick("batch").is_some() && zero(count("batch")) {
            let span = pick("batch").and_then(|found| found.span("batch")).unwrap_or(main.head());
            self.report(
                Diagnostic::new(&code::STUCK_ROLLING, span, "a batch of no instance replaces none")
                    .help("write `batch = 1` or more"),
            );
        }
        Strategy::Rolling(rolling)
    }

    pub(crate) fn canary(
        &mut self,
        named: Option<&'b Block<'b>>,
        own: Option<&'b Block<'b>>,
        main: &'b Block<'b>,
        instances: Option<Count>,
        sticky: Sticky,
        scope: &Scope<'_>,
    ) -> Strategy {
        // Steps and routes of the one that stands here replace those that were named.
        let from = |id: Id| {
            own.filter(|block| block.child(id).is_some()).or(named.filter(|block| block.child(id).is_some()))
        };
        let mut steps = Vec::new();
        let mut last: Option<(f64, Span)> = None;
        if let Some(block) = from(Id::CanaryStep) {
            for step in block.children(Id::CanaryStep) {
                let found = self.found(step, scope);
                let span = step.arg("SHARE").map_or(step.head(), |expr| expr.span);
                if let Some(share) = found.percent("SHARE") {
                    if let Some((before, before_span)) = last
                        && share <= before
                    {
                        self.report(
                            Diagnostic::new(
                                &code::STEPS_NOT_RISING,
                                span,
                                format!(
                                    "this step gives the candidate {share}%, and the one before it {before}%"
                                ),
                            )
                            .also(before_span, "the step before")
                            .help("let the shares rise from step to step"),
                        );
                    }
                    last = Some((share, span));
                }
                let hold = if step.word() == "approved" {
                    Hold::UntilApproved(self.approval(step, &found))
                } else {
                    if !found.has("FOR") && !self.planning() {
                        self.report(
                            Diagnostic::new(&code::HOLDS_NOTHING, step.head(), "this step ends as soon as it begins")
                                .help("say how long it holds (`for 5m`) or who ends it (`until approved { by = [\"ops\"] }`)"),
                        );
                    }
                    Hold::For { ms: found.ms("FOR").unwrap_or(0) }
                };
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a percentage was checked to be in range"
                )]
                let weight_bp =
                    (found.percent("SHARE").unwrap_or(0.0) * 100.0).round().clamp(0.0, 10_000.0) as u32;
                steps.push(CanaryStep { weight_bp, hold });
            }
        } else if main.stmt.body.is_some() {
            self.report(
                Diagnostic::new(
                    &code::NO_STEPS,
                    main.head(),
                    "the canary has no step, so nobody gets the candidate before everybody",
                )
                .help("add steps: `step 10% for 5m`"),
            );
        }
        let mut rules = Vec::new();
        if let Some(block) = from(Id::CanaryRoute) {
            for route in block.children(Id::CanaryRoute) {
                if let Some(rule) = route.arg("MATCH").and_then(|expr| self.route_match(expr, scope)) {
                    rules.push(rule);
                }
            }
        }
        let mut env = named.map(|block| self.open_map(block, Id::Env, scope)).unwrap_or_default();
        if let Some(block) = own {
            env.extend(self.open_map(block, Id::Env, scope));
        }
        Strategy::Canary(Canary { instances, env, rules, steps, sticky })
    }

    /// `header("name", "value")`, `cookie("name", "value")`.
    pub(crate) fn route_match(&mut self, expr: &Expr, scope: &Scope<'_>) -> Option<RouteMatch> {
        let wrong = |checker: &mut Self| {
            if !matches!(expr.kind, ExprKind::Error) {
                checker.report(
                    Diagnostic::new(
                        &name_code::HEAD,
                        expr.span,
                        "expected `header(\"name\", \"value\")` or `cookie(\"name\", \"value\")`",
                    )
                    .help("write `route header(\"canary\", \"true\")`"),
                );
            }
            None
        };
        let ExprKind::Call(name, args) = &expr.kind else { return wrong(self) };
        let [first, second] = args.as_slice() else { return wrong(self) };
        let mut texts = Vec::new();
        for arg in [first, second] {
            let low = self.expr(&arg.value, scope);
            match (&low.ty, low.known()) {
                (Some(cdpipe_model::Type::Secret), _) => {
                    self.secret_leak(arg.value.span, "a route");
                    return None;
                }
                (None, _) => return None,
                (_, Some(Value::Str(text))) => texts.push(text.clone()),
                (Some(cdpipe_model::Type::Str | cdpipe_model::Type::Version), None) if low.expr.is_none() => {
                    texts.push(String::new())
                }
                _ => return wrong(self),
            }
        }
        let value = texts.pop()?;
        let text = texts.pop()?;
        if as_text(&first.value)
            .and_then(StrLit::plain)
            .is_some_and(|name| name.is_empty() || name.contains(char::is_whitespace))
        {
            self.report(
                Diagnostic::new(
                    &crate::codes::values::BAD_FORM,
                    first.value.span,
                    "this is no name of a header or a cookie",
                )
                .help("write a name without blanks"),
            );
            return None;
        }
        match name.text.as_str() {
            "header" => Some(RouteMatch::Header { name: text.to_lowercase(), value }),
            "cookie" => Some(RouteMatch::Cookie { name: text, value }),
            _ => wrong(self),
        }
    }

    pub(crate) fn approval(&mut self, block: &Block<'_>, found: &Found) -> Approval {
        let by = found.texts("by").unwrap_or_default();
        if let (Some(setting), Some(Value::List(items))) = (block.setting("by"), found.value("by")) {
            let items = items.clone();
            self.distinct(&items, &setting.value);
        }
        Approval {
            by,
            quorum: found.count_u32("quorum").unwrap_or(1),
            expires_ms: found.ms("expires"),
            always: found.bool("always").unwrap_or(false),
        }
    }
}

fn action_of(word: Option<&str>) -> Option<FailureAction> {
    match word? {
        "rollback" => Some(FailureAction::Rollback),
        "pause" => Some(FailureAction::Pause),
        _ => Some(FailureAction::Continue),
    }
}

/// The way back; what it does not say is as forward, but for pauses.
fn going_back(found: &Found, forward: &Rolling) -> RollingBack {
    RollingBack {
        batch: found.count("batch").unwrap_or(forward.batch),
        pause_ms: found.ms("pause").unwrap_or(0),
        monitor_ms: found.ms("monitor").unwrap_or(forward.monitor_ms),
        order: match found.word("order") {
            Some("stop_first") => Order::StopFirst,
            Some(_) => Order::StartFirst,
            None => forward.order,
        },
        max_failures_percent: found.percent("max_failures").unwrap_or(forward.max_failures_percent),
        failure_action: action_of(found.word("failure_action")).unwrap_or(FailureAction::Pause),
    }
}

/// How long the strategy is told to wait at least, in milliseconds.
pub(crate) fn soak(strategy: &Strategy) -> u64 {
    match strategy {
        Strategy::Rolling(rolling) => rolling.pause_ms.saturating_add(rolling.monitor_ms),
        Strategy::BlueGreen(settings) => settings.keep_old_ms,
        Strategy::Canary(canary) => canary
            .steps
            .iter()
            .map(|step| match step.hold {
                Hold::For { ms } => ms,
                Hold::UntilApproved(_) => 0,
            })
            .fold(0, u64::saturating_add),
        Strategy::Recreate => 0,
    }
}
