//! What the target keeps on the machine where instances run. Everything is files: any cdpipe, and none in particular, can look.
//!
//! ```text
//! ROOT/                          one environment
//!   locks/                       leases
//!   services/SERVICE/
//!     lock                       held while something is changed
//!     releases/RELEASE/
//!       release.json             the spec (secrets by name), wanted instances, the effect that made it
//!       manifest.json, files/    the artifact, copied
//!       instances/N/
//!         instance.json          what its supervisor runs
//!         supervisor.lock        held by the supervisor as long as it lives: what says that the instance is there
//!         status.json            what the supervisor says of it
//!         stop.json              how it should end
//!         log, log.1             its output, masked, bounded
//! ```
//!
//! Names with a leading dot are half-done work of a cdpipe that is gone; readers skip them, the next change sweeps them.

mod instance;
mod release;

pub(crate) use instance::{Exit, InstanceConfig, InstanceState, Launch, Phase, Status, StopRequest};
pub(crate) use release::{ReleaseRecord, ReleaseState, SwitchedOff};

use crate::durable::io_fault;
use cdpipe_model::{Fault, ReleaseId, ServiceName};
use std::path::{Path, PathBuf};

/// Version of the files; one that is newer is refused rather than misread.
pub(crate) const FORMAT: u32 = 1;

/// The state of one environment.
#[derive(Debug, Clone)]
pub(crate) struct EnvironmentState {
    root: PathBuf,
}

impl EnvironmentState {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    /// The state of every service that was ever here.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn services(&self) -> Result<Vec<ServiceState>, Fault> {
        let folders = folders_in(&self.root.join("services"))?;
        Ok(folders.into_iter().map(|folder| ServiceState { folder }).collect())
    }

    /// The state of one service.
    ///
    /// # Errors
    /// `name-unfit` for a name that is no file name.
    pub(crate) fn service(&self, name: &ServiceName) -> Result<ServiceState, Fault> {
        Ok(ServiceState { folder: self.root.join("services").join(file_name(name.as_str())?) })
    }
}

/// The state of one service.
#[derive(Debug, Clone)]
pub(crate) struct ServiceState {
    folder: PathBuf,
}

impl ServiceState {
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.folder.join("lock")
    }

    pub(crate) fn releases_folder(&self) -> PathBuf {
        self.folder.join("releases")
    }

    /// One release.
    ///
    /// # Errors
    /// `name-unfit` for an id that is no file name.
    pub(crate) fn release(&self, id: &ReleaseId) -> Result<ReleaseState, Fault> {
        Ok(ReleaseState::new(self.releases_folder().join(file_name(id.as_str())?)))
    }

    /// All releases with their records, in the order in which they were created.
    ///
    /// # Errors
    /// What the file system says, `state-unreadable`.
    pub(crate) fn releases(&self) -> Result<Vec<(ReleaseState, ReleaseRecord)>, Fault> {
        let mut found = Vec::new();
        for folder in folders_in(&self.releases_folder())? {
            let release = ReleaseState::new(folder);
            if let Some(record) = release.record()? {
                found.push((release, record));
            }
        }
        found.sort_by_key(|(_, record)| record.created);
        Ok(found)
    }

    /// Removes what a cdpipe that was killed left half done. Only under the service's lock.
    pub(crate) fn sweep(&self) {
        let mut folders = vec![self.releases_folder()];
        if let Ok(releases) = folders_in(&self.releases_folder()) {
            for release in releases {
                folders.push(release.join("instances"));
                folders.push(release);
            }
        }
        for folder in folders {
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if name.starts_with('.') && name.ends_with(".tmp") {
                    let path = entry.path();
                    // What can't be removed now is tried again next time, and nobody reads it meanwhile.
                    let _ = if path.is_dir() {
                        std::fs::remove_dir_all(&path)
                    } else {
                        std::fs::remove_file(&path)
                    };
                }
            }
        }
    }
}

/// Folders in a folder, without half-done ones, in the order of their names; none if it is not there.
fn folders_in(path: &Path) -> Result<Vec<PathBuf>, Fault> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_fault("read the folder", path, &error)),
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    Ok(found)
}

/// A name that may become part of a path.
///
/// # Errors
/// `name-unfit`.
pub(crate) fn file_name(name: &str) -> Result<&str, Fault> {
    let fits = !name.is_empty()
        && name.len() <= 128
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if fits {
        Ok(name)
    } else {
        Err(Fault::new("name-unfit", format!("`{name}` cannot be the name of a file"))
            .help("use letters, digits, `-` and `_`, at most 128 of them"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_leaves_its_folder() {
        for bad in ["", ".", "..", "a/b", "../x", "-rf", "a\0b", "a b"] {
            assert!(file_name(bad).is_err(), "{bad:?}");
        }
        assert!(file_name("web-2_x.y").is_ok());
    }
}
