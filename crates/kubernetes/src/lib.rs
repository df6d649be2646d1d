//! The target `kubernetes`: Deployments of a cluster, made from the service's own fields, and the router `service`: the selector of a
//! Service.
//!
//! Uses `model`, and of `host` only the masker. `client` is the connection and its errors; `manifest` is the one place that says what a
//! release is on a cluster, `found` the one that reads it back; `pods` judges pods; `workload` writes, `roll` and `steps` are the two
//! ways a release comes in; `target`, `lock` and `router` are the ports.
//!
//! Deliberately not here: what should run where and when (`machine`); manifests of users, other workloads than Deployments, Jobs.
//!
//! Invariants: nothing is kept between two calls but the connection. Everything that is made carries our labels and was applied
//! server-side by the field manager `cdpipe`. What is changed is changed at the resource version it was read at. Every wait ends with
//! its call's deadline. Values of secrets are in Secret objects only, never in a template or an annotation.

mod client;
mod found;
mod lock;
mod manifest;
mod pods;
mod roll;
mod router;
mod steps;
mod target;
mod workload;

pub use client::Cluster;
pub use router::ServiceRouter;
pub use target::Kubernetes;
