//! What follows from the state: one record at a time, until nothing more follows. Each decision is applied before the next is
//! taken, so a decision never has to foresee another.

use crate::state::State;
use crate::symbols::Scope;
use cdpipe_model::action::{Action, ActionKind, StepRef};
use cdpipe_model::expr::Expr;
use cdpipe_model::plan::{Approval, Mode, Plan};
use cdpipe_model::record::{Record, RunHeader};
use cdpipe_model::{ActionId, Fault, Outcome, Value};

/// Reads the state, answers what follows.
pub(crate) struct Decide<'a> {
    pub(crate) state: &'a State,
    pub(crate) plan: &'a Plan,
    pub(crate) header: &'a RunHeader,
}

impl Decide<'_> {
    pub(crate) fn intent(&self, step: &StepRef, kind: ActionKind, deadline_ms: u64) -> Record {
        let id = ActionId(self.state.last_action + 1);
        Record::Intent { action: Action { id, step: step.clone(), deadline_ms, kind } }
    }

    pub(crate) fn step_finished(&self, step: &StepRef, outcome: Outcome, reason: Option<Fault>) -> Record {
        Record::StepFinished { step: step.clone(), outcome, reason }
    }

    /// What expressions see at this step.
    pub(crate) fn scope(&self, step: &StepRef) -> Scope<'_> {
        use cdpipe_model::action::Block;
        let work = self.state.work(step.node);
        let deploy = work.and_then(|work| match step.block {
            Block::Verify(index) | Block::Validate(index) => work.deploys.get(&index),
            Block::Main => work.deploys.get(&step.index),
            // A hook speaks of the stage's last deploy.
            Block::Hook(_) | Block::Undo(_) => work.deploys.values().next_back(),
        });
        let reason = match step.node {
            Some(_) => work.and_then(|work| match (&work.undo, &work.ended) {
                (Some(undo), _) => Some(undo.reason.message.clone()),
                (None, Some(Err((_, fault)))) => Some(fault.message.clone()),
                _ => None,
            }),
            None => crate::schedule::run_outcome(self.state).1.map(|fault| fault.message),
        };
        Scope { state: self.state, plan: self.plan, run: &self.header.run, node: step.node, deploy, reason }
    }

    /// The value of an expression at this step.
    ///
    /// # Errors
    /// `no-value` if something in it has none.
    pub(crate) fn value(&self, step: &StepRef, expr: &Expr) -> Result<Value, Fault> {
        if let Some(value) = expr.known() {
            return Ok(value.clone());
        }
        let scope = self.scope(step);
        expr.eval(&|symbol| scope.lookup(symbol))
            .map_err(|error| Fault::new("no-value", format!("`{expr}` cannot be computed: {error}")))
    }

    /// `value`, as plain text.
    ///
    /// # Errors
    /// As `value`, and `bad-value` if it holds a secret.
    pub(crate) fn text(&self, step: &StepRef, expr: &Expr) -> Result<String, Fault> {
        match self.value(step, expr)? {
            Value::Secret(_) => {
                Err(Fault::new("bad-value", format!("`{expr}` holds a secret, which cannot stand here")))
            }
            value => Ok(value.to_string()),
        }
    }

    /// Whether a person has to give it.
    pub(crate) fn needs_person(&self, approval: &Approval) -> bool {
        self.plan.mode == Mode::Delivery || approval.always
    }
}
