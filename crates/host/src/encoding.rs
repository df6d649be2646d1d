//! Base64 as a secret may appear in output. Decoding is `model`'s.

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The two alphabets in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alphabet {
    /// With `+` and `/`.
    Standard,
    /// With `-` and `_`.
    UrlSafe,
}

/// Base64 without padding.
pub(crate) fn encode(bytes: &[u8], alphabet: Alphabet) -> Vec<u8> {
    let table = match alphabet {
        Alphabet::Standard => STANDARD,
        Alphabet::UrlSafe => URL_SAFE,
    };
    let mut text = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk
            .iter()
            .enumerate()
            .fold(0_u32, |group, (at, byte)| group | u32::from(*byte) << (16 - 8 * at));
        for at in 0..=chunk.len() {
            text.push(table[(group >> (18 - 6 * at) & 63) as usize]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        assert_eq!(encode(b"hello", Alphabet::Standard), b"aGVsbG8");
        assert_eq!(encode(&[0xFB, 0xFF], Alphabet::UrlSafe), b"-_8");
    }

    proptest! {
        #[test]
        fn there_and_back(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let text = String::from_utf8(encode(&bytes, Alphabet::Standard)).expect("is ascii");
            let back = cdpipe_model::secret::base64_decode(&text);
            prop_assert_eq!(back.as_ref(), Some(&bytes));
        }
    }
}
