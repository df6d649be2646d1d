//! Judges what looks like a number: the token took every letter, digit, `.` and `%`, so there is one bad literal and one hint.

use crate::tree::Literal;

/// Why a token that looks like a number is none, and what was probably meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadLiteral {
    /// A sentence without a full stop.
    pub(crate) message: String,
    /// What to do.
    pub(crate) help: String,
    /// What to write instead, where that is likely enough.
    pub(crate) instead: Option<String>,
}

impl BadLiteral {
    fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: help.into(), instead: None }
    }

    fn instead(mut self, text: impl Into<String>) -> Self {
        self.instead = Some(text.into());
        self
    }
}

const MS: u64 = 1;
const SECOND_MS: u64 = 1_000;
const MINUTE_MS: u64 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;

/// Durations, largest first, as they may follow each other in a compound.
const DURATIONS: [(&str, u64); 5] =
    [("d", DAY_MS), ("h", HOUR_MS), ("m", MINUTE_MS), ("s", SECOND_MS), ("ms", MS)];

const SIZES: [(&str, u64); 7] = [
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
];

/// All units, for help texts.
const UNITS: &str = "units are ms s m h d (compounds such as 1h30m), %, and B kB MB GB Ki Mi Gi";

/// What people write for a unit, and the unit; `""` where there are two that it may mean.
const MISSPELT: &[(&str, &str)] = &[
    ("sec", "s"),
    ("secs", "s"),
    ("second", "s"),
    ("seconds", "s"),
    ("min", "m"),
    ("mins", "m"),
    ("minute", "m"),
    ("minutes", "m"),
    ("hr", "h"),
    ("hrs", "h"),
    ("hour", "h"),
    ("hours", "h"),
    ("day", "d"),
    ("days", "d"),
    ("msec", "ms"),
    ("msecs", "ms"),
    ("millis", "ms"),
    ("millisecond", "ms"),
    ("milliseconds", "ms"),
    ("pct", "%"),
    ("percent", "%"),
    ("kib", "Ki"),
    ("mib", "Mi"),
    ("gib", "Gi"),
    ("ki", "Ki"),
    ("mi", "Mi"),
    ("gi", "Gi"),
    ("kb", "kB"),
    ("mb", "MB"),
    ("gb", "GB"),
    ("k", "Ki"),
    ("g", "Gi"),
    ("b", "B"),
    ("byte", "B"),
    ("bytes", "B"),
];

/// Reads a token that the grammar calls `number`.
///
/// # Errors
/// What is wrong with it and what was probably meant.
pub(crate) fn read(token: &str) -> Result<Literal, BadLiteral> {
    if let Some(rest) = token.strip_prefix('.') {
        return Err(BadLiteral::new(format!("`{token}` has no digit before its point"), "write the zero")
            .instead(format!("0.{rest}")));
    }
    let digits = token.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = token.split_at(digits);
    if rest.is_empty() {
        if whole.len() > 1 && whole.starts_with('0') {
            let plain = whole.trim_start_matches('0');
            let plain = if plain.is_empty() { "0" } else { plain };
            return Err(BadLiteral::new(
                format!("`{token}` begins with a zero"),
                "write the number without it; if this is text (a file mode, an id), put it in quotes",
            )
            .instead(plain));
        }
        return whole.parse().map(Literal::Int).map_err(|_| {
            BadLiteral::new(
                format!("`{token}` is too large"),
                "whole numbers go up to 9223372036854775807; put longer ones in quotes",
            )
        });
    }
    if token.contains('_') {
        return Err(BadLiteral::new(format!("`{token}` is not a number"), "digits are written without `_`")
            .instead(token.replace('_', "")));
    }
    let fraction = match rest.strip_prefix('.') {
        None => "",
        Some(after) => &after[..after.bytes().take_while(u8::is_ascii_digit).count()],
    };
    let number_len = if fraction.is_empty() { digits } else { digits + 1 + fraction.len() };
    let (number, unit) = token.split_at(number_len);
    if unit.starts_with('.') {
        return Err(after_point(token, number, unit));
    }
    match unit {
        "" => number.parse().map(Literal::Number).map_err(|_| unknown(token)),
        "%" => number.parse().map(Literal::Percent).map_err(|_| unknown(token)),
        _ => {
            if let Some((_, bytes)) = SIZES.iter().find(|(name, _)| *name == unit) {
                return scaled(token, whole, fraction, *bytes, "bytes").map(Literal::SizeBytes);
            }
            if let Some((_, ms)) = DURATIONS.iter().find(|(name, _)| *name == unit) {
                return scaled(token, whole, fraction, *ms, "milliseconds").map(Literal::DurationMs);
            }
            compound(token).unwrap_or_else(|| Err(bad_unit(token, number, unit))).map(Literal::DurationMs)
        }
    }
}

/// `whole.fraction` times `scale`, which must come out even.
fn scaled(token: &str, whole: &str, fraction: &str, scale: u64, what: &str) -> Result<u64, BadLiteral> {
    let too_large = || {
        BadLiteral::new(
            format!("`{token}` is too large"),
            format!("the largest value is {} {what}", i64::MAX),
        )
    };
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let mut value =
        whole.checked_mul(scale).filter(|value| *value <= i64::MAX as u64).ok_or_else(too_large)?;
    if !fraction.is_empty() {
        let uneven = || {
            BadLiteral::new(
                format!("`{token}` is not a whole number of {what}"),
                "write it with a smaller unit",
            )
        };
        let fraction = fraction.trim_end_matches('0');
        let places = u32::try_from(fraction.len()).map_err(|_| uneven())?;
        let divisor = 10u128.checked_pow(places).ok_or_else(uneven)?;
        let digits: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| uneven())? };
        let product = digits.checked_mul(u128::from(scale)).ok_or_else(uneven)?;
        if product % divisor != 0 {
            return Err(uneven());
        }
        let part = u64::try_from(product / divisor).map_err(|_| too_large())?;
        value = value.checked_add(part).filter(|value| *value <= i64::MAX as u64).ok_or_else(too_large)?;
    }
    Ok(value)
}

/// `1h30m`: whole numbers, largest unit first, each once. None if it is not of that form at all.
fn compound(token: &str) -> Option<Result<u64, BadLiteral>> {
    let mut rest = token;
    let mut total: u64 = 0;
    let mut smallest = usize::MAX;
    let mut ordered = true;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, next) = after.split_at(letters);
        let at = DURATIONS.iter().position(|(name, _)| *name == unit)?;
        if digits == 0 {
            return None;
        }
        let value = match scaled(token, number, "", DURATIONS[at].1, "milliseconds") {
            Ok(value) => value,
            Err(error) => return Some(Err(error)),
        };
        ordered &= smallest == usize::MAX || at > smallest;
        smallest = at;
        parts += 1;
        total = match total.checked_add(value).filter(|total| *total <= i64::MAX as u64) {
            Some(total) => total,
            None => {
                return Some(Err(BadLiteral::new(
                    format!("`{token}` is too large"),
                    format!("the largest duration is {} milliseconds", i64::MAX),
                )));
            }
        };
        rest = next;
    }
    if parts > 1 && !ordered {
        return Some(Err(BadLiteral::new(
            format!("the units of `{token}` are not in order"),
            "write the largest unit first and each only once, as in `1h30m`",
        )));
    }
    Some(Ok(total))
}

/// What to say of a token with a point where no digits follow, or a second point.
fn after_point(token: &str, number: &str, unit: &str) -> BadLiteral {
    if token.contains("..") {
        return BadLiteral::new(
            format!("`{token}` is not a value: there are no ranges"),
            "write a list, such as `[1, 2, 3]`",
        );
    }
    if unit == "." {
        return BadLiteral::new(format!("`{token}` has no digit after its point"), "leave the point out")
            .instead(number);
    }
    if token.bytes().filter(|byte| *byte == b'.').count() > 1 {
        return BadLiteral::new(
            format!("`{token}` is not a number"),
            "a version (or an address) is text: put it in quotes",
        )
        .instead(format!("\"{token}\""));
    }
    unknown(token)
}

/// What to say of a number with a unit that does not exist.
fn bad_unit(token: &str, number: &str, unit: &str) -> BadLiteral {
    let message = format!("`{unit}` in `{token}` is not a unit");
    let lower = unit.to_ascii_lowercase();
    if unit == "M" {
        return BadLiteral::new(
            message,
            format!("the case counts: `{number}m` is minutes, `{number}Mi` and `{number}MB` are sizes"),
        );
    }
    if let Some((_, right)) = MISSPELT.iter().find(|(wrong, _)| *wrong == lower) {
        let instead = format!("{number}{right}");
        return BadLiteral::new(message, format!("write `{instead}`; {UNITS}")).instead(instead);
    }
    // A unit in the wrong case.
    if let Some((right, _)) = DURATIONS.iter().find(|(name, _)| *name == lower) {
        let instead = format!("{number}{right}");
        return BadLiteral::new(message, format!("the case counts: write `{instead}`")).instead(instead);
    }
    let whole: Option<u64> = number.parse().ok();
    match lower.as_str() {
        "w" | "wk" | "week" | "weeks" => {
            let days = whole.and_then(|weeks| weeks.checked_mul(7));
            let bad = BadLiteral::new(message, "the largest unit is the day");
            return match days {
                Some(days) => bad.instead(format!("{days}d")),
                None => bad,
            };
        }
        "t" | "tb" | "ti" | "tib" => {
            let (factor, unit) = if lower == "tb" { (1000, "GB") } else { (1024, "Gi") };
            let bad = BadLiteral::new(message, format!("the largest unit is {unit}"));
            return match whole.and_then(|count| count.checked_mul(factor)) {
                Some(count) => bad.instead(format!("{count}{unit}")),
                None => bad,
            };
        }
        "us" | "µs" | "ns" => return BadLiteral::new(message, "the smallest unit is the millisecond, `ms`"),
        "st" | "nd" | "rd" | "th" => {
            return BadLiteral::new(message, format!("write the number alone: `{number}`")).instead(number);
        }
        _ => {}
    }
    if unit.starts_with(['x', 'X', 'o', 'b']) && number == "0" {
        return BadLiteral::new(
            format!("`{token}` is not a number"),
            "numbers are decimal; if this is text, put it in quotes",
        );
    }
    if matches!(unit.as_bytes(), [b'e' | b'E', digit, ..] if digit.is_ascii_digit()) {
        return BadLiteral::new(
            format!("`{token}` is not a number"),
            "write it out: there is no notation with an exponent",
        );
    }
    unknown(token)
}

fn unknown(token: &str) -> BadLiteral {
    BadLiteral::new(
        format!("`{token}` is neither a number nor a number with a unit"),
        format!("{UNITS}; if this is text, put it in quotes"),
    )
}
