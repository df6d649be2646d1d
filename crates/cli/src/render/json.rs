//! A JSON document for programs. Its schema is in docs/operations.md; it only ever grows.

use super::{Counts, Found, place, word};
use cdpipe_check::Sources;
use cdpipe_syntax::Span;
use serde_json::{Value, json};

/// The whole document, with a newline at its end.
pub(crate) fn render(found: &[Found<'_>], files_checked: usize) -> String {
    let counts = Counts::of(found);
    let diagnostics: Vec<Value> = found
        .iter()
        .flat_map(|Found { sources, diagnostics }| {
            diagnostics.iter().map(move |diagnostic| {
                let fix = diagnostic.fix.as_ref().map(|fix| {
                    let edits: Vec<Value> = fix
                        .edits
                        .iter()
                        .map(|edit| {
                            let mut at = at(sources, edit.span);
                            at["replacement"] = json!(edit.replacement);
                            at
                        })
                        .collect();
                    json!({ "title": fix.title, "safe": fix.safe, "edits": edits })
                });
                let labels: Vec<Value> = std::iter::once(&diagnostic.primary)
                    .chain(&diagnostic.secondary)
                    .enumerate()
                    .map(|(index, label)| {
                        let mut at = at(sources, label.span);
                        at["text"] = json!(label.text);
                        at["primary"] = json!(index == 0);
                        at
                    })
                    .collect();
                json!({
                    "code": diagnostic.code(),
                    "title": diagnostic.info.title,
                    "severity": word(diagnostic.severity),
                    "message": diagnostic.message,
                    "labels": labels,
                    "help": diagnostic.help,
                    "fix": fix,
                })
            })
        })
        .collect();
    let document = json!({
        "version": 1,
        "diagnostics": diagnostics,
        "summary": {
            "files": files_checked,
            "errors": counts.errors,
            "warnings": counts.warnings,
            "advice": counts.advice,
        },
    });
    format!("{document:#}\n")
}

fn at(sources: &Sources, span: Span) -> Value {
    let (path, start, end) = place(sources, span);
    json!({
        "file": path,
        "start": { "offset": span.start, "line": start.line, "column": start.col },
        "end": { "offset": span.end, "line": end.line, "column": end.col },
    })
}
