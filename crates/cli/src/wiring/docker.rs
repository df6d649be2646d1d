//! The target `docker`, and what is inside containers of an engine.

use super::{Site, each_step};
use cdpipe_docker::{Containers, ContainersConfig, Engine, Publish};
use cdpipe_model::Value;
use cdpipe_model::plan::StepKind;
use cdpipe_model::ports::Target;
use cdpipe_model::service::{Environment, TrafficKind};
use std::path::PathBuf;
use std::sync::Arc;

/// The network that instances join where none is named.
pub(super) const NETWORK: &str = "cdpipe";

/// Containers of one engine.
pub(crate) fn containers(environment: &Environment, site: &Site<'_>) -> Arc<dyn Target> {
    let setting = |name: &str| environment.target.settings.get(name).and_then(Value::as_str);
    let publish = match setting("publish") {
        Some("none") => Publish::Network,
        Some(address) => Publish::On(address.to_owned()),
        None if router_is_in_a_container(environment) => Publish::Network,
        None => Publish::On("127.0.0.1".to_owned()),
    };
    let mut adopt = std::collections::BTreeSet::new();
    each_step(site.plan, &mut |step| {
        if let StepKind::Deploy(deploy) = &step.kind
            && deploy.environment == environment.name
            && deploy.service.adopt
        {
            adopt.insert(deploy.service.name.clone());
        }
    });
    let config = ContainersConfig {
        engine: engine(environment, site),
        environment: environment.name.clone(),
        network: setting("network").unwrap_or(NETWORK).to_owned(),
        publish,
        adopt,
        docker_config: docker_config(),
    };
    Arc::new(Containers::new(config, site.masker.clone()))
}

/// The engine of an environment whose target is one.
pub(crate) fn engine(environment: &Environment, site: &Site<'_>) -> Engine {
    let setting = environment.target.settings.get("endpoint").and_then(Value::as_str);
    let host = std::env::var("DOCKER_HOST").ok();
    Engine::new(setting, host.as_deref(), site.base)
}

/// Where Docker's own command line keeps its configuration.
pub(crate) fn docker_config() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("DOCKER_CONFIG")
        .or_else(|| set("HOME").map(|home| home.join(".docker")))
        .unwrap_or_else(|| PathBuf::from(".docker"))
}

fn router_is_in_a_container(environment: &Environment) -> bool {
    environment.traffic.as_ref().is_some_and(|traffic| {
        traffic.kind == TrafficKind::Nginx && traffic.settings.contains_key("container")
    })
}
