//! From the run to its reporters. Each reporter has a thread and a bounded queue of its own: one that is slow loses events and is told
//! how many, one that blocks for ever or panics loses all that follow, and the run notices neither.

use cdpipe_model::event::Event;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Events that wait for one reporter. Output and progress are dropped at half of it, so that a noisy command does not cost the
/// reporter what matters.
const QUEUE_EVENTS: usize = 32_768;

/// What a reporter is handed.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'a> {
    /// The event.
    pub event: &'a Event,
    /// Events that were dropped for this reporter between the last one and this one.
    pub dropped_before: u64,
}

/// A reporter: a fold over events.
pub type Reporter = Box<dyn FnMut(Delivery<'_>) + Send>;

/// Hands events to reporters.
#[derive(Default)]
pub struct Fanout {
    lanes: Vec<Lane>,
}

struct Lane {
    name: String,
    queue: Arc<Queue>,
    done: tokio::sync::Mutex<oneshot::Receiver<()>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(Arc<Event>, u64)>,
    dropped: u64,
    closed: bool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes the queue when the thread ends, also by a panic: nothing is kept for a reporter that is gone.
struct CloseOnExit(Arc<Queue>);

impl Drop for CloseOnExit {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.closed = true;
        state.waiting.clear();
    }
}

impl Fanout {
    /// No reporters.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a reporter. `name` is for the log.
    pub fn add(&mut self, name: &str, mut reporter: Reporter) {
        let queue = Arc::new(Queue::default());
        let (done_sender, done) = oneshot::channel();
        let theirs = Arc::clone(&queue);
        let spawned = std::thread::Builder::new().name(format!("cdpipe-report-{name}")).spawn(move || {
            // Dropped with the thread, which is what `close` waits for.
            let _done = done_sender;
            let exit = CloseOnExit(theirs);
            serve(&exit.0, &mut reporter);
        });
        match spawned {
            Ok(_detached) => self.lanes.push(Lane { name: name.to_owned(), queue, done: done.into() }),
            Err(error) => tracing::warn!(%error, name, "a reporter was not started"),
        }
    }

    /// Whether anyone listens.
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Hands an event to every reporter that has room for it. Never blocks.
    pub fn publish(&self, event: Event) {
        if self.lanes.is_empty() {
            return;
        }
        let limit = match &event {
            Event::Output { .. } | Event::Progress { .. } => QUEUE_EVENTS / 2,
            Event::Opened(_) | Event::Record { .. } | Event::Closed => QUEUE_EVENTS,
        };
        let event = Arc::new(event);
        for lane in &self.lanes {
            let mut state = lane.queue.state();
            if state.closed {
                continue;
            }
            if state.waiting.len() >= limit {
                state.dropped += 1;
                continue;
            }
            let dropped = std::mem::take(&mut state.dropped);
            state.waiting.push_back((Arc::clone(&event), dropped));
            drop(state);
            lane.queue.arrived.notify_one();
        }
    }

    /// Lets the reporters finish what waits for them, for at most so long. One that has not finished then is left behind: it can't
    /// be stopped, and the run doesn't wait for it.
    pub async fn close(&self, grace: Duration) {
        for lane in &self.lanes {
            lane.queue.state().closed = true;
            lane.queue.arrived.notify_one();
        }
        if self.lanes.is_empty() {
            return;
        }
        let all = async {
            for lane in &self.lanes {
                // Closed at the end of the thread; nothing is ever sent, and nobody else holds it.
                let mut done = lane.done.lock().await;
                let _ = (&mut *done).await;
            }
        };
        if tokio::time::timeout(grace, all).await.is_err() {
            let left: Vec<&str> = self.lanes.iter().map(|lane| lane.name.as_str()).collect();
            tracing::warn!(reporters = ?left, "some of these reporters did not finish and are left behind");
        }
    }
}

fn serve(queue: &Queue, reporter: &mut Reporter) {
    let mut batch = VecDeque::new();
    loop {
        {
            let mut state = queue.state();
            while state.waiting.is_empty() {
                if state.closed {
                    return;
                }
                state = queue.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            // One at a time would take the lock once an event; all at once would empty the queue and lift its bound.
            let take = state.waiting.len().min(256);
            batch.extend(state.waiting.drain(..take));
        }
        for (event, dropped_before) in batch.drain(..) {
            reporter(Delivery { event: &event, dropped_before });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdpipe_model::NodeId;
    use cdpipe_model::record::Record;
    use std::sync::mpsc::channel;
    use std::time::Instant;

    fn record(seq: u64) -> Event {
        let record = Arc::new(Record::NodeStarted { node: NodeId(0), attempt: 1 });
        Event::Record { seq, at_ms: 0, record }
    }

    fn seqs(into: std::sync::mpsc::Sender<(u64, u64)>) -> Reporter {
        Box::new(move |delivery| {
            if let Event::Record { seq, .. } = delivery.event {
                let _ = into.send((*seq, delivery.dropped_before));
            }
        })
    }

    #[tokio::test]
    async fn a_blocked_and_a_panicking_reporter_hurt_nobody_else() {
        let (sender, receiver) = channel();
        let (_never, blocked) = channel::<()>();
        let blocked = Mutex::new(blocked);
        let mut fanout = Fanout::new();
        fanout.add("blocks", Box::new(move |_| assert!(blocked.lock().unwrap().recv().is_err())));
        fanout.add("panics", Box::new(|_| panic!("a bug of a reporter")));
        fanout.add("works", seqs(sender));
        let began = Instant::now();
        for seq in 1..=1_000 {
            fanout.publish(record(seq));
        }
        fanout.close(Duration::from_millis(200)).await;
        assert!(began.elapsed() < Duration::from_secs(5));
        let got: Vec<_> = receiver.try_iter().collect();
        assert_eq!(got, (1..=1_000).map(|seq| (seq, 0)).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_slow_reporter_is_told_what_it_lost_and_loses_output_first() {
        let (sender, receiver) = channel();
        let (go, wait) = channel::<()>();
        let wait = Mutex::new(Some(wait));
        let mut inner = seqs(sender);
        let mut fanout = Fanout::new();
        fanout.add(
            "slow",
            Box::new(move |delivery| {
                if let Some(wait) = wait.lock().unwrap().take() {
                    let _ = wait.recv();
                }
                inner(delivery);
            }),
        );
        let progress = |at: u64| Event::Progress {
            step: cdpipe_model::action::StepRef {
                node: None,
                block: cdpipe_model::action::Block::Main,
                index: 0,
            },
            action: cdpipe_model::ActionId(at),
            text: String::new(),
        };
        for at in 0..QUEUE_EVENTS as u64 {
            fanout.publish(progress(at));
        }
        for seq in 1..=3 {
            fanout.publish(record(seq));
        }
        go.send(()).unwrap();
        fanout.close(Duration::from_secs(10)).await;
        let got: Vec<_> = receiver.try_iter().collect();
        assert_eq!(got.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [1, 2, 3], "no record was lost");
        assert!(got[0].1 > 0 && got[1].1 == 0, "{got:?}");
    }
}
