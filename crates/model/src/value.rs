//! Values with units, and their types.

use crate::secret::SecretText;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// A value of the language.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    /// `true`, `false`.
    Bool(bool),
    /// Whole number.
    Int(i64),
    /// Number without a unit.
    Number(f64),
    /// `10%` is 10.0.
    Percent(f64),
    /// Milliseconds; fractions occur in measured durations.
    Duration(f64),
    /// Bytes.
    Size(u64),
    /// Text. A version is one too.
    Str(String),
    /// Text with secrets in it, by name.
    Secret(SecretText),
    /// In order.
    List(Vec<Value>),
    /// By key.
    Map(BTreeMap<String, Value>),
}

/// The type of a value.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each is the word of the language")]
pub enum Type {
    Bool,
    Int,
    Number,
    Percent,
    Duration,
    Size,
    Str,
    Version,
    Secret,
    List(Box<Type>),
    Map(Box<Type>),
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Bool => f.write_str("bool"),
            Type::Int => f.write_str("int"),
            Type::Number => f.write_str("number"),
            Type::Percent => f.write_str("percent"),
            Type::Duration => f.write_str("duration"),
            Type::Size => f.write_str("size"),
            Type::Str => f.write_str("string"),
            Type::Version => f.write_str("version"),
            Type::Secret => f.write_str("secret"),
            Type::List(item) => write!(f, "list({item})"),
            Type::Map(item) => write!(f, "map({item})"),
        }
    }
}

impl Value {
    /// The type of this value; an empty list or map counts as one of strings.
    pub fn ty(&self) -> Type {
        match self {
            Value::Bool(_) => Type::Bool,
            Value::Int(_) => Type::Int,
            Value::Number(_) => Type::Number,
            Value::Percent(_) => Type::Percent,
            Value::Duration(_) => Type::Duration,
            Value::Size(_) => Type::Size,
            Value::Str(_) => Type::Str,
            Value::Secret(_) => Type::Secret,
            Value::List(items) => Type::List(Box::new(items.first().map_or(Type::Str, Value::ty))),
            Value::Map(items) => Type::Map(Box::new(items.values().next().map_or(Type::Str, Value::ty))),
        }
    }

    /// The text, if it is a plain string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The magnitude in the base unit (percent points, milliseconds, bytes), if it is a number of any kind.
    #[allow(
        clippy::cast_precision_loss,
        reason = "a magnitude for comparison; 2^53 bytes or counts is far away"
    )]
    pub fn magnitude(&self) -> Option<f64> {
        match self {
            Value::Int(n) => Some(*n as f64),
            Value::Number(n) | Value::Percent(n) | Value::Duration(n) => Some(*n),
            Value::Size(n) => Some(*n as f64),
            _ => None,
        }
    }
}

/// As the language writes it, except that a top-level string has no quotes: this is what `${x}` puts into a text.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bool(b) => write!(f, "{b}"),
            Value::Int(n) => write!(f, "{n}"),
            Value::Number(n) => write!(f, "{}", trim_number(*n)),
            Value::Percent(n) => write!(f, "{}%", trim_number(*n)),
            Value::Duration(ms) => f.write_str(&format_duration_ms(*ms)),
            Value::Size(bytes) => f.write_str(&format_size_bytes(*bytes)),
            Value::Str(text) => f.write_str(text),
            Value::Secret(text) => write!(f, "{text}"),
            Value::List(items) => {
                f.write_str("[")?;
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        f.write_str(", ")?;
                    }
                    write_quoted(f, item)?;
                }
                f.write_str("]")
            }
            Value::Map(items) => {
                f.write_str("{")?;
                for (at, (key, item)) in items.iter().enumerate() {
                    f.write_str(if at > 0 { ", " } else { " " })?;
                    write!(f, "{key} = ")?;
                    write_quoted(f, item)?;
                }
                f.write_str(" }")
            }
        }
    }
}

fn write_quoted(f: &mut fmt::Formatter<'_>, value: &Value) -> fmt::Result {
    match value {
        Value::Str(text) => write!(f, "{text:?}"),
        other => write!(f, "{other}"),
    }
}

/// At most four decimals, no trailing zeros: `9.25`, `10`, `0.0013`.
pub fn trim_number(n: f64) -> String {
    let text = format!("{n:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `1h30m`, `45s`, `250ms`, `2.5ms`: the largest units first, as the language writes durations.
pub fn format_duration_ms(ms: f64) -> String {
    if ms < 1000.0 {
        return format!("{}ms", trim_number(ms));
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at least 1000, and saturating is right"
    )]
    let mut rest = ms.round() as u64;
    let mut text = String::new();
    for (unit, size_ms) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        let count = rest / size_ms;
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
            rest %= size_ms;
        }
    }
    text
}

/// `256Mi`, `1500kB`, `17B`: the largest unit that divides it.
pub fn format_size_bytes(bytes: u64) -> String {
    for (unit, size) in [
        ("Gi", 1 << 30),
        ("GB", 1_000_000_000),
        ("Mi", 1 << 20),
        ("MB", 1_000_000),
        ("Ki", 1 << 10),
        ("kB", 1_000),
    ] {
        if bytes >= size && bytes.is_multiple_of(size) {
            return format!("{}{unit}", bytes / size);
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_written_as_the_language_writes_them() {
        assert_eq!(Value::Duration(5_400_000.0).to_string(), "1h30m");
        assert_eq!(Value::Duration(0.0).to_string(), "0ms");
        assert_eq!(Value::Duration(2.5).to_string(), "2.5ms");
        assert_eq!(Value::Duration(61_001.0).to_string(), "1m1s1ms");
        assert_eq!(Value::Percent(9.25).to_string(), "9.25%");
        assert_eq!(Value::Size(256 << 20).to_string(), "256Mi");
        assert_eq!(Value::Size(1500).to_string(), "1500B");
        assert_eq!(Value::List(vec![Value::Str("a".into()), Value::Int(1)]).to_string(), "[\"a\", 1]");
    }
}
