//! Prometheus' text exposition format (version 0.0.4, and what OpenMetrics 1.0 shares with it), as far as reading numbers needs it.

use std::collections::BTreeMap;

/// One sample of a series.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

/// Reads a whole page. Lines that are not samples (comments, blanks, what is cut off or malformed) are passed over: a page with one
/// bad line still has all the others.
pub(crate) fn parse(text: &str) -> Vec<Series> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Series> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let name_end =
        line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap_or(line.len());
    let (name, rest) = line.split_at(name_end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let (labels, rest) = match rest.trim_start().strip_prefix('{') {
        Some(inside) => parse_labels(inside)?,
        None => (BTreeMap::new(), rest),
    };
    let value = parse_value(rest.split_whitespace().next()?)?;
    Some(Series { name: name.to_owned(), labels, value })
}

fn parse_value(text: &str) -> Option<f64> {
    match text {
        "+Inf" | "Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        _ => text.parse().ok(),
    }
}

/// Labels up to the closing brace, and what follows it.
fn parse_labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let equals = rest.find('=')?;
        let name = rest[..equals].trim();
        let quoted = rest[equals + 1..].trim_start().strip_prefix('"')?;
        let (value, after) = parse_quoted(quoted)?;
        labels.insert(name.to_owned(), value);
        rest = after.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

/// A quoted text up to its closing quote, unescaped, and what follows it.
pub(crate) fn parse_quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_samples_and_passes_over_the_rest() {
        let page = concat!(
            "# HELP http_requests_total Requests.\n",
            "# TYPE http_requests_total counter\n",
            "http_requests_total{status=\"200\",path=\"/a,b}\"} 12\n",
            "http_requests_total{status=\"500\",path=\"say \\\"hi\\\"\",} 3 1700000000000\n",
            "up 1\n",
            "  latency_bucket{le=\"+Inf\"} +Inf\n",
            "broken{status=\"5\n",
            "1bad 3\n",
            "no_value\n",
        );
        let series = parse(page);
        let shown: Vec<_> = series
            .iter()
            .map(|series| format!("{} {:?} {}", series.name, series.labels, series.value))
            .collect();
        assert_eq!(
            shown,
            [
                r#"http_requests_total {"path": "/a,b}", "status": "200"} 12"#,
                r#"http_requests_total {"path": "say \"hi\"", "status": "500"} 3"#,
                "up {} 1",
                r#"latency_bucket {"le": "+Inf"} inf"#,
            ]
        );
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC*") {
            let _ = parse(&text);
        }
    }
}
