//! Upgraded connections, such as websockets: bytes both ways until both have ended.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use tokio::io::AsyncWrite;

use crate::connection::Connection;
use crate::conns::Interrupt;
use crate::exchange::Upstream;
use crate::http1::body::Framing;
use crate::pump::Pump;

impl Connection {
    /// Both directions of an upgraded connection, until both have ended (true), one has failed, or it is cut (false).
    pub(crate) async fn tunnel(&mut self, upstream: &mut Upstream, sent: usize) -> bool {
        let worker = self.worker.clone();
        let shared = &worker.shared;
        let idle_ms = shared.limits.upgraded_idle_timeout_ms;
        let mut down = Pump::resumed(Framing::Close, sent);
        let mut up = Pump::new(Framing::Close);
        let (mut down_done, mut up_done) = (false, false);
        self.conn.deadline_in(&shared.conns.clock, idle_ms);
        poll_fn(|cx| {
            let mut moved = false;
            if !down_done {
                match down.poll(cx, &mut upstream.stream, &mut self.stream, &self.down, &mut upstream.buffer)
                {
                    Poll::Ready(Ok(())) => {
                        // One side may end its half and go on listening.
                        down_done = true;
                        let _ = Pin::new(&mut self.stream).poll_shutdown(cx);
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(false),
                    Poll::Pending => moved |= down.take_moved(),
                }
            }
            if !up_done {
                match up.poll(cx, &mut self.stream, &mut upstream.stream, &[], &mut self.buffer) {
                    Poll::Ready(Ok(())) => {
                        up_done = true;
                        let _ = Pin::new(&mut upstream.stream).poll_shutdown(cx);
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(false),
                    Poll::Pending => moved |= up.take_moved(),
                }
            }
            if down_done && up_done {
                return Poll::Ready(true);
            }
            if moved {
                self.conn.deadline_in(&shared.conns.clock, idle_ms);
            }
            match self.conn.check(&shared.conns) {
                Ok(()) | Err(Interrupt::Stopping) => Poll::Pending,
                Err(_) => Poll::Ready(false),
            }
        })
        .await
    }
}
