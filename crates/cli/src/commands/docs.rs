//! `cdpipe docs` (hidden): the pages that are made from the program.

use crate::commands::Ended;
use crate::failure::{self, Failure};
use crate::files;
use crate::ui::Ui;
use std::path::{Path, PathBuf};

/// Arguments of `cdpipe docs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

/// Which pages.
#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the page of the command line's errors.
    CommandLineErrors,
    /// Write the reference and the error pages into a directory.
    Write {
        /// Where; `reference` and `errors` are made in it.
        dir: PathBuf,
    },
}

/// Prints or writes them.
pub(crate) fn run(args: &Args, ui: &Ui) -> Ended {
    match &args.command {
        Command::CommandLineErrors => ui.print(&command_line_errors()),
        Command::Write { dir } => {
            write(&dir.join("reference"), cdpipe_check::reference_pages())?;
            write(&dir.join("errors"), cdpipe_check::error_pages())?;
            write(dir, vec![("command-line-errors.md".to_owned(), command_line_errors())])?;
        }
    }
    Ok(0)
}

fn write(dir: &Path, pages: Vec<(String, String)>) -> Result<(), Failure> {
    std::fs::create_dir_all(dir).map_err(|error| {
        Failure::new(
            &failure::UNWRITABLE,
            format!("`{}` cannot be made: {}", dir.display(), files::reason(&error)),
        )
    })?;
    for (name, text) in pages {
        files::replace(&dir.join(name).display().to_string(), &text)?;
    }
    Ok(())
}

fn command_line_errors() -> String {
    let mut text = String::from(
        "<!-- Written by `cdpipe docs`; change the codes in crates/cli/src/failure.rs, not this page. -->\n\n\
         # Errors of the command line\n\n\
         What is wrong before or beside a pipeline's text: paths, arguments, the state. `cdpipe explain CODE` prints the same.\n\
         Errors in a pipeline have pages of their own in [errors/](errors/README.md).\n",
    );
    for info in failure::codes() {
        text.push_str(&format!("\n## {}: {}\n\n{}\n", info.code, info.title, info.explanation));
    }
    text
}
