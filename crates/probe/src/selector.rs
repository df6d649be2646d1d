//! Series selectors as PromQL writes them: `http_requests_total{status=~"5..",path!="/health"}`.

use crate::exposition::{Series, parse_quoted};
use regex::Regex;

/// Picks series by name and labels.
#[derive(Debug)]
pub(crate) struct Selector {
    pub(crate) name: String,
    matchers: Vec<(String, Matcher)>,
}

#[derive(Debug)]
enum Matcher {
    Is(String),
    IsNot(String),
    Matches(Regex),
    MatchesNot(Regex),
}

impl Selector {
    /// Reads a selector.
    ///
    /// # Errors
    /// What is wrong with it, in one sentence.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (name, rest) = match text.find('{') {
            Some(at) => (text[..at].trim(), Some(&text[at + 1..])),
            None => (text, None),
        };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':') {
            return Err(format!(
                "`{text}` is not a series selector such as `requests_total{{status=\"500\"}}`"
            ));
        }
        let mut matchers = Vec::new();
        let Some(mut rest) = rest else { return Ok(Self { name: name.to_owned(), matchers }) };
        loop {
            rest = rest.trim_start();
            if let Some(after) = rest.strip_prefix('}') {
                return if after.trim().is_empty() {
                    Ok(Self { name: name.to_owned(), matchers })
                } else {
                    Err(format!(
                        "`{}` follows the selector; functions and ranges are for the prometheus source",
                        after.trim()
                    ))
                };
            }
            let Some(at) = rest.find(['=', '!']) else {
                return Err(format!("`{text}` lacks its closing brace"));
            };
            let label = rest[..at].trim().to_owned();
            let operator =
                ["=~", "!~", "!=", "="].into_iter().find(|operator| rest[at..].starts_with(operator));
            let Some(operator) = operator else {
                return Err(format!("expected =, !=, =~ or !~ after `{label}`"));
            };
            let quoted = rest[at + operator.len()..].trim_start().strip_prefix('"');
            let Some((value, after)) = quoted.and_then(parse_quoted) else {
                return Err(format!("expected a quoted value after `{label}{operator}`"));
            };
            let regex = || {
                // Anchored at both ends, as Prometheus does.
                Regex::new(&format!("^(?:{value})$"))
                    .map_err(|error| format!("`{value}` is not a regular expression: {error}"))
            };
            let matcher = match operator {
                "=" => Matcher::Is(value.clone()),
                "!=" => Matcher::IsNot(value.clone()),
                "=~" => Matcher::Matches(regex()?),
                _ => Matcher::MatchesNot(regex()?),
            };
            matchers.push((label, matcher));
            rest = after.trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
    }

    /// Whether the series is picked, apart from its name. A label that is not there counts as empty.
    pub(crate) fn picks_labels(&self, series: &Series) -> bool {
        self.matchers.iter().all(|(label, matcher)| {
            let value = series.labels.get(label).map_or("", String::as_str);
            match matcher {
                Matcher::Is(wanted) => value == wanted,
                Matcher::IsNot(wanted) => value != wanted,
                Matcher::Matches(regex) => regex.is_match(value),
                Matcher::MatchesNot(regex) => !regex.is_match(value),
            }
        })
    }

    /// Whether the series is picked.
    pub(crate) fn picks(&self, series: &Series) -> bool {
        series.name == self.name && self.picks_labels(series)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_as_prometheus_does() {
        let page = "a{s=\"500\"} 1\na{s=\"5000\"} 2\na{s=\"200\"} 4\na 8\nb{s=\"500\"} 16\n";
        for (selector, sum) in [
            ("a", 15.0),
            ("a{s=\"500\"}", 1.0),
            ("a{s=~\"5..\"}", 1.0),
            ("a{s!~\"5.*\"}", 12.0),
            ("a{s!=\"\", s!=\"200\"}", 3.0),
            ("b{}", 16.0),
        ] {
            let parsed = Selector::parse(selector).unwrap();
            let picked = crate::exposition::parse(page).into_iter().filter(|series| parsed.picks(series));
            assert_eq!(picked.map(|series| series.value).sum::<f64>(), sum, "{selector}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (selector, complaint) in [
            ("sum(a)", "is not a series selector"),
            ("a{s=\"5\"", "lacks its closing brace"),
            ("a{s=5}", "expected a quoted value"),
            ("a{s=~\"(\"}", "is not a regular expression"),
            ("a{s=\"5\"}[1m]", "follows the selector"),
        ] {
            let error = Selector::parse(selector).unwrap_err();
            assert!(error.contains(complaint), "{selector}: {error}");
        }
    }
}
