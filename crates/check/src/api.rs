//! The two calls that everything else is behind: `check` without inputs, `plan` with them.

use crate::sources::Sources;
use cdpipe_model::plan::{Mode, Plan};
use cdpipe_syntax::{Diagnostic, parse};
use std::collections::BTreeMap;

/// Everything that a plan depends on and that is not in the text.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// `--set NAME=TEXT`, by name. Wins over `env`.
    pub set: BTreeMap<String, String>,
    /// Values of the environment variables `CDPIPE_SET_NAME`, by NAME (a dash in a parameter's name is `_` here).
    pub env: BTreeMap<String, String>,
    /// What the repository says.
    pub git: GitFacts,
    /// `--mode`: instead of the pipeline's own.
    pub mode: Option<Mode>,
}

/// What the repository says; each is empty where it is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitFacts {
    /// `git.sha`: the commit, 40 hex digits.
    pub sha: String,
    /// `git.branch`.
    pub branch: String,
    /// `git.tag`: a tag on this very commit.
    pub tag: String,
}

/// A pipeline after everything that can be checked without inputs was checked.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The files it was read from.
    pub sources: Sources,
    /// All that is wrong or remarkable, by source and position, those of the syntax among them.
    pub diagnostics: Vec<Diagnostic>,
    /// What `plan` works on; `None` if an error keeps it from being run.
    pub program: Option<Program>,
}

impl Checked {
    /// Whether anything keeps the pipeline from running.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

/// A checked pipeline, ready to be planned.
#[derive(Debug, Clone)]
pub struct Program {
    _private: (),
}

/// Reads and checks the pipeline `text`, which was found at `root_path`, and every file that it uses: `loader` is given a path
/// (relative to the same place as `root_path`) and answers its text, or why it can't, in a few words.
pub fn check(root_path: &str, text: &str, loader: &dyn Fn(&str) -> Result<String, String>) -> Checked {
    let _ = loader;
    let mut sources = Sources::default();
    let id = sources.add(root_path, text);
    let parsed = parse(id, text);
    Checked { sources, diagnostics: parsed.diagnostics, program: None }
}

/// The plan of a checked pipeline with these inputs. Same pipeline and inputs, same plan.
///
/// # Errors
/// The errors of the check if there are any; else every missing, unknown or unfit input and every value that turned out to be
/// impossible with them, all at once.
pub fn plan(checked: &Checked, inputs: &Inputs) -> Result<Plan, Vec<Diagnostic>> {
    let _ = inputs;
    Err(checked.diagnostics.clone())
}
