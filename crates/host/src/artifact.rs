//! What a release is made from: finding the program, hashing a file or a tree in a stable order, and copying it.
//!
//! The digest is over kind, mode, path and content of each entry, sorted by path, so that the same tree has the same digest on each
//! machine. Owner and times are not part of it. Symbolic links are entries of their own and are never followed.

use crate::durable::{io_fault, sync_parent, temporary_beside};
use cdpipe_model::Fault;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

/// More entries than this are a mistake (a whole home folder), not an artifact.
const ENTRIES_LIMIT: usize = 200_000;

/// Up to so many files each is synced by itself; above, the file system is synced once.
const SYNC_EACH_LIMIT: usize = 256;

/// What lies in an artifact, entry by entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// Relative to the artifact; the bare name if the artifact is one file.
    path: String,
    kind: Kind,
    /// Permission bits.
    mode: u32,
    /// SHA-256 of the content, or the target of a link.
    content: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    File,
    Folder,
    Link,
}

impl Manifest {
    /// Reads a file or a tree.
    ///
    /// # Errors
    /// `artifact-missing`, `artifact-unfit` (a socket in it, too many entries), or what the file system says.
    pub(crate) fn of(path: &Path) -> Result<Self, Fault> {
        let metadata = std::fs::metadata(path).map_err(|error| missing(path, &error))?;
        let mut entries = Vec::new();
        if metadata.is_dir() {
            walk(path, &mut |relative, entry| {
                entries.push(describe(&path.join(relative), relative.to_string_lossy().into_owned(), entry)?);
                Ok(())
            })?;
            entries.sort_by(|a, b| a.path.cmp(&b.path));
        } else {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            entries.push(describe(path, name, &metadata)?);
        }
        Ok(Self { entries })
    }

    /// Path and mode of each entry, by path: a folder before what is in it.
    pub(crate) fn paths(&self) -> impl Iterator<Item = (&str, u32)> {
        self.entries.iter().map(|entry| (entry.path.as_str(), entry.mode))
    }

    /// `sha256:…` over all of it.
    pub(crate) fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for entry in &self.entries {
            let kind = match entry.kind {
                Kind::File => "file",
                Kind::Folder => "folder",
                Kind::Link => "link",
            };
            // Lengths first, so that no two lists of entries can look the same.
            hash.update(format!("{kind} {:o} {} {}\n", entry.mode, entry.path.len(), entry.content.len()));
            hash.update(entry.path.as_bytes());
            hash.update(entry.content.as_bytes());
        }
        format!("sha256:{}", hex(&hash.finalize()))
    }

    /// Entries that are gone from `now` or differ in it; what was added does not count, instances may write where they run.
    pub(crate) fn damaged_in(&self, now: &Manifest) -> Vec<String> {
        self.entries
            .iter()
            .filter(|entry| !now.entries.iter().any(|other| other == *entry))
            .filter(|entry| entry.kind != Kind::Folder)
            .map(|entry| entry.path.clone())
            .collect()
    }
}

fn missing(path: &Path, error: &io::Error) -> Fault {
    if error.kind() == io::ErrorKind::NotFound {
        Fault::new("artifact-missing", format!("the artifact {} does not exist", path.display()))
            .help("build it in an earlier stage, or correct `artifact` of the service; paths are relative to the pipeline's file")
    } else {
        io_fault("read the artifact", path, error)
    }
}

type Visit<'a> = dyn FnMut(&Path, &std::fs::Metadata) -> Result<(), Fault> + 'a;

/// Calls `visit` for each entry below `root`, folders before what is in them.
fn walk(root: &Path, visit: &mut Visit<'_>) -> Result<(), Fault> {
    let mut folders = vec![PathBuf::new()];
    let mut count = 0_usize;
    while let Some(folder) = folders.pop() {
        let here = root.join(&folder);
        let listing =
            std::fs::read_dir(&here).map_err(|error| io_fault("read the artifact", &here, &error))?;
        for item in listing {
            let item = item.map_err(|error| io_fault("read the artifact", &here, &error))?;
            let relative = folder.join(item.file_name());
            let metadata =
                item.metadata().map_err(|error| io_fault("read the artifact", &item.path(), &error))?;
            count += 1;
            if count > ENTRIES_LIMIT {
                return Err(Fault::new(
                    "artifact-unfit",
                    format!("the artifact {} has more than {ENTRIES_LIMIT} files", root.display()),
                )
                .help("point `artifact` at what the service needs to run, not at a whole working folder"));
            }
            visit(&relative, &metadata)?;
            if metadata.is_dir() {
                folders.push(relative);
            }
        }
    }
    Ok(())
}

fn describe(path: &Path, name: String, metadata: &std::fs::Metadata) -> Result<Entry, Fault> {
    let kind = metadata.file_type();
    let mode = metadata.mode() & 0o777;
    if kind.is_file() {
        let content = hash_file(path).map_err(|error| io_fault("read the artifact", path, &error))?;
        Ok(Entry { path: name, kind: Kind::File, mode, content })
    } else if kind.is_dir() {
        Ok(Entry { path: name, kind: Kind::Folder, mode, content: String::new() })
    } else if kind.is_symlink() {
        let target = std::fs::read_link(path).map_err(|error| io_fault("read the link", path, &error))?;
        // The mode of a link means nothing and differs between systems.
        Ok(Entry { path: name, kind: Kind::Link, mode: 0, content: hex(target.as_os_str().as_bytes()) })
    } else {
        Err(Fault::new(
            "artifact-unfit",
            format!("{} is neither a file, a folder nor a link", path.display()),
        )
        .help("sockets, pipes and devices can't be part of an artifact"))
    }
}

fn hash_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0_u8; 128 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Copies a file or a tree to the folder `to`, which must not be there; a file keeps its name in it. Content is copied (shared by the
/// file system where it can), never hard-linked: a later build must not change what runs. It is there whole, or not at all.
///
/// # Errors
/// What the file system says.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), Fault> {
    let temporary = temporary_beside(to);
    let copied = copy_into(from, &temporary).and_then(|files| {
        sync_tree(&temporary, files).map_err(|error| io_fault("write", &temporary, &error))?;
        std::fs::rename(&temporary, to).map_err(|error| io_fault("write", to, &error))?;
        sync_parent(to).map_err(|error| io_fault("write", to, &error))
    });
    if copied.is_err() {
        let _ = std::fs::remove_dir_all(&temporary);
    }
    copied
}

/// Answers how many files it copied.
fn copy_into(from: &Path, to: &Path) -> Result<usize, Fault> {
    let metadata = std::fs::metadata(from).map_err(|error| missing(from, &error))?;
    std::fs::create_dir(to).map_err(|error| io_fault("make the folder", to, &error))?;
    if !metadata.is_dir() {
        let target = to.join(from.file_name().unwrap_or_default());
        std::fs::copy(from, &target).map_err(|error| io_fault("copy to", &target, &error))?;
        return Ok(1);
    }
    let mut files = 0;
    let mut modes = Vec::new();
    walk(from, &mut |relative, metadata| {
        let target = to.join(relative);
        let done = if metadata.is_dir() {
            // Its own mode comes last: a folder without the write bit could not be filled.
            modes.push((target.clone(), metadata.mode() & 0o777));
            std::fs::create_dir(&target)
        } else if metadata.is_symlink() {
            std::fs::read_link(from.join(relative)).and_then(|link| std::os::unix::fs::symlink(link, &target))
        } else {
            files += 1;
            std::fs::copy(from.join(relative), &target).map(|_bytes| ())
        };
        done.map_err(|error| io_fault("copy to", &target, &error))
    })?;
    for (folder, mode) in modes.into_iter().rev() {
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode))
            .map_err(|error| io_fault("set the mode of", &folder, &error))?;
    }
    Ok(files)
}

fn sync_tree(root: &Path, files: usize) -> io::Result<()> {
    let folder = File::open(root)?;
    if files > SYNC_EACH_LIMIT {
        return Ok(rustix::fs::syncfs(&folder)?);
    }
    let mut folders = vec![root.to_owned()];
    while let Some(here) = folders.pop() {
        for item in std::fs::read_dir(&here)? {
            let item = item?;
            let kind = item.file_type()?;
            if kind.is_dir() {
                folders.push(item.path());
            } else if kind.is_file() {
                File::open(item.path())?.sync_all()?;
            }
        }
        File::open(&here)?.sync_all()?;
    }
    Ok(())
}

/// Where the program of a release lies.
#[derive(Debug, Clone)]
pub(crate) struct Place<'a> {
    /// Folder the pipeline's paths are relative to.
    pub(crate) base: &'a Path,
    /// The artifact as it was written, if there is one.
    pub(crate) written: Option<&'a str>,
    /// Where the artifact lies, if not in `base`: it came from another machine.
    pub(crate) uploaded: Option<PathBuf>,
    /// The copy in the release, once there is one.
    pub(crate) copied: Option<&'a Path>,
}

impl Place<'_> {
    /// Path of the artifact before it is copied.
    pub(crate) fn source(&self) -> Option<PathBuf> {
        match &self.uploaded {
            Some(uploaded) => Some(uploaded.clone()),
            None => self.written.map(|written| self.base.join(written)),
        }
    }

    /// The folder in which an instance runs: the copy, else the pipeline's folder.
    pub(crate) fn working_folder(&self) -> &Path {
        self.copied.unwrap_or(self.base)
    }

    /// Finds the program. A name with a slash is a path in the artifact (or the artifact's own path, as written), without an artifact
    /// one relative to the pipeline's folder. A bare name is looked for in the artifact, then on `PATH`.
    ///
    /// # Errors
    /// `program-missing` or `program-not-executable`, saying where it was looked for.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf, Fault> {
        let mut looked = Vec::new();
        for candidate in self.candidates(name) {
            match std::fs::metadata(&candidate) {
                Ok(metadata) if metadata.is_file() && metadata.mode() & 0o111 != 0 => return Ok(candidate),
                Ok(metadata) if metadata.is_file() => {
                    return Err(Fault::new(
                        "program-not-executable",
                        format!("the program {} is not executable", candidate.display()),
                    )
                    .help(format!("chmod +x {}", candidate.display())));
                }
                _ => looked.push(candidate.display().to_string()),
            }
        }
        let fault = Fault::new("program-missing", format!("the program `{name}` was not found"));
        Err(if looked.is_empty() {
            fault.help("it is not on PATH; give a path, or an `artifact` that contains it")
        } else {
            fault.help(format!("looked at {}", looked.join(", ")))
        })
    }

    fn candidates(&self, name: &str) -> Vec<PathBuf> {
        if Path::new(name).is_absolute() {
            return vec![PathBuf::from(name)];
        }
        let mut found = Vec::new();
        match (self.written, self.source()) {
            (Some(written), Some(source)) => {
                // What stands at this place of the artifact: the copy if there is one, else the source.
                let inside = normal(Path::new(name));
                let as_written = normal(Path::new(written));
                let is_folder =
                    self.copied.map_or_else(|| source.is_dir(), |_| !self.is_single_file(&source));
                let root = self.copied.map_or_else(|| source.clone(), Path::to_path_buf);
                if is_folder {
                    found.push(root.join(&inside));
                    if let Ok(rest) = inside.strip_prefix(&as_written) {
                        found.push(root.join(rest));
                    }
                } else if inside == as_written || Some(inside.as_os_str()) == source.file_name() {
                    found.push(match self.copied {
                        Some(copied) => copied.join(source.file_name().unwrap_or_default()),
                        None => source,
                    });
                }
            }
            _ if name.contains('/') => found.push(self.base.join(name)),
            _ => {}
        }
        if !name.contains('/') {
            let path = std::env::var_os("PATH").unwrap_or_default();
            found.extend(
                std::env::split_paths(&path).map(|folder| folder.join(name)).filter(|path| path.is_file()),
            );
        }
        found
    }

    /// Whether the copy is that of one file: the source may be gone by now, so the copy is asked.
    fn is_single_file(&self, source: &Path) -> bool {
        let Some(copied) = self.copied else { return source.is_file() };
        source.file_name().is_some_and(|name| copied.join(name).is_file())
            && std::fs::read_dir(copied).is_ok_and(|entries| entries.count() == 1)
    }
}

/// Without `.` parts; `..` stays and is looked up as it is.
fn normal(path: &Path) -> PathBuf {
    path.components().filter(|part| !matches!(part, Component::CurDir)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(folder.path().join("a/bin")).expect("folders");
        std::fs::write(folder.path().join("a/bin/app"), "#!/bin/sh\n").expect("a file");
        std::fs::set_permissions(folder.path().join("a/bin/app"), std::fs::Permissions::from_mode(0o755))
            .expect("mode");
        std::fs::write(folder.path().join("a/z.txt"), "z").expect("a file");
        std::os::unix::fs::symlink("bin/app", folder.path().join("a/run")).expect("a link");
        folder
    }

    #[test]
    fn a_copy_has_the_digest_of_its_source_and_does_not_follow_later_changes() {
        let folder = tree();
        let source = folder.path().join("a");
        let before = Manifest::of(&source).expect("reads");
        copy(&source, &folder.path().join("copy")).expect("copies");
        assert_eq!(Manifest::of(&folder.path().join("copy")).expect("reads").digest(), before.digest());
        std::fs::write(source.join("z.txt"), "other").expect("a file");
        let after = Manifest::of(&source).expect("reads");
        assert_ne!(after.digest(), before.digest());
        assert_eq!(before.damaged_in(&after), ["z.txt"]);
        assert_eq!(std::fs::read(folder.path().join("copy/z.txt")).expect("reads"), b"z");
    }

    #[test]
    fn the_mode_is_part_of_the_digest() {
        let folder = tree();
        let before = Manifest::of(&folder.path().join("a")).expect("reads").digest();
        std::fs::set_permissions(folder.path().join("a/z.txt"), std::fs::Permissions::from_mode(0o600))
            .expect("mode");
        assert_ne!(Manifest::of(&folder.path().join("a")).expect("reads").digest(), before);
    }

    #[test]
    fn a_socket_is_refused() {
        let folder = tree();
        let _listener = std::os::unix::net::UnixListener::bind(folder.path().join("a/s")).expect("binds");
        assert_eq!(Manifest::of(&folder.path().join("a")).expect_err("refused").kind, "artifact-unfit");
    }

    #[test]
    fn a_program_is_found_in_the_artifact_by_each_way_to_write_it() {
        let folder = tree();
        let app = folder.path().join("a/bin/app");
        let place =
            |written| Place { base: folder.path(), written: Some(written), uploaded: None, copied: None };
        assert_eq!(place("a").program("bin/app").expect("found"), app);
        assert_eq!(place("./a").program("./bin/app").expect("found"), app);
        assert_eq!(place("a").program("a/bin/app").expect("found"), app);
        assert_eq!(place("a/bin/app").program("a/bin/app").expect("found"), app);
        assert_eq!(place("a/bin/app").program("./app").expect("found"), app);
        assert_eq!(place("a/bin/app").program("app").expect("found"), app);
        assert_eq!(place("a").program("./z.txt").expect_err("no").kind, "program-not-executable");
        assert_eq!(place("a").program("./nothing").expect_err("no").kind, "program-missing");
        let place = Place { base: folder.path(), written: None, uploaded: None, copied: None };
        assert_eq!(place.program("a/bin/app").expect("found"), app);
        assert!(place.program("sh").expect("found").ends_with("sh"));
        assert_eq!(place.program("no-such-program-anywhere").expect_err("no").kind, "program-missing");
    }

    #[test]
    fn a_program_is_found_in_the_copy_though_the_source_is_gone() {
        let folder = tree();
        for (written, name, expected) in
            [("a", "bin/app", "bin/app"), ("a/bin/app", "./app", "app"), ("a/bin/app", "a/bin/app", "app")]
        {
            let copied = folder.path().join(format!("copy-{}", written.len() + name.len()));
            copy(&folder.path().join(written), &copied).expect("copies");
            let elsewhere = folder.path().join("elsewhere");
            let place =
                Place { base: &elsewhere, written: Some(written), uploaded: None, copied: Some(&copied) };
            assert_eq!(place.program(name).expect("found"), copied.join(expected));
        }
    }
}
