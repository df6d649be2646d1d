//! Masking of a stream that comes in pieces.

use super::patterns::Patterns;
use super::{MASK, Masker};
use std::borrow::Cow;
use std::sync::Arc;

/// Masks one stream. Bytes that could be the beginning of a secret are held back until it is clear: at most as many as the longest
/// secret has, and never beyond the end of a line.
#[derive(Debug)]
pub struct MaskStream {
    masker: Masker,
    patterns: Arc<Patterns>,
    generation: u64,
    /// Bytes that were not given yet.
    held: Vec<u8>,
    /// So many of the next bytes are covered by a secret that began before.
    covered: usize,
    /// The last byte given was of a mask, so that secrets that touch become one.
    in_mask: bool,
}

impl MaskStream {
    /// A stream that masks what this masker knows.
    pub fn new(masker: Masker) -> Self {
        let generation = masker.generation();
        let patterns = masker.patterns();
        Self { masker, patterns, generation, held: Vec::new(), covered: 0, in_mask: false }
    }

    /// Takes bytes, and gives those that are safe by now.
    pub fn feed<'a>(&mut self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        self.refresh();
        if self.patterns.is_empty() && self.held.is_empty() {
            return Cow::Borrowed(bytes);
        }
        self.held.extend_from_slice(bytes);
        Cow::Owned(self.give(false))
    }

    /// The stream has ended: gives what was held back.
    pub fn finish(&mut self) -> Vec<u8> {
        self.refresh();
        self.give(true)
    }

    fn refresh(&mut self) {
        let generation = self.masker.generation();
        if generation != self.generation {
            self.generation = generation;
            self.patterns = self.masker.patterns();
        }
    }

    fn give(&mut self, all: bool) -> Vec<u8> {
        let mut given = Vec::with_capacity(self.held.len());
        let mut at = 0;
        while at < self.held.len() {
            if !all && self.patterns.may_begin_at(&self.held, at) {
                break;
            }
            if let Some(length) = self.patterns.longest_at(&self.held, at) {
                self.covered = self.covered.max(length);
            }
            if self.covered > 0 {
                self.covered -= 1;
                if !self.in_mask {
                    given.extend_from_slice(MASK.as_bytes());
                    self.in_mask = true;
                }
            } else {
                self.in_mask = false;
                given.push(self.held[at]);
            }
            at += 1;
        }
        self.held.drain(..at);
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::{Alphabet, encode};
    use proptest::prelude::*;

    fn masker(values: &[&str]) -> Masker {
        let masker = Masker::default();
        for value in values {
            masker.learn_text(value);
        }
        masker
    }

    fn stream(masker: &Masker, chunks: &[&[u8]]) -> String {
        let mut stream = MaskStream::new(masker.clone());
        let mut given = Vec::new();
        for chunk in chunks {
            given.extend_from_slice(&stream.feed(chunk));
        }
        given.extend_from_slice(&stream.finish());
        String::from_utf8(given).expect("is text")
    }

    #[test]
    fn a_secret_in_two_writes_is_masked() {
        let masker = masker(&["hunter22"]);
        assert_eq!(stream(&masker, &[b"a hun", b"ter", b"22 b\n"]), "a *** b\n");
        assert_eq!(stream(&masker, &[b"a hun", b"ted"]), "a hunted");
    }

    #[test]
    fn nothing_is_held_back_past_a_line_end() {
        let masker = masker(&["hunter22"]);
        let mut stream = MaskStream::new(masker);
        assert_eq!(&*stream.feed(b"loud hunt\n"), b"loud hunt\n");
    }

    #[test]
    fn overlapping_and_touching_secrets_become_one_mask() {
        let masker = masker(&["aXbXcX", "cXdd", "aXbX"]);
        assert_eq!(stream(&masker, &[b"-aXbXcXdd-"]), "-***-");
        assert_eq!(stream(&masker, &[b"-aXbXaXbX-"]), "-***-");
    }

    #[test]
    fn a_value_of_several_lines_is_masked_line_by_line() {
        let masker = masker(&["-----BEGIN KEY-----\nabcdEFGH\nxy\n-----END KEY-----\n"]);
        assert_eq!(
            stream(&masker, &[b"-----BEGIN KEY-----\n  abcdEFGH\nxy\n-----END KEY-----\n"]),
            "***\n  ***\nxy\n***\n"
        );
    }

    #[test]
    fn encoded_forms_are_masked() {
        let secret = "s3cr3t/with+signs&\"quotes\"";
        let masker = masker(&[secret]);
        for prefix in ["", "u", "us", "user:"] {
            for alphabet in [Alphabet::Standard, Alphabet::UrlSafe] {
                let text = encode(format!("{prefix}{secret} and more").as_bytes(), alphabet);
                let masked = stream(&masker, &[&text]);
                assert!(masked.contains(MASK), "{masked}");
                let longest = masked.split(MASK).map(str::len).max().unwrap_or_default();
                assert!(longest < 16, "most of it is gone: {masked}");
            }
        }
        assert_eq!(masker.mask("s3cr3t%2Fwith%2Bsigns%26%22quotes%22"), "***");
        assert_eq!(masker.mask(r#"{"x":"s3cr3t/with+signs&\"quotes\""}"#), r#"{"x":"***"}"#);
    }

    #[test]
    fn wrapped_base64_of_a_long_secret_is_masked() {
        let secret: String = (0..200_u8).map(|at| char::from(b'a' + at % 26)).collect();
        let masker = masker(&[&secret]);
        let text = encode(secret.as_bytes(), Alphabet::Standard);
        for width in [64, 76] {
            let wrapped: Vec<u8> =
                text.chunks(width).flat_map(|line| line.iter().copied().chain([b'\n'])).collect();
            let masked = stream(&masker, &[&wrapped]);
            assert!(masked.lines().all(|line| line.starts_with(MASK) && line.len() < 12), "{masked}");
        }
    }

    #[test]
    fn the_text_inside_a_base64_secret_is_masked() {
        assert_eq!(masker(&["aHVudGVyMjItbG9uZw=="]).mask("it is hunter22-long."), "it is ***.");
        assert_eq!(masker(&["hunter22hunter22"]).mask("hunt er22"), "hunt er22");
    }

    #[test]
    fn short_values_are_not_masked_and_cost_nothing() {
        let masker = masker(&["abc", "", "1"]);
        assert_eq!(masker.mask("abc1"), "abc1");
        assert!(matches!(masker.mask("abc"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_stream_that_has_begun_learns_new_values() {
        let masker = Masker::default();
        let mut stream = MaskStream::new(masker.clone());
        assert_eq!(&*stream.feed(b"hunter22 "), b"hunter22 ");
        masker.learn_text("hunter22");
        assert_eq!(&*stream.feed(b"hunter22 "), b"*** ");
    }

    /// The rule itself, without streaming: a byte is masked if any form that stands somewhere covers it.
    fn by_the_rule(patterns: &Patterns, text: &[u8]) -> Vec<u8> {
        let mut covered = vec![false; text.len()];
        for at in 0..text.len() {
            if let Some(length) = patterns.longest_at(text, at) {
                covered[at..at + length].fill(true);
            }
        }
        let mut masked = Vec::new();
        for (at, byte) in text.iter().enumerate() {
            if !covered[at] {
                masked.push(*byte);
            } else if at == 0 || !covered[at - 1] {
                masked.extend_from_slice(MASK.as_bytes());
            }
        }
        masked
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_way_to_cut_the_stream_lets_a_secret_through(
            secrets in proptest::collection::vec("[ab\n]{1,9}", 1..4),
            text in "[abc\n]{0,80}",
            spliced in proptest::collection::vec((0_usize..80, 0_usize..4), 0..4),
            cuts in proptest::collection::vec(0_usize..120, 0..12),
        ) {
            let masker = masker(&secrets.iter().map(String::as_str).collect::<Vec<_>>());
            let mut text = text.into_bytes();
            for (at, which) in spliced {
                let secret = secrets[which % secrets.len()].as_bytes();
                let at = at.min(text.len());
                text.splice(at..at, secret.iter().copied());
            }
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            cuts.push(text.len());
            let mut from = 0;
            let chunks: Vec<&[u8]> = cuts.iter().map(|to| { let chunk = &text[from..*to]; from = *to; chunk }).collect();
            let masked = stream(&masker, &chunks);
            prop_assert_eq!(masked.as_bytes(), by_the_rule(&masker.patterns(), &text));
            for secret in &secrets {
                for line in secret.split('\n').filter(|line| line.len() >= super::super::SHORTEST_BYTES) {
                    prop_assert!(!masked.contains(line), "{:?} is in {:?}", line, masked);
                }
            }
        }
    }
}
