//! One request and its answer: choose, connect, send, receive, and what to do when one of them fails.
//!
//! A request is sent again only where that can not be seen by anybody: the connection was refused, a kept connection took no
//! byte, or it closed without an answer to a request without a body that may be sent twice by its method.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::answer::{Cause, OwnAnswer};
use crate::buffer::Buffer;
use crate::connection::Connection;
use crate::conns::Interrupt;
use crate::http1::body::Framing;
use crate::http1::request::{self, RequestInfo, header_room};
use crate::http1::response::{self, Additions, ResponseInfo};
use crate::metrics::Code;
use crate::pump::{Pump, PumpError};
use crate::routing::{InFlight, PickError};
use crate::table::MemberAddress;
use crate::upstream::Member;

/// Bodies up to this many bytes are copied behind their head, so that both leave in one plain write.
const COPY_BYTES: usize = 4 * 1024;
/// Interim answers (1xx) to one request.
const MAX_INTERIM: usize = 16;

/// What becomes of the client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The next request.
    Again,
    /// Close once what was written has been read: more may be on its way to us, and closing then would reset it.
    Close,
    /// Close: the client said that it sends no more.
    Done,
    /// Close now, in a way that can not be taken for a regular end.
    Abort,
}

/// Why an exchange did not come to its end.
enum Failure {
    /// Nothing has been answered yet: this is.
    Answer(OwnAnswer),
    /// Nobody is left to answer.
    ClientGone,
}

/// A request that is parsed, written anew and counted on a member.
struct Prepared {
    info: RequestInfo,
    head_len: usize,
    in_flight: InFlight,
}

/// A member's connection and what was read from it.
pub(crate) struct Upstream {
    pub(crate) stream: TcpStream,
    pub(crate) buffer: Buffer,
    /// It has carried requests before.
    kept: bool,
}

/// The head of an answer, read and written anew.
struct Answered {
    info: ResponseInfo,
    status: u16,
    close: bool,
    request_done: bool,
    /// Bytes of the client's side already written (interim answers).
    sent: usize,
    request: Pump,
}

/// How sending a request ended without an answer.
enum NoAnswer {
    /// Nobody can have seen the request, or may see it twice.
    Stale,
    Failed(Failure),
}

impl Connection {
    /// Serves the request whose head is complete at the front of the buffer.
    pub(crate) async fn exchange(&mut self) -> Next {
        let started = Instant::now();
        let prepared = match self.prepare() {
            Ok(prepared) => prepared,
            Err((answer, is_head)) => return self.answer(&answer, None, is_head, true).await,
        };
        let Prepared { info, head_len, mut in_flight } = prepared;
        self.conn.set_member(in_flight.member().id);
        let bodiless = info.framing.done();
        // What is picked again after a failure is picked by these bytes; without a body they stay in the buffer.
        let kept_head = if bodiless { None } else { Some(self.buffer.filled()[..head_len].to_vec()) };
        self.buffer.consume(if bodiless { 0 } else { head_len });

        let mut tried: Vec<u64> = Vec::new();
        let mut fresh_only = false;
        let outcome = loop {
            let member = in_flight.member().clone();
            let upstream = match self.connect(&member, info.idempotent && bodiless, fresh_only).await {
                Ok(upstream) => upstream,
                Err(Failure::Answer(answer))
                    if matches!(answer.cause, Cause::ConnectFailed | Cause::ConnectTimeout) =>
                {
                    in_flight.release.stats.connect_error(self.worker.index);
                    member.connect_failed(self.worker.shared.conns.clock.now_ms());
                    tried.push(member.id);
                    if tried.len() >= self.worker.shared.limits.max_attempts {
                        break Err(Failure::Answer(answer));
                    }
                    match self.pick_again(kept_head.as_deref(), &tried, &in_flight.release.release) {
                        Some(next) => {
                            // The next is counted before this one is let go: a drain never sees neither.
                            in_flight = next;
                            self.conn.set_member(in_flight.member().id);
                            in_flight.release.stats.retry(self.worker.index);
                            continue;
                        }
                        None => break Err(Failure::Answer(answer)),
                    }
                }
                Err(failure) => break Err(failure),
            };
            let mut upstream = upstream;
            match self.send(&info, &in_flight, &mut upstream).await {
                Ok(answered) => break Ok((answered, upstream)),
                Err(NoAnswer::Stale) => {
                    // Only a kept connection is stale, so one more try, on a fresh one, ends this loop.
                    self.worker.buffers.give(upstream.buffer);
                    fresh_only = true;
                    in_flight.release.stats.retry(self.worker.index);
                }
                Err(NoAnswer::Failed(failure)) => {
                    self.worker.buffers.give(upstream.buffer);
                    break Err(failure);
                }
            }
        };
        if bodiless {
            self.buffer.consume(head_len);
        }
        let next = match outcome {
            Ok((answered, upstream)) => self.finish(&info, &mut in_flight, answered, upstream, started).await,
            Err(failure) => {
                let stats = &in_flight.release.stats;
                let elapsed = elapsed_us(started);
                match failure {
                    Failure::Answer(answer) => {
                        stats.finished(
                            self.worker.index,
                            Code::of_status(answer.cause.status().0),
                            None,
                            elapsed,
                        );
                        let release = in_flight.release.release.clone();
                        let close = !bodiless || !info.keep_alive || answer.cause == Cause::Cut;
                        self.answer(&answer, Some(&release), info.is_head, close).await
                    }
                    Failure::ClientGone => {
                        stats.finished(self.worker.index, Code::ClientClosed, None, elapsed);
                        Next::Abort
                    }
                }
            }
        };
        self.conn.set_member(0);
        drop(in_flight);
        next
    }

    /// Parses the head, writes it anew into `self.up`, and picks.
    fn prepare(&mut self) -> Result<Prepared, (OwnAnswer, bool)> {
        let shared = self.worker.shared.clone();
        let mut room = header_room();
        let head = match request::parse(self.buffer.filled(), &mut room) {
            Ok(Some(head)) => head,
            Ok(None) => return Err((OwnAnswer::new(Cause::BadRequest, "found half a head"), false)),
            Err(reject) => return Err((reject.into(), false)),
        };
        let is_head = head.method == "HEAD";
        let info = head.info(&shared.mark).map_err(|reject| (reject.into(), is_head))?;
        self.up.clear();
        head.write(&info, &mut self.up, &self.client_text, self.listen, &shared.mark);
        let facts = head.facts(self.client);
        let in_flight = shared
            .routing
            .pick(self.worker.index, self.listen, &facts, &[], None, shared.conns.clock.now_ms())
            .map_err(|error| (no_pick(&error, facts.host, facts.path), is_head))?;
        Ok(Prepared { info, head_len: head.len, in_flight })
    }

    /// Picks once more, by the table in force now, without the members that were tried.
    fn pick_again(&self, kept_head: Option<&[u8]>, tried: &[u64], before: &str) -> Option<InFlight> {
        let shared = &self.worker.shared;
        let mut room = header_room();
        let head =
            request::parse(kept_head.unwrap_or_else(|| self.buffer.filled()), &mut room).ok().flatten()?;
        let facts = head.facts(self.client);
        let now_ms = shared.conns.clock.now_ms();
        shared.routing.pick(self.worker.index, self.listen, &facts, tried, Some(before), now_ms).ok()
    }

    async fn connect(
        &mut self,
        member: &Arc<Member>,
        twice: bool,
        fresh_only: bool,
    ) -> Result<Upstream, Failure> {
        let worker = self.worker.clone();
        let conns = &worker.shared.conns;
        if !fresh_only
            && let Some(stream) =
                poll_fn(|cx| Poll::Ready(member.take_idle(worker.index, conns.clock.now_ms(), twice, cx)))
                    .await
        {
            return Ok(Upstream { stream, buffer: worker.buffers.take(), kept: true });
        }
        let timeout_ms = worker.shared.limits.connect_timeout_ms;
        self.conn.deadline_in(&conns.clock, timeout_ms);
        let mut connecting = pin!(async {
            match member.address() {
                MemberAddress::Socket(address) => TcpStream::connect(address).await,
                MemberAddress::Name(name, port) => TcpStream::connect((name.as_str(), *port)).await,
            }
        });
        let connected = poll_fn(|cx| match connecting.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(Ok(result)),
            Poll::Pending => match self.conn.check(conns) {
                Ok(()) => Poll::Pending,
                Err(interrupt) => Poll::Ready(Err(interrupt)),
            },
        })
        .await;
        let at = || {
            let key = &member.key;
            format!(
                "instance {} of release {} of service {} at {}",
                key.instance, key.release, key.service, key.address
            )
        };
        match connected {
            Ok(Ok(stream)) => {
                // Without it small answers wait for the peer's delayed acknowledgement; it can not fail on a live socket.
                let _ = stream.set_nodelay(true);
                member.connected();
                Ok(Upstream { stream, buffer: worker.buffers.take(), kept: false })
            }
            Ok(Err(error)) => Err(Failure::Answer(OwnAnswer::new(
                Cause::ConnectFailed,
                format!("{} can not be reached: {error}", at()),
            ))),
            Err(Interrupt::Cut) => Err(Failure::Answer(cut_answer())),
            Err(Interrupt::Expired | Interrupt::Stopping) => Err(Failure::Answer(OwnAnswer::new(
                Cause::ConnectTimeout,
                format!("{} did not take a connection within {timeout_ms} ms", at()),
            ))),
        }
    }

    /// Sends the request and reads the answer's head. The head for the client stands in `self.down` afterwards.
    async fn send(
        &mut self,
        info: &RequestInfo,
        in_flight: &InFlight,
        upstream: &mut Upstream,
    ) -> Result<Answered, NoAnswer> {
        let worker = self.worker.clone();
        let shared = &worker.shared;
        let (clock, limits) = (&shared.conns.clock, &shared.limits);
        let fail = |cause, detail: String| NoAnswer::Failed(Failure::Answer(OwnAnswer::new(cause, detail)));
        let bodiless = info.framing.done();
        let mut request = Pump::new(info.framing.clone());
        let mut request_done = false;
        let mut request_failed = false;
        let mut no_buffer = Buffer::default();
        let mut interim = 0usize;
        let mut sent = 0usize;
        self.down.clear();
        self.conn.deadline_in(clock, limits.body_idle_timeout_ms);
        poll_fn(|cx| {
            if !request_done && !request_failed {
                // A bodiless request's head stays in the buffer for a second pick, so the pump gets an empty one.
                let buffer = if bodiless { &mut no_buffer } else { &mut self.buffer };
                match request.poll(cx, &mut self.stream, &mut upstream.stream, &self.up, buffer) {
                    Poll::Ready(Ok(())) => {
                        request_done = true;
                        self.conn.deadline_in(clock, limits.response_head_timeout_ms);
                    }
                    Poll::Ready(Err(PumpError::Source)) => {
                        return Poll::Ready(Err(NoAnswer::Failed(Failure::ClientGone)));
                    }
                    Poll::Ready(Err(PumpError::Malformed)) => {
                        return Poll::Ready(Err(fail(
                            Cause::BadRequest,
                            "found a body that is not chunked as it says".into(),
                        )));
                    }
                    Poll::Ready(Err(PumpError::Sink)) => {
                        if upstream.kept && request.sent_nothing() {
                            return Poll::Ready(Err(NoAnswer::Stale));
                        }
                        // The member may have answered before it stopped listening; what it said is read below.
                        request_failed = true;
                        self.conn.deadline_in(clock, limits.response_head_timeout_ms);
                    }
                    Poll::Pending => {
                        if request.take_moved() {
                            self.conn.deadline_in(clock, limits.body_idle_timeout_ms);
                        }
                    }
                }
            }
            // Interim answers go out while the request still comes in; a client that is gone is found by its own pump.
            while sent < self.down.len() {
                match Pin::new(&mut self.stream).poll_write(cx, &self.down[sent..]) {
                    Poll::Ready(Ok(n)) if n > 0 => sent += n,
                    Poll::Ready(_) => return Poll::Ready(Err(NoAnswer::Failed(Failure::ClientGone))),
                    Poll::Pending => break,
                }
            }
            loop {
                let mut room = header_room();
                match response::parse(upstream.buffer.filled(), &mut room) {
                    Err(bad) => return Poll::Ready(Err(bad_response(in_flight, bad.0))),
                    Ok(Some(head)) if head.status < 200 && head.status != 101 => {
                        interim += 1;
                        if interim > MAX_INTERIM {
                            return Poll::Ready(Err(bad_response(in_flight, "too many interim answers")));
                        }
                        let answer = match head.info(info) {
                            Ok(answer) => answer,
                            Err(bad) => return Poll::Ready(Err(bad_response(in_flight, bad.0))),
                        };
                        if !info.http10 {
                            let nothing = Additions { release: None, set_cookie: None, close: false };
                            head.write(&answer, info, &mut self.down, &nothing);
                        }
                        let len = head.len;
                        upstream.buffer.consume(len);
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Ok(Some(head)) => {
                        let answer = match head.info(info) {
                            Ok(_) if head.status == 101 && !info.upgrade => {
                                return Poll::Ready(Err(bad_response(
                                    in_flight,
                                    "101 to a request that asked for no upgrade",
                                )));
                            }
                            Ok(answer) => answer,
                            Err(bad) => return Poll::Ready(Err(bad_response(in_flight, bad.0))),
                        };
                        let close = !info.keep_alive
                            || !request_done
                            || matches!(answer.framing, Framing::Close)
                            || shared.conns.stopping();
                        let add = Additions {
                            release: shared.release_header.then_some(in_flight.release.release.as_str()),
                            set_cookie: in_flight.set_cookie.as_deref(),
                            close,
                        };
                        head.write(&answer, info, &mut self.down, &add);
                        let (len, status) = (head.len, head.status);
                        upstream.buffer.consume(len);
                        let request = std::mem::replace(&mut request, Pump::new(Framing::NONE));
                        return Poll::Ready(Ok(Answered {
                            info: answer,
                            status,
                            close,
                            request_done,
                            sent,
                            request,
                        }));
                    }
                    Ok(None) => {}
                }
                if upstream.buffer.len() >= limits.max_response_head_bytes {
                    return Poll::Ready(Err(fail(
                        Cause::ResponseHeadTooLarge,
                        format!("the answer's head is longer than {} bytes", limits.max_response_head_bytes),
                    )));
                }
                match upstream.buffer.poll_fill(cx, &mut upstream.stream, limits.max_response_head_bytes) {
                    Poll::Ready(Ok(n)) if n > 0 => {}
                    Poll::Ready(_) => {
                        let nothing_read = upstream.buffer.is_empty() && interim == 0;
                        if upstream.kept && nothing_read && bodiless && info.idempotent {
                            return Poll::Ready(Err(NoAnswer::Stale));
                        }
                        let key = &in_flight.member().key;
                        return Poll::Ready(Err(fail(
                            Cause::UpstreamClosed,
                            format!(
                                "instance {} of release {} of service {} closed the connection {}",
                                key.instance,
                                key.release,
                                key.service,
                                if nothing_read { "without an answer" } else { "within the answer's head" }
                            ),
                        )));
                    }
                    Poll::Pending => break,
                }
            }
            if request_done && self.poll_reset(cx) {
                return Poll::Ready(Err(NoAnswer::Failed(Failure::ClientGone)));
            }
            match self.conn.check(&shared.conns) {
                Ok(()) | Err(Interrupt::Stopping) => Poll::Pending,
                Err(Interrupt::Cut) => Poll::Ready(Err(NoAnswer::Failed(Failure::Answer(cut_answer())))),
                Err(Interrupt::Expired) if !request_done && !request_failed && request.waits_for_source() => {
                    Poll::Ready(Err(fail(
                        Cause::RequestTimeout,
                        format!("nothing came of the request's body for {} ms", limits.body_idle_timeout_ms),
                    )))
                }
                Err(Interrupt::Expired) => {
                    let key = &in_flight.member().key;
                    let (what, ms) = if request_done {
                        ("did not answer", limits.response_head_timeout_ms)
                    } else {
                        ("did not take the request", limits.body_idle_timeout_ms)
                    };
                    Poll::Ready(Err(fail(
                        Cause::ResponseTimeout,
                        format!(
                            "instance {} of release {} of service {} {what} within {ms} ms",
                            key.instance, key.release, key.service
                        ),
                    )))
                }
            }
        })
        .await
    }

    /// Passes on the answer's body, or the upgraded connection, and settles what becomes of both connections.
    async fn finish(
        &mut self,
        info: &RequestInfo,
        in_flight: &mut InFlight,
        answered: Answered,
        mut upstream: Upstream,
        started: Instant,
    ) -> Next {
        let head_us = elapsed_us(started);
        let worker = self.worker.clone();
        if answered.status == 101 {
            in_flight.upgrade();
            in_flight.release.stats.upgrade(worker.index);
            in_flight.release.stats.finished(worker.index, Code::of_status(101), Some(head_us), head_us);
            let whole = self.tunnel(&mut upstream, answered.sent).await;
            worker.buffers.give(upstream.buffer);
            // A reset would throw away what the client has not read yet.
            return if whole { Next::Done } else { Next::Abort };
        }
        let Answered { info: answer, status, close, mut request_done, sent, mut request } = answered;
        let shared = &worker.shared;
        let idle_ms = shared.limits.body_idle_timeout_ms;
        let mut response = Pump::resumed(answer.framing.clone(), sent);
        if let Framing::Length(length) = answer.framing
            && length > 0
            && length as usize <= COPY_BYTES
            && length as usize <= upstream.buffer.len()
        {
            self.down.extend_from_slice(&upstream.buffer.filled()[..length as usize]);
            upstream.buffer.consume(length as usize);
            response = Pump::resumed(Framing::NONE, sent);
        }
        let mut request_failed = false;
        let bodiless = info.framing.done();
        self.conn.deadline_in(&shared.conns.clock, idle_ms);
        let ended = poll_fn(|cx| {
            let mut moved = false;
            if !request_done && !request_failed && !bodiless {
                match request.poll(cx, &mut self.stream, &mut upstream.stream, &self.up, &mut self.buffer) {
                    Poll::Ready(Ok(())) => request_done = true,
                    Poll::Ready(Err(PumpError::Source)) => return Poll::Ready(Err(())),
                    // The answer is under way and stays good; the connection can not be used again.
                    Poll::Ready(Err(PumpError::Sink | PumpError::Malformed)) => request_failed = true,
                    Poll::Pending => moved |= request.take_moved(),
                }
            }
            match response.poll(cx, &mut upstream.stream, &mut self.stream, &self.down, &mut upstream.buffer)
            {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(())),
                Poll::Pending => moved |= response.take_moved(),
            }
            if moved {
                self.conn.deadline_in(&shared.conns.clock, idle_ms);
            }
            if request_done && self.poll_reset(cx) {
                return Poll::Ready(Err(()));
            }
            match self.conn.check(&shared.conns) {
                Ok(()) | Err(Interrupt::Stopping) => Poll::Pending,
                Err(_) => Poll::Ready(Err(())),
            }
        })
        .await;
        let stats = &in_flight.release.stats;
        stats.finished(worker.index, Code::of_status(status), Some(head_us), elapsed_us(started));
        let whole = ended.is_ok();
        if whole && request_done && answer.keep_alive && upstream.buffer.is_empty() {
            let now_ms = shared.conns.clock.now_ms();
            // A second of margin: the member closes at its timeout, and its FIN needs time to come here.
            let kept_ms = answer
                .keep_alive_ms
                .map_or(u64::MAX, |ms| ms.saturating_sub(1_000))
                .min(shared.limits.upstream_idle_timeout_ms);
            in_flight.member().give_idle(
                worker.index,
                upstream.stream,
                now_ms,
                now_ms.saturating_add(kept_ms),
                shared.limits.max_idle_upstreams_per_worker,
            );
        }
        worker.buffers.give(upstream.buffer);
        if !whole {
            stats.aborted(worker.index);
            Next::Abort
        } else if request_done && !info.keep_alive {
            Next::Done
        } else if close || !request_done {
            Next::Close
        } else {
            Next::Again
        }
    }

    /// Whether the client's end of the connection is known to be gone. A client that has only ended its half may still listen:
    /// it is answered. Costs nothing while nothing happens on the socket.
    fn poll_reset(&self, cx: &mut Context<'_>) -> bool {
        matches!(self.stream.poll_peek(cx, &mut ReadBuf::new(&mut [0u8; 1])), Poll::Ready(Err(_)))
    }
}

fn elapsed_us(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn cut_answer() -> OwnAnswer {
    OwnAnswer::new(
        Cause::Cut,
        "the release was retired and this request had not been answered when its time to drain was over",
    )
}

fn bad_response(in_flight: &InFlight, found: &str) -> NoAnswer {
    let key = &in_flight.member().key;
    NoAnswer::Failed(Failure::Answer(OwnAnswer::new(
        Cause::UpstreamBadResponse,
        format!(
            "instance {} of release {} of service {} sent {found}",
            key.instance, key.release, key.service
        ),
    )))
}

fn no_pick(error: &PickError, host: &str, path: &str) -> OwnAnswer {
    match error {
        PickError::NoRoute => {
            let path: String = path.chars().take(200).collect();
            OwnAnswer::new(
                Cause::NoRoute,
                format!("no route for host {host:?} and path {path:?} on this address"),
            )
        }
        PickError::Closed { service } => {
            OwnAnswer::new(Cause::Closed, format!("the route of service {service} has no release"))
        }
        PickError::NoMember { service, release } => OwnAnswer::new(
            Cause::NoMember,
            format!("release {release} of service {service} has no member left to try"),
        ),
    }
}
