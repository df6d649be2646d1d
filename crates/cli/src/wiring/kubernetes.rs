//! The target `kubernetes` and the routers of a cluster.

use super::{Site, each_step};
use cdpipe_kubernetes::{Cluster, Kubernetes, Manifests, ServiceRouter, Source, WeightedRouter};
use cdpipe_model::Value;
use cdpipe_model::plan::StepKind;
use cdpipe_model::ports::{Router, Target};
use cdpipe_model::service::{Environment, Service, TrafficSpec, Workload};
use cdpipe_model::strategy::Strategy;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The cluster of an environment.
pub(crate) fn cluster_of(environment: &Environment, base: &Path) -> Cluster {
    trust();
    let setting =
        |name: &str| environment.target.settings.get(name).and_then(Value::as_str).map(str::to_owned);
    let kubeconfig: Option<PathBuf> = setting("kubeconfig").map(|path| base.join(path));
    Cluster::new(kubeconfig, setting("context"), setting("namespace"))
}

fn cluster(environment: &Environment, site: &Site<'_>) -> Arc<Cluster> {
    Arc::new(cluster_of(environment, site.base))
}

pub(super) fn target(environment: &Environment, site: &Site<'_>) -> Arc<dyn Target> {
    trust();
    let target = Kubernetes::new(cluster(environment, site), site.masker.clone(), site.base.to_owned());
    let target = target.with_manifests(manifests(environment, site));
    match environment.target.settings.get("reach").and_then(Value::as_str) {
        Some("port_forward") => Arc::new(target.forwarding()),
        _ => Arc::new(target),
    }
}

/// The manifests that a service is made from, if it is.
pub(crate) fn source_of(service: &Service) -> Option<Source> {
    let Workload::Manifest { path, workload, text, .. } = &service.workload else { return None };
    Some(Source { path: path.clone(), workload: workload.clone(), text: text.clone() })
}

/// What the plan says of the services that it deploys there.
fn manifests(environment: &Environment, site: &Site<'_>) -> Manifests {
    let mut found = Manifests::default();
    each_step(site.plan, &mut |step| {
        let StepKind::Deploy(deploy) = &step.kind else { return };
        if deploy.environment != environment.name {
            return;
        }
        let service = &deploy.service;
        if let Some(source) = source_of(service) {
            found.sources.insert(service.name.clone(), source);
        }
        if service.adopt {
            found.adopt.insert(service.name.clone());
        }
        if !matches!(deploy.strategy, Strategy::Rolling(_)) {
            found.beside.insert(service.name.clone());
        }
    });
    found
}

/// How long proxies get to do what was written.
fn settle(traffic: &TrafficSpec, default: Duration) -> Duration {
    let ms = traffic.settings.get("settle").and_then(Value::magnitude);
    ms.map_or(default, |ms| Duration::try_from_secs_f64(ms / 1000.0).unwrap_or(default))
}

pub(super) fn service(environment: &Environment, traffic: &TrafficSpec, site: &Site<'_>) -> Arc<dyn Router> {
    trust();
    Arc::new(ServiceRouter::new(cluster(environment, site), settle(traffic, ServiceRouter::SETTLE)))
}

pub(super) fn gateway(environment: &Environment, traffic: &TrafficSpec, site: &Site<'_>) -> Arc<dyn Router> {
    trust();
    Arc::new(WeightedRouter::gateway(cluster(environment, site), settle(traffic, WeightedRouter::SETTLE)))
}

pub(super) fn istio(environment: &Environment, traffic: &TrafficSpec, site: &Site<'_>) -> Arc<dyn Router> {
    trust();
    let rule = traffic.settings.get("destination_rule").and_then(Value::as_str).map(str::to_owned);
    let settle = settle(traffic, WeightedRouter::SETTLE);
    Arc::new(WeightedRouter::istio(cluster(environment, site), rule, settle))
}

/// The library that speaks to API servers looks for the process's own TLS provider.
fn trust() {
    // Set already: then it is the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
