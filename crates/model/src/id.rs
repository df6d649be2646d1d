//! Names and numbers that identify things, each a type of its own so that they can't be mixed up.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            /// The text of it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }
    };
}

text_id!(
    /// One run of a pipeline; sorts by start time. Shape: `20261123-151905-7f3a`.
    RunId
);
text_id!(
    /// A service as the pipeline names it.
    ServiceName
);
text_id!(
    /// An environment as the pipeline names it.
    EnvName
);
text_id!(
    /// A release: the first 12 hex digits of the hash of artifact and resolved spec (`release::ReleaseSpec::id`).
    ReleaseId
);
text_id!(
    /// One instance of a release, unique on its target.
    InstanceId
);
text_id!(
    /// An effect: `RUN/NUMBER`. It travels onto the target (label, annotation, unit name, state file), so that an effect whose
    /// outcome was lost can be found again.
    EffectId
);

/// A stage or gate of one plan: its index in `Plan::nodes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u32);

/// An action of one run, numbered from 1 in the order in which they were decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ActionId(pub u64);

impl ActionId {
    /// The id under which the effect of this action is known on its target.
    pub fn effect(self, run: &RunId) -> EffectId {
        EffectId(format!("{run}/{}", self.0))
    }
}
