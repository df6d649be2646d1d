//! Outputs of stages: text that a command wrote, read as the declared type.

use cdpipe_model::value::Type;
use cdpipe_model::{Fault, Value};
use std::collections::BTreeMap;

/// Checks that every declared output that was written can be read.
///
/// # Errors
/// `bad-output`, naming the first that can't.
pub(crate) fn check(
    written: &BTreeMap<String, String>,
    declared: &[cdpipe_model::plan::Output],
) -> Result<(), Fault> {
    for output in declared {
        if let Some(text) = written.get(&output.name) {
            read(text, &output.ty).map_err(|expected| {
                Fault::new("bad-output", format!("output `{}` is {text:?}; expected {expected}", output.name))
                    .help(format!("write `{}=VALUE` to $CDPIPE_OUTPUT, one line", output.name))
            })?;
        }
    }
    Ok(())
}

/// Reads a text as this type.
///
/// # Errors
/// What was expected.
pub(crate) fn read(text: &str, ty: &Type) -> Result<Value, &'static str> {
    let trimmed = text.trim();
    match ty {
        Type::Bool => match trimmed {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => Err("true or false"),
        },
        Type::Int => trimmed.parse().map(Value::Int).map_err(|_| "a whole number"),
        Type::Number => {
            trimmed.parse().ok().filter(|n: &f64| n.is_finite()).map(Value::Number).ok_or("a number")
        }
        Type::Percent => {
            let number = trimmed.strip_suffix('%').unwrap_or(trimmed).trim_end();
            number
                .parse()
                .ok()
                .filter(|n: &f64| n.is_finite())
                .map(Value::Percent)
                .ok_or("a percentage such as 2.5%")
        }
        Type::Duration => duration_ms(trimmed).map(Value::Duration).ok_or("a duration such as 1m30s"),
        Type::Size => size_bytes(trimmed).map(Value::Size).ok_or("a size such as 256Mi"),
        Type::Str | Type::Version => Ok(Value::Str(text.to_owned())),
        Type::List(item) => {
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            lines.map(|line| read(line, item)).collect::<Result<_, _>>().map(Value::List)
        }
        Type::Secret | Type::Map(_) => Err("a type that an output can have"),
    }
}

fn duration_ms(text: &str) -> Option<f64> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let unit_ms = match unit {
            "ms" => 1.0,
            "s" => 1e3,
            "m" => 60e3,
            "h" => 3600e3,
            "d" => 86400e3,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * unit_ms;
        rest = tail;
    }
    (!text.is_empty() && total.is_finite()).then_some(total)
}

fn size_bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale: u64 = match unit {
        "" | "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_language_writes() {
        for (text, ty) in [
            ("1h30m", Type::Duration),
            ("250ms", Type::Duration),
            ("256Mi", Type::Size),
            ("2.5%", Type::Percent),
            ("-3", Type::Int),
            ("true", Type::Bool),
        ] {
            assert_eq!(read(text, &ty).map(|value| value.to_string()), Ok(text.to_owned()));
        }
        for (text, ty) in [
            ("1.5h2", Type::Duration),
            ("", Type::Duration),
            ("5 min", Type::Duration),
            ("99999999999999999999Gi", Type::Size),
            ("NaN", Type::Number),
            ("yes", Type::Bool),
        ] {
            assert!(read(text, &ty).is_err(), "{text}");
        }
    }
}
