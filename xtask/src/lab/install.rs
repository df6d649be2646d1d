//! Getting a binary onto the machine: from Debian's packages, or built by its language's own client into the cache.

use std::path::PathBuf;
use std::time::Duration;

use super::{Trouble, locked};
use crate::process::Job;
use crate::{project, sys};

const APT_WITHIN: Duration = Duration::from_secs(10 * 60);

/// A program of a Debian package: found on the machine, or installed where we may.
///
/// # Errors
/// `Missing` where it is not there and we are not root or there is no apt; `Broken` where apt fails.
pub(crate) fn debian(package: &str, program: &str) -> Result<PathBuf, Trouble> {
    if let Some(path) = project::find(program) {
        return Ok(path);
    }
    let missing = |why: &str| Trouble::Missing {
        why: format!("`{program}` is not installed and {why}"),
        install: format!("as root: apt-get install --no-install-recommends {package}"),
    };
    let Some(apt) = project::find("apt-get") else { return Err(missing("this machine has no apt-get")) };
    if !sys::is_root() {
        return Err(missing("only root may install it"));
    }
    locked("apt", || {
        let run = |args: &[&str]| {
            Job::new(&apt, args, APT_WITHIN)
                .env("DEBIAN_FRONTEND", "noninteractive")
                // Packages ask this before they start their service; the lab starts its own.
                .env("RUNLEVEL", "1")
                .must()
        };
        let install =
            ["-o", "DPkg::Lock::Timeout=300", "install", "-y", "-q", "--no-install-recommends", package];
        if run(&install).is_err() {
            // The usual reason is package lists that are old or were never read.
            run(&["-o", "DPkg::Lock::Timeout=300", "update", "-q"])?;
            run(&install)?;
        }
        Ok(())
    })?;
    project::find(program)
        .ok_or_else(|| Trouble::Broken(format!("{package} was installed, but there is no `{program}`")))
}

/// A binary in the cache under `NAME-VERSION/bin/NAME`, built by `build` (into that folder) if it is not there yet.
///
/// # Errors
/// What `build` says, or that it left no binary.
pub(crate) fn cached(
    name: &str,
    version: &str,
    build: impl FnOnce(&std::path::Path) -> Result<(), Trouble>,
) -> Result<PathBuf, Trouble> {
    let path = cached_path(name, version)?;
    if project::is_executable(&path) {
        return Ok(path);
    }
    locked(name, || {
        // Another checkout may have built it while we waited.
        if !project::is_executable(&path) {
            let dir = path.parent().and_then(std::path::Path::parent).unwrap_or(&path);
            build(dir)?;
        }
        if project::is_executable(&path) {
            Ok(path.clone())
        } else {
            Err(Trouble::Broken(format!("it was built, but there is no {}", path.display())))
        }
    })
}

/// Where [`cached`] keeps a binary.
///
/// # Errors
/// There is no folder for caches.
pub(crate) fn cached_path(name: &str, version: &str) -> Result<PathBuf, String> {
    Ok(project::cache()?.join(format!("{name}-{version}")).join("bin").join(name))
}
