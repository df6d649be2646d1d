//! Secrets are a type: they are carried by name everywhere, and by value only at the rim for as long as an effect needs them.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Text with secrets in it, by name: `Bearer ${token}`. Safe to journal and to print.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(pub Vec<SecretPart>);

/// A piece of a text with secrets in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretPart {
    /// Plain text.
    Text(String),
    /// The value of the secret of this name.
    Secret(String),
    /// The value of the secret of this name, base64-decoded.
    Base64(String),
}

impl fmt::Display for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.0 {
            match part {
                SecretPart::Text(text) => f.write_str(text)?,
                SecretPart::Secret(name) | SecretPart::Base64(name) => write!(f, "<secret {name}>")?,
            }
        }
        Ok(())
    }
}

/// Where the value of a secret comes from. Resolved at the start, at resume, and before each use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretSource {
    /// An environment variable.
    Env(String),
    /// A file; one trailing newline is not part of the value.
    File(String),
    /// A command (shell text) whose standard output is the value, less one trailing newline.
    Command(String),
}

/// The value of a secret in memory. It has no `Display` and no `Serialize`, `Debug` does not show it, and it is overwritten when it
/// goes.
#[derive(Clone)]
pub struct SecretValue(Vec<u8>);

impl SecretValue {
    /// Takes ownership of the value.
    pub fn new(value: String) -> Self {
        Self(value.into_bytes())
    }

    /// The value itself, for the one place that hands it to the outside.
    pub fn expose(&self) -> &str {
        // The bytes came from a `String` and are never changed before drop, so this is always UTF-8.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Drop for SecretValue {
    fn drop(&mut self) {
        self.0.fill(0);
        // Keeps the compiler from seeing the fill as dead.
        std::hint::black_box(&self.0);
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Decodes standard base64 (RFC 4648 §4), padded or not; blanks and line ends in it are passed over.
///
/// `None` if it is not base64.
pub fn base64_decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.bytes().filter(|byte| !byte.is_ascii_whitespace()) {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => continue,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            // The low byte is what is wanted; the rest was taken before.
            out.push(((bits >> count) & 0xff) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_the_rfc() {
        for (text, expected) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg", "foob"),
            ("Zm9v\nYmFy", "foobar"),
        ] {
            assert_eq!(base64_decode(text), Some(expected.as_bytes().to_vec()), "{text}");
        }
        assert_eq!(base64_decode("Zm9v!"), None);
    }

    #[test]
    fn a_value_does_not_show() {
        assert_eq!(format!("{:?}", SecretValue::new("hunter2".into())), "***");
    }
}
