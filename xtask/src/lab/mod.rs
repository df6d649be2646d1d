//! The lab: the real components that tests and benches talk to, on this machine, without a registry or a daemon manager.
//!
//! A part is one file here and one line in [`PARTS`]. A *tool* is a binary, found on the machine, installed from Debian,
//! or built once into the cache outside the checkout under its version. A *service* is a process (or several) with its
//! data, its pid file and its log in `.lab/PART/` of the checkout, and a free loopback port of its own, so that two
//! checkouts never meet. Everything is idempotent: `up` of what is up and `down` of what is down do nothing.
//!
//! Invariants: `down` ends only what `up` of this checkout started (pid *and* start time are recorded); what cannot be
//! had says what to install, once, loudly; nothing listens anywhere but on 127.0.0.1.

mod daemon;
mod engine;
mod hosts;
mod images;
mod install;
mod istio;
mod kubernetes;
mod nginx;
mod prometheus;
mod redis;
mod registry;
mod tools;

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub(crate) use self::daemon::Daemon;
pub(crate) use self::nginx::configuration as nginx_configuration;
use crate::args::Args;
use crate::project;
use crate::say::{duration, say};

/// How long one checkout waits for another that installs or builds the same.
const LOCK_WAIT: Duration = Duration::from_secs(20 * 60);

/// Why a part is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It can't be had on this machine. Tests that need it are skipped (in CI: that is a failure).
    Missing {
        /// What was found wanting.
        why: String,
        /// What a person can do about it.
        install: String,
    },
    /// It can be had, and did not work. Always a failure.
    Broken(String),
}

impl Trouble {
    /// For a person.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Missing { why, install } => format!("{why}; {install}"),
            Self::Broken(why) => why.clone(),
        }
    }
}

impl From<String> for Trouble {
    fn from(why: String) -> Self {
        Self::Broken(why)
    }
}

/// What a part is for, so that `test`, `ci` and `bench` bring up no more than they use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// The tests talk to it.
    Test,
    /// `cargo xtask ci` calls it.
    Ci,
    /// `cargo xtask bench` measures it.
    Bench,
}

/// What `up` and `status` know of a part that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Up {
    /// Where it is: an address, or the path of a binary.
    pub(crate) at: String,
    /// What tests and benches learn of it: environment variables.
    pub(crate) env: Vec<(String, String)>,
}

/// One component of the lab.
pub(crate) trait Part: Sync {
    /// Its name on the command line.
    fn name(&self) -> &'static str;
    /// One line for `status`.
    fn about(&self) -> &'static str;
    /// Who needs it.
    fn used_by(&self) -> &'static [For];
    /// Names of parts that have to be up before it.
    fn needs(&self) -> &'static [&'static str] {
        &[]
    }
    /// Brings it up; does nothing where it is up already.
    fn up(&self, place: &Place) -> Result<Up, Trouble>;
    /// Ends what `up` started; does nothing where nothing was. Says whether something was ended.
    fn down(&self, place: &Place) -> Result<bool, String>;
    /// How it is now, without changing anything.
    fn status(&self, place: &Place) -> Option<Up>;
}

/// Every part, in the order in which they are brought up. A new part is a file beside this one and a line here.
const PARTS: &[&dyn Part] = &[
    &tools::ACTIONLINT,
    &tools::NINJA,
    &tools::WRK,
    &tools::CARGO_DENY,
    &tools::CARGO_FUZZ,
    &tools::HAPROXY,
    &nginx::Nginx,
    &prometheus::Prometheus,
    &redis::Redis,
    &registry::Registry,
    &engine::DOCKER,
    &engine::SWARM,
    &hosts::Hosts,
    &kubernetes::Kubernetes,
    &istio::Istio,
];

/// The name for all parts that are binaries only.
const TOOLS: &str = "tools";

/// A part's own folder in the checkout: data, log, pid file, port.
pub(crate) struct Place {
    /// `.lab/PART`
    pub(crate) dir: PathBuf,
}

impl Place {
    fn of(part: &dyn Part) -> Self {
        Self::named(part.name())
    }

    fn named(part: &str) -> Self {
        Self { dir: project::root().join(".lab").join(part) }
    }

    /// Whether `up` was asked for by a run that takes it down again, and not by a person.
    fn is_borrowed(&self) -> bool {
        self.dir.join("borrowed").exists()
    }
}

/// `cargo xtask lab …`
pub(crate) fn command(raw: &[String]) -> Result<(), String> {
    let args = Args::parse(raw, &[], &[])?;
    let (verb, names) = match args.words.split_first() {
        Some((verb, names)) => (verb.as_str(), names),
        None => ("status", &[] as &[String]),
    };
    let parts = select(names)?;
    match verb {
        "up" => {
            let report = up(&parts, false)?;
            match report.missing.as_slice() {
                [] => Ok(()),
                missing => Err(format!("not there: {}", missing.join(", "))),
            }
        }
        "down" => down(&parts),
        "status" => {
            status(&parts);
            Ok(())
        }
        "env" => {
            for (name, value) in
                parts.iter().filter_map(|part| part.status(&Place::of(*part))).flat_map(|up| up.env)
            {
                say(&format!("export {name}='{value}'"));
            }
            Ok(())
        }
        other => Err(format!("`lab {other}` is not known; there is: up, down, status, env")),
    }
}

/// The parts that were named, and those they need, in the order of bringing up. No name means all.
fn select(names: &[String]) -> Result<Vec<&'static dyn Part>, String> {
    let mut wanted: Vec<&str> = Vec::new();
    for name in names {
        if name == TOOLS {
            wanted.extend(tools::NAMES);
        } else if let Some(part) = PARTS.iter().find(|part| part.name() == name) {
            wanted.push(part.name());
        } else {
            let known: Vec<&str> = PARTS.iter().map(|part| part.name()).chain([TOOLS]).collect();
            return Err(format!("the lab has no part `{name}`; it has: {}", known.join(", ")));
        }
    }
    if names.is_empty() {
        wanted.extend(PARTS.iter().map(|part| part.name()));
    }
    let mut index = 0;
    while let Some(name) = wanted.get(index).copied() {
        let needs =
            PARTS.iter().filter(|part| part.name() == name).flat_map(|part| part.needs().iter().copied());
        let more: Vec<&str> = needs.filter(|need| !wanted.contains(need)).collect();
        wanted.extend(more);
        index += 1;
    }
    Ok(PARTS.iter().copied().filter(|part| wanted.contains(&part.name())).collect())
}

/// The parts that somebody uses.
pub(crate) fn parts_for(user: For) -> Vec<&'static dyn Part> {
    PARTS.iter().copied().filter(|part| part.used_by().contains(&user)).collect()
}

/// These parts, and what they need. No name means none.
///
/// # Errors
/// There is none of such a name.
pub(crate) fn named(names: &[&str]) -> Result<Vec<&'static dyn Part>, String> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    select(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
}

/// The part with machines, that many of them, and what it needs.
///
/// # Errors
/// Never, as long as the parts have their names.
pub(crate) fn machines(count: u32) -> Result<Vec<&'static dyn Part>, String> {
    hosts::want(count);
    select(&["hosts".to_owned()])
}

/// One part by its name.
///
/// # Errors
/// There is none of that name.
pub(crate) fn part(name: &str) -> Result<&'static dyn Part, String> {
    PARTS
        .iter()
        .copied()
        .find(|part| part.name() == name)
        .ok_or_else(|| format!("the lab has no part `{name}`"))
}

/// What bringing up came to.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// For the tests: where everything is.
    pub(crate) env: Vec<(String, String)>,
    /// One line for each part that can't be had here.
    pub(crate) missing: Vec<String>,
}

/// Brings up parts, and says so. A part that is `borrowed` (by a test run) ends with that run.
///
/// # Errors
/// A part is broken, or in CI missing.
pub(crate) fn up(parts: &[&dyn Part], borrowed: bool) -> Result<Report, String> {
    let mut report = Report::default();
    let mut broken = Vec::new();
    for part in parts {
        if crate::sys::interrupted() {
            return Err("interrupted".to_owned());
        }
        let name = part.name();
        let place = Place::of(*part);
        let before = part.status(&place).is_some();
        let begin = Instant::now();
        let result = fs::create_dir_all(&place.dir)
            .map_err(|error| Trouble::Broken(format!("{}: {error}", place.dir.display())))
            .and_then(|()| mark(&place, borrowed, before).map_err(Trouble::Broken))
            .and_then(|()| part.up(&place));
        match result {
            Ok(up) => {
                let how = if before { "already there".to_owned() } else { duration(begin.elapsed()) };
                say(&format!("lab  {name:<12} {}  ({how})", up.at));
                report.env.extend(up.env);
            }
            Err(trouble @ Trouble::Missing { .. }) => {
                say(&format!("lab  {name:<12} MISSING: {}", trouble.text()));
                report.missing.push(format!("{name}: {}", trouble.text()));
            }
            Err(trouble @ Trouble::Broken(_)) => {
                say(&format!("lab  {name:<12} BROKEN: {}", trouble.text()));
                broken.push(format!("{name}: {}", trouble.text()));
            }
        }
    }
    if project::ci() {
        // There the machine is ours to complete: a part that is missing would hide tests that never ran.
        broken.append(&mut report.missing);
    }
    if broken.is_empty() {
        Ok(report)
    } else {
        Err(format!("the lab is not complete:\n  {}", broken.join("\n  ")))
    }
}

/// A borrowed part stays borrowed until a person asks for it; one that a person asked for is never marked.
fn mark(place: &Place, borrowed: bool, already_up: bool) -> Result<(), String> {
    let mark = place.dir.join("borrowed");
    let result = match (borrowed, already_up) {
        (true, false) => fs::write(&mark, ""),
        (false, _) if mark.exists() => fs::remove_file(&mark),
        _ => Ok(()),
    };
    result.map_err(|error| format!("{}: {error}", mark.display()))
}

/// Takes down parts, in the opposite order of bringing up.
///
/// # Errors
/// Something that was started does not end. The others are taken down all the same.
pub(crate) fn down(parts: &[&dyn Part]) -> Result<(), String> {
    let mut failed = Vec::new();
    for part in parts.iter().rev() {
        match part.down(&Place::of(*part)) {
            Ok(true) => say(&format!("lab  {:<12} down", part.name())),
            Ok(false) => {}
            Err(error) => failed.push(format!("{}: {error}", part.name())),
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
}

/// That a run uses the lab of this checkout. The last user takes down what was borrowed, also what an earlier run left
/// that was killed before it could.
pub(crate) struct Loan(Option<File>);

/// Begins to use the lab.
///
/// # Errors
/// The lock file cannot be made.
pub(crate) fn borrow() -> Result<Loan, String> {
    let path = project::root().join(".lab").join("users");
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    fs::create_dir_all(project::root().join(".lab")).map_err(failed)?;
    let file = File::create(&path).map_err(failed)?;
    file.lock_shared().map_err(failed)?;
    Ok(Loan(Some(file)))
}

impl Loan {
    /// Ends the use: where nobody else uses the lab, what was borrowed is taken down.
    ///
    /// # Errors
    /// Something does not end.
    pub(crate) fn give_back(mut self) -> Result<(), String> {
        let Some(file) = self.0.take() else { return Ok(()) };
        // Unlock first: a shared lock of our own would stand in the way of the exclusive one.
        if file.unlock().is_err() || file.try_lock().is_err() {
            return Ok(());
        }
        let borrowed: Vec<&dyn Part> =
            PARTS.iter().copied().filter(|part| Place::of(*part).is_borrowed()).collect();
        down(&borrowed)
    }
}

fn status(parts: &[&dyn Part]) {
    for part in parts {
        let place = Place::of(*part);
        let state = match part.status(&place) {
            Some(up) if place.is_borrowed() => format!("up    {}  (borrowed by a run)", up.at),
            Some(up) => format!("up    {}", up.at),
            None => format!("down  {}", part.about()),
        };
        say(&format!("{:<12} {state}", part.name()));
    }
}

/// Holds a lock while something is installed or built that several checkouts share.
///
/// # Errors
/// The lock was not to be had in time.
fn locked<T>(name: &str, work: impl FnOnce() -> Result<T, Trouble>) -> Result<T, Trouble> {
    let cache = project::cache()?;
    let path = cache.join(format!("{name}.lock"));
    let failed = |error: std::io::Error| Trouble::Broken(format!("{}: {error}", path.display()));
    fs::create_dir_all(&cache).map_err(failed)?;
    let file = File::create(&path).map_err(failed)?;
    let free = crate::net::until(LOCK_WAIT, || file.try_lock().is_ok(), || false);
    if !free {
        return Err(Trouble::Broken(format!("{} is held by another run for too long", path.display())));
    }
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_select_parts_in_order_and_unknown_ones_are_refused() {
        let names = |list: &[&str]| {
            let list: Vec<String> = list.iter().map(|name| (*name).to_owned()).collect();
            select(&list).map(|parts| parts.iter().map(|part| part.name()).collect::<Vec<_>>())
        };
        assert_eq!(names(&["redis", "nginx"]), Ok(vec!["nginx", "redis"]));
        assert_eq!(names(&[]).unwrap().len(), PARTS.len());
        assert!(names(&["tools"]).unwrap().contains(&"ninja"));
        assert!(
            names(&["rediss"]).unwrap_err().starts_with("the lab has no part `rediss`; it has: actionlint")
        );
    }

    #[test]
    fn every_need_is_a_part_and_every_part_is_used() {
        for part in PARTS {
            assert!(!part.used_by().is_empty(), "{}", part.name());
            for need in part.needs() {
                assert!(PARTS.iter().any(|other| other.name() == *need), "{}: {need}", part.name());
            }
        }
    }
}
