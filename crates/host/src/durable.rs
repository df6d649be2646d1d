//! Files that are whole or not there, and locks that end with their holder.

use crate::clock::now_ms;
use cdpipe_model::Fault;
use cdpipe_model::ports::Cancel;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Whether a write must survive a power cut, or only the end of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// On the disk before the call returns.
    Synced,
    /// Whole or not there, as other processes see it.
    Atomic,
}

/// Says what an I/O error means, with the path it happened at.
pub(crate) fn io_fault(what: &str, path: &Path, error: &io::Error) -> Fault {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::StorageFull => {
            Fault::new("disk-full", format!("cannot {what} {path}: no space is left on the disk"))
                .help("free some space there and run it again")
        }
        io::ErrorKind::PermissionDenied => {
            Fault::new("permission-denied", format!("cannot {what} {path}: permission denied"))
                .help("check who owns it, and as whom cdpipe runs")
        }
        _ => Fault::new("file-failed", format!("cannot {what} {path}: {error}")),
    }
}

static TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// A name beside `path` that no other process uses. Readers skip names with a leading dot.
pub(crate) fn temporary_beside(path: &Path) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let number = TEMPORARY.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{}.{}.{number}.tmp", std::process::id(), now_ms()))
}

/// Writes JSON so that a reader sees the old or the new text, never a part. Only the owner may read it.
///
/// # Errors
/// A fault that names the path.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T, durability: Durability) -> Result<(), Fault> {
    let text = serde_json::to_vec_pretty(value).map_err(|error| {
        Fault::new("state-unwritable", format!("cannot write {}: {error}", path.display()))
    })?;
    write_atomic(path, &text, durability).map_err(|error| io_fault("write", path, &error))
}

fn write_atomic(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let temporary = temporary_beside(path);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        if durability == Durability::Synced {
            file.sync_all()?;
        }
        std::fs::rename(&temporary, path)?;
        if durability == Durability::Synced {
            sync_parent(path)?;
        }
        Ok(())
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Makes a rename or a removal in the folder of `path` durable.
///
/// # Errors
/// Of the file system.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Reads JSON; `None` if the file is not there.
///
/// # Errors
/// `state-unreadable` if it is there and says nothing that can be understood.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Fault> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(io_fault("read", path, &error)),
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        Fault::new(
            "state-unreadable",
            format!("{} is damaged, or of a newer cdpipe: {error}", path.display()),
        )
        .help("use the cdpipe that wrote it, or move the file away")
    })
}

/// Makes a folder that only the owner may enter, with its parents.
///
/// # Errors
/// A fault that names the path.
pub(crate) fn make_folder(path: &Path) -> Result<(), Fault> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| io_fault("make the folder", path, &error))
}

/// Removes a folder with all that is in it, in such a way that nobody sees half of it. That it is not there is fine. Not synced: if a
/// power cut brings it back, what is written down says that it should go.
///
/// # Errors
/// A fault that names the path.
pub(crate) fn remove_folder(path: &Path) -> Result<(), Fault> {
    let doomed = temporary_beside(path);
    match std::fs::rename(path, &doomed) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_fault("remove", path, &error)),
    }
    match std::fs::remove_dir_all(&doomed) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // Folders keep the mode they were built with, and one without the write bit can't be emptied.
            make_writable(&doomed);
            std::fs::remove_dir_all(&doomed).map_err(|error| io_fault("remove", path, &error))
        }
        done => done.map_err(|error| io_fault("remove", path, &error)),
    }
}

fn make_writable(folder: &Path) {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        // What can't be changed shows itself when it can't be removed.
        let _ = std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700));
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        folders.extend(
            entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
}

/// An exclusive lock on a file, held until it is dropped or its process ends.
#[derive(Debug)]
pub(crate) struct FileLock {
    // Closing the file is what gives the lock back.
    file: File,
}

impl FileLock {
    /// Takes the lock, or answers `None` if someone else has it.
    ///
    /// # Errors
    /// Of the file system.
    pub(crate) fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        match file.try_lock() {
            // Someone may have removed the folder since it was opened: then this locks nothing that anybody else looks at.
            Ok(()) => Ok(is_at(&file, path).then_some(Self { file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Whether this lock is still what others find at the path.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        is_at(&self.file, path)
    }

    /// Whether someone holds the lock exclusively. Takes it for a moment in shared mode, so two who ask don't see each other.
    pub(crate) fn is_held(path: &Path) -> bool {
        let Ok(file) = File::open(path) else { return false };
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
    }

    /// Waits for the lock.
    ///
    /// # Errors
    /// `busy` (transient) if it was not free in time, `cancelled`.
    pub(crate) async fn wait(path: &Path, deadline: Duration, cancel: &dyn Cancel) -> Result<Self, Fault> {
        let until = Instant::now() + deadline;
        let mut pause = Duration::from_millis(2);
        loop {
            match Self::try_exclusive(path) {
                Ok(Some(lock)) => return Ok(lock),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if let Some(folder) = path.parent() {
                        make_folder(folder)?;
                    }
                }
                Err(error) => return Err(io_fault("lock", path, &error)),
            }
            if cancel.is_cancelled() {
                return Err(Fault::new(
                    "cancelled",
                    "cancelled while another cdpipe was at work on this service",
                ));
            }
            if Instant::now() >= until {
                return Err(Fault::new(
                    "busy",
                    format!("another cdpipe has been at work on {} for too long", path.display()),
                )
                .help("see `cdpipe runs` for who it is")
                .transient());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

/// Whether the path leads to this open file.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_who_holds_a_lock_does_not_take_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lock");
        assert!(!FileLock::is_held(&path));
        let held = FileLock::try_exclusive(&path).expect("opens").expect("is free");
        assert!(FileLock::is_held(&path));
        assert!(FileLock::is_held(&path));
        drop(held);
        assert!(!FileLock::is_held(&path));
    }

    #[test]
    fn a_lock_whose_file_was_removed_locks_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lock");
        let held = FileLock::try_exclusive(&path).expect("opens").expect("is free");
        assert!(held.is_at(&path));
        std::fs::remove_file(&path).expect("removes");
        assert!(!held.is_at(&path));
        assert!(FileLock::try_exclusive(&path).expect("opens").is_some());
        assert!(!held.is_at(&path));
    }

    #[test]
    fn folders_without_the_write_bit_can_be_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let inner = folder.path().join("a/b");
        std::fs::create_dir_all(&inner).expect("folders");
        for path in [&inner, &folder.path().join("a")] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o555)).expect("mode");
        }
        make_writable(&folder.path().join("a"));
        assert_eq!(std::fs::metadata(&inner).expect("is there").mode() & 0o777, 0o700);
        remove_folder(&folder.path().join("a")).expect("is removed");
        assert_eq!(std::fs::read_dir(folder.path()).expect("reads").count(), 0);
    }

    #[test]
    fn a_damaged_file_is_told_from_a_missing_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.json");
        assert_eq!(read_json::<u32>(&path).expect("no error"), None);
        write_json(&path, &7_u32, Durability::Synced).expect("writes");
        assert_eq!(read_json::<u32>(&path).expect("no error"), Some(7));
        std::fs::write(&path, "{").expect("writes");
        assert_eq!(read_json::<u32>(&path).expect_err("an error").kind, "state-unreadable");
    }
}
