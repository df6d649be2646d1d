//! The local target at work for a cdpipe on another machine: instances listen where others reach them, artifacts come over the wire,
//! and the owners of locks are processes that can't be seen from here.

use super::Local;
use super::units::Units;
use crate::artifact::Manifest;
use crate::durable::{io_fault, make_folder, remove_folder, temporary_beside};
use crate::state::file_name;
use cdpipe_model::observe::Instance;
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::{Fault, Value};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

/// How a local target is that works for another machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serve {
    /// Folder for uploaded artifacts, each below its digest.
    pub artifacts: PathBuf,
    /// What the supervisors of instances are started by.
    pub units: Units,
}

/// Nobody else changes a service of this target as long as this lives.
#[derive(Debug)]
pub struct Changing {
    _lock: crate::durable::FileLock,
}

/// An artifact on its way to another machine: what lies in it, in the order in which the bytes of its files come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// `sha256:…` of the whole, as in a release.
    pub digest: String,
    /// Its file name.
    pub name: String,
    /// Whether it is one file rather than a folder.
    pub single: bool,
    /// Folders before what is in them.
    pub entries: Vec<PackedEntry>,
}

/// A file, a folder or a link of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedEntry {
    /// Relative to the artifact; the bare name if the artifact is one file.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// What it is.
    pub content: PackedContent,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PackedContent {
    /// A file of so many bytes.
    File(u64),
    /// A folder.
    Folder,
    /// A symbolic link to this.
    Link(String),
}

impl Packed {
    /// Looks at an artifact. Reads all of it, for the digest.
    ///
    /// # Errors
    /// `artifact-missing`, `artifact-unfit`, or what the file system says.
    pub fn of(path: &Path) -> Result<Self, Fault> {
        let manifest = Manifest::of(path)?;
        let single = path.is_file();
        let mut entries = Vec::new();
        for (relative, mode) in manifest.paths() {
            let here = if single { path.to_owned() } else { path.join(relative) };
            // The one file may be reached through a link, what is in a folder is taken as it is.
            let looked = if single { std::fs::metadata(&here) } else { std::fs::symlink_metadata(&here) };
            let metadata = looked.map_err(|error| io_fault("read the artifact", &here, &error))?;
            let content = if metadata.is_dir() {
                PackedContent::Folder
            } else if metadata.is_symlink() {
                let target =
                    std::fs::read_link(&here).map_err(|error| io_fault("read the link", &here, &error))?;
                PackedContent::Link(target.to_string_lossy().into_owned())
            } else {
                PackedContent::File(metadata.len())
            };
            entries.push(PackedEntry { path: relative.to_owned(), mode, content });
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { digest: manifest.digest(), name, single, entries })
    }

    /// How many bytes of files follow.
    pub fn bytes(&self) -> u64 {
        self.files().map(|(_, size)| size).sum()
    }

    /// Paths and sizes of the files, in the order in which their bytes come.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.entries.iter().filter_map(|entry| match entry.content {
            PackedContent::File(size) => Some((entry.path.as_str(), size)),
            PackedContent::Folder | PackedContent::Link(_) => None,
        })
    }

    /// Unpacks it into the folder `artifacts`, whole or not at all, and checks that it is what its digest says.
    ///
    /// # Errors
    /// `upload-damaged`; `artifact-unfit` for a path that leads out of it; what the file system or the reader says.
    pub fn unpack(&self, artifacts: &Path, bytes: &mut dyn Read) -> Result<(), Fault> {
        let place = place_of(artifacts, &self.digest)?;
        make_folder(artifacts)?;
        let temporary = temporary_beside(&place);
        let unpacked = self.unpack_into(&temporary, bytes).and_then(|()| {
            let found = Manifest::of(&temporary.join(&self.name))?.digest();
            if found != self.digest {
                return Err(Fault::new(
                    "upload-damaged",
                    format!("what arrived is {found}, and {} was sent", self.digest),
                )
                .transient());
            }
            if place.exists() {
                return Ok(());
            }
            std::fs::rename(&temporary, &place).map_err(|error| io_fault("write", &place, &error))
        });
        if temporary.exists() {
            let _ = remove_folder(&temporary);
        }
        unpacked
    }

    fn unpack_into(&self, folder: &Path, bytes: &mut dyn Read) -> Result<(), Fault> {
        std::fs::create_dir(folder).map_err(|error| io_fault("make the folder", folder, &error))?;
        let root = folder.join(inside(&self.name)?);
        if !self.single {
            std::fs::create_dir(&root).map_err(|error| io_fault("make the folder", &root, &error))?;
        }
        let mut modes = Vec::new();
        for entry in &self.entries {
            let relative = inside(&entry.path)?;
            let target = if self.single { root.clone() } else { root.join(relative) };
            let failed = |error: std::io::Error| io_fault("write", &target, &error);
            match &entry.content {
                PackedContent::Folder => {
                    std::fs::create_dir(&target).map_err(failed)?;
                    // A folder without the write bit could not be filled.
                    modes.push((target.clone(), entry.mode));
                }
                PackedContent::Link(to) => std::os::unix::fs::symlink(to, &target).map_err(failed)?,
                PackedContent::File(size) => {
                    let mut file = File::create_new(&target).map_err(failed)?;
                    let written =
                        std::io::copy(&mut Read::take(&mut *bytes, *size), &mut file).map_err(failed)?;
                    if written != *size {
                        return Err(Fault::new("upload-damaged", "the upload ended early").transient());
                    }
                    file.flush().map_err(failed)?;
                    modes.push((target.clone(), entry.mode));
                }
            }
        }
        for (path, mode) in modes.into_iter().rev() {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode & 0o777))
                .map_err(|error| io_fault("set the mode of", &path, &error))?;
        }
        Ok(())
    }
}

/// A relative path that stays where it is: an artifact comes over the wire, and must not write elsewhere.
fn inside(path: &str) -> Result<&Path, Fault> {
    let fits =
        !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if fits {
        Ok(Path::new(path))
    } else {
        Err(Fault::new("artifact-unfit", format!("`{path}` leads out of the artifact")))
    }
}

fn place_of(artifacts: &Path, digest: &str) -> Result<PathBuf, Fault> {
    Ok(artifacts.join(file_name(digest.trim_start_matches("sha256:"))?))
}

impl Local {
    /// The same target with instances that listen on this address (and learn it in `$HOST`) instead of on loopback.
    #[must_use]
    pub fn listening_on(mut self, address: IpAddr) -> Self {
        self.listen = Some(address);
        self
    }

    /// The same target, at work for a cdpipe on another machine.
    #[must_use]
    pub fn serving(mut self, serve: Serve) -> Self {
        self.leases = self.leases.from_elsewhere();
        self.serve = Some(serve);
        self
    }

    pub(super) fn units(&self) -> Units {
        self.serve.as_ref().map_or(Units::Process, |serve| serve.units)
    }

    /// The folder for uploaded artifacts.
    pub fn artifacts(&self) -> PathBuf {
        self.serve.as_ref().map(|serve| serve.artifacts.clone()).unwrap_or_default()
    }

    /// Where the artifact of a release lies, if it is one that was uploaded.
    pub(super) fn uploaded(&self, written: Option<&str>, digest: Option<&str>) -> Option<PathBuf> {
        let serve = self.serve.as_ref()?;
        let name = Path::new(written?).file_name()?;
        Some(place_of(&serve.artifacts, digest?).ok()?.join(name))
    }

    /// Whether the files of this release must be uploaded before it can be brought up: it has an artifact, and neither the release
    /// nor the artifact is here.
    ///
    /// # Errors
    /// `state-unreadable`.
    pub fn wants_upload(&self, spec: &ReleaseSpec) -> Result<bool, Fault> {
        let Artifact::Command { path: Some(path), digest, .. } = &spec.artifact else { return Ok(false) };
        if self.release(spec)?.is_some_and(|(release, _)| release.files().is_dir()) {
            return Ok(false);
        }
        Ok(self.uploaded(Some(path), digest.as_deref()).is_none_or(|place| !place.exists()))
    }

    /// How many instances of a release run with this extra environment: those that `ensure` counts.
    ///
    /// # Errors
    /// `state-unreadable`.
    pub fn running_with(
        &self,
        spec: &ReleaseSpec,
        extra_env: &BTreeMap<String, Value>,
    ) -> Result<Vec<Instance>, Fault> {
        let Some((release, _)) = self.release(spec)? else { return Ok(Vec::new()) };
        let all = release.instances()?;
        let same = all
            .iter()
            .filter(|instance| instance.config().is_some_and(|config| config.extra_env == *extra_env));
        Ok(same.filter_map(crate::state::InstanceState::observe).collect())
    }

    /// Waits until nobody else changes this service here, and refuses an owner of before: for what is changed by something else than this
    /// target, but under its locks. Nobody else changes the service as long as the answer lives.
    ///
    /// # Errors
    /// `stale-epoch`; `cancelled`; if the state can't be written.
    pub async fn changing(
        &self,
        call: cdpipe_model::ports::Call<'_>,
        service: &cdpipe_model::ServiceName,
    ) -> Result<Changing, Fault> {
        let state = self.state.service(service)?;
        Ok(Changing { _lock: self.change(call, service, &state).await? })
    }

    /// The leases of this target.
    pub fn leases(&self) -> &crate::lease::Leases {
        &self.leases
    }

    /// Ids of the instances of a service that have an extra environment.
    ///
    /// # Errors
    /// `state-unreadable`.
    pub fn canaries(
        &self,
        service: &cdpipe_model::ServiceName,
    ) -> Result<Vec<cdpipe_model::InstanceId>, Fault> {
        let mut found = Vec::new();
        for (release, _) in self.state.service(service)?.releases()? {
            let configs = release.instances()?.into_iter().filter_map(|instance| instance.config());
            found.extend(configs.filter(|config| !config.extra_env.is_empty()).map(|config| config.id));
        }
        Ok(found)
    }

    /// Removes uploaded artifacts that no release here is made from any more.
    pub fn prune_uploads(&self) {
        let Some(serve) = &self.serve else { return };
        let mut used = Vec::new();
        let Ok(services) = self.state.services() else { return };
        for service in services {
            let Ok(releases) = service.releases() else { return };
            used.extend(releases.into_iter().filter_map(|(_, record)| match record.spec.artifact {
                Artifact::Command { digest, .. } => digest,
                Artifact::Image { .. } | Artifact::Document { .. } => None,
            }));
        }
        let Ok(entries) = std::fs::read_dir(&serve.artifacts) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let is_used = used.iter().any(|digest| digest.trim_start_matches("sha256:") == name);
            if !is_used && !name.starts_with('.') {
                // What can't be removed now is tried again after the next deploy.
                let _ = remove_folder(&entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(packed: &Packed, root: &Path) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (path, _) in packed.files() {
            let here = if packed.single { root.to_owned() } else { root.join(path) };
            bytes.extend(std::fs::read(here).expect("is read"));
        }
        bytes
    }

    #[test]
    fn what_is_packed_arrives_as_it_was_and_what_is_damaged_does_not() {
        let here = tempfile::tempdir().expect("a folder");
        let root = here.path().join("app");
        std::fs::create_dir_all(root.join("bin")).expect("folders");
        std::fs::write(root.join("bin/run"), "#!/bin/sh\n").expect("a file");
        std::fs::set_permissions(root.join("bin/run"), std::fs::Permissions::from_mode(0o755)).expect("mode");
        std::fs::write(root.join("a.txt"), "a").expect("a file");
        std::os::unix::fs::symlink("bin/run", root.join("link")).expect("a link");
        for source in [root.clone(), root.join("bin/run")] {
            let there = here.path().join("there").join(source.file_name().expect("a name"));
            let packed = Packed::of(&source).expect("is packed");
            let bytes = read(&packed, &source);
            assert_eq!(packed.bytes(), bytes.len() as u64);
            let mut damaged = bytes.clone();
            damaged[0] ^= 1;
            let fault = packed.unpack(&there, &mut damaged.as_slice()).expect_err("is damaged");
            assert_eq!(fault.kind, "upload-damaged");
            let fault = packed.unpack(&there, &mut &bytes[1..]).expect_err("is short");
            assert_eq!(fault.kind, "upload-damaged");
            assert_eq!(std::fs::read_dir(&there).expect("is there").count(), 0);
            packed.unpack(&there, &mut bytes.as_slice()).expect("arrives");
            let arrived = there.join(packed.digest.trim_start_matches("sha256:")).join(&packed.name);
            assert_eq!(Packed::of(&arrived).expect("is packed"), packed);
        }
    }

    #[test]
    fn nothing_is_written_outside() {
        let here = tempfile::tempdir().expect("a folder");
        for bad in ["../x", "/etc/x", "a/../../x", ""] {
            let entry = PackedEntry { path: bad.to_owned(), mode: 0o644, content: PackedContent::File(1) };
            let packed = Packed {
                digest: "sha256:00".to_owned(),
                name: "app".to_owned(),
                single: false,
                entries: vec![entry],
            };
            let fault = packed.unpack(&here.path().join("there"), &mut &b"x"[..]).expect_err("is refused");
            assert_eq!(fault.kind, "artifact-unfit", "{bad:?}");
        }
        assert_eq!(std::fs::read_dir(here.path().join("there")).expect("is there").count(), 0);
    }
}
