//! How long a body is, and how much of it has gone by.

use super::chunked::{Malformed, Scanner};
use crate::buffer::Buffer;

/// What ends a message's body.
#[derive(Clone, Debug)]
pub(crate) enum Framing {
    /// This many bytes are still to come. No body at all is 0.
    Length(u64),
    /// The last chunk.
    Chunked(Scanner),
    /// The last chunk, and the reader on the other side knows no chunks: only the data is passed on.
    Unchunk(Scanner),
    /// The end of the connection.
    Close,
}

impl Framing {
    pub(crate) const NONE: Framing = Framing::Length(0);

    /// Nothing more belongs to this body. A body that ends with its connection is never done by itself.
    pub(crate) fn done(&self) -> bool {
        match self {
            Framing::Length(left) => *left == 0,
            Framing::Chunked(scanner) | Framing::Unchunk(scanner) => scanner.done(),
            Framing::Close => false,
        }
    }

    /// Looks at what follows the first `approved` bytes of the buffer. Returns how many more may be passed on.
    pub(crate) fn approve(&mut self, buffer: &mut Buffer, approved: usize) -> Result<usize, Malformed> {
        let fresh = buffer.len() - approved;
        if fresh == 0 {
            return Ok(0);
        }
        match self {
            Framing::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(fresh);
                *left -= take as u64;
                Ok(take)
            }
            Framing::Close => Ok(fresh),
            Framing::Chunked(scanner) => scanner.scan(&buffer.filled()[approved..], |_| {}),
            Framing::Unchunk(scanner) => {
                let mut kept: Vec<std::ops::Range<usize>> = Vec::new();
                let used = scanner.scan(&buffer.filled()[approved..], |range| kept.push(range))?;
                let mut to = approved;
                for range in kept {
                    let len = range.len();
                    buffer.filled_mut().copy_within(approved + range.start..approved + range.end, to);
                    to += len;
                }
                buffer.remove(to, approved + used);
                Ok(to - approved)
            }
        }
    }
}
