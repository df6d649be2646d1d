//! The formatter: one way to lay out a text, no options.
//!
//! What the writer decides, it keeps: blank lines (one at most), which bodies, lists and maps stand on one line, where an expression
//! goes on to the next line, and every comment in its place. The rest follows: two blanks for each level, one blank between words,
//! settings that follow one another with their `=` in one column, comments at the ends of lines in one column. What was on one
//! line and does not fit into 110 columns is opened. Strings and numbers stay as they were written.
//!
//! Invariants, each held by a property test: the tree stays the same but for its spans; comments stay the same, in the same
//! order; formatting twice is formatting once.

mod flat;
mod lines;
mod printer;

use crate::diagnostic::Diagnostic;
use crate::parse::parse;
use crate::span::SourceId;

/// Columns that a line may have before lists, maps, calls and bodies in it are opened.
const WIDTH: usize = 110;

/// The text in the one canonical layout, every comment kept.
///
/// # Errors
/// The diagnostics of the text if it cannot be parsed; it is then to be left as it is.
pub fn format(text: &str) -> Result<String, Vec<Diagnostic>> {
    let parsed = parse(SourceId(0), text);
    if parsed.diagnostics.iter().any(Diagnostic::is_error) {
        return Err(parsed.diagnostics);
    }
    Ok(printer::print(text, &parsed.file))
}
