//! Query placeholders: `$release`, `$role`, `$service`, `$environment`, `$window`, filled for one side and escaped for where they stand.

use cdpipe_model::measure::MeasureScope;

/// Where a value is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Inside the quotes of a PromQL string.
    PromQl,
    /// Inside a URL.
    Url,
}

/// Names and values, longest name first so that no name is taken for the start of another.
pub(crate) fn values(scope: &MeasureScope) -> [(&'static str, String); 5] {
    [
        ("environment", scope.environment.clone()),
        ("release", scope.release.clone()),
        ("service", scope.service.clone()),
        ("window", format!("{}ms", scope.window_ms)),
        ("role", scope.role.clone()),
    ]
}

/// The text with its placeholders filled in. What follows a name must not go on it: `$releases` is left as it is.
pub(crate) fn fill(text: &str, scope: &MeasureScope, place: Place) -> String {
    let values = values(scope);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let found = values.iter().find(|(name, _)| {
            after
                .strip_prefix(name)
                .is_some_and(|tail| !tail.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
        });
        match found {
            Some((name, value)) => {
                out.push_str(&escape(value, place));
                rest = &after[name.len()..];
            }
            None => {
                out.push('$');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

fn escape(value: &str, place: Place) -> String {
    match place {
        Place::PromQl => {
            value.replace('\\', "\\\\").replace('"', "\\\"").replace('\'', "\\'").replace('\n', "\\n")
        }
        Place::Url => value
            .bytes()
            .map(|byte| match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    char::from(byte).to_string()
                }
                other => format!("%{other:02X}"),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped_for_where_they_stand() {
        let scope = MeasureScope {
            service: "we\"b".into(),
            environment: "prod eu".into(),
            release: "abc".into(),
            role: "candidate".into(),
            window_ms: 30_000,
            addresses: Vec::new(),
        };
        let text = "rate(x{release=\"$release\",s=\"$service\"}[$window]) $releases $1 $";
        assert_eq!(
            fill(text, &scope, Place::PromQl),
            "rate(x{release=\"abc\",s=\"we\\\"b\"}[30000ms]) $releases $1 $"
        );
        assert_eq!(fill("http://h/$environment/$role", &scope, Place::Url), "http://h/prod%20eu/candidate");
    }
}
