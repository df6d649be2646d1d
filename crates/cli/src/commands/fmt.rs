//! `cdpipe fmt`: lays pipelines out the one way. There are no options for how.

use crate::commands::Ended;
use crate::render::{self, Found, plural};
use crate::ui::Ui;
use crate::{diff, files};
use cdpipe_check::Sources;
use cdpipe_syntax::Diagnostic;

/// Arguments of `cdpipe fmt`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Pipelines, or directories of them; `-` reads the standard input and writes the standard output.
    #[arg(value_name = "PATH", default_value = ".")]
    paths: Vec<String>,
    /// Write nothing; show what would change, and end with 1 if anything would.
    #[arg(long)]
    check: bool,
}

/// Formats; 0 if all is well, 1 if `--check` found a file to change, 2 if a text can't be read.
pub(crate) fn run(args: &Args, ui: &Ui) -> Ended {
    let paths = files::expand(&args.paths)?;
    let mut changed = Vec::new();
    let mut broken = 0;
    for path in &paths {
        let text = match files::read(path) {
            Ok(text) => text,
            Err(failure) => {
                ui.note(&failure.render(ui.err));
                broken += 1;
                continue;
            }
        };
        let formatted = match cdpipe_syntax::format(&text) {
            Ok(formatted) => formatted,
            Err(diagnostics) => {
                show_errors(path, &text, &diagnostics, ui);
                broken += 1;
                continue;
            }
        };
        if args.check {
            if formatted != text {
                ui.print(&diff::unified(files::show(path), &text, &formatted));
                changed.push(path);
            }
        } else if path == files::STDIN {
            ui.print(&formatted);
        } else if formatted != text {
            files::replace(path, &formatted)?;
            changed.push(path);
        }
    }
    if paths.iter().any(|path| path != files::STDIN) || args.check {
        ui.note(&closing(args.check, &changed, paths.len() - broken, broken, ui));
    }
    Ok(match (broken, args.check && !changed.is_empty()) {
        (1.., _) => 2,
        (0, true) => 1,
        (0, false) => 0,
    })
}

fn closing(check: bool, changed: &[&String], good: usize, broken: usize, ui: &Ui) -> String {
    let mut text = String::new();
    for path in changed {
        let word = if check { ui.err.yellow("would change") } else { ui.err.green("formatted") };
        text.push_str(&format!("{word} {}\n", files::show(path)));
    }
    let unchanged = good - changed.len();
    let mut parts = Vec::new();
    if !changed.is_empty() {
        let verb = if check { "to be formatted" } else { "formatted" };
        parts.push(format!("{} {verb}", plural(changed.len(), "file")));
    }
    if unchanged > 0 {
        parts.push(format!("{} well laid out", plural(unchanged, "file")));
    }
    if broken > 0 {
        parts.push(format!("{} left as found because of errors", plural(broken, "file")));
    }
    text.push_str(&parts.join(", "));
    text.push('\n');
    text
}

fn show_errors(path: &str, text: &str, diagnostics: &[Diagnostic], ui: &Ui) {
    let mut sources = Sources::default();
    sources.add(path, text);
    let errors = diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).collect();
    ui.note(&render::text::render(&[Found { sources: &sources, diagnostics: errors }], ui.err));
}
