//! A call of nobody, for tests.

use cdpipe_model::action::{Block, StepRef};
use cdpipe_model::event::Stream;
use cdpipe_model::ports::{BoxFuture, Call, Cancel, PortResult, Secrets, Sink};
use cdpipe_model::secret::SecretValue;
use cdpipe_model::{EffectId, Fault};
use std::time::Duration;
use tokio::sync::watch;

pub(crate) struct Quiet {
    effect: EffectId,
    step: StepRef,
    cancelled: watch::Sender<bool>,
}

impl Default for Quiet {
    fn default() -> Self {
        Self {
            effect: EffectId("r1/1".into()),
            step: StepRef { node: None, block: Block::Main, index: 0 },
            cancelled: watch::channel(false).0,
        }
    }
}

impl Quiet {
    pub(crate) fn cancel(&self) {
        self.cancelled.send_replace(true);
    }
}

pub(crate) fn call(quiet: &Quiet, deadline: Duration) -> Call<'_> {
    Call {
        effect: &quiet.effect,
        step: &quiet.step,
        deadline,
        sink: quiet,
        cancel: quiet,
        secrets: quiet,
        epoch: 1,
    }
}

impl Sink for Quiet {
    fn output(&self, _stream: Stream, _line: &str) {}

    fn progress(&self, _text: &str) {}
}

impl Cancel for Quiet {
    fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow()
    }

    fn cancelled(&self) -> BoxFuture<'_, ()> {
        let mut cancelled = self.cancelled.subscribe();
        Box::pin(async move {
            let _ = cancelled.wait_for(|cancelled| *cancelled).await;
        })
    }
}

impl Secrets for Quiet {
    fn resolve<'a>(&'a self, name: &'a str) -> PortResult<'a, SecretValue> {
        Box::pin(async move { Err(Fault::new("secret-missing", format!("there is no {name}"))) })
    }
}
