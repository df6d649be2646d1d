//! Bodies that are made while they are sent.

use crate::metrics::InFlight;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Interval, MissedTickBehavior};

/// A body that keeps its request counted as in flight until it is sent or dropped.
pub(crate) struct CountedBody {
    inner: BoxBody<Bytes, Infallible>,
    _in_flight: Option<InFlight>,
}

impl CountedBody {
    pub(crate) fn new(inner: BoxBody<Bytes, Infallible>, in_flight: Option<InFlight>) -> Self {
        Self { inner, _in_flight: in_flight }
    }
}

impl Body for CountedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Server-sent events at an even pace: `wanted` numbered ones, then `event: end`, so a reader can tell a whole stream
/// from one that was cut at an event's border.
pub(crate) struct EventStream {
    release: String,
    sent: u32,
    wanted: u32,
    ended: bool,
    pace: Interval,
}

impl EventStream {
    /// `every` must not be zero.
    pub(crate) fn new(release: &str, wanted: u32, every: Duration) -> Self {
        let mut pace = tokio::time::interval(every);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { release: release.to_owned(), sent: 0, wanted, ended: false, pace }
    }
}

impl Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let text = if self.sent == self.wanted {
            self.ended = true;
            format!("event: end\ndata: {}\n\n", self.sent)
        } else {
            ready!(self.pace.poll_tick(cx));
            self.sent += 1;
            format!(
                "id: {n}\ndata: {n} of {of} from {release}\n\n",
                n = self.sent,
                of = self.wanted,
                release = self.release
            )
        };
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(text)))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::EventStream;
    use http_body_util::BodyExt as _;
    use std::time::Duration;

    #[tokio::test]
    async fn a_stream_is_numbered_and_says_its_end() {
        let body = EventStream::new("r1", 2, Duration::from_millis(1)).collect().await.unwrap().to_bytes();
        assert_eq!(
            body,
            "id: 1\ndata: 1 of 2 from r1\n\nid: 2\ndata: 2 of 2 from r1\n\nevent: end\ndata: 2\n\n"
        );
    }
}
