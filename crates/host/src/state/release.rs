//! One release in the state folder.

use super::{FORMAT, InstanceState, folders_in};
use crate::artifact::Manifest;
use crate::durable::{Durability, read_json, write_json};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::{EffectId, Fault};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What is written down of a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReleaseRecord {
    /// Version of this file.
    pub(crate) format: u32,
    /// What it is made from; secrets by name.
    pub(crate) spec: ReleaseSpec,
    /// Instances it should have; 0 for one that is kept for a rollback.
    pub(crate) wanted: u32,
    /// The effect that changed it last.
    pub(crate) effect: EffectId,
    /// Position in the order of creation, within the service.
    pub(crate) created: u64,
    /// Position in the order of last use, within the service: what is pruned first.
    pub(crate) used: u64,
    /// Number of the next new instance; numbers are not used twice.
    pub(crate) next_instance: u32,
    /// What became of it, if it no longer serves.
    pub(crate) off: Option<SwitchedOff>,
}

/// Why a release has no instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SwitchedOff {
    /// It is kept for a rollback.
    Kept,
    /// It is being removed; whoever finds it finishes that.
    Removing,
}

impl ReleaseRecord {
    pub(crate) fn new(spec: ReleaseSpec, effect: EffectId, position: u64) -> Self {
        Self {
            format: FORMAT,
            spec,
            wanted: 0,
            effect,
            created: position,
            used: position,
            next_instance: 1,
            off: None,
        }
    }
}

/// Where one release lies.
#[derive(Debug, Clone)]
pub(crate) struct ReleaseState {
    folder: PathBuf,
}

impl ReleaseState {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The copied artifact. It is there whole or not at all.
    pub(crate) fn files(&self) -> PathBuf {
        self.folder.join("files")
    }

    pub(crate) fn instances_folder(&self) -> PathBuf {
        self.folder.join("instances")
    }

    pub(crate) fn instance(&self, number: u32) -> InstanceState {
        InstanceState::new(self.instances_folder().join(number.to_string()), number)
    }

    /// All instance folders by number, whether something runs there or not.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn instances(&self) -> Result<Vec<InstanceState>, Fault> {
        let mut found: Vec<InstanceState> = folders_in(&self.instances_folder())?
            .into_iter()
            .filter_map(|folder| {
                let number = folder.file_name()?.to_str()?.parse().ok()?;
                Some(InstanceState::new(folder, number))
            })
            .collect();
        found.sort_by_key(InstanceState::number);
        Ok(found)
    }

    /// Its record; `None` if there is no such release.
    ///
    /// # Errors
    /// `state-unreadable`.
    pub(crate) fn record(&self) -> Result<Option<ReleaseRecord>, Fault> {
        let path = self.folder.join("release.json");
        let record: Option<ReleaseRecord> = read_json(&path)?;
        match record {
            Some(record) if record.format > FORMAT => Err(Fault::new(
                "state-unreadable",
                format!("{} was written by a newer cdpipe", path.display()),
            )
            .help("use that cdpipe")),
            record => Ok(record),
        }
    }

    /// Writes its record durably.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn write(&self, record: &ReleaseRecord) -> Result<(), Fault> {
        write_json(&self.folder.join("release.json"), record, Durability::Synced)
    }

    pub(crate) fn manifest(&self) -> Result<Option<Manifest>, Fault> {
        read_json(&self.folder.join("manifest.json"))
    }

    pub(crate) fn write_manifest(&self, manifest: &Manifest) -> Result<(), Fault> {
        write_json(&self.folder.join("manifest.json"), manifest, Durability::Synced)
    }
}
