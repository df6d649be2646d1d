//! The target `hosts`: machines over SSH.
//!
//! Uses `model`, `host` and, for containers on the machines, `docker`; and the system's `ssh` client, so that its configuration, keys, agent, jump hosts and known hosts are those
//! that a person has. On each machine works an *agent*: this same binary, uploaded once, started over SSH, speaking JSON lines on its
//! standard streams. It drives the local target of `host` there, so locks, fences, supervisors, logs and health checks are that target's
//! own, on the machine itself, and instances outlive every connection. Releases of an image it has run by the machine's own engine, through
//! the target of `docker`.
//!
//! - `ssh` builds the command line, brings the agent there, and turns what `ssh` says into faults.
//! - `session` is one connection: calls with deadlines, cancellation, secrets on demand, uploads.
//! - `protocol` is what goes over it, `agent` its other side, `here` what it drives.
//! - `hosts` is the target over all machines, with its lease (`lock`) and what is brought there (`artifact`); `spread` decides which instance goes where; `outage` what a machine that is away means.
//! - `router` is the built-in proxy on one of the machines; who starts it is handed in, so nothing of the proxy is known here.
//! - `transport` is files and commands of one machine, for routers.
//!
//! Deliberately not here: what an instance is and how it is kept (`host`), when something is done (`machine`), SSH's own protocol.
//!
//! Invariants: values of secrets travel only over the connection, only when the agent asks for one by name. Nothing on a machine listens
//! for cdpipe: without a connection there is no agent. A write is fenced on the machine by the epoch of the lock there.

pub mod agent;
mod binary;
mod here;
mod hosts;
mod outage;
mod protocol;
#[cfg(test)]
mod quiet;
mod router;
mod session;
mod spread;
mod ssh;
mod transport;

pub use agent::intercept;
pub use hosts::{Hosts, HostsConfig};
pub use router::{HostRouter, ProxyThere};
pub use ssh::{AgentSum, ContainersThere, HostName, SshConfig, fault_of};
pub use transport::HostTransport;
