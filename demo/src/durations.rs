//! Durations as people write them: `300ms`, `3s`, `2m`.

use std::time::Duration;

/// Reads a whole number followed by `ms`, `s` or `m`.
///
/// # Errors
/// Says what was expected and what was found.
pub fn parse(text: &str) -> Result<Duration, String> {
    let expected = || format!("expected a duration such as 300ms, 3s or 2m, found `{text}`");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| expected())?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return Err(expected()),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::parse;
    use std::time::Duration;

    #[test]
    fn reads_each_unit() {
        assert_eq!(parse("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(parse("3s"), Ok(Duration::from_secs(3)));
        assert_eq!(parse("2m"), Ok(Duration::from_secs(120)));
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        for text in
            ["", "3", "s", "-3s", "3 s", "1.5s", "3h", "99999999999999999999s", "18446744073709551615m", "é"]
        {
            assert!(parse(text).is_err(), "{text:?} was accepted");
        }
    }
}
