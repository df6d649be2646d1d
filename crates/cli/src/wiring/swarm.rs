//! Docker Swarm.

use super::Site;
use super::docker::{NETWORK, docker_config};
use cdpipe_docker::client::Engine;
use cdpipe_docker::swarm::{Swarm, SwarmConfig};
use cdpipe_model::Value;
use cdpipe_model::ports::Target;
use cdpipe_model::service::Environment;
use std::sync::Arc;

pub(super) fn target(environment: &Environment, site: &Site<'_>) -> Arc<dyn Target> {
    let text = |name: &str| environment.target.settings.get(name).and_then(Value::as_str);
    let host = std::env::var("DOCKER_HOST").ok();
    let config = SwarmConfig {
        engine: Engine::new(text("endpoint"), host.as_deref(), site.base),
        network: text("network").map(str::to_owned),
        environment: environment.name.clone(),
        base: site.base.to_owned(),
        docker_config: docker_config(),
        steps_network: NETWORK.to_owned(),
    };
    Arc::new(Swarm::new(config, site.masker.clone()))
}
