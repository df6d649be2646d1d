//! Routers that are somebody else's program: where they run, and how they are reached there.

use super::Site;
use crate::failure::Failure;
use cdpipe_docker::InContainer;
use cdpipe_host::LocalTransport;
use cdpipe_model::Value;
use cdpipe_model::ports::Router;
use cdpipe_model::service::{Environment, TrafficSpec};
use cdpipe_model::transport::Transport;
use cdpipe_routers::{HaproxyConfig, HaproxyRouter, NginxConfig, NginxRouter};
use std::sync::Arc;
use std::time::Duration;

/// Where the include says which generation is in force, unless the environment says otherwise.
const STATUS: &str = "127.0.0.1:8899";
/// How long a reload may take to have effect, unless the environment says otherwise.
const SETTLE: Duration = Duration::from_secs(10);

pub(super) fn nginx(
    environment: &Environment,
    traffic: &TrafficSpec,
    site: &Site<'_>,
) -> Result<Arc<dyn Router>, Failure> {
    let status = text(traffic, "status").unwrap_or_else(|| STATUS.to_owned());
    let settle = match traffic.settings.get("settle") {
        Some(Value::Duration(ms)) => Duration::try_from_secs_f64(ms / 1000.0).unwrap_or(SETTLE),
        _ => SETTLE,
    };
    let config = NginxConfig {
        config: text(traffic, "config").unwrap_or_default(),
        // A port alone means loopback: nobody else has to know.
        status: status.strip_prefix(':').map_or(status.clone(), |port| format!("127.0.0.1:{port}")),
        test: argv(traffic, "test", &["nginx", "-t"]),
        reload: argv(traffic, "reload", &["nginx", "-s", "reload"]),
        settle,
    };
    Ok(Arc::new(NginxRouter::new(config, transport(environment, traffic, site)?)))
}

pub(super) fn haproxy(
    environment: &Environment,
    traffic: &TrafficSpec,
    site: &Site<'_>,
) -> Result<Arc<dyn Router>, Failure> {
    let config = HaproxyConfig {
        socket: text(traffic, "socket").unwrap_or_default(),
        backend: text(traffic, "backend"),
    };
    Ok(Arc::new(HaproxyRouter::new(config, transport(environment, traffic, site)?)))
}

/// What leads to where the router runs: the container or the machine it names, else this machine.
fn transport(
    environment: &Environment,
    traffic: &TrafficSpec,
    site: &Site<'_>,
) -> Result<Arc<dyn Transport>, Failure> {
    if let Some(container) = text(traffic, "container") {
        // Where the target is an engine, it is that one; else the one of this machine.
        let engine = super::docker::engine(environment, site);
        return Ok(Arc::new(InContainer::new(engine, container, site.masker.clone())));
    }
    if let Some(host) = text(traffic, "host") {
        return super::hosts::transport(environment, &host, site);
    }
    let (base, hidden) = (site.base.to_owned(), site.hidden_env.to_vec());
    Ok(Arc::new(LocalTransport::new(base, site.masker.clone(), hidden)))
}

fn text(traffic: &TrafficSpec, name: &str) -> Option<String> {
    traffic.settings.get(name).and_then(Value::as_str).map(str::to_owned)
}

fn argv(traffic: &TrafficSpec, name: &str, default: &[&str]) -> Vec<String> {
    match traffic.settings.get(name) {
        Some(Value::List(words)) if !words.is_empty() => words.iter().map(ToString::to_string).collect(),
        _ => default.iter().map(|word| (*word).to_owned()).collect(),
    }
}
