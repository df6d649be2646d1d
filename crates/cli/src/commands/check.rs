//! `cdpipe check`: says what is wrong with pipelines, and mends what can be mended safely.

use crate::commands::Ended;
use crate::failure::Failure;
use crate::render::{self, Counts, Found, plural};
use crate::ui::Ui;
use crate::{files, load};
use cdpipe_check::Checked;
use cdpipe_syntax::{Edit, Fix};
use clap::ValueEnum;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// Arguments of `cdpipe check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Pipelines, or directories of them; `-` is the standard input.
    #[arg(value_name = "PATH", default_value = ".")]
    paths: Vec<String>,
    /// How the findings are shown.
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    format: Format,
    /// The same as `--format json`.
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Apply the fixes that cannot change what was meant, then check again.
    #[arg(long)]
    fix: bool,
    /// Let warnings fail too.
    #[arg(long)]
    strict: bool,
    /// Print nothing but findings.
    #[arg(long, short)]
    quiet: bool,
}

/// `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The source with the places marked.
    Text,
    /// One line each: `file:line:col: error[CD0101]: …`.
    Short,
    /// A JSON document.
    Json,
    /// SARIF 2.1.0.
    Sarif,
    /// Workflow commands of GitHub Actions.
    Github,
}

/// Rounds of fixing after which a fix that keeps coming back is left alone.
const MAX_FIX_ROUNDS: usize = 8;

/// Checks, fixes where asked, prints, and ends with 2 if anything keeps a pipeline from running.
pub(crate) fn run(args: &Args, ui: &Ui) -> Ended {
    let format = if args.json { Format::Json } else { args.format };
    let mut unread: Vec<Failure> = Vec::new();
    let paths = files::expand(&args.paths)?;
    let mut pipelines: Vec<Checked> = Vec::new();
    let mut fixed: Vec<(String, String)> = Vec::new();
    for path in &paths {
        // A file that can't be read does not keep the others from being checked.
        let checked = match load::load(path) {
            Ok(checked) => checked,
            Err(failure) => {
                unread.push(failure);
                continue;
            }
        };
        pipelines.push(if args.fix { fix(path, checked, &mut fixed)? } else { checked });
    }

    // A file that another one uses was checked with it, in its context.
    let used: BTreeSet<PathBuf> = pipelines
        .iter()
        .flat_map(|checked| checked.sources.iter().skip(1).map(|(_, source)| normal(&source.path)))
        .collect();
    if pipelines.len() > 1 {
        pipelines.retain(|checked| {
            checked.sources.iter().next().is_none_or(|(_, root)| !used.contains(&normal(&root.path)))
        });
    }
    let found = distinct(&pipelines);
    let counts = Counts::of(&found);
    let files: BTreeSet<PathBuf> = pipelines
        .iter()
        .flat_map(|checked| checked.sources.iter().map(|(_, source)| normal(&source.path)))
        .collect();

    match format {
        Format::Text => ui.print(&render::text::render(&found, ui.out)),
        Format::Short => ui.print(&render::short::render(&found)),
        Format::Json => ui.print(&render::json::render(&found, files.len())),
        Format::Sarif => ui.print(&render::sarif::render(&found)),
        Format::Github => ui.print(&render::github::render(&found)),
    }
    for failure in &unread {
        ui.note(&failure.render(ui.err));
    }
    for (path, title) in &fixed {
        ui.note(&format!("{} {path}: {title}\n", ui.err.green("fixed")));
    }
    if !args.quiet && matches!(format, Format::Text | Format::Short) {
        ui.note(&closing(counts, files.len(), unread.len(), &found, ui));
    }
    let failed = counts.errors > 0 || !unread.is_empty() || (args.strict && counts.warnings > 0);
    Ok(if failed { 2 } else { 0 })
}

/// The last line: counts, and where to read more.
fn closing(counts: Counts, files: usize, unread: usize, found: &[Found<'_>], ui: &Ui) -> String {
    if files == 0 {
        return format!("nothing checked: {} could not be read\n", plural(unread, "file"));
    }
    let checked = if unread == 0 {
        format!("{} checked", plural(files, "file"))
    } else {
        format!("{} checked, {unread} could not be read", plural(files, "file"))
    };
    if counts == Counts::default() {
        let all_clear =
            if unread == 0 { ui.err.green("no problems") } else { "no problems in the others".to_owned() };
        return format!("{checked}: {all_clear}\n");
    }
    let fixable = found
        .iter()
        .flat_map(|found| &found.diagnostics)
        .filter(|diagnostic| diagnostic.fix.as_ref().is_some_and(|fix| fix.safe))
        .count();
    let told = if counts.errors > 0 { ui.err.red(&counts.text()) } else { ui.err.yellow(&counts.text()) };
    let mut text = format!("{checked}: {told}");
    if fixable > 0 {
        text.push_str(&format!("; `--fix` mends {fixable}"));
    }
    let first = found.iter().flat_map(|found| &found.diagnostics).map(|diagnostic| diagnostic.code()).next();
    if let Some(code) = first {
        text.push_str(&format!("; more: `cdpipe explain {code}`"));
    }
    text.push('\n');
    text
}

/// The findings of all pipelines; what is found in a file that several of them use is told once.
fn distinct(pipelines: &[Checked]) -> Vec<Found<'_>> {
    let mut seen = BTreeSet::new();
    pipelines
        .iter()
        .map(|checked| Found {
            sources: &checked.sources,
            diagnostics: checked
                .diagnostics
                .iter()
                .filter(|diagnostic| {
                    let span = diagnostic.primary.span;
                    let path = checked.sources.get(span.source).map(|source| normal(&source.path));
                    seen.insert((path, span.start, span.end, diagnostic.code(), diagnostic.message.clone()))
                })
                .collect(),
        })
        .collect()
}

/// A path without `.` and with `..` resolved by name, so that two spellings of one file are equal.
fn normal(path: &str) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if normal.file_name().is_some() => {
                normal.pop();
            }
            part => normal.push(part),
        }
    }
    normal
}

/// Applies safe fixes until there are none, writes the files, and answers the last check.
fn fix(path: &str, mut checked: Checked, told: &mut Vec<(String, String)>) -> Result<Checked, Failure> {
    if path == files::STDIN {
        return Ok(checked);
    }
    for _ in 0..MAX_FIX_ROUNDS {
        let fixes: Vec<&Fix> = checked
            .diagnostics
            .iter()
            .filter_map(|diagnostic| diagnostic.fix.as_ref())
            .filter(|fix| fix.safe && !fix.edits.is_empty())
            .collect();
        let mut edits: BTreeMap<u32, Vec<&Edit>> = BTreeMap::new();
        let mut titles = Vec::new();
        for fix in fixes {
            let clash = fix.edits.iter().any(|edit| {
                edits
                    .get(&edit.span.source.0)
                    .is_some_and(|taken| taken.iter().any(|other| overlap(edit, other)))
            });
            if !clash {
                titles.push(&fix.title);
                for edit in &fix.edits {
                    edits.entry(edit.span.source.0).or_default().push(edit);
                }
            }
        }
        if titles.is_empty() {
            break;
        }
        for (id, source) in checked.sources.iter() {
            if let Some(edits) = edits.get(&id.0) {
                files::replace(&source.path, &apply(&source.text, edits))?;
            }
        }
        told.extend(titles.into_iter().map(|title| (path.to_owned(), title.clone())));
        checked = load::load(path)?;
    }
    Ok(checked)
}

/// Whether both change the same text. Two insertions at one place do too: their order would be a guess.
fn overlap(a: &Edit, b: &Edit) -> bool {
    a.span == b.span || (a.span.start < b.span.end && b.span.start < a.span.end)
}

/// The text with these edits, which do not overlap.
fn apply(text: &str, edits: &[&Edit]) -> String {
    let mut edits = edits.to_vec();
    edits.sort_by_key(|edit| (edit.span.start, edit.span.end));
    let mut result = String::with_capacity(text.len());
    let mut at = 0;
    for edit in edits {
        let range = edit.span.range();
        result.push_str(text.get(at..range.start).unwrap_or_default());
        result.push_str(&edit.replacement);
        at = range.end;
    }
    result.push_str(text.get(at..).unwrap_or_default());
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdpipe_syntax::{SourceId, Span};

    #[test]
    fn edits_are_applied_in_order_of_place() {
        let edit = |start, end, text: &str| Edit {
            span: Span::new(SourceId(0), start, end),
            replacement: text.to_owned(),
        };
        let (a, b, c) = (edit(4, 7, "X"), edit(0, 0, "> "), edit(7, 7, "!"));
        assert_eq!(apply("abc def", &[&a, &b, &c]), "> abc X!");
        assert!(!overlap(&a, &c) && overlap(&a, &edit(5, 6, "")) && overlap(&b, &b));
    }

    #[test]
    fn spellings_of_one_path_are_equal() {
        assert_eq!(normal("./a/../lib.cd"), normal("lib.cd"));
        assert_eq!(normal("../lib.cd"), PathBuf::from("../lib.cd"));
    }
}
