//! `file:line:col: error[CD0101]: message`, one line each: for editors, for `grep`, for narrow places.

use super::{Found, place, word};

/// One line for each diagnostic.
pub(crate) fn render(found: &[Found<'_>]) -> String {
    let mut text = String::new();
    for Found { sources, diagnostics } in found {
        for diagnostic in diagnostics {
            let (path, start, _) = place(sources, diagnostic.primary.span);
            text.push_str(&format!(
                "{path}:{}:{}: {}[{}]: {}\n",
                start.line,
                start.col,
                word(diagnostic.severity),
                diagnostic.code(),
                diagnostic.message.replace('\n', " "),
            ));
        }
    }
    text
}
