//! Played tests for people: one line for each, then what failed with its place and its trace.

use super::{Played, Suite, trace};
use crate::render::{self, Found, plural};
use crate::ui::Look;
use cdpipe_report::style::Style;
use cdpipe_report::words;
use std::fmt::Write;
use std::time::Duration;
use unicode_width::UnicodeWidthStr;

/// Lines of a trace that are shown; the last ones say most.
const MAX_TRACE_LINES: usize = 60;

/// One line for each test.
pub(crate) fn list(suite: &Suite, look: Look) -> String {
    let widest = suite.tests.iter().map(|test| test.name.width()).max().unwrap_or(0).min(60);
    let mut text = format!("{}\n", look.bold(crate::files::show(&suite.path)));
    for test in &suite.tests {
        let mark = if test.passed() { look.green("ok  ") } else { look.red("FAIL") };
        let pad = " ".repeat(widest.saturating_sub(test.name.width()));
        let time = look.dim(&words::duration(test.virtual_ms()));
        let _ = writeln!(text, "  {mark}  {}{pad}  {time}", test.name);
    }
    text
}

/// Why tests failed: each expectation with its place, and what happened.
pub(crate) fn failures(suite: &Suite, look: Look) -> String {
    let mut text = String::new();
    for test in suite.tests.iter().filter(|test| !test.passed()) {
        let found = [Found { sources: &suite.checked.sources, diagnostics: test.unmet.iter().collect() }];
        text.push('\n');
        text.push_str(&render::text::render(&found, look));
        text.push_str(&what_happened(test, look));
    }
    text
}

fn what_happened(test: &Played, look: Look) -> String {
    let Some((given, ending)) = &test.run else { return String::new() };
    let style = Style { color: look.color, unicode: look.unicode };
    let lines = trace::lines(given.header(), &ending.trace, style);
    format!("  what happened (simulated; virtual time):\n{}", traced(&lines, look))
}

/// The last lines of a trace, indented.
pub(crate) fn traced(lines: &[(String, bool)], look: Look) -> String {
    let mut text = String::new();
    let left = lines.len().saturating_sub(MAX_TRACE_LINES);
    if left > 0 {
        let _ = writeln!(text, "    {}", look.dim(&format!("... {} before", plural(left, "line"))));
    }
    for (line, remark) in lines.iter().skip(left) {
        let line = if *remark { look.yellow(line) } else { line.clone() };
        let _ = writeln!(text, "    {}", line.trim_end());
    }
    text
}

/// The last line.
pub(crate) fn closing(suites: &[Suite], took: Duration, look: Look) -> String {
    let tests = suites.iter().flat_map(|suite| &suite.tests);
    let (mut passed, mut failed, mut virtual_ms) = (0, 0, 0);
    for test in tests {
        if test.passed() {
            passed += 1;
        } else {
            failed += 1;
        }
        virtual_ms += test.virtual_ms();
    }
    let verdict = match (passed, failed) {
        (_, 0) => look.green(&format!("{} passed", plural(passed, "test"))),
        (0, _) => look.red(&format!("{} failed", plural(failed, "test"))),
        _ => format!("{}, {passed} passed", look.red(&format!("{} failed", plural(failed, "test")))),
    };
    format!("\n{verdict} (simulated): {} of virtual time in {}\n", words::duration(virtual_ms), real(took))
}

/// Milliseconds of real time.
fn real(took: Duration) -> String {
    let ms = took.as_millis();
    if ms < 1_000 { format!("{ms}ms") } else { words::duration(u64::try_from(ms).unwrap_or(u64::MAX)) }
}
