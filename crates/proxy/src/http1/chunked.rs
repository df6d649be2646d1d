//! Finds the end of a chunked body (RFC 9112 7.1) without changing it.
//!
//! Bytes are passed on as they came, so what is accepted here must mean the same to every reader: hex digits only, CRLF
//! after each line and each chunk, no bare LF, extensions and trailers bounded and free of control characters.

/// Longest chunk-size line with its extensions, in bytes.
const MAX_LINE_BYTES: u32 = 4_096;
/// Longest trailer section in bytes.
const MAX_TRAILER_BYTES: u32 = 16_384;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// In the digits of a chunk's size.
    Size,
    /// After the digits: blanks and extensions up to CR.
    Extension,
    /// LF of the size line.
    SizeLf,
    /// In the chunk's data.
    Data,
    /// CR after the data.
    DataCr,
    /// LF after the data.
    DataLf,
    /// First byte of a trailer line, or the CR of the last line.
    LineStart,
    /// In a trailer's name.
    TrailerName,
    /// In a trailer's value.
    TrailerValue,
    /// LF of a trailer line.
    TrailerLf,
    /// LF of the last line.
    EndLf,
    Done,
}

/// Where the scanner stands between two reads.
#[derive(Clone, Debug)]
pub(crate) struct Scanner {
    at: At,
    size: u64,
    digits: u32,
    line: u32,
    trailers: u32,
}

/// The body is not chunked as RFC 9112 has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl Scanner {
    pub(crate) fn new() -> Scanner {
        Scanner { at: At::Size, size: 0, digits: 0, line: 0, trailers: 0 }
    }

    pub(crate) fn done(&self) -> bool {
        self.at == At::Done
    }

    /// Scans on. Returns how many of `bytes` belong to this body; fewer than all of them only when it has ended.
    /// `data` is told the place of each stretch of chunk data.
    pub(crate) fn scan(
        &mut self,
        bytes: &[u8],
        mut data: impl FnMut(std::ops::Range<usize>),
    ) -> Result<usize, Malformed> {
        let mut i = 0;
        while i < bytes.len() {
            if self.at == At::Data {
                let take = usize::try_from(self.size).unwrap_or(usize::MAX).min(bytes.len() - i);
                data(i..i + take);
                i += take;
                self.size -= take as u64;
                if self.size == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            let byte = bytes[i];
            self.at = self.step(byte)?;
            i += 1;
            if self.at == At::Done {
                break;
            }
        }
        Ok(i)
    }

    fn step(&mut self, byte: u8) -> Result<At, Malformed> {
        Ok(match self.at {
            At::Size => match (byte as char).to_digit(16) {
                // Fifteen digits: far beyond any body, far from overflow.
                Some(digit) if self.digits < 15 => {
                    self.size = self.size * 16 + u64::from(digit);
                    self.digits += 1;
                    At::Size
                }
                None if self.digits > 0 => match byte {
                    b'\r' => At::SizeLf,
                    b';' | b' ' | b'\t' => {
                        self.line = 0;
                        At::Extension
                    }
                    _ => return Err(Malformed),
                },
                _ => return Err(Malformed),
            },
            At::Extension => {
                self.line += 1;
                match byte {
                    b'\r' => At::SizeLf,
                    b'\t' | 0x20..=0x7e | 0x80.. if self.line <= MAX_LINE_BYTES => At::Extension,
                    _ => return Err(Malformed),
                }
            }
            At::SizeLf if byte == b'\n' => {
                self.digits = 0;
                if self.size == 0 { At::LineStart } else { At::Data }
            }
            At::DataCr if byte == b'\r' => At::DataLf,
            At::DataLf if byte == b'\n' => At::Size,
            At::LineStart if byte == b'\r' => At::EndLf,
            At::LineStart if crate::table::is_token(byte) => self.trailer(At::TrailerName)?,
            At::TrailerName if byte == b':' => self.trailer(At::TrailerValue)?,
            At::TrailerName if crate::table::is_token(byte) => self.trailer(At::TrailerName)?,
            At::TrailerValue if byte == b'\r' => At::TrailerLf,
            At::TrailerValue if byte == b'\t' || (byte >= 0x20 && byte != 0x7f) => {
                self.trailer(At::TrailerValue)?
            }
            At::TrailerLf if byte == b'\n' => At::LineStart,
            At::EndLf if byte == b'\n' => At::Done,
            _ => return Err(Malformed),
        })
    }

    fn trailer(&mut self, at: At) -> Result<At, Malformed> {
        self.trailers += 1;
        if self.trailers > MAX_TRAILER_BYTES { Err(Malformed) } else { Ok(at) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scan(bytes: &[u8], step: usize) -> Result<(usize, Vec<u8>, bool), Malformed> {
        let mut scanner = Scanner::new();
        let mut used = 0;
        let mut body = Vec::new();
        for piece in bytes.chunks(step) {
            let mut ranges = Vec::new();
            let n = scanner.scan(piece, |range| ranges.push(range))?;
            for range in ranges {
                body.extend_from_slice(&piece[range]);
            }
            used += n;
            if scanner.done() {
                break;
            }
        }
        Ok((used, body, scanner.done()))
    }

    #[test]
    fn finds_the_end_and_leaves_the_next_message() {
        let wire = b"5\r\nhello\r\n1;a=\"b\"\r\n!\r\n0\r\nX-Sum: 7\r\n\r\nGET / HTTP/1.1\r\n";
        for step in [1, 2, 3, 7, 100] {
            let (used, body, done) = scan(wire, step).expect("well formed");
            assert!(done);
            assert_eq!(&wire[used..], b"GET / HTTP/1.1\r\n");
            assert_eq!(body, b"hello!");
        }
    }

    #[test]
    fn refuses_what_two_readers_could_read_differently() {
        for wire in [
            &b"5\nhello\r\n0\r\n\r\n"[..],
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n",
            b" 5\r\nhello\r\n",
            b"5\r\nhelloX\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"\r\n",
            b"ffffffffffffffff\r\n",
            b"0\r\n X: y\r\n\r\n",
            b"0\r\nX y\r\n\r\n",
            b"5;a\n\r\nhello",
        ] {
            assert_eq!(scan(wire, 100), Err(Malformed), "{}", String::from_utf8_lossy(wire));
        }
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..6), step in 1usize..40) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\nREST");
            let (used, body, done) = scan(&wire, step).expect("well formed");
            prop_assert!(done);
            prop_assert_eq!(&wire[used..], b"REST");
            prop_assert_eq!(body, chunks.concat());
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), step in 1usize..20) {
            let _ = scan(&bytes, step);
        }
    }
}
