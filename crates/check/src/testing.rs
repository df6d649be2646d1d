//! What a `test "…" { }` of a pipeline says, fully checked. Running it is not this crate's business.

use crate::api::GitFacts;
use cdpipe_model::Outcome;
use cdpipe_model::expr::MetricRef;
use cdpipe_model::id::{EnvName, ServiceName};
use cdpipe_model::plan::SourcePos;
use cdpipe_model::value::Value;
use std::collections::BTreeMap;

/// One test.
#[derive(Debug, Clone, PartialEq)]
pub struct Test {
    /// Its text.
    pub name: String,
    /// Parameters that it sets.
    pub sets: BTreeMap<String, Value>,
    /// What the repository says in it.
    pub git: GitFacts,
    /// Versions that serve before the run.
    pub serving: Vec<Serving>,
    /// How gates are answered, by name.
    pub gates: BTreeMap<String, GateAnswer>,
    /// What is measured while a stage runs.
    pub measured: Vec<Measured>,
    /// What must be so after the run.
    pub expects: Vec<Expectation>,
    /// Where it stands.
    pub at: SourcePos,
}

/// A version that serves before the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// Where.
    pub environment: EnvName,
    /// Which service.
    pub service: ServiceName,
    /// The label of the release.
    pub version: String,
}

/// How a gate is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateAnswer {
    /// Yes.
    Approved,
    /// No.
    Rejected,
    /// Not at all.
    Expired,
}

/// What is measured while a stage runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Its name.
    pub stage: String,
    /// Values of measures.
    pub values: Vec<(MetricRef, Value)>,
    /// Whether the stage's steps fail.
    pub fails: bool,
}

/// Something that must be so.
#[derive(Debug, Clone, PartialEq)]
pub struct Expectation {
    /// What.
    pub what: Expected,
    /// As it was written.
    pub text: String,
    /// Where it stands.
    pub at: SourcePos,
}

/// What must be so.
#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    /// `stage NAME == OUTCOME [within D]`; also of a gate, and of `pipeline`.
    Outcome {
        /// The stage or gate; `None` for the whole pipeline.
        node: Option<String>,
        /// How it must end.
        outcome: Outcome,
        /// In at most so much virtual time.
        within_ms: Option<u64>,
    },
    /// `traffic(SERVICE, ENVIRONMENT) == { "v1" = 100% }`.
    Traffic {
        /// Which service.
        service: ServiceName,
        /// Where.
        environment: EnvName,
        /// Percent of the users for each version.
        shares: BTreeMap<String, f64>,
    },
    /// `ran "on rollback"`: a hook of this event, or a step whose label holds this text, ran.
    Ran(String),
}
