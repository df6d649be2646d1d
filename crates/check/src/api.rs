//! The two calls that everything else is behind: `check` without inputs, `plan` with them.

use crate::build::{Built, resolve_inputs};
use crate::checker::Checker;
use crate::codes::names as code;
use crate::names::Declared;
use crate::schema::{FILE, Id};
use crate::sources::{Sources, sha256_text};
use crate::structure::{Block, read_body};
use crate::testing::Test;
use cdpipe_model::plan::{Mode, Plan};
use cdpipe_syntax::tree::{Entry, File};
use cdpipe_syntax::{Diagnostic, SourceId, Span, parse};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Files that one pipeline may bring in, itself included.
const MAX_FILES: usize = 256;

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
    files: Arc<Vec<File>>,
    /// The pipeline's name.
    pub name: String,
    /// Its tests.
    pub tests: Vec<Test>,
    /// Its parameters, in order.
    pub params: Vec<Param>,
}

impl Program {
    /// The trees of all files, the pipeline's own first.
    pub fn files(&self) -> &[File] {
        &self.files
    }
}

/// A parameter as `--help` and completion show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// Its name.
    pub name: String,
    /// Its type as it is written.
    pub ty: String,
    /// Its default as it is written; `None` if it must be given.
    pub default: Option<String>,
}

/// Reads and checks the pipeline `text`, which was found at `root_path`, and every file that it uses: `loader` is given a path
/// (relative to the same place as `root_path`) and answers its text, or why it can't, in a few words.
pub fn check(root_path: &str, text: &str, loader: &dyn Fn(&str) -> Result<String, String>) -> Checked {
    let mut sources = Sources::default();
    let root = sources.add(root_path, text);
    let parsed = parse(root, text);
    let mut diags = parsed.diagnostics;
    let mut files = vec![parsed.file];
    load(&mut sources, &mut files, &mut diags, loader);

    let mut structural = Vec::new();
    let tops = read_tops(&sources, &files, &mut structural);
    diags.append(&mut structural);
    let name = pipeline_name(root_path, &tops);
    let mut name_diags = Vec::new();
    let names = Declared::collect(tops.iter(), &mut name_diags);
    diags.append(&mut name_diags);
    let mut checker = Checker::new(&sources, names, None, None, name.clone());
    checker.params();
    let Built { tests, needs, mode, .. } = checker.build(&tops);
    crate::dag::judge(&mut checker, &needs, mode);
    checker.sides();
    checker.routes();
    // What uses a thing may be what could not be read, so nothing is called unused while something is wrong.
    if !diags.iter().chain(&checker.diags).any(Diagnostic::is_error) {
        crate::unused::unused(&mut checker, &tops);
    }
    let params = checker
        .names
        .params
        .iter()
        .map(|block| Param {
            name: block.name_text().to_owned(),
            ty: block.ty.map(|ty| sources.slice(ty.span).to_owned()).unwrap_or_default(),
            default: block.value.map(|value| sources.slice(value.span).to_owned()),
        })
        .collect();
    diags.append(&mut checker.diags);
    drop(checker);
    drop(tops);
    sort(&mut diags);
    let program = if diags.iter().any(Diagnostic::is_error) {
        None
    } else {
        Some(Program { files: Arc::new(files), name, tests, params })
    };
    Checked { sources, diagnostics: diags, program }
}

/// The plan of a checked pipeline with these inputs. Same pipeline and inputs, same plan.
///
/// # Errors
/// The errors of the check if there are any; else every missing, unknown or unfit input and every value that turned out to be
/// impossible with them, all at once.
pub fn plan(checked: &Checked, inputs: &Inputs) -> Result<Plan, Vec<Diagnostic>> {
    let Some(program) = &checked.program else {
        return Err(checked.diagnostics.iter().filter(|diag| diag.is_error()).cloned().collect());
    };
    let sources = &checked.sources;
    let mut ignored = Vec::new();
    let tops = read_tops(sources, &program.files, &mut ignored);
    let git = &inputs.git;
    let errors = |mut diags: Vec<Diagnostic>| {
        diags.retain(Diagnostic::is_error);
        sort(&mut diags);
        diags
    };
    // First the values, with parameters seeing those before them; then everything with all of them.
    let names = Declared::collect(tops.iter(), &mut ignored);
    let mut checker = Checker::new(sources, names, None, Some(git), program.name.clone());
    checker.params();
    let values = resolve_inputs(&mut checker, inputs);
    let failed = errors(std::mem::take(&mut checker.diags));
    if !failed.is_empty() {
        return Err(failed);
    }
    drop(checker);

    let names = Declared::collect(tops.iter(), &mut ignored);
    let mut checker = Checker::new(sources, names, Some(&values), Some(git), program.name.clone());
    checker.params();
    let Built { mut plan, needs, mode, .. } = checker.build(&tops);
    crate::dag::judge(&mut checker, &needs, mode);
    checker.routes();
    let failed = errors(std::mem::take(&mut checker.diags));
    if !failed.is_empty() {
        return Err(failed);
    }
    if let Some(mode) = inputs.mode {
        plan.mode = mode;
    }
    seal(&mut plan);
    Ok(plan)
}

/// Computes the hash of a plan anew: after something was added to it that only the outside knows, as the hashes of manifests.
pub fn seal(plan: &mut Plan) {
    plan.hash.clear();
    // Serialising plain data with string keys into memory can't fail.
    plan.hash = sha256_text(&serde_json::to_vec(&plan).unwrap_or_default());
}

fn sort(diags: &mut [Diagnostic]) {
    diags.sort_by_key(|diag| {
        (diag.primary.span.source, diag.primary.span.start, diag.primary.span.end, diag.code())
    });
}

/// All statements of all files, matched with the schema.
fn read_tops<'t>(sources: &Sources, files: &'t [File], diags: &mut Vec<Diagnostic>) -> Vec<Block<'t>> {
    let slice = |span: Span| sources.slice(span).to_owned();
    let mut tops = Vec::new();
    for (at, file) in files.iter().enumerate() {
        let mut own = read_body(&file.entries, &FILE, "a file", &slice, diags);
        if at > 0 {
            own.children.retain(|block| {
                let fine = matches!(
                    block.spec.id,
                    Id::Use | Id::Service | Id::Metrics | Id::NamedStrategy | Id::NamedWatch
                );
                if !fine {
                    diags.push(
                        Diagnostic::new(
                            &code::NOT_IN_USED_FILE,
                            block.stmt.keyword.span,
                            format!(
                                "`{}` may not stand in a file that is brought in by `use`",
                                block.spec.keyword
                            ),
                        )
                        .help("move it into the pipeline's own file"),
                    );
                }
                fine
            });
        }
        tops.append(&mut own.children);
    }
    tops
}

/// The name that the file gives, or else that of the file.
fn pipeline_name(root_path: &str, tops: &[Block<'_>]) -> String {
    let given =
        tops.iter().find(|block| block.spec.id == Id::Pipeline).map(|block| block.name_text().to_owned());
    given.filter(|name| !name.is_empty()).unwrap_or_else(|| {
        let file = root_path.rsplit(['/', '\\']).next().unwrap_or_default();
        let stem = file.strip_suffix(".cd").unwrap_or(file);
        if stem.is_empty() { "pipeline".to_owned() } else { stem.to_owned() }
    })
}

/// Brings in every file that is used, each once.
fn load(
    sources: &mut Sources,
    files: &mut Vec<File>,
    diags: &mut Vec<Diagnostic>,
    loader: &dyn Fn(&str) -> Result<String, String>,
) {
    // For each file the one that brought it in, to find circles.
    let mut parents: Vec<Option<usize>> = vec![None];
    let mut at = 0;
    while at < files.len() {
        let uses: Vec<(String, Span)> = files[at]
            .entries
            .iter()
            .filter_map(|entry| match entry {
                Entry::Statement(statement) if statement.keyword.text == "use" => {
                    match statement.parts.first() {
                        Some(cdpipe_syntax::tree::Part::Expr(expr)) => crate::values::as_text(expr)
                            .and_then(|text| text.plain())
                            .map(|path| (path, expr.span)),
                        _ => None,
                    }
                }
                _ => None,
            })
            .collect();
        let base = sources
            .get(SourceId(u32::try_from(at).unwrap_or(u32::MAX)))
            .map(|source| source.path.clone())
            .unwrap_or_default();
        for (path, span) in uses {
            let path = match resolve(&base, &path) {
                Ok(path) => path,
                Err((message, help)) => {
                    diags.push(Diagnostic::new(&code::USE_FAILED, span, message).help(help));
                    continue;
                }
            };
            let known = sources.iter().position(|(_, source)| normal(&source.path) == path);
            if let Some(known) = known {
                let mut up = Some(at);
                while let Some(file) = up {
                    if file == known {
                        diags.push(
                            Diagnostic::new(
                                &code::USE_FAILED,
                                span,
                                format!("`{path}` leads back to itself"),
                            )
                            .label("it is being brought in already")
                            .help("remove one of the `use` on the way"),
                        );
                        break;
                    }
                    up = parents.get(file).copied().flatten();
                }
                continue;
            }
            if files.len() >= MAX_FILES {
                diags.push(
                    Diagnostic::new(
                        &code::USE_FAILED,
                        span,
                        format!("the pipeline uses more than {MAX_FILES} files"),
                    )
                    .help("bring in fewer files"),
                );
                return;
            }
            match loader(&path) {
                Ok(text) => {
                    let id = sources.add(path, text);
                    let text = sources.get(id).map(|source| source.text.clone()).unwrap_or_default();
                    let mut parsed = parse(id, &text);
                    diags.append(&mut parsed.diagnostics);
                    files.push(parsed.file);
                    parents.push(Some(at));
                }
                Err(why) => diags.push(
                    Diagnostic::new(&code::USE_FAILED, span, format!("`{path}` can't be read: {why}"))
                        .help("the path is relative to the file that uses it"),
                ),
            }
        }
        at += 1;
    }
}

/// The path of a used file, relative to the same place as `base`.
fn resolve(base: &str, path: &str) -> Result<String, (String, &'static str)> {
    if path.trim().is_empty() {
        return Err(("the path is empty".to_owned(), "write `use \"./lib.cd\"`"));
    }
    if path.contains("://") {
        return Err((
            format!("`{path}` is a URL"),
            "copy the file into the repository and name it by a relative path",
        ));
    }
    if path.starts_with('/') || path.starts_with('\\') || path.get(1..2) == Some(":") {
        return Err((
            format!("`{path}` is an absolute path"),
            "name it relative to this file: `use \"./lib.cd\"`",
        ));
    }
    let folder = base.rsplit_once('/').map_or("", |(folder, _)| folder);
    let joined = if folder.is_empty() {
        if base.starts_with('/') { format!("/{path}") } else { path.to_owned() }
    } else {
        format!("{folder}/{path}")
    };
    Ok(normal(&joined))
}

/// Without `.` and, where possible, without `..`.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "." => {}
            "" if !parts.is_empty() => {}
            ".." if parts.last().is_some_and(|last| !matches!(*last, ".." | "")) => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}
