//! Bytes into lines, with a bound on the length of a line.

/// Longest line in bytes; what is longer comes in pieces.
pub(crate) const LINE_LIMIT_BYTES: usize = 16 * 1024;

/// Cuts a stream into lines. `\n`, `\r\n` and a bare `\r` (progress bars) end a line; bytes that are not UTF-8 become `�`.
#[derive(Debug, Default)]
pub struct Lines {
    rest: Vec<u8>,
    after_return: bool,
}

impl Lines {
    /// Takes bytes, and gives each line that is complete by now.
    pub fn feed(&mut self, bytes: &[u8], give: &mut dyn FnMut(&str)) {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_return) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let room = LINE_LIMIT_BYTES.saturating_sub(self.rest.len());
            let end = bytes.iter().take(room).position(|byte| matches!(byte, b'\n' | b'\r'));
            let Some(end) = end else {
                let taken = room.min(bytes.len());
                self.rest.extend_from_slice(&bytes[..taken]);
                bytes = &bytes[taken..];
                if self.rest.len() >= LINE_LIMIT_BYTES {
                    // The line end that may follow belongs to this piece, or an empty line would appear.
                    match bytes.first() {
                        Some(b'\n') => bytes = &bytes[1..],
                        Some(b'\r') => {
                            self.after_return = true;
                            bytes = &bytes[1..];
                        }
                        Some(_) => {}
                        None => return,
                    }
                    self.give(give);
                }
                continue;
            };
            self.after_return = bytes[end] == b'\r';
            if self.rest.is_empty() {
                give(&String::from_utf8_lossy(&bytes[..end]));
            } else {
                self.rest.extend_from_slice(&bytes[..end]);
                self.give(give);
            }
            bytes = &bytes[end + 1..];
        }
    }

    /// The stream has ended: gives what has no line end.
    pub fn finish(&mut self, give: &mut dyn FnMut(&str)) {
        while !self.rest.is_empty() {
            self.give(give);
        }
    }

    fn give(&mut self, give: &mut dyn FnMut(&str)) {
        // A piece of a long line may end within a character: what is cut off comes with the next piece.
        let cut =
            if self.rest.len() >= LINE_LIMIT_BYTES { whole_characters(&self.rest) } else { self.rest.len() };
        give(&String::from_utf8_lossy(&self.rest[..cut]));
        self.rest.drain(..cut);
    }
}

/// Length of the text without a character that is cut at its end; all of it if it does not end in one.
fn whole_characters(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    for (at, byte) in bytes.iter().enumerate().skip(tail).rev() {
        let length = match byte {
            0xC0..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF7 => 4,
            0x80..=0xBF => continue,
            _ => return bytes.len(),
        };
        return if at + length > bytes.len() { at } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let mut found = Vec::new();
        let mut lines = Lines::default();
        for chunk in chunks {
            lines.feed(chunk, &mut |line| found.push(line.to_owned()));
        }
        lines.finish(&mut |line| found.push(line.to_owned()));
        found
    }

    #[test]
    fn line_ends_of_all_kinds() {
        assert_eq!(lines(&[b"a\nb\r", b"\nc\rd\n\ne"]), ["a", "b", "c", "d", "", "e"]);
        assert_eq!(lines(&[b"\xff\xfe ok\n"]), ["\u{fffd}\u{fffd} ok"]);
    }

    #[test]
    fn a_long_line_comes_in_pieces_and_loses_nothing() {
        let text = "é".repeat(LINE_LIMIT_BYTES);
        let found = lines(&[b"x", text.as_bytes(), b"\nnext\n"]);
        assert_eq!(found.last().map(String::as_str), Some("next"));
        assert_eq!(found[..found.len() - 1].concat(), format!("x{text}"));
        assert!(found.iter().all(|line| line.len() <= LINE_LIMIT_BYTES));
    }

    proptest! {
        #[test]
        fn chunks_make_no_difference(text in "[a-c\r\n]{0,60}", cuts in proptest::collection::vec(0_usize..60, 0..6)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let mut from = 0;
            let chunks: Vec<&[u8]> = cuts.iter().map(|to| { let chunk = &bytes[from..*to]; from = *to; chunk }).collect();
            prop_assert_eq!(lines(&chunks), lines(&[bytes]));
        }
    }
}
