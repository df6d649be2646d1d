//! SARIF 2.1.0, for code scanning: each code is a rule with its explanation as help.

use super::{Found, place};
use cdpipe_check::Sources;
use cdpipe_syntax::{CodeInfo, Severity, Span};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The whole log, with a newline at its end.
pub(crate) fn render(found: &[Found<'_>]) -> String {
    let mut rules: BTreeMap<&str, &CodeInfo> = BTreeMap::new();
    for diagnostic in found.iter().flat_map(|found| &found.diagnostics) {
        rules.insert(diagnostic.code(), diagnostic.info);
    }
    let index_of: BTreeMap<&str, usize> = rules.keys().enumerate().map(|(at, code)| (*code, at)).collect();
    let results: Vec<Value> = found
        .iter()
        .flat_map(|Found { sources, diagnostics }| {
            let index_of = &index_of;
            diagnostics.iter().map(move |diagnostic| {
                let message = match &diagnostic.help {
                    Some(help) => format!("{}. {help}", diagnostic.message),
                    None => diagnostic.message.clone(),
                };
                let related: Vec<Value> = diagnostic
                    .secondary
                    .iter()
                    .map(|label| {
                        let mut location = location(sources, label.span);
                        location["message"] = json!({ "text": label.text });
                        location
                    })
                    .collect();
                let mut result = json!({
                    "ruleId": diagnostic.code(),
                    "ruleIndex": index_of.get(diagnostic.code()),
                    "level": level(diagnostic.severity),
                    "message": { "text": message },
                    "locations": [location(sources, diagnostic.primary.span)],
                });
                if !related.is_empty() {
                    result["relatedLocations"] = json!(related);
                }
                if let Some(fix) = &diagnostic.fix {
                    let mut changes: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
                    for edit in &fix.edits {
                        let (path, ..) = place(sources, edit.span);
                        changes.entry(path).or_default().push(json!({
                            "deletedRegion": region(sources, edit.span),
                            "insertedContent": { "text": edit.replacement },
                        }));
                    }
                    let changes: Vec<Value> = changes
                        .into_iter()
                        .map(|(path, edits)| {
                            json!({ "artifactLocation": { "uri": uri(path) }, "replacements": edits })
                        })
                        .collect();
                    result["fixes"] =
                        json!([{ "description": { "text": fix.title }, "artifactChanges": changes }]);
                }
                result
            })
        })
        .collect();
    let rules: Vec<Value> = rules
        .values()
        .map(|info| {
            json!({
                "id": info.code,
                "shortDescription": { "text": info.title },
                "fullDescription": { "text": info.title },
                "help": { "text": info.explanation, "markdown": info.explanation },
                "defaultConfiguration": { "level": level(info.severity) },
            })
        })
        .collect();
    let log = json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {
                "driver": {
                    "name": "cdpipe",
                    "semanticVersion": env!("CARGO_PKG_VERSION"),
                    "rules": rules,
                },
            },
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    });
    format!("{log:#}\n")
}

fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Advice => "note",
    }
}

fn location(sources: &Sources, span: Span) -> Value {
    let (path, ..) = place(sources, span);
    json!({
        "physicalLocation": {
            "artifactLocation": { "uri": uri(path) },
            "region": region(sources, span),
        },
    })
}

fn region(sources: &Sources, span: Span) -> Value {
    let (_, start, end) = place(sources, span);
    json!({ "startLine": start.line, "startColumn": start.col, "endLine": end.line, "endColumn": end.col })
}

/// A path as a relative URI: what may not stand in one is percent-encoded.
fn uri(path: &str) -> String {
    path.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}
