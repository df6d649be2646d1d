//! What a symbol of an expression is at this moment.

use crate::state::{DeployState, State};
use cdpipe_model::expr::{DeployFact, Subject, Symbol};
use cdpipe_model::observe::Role;
use cdpipe_model::plan::Plan;
use cdpipe_model::{NodeId, RunId, Value};

/// Where an expression stands.
pub(crate) struct Scope<'a> {
    pub(crate) state: &'a State,
    pub(crate) plan: &'a Plan,
    pub(crate) run: &'a RunId,
    pub(crate) node: Option<NodeId>,
    /// The deploy around it.
    pub(crate) deploy: Option<&'a DeployState>,
    /// Why a hook runs.
    pub(crate) reason: Option<String>,
}

impl Scope<'_> {
    /// The value of a symbol; `None` if it has none (yet).
    pub(crate) fn lookup(&self, symbol: &Symbol) -> Option<Value> {
        match symbol {
            Symbol::Output { node, name, .. } => self.state.node(*node)?.outputs.get(name).cloned(),
            Symbol::NodeOutcome { node, .. } => {
                self.state.node(*node)?.outcome.map(|outcome| Value::Str(outcome.as_str().to_owned()))
            }
            Symbol::StageName => {
                let id = self.node.or_else(|| self.state.worst.as_ref().map(|(_, id)| *id))?;
                Some(Value::Str(self.plan.node(id)?.name.clone()))
            }
            Symbol::PipelineOutcome => {
                Some(Value::Str(crate::schedule::run_outcome(self.state).0.as_str().to_owned()))
            }
            Symbol::Reason => Some(Value::Str(self.reason.clone().unwrap_or_default())),
            Symbol::RunId => Some(Value::Str(self.run.0.clone())),
            Symbol::Deploy(subject, fact) => self.deploy_fact(*subject, *fact),
            // Measurements are bound by whoever has the samples.
            Symbol::Metric(_) => None,
        }
    }

    fn deploy_fact(&self, subject: Subject, fact: DeployFact) -> Option<Value> {
        let deploy = self.deploy?;
        let side = match subject {
            Subject::Candidate => Role::Candidate,
            Subject::Stable => Role::Stable,
            Subject::Baseline | Subject::Service => return None,
        };
        let spec = match (side, &deploy.program) {
            (Role::Candidate, None) => deploy.spec.as_ref()?,
            (Role::Candidate, Some(program)) => &program.candidate,
            (Role::Stable, program) => program.as_ref()?.stable.as_ref()?,
        };
        let host = || {
            let instances = deploy.instances(side);
            instances
                .iter()
                .find(|instance| instance.ready)
                .or(instances.first())?
                .asked_at()
                .map(str::to_owned)
        };
        Some(Value::Str(match fact {
            DeployFact::Release => spec.id().0,
            DeployFact::Version => spec.version.clone(),
            DeployFact::Host => host()?,
            DeployFact::Url => format!("http://{}", host()?),
        }))
    }
}
