//! The connection to a cluster: where it is, how its errors are said, and that nothing waits for it without end.
//!
//! An API server that is away, overloaded (429) or restarting is asked again as long as the deadline of the call lets, at most
//! [`AWAY_LIMIT`].

use cdpipe_model::Fault;
use cdpipe_model::ports::Call;
use http::Response;
use http::header::{CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http_body_util::{BodyExt as _, Full};
use kube::client::{ClientBuilder, DynBody};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::{Client, Config, Error};
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tower::util::MapResponseLayer;

/// How long one answer of the API server may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long it may be away before a call gives up.
const AWAY_LIMIT: Duration = Duration::from_secs(60);
/// Between two tries while it is away, unless it names a time itself.
const AWAY_PAUSE: Duration = Duration::from_millis(500);
/// The longest time it may name.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// A namespace of a cluster, by kubeconfig and context. Connected when it is first used.
#[derive(Debug)]
pub struct Cluster {
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    namespace: Option<String>,
    connected: OnceCell<Connected>,
}

#[derive(Clone)]
pub(crate) struct Connected {
    pub(crate) client: Client,
    /// For what may say nothing for long: logs that are followed, commands.
    patient: Client,
    pub(crate) namespace: String,
    server: String,
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {}", self.namespace, self.server)
    }
}

impl Cluster {
    /// The cluster of these settings; by default that of `$KUBECONFIG`, its current context, and the namespace of that. Asks nothing yet.
    pub fn new(kubeconfig: Option<PathBuf>, context: Option<String>, namespace: Option<String>) -> Self {
        Self { kubeconfig, context, namespace, connected: OnceCell::new() }
    }

    /// Where its kubeconfig is, the context that is wanted of it, and those that are in it.
    ///
    /// # Errors
    /// `kubeconfig` if it can't be read.
    pub(crate) fn contexts(&self) -> Result<(String, Option<String>, Vec<String>), Fault> {
        let (from, read) = match &self.kubeconfig {
            Some(path) => (path.display().to_string(), Kubeconfig::read_from(path)),
            None => match std::env::var("KUBECONFIG") {
                Ok(paths) if !paths.is_empty() => (format!("$KUBECONFIG ({paths})"), Kubeconfig::read()),
                _ => ("~/.kube/config".to_owned(), Kubeconfig::read()),
            },
        };
        let read = read.map_err(|error| {
            Fault::new("kubeconfig", format!("{from} cannot be used: {error}"))
                .help("set `kubeconfig` of the target or $KUBECONFIG to a file that is there")
        })?;
        let wanted = self.context.clone().or(read.current_context);
        Ok((from, wanted, read.contexts.into_iter().map(|context| context.name).collect()))
    }

    /// One call's view of it.
    pub(crate) async fn session<'a>(&self, call: Call<'a>) -> Result<Session<'a>, Fault> {
        let connected = self.connected.get_or_try_init(|| self.connect()).await?.clone();
        Ok(Session { call, ends: Instant::now() + call.deadline, connected })
    }

    /// A client for what may say nothing for long, and the namespace.
    pub(crate) async fn patient(&self) -> Result<(Client, String), Fault> {
        let connected = self.connected.get_or_try_init(|| self.connect()).await?;
        Ok((connected.patient.clone(), connected.namespace.clone()))
    }

    async fn connect(&self) -> Result<Connected, Fault> {
        let unusable = |error: &dyn std::fmt::Display| {
            Fault::new("kubeconfig", format!("the kubeconfig can't be used: {error}")).help(
                "set `kubeconfig` and `context` of the target, or $KUBECONFIG; `kubectl config get-contexts` shows what there is",
            )
        };
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let kubeconfig = Kubeconfig::read_from(path).map_err(|error| unusable(&error))?;
                Config::from_custom_kubeconfig(kubeconfig, &options)
                    .await
                    .map_err(|error| unusable(&error))?
            }
            None if self.context.is_some() => {
                Config::from_kubeconfig(&options).await.map_err(|error| unusable(&error))?
            }
            None => Config::infer().await.map_err(|error| unusable(&error))?,
        };
        // We ask again ourselves, with our own deadlines.
        config.default_retry = false;
        config.connect_timeout = Some(Duration::from_secs(5));
        config.read_timeout = Some(ANSWER_LIMIT);
        config.write_timeout = Some(ANSWER_LIMIT);
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let mut endless = config.clone();
        (endless.read_timeout, endless.write_timeout) = (None, None);
        let client = built(config).map_err(|error| unusable(&error))?;
        let patient = built(endless).map_err(|error| unusable(&error))?;
        Ok(Connected { client, patient, namespace, server })
    }
}

fn built(config: Config) -> Result<Client, Error> {
    let layer = MapResponseLayer::new(overload as fn(Response<Box<DynBody>>) -> Response<Box<DynBody>>);
    Ok(ClientBuilder::try_from(config)?.with_layer(&layer).build())
}

/// An API server that has too much to do, and whatever stands before it, says when to come again in a header beside plain text. What reads
/// errors knows nothing of headers, so it is said in the way of the API's own errors.
fn overload(response: Response<Box<DynBody>>) -> Response<Box<DynBody>> {
    let text = |name: HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
    let (status, is_json) = (response.status(), text(CONTENT_TYPE).is_some_and(|kind| kind.contains("json")));
    let after: Option<u32> = text(RETRY_AFTER).and_then(|seconds| seconds.trim().parse().ok());
    let (false, true, Some(after)) = (is_json, matches!(status.as_u16(), 429 | 503 | 504), after) else {
        return response;
    };
    let why = status.canonical_reason().unwrap_or_default();
    let said = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": status.as_u16(),
        "reason": why, "message": format!("{} {why}, come again in {after}s", status.as_u16()),
        "details": {"retryAfterSeconds": after},
    });
    let body = Full::from(said.to_string()).map_err(|never| match never {});
    response.map(|_| -> Box<DynBody> { Box::new(body) })
}

/// A cluster within one call.
pub(crate) struct Session<'a> {
    pub(crate) call: Call<'a>,
    ends: Instant,
    connected: Connected,
}

impl<'a> Session<'a> {
    /// The same call in another namespace, if one is named.
    pub(crate) fn within(&self, namespace: Option<&str>) -> Session<'a> {
        let mut connected = self.connected.clone();
        if let Some(namespace) = namespace {
            connected.namespace = namespace.to_owned();
        }
        Session { call: self.call, ends: self.ends, connected }
    }
}

impl Session<'_> {
    pub(crate) fn client(&self) -> Client {
        self.connected.client.clone()
    }

    pub(crate) fn patient_client(&self) -> Client {
        self.connected.patient.clone()
    }

    pub(crate) fn server(&self) -> &str {
        &self.connected.server
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.connected.namespace
    }

    pub(crate) fn left(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }

    /// Asks, and asks again while the cluster is away. `question` must do no harm when it is asked twice.
    ///
    /// # Errors
    /// What the API server refuses; `cancelled`; that it stayed away.
    pub(crate) async fn ask<T, F>(&self, what: &str, mut question: impl FnMut() -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let gives_up = Instant::now() + AWAY_LIMIT.min(self.left());
        loop {
            let answer = tokio::select! {
                answer = tokio::time::timeout(ANSWER_LIMIT.min(self.left()), question()) => answer,
                () = self.call.cancel.cancelled() => return Err(cancelled()),
            };
            let (fault, pause) = match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => (fault(what, &self.connected.server, &error), retry_after(&error)),
                Err(_) => (self.silent(what), None),
            };
            let pause = pause.unwrap_or(AWAY_PAUSE).min(LONGEST_PAUSE);
            // Asked again the same way, these two are answered the same way.
            let is_final = !fault.transient || matches!(fault.kind.as_str(), "conflict" | "gone");
            if is_final || Instant::now() + pause >= gives_up {
                return Err(fault);
            }
            self.pause(pause).await?;
        }
    }

    /// The same, with `None` where there is no such thing.
    ///
    /// # Errors
    /// Those of [`Session::ask`] but not `not-found`.
    pub(crate) async fn ask_for<T, F>(
        &self,
        what: &str,
        question: impl FnMut() -> F,
    ) -> Result<Option<T>, Fault>
    where
        F: Future<Output = Result<T, Error>>,
    {
        match self.ask(what, question).await {
            Ok(found) => Ok(Some(found)),
            Err(fault) if fault.kind == "not-found" => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Waits.
    ///
    /// # Errors
    /// `cancelled`, or `timed-out` where the call has no time left.
    pub(crate) async fn pause(&self, pause: Duration) -> Result<(), Fault> {
        if self.left().is_zero() {
            return Err(Fault::new("timed-out", "the time for waiting for the cluster is over").transient());
        }
        tokio::select! {
            () = tokio::time::sleep(pause.min(self.left())) => Ok(()),
            () = self.call.cancel.cancelled() => Err(cancelled()),
        }
    }

    /// Does something that may say nothing for long, once.
    ///
    /// # Errors
    /// `cancelled`, `timed-out`, what `work` says.
    pub(crate) async fn once<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Fault> {
        tokio::select! {
            answer = tokio::time::timeout(self.left(), work) => match answer {
                Ok(answer) => answer.map_err(|error| fault(what, &self.connected.server, &error)),
                Err(_) => Err(Fault::new("timed-out", format!("there was no time left to {what}"))),
            },
            () = self.call.cancel.cancelled() => Err(cancelled()),
        }
    }

    /// That the call was cancelled.
    pub(crate) fn cancelled(&self) -> Fault {
        cancelled()
    }

    fn silent(&self, what: &str) -> Fault {
        Fault::new(
            "cluster-hangs",
            format!(
                "the API server at {} did not answer in time when asked to {what}",
                self.connected.server
            ),
        )
        .help("see whether the control plane is healthy, then `cdpipe resume`")
        .transient()
    }
}

fn cancelled() -> Fault {
    Fault::new("cancelled", "cancelled while waiting for the cluster")
}

fn retry_after(error: &Error) -> Option<Duration> {
    let Error::Api(status) = error else { return None };
    let seconds = status.details.as_ref().map(|details| details.retry_after_seconds)?;
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

fn fault(what: &str, server: &str, error: &Error) -> Fault {
    match error {
        Error::Api(status) => refused(what, server, status),
        Error::SerdeError(_) | Error::FromUtf8(_) | Error::BuildRequest(_) => Fault::new(
            "cluster-answer",
            format!("the API server at {server} was asked to {what}, and its answer can't be read: {error}"),
        ),
        Error::Auth(_) => Fault::new("unauthorized", format!("no credentials for {server}: {error}"))
            .help("log in again; `kubectl auth whoami` asks the same"),
        other => Fault::new(
            "cluster-unreachable",
            format!("no API server answers at {server} when asked to {what}: {}", innermost(other)),
        )
        .help("see whether the cluster is up and the kubeconfig names the right one, then `cdpipe resume`")
        .transient(),
    }
}

fn refused(what: &str, server: &str, status: &Status) -> Fault {
    let text = format!("the cluster at {server} would not {what}: {}", status.message.trim());
    let causes = || status.details.iter().flat_map(|details| &details.causes);
    match status.code {
        401 => Fault::new("unauthorized", text).help("log in again; `kubectl auth whoami` asks the same"),
        403 if status.message.contains("exceeded quota") => {
            Fault::new("quota-exceeded", text).help("raise the ResourceQuota, or ask for less")
        }
        403 => {
            let fault = Fault::new("forbidden", text);
            match missing(&status.message) {
                Some(verb) => fault.help(format!(
                    "grant {verb} with a Role and a RoleBinding; `kubectl auth can-i {verb}` asks the same"
                )),
                None => fault.help("an admission rule refused it, or a permission is missing"),
            }
        }
        404 => Fault::new("not-found", text),
        409 if causes().any(|cause| cause.reason == "FieldManagerConflict") => Fault::new("field-conflict", text)
            .details(causes().map(|cause| format!("{}: {}", cause.field, cause.message)))
            .help("somebody else manages these fields: have them give the fields up, or leave them out of the service"),
        409 => Fault::new("conflict", text).transient(),
        410 => Fault::new("gone", text).transient(),
        429 => Fault::new("overloaded", text).transient(),
        500..=599 => Fault::new("cluster-failed", text).transient(),
        _ => Fault::new("cluster-refused", text),
    }
}

/// `VERB RESOURCE` of `… cannot patch resource "deployments" in API group "apps" …`.
fn missing(message: &str) -> Option<String> {
    let (_, rest) = message.split_once(" cannot ")?;
    let (verb, rest) = rest.split_once(" resource \"")?;
    let (resource, rest) = rest.split_once('"')?;
    let group =
        rest.split_once("API group \"").and_then(|(_, rest)| rest.split_once('"')).map(|(group, _)| group);
    Some(match group {
        Some(group) if !group.is_empty() => format!("{verb} {resource}.{group}"),
        _ => format!("{verb} {resource}"),
    })
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, message: &str) -> Status {
        Status { code, message: message.to_owned(), ..Status::default() }
    }

    #[test]
    fn what_the_cluster_refuses_has_a_kind_and_says_whether_to_ask_again() {
        for (code, kind, transient) in [
            (401, "unauthorized", false),
            (404, "not-found", false),
            (409, "conflict", true),
            (410, "gone", true),
            (422, "cluster-refused", false),
            (429, "overloaded", true),
            (503, "cluster-failed", true),
        ] {
            let fault = refused("do it", "https://x", &status(code, "why"));
            assert_eq!((fault.kind.as_str(), fault.transient), (kind, transient), "{code}");
        }
    }

    #[test]
    fn a_missing_permission_is_named() {
        let message = "deployments.apps \"web\" is forbidden: User \"viewer\" cannot patch resource \"deployments\" in API group \
                       \"apps\" in the namespace \"default\"";
        let fault = refused("apply the Deployment web", "https://x", &status(403, message));
        assert_eq!(fault.kind, "forbidden");
        assert!(fault.help.is_some_and(|help| help.contains("grant patch deployments.apps")));
        let pods = "pods is forbidden: User \"a\" cannot list resource \"pods\" in API group \"\" in the namespace \"b\"";
        assert_eq!(missing(pods).as_deref(), Some("list pods"));
    }
}
