//! One workload as it changes: read once, then watched, so that a change is known when it happens and nothing is asked while there is none.
//!
//! A watch may end at any moment: the API server ends each after some minutes, restarts, or no longer knows the version that it was begun
//! at (410). Then the object is read anew and watched from there. One over which nothing has come for [`SILENCE`] may be a connection that
//! is dead; it is given up the same way.

use crate::client::Session;
use crate::kind::{Kind, Workload};
use crate::target::POLL;
use cdpipe_model::Fault;
use futures_util::{Stream, StreamExt as _};
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::DynamicObject;
use kube::{Api, Error};
use std::pin::Pin;
use std::time::Duration;
use tokio::time::Instant;

/// So long a watch may say nothing before the object is read again.
const SILENCE: Duration = Duration::from_secs(15);
/// The API server is to end a watch by itself after this time, in seconds.
const WATCH_S: u32 = 240;

type Watch = Pin<Box<dyn Stream<Item = Result<WatchEvent<DynamicObject>, Error>> + Send>>;

/// What became of a workload meanwhile.
#[derive(Debug)]
pub(crate) enum Seen {
    /// It is this now.
    As(Box<Workload>),
    /// There is none of that name.
    Gone,
    /// Nothing has been heard of it.
    Same,
}

/// A workload that is followed.
pub(crate) struct Follow {
    kind: Kind,
    api: Api<DynamicObject>,
    patient: Api<DynamicObject>,
    /// `the Deployment web`
    what: String,
    selector: String,
    version: String,
    watch: Option<Watch>,
    heard: Instant,
}

impl Follow {
    /// The workload of this name. Nothing is asked yet.
    pub(crate) fn new(session: &Session<'_>, kind: Kind, name: &str) -> Self {
        Self {
            kind,
            api: kind.api(session),
            patient: kind.patient_api(session),
            what: format!("the {} {name}", kind.as_str()),
            selector: format!("metadata.name={name}"),
            version: String::new(),
            watch: None,
            heard: Instant::now(),
        }
    }

    /// A workload that was just written.
    pub(crate) fn written(session: &Session<'_>, written: &Workload) -> Self {
        let version = written.metadata.resource_version.clone().unwrap_or_default();
        Self { version, ..Self::new(session, written.kind, written.name()) }
    }

    /// What it is now, asked anew; never [`Seen::Same`].
    ///
    /// # Errors
    /// If the cluster can't be asked.
    pub(crate) async fn read(&mut self, session: &Session<'_>) -> Result<Seen, Fault> {
        self.watch = None;
        let (api, params) = (&self.api, ListParams::default().fields(&self.selector));
        // The version of the list and not of the object: that may be older than what the API server remembers.
        let list = session.ask(&format!("read {}", self.what), || api.list(&params)).await?;
        self.version = list.metadata.resource_version.unwrap_or_default();
        self.heard = Instant::now();
        list.items.into_iter().next().map_or(Ok(Seen::Gone), |found| self.seen(found))
    }

    /// Waits until something is heard of it, at most `limit`.
    ///
    /// # Errors
    /// If the cluster can't be asked; `cancelled`.
    pub(crate) async fn next(&mut self, session: &Session<'_>, limit: Duration) -> Result<Seen, Fault> {
        if session.left().is_zero() {
            session.pause(Duration::ZERO).await?;
        }
        let until = Instant::now() + limit.min(session.left());
        loop {
            let watch = match &mut self.watch {
                Some(watch) => watch,
                None => match self.begin(session).await? {
                    Some(begun) => self.watch.insert(begun),
                    None => return self.again(session).await,
                },
            };
            let event = tokio::select! {
                event = tokio::time::timeout_at(until, watch.next()) => event,
                () = session.call.cancel.cancelled() => return Err(session.cancelled()),
            };
            match event {
                Err(_) if self.heard.elapsed() >= SILENCE => return self.read(session).await,
                Err(_) => return Ok(Seen::Same),
                Ok(Some(Ok(WatchEvent::Added(now) | WatchEvent::Modified(now)))) => {
                    self.heard = Instant::now();
                    return self.seen(now);
                }
                Ok(Some(Ok(WatchEvent::Deleted(_)))) => return Ok(Seen::Gone),
                Ok(Some(Ok(WatchEvent::Bookmark(_)))) => self.heard = Instant::now(),
                // It has ended, was cut, or the version is too old for it.
                Ok(Some(Ok(WatchEvent::Error(_)) | Err(_)) | None) => return self.again(session).await,
            }
        }
    }

    fn seen(&self, found: DynamicObject) -> Result<Seen, Fault> {
        Ok(Seen::As(Box::new(Workload::read(self.kind, found)?)))
    }

    /// `None` where the version is too old, or nobody answers: that a watch hangs says nothing of other requests.
    async fn begin(&mut self, session: &Session<'_>) -> Result<Option<Watch>, Fault> {
        let (api, version) = (&self.patient, &self.version);
        let params = WatchParams::default().fields(&self.selector).timeout(WATCH_S);
        let begin = || async {
            match tokio::time::timeout(SILENCE, api.watch(&params, version)).await {
                Ok(begun) => begun.map(|events| -> Option<Watch> { Some(Box::pin(events)) }),
                Err(_) => Ok(None),
            }
        };
        match session.ask(&format!("watch {}", self.what), begin).await {
            Err(fault) if fault.kind == "gone" => Ok(None),
            answer => answer,
        }
    }

    /// Not at once: whoever ends each watch as it begins is not to be asked without a pause.
    async fn again(&mut self, session: &Session<'_>) -> Result<Seen, Fault> {
        self.watch = None;
        session.pause(POLL).await?;
        self.read(session).await
    }
}
