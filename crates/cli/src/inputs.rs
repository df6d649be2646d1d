//! What a plan depends on besides the text: `--set`, `CDPIPE_SET_*`, facts of git.

use crate::failure::{self, Failure};
use cdpipe_check::Inputs;
use cdpipe_model::plan::Mode;
use cdpipe_model::record::GitFacts;
use clap::ValueEnum;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// Prefix of environment variables that set parameters.
const PREFIX: &str = "CDPIPE_SET_";

/// Arguments of every command that makes a plan.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct InputArgs {
    /// Set a parameter. The environment variable `CDPIPE_SET_NAME` does so too; this wins.
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Whether approvals need a person, instead of what the pipeline says.
    #[arg(long, value_enum, value_name = "MODE")]
    mode: Option<ModeArg>,
}

/// `--mode`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ModeArg {
    /// A person approves.
    Delivery,
    /// Approvals pass by themselves, except those with `always = true`.
    Deployment,
}

/// Everything a plan depends on besides the text, and the facts of git as the journal keeps them.
pub(crate) fn gather(args: &InputArgs, file: &Path) -> Result<(Inputs, GitFacts), Failure> {
    let set = pairs(&args.set)?;
    let env = std::env::vars_os()
        .filter_map(|(name, value)| {
            let name = name.to_str()?.strip_prefix(PREFIX)?.to_owned();
            Some((name, value.to_string_lossy().into_owned()))
        })
        .collect();
    let git = git_facts(file.parent().unwrap_or(Path::new(".")));
    let mode = args.mode.map(|mode| match mode {
        ModeArg::Delivery => Mode::Delivery,
        ModeArg::Deployment => Mode::Deployment,
    });
    let facts =
        cdpipe_check::GitFacts { sha: git.sha.clone(), branch: git.branch.clone(), tag: git.tag.clone() };
    Ok((Inputs { set, env, git: facts, mode }, git))
}

/// Reads `NAME=VALUE` arguments.
pub(crate) fn pairs(given: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut set = BTreeMap::new();
    for pair in given {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(Failure::new(&failure::BAD_ARGUMENT, format!("`--set {pair}` has no `=`"))
                .help(format!("write `--set {pair}=VALUE`")));
        };
        if set.insert(name.trim().to_owned(), value.to_owned()).is_some() {
            return Err(Failure::new(&failure::BAD_ARGUMENT, format!("`--set {name}=…` is given twice"))
                .help("give each parameter once"));
        }
    }
    Ok(set)
}

/// What git says of the commit that is checked out; empty where there is no git, no repository or no commit.
fn git_facts(dir: &Path) -> GitFacts {
    let output = Command::new("git")
        .args(["log", "-1", "--decorate=full", "--format=%H%n%ct%n%D"])
        .current_dir(dir)
        .env("GIT_OPTIONAL_LOCKS", "0")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let Ok(output) = output else { return GitFacts::default() };
    if !output.status.success() {
        return GitFacts::default();
    }
    read_git(&String::from_utf8_lossy(&output.stdout))
}

/// Reads commit, time and names: `HEAD -> refs/heads/main, tag: refs/tags/v1.0.0`. Of several tags the highest by name is taken.
fn read_git(text: &str) -> GitFacts {
    let mut lines = text.lines();
    let sha = lines.next().unwrap_or_default().to_owned();
    let committed_at_ms = lines.next().and_then(|seconds| seconds.parse::<u64>().ok()).map(|s| s * 1000);
    let mut facts = GitFacts { sha, committed_at_ms, ..GitFacts::default() };
    for name in lines.next().unwrap_or_default().split(", ") {
        if let Some(branch) = name.strip_prefix("HEAD -> refs/heads/") {
            facts.branch = branch.to_owned();
        } else if let Some(tag) = name.strip_prefix("tag: refs/tags/")
            && tag > facts.tag.as_str()
        {
            facts.tag = tag.to_owned();
        }
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_commit_are_told_apart() {
        let facts = read_git(
            "abc\n1700000000\nHEAD -> refs/heads/main, tag: refs/tags/v1.0.0, tag: refs/tags/v1.0.1\n",
        );
        assert_eq!((facts.branch.as_str(), facts.tag.as_str()), ("main", "v1.0.1"));
        assert_eq!(facts.committed_at_ms, Some(1_700_000_000_000));
        let detached = read_git("abc\n1\nHEAD, refs/remotes/origin/main\n");
        assert_eq!((detached.branch.as_str(), detached.tag.as_str()), ("", ""));
        assert_eq!(read_git(""), GitFacts::default());
    }
}
