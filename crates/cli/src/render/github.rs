//! Workflow commands of GitHub Actions: each diagnostic becomes an annotation on the changed lines.

use super::{Found, place};
use cdpipe_syntax::Severity;

/// One command for each diagnostic.
pub(crate) fn render(found: &[Found<'_>]) -> String {
    let mut text = String::new();
    for Found { sources, diagnostics } in found {
        for diagnostic in diagnostics {
            let (path, start, end) = place(sources, diagnostic.primary.span);
            let command = match diagnostic.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Advice => "notice",
            };
            let mut message = diagnostic.message.clone();
            if let Some(help) = &diagnostic.help {
                message.push_str(&format!("\nhelp: {help}"));
            }
            // A column range is only allowed within one line.
            let columns = if start.line == end.line {
                format!(",col={},endColumn={}", start.col, end.col.max(start.col + 1))
            } else {
                String::new()
            };
            text.push_str(&format!(
                "::{command} file={},line={},endLine={}{columns},title={}::{}\n",
                property(path),
                start.line,
                end.line,
                property(&format!("{} {}", diagnostic.code(), diagnostic.info.title)),
                data(&message),
            ));
        }
    }
    text
}

/// Escapes what follows the second `::`.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Escapes a value before it.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}
