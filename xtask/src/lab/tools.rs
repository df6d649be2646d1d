//! Binaries that benches and checks call: peers to be measured against, and helpers of cargo. A tool is "up" when its
//! binary is there; `down` leaves it, because it is not a process.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{For, Part, Place, Trouble, Up, install};
use crate::process::Job;
use crate::{project, say};

/// Building a tool from its source, cold, on two cores.
const BUILD_WITHIN: Duration = Duration::from_secs(20 * 60);

/// The parts of this file, for `lab up tools`.
pub(crate) const NAMES: [&str; 6] = ["actionlint", "ninja", "wrk", "cargo-deny", "cargo-fuzz", "haproxy"];

/// The peer of `cdpipe check`.
pub(crate) const ACTIONLINT: Tool = Tool {
    name: "actionlint",
    about: "checks GitHub workflows; the peer of `cdpipe check`",
    used_by: &[For::Bench],
    variable: "CDPIPE_LAB_ACTIONLINT",
    source: Source::Go { module: "github.com/rhysd/actionlint/cmd/actionlint", version: "1.7.12" },
};
/// The peer of `cdpipe run`.
pub(crate) const NINJA: Tool = Tool {
    name: "ninja",
    about: "runs commands along a DAG; the peer of `cdpipe run`",
    used_by: &[For::Bench],
    variable: "CDPIPE_LAB_NINJA",
    source: Source::Wheel { package: "ninja", version: "1.13.2" },
};
/// Loads both proxies.
pub(crate) const WRK: Tool = Tool {
    name: "wrk",
    about: "HTTP load",
    used_by: &[For::Bench],
    variable: "CDPIPE_LAB_WRK",
    source: Source::Debian { package: "wrk" },
};
/// Licences, banned crates, sources.
pub(crate) const CARGO_DENY: Tool = Tool {
    name: "cargo-deny",
    about: "checks licences, bans and sources of dependencies",
    used_by: &[For::Ci],
    variable: "CDPIPE_LAB_CARGO_DENY",
    source: Source::Cargo { version: "0.20.2" },
};
/// Runs the fuzz targets.
pub(crate) const CARGO_FUZZ: Tool = Tool {
    name: "cargo-fuzz",
    about: "runs the fuzz targets (needs a nightly toolchain)",
    used_by: &[For::Ci],
    variable: "CDPIPE_LAB_CARGO_FUZZ",
    source: Source::Cargo { version: "0.13.2" },
};

/// The router; each test runs its own, for it is configured by a file.
pub(crate) const HAPROXY: Tool = Tool {
    name: "haproxy",
    about: "the router `haproxy`; each test runs its own",
    used_by: &[For::Test],
    variable: "CDPIPE_LAB_HAPROXY_BIN",
    source: Source::Debian { package: "haproxy" },
};

/// Where a tool comes from.
pub(crate) enum Source {
    /// A Debian package with a program of the tool's name.
    Debian { package: &'static str },
    /// crates.io.
    Cargo { version: &'static str },
    /// A Go module.
    Go { module: &'static str, version: &'static str },
    /// A Python wheel that holds a binary.
    Wheel { package: &'static str, version: &'static str },
}

/// A binary.
pub(crate) struct Tool {
    name: &'static str,
    about: &'static str,
    used_by: &'static [For],
    variable: &'static str,
    source: Source,
}

impl Tool {
    fn version(&self) -> Option<&'static str> {
        match self.source {
            Source::Debian { .. } => None,
            Source::Cargo { version } | Source::Go { version, .. } | Source::Wheel { version, .. } => {
                Some(version)
            }
        }
    }

    fn found(&self) -> Option<PathBuf> {
        match self.version() {
            None => project::find(self.name),
            Some(version) => {
                install::cached_path(self.name, version).ok().filter(|path| project::is_executable(path))
            }
        }
    }

    fn is_there(&self, path: &Path) -> Up {
        let path = path.display().to_string();
        Up { at: path.clone(), env: vec![(self.variable.to_owned(), path)] }
    }

    fn provide(&self) -> Result<PathBuf, Trouble> {
        let Some(version) = self.version() else {
            let Source::Debian { package } = self.source else {
                return Err(Trouble::Broken(format!("{} has neither a version nor a package", self.name)));
            };
            return install::debian(package, self.name);
        };
        install::cached(self.name, version, |dir| {
            let job = match self.source {
                Source::Debian { .. } => return Ok(()),
                Source::Cargo { version } => cargo(self.name, version, dir)?,
                Source::Go { module, version } => go(module, version, dir)?,
                Source::Wheel { package, version } => wheel(package, version, dir)?,
            };
            say::say(&format!("lab  {:<12} not in the cache yet: building {version} …", self.name));
            job.must().map(|_| ()).map_err(|error| match error.contains("No module named pip") {
                true => missing("python3 has no pip", "install python3-pip"),
                false => Trouble::Broken(error),
            })
        })
    }
}

/// Unoptimised and without debug information: these run for a second in CI and are built on its first run, so building
/// fast is worth more than running fast.
fn cargo(name: &str, version: &str, dir: &Path) -> Result<Job, Trouble> {
    let target = project::cache()?.join("build").join("cargo");
    let args = [
        "install",
        "--quiet",
        "--locked",
        "--debug",
        "--no-default-features",
        "--version",
        version,
        "--root",
    ];
    let args = args.iter().map(OsStr::new).chain([dir.as_os_str(), name.as_ref()]);
    Ok(Job::cargo(args, BUILD_WITHIN).env("CARGO_TARGET_DIR", target).env("CARGO_PROFILE_DEV_DEBUG", "0"))
}

fn go(module: &str, version: &str, dir: &Path) -> Result<Job, Trouble> {
    let go = project::find("go")
        .ok_or_else(|| missing("there is no `go` on PATH", "install a Go toolchain (1.25 or newer)"))?;
    let job = Job::new(go, ["install", "-trimpath", &format!("{module}@v{version}")], BUILD_WITHIN);
    // In the checkout `go` would look for a go.mod of ours.
    Ok(job.dir(dir_of(dir)?).env("GOBIN", dir.join("bin")))
}

fn wheel(package: &str, version: &str, dir: &Path) -> Result<Job, Trouble> {
    let python = project::find("python3")
        .ok_or_else(|| missing("there is no `python3` on PATH", "install Python 3 with pip"))?;
    let requirement = format!("{package}=={version}");
    let args =
        ["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--upgrade", "--target"];
    let args = args.iter().map(OsStr::new).chain([dir.as_os_str(), requirement.as_ref()]);
    Ok(Job::new(python, args, BUILD_WITHIN).env("PIP_ROOT_USER_ACTION", "ignore"))
}

fn missing(why: &str, install: &str) -> Trouble {
    Trouble::Missing { why: why.to_owned(), install: install.to_owned() }
}

fn dir_of(dir: &Path) -> Result<PathBuf, String> {
    std::fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    Ok(dir.to_path_buf())
}

impl Part for Tool {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn used_by(&self) -> &'static [For] {
        self.used_by
    }

    fn up(&self, _: &Place) -> Result<Up, Trouble> {
        self.provide().map(|path| self.is_there(&path))
    }

    fn down(&self, _: &Place) -> Result<bool, String> {
        Ok(false)
    }

    fn status(&self, _: &Place) -> Option<Up> {
        self.found().map(|path| self.is_there(&path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_has_every_tool_of_this_file() {
        let tools = [&ACTIONLINT, &NINJA, &WRK, &CARGO_DENY, &CARGO_FUZZ, &HAPROXY];
        assert_eq!(tools.map(|tool| tool.name), NAMES);
    }
}
