//! The rim of one run: every port by the environment it is for.

use cdpipe_model::EnvName;
use cdpipe_model::ports::{Measurer, Messenger, Router, Runner, Secrets, Target};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the engine acts through.
#[derive(Clone)]
pub struct Ports {
    /// Where instances run, by environment.
    pub targets: BTreeMap<EnvName, Arc<dyn Target>>,
    /// What steers traffic, by environment; none for one without a router.
    pub routers: BTreeMap<EnvName, Arc<dyn Router>>,
    /// Numbers of `metrics` blocks.
    pub measurer: Arc<dyn Measurer>,
    /// Shell commands.
    pub runner: Arc<dyn Runner>,
    /// Messages, requests and flags.
    pub messenger: Arc<dyn Messenger>,
    /// Secrets, resolved at each use.
    pub secrets: Arc<dyn Secrets>,
}
