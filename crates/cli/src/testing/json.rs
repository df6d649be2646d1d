//! Played tests as a JSON document. It only ever grows.

use super::{Played, Suite, trace};
use cdpipe_report::style::Style;
use cdpipe_sim::End;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The whole document, with a newline at its end.
pub(crate) fn render(suites: &[Suite]) -> String {
    let tests = || suites.iter().flat_map(|suite| &suite.tests);
    let document = json!({
        "simulated": true,
        "files": suites.iter().map(file).collect::<Vec<_>>(),
        "passed": tests().filter(|test| test.passed()).count(),
        "failed": tests().filter(|test| !test.passed()).count(),
    });
    format!("{document:#}\n")
}

fn file(suite: &Suite) -> Value {
    let tests: Vec<Value> = suite.tests.iter().map(|test| one(suite, test)).collect();
    json!({ "path": suite.path, "tests": tests })
}

fn one(suite: &Suite, test: &Played) -> Value {
    let unmet: Vec<Value> = test
        .unmet
        .iter()
        .enumerate()
        .map(|(at, diagnostic)| {
            let (path, start, _) = crate::render::place(&suite.checked.sources, diagnostic.primary.span);
            let found = test.found.get(at);
            json!({
                "message": diagnostic.message,
                "expected": found.map(|unmet| &unmet.expected),
                "found": found.map(|unmet| &unmet.found),
                "path": path,
                "line": start.line,
                "column": start.col,
            })
        })
        .collect();
    let mut value = json!({
        "name": test.name,
        "line": test.at.line,
        "passed": test.passed(),
        "virtual_ms": test.virtual_ms(),
        "unmet": unmet,
    });
    if let Some((given, ending)) = &test.run {
        value["outcome"] = match &ending.end {
            End::Finished(outcome) => json!(outcome.as_str()),
            End::Waiting(_) => json!("waiting"),
            End::Stuck(_) => json!("stuck"),
        };
        let traffic: BTreeMap<String, &BTreeMap<String, f64>> = ending
            .traffic
            .iter()
            .map(|((environment, service), shares)| (format!("{service}/{environment}"), shares))
            .collect();
        value["traffic"] = json!(traffic);
        if !test.passed() {
            let lines = trace::lines(given.header(), &ending.trace, Style::PLAIN);
            value["trace"] = lines.into_iter().map(|(line, _)| line).collect();
        }
    }
    value
}
