//! Where the state of a project is, and which run a person means.

use crate::failure::{self, Failure};
use cdpipe_engine::{RunSummary, Store, StoreError};
use cdpipe_model::plan::Plan;
use cdpipe_model::record::RunHeader;
use cdpipe_model::{NodeId, RunId};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The variable that names the state directory.
const VARIABLE: &str = "CDPIPE_STATE";

/// The state directory: `$CDPIPE_STATE`, else one for the project in the user's state directory. The project is that of the
/// pipeline's file, or of the working directory.
pub(crate) fn dir(file: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(dir) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        return Ok(PathBuf::from(dir));
    }
    let home = std::env::var_os("XDG_STATE_HOME")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| {
            let home = std::env::var_os("HOME").filter(|value| !value.is_empty())?;
            Some(Path::new(&home).join(".local/state"))
        });
    let home = home.ok_or_else(|| {
        Failure::new(
            &failure::NO_STATE,
            "there is no place for the state: neither CDPIPE_STATE nor HOME is set",
        )
        .help("set CDPIPE_STATE to a directory that stays")
    })?;
    Ok(home.join("cdpipe").join(project(file)))
}

/// Whether the state directory was chosen by a person.
pub(crate) fn is_chosen() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|value| !value.is_empty())
}

/// A name for the project: the last part of its path for people, and a hash of the whole.
fn project(file: Option<&Path>) -> String {
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let file_dir = file.and_then(|file| {
        let file = std::fs::canonicalize(file).ok()?;
        file.parent().map(Path::to_owned)
    });
    let from = file_dir.unwrap_or_else(|| here.clone());
    let root = from
        .ancestors()
        .find(|dir| dir.join(".git").exists())
        .map(Path::to_owned)
        // Outside of a repository the working directory is the project of all that lies under it.
        .unwrap_or_else(|| if from.starts_with(&here) { here } else { from });
    let name: String = root
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_else(|| "root".to_owned())
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' })
        .take(40)
        .collect();
    format!("{name}-{:016x}", fnv(root.to_string_lossy().as_bytes()))
}

/// FNV-1a: stable over versions, which the standard hasher is not.
fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let info = match error {
            StoreError::UnknownRun { .. } => &failure::NO_SUCH_RUN,
            StoreError::Over { .. } | StoreError::Owned { .. } => &failure::NOT_POSSIBLE,
            _ => &failure::STATE,
        };
        Failure::from_fault(info, error.fault()).exit(2)
    }
}

/// The state of the project here, to look at; an error if there is none yet.
pub(crate) fn open_existing() -> Result<Arc<Store>, Failure> {
    let dir = dir(None)?;
    Store::open_existing(&dir)?.ok_or_else(|| {
        Failure::new(&failure::NO_SUCH_RUN, format!("there are no runs in {}", dir.display()))
            .help("`cdpipe run FILE` starts one; CDPIPE_STATE names the state directory of another project")
    })
}

/// The run that is meant by a few letters of its id.
pub(crate) fn find_run(store: &Store, part: &str) -> Result<RunSummary, Failure> {
    let mut found = store.runs_like(part)?;
    if let Some(at) = found.iter().position(|run| run.run.as_str() == part) {
        return Ok(found.swap_remove(at));
    }
    match found.len() {
        0 => Err(Failure::new(&failure::NO_SUCH_RUN, format!("there is no run `{part}`"))
            .help("`cdpipe runs` lists them")),
        1 => Ok(found.swap_remove(0)),
        _ => {
            let names: Vec<&str> = found.iter().map(|run| run.run.as_str()).take(5).collect();
            Err(Failure::new(&failure::NO_SUCH_RUN, format!("more than one run is meant by `{part}`"))
                .help(format!("one of {}", names.join(", "))))
        }
    }
}

/// The run that is meant where none is named: the only unfinished one.
pub(crate) fn only_unfinished(store: &Store) -> Result<RunSummary, Failure> {
    let mut unfinished = store.unfinished()?;
    match unfinished.len() {
        0 => Err(Failure::new(&failure::NO_SUCH_RUN, "no run is under way")
            .help("`cdpipe runs` lists those that are over")),
        1 => Ok(unfinished.swap_remove(0)),
        _ => {
            let names: Vec<String> =
                unfinished.iter().map(|run| format!("{} ({})", run.run, run.pipeline)).take(5).collect();
            Err(Failure::new(&failure::NO_SUCH_RUN, "more than one run is under way: say which")
                .help(format!("one of {}", names.join(", "))))
        }
    }
}

/// What `[RUN] [STAGE]` on a command line mean: a run by some letters of its id, a stage or gate by its name.
pub(crate) struct Meant {
    /// The run.
    pub run: RunSummary,
    /// What is run.
    pub header: RunHeader,
    /// The stage or gate, if one was named.
    pub node: Option<NodeId>,
}

/// Reads `[RUN] [STAGE]`. One word alone is a run if it names one, else a stage of the only unfinished run, or with `or_last` of the
/// last one if none is unfinished.
pub(crate) fn meant(store: &Store, words: &[String], or_last: bool) -> Result<Meant, Failure> {
    let only = || match store.unfinished()?.is_empty() && or_last {
        true => match store.runs(1)?.pop() {
            Some(run) => Ok(run),
            None => only_unfinished(store),
        },
        false => only_unfinished(store),
    };
    let (run, name) = match words {
        [] => (only()?, None),
        [word] => match store.runs_like(word)?.len() {
            0 => (
                only().map_err(|failure| {
                    if store.unfinished().is_ok_and(|list| list.is_empty()) { no_run(word) } else { failure }
                })?,
                Some(word),
            ),
            _ => (find_run(store, word)?, None),
        },
        [run, name, ..] => (find_run(store, run)?, Some(name)),
    };
    let header = store.header(&run.run)?;
    let node = name.map(|name| node_named(&header.plan, &format!("run {}", header.run), name)).transpose()?;
    Ok(Meant { run, header, node })
}

fn no_run(word: &str) -> Failure {
    Failure::new(&failure::NO_SUCH_RUN, format!("there is no run `{word}`, and none is under way"))
        .help("`cdpipe runs` lists them")
}

/// The stage or gate of this name; `what` is the run or the pipeline that should have it.
pub(crate) fn node_named(plan: &Plan, what: &str, name: &str) -> Result<NodeId, Failure> {
    if let Some(node) = plan.nodes.iter().find(|node| node.name == name) {
        return Ok(node.id);
    }
    let mut near: Vec<(usize, &str)> = plan
        .nodes
        .iter()
        .map(|node| (crate::files::distance(name, &node.name), node.name.as_str()))
        .collect();
    near.sort_unstable();
    let all: Vec<&str> = plan.nodes.iter().map(|node| node.name.as_str()).take(12).collect();
    let help = match near.first() {
        Some((far, best)) if *far <= 1 + name.len() / 3 => format!("did you mean `{best}`?"),
        _ => format!("it has {}", all.join(", ")),
    };
    Err(Failure::new(&failure::NOT_POSSIBLE, format!("{what} has no stage or gate `{name}`")).help(help))
}

/// A new run's id: time and a few random digits.
pub(crate) fn new_run_id() -> RunId {
    use std::hash::{BuildHasher, Hasher};
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    // The standard hasher is keyed at random by each process.
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    RunId(format!("{}-{:04x}", now.strftime("%Y%m%d-%H%M%S"), hasher.finish() & 0xffff))
}

/// Who types: the user's name.
pub(crate) fn user() -> String {
    ["USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .or_else(|| {
            // Without the variables (a service, a container), as the system's list has it.
            let uid = rustix::process::getuid().as_raw().to_string();
            let list = std::fs::read_to_string("/etc/passwd").ok()?;
            let line = list.lines().find(|line| line.split(':').nth(2) == Some(uid.as_str()))?;
            line.split(':').next().map(str::to_owned)
        })
        .unwrap_or_else(|| format!("uid-{}", rustix::process::getuid().as_raw()))
}

/// Who types and where: `user@host`.
pub(crate) fn user_at_host() -> String {
    let host = rustix::system::uname();
    format!("{}@{}", user(), host.nodename().to_string_lossy())
}
