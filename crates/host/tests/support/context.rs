//! What a call carries, in tests.

use cdpipe_model::action::{Block, StepRef};
use cdpipe_model::event::Stream;
use cdpipe_model::ports::{BoxFuture, Call, Cancel, PortResult, Secrets, Sink};
use cdpipe_model::secret::SecretValue;
use cdpipe_model::{EffectId, Fault, NodeId};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::watch;

/// Everything that a call borrows.
pub(crate) struct Context {
    pub(crate) effect: EffectId,
    pub(crate) step: StepRef,
    pub(crate) deadline: Duration,
    pub(crate) sink: Lines,
    pub(crate) cancel: Flag,
    pub(crate) secrets: Values,
}

impl Default for Context {
    fn default() -> Self {
        Self {
            effect: EffectId("20261123-151905-7f3a/1".to_owned()),
            step: StepRef { node: Some(NodeId(0)), block: Block::Main, index: 0 },
            deadline: Duration::from_secs(60),
            sink: Lines::default(),
            cancel: Flag(watch::channel(false).0),
            secrets: Values::default(),
        }
    }
}

impl Context {
    pub(crate) fn call(&self) -> Call<'_> {
        Call {
            effect: &self.effect,
            step: &self.step,
            deadline: self.deadline,
            sink: &self.sink,
            cancel: &self.cancel,
            secrets: &self.secrets,
            epoch: 1,
        }
    }
}

/// Keeps what is said.
#[derive(Default)]
pub(crate) struct Lines(pub(crate) Mutex<Vec<String>>);

impl Sink for Lines {
    fn output(&self, stream: Stream, line: &str) {
        let prefix = match stream {
            Stream::Stdout => "out",
            Stream::Stderr => "err",
        };
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(format!("{prefix}: {line}"));
    }

    fn progress(&self, text: &str) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(format!("progress: {text}"));
    }
}

/// Cancelled when it is set.
pub(crate) struct Flag(pub(crate) watch::Sender<bool>);

impl Cancel for Flag {
    fn is_cancelled(&self) -> bool {
        *self.0.borrow()
    }

    fn cancelled(&self) -> BoxFuture<'_, ()> {
        let mut receiver = self.0.subscribe();
        Box::pin(async move {
            let _ = receiver.wait_for(|set| *set).await;
        })
    }
}

/// Secrets by name.
#[derive(Default)]
pub(crate) struct Values(pub(crate) BTreeMap<String, String>);

impl Secrets for Values {
    fn resolve<'a>(&'a self, name: &'a str) -> PortResult<'a, SecretValue> {
        Box::pin(std::future::ready(match self.0.get(name) {
            Some(value) => Ok(SecretValue::new(value.clone())),
            None => Err(Fault::new("secret-missing", format!("no secret {name}"))),
        }))
    }
}
