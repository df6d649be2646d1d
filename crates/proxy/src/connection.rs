//! One client connection: heads are read, each request is exchanged, and the end is made so that the last answer arrives.

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use crate::answer::{Cause, Causes, OwnAnswer};
use crate::buffer::{Buffer, BufferStore};
use crate::conns::{Conn, ConnGuard, Conns, Interrupt};
use crate::exchange::Next;
use crate::http1::request::{self, header_room};
use crate::options::Limits;
use crate::routing::Routing;

/// How long the end of a connection waits for the client to read the last answer.
const LINGER_MS: u64 = 2_000;
/// How much an ending connection still takes in and throws away.
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) routing: Routing,
    pub(crate) conns: Arc<Conns>,
    pub(crate) causes: Causes,
    pub(crate) limits: Limits,
    pub(crate) release_header: bool,
    /// Our name in `Via`, unique to this process.
    pub(crate) mark: String,
}

/// One thread that carries traffic.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) buffers: BufferStore,
}

/// A client connection and all it needs.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) worker: Arc<Worker>,
    pub(crate) conn: Arc<Conn>,
    pub(crate) stream: TcpStream,
    /// What the client sent and nobody has used.
    pub(crate) buffer: Buffer,
    /// The request's head as the member gets it.
    pub(crate) up: Vec<u8>,
    /// The answer's head as the client gets it.
    pub(crate) down: Vec<u8>,
    pub(crate) listen: SocketAddr,
    pub(crate) client: IpAddr,
    pub(crate) client_text: String,
}

/// Serves a connection to its end.
pub(crate) async fn serve(
    worker: Arc<Worker>,
    guard: ConnGuard,
    stream: TcpStream,
    listen: SocketAddr,
    client: SocketAddr,
) {
    poll_fn(|cx| {
        guard.conn.register(cx.waker());
        Poll::Ready(())
    })
    .await;
    let client = client.ip().to_canonical();
    let mut connection = Connection {
        conn: guard.conn.clone(),
        worker,
        stream,
        buffer: Buffer::default(),
        up: Vec::new(),
        down: Vec::new(),
        listen,
        client,
        client_text: client.to_string(),
    };
    loop {
        let next = match connection.read_head().await {
            HeadRead::Complete => connection.exchange().await,
            HeadRead::End => break,
            HeadRead::Answer(answer) => connection.answer(&answer, None, false, true).await,
        };
        match next {
            Next::Again => {}
            Next::Done => break,
            Next::Close => {
                connection.linger().await;
                break;
            }
            Next::Abort => {
                // A reset, so that a body cut short can not be taken for a whole one.
                let _ = rustix::net::sockopt::set_socket_linger(
                    &connection.stream,
                    Some(std::time::Duration::ZERO),
                );
                break;
            }
        }
    }
    let Connection { worker, buffer, .. } = connection;
    worker.buffers.give(buffer);
}

/// How waiting for a request ended.
enum HeadRead {
    /// A head stands complete at the front of the buffer.
    Complete,
    /// There will be no request.
    End,
    /// What came is answered and the connection closed.
    Answer(OwnAnswer),
}

impl Connection {
    /// Waits until a whole head is at the front of the buffer. While nothing has come no buffer is held.
    async fn read_head(&mut self) -> HeadRead {
        let worker = self.worker.clone();
        let (conns, limits) = (&worker.shared.conns, &worker.shared.limits);
        let mut looked_at = 0usize;
        let mut begun = !self.buffer.is_empty();
        if begun {
            self.conn.deadline_in(&conns.clock, limits.request_head_timeout_ms);
            if let Some(read) = self.head_so_far(&mut looked_at) {
                return read;
            }
        } else {
            self.conn.set_idle(true);
            self.conn.deadline_in(&conns.clock, limits.keep_alive_timeout_ms);
        }
        let read = poll_fn(|cx| {
            loop {
                match self.poll_fill(cx, limits.max_request_head_bytes) {
                    // The client has ended: between requests that is the regular end, within one nobody waits for an answer.
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(HeadRead::End),
                    Poll::Ready(Ok(_)) => {
                        if !begun {
                            begun = true;
                            self.conn.set_idle(false);
                            self.conn.deadline_in(&conns.clock, limits.request_head_timeout_ms);
                        }
                        if let Some(read) = self.head_so_far(&mut looked_at) {
                            return Poll::Ready(read);
                        }
                    }
                    Poll::Pending => {
                        return match self.conn.check(conns) {
                            Ok(()) => Poll::Pending,
                            Err(Interrupt::Expired) if begun => {
                                Poll::Ready(HeadRead::Answer(OwnAnswer::new(
                                    Cause::RequestTimeout,
                                    format!(
                                        "the request's head was not complete after {} ms",
                                        limits.request_head_timeout_ms
                                    ),
                                )))
                            }
                            Err(Interrupt::Cut) if begun => Poll::Pending,
                            Err(_) => Poll::Ready(HeadRead::End),
                        };
                    }
                }
            }
        })
        .await;
        self.conn.set_idle(false);
        read
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<std::io::Result<usize>> {
        if self.buffer.is_empty() {
            if self.stream.poll_read_ready(cx)?.is_pending() {
                self.worker.buffers.give(std::mem::take(&mut self.buffer));
                return Poll::Pending;
            }
            if self.buffer.has_no_room() {
                self.buffer = self.worker.buffers.take();
            }
        }
        self.buffer.poll_fill(cx, &mut self.stream, limit)
    }

    /// Looks whether the head is complete, refused or too long. `looked_at` keeps a slow client from making us parse the
    /// same bytes again with each one it sends.
    fn head_so_far(&self, looked_at: &mut usize) -> Option<HeadRead> {
        let bytes = self.buffer.filled();
        let limit = self.worker.shared.limits.max_request_head_bytes;
        let from = looked_at.saturating_sub(3);
        let first = *looked_at == 0;
        *looked_at = bytes.len();
        let fresh = &bytes[from..];
        let ended = first
            || memchr::memmem::find(fresh, b"\n\r\n").is_some()
            || memchr::memmem::find(fresh, b"\n\n").is_some();
        if ended {
            let mut room = header_room();
            match request::parse(bytes, &mut room) {
                Ok(Some(head)) if head.len <= limit => return Some(HeadRead::Complete),
                Ok(_) => {}
                Err(reject) => return Some(HeadRead::Answer(reject.into())),
            }
        }
        (bytes.len() >= limit).then(|| {
            HeadRead::Answer(OwnAnswer::new(
                Cause::RequestHeadTooLarge,
                format!("the request's head is longer than {limit} bytes"),
            ))
        })
    }

    /// Answers by ourselves.
    pub(crate) async fn answer(
        &mut self,
        answer: &OwnAnswer,
        release: Option<&str>,
        is_head: bool,
        close: bool,
    ) -> Next {
        let worker = self.worker.clone();
        worker.shared.causes.count(answer.cause);
        tracing::debug!(cause = answer.cause.word(), detail = %answer.detail, client = %self.client, "answered by the proxy");
        let close = close || worker.shared.conns.stopping();
        let release = release.filter(|_| worker.shared.release_header);
        self.down.clear();
        answer.write(&mut self.down, release, is_head, close);
        self.conn.set_member(0);
        self.conn.deadline_in(&worker.shared.conns.clock, LINGER_MS);
        let mut sent = 0;
        let written = poll_fn(|cx| {
            while sent < self.down.len() {
                match Pin::new(&mut self.stream).poll_write(cx, &self.down[sent..]) {
                    Poll::Ready(Ok(n)) if n > 0 => sent += n,
                    Poll::Ready(_) => return Poll::Ready(false),
                    Poll::Pending => {
                        return match self.conn.check(&worker.shared.conns) {
                            Ok(()) => Poll::Pending,
                            Err(_) => Poll::Ready(false),
                        };
                    }
                }
            }
            Poll::Ready(true)
        })
        .await;
        match (written, close) {
            (false, _) => Next::Abort,
            (true, true) => Next::Close,
            (true, false) => Next::Again,
        }
    }

    /// Ends our half and reads on for a while: closing with unread bytes would send a reset, and a reset may overtake the answer.
    async fn linger(&mut self) {
        let worker = self.worker.clone();
        let conns = &worker.shared.conns;
        self.buffer.consume(usize::MAX);
        self.conn.deadline_in(&conns.clock, LINGER_MS);
        let mut thrown = 0usize;
        let mut shut = false;
        poll_fn(|cx| {
            if !shut {
                shut = true;
                let _ = Pin::new(&mut self.stream).poll_shutdown(cx);
            }
            loop {
                match self.poll_fill(cx, crate::buffer::BUFFER_BYTES) {
                    Poll::Ready(Ok(n)) if n > 0 && thrown < LINGER_BYTES => {
                        thrown += n;
                        self.buffer.consume(usize::MAX);
                    }
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => {
                        return match conns.stopping() {
                            true => Poll::Ready(()),
                            false => match self.conn.check(conns) {
                                Ok(()) => Poll::Pending,
                                Err(_) => Poll::Ready(()),
                            },
                        };
                    }
                }
            }
        })
        .await;
    }
}
