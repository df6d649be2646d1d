//! Moves one body from one socket to the other, as fast as the slower of them.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use crate::buffer::{BUFFER_BYTES, Buffer};
use crate::http1::body::Framing;

/// Why a body could not be moved to its end.
#[derive(Debug)]
pub(crate) enum PumpError {
    /// The sender went away before the body's end.
    Source,
    /// The receiver takes no more.
    Sink,
    /// The sender's chunks are not chunks.
    Malformed,
}

/// One direction of an exchange. It reads only when all it has read is written: that is the back-pressure.
#[derive(Debug)]
pub(crate) struct Pump {
    framing: Framing,
    /// Bytes of the head (kept by the caller) that are written.
    head_sent: usize,
    /// Bytes at the front of the buffer that may be written.
    approved: usize,
    /// Something moved since the caller last asked.
    moved: bool,
    /// It waits for the sender, not for the receiver.
    wants_source: bool,
}

impl Pump {
    pub(crate) fn new(framing: Framing) -> Pump {
        Pump { framing, head_sent: 0, approved: 0, moved: false, wants_source: false }
    }

    /// A pump whose head has been written up to `head_sent` already.
    pub(crate) fn resumed(framing: Framing, head_sent: usize) -> Pump {
        Pump { head_sent, ..Pump::new(framing) }
    }

    pub(crate) fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    pub(crate) fn sent_nothing(&self) -> bool {
        self.head_sent == 0
    }

    pub(crate) fn waits_for_source(&self) -> bool {
        self.wants_source
    }

    /// Moves what can be moved. Ready when the body has ended and all of it is written.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut TcpStream,
        sink: &mut TcpStream,
        head: &[u8],
        buffer: &mut Buffer,
    ) -> Poll<Result<(), PumpError>> {
        loop {
            if self.approved == 0 && !buffer.is_empty() && !self.framing.done() {
                self.approved = self.framing.approve(buffer, 0).map_err(|_| PumpError::Malformed)?;
            }
            let head = &head[self.head_sent..];
            if !head.is_empty() || self.approved > 0 {
                self.wants_source = false;
                let body = &buffer.filled()[..self.approved];
                let written = ready!(write(cx, sink, head, body)).map_err(|_| PumpError::Sink)?;
                if written == 0 {
                    return Poll::Ready(Err(PumpError::Sink));
                }
                self.moved = true;
                let of_head = written.min(head.len());
                self.head_sent += of_head;
                buffer.consume(written - of_head);
                self.approved -= written - of_head;
                continue;
            }
            if self.framing.done() {
                return Poll::Ready(Ok(()));
            }
            self.wants_source = true;
            match ready!(buffer.poll_fill(cx, source, BUFFER_BYTES)) {
                Ok(0) if matches!(self.framing, Framing::Close) => {
                    self.framing = Framing::NONE;
                    return Poll::Ready(Ok(()));
                }
                Ok(0) | Err(_) => return Poll::Ready(Err(PumpError::Source)),
                Ok(_) => self.moved = true,
            }
        }
    }
}

fn write(cx: &mut Context<'_>, sink: &mut TcpStream, head: &[u8], body: &[u8]) -> Poll<io::Result<usize>> {
    let sink = Pin::new(sink);
    match (head.is_empty(), body.is_empty()) {
        (true, _) => sink.poll_write(cx, body),
        (_, true) => sink.poll_write(cx, head),
        _ => sink.poll_write_vectored(cx, &[IoSlice::new(head), IoSlice::new(body)]),
    }
}
