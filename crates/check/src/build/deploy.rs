//! Deploys and strategies.

use super::strategies::soak;
use crate::checker::Checker;
use crate::codes::{
    graph as graph_code, metrics as metric_code, names as name_code, strategies as code, types as type_code,
};
use crate::schema::{Id, Names};
use crate::scope::{Around, Scope, Sets};
use crate::structure::Block;
use cdpipe_model::id::EnvName;
use cdpipe_model::plan::{Deploy, Retry, Step, StepKind};
use cdpipe_model::strategy::{Hold, Rolling, Strategy};
use cdpipe_syntax::{Diagnostic, Severity};

/// How long a deploy may take beyond what it is told to wait, if it does not say otherwise.
const DEPLOY_TIMEOUT_MS: u64 = 30 * 60_000;

impl<'b> Checker<'b> {
    pub(crate) fn deploy(&mut self, block: &'b Block<'b>, scope: &Scope<'_>) -> Option<Step> {
        let sets = self.sets(block, scope);
        let sets_id = match &sets {
            Some(_) => {
                self.sets_ids += 1;
                self.sets_ids
            }
            None => scope.sets_id,
        };
        let outer = Scope { sets: sets.as_ref().or(scope.sets), sets_id, ..*scope };
        let found = self.found(block, &outer);
        let service = found.name("SERVICE").and_then(|name| self.names.get(Names::Service, name));
        let environment = found.name("ENVIRONMENT").and_then(|name| self.names.get(Names::Environment, name));
        let around = environment.map_or(Around::Any, |environment| Around::Of(environment.name_text()));
        let inner = Scope { around, candidate: true, ..outer };
        if let (Some(service), Some(environment), Some(node)) = (service, environment, scope.node) {
            self.deploys.push((
                node,
                service.name_text().to_owned(),
                environment.name_text().to_owned(),
                block.head(),
            ));
            self.fits_target(service, environment, block.head());
            self.unread(service, environment, block.head());
            if let (Some(route), None) = (service.child(Id::ServiceRoute), environment.child(Id::Traffic)) {
                self.report(
                    Diagnostic::new(
                        &code::NO_ROUTER,
                        block.head(),
                        format!(
                            "`{}` has a route, and `{}` has nothing that steers traffic",
                            service.name_text(),
                            environment.name_text()
                        ),
                    )
                    .also(route.head(), "the route")
                    .also(environment.name_span(), "no `traffic` in it")
                    .help("give the environment a router: `traffic proxy`"),
                );
            }
        }
        let built = service.map(|service| self.service(service, environment, &inner));
        let named = found.name("strategy").and_then(|name| self.names.get(Names::Strategy, name));
        let own = self.own_strategy(block);
        let strategy = self.strategy_of(named, own, &inner).unwrap_or(Strategy::Rolling(Rolling::default()));
        let named_watch = found.name("watch").and_then(|name| self.names.get(Names::Watch, name));
        let watch = self.watch_of(named_watch, block.child(Id::Watch), &inner);
        // Rules may not be added up between calls of `steps`, so both bodies get the same scope.
        let defaults = self.defaults;
        let verify = block
            .child(Id::Verify)
            .map(|verify| self.steps(&verify.inner.children, &inner, defaults))
            .unwrap_or_default();
        let validate = block
            .child(Id::Validate)
            .map(|validate| self.steps(&validate.inner.children, &inner, defaults))
            .unwrap_or_default();
        if let Some(environment) = environment {
            self.supported(&strategy, environment, named, own, block);
        }
        if let (Some(service), Some(built)) = (service, &built) {
            let place = own.or(named).unwrap_or(block).head();
            self.fits_strategy(service, built, &strategy, place);
        }
        let timed = [named_watch, block.child(Id::Watch), named, own];
        let timed = timed.into_iter().flatten().all(|block| self.times_known(block, &inner));
        let after_ms = watch.as_ref().map_or(0, |watch| watch.after_ms);
        let soak_ms = soak(&strategy).saturating_add(after_ms);
        if let (Strategy::BlueGreen(settings), Some(watch)) = (&strategy, &watch)
            && settings.keep_old_ms < watch.after_ms
            && timed
        {
            self.report(
                Diagnostic::new(
                    &code::KEPT_TOO_SHORT,
                    own.and_then(|own| own.setting("keep_old")).map_or(block.head(), |setting| setting.span),
                    format!(
                        "the old release is kept for {}, and the watch goes on for {}",
                        duration(settings.keep_old_ms),
                        duration(watch.after_ms)
                    ),
                )
                .help(format!("set `keep_old = {}` or more", duration(watch.after_ms))),
            );
        }
        let waits = matches!(&strategy, Strategy::Canary(canary) if canary.steps.iter().any(|step| matches!(step.hold, Hold::UntilApproved(_))));
        if let (Some(watch), Strategy::Canary(_), false) = (&watch, &strategy, waits)
            && watch.every_ms > soak_ms
            && !self.planning()
            && soak_ms > 0
            && timed
        {
            let span = block.child(Id::Watch).map_or(block.head(), |watch| watch.head());
            let mut diag = Diagnostic::new(
                &metric_code::TOO_FEW_SAMPLES,
                span,
                format!(
                    "the watch looks every {}, and all it watches lasts {}",
                    duration(watch.every_ms),
                    duration(soak_ms)
                ),
            )
            .help("look more often, or let the steps last longer");
            diag.severity = Severity::Warning;
            self.report(diag);
        }
        if let Some(timeout) = found.ms("timeout")
            && timeout < soak_ms
            && timed
        {
            self.report(
                Diagnostic::new(
                    &graph_code::SHORT_TIMEOUT,
                    found.span("timeout").unwrap_or(block.head()),
                    format!(
                        "the deploy may take {}, and is told to wait for {}",
                        duration(timeout),
                        duration(soak_ms)
                    ),
                )
                .help(format!("give it more than {}, or leave `timeout` out", duration(soak_ms))),
            );
        }
        let mut default_timeout = DEPLOY_TIMEOUT_MS.saturating_add(soak_ms);
        if let Strategy::Canary(canary) = &strategy {
            for step in &canary.steps {
                if let Hold::UntilApproved(approval) = &step.hold {
                    default_timeout =
                        default_timeout.saturating_add(approval.expires_ms.unwrap_or(7 * 86_400_000));
                }
            }
        }
        let timeout_ms = found.ms("timeout").unwrap_or(default_timeout);
        let service_name = found.name("SERVICE").unwrap_or_default().to_owned();
        let environment_name = found.name("ENVIRONMENT").unwrap_or_default().to_owned();
        let rollback_timeout_ms = found.ms("rollback_timeout").unwrap_or(900_000);
        let deploy = Deploy {
            service: built?,
            environment: EnvName::from(environment_name.as_str()),
            strategy,
            verify,
            watch,
            validate,
            timeout_ms,
            rollback_timeout_ms,
        };
        Some(self.as_step(
            block,
            format!("deploy {service_name} to {environment_name}"),
            timeout_ms,
            Retry::default(),
            StepKind::Deploy(Box::new(deploy)),
        ))
    }

    /// Parameters that are set here, with the values; `None` if there are none.
    /// Whether every duration that this block and what stands in it give is known: one that a parameter will bring is not held
    /// against the others before it is there.
    fn times_known(&mut self, block: &'b Block<'b>, scope: &Scope<'_>) -> bool {
        let steps: Vec<_> = block.children(Id::CanaryStep).collect();
        self.found(block, scope).all_known()
            && steps.into_iter().all(|step| self.found(step, scope).all_known())
    }

    pub(crate) fn sets(&mut self, block: &'b Block<'b>, scope: &Scope<'_>) -> Option<Sets> {
        let mut sets: Option<Sets> = None;
        for set in block.children(Id::Set) {
            let found = self.found(set, scope);
            let Some(value) = set.value else { continue };
            let low = self.expr(value, scope);
            let Some(name) = found.name("PARAM").map(str::to_owned) else { continue };
            let Some(ty) = self.names.param_types.get(name.as_str()).cloned() else { continue };
            let Some(got) = &low.ty else { continue };
            if !crate::expr::fits(got, &ty) {
                self.report(
                    Diagnostic::new(
                        &type_code::WRONG_TYPE,
                        value.span,
                        format!(
                            "the parameter `{name}` is {}, found {}",
                            crate::values::a_type(&ty),
                            crate::values::a_type(got)
                        ),
                    )
                    .help("give it a value of its type"),
                );
                continue;
            }
            let known = low.known().map(|value| super::params::convert(value.clone(), &ty));
            if let Some(lowered) = &low.expr
                && lowered.known().is_none()
            {
                self.report(
                    Diagnostic::new(
                        &type_code::TOO_LATE,
                        value.span,
                        "what a parameter is set to must be known before anything runs",
                    )
                    .help("use a value or another parameter"),
                );
                continue;
            }
            if let (Some(value), Some(declaration)) = (&known, self.names.get(Names::Param, &name)) {
                self.constraints(
                    declaration,
                    value,
                    set.value.map_or(set.head(), |value| value.span),
                    "the value",
                );
            }
            let sets = sets.get_or_insert_with(|| scope.sets.cloned().unwrap_or_default());
            if let Some(first) = block
                .children(Id::Set)
                .find(|other| other.arg_name("PARAM").is_some_and(|other| other.text == name))
                && !std::ptr::eq(first, set)
            {
                self.report(
                    Diagnostic::new(
                        &name_code::DUPLICATE_SETTING,
                        set.head(),
                        format!("`{name}` is set twice"),
                    )
                    .label("again here")
                    .also(first.head(), "first here")
                    .help("keep one of them"),
                );
            }
            sets.insert(name, known);
        }
        sets
    }
}

/// As the language writes it.
#[allow(clippy::cast_precision_loss, reason = "durations are at most a year")]
pub(crate) fn duration(ms: u64) -> String {
    cdpipe_model::value::format_duration_ms(ms as f64)
}
