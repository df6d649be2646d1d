//! One object as it changes: read once, then watched, so that a change is known when it happens and nothing is asked while there is none.
//!
//! A watch may end at any moment: the API server ends each after some minutes, restarts, or no longer knows the version that it was begun
//! at (410). Then the object is read anew and watched from there. One over which nothing has come for [`SILENCE`] may be a connection that
//! is dead; it is given up the same way.

use crate::client::Session;
use crate::target::POLL;
use cdpipe_model::Fault;
use futures_util::{Stream, StreamExt as _};
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Error, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::Instant;

/// So long a watch may say nothing before the object is read again.
const SILENCE: Duration = Duration::from_secs(15);
/// The API server is to end a watch by itself after this time, in seconds.
const WATCH_S: u32 = 240;

type Watch<K> = Pin<Box<dyn Stream<Item = Result<WatchEvent<K>, Error>> + Send>>;

/// What became of an object meanwhile.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen<K> {
    /// It is this now.
    As(Box<K>),
    /// There is none of that name.
    Gone,
    /// Nothing has been heard of it.
    Same,
}

/// An object of a namespace that is followed.
pub(crate) struct Follow<K> {
    api: Api<K>,
    patient: Api<K>,
    /// `the Deployment web`
    what: String,
    selector: String,
    version: String,
    watch: Option<Watch<K>>,
    heard: Instant,
}

impl<K> Follow<K>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    /// The object of this name. Nothing is asked yet.
    pub(crate) fn new(session: &Session<'_>, name: &str) -> Self {
        Self {
            api: Api::namespaced(session.client(), session.namespace()),
            patient: Api::namespaced(session.patient_client(), session.namespace()),
            what: format!("the {} {name}", K::kind(&())),
            selector: format!("metadata.name={name}"),
            version: String::new(),
            watch: None,
            heard: Instant::now(),
        }
    }

    /// What it is now, asked anew; never [`Seen::Same`].
    ///
    /// # Errors
    /// If the cluster can't be asked.
    pub(crate) async fn read(&mut self, session: &Session<'_>) -> Result<Seen<K>, Fault> {
        self.watch = None;
        let (api, params) = (&self.api, ListParams::default().fields(&self.selector));
        // The version of the list and not of the object: that may be older than what the API server remembers.
        let list = session.ask(&format!("read {}", self.what), || api.list(&params)).await?;
        self.version = list.metadata.resource_version.unwrap_or_default();
        self.heard = Instant::now();
        Ok(list.items.into_iter().next().map_or(Seen::Gone, |found| Seen::As(Box::new(found))))
    }

    /// Waits until something is heard of it, at most `limit`.
    ///
    /// # Errors
    /// If the cluster can't be asked; `cancelled`.
    pub(crate) async fn next(&mut self, session: &Session<'_>, limit: Duration) -> Result<Seen<K>, Fault> {
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
                    return Ok(Seen::As(Box::new(now)));
                }
                Ok(Some(Ok(WatchEvent::Deleted(_)))) => return Ok(Seen::Gone),
                Ok(Some(Ok(WatchEvent::Bookmark(_)))) => self.heard = Instant::now(),
                // It has ended, was cut, or the version is too old for it.
                Ok(Some(Ok(WatchEvent::Error(_)) | Err(_)) | None) => return self.again(session).await,
            }
        }
    }

    /// `None` where the version is too old, or nobody answers: that a watch hangs says nothing of other requests.
    async fn begin(&mut self, session: &Session<'_>) -> Result<Option<Watch<K>>, Fault> {
        let (api, version) = (&self.patient, &self.version);
        let params = WatchParams::default().fields(&self.selector).timeout(WATCH_S);
        let begin = || async {
            match tokio::time::timeout(SILENCE, api.watch(&params, version)).await {
                Ok(begun) => begun.map(|events| -> Option<Watch<K>> { Some(Box::pin(events)) }),
                Err(_) => Ok(None),
            }
        };
        match session.ask(&format!("watch {}", self.what), begin).await {
            Err(fault) if fault.kind == "gone" => Ok(None),
            answer => answer,
        }
    }

    /// Not at once: whoever ends each watch as it begins is not to be asked without a pause.
    async fn again(&mut self, session: &Session<'_>) -> Result<Seen<K>, Fault> {
        self.watch = None;
        session.pause(POLL).await?;
        self.read(session).await
    }
}
