//! The connection to an engine: where it is, whether it is new enough, how its errors are said, and that nothing waits for it
//! without end.
//!
//! What can be asked again is asked again while the engine is away ([`Engine::patiently`]): a daemon that is restarted in the middle of
//! a deploy is waited for, as long as the deadline of the call lets, at most [`AWAY_LIMIT`] from when it went away. One that has not
//! answered yet, or was given up, gets [`FIRST_LIMIT`]: a wrong endpoint is told at once, and several calls in a row do not wait for a
//! dead engine in full each.

use bollard::errors::Error;
use cdpipe_model::Fault;
use cdpipe_model::ports::Call;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Where an engine is by default.
pub const DEFAULT_ENDPOINT: &str = "unix:///var/run/docker.sock";

/// The oldest API that has all that is asked of an engine (Docker 20.10).
pub const OLDEST_API: (u32, u32) = (1, 41);

/// How long one answer of the engine may take that has nothing to wait for.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// How long an engine that has answered may be away before a call gives up.
pub const AWAY_LIMIT: Duration = Duration::from_secs(30);

/// The same for one that has never answered, or not since a call gave up.
pub const FIRST_LIMIT: Duration = Duration::from_secs(1);

/// Between two tries while it is away.
const AWAY_PAUSE: Duration = Duration::from_millis(200);

/// How long before the deadline of its call an engine that hangs is told, at most; of a shorter call a tenth.
const WORD_IN_TIME: Duration = Duration::from_millis(500);

/// Beyond every deadline: what bounds a request is the deadline of its call.
const LIBRARY_TIMEOUT_S: u64 = 24 * 3600;

/// An engine by its address. Nothing is kept open between two calls.
#[derive(Debug, Clone)]
pub struct Engine {
    endpoint: String,
    /// Whether it has answered since the beginning, or since it was given up.
    answered: Arc<AtomicBool>,
}

impl Engine {
    /// The engine of a setting, or else of `$DOCKER_HOST` (given as `host`), or else of this machine. A `unix://` path that is not absolute is
    /// relative to `base`.
    pub fn new(setting: Option<&str>, host: Option<&str>, base: &Path) -> Self {
        let given = setting.or(host).filter(|text| !text.is_empty()).unwrap_or(DEFAULT_ENDPOINT);
        let endpoint = match given.strip_prefix("unix://") {
            Some(path) if !path.starts_with('/') => {
                let path: PathBuf = base.join(path).components().collect();
                format!("unix://{}", path.display())
            }
            _ => given.to_owned(),
        };
        Self { endpoint, answered: Arc::new(AtomicBool::new(false)) }
    }

    /// `unix://…` or `tcp://…`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Whether it is on this machine: its containers' addresses can be reached from here.
    pub fn is_here(&self) -> bool {
        self.endpoint.starts_with("unix://")
    }

    /// A session for one call.
    ///
    /// # Errors
    /// `engine-unreachable` (transient), `engine-too-old`, `bad-endpoint`.
    pub async fn session<'a>(&self, call: Call<'a>) -> Result<Session<'a>, Fault> {
        let session = self.unchecked(call)?;
        let version = session.ask("say its version", session.api.version()).await?;
        self.answered.store(true, Ordering::Relaxed);
        let api = version.api_version.unwrap_or_default();
        if parse_version(&api).is_none_or(|api| api < OLDEST_API) {
            let (major, minor) = OLDEST_API;
            return Err(Fault::new(
                "engine-too-old",
                format!(
                    "the engine at {} speaks API {api}; {major}.{minor} or newer is needed",
                    self.endpoint
                ),
            )
            .help("update it to Docker 20.10 or newer"));
        }
        Ok(session)
    }

    fn unchecked<'a>(&self, call: Call<'a>) -> Result<Session<'a>, Fault> {
        let endpoint = &self.endpoint;
        if !endpoint.starts_with("unix://") && !endpoint.starts_with("tcp://") {
            return Err(Fault::new("bad-endpoint", format!("{endpoint} is no endpoint of a Docker engine"))
                .help("write `unix:///path/of/docker.sock` or `tcp://HOST:PORT`"));
        }
        let api = bollard::Docker::connect_with_host(endpoint)
            .map_err(|error| fault("connect", endpoint, &error))?
            .with_timeout(Duration::from_secs(LIBRARY_TIMEOUT_S));
        Ok(Session {
            api,
            call,
            until: Instant::now() + time_for_answers(call.deadline),
            endpoint: endpoint.clone(),
        })
    }

    /// Does what can be done twice, again and again while the engine is away.
    ///
    /// # Errors
    /// Those of `work`; the last one if the engine stays away.
    pub async fn patiently<'a, T, F>(
        &self,
        call: Call<'a>,
        work: impl Fn(Session<'a>) -> F,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let begun = Instant::now();
        let mut away = Away { since: begun };
        let mut said = false;
        loop {
            let left = call.deadline.saturating_sub(begun.elapsed());
            let result = match self.session(Call { deadline: left, ..call }).await {
                Ok(session) => {
                    let answered = Instant::now();
                    let result = work(session).await;
                    if away.is_back(answered, Instant::now()) {
                        said = false;
                    }
                    result
                }
                Err(fault) => Err(fault),
            };
            if !matches!(&result, Err(fault) if is_away(fault)) {
                return result;
            }
            let left = call.deadline.saturating_sub(begun.elapsed());
            let limit = if self.answered.load(Ordering::Relaxed) { AWAY_LIMIT } else { FIRST_LIMIT };
            if away.since.elapsed() >= limit || left <= AWAY_PAUSE {
                self.answered.store(false, Ordering::Relaxed);
                return result;
            }
            if !said {
                said = true;
                call.sink.progress(&format!("the engine at {} is away; waiting for it", self.endpoint));
            }
            tokio::select! {
                () = call.cancel.cancelled() => return Err(cancelled()),
                () = tokio::time::sleep(AWAY_PAUSE) => {}
            }
        }
    }
}

/// How much of a call's time is for answers. Who waits for the call gives up at its deadline and could only say that; what is said
/// here, shortly before, names the engine.
pub(crate) fn time_for_answers(deadline: Duration) -> Duration {
    deadline.saturating_sub((deadline / 10).min(WORD_IN_TIME))
}

/// Since when an engine has been away.
struct Away {
    since: Instant,
}

impl Away {
    /// An attempt was answered, and its work has ended now. Whether the engine was back before it was lost again: then it went away
    /// only now. One that answers and is lost at once, again and again, is away all the time.
    fn is_back(&mut self, answered: Instant, ended: Instant) -> bool {
        let back = ended.saturating_duration_since(answered) >= FIRST_LIMIT;
        if back {
            self.since = ended;
        }
        back
    }
}

/// Whether the engine could not be spoken with, or was lost in the middle.
pub(crate) fn is_away(fault: &Fault) -> bool {
    matches!(fault.kind.as_str(), "engine-unreachable" | "engine-lost")
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// One call's use of an engine.
pub struct Session<'a> {
    /// The library's client; ask it through [`Session::ask`].
    pub api: bollard::Docker,
    /// The call.
    pub call: Call<'a>,
    until: Instant,
    endpoint: String,
}

impl Session<'_> {
    /// What is left for answers until shortly before the call's deadline.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Waits for one answer, at most [`ANSWER_LIMIT`]. `what` completes "the engine could not …".
    ///
    /// # Errors
    /// What the engine says; `engine-hangs` if it says nothing; `cancelled`.
    pub async fn ask<T>(
        &self,
        what: &str,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Fault> {
        self.ask_within(what, ANSWER_LIMIT, answer).await
    }

    /// The same, with more time.
    ///
    /// # Errors
    /// Those of [`Session::ask`].
    pub async fn ask_within<T>(
        &self,
        what: &str,
        within: Duration,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Fault> {
        let within = within.min(self.left());
        tokio::select! {
            answer = answer => answer.map_err(|error| self.fault(what, &error)),
            () = self.call.cancel.cancelled() => Err(cancelled()),
            () = tokio::time::sleep(within) => Err(Fault::new(
                "engine-hangs",
                format!("the engine at {} did not answer for {:.1}s when asked to {what}", self.endpoint, within.as_secs_f64()),
            )
            .help("see what the daemon is doing (`docker info`, its log), then `cdpipe resume`")
            .transient()),
        }
    }

    /// The same, with `None` where there is no such thing.
    ///
    /// # Errors
    /// Those of [`Session::ask`] but not `not-found`.
    pub async fn ask_for<T>(
        &self,
        what: &str,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<Option<T>, Fault> {
        match self.ask(what, answer).await {
            Ok(found) => Ok(Some(found)),
            Err(fault) if fault.kind == "not-found" => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// What the library says, for people.
    pub fn fault(&self, what: &str, error: &Error) -> Fault {
        fault(what, &self.endpoint, error)
    }
}

/// The call was cancelled.
pub fn cancelled() -> Fault {
    Fault::new("cancelled", "cancelled while waiting for the Docker engine")
}

fn fault(what: &str, endpoint: &str, error: &Error) -> Fault {
    let unreachable = |why: &str| {
        Fault::new("engine-unreachable", format!("no Docker engine answers at {endpoint}: {why}"))
            .help("start it, or name another one: `endpoint` of the target, or $DOCKER_HOST")
            .transient()
    };
    match error {
        Error::DockerResponseServerError { status_code, message } => refused(what, endpoint, *status_code, message),
        Error::SocketNotFoundError(path) => unreachable(&format!("there is no {path}")),
        Error::DockerStreamError { error } => refused(what, endpoint, 500, error),
        Error::HyperLegacyError { err } if err.is_connect() => {
            let why = innermost(err);
            if why.contains("ermission denied") {
                return Fault::new("engine-forbidden", format!("you may not speak to the Docker engine at {endpoint}"))
                    .help("join the group `docker`, or run cdpipe as somebody who may");
            }
            unreachable(&why)
        }
        Error::HyperLegacyError { .. } | Error::HyperResponseError { .. } | Error::IOError { .. } => Fault::new(
            "engine-lost",
            format!("the connection to the Docker engine at {endpoint} was lost when it was asked to {what}: {}", innermost(error)),
        )
        .help("see whether the daemon was restarted, then `cdpipe resume`")
        .transient(),
        other => Fault::new("engine-answer", format!("the engine at {endpoint} could not {what}: {other}")),
    }
}

fn refused(what: &str, endpoint: &str, status: u16, message: &str) -> Fault {
    let message = message.trim();
    let lower = message.to_ascii_lowercase();
    let text = format!("the engine at {endpoint} could not {what}: {message}");
    if lower.contains("no space left on device") {
        return Fault::new("no-space", text)
            .help("free some space there: `docker system df` shows what takes it, `docker image prune` removes unused images");
    }
    match status {
        404 => Fault::new("not-found", text),
        409 => Fault::new("conflict", text),
        _ => Fault::new("engine-refused", text),
    }
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

    #[test]
    fn where_the_engine_is() {
        let of =
            |setting, host| Engine::new(setting, host, Path::new("/project/pipelines")).endpoint().to_owned();
        assert_eq!(of(None, None), DEFAULT_ENDPOINT);
        assert_eq!(of(None, Some("tcp://10.0.0.1:2375")), "tcp://10.0.0.1:2375");
        assert_eq!(of(Some("unix:///x.sock"), Some("tcp://10.0.0.1:2375")), "unix:///x.sock");
        assert_eq!(of(Some("unix://run/docker.sock"), None), "unix:///project/pipelines/run/docker.sock");
    }

    #[test]
    fn an_engine_is_away_from_when_it_was_lost_and_not_from_the_beginning_of_the_call() {
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let mut away = Away { since: begun };
        assert!(away.is_back(at(10), at(31_000)), "it worked for half a minute");
        assert_eq!(away.since, at(31_000));
        assert!(!away.is_back(at(40_000), at(40_100)), "it answers, and is lost at once");
        assert_eq!(away.since, at(31_000));
    }

    #[test]
    fn what_the_engine_refuses_has_a_kind() {
        for (status, message, kind) in [
            (404, "No such container: x", "not-found"),
            (409, "Conflict. The container name is in use", "conflict"),
            (500, "write /var/lib/docker/tmp/x: no space left on device", "no-space"),
            (400, "bad parameter", "engine-refused"),
        ] {
            assert_eq!(refused("do it", "unix:///x", status, message).kind, kind);
        }
        assert_eq!(parse_version("1.41"), Some((1, 41)));
        assert!(parse_version("1.9").is_some_and(|version| version < OLDEST_API));
    }
}
