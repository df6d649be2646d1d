//! Machines over SSH: what an environment says of them, and what holds where it says nothing.

use super::{Site, each_step};
use crate::failure::{self, Failure};
use cdpipe_host::Units;
use cdpipe_hosts::{ContainersThere, HostName, HostRouter, HostTransport, Hosts, HostsConfig, SshConfig};
use cdpipe_model::plan::StepKind;
use cdpipe_model::ports::{Router, Target};
use cdpipe_model::release::Artifact;
use cdpipe_model::service::{Environment, TargetKind, Workload};
use cdpipe_model::transport::Transport;
use cdpipe_model::{Fault, Value};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

/// Where releases lie on a machine that says nothing else.
const DIR: &str = "/var/lib/cdpipe";

/// The target of an environment.
pub(super) fn target(environment: &Environment, site: &Site<'_>) -> Result<Arc<dyn Target>, Failure> {
    let settings = &environment.target.settings;
    let refused = |fault: Fault| Failure::from_fault(&failure::CANNOT_RUN, fault);
    let hosts: Vec<HostName> = texts(settings, "hosts")
        .iter()
        .map(|written| HostName::parse(written))
        .collect::<Result<_, _>>()
        .map_err(refused)?;
    let addresses = texts(settings, "addresses");
    if hosts.is_empty() || !(addresses.is_empty() || addresses.len() == hosts.len()) {
        return Err(Failure::new(
            &failure::CANNOT_RUN,
            format!(
                "environment `{}` names {} machines and {} addresses of them",
                environment.name,
                hosts.len(),
                addresses.len()
            ),
        )
        .help("`hosts` needs one machine at least, and `addresses` one for each of them"));
    }
    let mut names: Vec<&str> = hosts.iter().map(|host| host.written.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Failure::new(
            &failure::CANNOT_RUN,
            format!("environment `{}` names the machine `{}` twice", environment.name, twice[0]),
        ));
    }
    let mut ssh = ssh(environment, site)?;
    ssh.containers = containers(environment, site);
    Ok(Arc::new(Hosts::new(HostsConfig { hosts, addresses, ssh, base: site.base.to_owned() })))
}

/// One machine for a router, reached as those of the environment are.
fn machine(environment: &Environment, host: &str, site: &Site<'_>) -> Result<Arc<Hosts>, Failure> {
    let name = HostName::parse(host).map_err(|fault| Failure::from_fault(&failure::CANNOT_RUN, fault))?;
    let ssh = ssh(environment, site)?;
    let config = HostsConfig { hosts: vec![name], addresses: Vec::new(), ssh, base: site.base.to_owned() };
    Ok(Arc::new(Hosts::new(config)))
}

/// Files, commands and sockets of one machine.
pub(super) fn transport(
    environment: &Environment,
    host: &str,
    site: &Site<'_>,
) -> Result<Arc<dyn Transport>, Failure> {
    Ok(Arc::new(HostTransport::new(machine(environment, host, site)?)))
}

/// The built-in proxy of one machine.
pub(super) fn proxy(
    environment: &Environment,
    host: &str,
    dir: Option<&str>,
    site: &Site<'_>,
) -> Result<Arc<dyn Router>, Failure> {
    Ok(Arc::new(HostRouter::new(machine(environment, host, site)?, dir.map(str::to_owned))))
}

/// Where images run on the machines: where the target names an engine, or something that is deployed there is made from an image.
fn containers(environment: &Environment, site: &Site<'_>) -> Option<ContainersThere> {
    let settings = &environment.target.settings;
    let (mut images, mut adopt) = (false, Vec::new());
    each_step(site.plan, &mut |step| {
        let StepKind::Deploy(deploy) = &step.kind else { return };
        if deploy.environment != environment.name {
            return;
        }
        images |= match &deploy.service.workload {
            Workload::Image { .. } => true,
            Workload::Kept(spec) => matches!(spec.artifact, Artifact::Image { .. }),
            _ => false,
        };
        if deploy.service.adopt && !adopt.contains(&deploy.service.name) {
            adopt.push(deploy.service.name.clone());
        }
    });
    let engine = text(settings, "engine");
    (images || engine.is_some()).then(|| ContainersThere {
        engine: engine.unwrap_or(cdpipe_docker::client::DEFAULT_ENDPOINT).to_owned(),
        network: text(settings, "network").unwrap_or(super::docker::NETWORK).to_owned(),
        adopt,
    })
}

/// How the machines of an environment are reached; of one whose target is something else, by what holds for all.
fn ssh(environment: &Environment, site: &Site<'_>) -> Result<SshConfig, Failure> {
    let none = BTreeMap::new();
    let settings = match environment.target.kind {
        TargetKind::Hosts => &environment.target.settings,
        _ => &none,
    };
    let listen = match text(settings, "host") {
        None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Some(host) => host.parse().map_err(|_| {
            Failure::new(&failure::CANNOT_RUN, format!("`host = \"{host}\"` is not an address"))
                .help("write an address such as `0.0.0.0`; instances on all machines listen on it")
        })?,
    };
    let path = |name: &str| text(settings, name).map(|path| site.base.join(path));
    Ok(SshConfig {
        user: text(settings, "user").map(str::to_owned),
        identity: path("identity"),
        config: path("ssh_config"),
        jump: text(settings, "jump").map(str::to_owned),
        dir: text(settings, "dir").unwrap_or(DIR).to_owned(),
        sudo: settings.get("sudo") == Some(&Value::Bool(true)),
        agent: path("agent").unwrap_or_else(|| PathBuf::from(site.program)),
        environment: environment.name.clone(),
        listen,
        containers: None,
        sum: cdpipe_hosts::AgentSum::default(),
        units: if text(settings, "units") == Some("systemd") { Units::Systemd } else { Units::Process },
    })
}

fn text<'a>(settings: &'a BTreeMap<String, Value>, name: &str) -> Option<&'a str> {
    settings.get(name).and_then(Value::as_str)
}

fn texts(settings: &BTreeMap<String, Value>, name: &str) -> Vec<String> {
    match settings.get(name) {
        Some(Value::List(items)) => items.iter().map(ToString::to_string).collect(),
        _ => Vec::new(),
    }
}
