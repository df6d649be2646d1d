//! Played tests as JUnit XML, for CI systems that show tests.

use super::{Suite, trace};
use cdpipe_report::style::Style;
use std::fmt::Write;

/// The whole document. Times are virtual: they say how long the pipeline would take, and are the same in every run.
pub(crate) fn render(suites: &[Suite]) -> String {
    let mut text =
        String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"cdpipe test\">\n");
    for suite in suites {
        let failed = suite.tests.iter().filter(|test| !test.passed()).count();
        let _ = writeln!(
            text,
            "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{failed}\" errors=\"0\" skipped=\"0\">",
            escape(&suite.path),
            suite.tests.len()
        );
        for test in &suite.tests {
            let virtual_ms = test.virtual_ms();
            let _ = write!(
                text,
                "    <testcase classname=\"{}\" name=\"{}\" file=\"{}\" line=\"{}\" time=\"{}.{:03}\"",
                escape(&suite.path),
                escape(&test.name),
                escape(&suite.path),
                test.at.line,
                virtual_ms / 1_000,
                virtual_ms % 1_000
            );
            if test.passed() {
                text.push_str("/>\n");
                continue;
            }
            text.push_str(">\n");
            let messages: Vec<String> = test
                .unmet
                .iter()
                .map(|diagnostic| match diagnostic.primary.text.as_str() {
                    "" => diagnostic.message.clone(),
                    label => format!("{}, {label}", diagnostic.message),
                })
                .collect();
            let first = messages.first().map_or("", String::as_str);
            let _ = writeln!(text, "      <failure message=\"{}\">", escape(first));
            for message in &messages {
                let _ = writeln!(text, "{}", escape(message));
            }
            if let Some((given, ending)) = &test.run {
                for (line, _) in trace::lines(given.header(), &ending.trace, Style::PLAIN) {
                    let _ = writeln!(text, "{}", escape(line.trim_end()));
                }
            }
            text.push_str("      </failure>\n    </testcase>\n");
        }
        text.push_str("  </testsuite>\n");
    }
    text.push_str("</testsuites>\n");
    text
}

/// Text as XML takes it; characters that it can't hold become `?`.
fn escape(text: &str) -> String {
    text.chars()
        .map(|char| match char {
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '"' => "&quot;".to_owned(),
            '\n' | '\t' => char.to_string(),
            control if control.is_control() => "?".to_owned(),
            other => other.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn what_xml_reserves_is_escaped() {
        assert_eq!(escape("a < b & \"c\" > \u{1b}d"), "a &lt; b &amp; &quot;c&quot; &gt; ?d");
    }
}
