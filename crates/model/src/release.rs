//! A release: one version of a service, made concrete.

use crate::id::{ReleaseId, ServiceName};
use crate::service::Health;
use crate::value::Value;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Everything an instance is made from. Two deploys with the same spec are the same release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleaseSpec {
    /// Whose.
    pub service: ServiceName,
    /// Its name on the platform, where that differs.
    pub platform_name: Option<String>,
    /// A label for people; not part of the identity.
    pub version: String,
    /// What runs.
    pub artifact: Artifact,
    /// Port an instance listens on.
    pub port: Option<u16>,
    /// Environment; secrets by name.
    pub env: BTreeMap<String, Value>,
    /// Health checks.
    pub health: Vec<Health>,
    /// How long requests in flight may take to finish; not part of the identity.
    pub drain_ms: u64,
    /// Settings that one kind of target reads.
    pub extra: BTreeMap<String, Value>,
}

/// What an instance is made from, made concrete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Artifact {
    /// A process.
    Command {
        /// Program and arguments.
        argv: Vec<String>,
        /// The file or directory that is copied into the release.
        path: Option<String>,
        /// `sha256:…` of what is copied, found by the target before the deploy.
        digest: Option<String>,
    },
    /// A container image.
    Image {
        /// Reference as written.
        reference: String,
        /// `sha256:…`, found by the target before the deploy where it can.
        digest: Option<String>,
        /// Arguments instead of those of the image.
        args: Vec<String>,
    },
    /// Manifests or a compose service, rendered to JSON by the target before the deploy.
    Document {
        /// What it was read from.
        source: String,
        /// The rendered text.
        json: String,
        /// How many instances it is to have, where that is not for the platform to say; not part of the identity.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replicas: Option<u32>,
    },
}

impl ReleaseSpec {
    /// The identity: the first 12 hex digits of the SHA-256 of the canonical JSON of everything but `version`, `drain_ms`
    /// and how many there are to be.
    pub fn id(&self) -> ReleaseId {
        let mut identity = ReleaseSpec { version: String::new(), drain_ms: 0, ..self.clone() };
        if let Artifact::Document { replicas, .. } = &mut identity.artifact {
            *replicas = None;
        }
        // Serialising plain data with string keys into memory cannot fail; an empty text would only make ids collide, and
        // the target compares specs before it reuses one.
        let json = serde_json::to_string(&identity).unwrap_or_default();
        let hash = Sha256::digest(json.as_bytes());
        ReleaseId(hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect())
    }
}
