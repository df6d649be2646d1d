//! The byte strings to look for.

use super::SHORTEST_BYTES;
use crate::encoding::{Alphabet, encode};
use std::fmt::{self, Write as _};

/// Encoded forms shorter than this are too likely to be something else.
const SHORTEST_ENCODED_BYTES: usize = 8;

/// Columns at which tools break base64.
const WRAPS: [usize; 2] = [64, 76];

/// All forms of all known values. None has a line end in it. Overwritten when it goes, and never shown.
#[derive(Default)]
pub(super) struct Patterns {
    values: Vec<Secret>,
    /// By first byte, the longest first.
    by_first: Vec<Vec<Secret>>,
}

/// Bytes that are overwritten when they go.
#[derive(Clone, PartialEq, Eq)]
struct Secret(Vec<u8>);

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.fill(0);
        std::hint::black_box(&self.0);
    }
}

impl fmt::Debug for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Patterns({} values)", self.values.len())
    }
}

impl Patterns {
    pub(super) fn is_empty(&self) -> bool {
        self.by_first.is_empty()
    }

    pub(super) fn knows(&self, value: &str) -> bool {
        self.values.iter().any(|known| known.0 == value.as_bytes())
    }

    /// The values after the first `known` that were learned, and how many there are.
    pub(super) fn values_after(&self, known: usize) -> (Vec<String>, usize) {
        let values = self.values.iter().skip(known);
        (values.map(|value| String::from_utf8_lossy(&value.0).into_owned()).collect(), self.values.len())
    }

    /// These and the forms of one more value.
    pub(super) fn with(&self, value: &str) -> Self {
        let mut values = self.values.clone();
        if !self.knows(value) {
            values.push(Secret(value.as_bytes().to_vec()));
        }
        let mut by_first =
            if self.by_first.is_empty() { vec![Vec::new(); 256] } else { self.by_first.clone() };
        let mut any = !self.is_empty();
        for form in forms(value) {
            let Some(first) = form.0.first() else { continue };
            let list = &mut by_first[usize::from(*first)];
            if !list.contains(&form) {
                list.push(form);
                list.sort_by_key(|form| std::cmp::Reverse(form.0.len()));
            }
            any = true;
        }
        // Without any form (only short values) streams can keep to the fast path.
        Self { values, by_first: if any { by_first } else { Vec::new() } }
    }

    /// Length of the longest form that stands here whole.
    pub(super) fn longest_at(&self, text: &[u8], at: usize) -> Option<usize> {
        let rest = text.get(at..)?;
        let list = self.by_first.get(usize::from(*rest.first()?))?;
        list.iter().find(|form| rest.starts_with(&form.0)).map(|form| form.0.len())
    }

    /// Whether the text from here to its end could be the beginning of a form.
    pub(super) fn may_begin_at(&self, text: &[u8], at: usize) -> bool {
        let Some(rest) = text.get(at..) else { return false };
        let Some(first) = rest.first() else { return false };
        self.by_first
            .get(usize::from(*first))
            .is_some_and(|list| list.iter().any(|form| form.0.len() > rest.len() && form.0.starts_with(rest)))
    }
}

/// Everything a value may look like.
fn forms(value: &str) -> Vec<Secret> {
    let mut forms = Vec::new();
    let mut add = |bytes: Vec<u8>, shortest: usize| {
        if bytes.len() >= shortest {
            forms.push(Secret(bytes));
        }
    };
    for line in value.split(['\n', '\r']) {
        // Blanks around a line are layout: a tool that trims it must not get it through.
        let line = line.trim();
        add(line.as_bytes().to_vec(), SHORTEST_BYTES);
        if line.len() >= SHORTEST_BYTES {
            encoded(line.as_bytes(), &mut add);
            escaped(line, &mut add);
        }
    }
    let value = value.trim_end_matches(['\n', '\r']);
    if value.contains('\n') && value.len() >= SHORTEST_BYTES {
        encoded(value.as_bytes(), &mut add);
        escaped(value, &mut add);
    }
    // `base64_decode(secret)` reaches programs as the text inside.
    if let Some(inside) = cdpipe_model::secret::base64_decode(value)
        && inside.len() >= SHORTEST_ENCODED_BYTES
        && let Ok(inside) = String::from_utf8(inside)
        && !inside.contains(|sign: char| sign.is_control() && !sign.is_whitespace())
    {
        for line in inside.lines().map(str::trim) {
            add(line.as_bytes().to_vec(), SHORTEST_BYTES);
        }
    }
    forms
}

fn encoded(bytes: &[u8], add: &mut dyn FnMut(Vec<u8>, usize)) {
    for alphabet in [Alphabet::Standard, Alphabet::UrlSafe] {
        for before in 0..3 {
            // As if `before` unknown bytes came first, and more after: only signs made of the secret's bits alone are looked for.
            let padded: Vec<u8> = std::iter::repeat_n(0, before).chain(bytes.iter().copied()).collect();
            let text = encode(&padded, alphabet);
            let from = (before * 8).div_ceil(6);
            let to = padded.len() * 8 / 6;
            if let Some(inner) = text.get(from..to) {
                add(inner.to_vec(), SHORTEST_ENCODED_BYTES);
            }
        }
        let text = encode(bytes, alphabet);
        for width in WRAPS {
            if text.len() > width {
                for line in text.chunks(width) {
                    add(line.to_vec(), SHORTEST_ENCODED_BYTES);
                }
            }
        }
    }
}

fn escaped(text: &str, add: &mut dyn FnMut(Vec<u8>, usize)) {
    let mut percent = String::new();
    let mut percent_lower = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            percent.push(char::from(byte));
            percent_lower.push(char::from(byte));
        } else {
            // Writing to a `String` cannot fail.
            let _ = write!(percent, "%{byte:02X}");
            let _ = write!(percent_lower, "%{byte:02x}");
        }
    }
    for form in [percent, percent_lower] {
        if form != text {
            add(form.into_bytes(), SHORTEST_BYTES);
        }
    }
    if let Ok(json) = serde_json::to_string(text) {
        let inner = json[1..json.len() - 1].to_owned();
        if inner != text {
            add(inner.into_bytes(), SHORTEST_BYTES);
        }
    }
}
