//! Second pass: meaning. Each statement is looked at once with its scope; what it means is built as a piece of the plan. Without
//! inputs the same walk checks everything that does not depend on them, and what it built is thrown away.

mod deploy;
mod hooks;
mod metrics;
mod nodes;
mod params;
mod place;
mod service;
mod steps;
mod strategies;
mod supported;
mod tests;
mod watch;

pub(crate) use nodes::Need;
pub(crate) use params::resolve_inputs;
pub(crate) use place::protected_by_name;

use crate::checker::Checker;
use crate::schema::{Id, Names};
use crate::scope::{Place, Scope};
use crate::structure::Block;
use crate::testing::Test;
use cdpipe_model::expr::Expr as Lowered;
use cdpipe_model::plan::{Concurrency, Mode, Plan, Retry};

/// What holds for every step that does not say otherwise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults {
    pub(crate) timeout_ms: u64,
    /// Of messages and flags.
    pub(crate) message_ms: u64,
    pub(crate) retry: Retry,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { timeout_ms: 600_000, message_ms: 30_000, retry: Retry::default() }
    }
}

/// What came out of the walk.
pub(crate) struct Built {
    pub(crate) plan: Plan,
    pub(crate) tests: Vec<Test>,
    /// Needs of each declared stage and gate, before matrices are expanded.
    pub(crate) needs: Vec<Vec<Need>>,
    /// The mode, where it is known.
    pub(crate) mode: Option<Mode>,
}

/// Text that stands where a value is not known yet; it never gets into a plan.
pub(crate) fn or_blank(expr: Option<Lowered>) -> Lowered {
    expr.unwrap_or_else(|| Lowered::text(""))
}

impl<'b> Checker<'b> {
    /// Walks through everything.
    pub(crate) fn build(&mut self, tops: &'b [Block<'b>]) -> Built {
        let file = Scope::file();
        let mut defaults = Defaults::default();
        let mut plan = Plan {
            name: self.pipeline_name.clone(),
            mode: Mode::Delivery,
            max_parallel: 8,
            concurrency: Concurrency::Queue,
            sources: self.sources.files(),
            inputs: std::collections::BTreeMap::new(),
            secrets: std::collections::BTreeMap::new(),
            environments: std::collections::BTreeMap::new(),
            metrics: std::collections::BTreeMap::new(),
            flags: std::collections::BTreeMap::new(),
            nodes: Vec::new(),
            hooks: Vec::new(),
            hash: String::new(),
        };
        let mut mode = Some(Mode::Delivery);
        if let Some(block) = tops.iter().find(|block| block.spec.id == Id::Pipeline) {
            let found = self.found(block, &file);
            if found.has("mode") {
                mode = match found.word("mode") {
                    Some("deployment") => Some(Mode::Deployment),
                    Some(_) => Some(Mode::Delivery),
                    None => None,
                };
            }
            plan.mode = mode.unwrap_or(Mode::Delivery);
            plan.max_parallel = found.count_u32("max_parallel").unwrap_or(8);
            plan.concurrency = match found.word("concurrency") {
                Some("cancel_previous") => Concurrency::CancelPrevious,
                Some("fail") => Concurrency::Fail,
                _ => Concurrency::Queue,
            };
            if let Some(block) = block.child(Id::Defaults) {
                let found = self.found(block, &file);
                defaults.timeout_ms = found.ms("timeout").unwrap_or(defaults.timeout_ms);
                defaults.message_ms = found.ms("timeout").unwrap_or(defaults.message_ms);
                defaults.retry.more = found.count_u32("retry").unwrap_or(0);
                defaults.retry.delay_ms = found.ms("retry_delay").unwrap_or(defaults.retry.delay_ms);
            }
        }
        self.defaults = defaults;
        if let Some(inputs) = self.inputs {
            plan.inputs = inputs.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        }
        for block in self.names.blocks(Names::Secret) {
            let source = self.secret(block);
            plan.secrets.insert(block.name_text().to_owned(), source);
        }
        self.expand();
        for block in self.names.blocks(Names::Environment) {
            let environment = self.environment(block);
            plan.environments.insert(environment.name.clone(), environment);
        }
        for block in self.names.blocks(Names::Metrics) {
            if let Some(set) = self.metrics(block) {
                plan.metrics.insert(set.name.clone(), set);
            }
        }
        for block in self.names.blocks(Names::Flags) {
            if let Some(provider) = self.flags(block) {
                plan.flags.insert(block.name_text().to_owned(), provider);
            }
        }
        let (nodes, needs) = self.nodes(defaults);
        plan.nodes = nodes;
        for block in tops.iter().filter(|block| block.spec.id == Id::On) {
            let scope = Scope { place: Place::FileHook, ..file };
            let hook = self.hook(block, &scope, defaults);
            plan.hooks.extend(hook);
        }
        if !self.planning() {
            self.leftovers();
        }
        let tests =
            tops.iter().filter(|block| block.spec.id == Id::Test).map(|block| self.test(block)).collect();
        Built { plan, tests, needs, mode }
    }

    /// Services, strategies and watches that nothing deploys are checked all the same.
    fn leftovers(&mut self) {
        for block in self.names.blocks(Names::Service) {
            let name = block.name_text();
            if !self.deploys.iter().any(|(_, service, _, _)| service == name) {
                self.service(block, None, &Scope { around: crate::scope::Around::Any, ..Scope::file() });
            }
        }
        let scope = Scope {
            place: Place::Step,
            around: crate::scope::Around::Any,
            candidate: true,
            measures: true,
            sides: true,
            ..Scope::file()
        };
        for block in self.names.blocks(Names::Strategy) {
            self.strategy_of(Some(block), None, &scope);
        }
        for block in self.names.blocks(Names::Watch) {
            self.watch_of(Some(block), None, &scope);
        }
    }
}
