//! `cdpipe graph`: draws the stages and gates of a pipeline.

use crate::commands::Ended;
use crate::graph::{self, Graph};
use crate::render::{self, Counts, Found};
use crate::ui::Ui;
use crate::{files, load};
use cdpipe_syntax::{SourceId, parse};
use clap::ValueEnum;

/// Arguments of `cdpipe graph`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The pipeline; `-` is the standard input.
    #[arg(value_name = "FILE")]
    file: String,
    /// How it is drawn.
    #[arg(long, value_enum, default_value = "text", value_name = "FORMAT")]
    format: Format,
    /// The same as `--format json`.
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

/// `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Lanes for the terminal.
    Text,
    /// Graphviz.
    Dot,
    /// Mermaid.
    Mermaid,
    /// A JSON document.
    Json,
}

/// Draws it, or says what is wrong with the pipeline and ends with 2.
pub(crate) fn run(args: &Args, ui: &Ui) -> Ended {
    let text = files::read(&args.file)?;
    let checked = load::check_text(&args.file, &text);
    let errors: Vec<_> = checked.diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).collect();
    if !errors.is_empty() {
        let found = [Found { sources: &checked.sources, diagnostics: errors }];
        ui.note(&render::text::render(&found, ui.err));
        ui.note(&format!("{}: nothing is drawn\n", ui.err.red(&Counts::of(&found).text())));
        return Ok(2);
    }
    let graph = Graph::of(&parse(SourceId(0), &text).file, &text);
    let format = if args.json { Format::Json } else { args.format };
    ui.print(&match format {
        Format::Text => graph::lanes::render(&graph, ui.out),
        Format::Dot => graph::dot::render(&graph),
        Format::Mermaid => graph::mermaid::render(&graph),
        Format::Json => graph::json::render(&graph),
    });
    Ok(0)
}
