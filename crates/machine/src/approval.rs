//! What an approval is bound to: the plan, the outputs that go into the stages it lets pass, and what serves where they deploy.
//!
//! Invariant: an approval that was given for something else opens nothing.

use crate::decide::Decide;
use crate::state::{DeployState, Seen, Work};
use cdpipe_model::action::{Block, StepRef};
use cdpipe_model::observe::Observation;
use cdpipe_model::plan::{Approval, Deploy, Gate, Node, NodeKind, StepKind};
use cdpipe_model::record::Record;
use cdpipe_model::{EnvName, Fault, NodeId, ServiceName};
use std::collections::{BTreeMap, BTreeSet};

/// How long a target may take to say what serves.
const LOOK_MS: u64 = 30_000;

/// What serves, as far as an approval is concerned: which releases, with which shares. Not which instances: they come and go.
pub(crate) fn seen(observation: &Observation) -> Seen {
    let version = |id: &cdpipe_model::ReleaseId| {
        let release = observation.releases.iter().find(|release| release.id == *id);
        release.map_or_else(|| id.to_string(), |release| release.spec.version.clone())
    };
    let routed = observation.table.iter().flat_map(|table| &table.entries);
    let mut serving: Vec<(String, String)> = routed
        .filter(|entry| entry.weight_bp > 0)
        .map(|entry| {
            let share = match entry.weight_bp {
                10_000 => String::new(),
                weight_bp => format!(" {}%", f64::from(weight_bp) / 100.0),
            };
            (format!("{} {}", entry.release, entry.weight_bp), format!("{}{share}", version(&entry.release)))
        })
        .collect();
    if observation.table.is_none() {
        let running = observation.releases.iter().filter(|release| release.wanted > 0);
        serving.extend(running.map(|release| (release.id.to_string(), release.spec.version.clone())));
        serving.extend(observation.unmanaged.iter().map(|name| (name.clone(), name.clone())));
    }
    serving.sort();
    let text: Vec<&str> = serving.iter().map(|(_, text)| text.as_str()).collect();
    Seen {
        text: if text.is_empty() { "nothing".to_owned() } else { text.join(" and ") },
        releases: Some(serving.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>().join(", ")),
    }
}

/// What could not be seen.
pub(crate) fn nothing_known() -> Seen {
    Seen { releases: None, text: "not known".to_owned() }
}

fn deploys(node: &Node) -> impl Iterator<Item = &Deploy> {
    let steps = match &node.kind {
        NodeKind::Stage(stage) => stage.steps.as_slice(),
        NodeKind::Gate(_) => &[],
    };
    steps.iter().filter_map(|step| match &step.kind {
        StepKind::Deploy(deploy) => Some(&**deploy),
        _ => None,
    })
}

impl Decide<'_> {
    /// The stages and gates behind this one, itself left out.
    fn behind(&self, id: NodeId) -> BTreeSet<NodeId> {
        let mut found = BTreeSet::new();
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            for dependent in self.state.dependents.get(id.0 as usize).into_iter().flatten() {
                if found.insert(*dependent) {
                    open.push(*dependent);
                }
            }
        }
        found
    }

    /// What must be looked at before an approval of this gate is asked for, if anything is left.
    pub(crate) fn look_behind(&self, work: &Work, node: &Node) -> Option<Record> {
        let known = &work.gate.seen;
        let deploys = self.behind(node.id).into_iter().filter_map(|id| self.plan.node(id)).flat_map(deploys);
        let next = deploys
            .filter(|deploy| self.plan.environments.contains_key(&deploy.environment))
            .find(|deploy| !known.contains_key(&(deploy.environment.clone(), deploy.service.name.clone())))?;
        let step = StepRef { node: Some(node.id), block: Block::Main, index: crate::fold::GATE_LOOK };
        Some(self.intent(&step, self.observe(next), LOOK_MS))
    }

    /// An approval of a gate that has become another thing since it was asked for: it is asked for again, and who had given it is
    /// asked again. An expiry stays what it was.
    pub(crate) fn approval_void(&self, work: &Work, node: NodeId, gate: &Gate) -> Option<Record> {
        let hash = self.effect_hash(node);
        let void = work.gate.approvals.iter().find(|approval| approval.effect_hash != hash)?;
        gate.approvals.iter().find(|approval| approval.by == void.by && approval.quorum == void.quorum)?;
        Some(Record::ApprovalAsked {
            node,
            by: void.by.clone(),
            quorum: void.quorum,
            effect_hash: hash,
            expires_at_ms: void.expires_at_ms,
        })
    }

    pub(crate) fn ask_approval(&self, node: NodeId, approval: &Approval) -> Option<Record> {
        let work = self.state.work(Some(node));
        let begun_ms = work.and_then(|work| work.gate.begun_ms).unwrap_or(self.state.now_ms);
        Some(Record::ApprovalAsked {
            node,
            by: approval.by.clone(),
            quorum: approval.quorum,
            effect_hash: self.effect_hash(node),
            expires_at_ms: approval.expires_ms.map(|ms| begun_ms + ms),
        })
    }

    /// The plan's hash with what has become known since: the outputs that may go into what is let pass, and what serves there.
    fn effect_hash(&self, node: NodeId) -> String {
        use sha2::{Digest, Sha256};
        let mut hash = Sha256::new();
        hash.update(self.plan.hash.as_bytes());
        hash.update(format!("\n{}", node.0).as_bytes());
        let guarded = self.behind(node);
        let mut before = BTreeSet::new();
        let mut open: Vec<NodeId> = guarded.iter().copied().chain([node]).collect();
        while let Some(id) = open.pop() {
            for need in self.plan.node(id).iter().flat_map(|node| &node.needs) {
                if !guarded.contains(&need.node) && before.insert(need.node) {
                    open.push(need.node);
                }
            }
        }
        for id in before {
            for (name, value) in self.state.node(id).iter().flat_map(|node| &node.outputs) {
                hash.update(format!("\n{}.{name}={value}", id.0).as_bytes());
            }
        }
        if let Some(work) = self.state.work(Some(node)) {
            for ((environment, service), seen) in &work.gate.seen {
                if let Some(releases) = &seen.releases {
                    hash.update(format!("\n{service} in {environment}: {releases}").as_bytes());
                }
            }
        }
        let digest = hash.finalize();
        format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    /// Why an approval that this deploy stands on is void, if it is: what serves is not what people saw when they gave it, and it was
    /// not this run that changed it.
    pub(crate) fn approval_outdated(&self, id: NodeId, spec: &Deploy, deploy: &DeployState) -> Option<Fault> {
        let now = seen(deploy.observation.as_ref()?);
        let place = (spec.environment.clone(), spec.service.name.clone());
        let (gate, before) = self.approved_before(id).into_iter().find_map(|gate| {
            let seen = self.state.node(gate)?.approved.as_ref()?.get(&place)?;
            seen.releases.is_some().then(|| (gate, seen.clone()))
        })?;
        if before.releases == now.releases || self.deployed_here(id, &place) {
            return None;
        }
        let name = self.plan.node(gate).map_or("", |node| node.name.as_str());
        Some(
            Fault::new(
                "approval-void",
                format!(
                    "the approval of {name} is void: it was given while {} served in {} for {}, and now it is {}",
                    before.text, spec.environment, spec.service.name, now.text
                ),
            )
            .help("nothing was changed; start a new run, which asks again with what serves now"),
        )
    }

    /// Gates that people have opened, of those before this stage.
    fn approved_before(&self, id: NodeId) -> Vec<NodeId> {
        let mut found = BTreeMap::new();
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            for need in self.plan.node(id).iter().flat_map(|node| &node.needs) {
                let approved = self.state.node(need.node).is_some_and(|node| node.approved.is_some());
                if found.insert(need.node, approved).is_none() {
                    open.push(need.node);
                }
            }
        }
        found.into_iter().filter(|(_, approved)| *approved).map(|(id, _)| id).collect()
    }

    /// Whether this run itself has deployed that service there, in another step.
    fn deployed_here(&self, id: NodeId, place: &(EnvName, ServiceName)) -> bool {
        self.state.nodes.iter().zip(&self.plan.nodes).any(|(state, node)| {
            let NodeKind::Stage(stage) = &node.kind else { return false };
            let Some(work) = &state.work else { return false };
            work.deploys.iter().any(|(index, deploy)| {
                let is_there = matches!(
                    stage.steps.get(*index as usize).map(|step| &step.kind),
                    Some(StepKind::Deploy(spec)) if spec.environment == place.0 && spec.service.name == place.1
                );
                is_there && deploy.begun > 0 && (node.id != id || deploy.ended.is_some() || deploy.undo.is_some())
            })
        })
    }
}
