//! Read buffers, and a small store of them for each worker: an idle connection holds none.

use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// Bytes of a fresh buffer. It grows only for a head that needs it.
pub(crate) const BUFFER_BYTES: usize = 32 * 1024;

/// Bytes that came in, in order: `start..end` of `data` is what nobody has used yet.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    data: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub(crate) fn filled(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }

    pub(crate) fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.data[self.start..self.end]
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Holds no memory: one from the store is better than a new one.
    pub(crate) fn has_no_room(&self) -> bool {
        self.data.is_empty()
    }

    pub(crate) fn consume(&mut self, bytes: usize) {
        self.start += bytes.min(self.len());
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Drops the bytes from `keep` to `upto` (both counted from the first unused byte); what follows moves down.
    pub(crate) fn remove(&mut self, keep: usize, upto: usize) {
        let (from, to) = (self.start + keep, self.start + upto);
        if from < to && to <= self.end {
            self.data.copy_within(to..self.end, from);
            self.end -= to - from;
        }
    }

    /// Reads once, after making room: what is there moves to the front when the tail is short, and the buffer grows up to
    /// `limit` bytes when it is full. 0 bytes means the peer has finished, or that the buffer is full at its limit.
    pub(crate) fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        if self.data.is_empty() {
            self.data = vec![0; BUFFER_BYTES];
        }
        if self.end == self.data.len() {
            if self.start > 0 {
                self.data.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            } else {
                let grown = (self.data.len() * 2).min(limit.max(BUFFER_BYTES));
                self.data.resize(grown.max(self.data.len()), 0);
            }
        }
        let mut read = ReadBuf::new(&mut self.data[self.end..]);
        ready!(Pin::new(from).poll_read(cx, &mut read))?;
        let bytes = read.filled().len();
        self.end += bytes;
        Poll::Ready(Ok(bytes))
    }
}

/// Spare buffers of one worker.
#[derive(Debug, Default)]
pub(crate) struct BufferStore(Mutex<Vec<Buffer>>);

/// Spare buffers kept by one worker.
const MAX_SPARE: usize = 256;

impl BufferStore {
    pub(crate) fn take(&self) -> Buffer {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    pub(crate) fn give(&self, mut buffer: Buffer) {
        // A buffer that grew is let go: one large head must not cost memory for ever.
        if buffer.data.len() != BUFFER_BYTES {
            return;
        }
        buffer.start = 0;
        buffer.end = 0;
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < MAX_SPARE {
            spare.push(buffer);
        }
    }
}
