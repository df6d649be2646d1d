//! What the proxy answers by itself, and why: a status, a cause in a header, one line of text.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::http1::request::Reject;
use crate::http1::response::{ERROR_HEADER, RELEASE_HEADER};
use crate::http1::{push_decimal, push_header};

/// Why the proxy answered by itself. The word is the value of `x-cdpipe-proxy-error` and a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    BadRequest,
    RequestTimeout,
    RequestHeadTooLarge,
    NotImplemented,
    Version,
    Loop,
    NoRoute,
    Closed,
    NoMember,
    ConnectFailed,
    ConnectTimeout,
    UpstreamClosed,
    UpstreamBadResponse,
    ResponseHeadTooLarge,
    ResponseTimeout,
    ConnectionLimit,
    Cut,
}

const CAUSES: [Cause; 17] = [
    Cause::BadRequest,
    Cause::RequestTimeout,
    Cause::RequestHeadTooLarge,
    Cause::NotImplemented,
    Cause::Version,
    Cause::Loop,
    Cause::NoRoute,
    Cause::Closed,
    Cause::NoMember,
    Cause::ConnectFailed,
    Cause::ConnectTimeout,
    Cause::UpstreamClosed,
    Cause::UpstreamBadResponse,
    Cause::ResponseHeadTooLarge,
    Cause::ResponseTimeout,
    Cause::ConnectionLimit,
    Cause::Cut,
];

impl Cause {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Cause::BadRequest => "bad_request",
            Cause::RequestTimeout => "request_timeout",
            Cause::RequestHeadTooLarge => "request_head_too_large",
            Cause::NotImplemented => "not_implemented",
            Cause::Version => "version_not_supported",
            Cause::Loop => "loop",
            Cause::NoRoute => "no_route",
            Cause::Closed => "closed",
            Cause::NoMember => "no_member",
            Cause::ConnectFailed => "connect_failed",
            Cause::ConnectTimeout => "connect_timeout",
            Cause::UpstreamClosed => "upstream_closed",
            Cause::UpstreamBadResponse => "upstream_bad_response",
            Cause::ResponseHeadTooLarge => "response_head_too_large",
            Cause::ResponseTimeout => "response_timeout",
            Cause::ConnectionLimit => "connection_limit",
            Cause::Cut => "cut",
        }
    }

    pub(crate) fn status(self) -> (u16, &'static str) {
        match self {
            Cause::BadRequest => (400, "Bad Request"),
            Cause::NoRoute => (404, "Not Found"),
            Cause::RequestTimeout => (408, "Request Timeout"),
            Cause::RequestHeadTooLarge => (431, "Request Header Fields Too Large"),
            Cause::NotImplemented => (501, "Not Implemented"),
            Cause::ConnectFailed
            | Cause::UpstreamClosed
            | Cause::UpstreamBadResponse
            | Cause::ResponseHeadTooLarge => (502, "Bad Gateway"),
            Cause::Closed | Cause::NoMember | Cause::ConnectionLimit | Cause::Cut => {
                (503, "Service Unavailable")
            }
            Cause::ConnectTimeout | Cause::ResponseTimeout => (504, "Gateway Timeout"),
            Cause::Version => (505, "HTTP Version Not Supported"),
            Cause::Loop => (508, "Loop Detected"),
        }
    }
}

/// An answer of the proxy's own.
#[derive(Clone, Debug)]
pub(crate) struct OwnAnswer {
    pub(crate) cause: Cause,
    /// The rest of the sentence after the cause.
    pub(crate) detail: String,
}

impl OwnAnswer {
    pub(crate) fn new(cause: Cause, detail: impl Into<String>) -> OwnAnswer {
        OwnAnswer { cause, detail: detail.into() }
    }

    /// Writes the whole answer. `is_head` leaves the text out and its length in.
    pub(crate) fn write(&self, out: &mut Vec<u8>, release: Option<&str>, is_head: bool, close: bool) {
        let (status, reason) = self.cause.status();
        let text = format!("cdpipe proxy: {status} {}: {}\n", self.cause.word(), self.detail);
        out.extend_from_slice(b"HTTP/1.1 ");
        push_decimal(out, u64::from(status));
        out.push(b' ');
        out.extend_from_slice(reason.as_bytes());
        out.extend_from_slice(
            b"\r\ncontent-type: text/plain; charset=utf-8\r\ncache-control: no-store\r\ncontent-length: ",
        );
        push_decimal(out, text.len() as u64);
        out.extend_from_slice(b"\r\n");
        push_header(out, ERROR_HEADER, self.cause.word().as_bytes());
        if let Some(release) = release {
            push_header(out, RELEASE_HEADER, release.as_bytes());
        }
        if close {
            out.extend_from_slice(b"connection: close\r\n");
        }
        out.extend_from_slice(b"\r\n");
        if !is_head {
            out.extend_from_slice(text.as_bytes());
        }
    }
}

impl From<Reject> for OwnAnswer {
    fn from(reject: Reject) -> OwnAnswer {
        match reject {
            Reject::Bad(found) => OwnAnswer::new(Cause::BadRequest, format!("found {found}")),
            Reject::TooManyHeaders => OwnAnswer::new(
                Cause::RequestHeadTooLarge,
                format!("expected at most {} headers", crate::http1::MAX_HEADERS),
            ),
            Reject::Version => OwnAnswer::new(Cause::Version, "expected HTTP/1.1 or HTTP/1.0"),
            Reject::NotImplemented(found) => OwnAnswer::new(Cause::NotImplemented, format!("found {found}")),
            Reject::Loop => OwnAnswer::new(
                Cause::Loop,
                "this request came through this proxy already: a member's address leads back to it",
            ),
        }
    }
}

/// How often each cause was answered.
#[derive(Debug, Default)]
pub(crate) struct Causes([AtomicU64; CAUSES.len()]);

impl Causes {
    pub(crate) fn count(&self, cause: Cause) {
        if let Some(counter) = self.0.get(cause as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn all(&self) -> Vec<(&'static str, u64)> {
        CAUSES.iter().map(|cause| (cause.word(), self.0[*cause as usize].load(Ordering::Relaxed))).collect()
    }
}
