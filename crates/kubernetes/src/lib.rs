//! The target `kubernetes`: workloads of a cluster, made from the service's own fields or from manifests, and the router `service`: the selector of a
//! Service, `gateway` and `istio`: shares in an HTTPRoute or a VirtualService.
//!
//! Uses `model`, and of `host` only the masker. `client` is the connection and its errors; `manifest` is the one place that says what a
//! release is on a cluster, `found` the one that reads it back; `follow` watches one object; `pods` judges pods; `workload` writes, `roll` and `steps` are the two
//! ways a release comes in; `target`, `lock`, `router` and `weighted` are the ports,
//! `rules` is what `weighted` writes, `backends` what it points to, `exec` and `job` run commands.
//!
//! `kind` sees Deployments, StatefulSets and DaemonSets as one; `given` is what users wrote in manifests, `companions` what comes with it, `adopt` what
//! was there before.
//!
//! Deliberately not here: what should run where and when (`machine`).
//!
//! Invariants: nothing is kept between two calls but the connection, ports that are forwarded, and the Leases as they were written last. Everything that is made carries our labels and was applied
//! server-side by the field manager `cdpipe`; of a route that somebody else has made only the backends that name the service change. What others may change, too (workloads, routes, Leases), is written at the resource version it was read at. Every wait ends with
//! its call's deadline. Values of secrets are in Secret objects only, never in a template or an annotation.

mod adopt;
mod backends;
mod canary;
mod client;
mod companions;
pub mod doctor;
mod exec;
mod follow;
mod forward;
mod found;
mod given;
mod job;
mod kind;
mod lock;
mod manifest;
mod objects;
mod pods;
mod roll;
mod router;
mod rules;
mod scale;
mod steps;
mod target;
mod weighted;
mod workload;

pub use client::Cluster;
pub use given::{Source, screen};
pub use objects::{Manifest, files, manifests, pin};
pub use router::ServiceRouter;
pub use target::{Kubernetes, Manifests};
pub use weighted::WeightedRouter;
