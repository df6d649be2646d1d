//! The ports: what the rim must be able to do for the engine. Every call has a deadline and can be cancelled; every effect is
//! convergent (asked twice, it is done once) or can be probed by its effect id.

use crate::action::{Answer, RunAction, StepRef};
use crate::event::Stream;
use crate::fault::Fault;
use crate::id::{EffectId, ReleaseId, ServiceName};
use crate::measure::{MeasureRequest, MeasureScope, Sample};
use crate::objects::{ApplySpec, ObjectWas, Surveyed};
use crate::observe::{Instance, Observation, RouteTable};
use crate::plan::{Channel, FlagProvider, LockKey};
use crate::release::ReleaseSpec;
use crate::secret::{SecretPart, SecretValue, base64_decode};
use crate::service::Route;
use crate::strategy::{OldRelease, RollPolicy};
use crate::value::Value;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// A boxed future, as ports return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a port call answers.
pub type PortResult<'a, T> = BoxFuture<'a, Result<T, Fault>>;

/// Where output and progress of a call go. Never blocks; may drop.
pub trait Sink: Send + Sync {
    /// A line of output, already masked, without its line end.
    fn output(&self, stream: Stream, line: &str);
    /// The same, with which line of this effect it is, from 1 on: so that after a crash nobody hears a line twice, and none is missing.
    fn numbered(&self, _number: u64, stream: Stream, line: &str) {
        self.output(stream, line);
    }
    /// The number of the last line of this effect that was taken, also by an engine before this one; 0 for none.
    fn taken(&self) -> u64 {
        0
    }
    /// What to wait for before more lines are handed over; `None` if there is room. Lines without room may be dropped.
    fn room(&self) -> Option<BoxFuture<'_, ()>> {
        None
    }
    /// How far it is, for people.
    fn progress(&self, text: &str);
}

/// Tells a call that it should stop.
pub trait Cancel: Send + Sync {
    /// Whether it should stop now.
    fn is_cancelled(&self) -> bool;
    /// Resolves when it should stop.
    fn cancelled(&self) -> BoxFuture<'_, ()>;
}

/// Values of secrets, resolved at each use.
pub trait Secrets: Send + Sync {
    /// The value of the secret of this name.
    ///
    /// # Errors
    /// `secret-missing` if its source has none.
    fn resolve<'a>(&'a self, name: &'a str) -> PortResult<'a, SecretValue>;
}

/// The text of a value with its secrets in it, for the one place that hands it to the outside.
///
/// # Errors
/// `secret-missing`, or `bad-value` if what should be base64 is not, or is not text.
pub async fn expose(value: &Value, secrets: &dyn Secrets) -> Result<String, Fault> {
    let Value::Secret(text) = value else { return Ok(value.to_string()) };
    let mut out = String::new();
    for part in &text.0 {
        match part {
            SecretPart::Text(plain) => out.push_str(plain),
            SecretPart::Secret(name) => out.push_str(secrets.resolve(name).await?.expose()),
            SecretPart::Base64(name) => {
                let encoded = secrets.resolve(name).await?;
                let decoded = base64_decode(encoded.expose()).and_then(|bytes| String::from_utf8(bytes).ok());
                out.push_str(&decoded.ok_or_else(|| {
                    Fault::new("bad-value", format!("secret `{name}` is not base64 of a text"))
                })?);
            }
        }
    }
    Ok(out)
}

/// What every call carries.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// Which effect this is, for labels and for probing.
    pub effect: &'a EffectId,
    /// Which step it is for.
    pub step: &'a StepRef,
    /// How long it may take. The engine drops the call some time after that; a port should answer before.
    pub deadline: Duration,
    /// Output and progress.
    pub sink: &'a dyn Sink,
    /// Cancellation. A call that is cancelled leaves nothing of its own running and answers with a fault of kind `cancelled`.
    pub cancel: &'a dyn Cancel,
    /// Secrets.
    pub secrets: &'a dyn Secrets,
    /// A number that only grows with each owner of the lock, for fencing: a write with a smaller one is refused by whoever can.
    pub epoch: u64,
}

/// What a probe finds of an effect whose outcome was lost.
#[derive(Debug, Clone, PartialEq)]
pub enum Probe {
    /// It was done, and this is what it would have answered.
    Done(Answer),
    /// It came to its end without success, and this is what it would have said.
    Failed(Fault),
    /// It was not done.
    NotDone,
    /// It is still going on.
    Running,
    /// Nobody can say.
    Unknown(Fault),
}

/// Where instances run.
pub trait Target: Send + Sync {
    /// Finds what the artifact is: fills in digests, renders manifests. Changes nothing.
    ///
    /// # Errors
    /// `artifact-missing` and the like: better found here than halfway through.
    fn resolve<'a>(&'a self, call: Call<'a>, spec: &'a ReleaseSpec) -> PortResult<'a, ReleaseSpec>;

    /// Sees what is there of a service. `table` and `epoch` of the router are filled in by the engine.
    ///
    /// # Errors
    /// If the target can't be asked.
    fn observe<'a>(
        &'a self,
        call: Call<'a>,
        service: &'a ServiceName,
        platform_name: Option<&'a str>,
    ) -> PortResult<'a, Observation>;

    /// Has at least `count` instances of the release running with this extra environment; starts missing ones and stops none. Those with
    /// another extra environment don't count; in every list of instances those with any stand last. Does not wait for readiness.
    ///
    /// # Errors
    /// If they can't be started. What was started stays, and is found by `observe`.
    fn ensure<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        count: u32,
        extra_env: &'a BTreeMap<String, Value>,
    ) -> PortResult<'a, Vec<Instance>>;

    /// Waits until `count` instances are ready, of which `may_fail` may fail, as its health checks say.
    ///
    /// # Errors
    /// `not-ready` with the reason and the last log lines, as soon as it is clear that they won't be.
    fn await_ready<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        count: u32,
        may_fail: u32,
    ) -> PortResult<'a, Vec<Instance>>;

    /// Stops instances (all of the release if `instances` is empty): asks them to end, waits for `drain_ms`, then kills. With `old` the
    /// release itself is then removed or kept. Prunes kept releases beyond `retain`.
    ///
    /// # Errors
    /// If they can't be stopped.
    fn stop<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        instances: &'a [Instance],
        old: Option<OldRelease>,
        retain: u32,
    ) -> PortResult<'a, Vec<Instance>>;

    /// Has the platform roll its one long-lived workload of this service to the release with `count` instances, and waits until it has.
    /// Convergent: where the platform is rolling to this release already, or has done so, that is waited for or answered. `fence` is
    /// what `observe` said before the deploy. Only platforms that roll by themselves can.
    ///
    /// # Errors
    /// `not-ready` as soon as it is clear that it won't come to its end; `reverted` if the platform went back by itself; `moved` if
    /// someone else has changed the workload since; `stale-epoch`.
    fn roll<'a>(
        &'a self,
        _call: Call<'a>,
        spec: &'a ReleaseSpec,
        _count: u32,
        _policy: &'a RollPolicy,
        _fence: Option<u64>,
    ) -> PortResult<'a, Vec<Instance>> {
        Box::pin(async move {
            Err(Fault::new(
                "unsupported",
                format!("the target of `{}` does not roll by itself", spec.service),
            ))
        })
    }

    /// After a crash: has these instances be reached where `reached_at` says, for what goes on with them before it looks at them again.
    fn reach_again<'a>(&'a self, _instances: &'a [Instance]) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }

    /// Ends all instances of a service and removes all that is kept of it (`cdpipe down`); nothing there is fine. Answers how many
    /// instances were ended.
    ///
    /// # Errors
    /// If instances can't be stopped, or what is kept can't be removed.
    fn remove<'a>(&'a self, _call: Call<'a>, service: &'a ServiceName) -> PortResult<'a, usize> {
        Box::pin(async move {
            Err(Fault::new("unsupported", format!("this target can't remove `{service}` as a whole")))
        })
    }

    /// Runs a command in a container of its own, of `run.image`, where the instances are, and removes the container. Answers what
    /// it wrote to `$CDPIPE_OUTPUT`.
    ///
    /// # Errors
    /// `command-failed` with the exit status and the last lines; `image-unsupported` where nothing runs containers.
    fn run_image<'a>(
        &'a self,
        _call: Call<'a>,
        run: &'a RunAction,
    ) -> PortResult<'a, BTreeMap<String, String>> {
        Box::pin(async move {
            let image = run.image.as_deref().unwrap_or_default();
            Err(Fault::new(
                "image-unsupported",
                format!("this target can't run a command in the image {image}"),
            )
            .help("set `environment` to one with a target that runs containers, or leave out `image`"))
        })
    }

    /// After a crash: what became of the container of this effect.
    fn probe_image<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Probe> {
        Box::pin(async move {
            Probe::Unknown(Fault::new("interrupted", format!("nothing is known of {}", call.effect)))
        })
    }

    /// After a crash: ends the container of this effect, which `probe_image` found running, and removes it.
    fn stop_image<'a>(&'a self, _call: Call<'a>) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }

    /// Reads the files of a set and what is there of every object in them. Changes nothing; what can be refused is refused here.
    ///
    /// # Errors
    /// `manifest-invalid`, `manifest-changed` where a file is not the one that was pinned, `field-conflict`, `forbidden` and the like.
    fn survey<'a>(&'a self, _call: Call<'a>, spec: &'a ApplySpec) -> PortResult<'a, Surveyed> {
        Box::pin(async move { Err(takes_no_manifests(spec)) })
    }

    /// Applies the files of a set, in the order in which objects stand on each other, and waits until what they make is ready.
    /// `objects` is what `survey` found.
    ///
    /// # Errors
    /// `not-ready` with the reason and the last log lines; those of `survey`. What was changed stays changed.
    fn apply_set<'a>(
        &'a self,
        _call: Call<'a>,
        spec: &'a ApplySpec,
        _objects: &'a [ObjectWas],
    ) -> PortResult<'a, ()> {
        Box::pin(async move { Err(takes_no_manifests(spec)) })
    }

    /// Has every object of a set as it was. Convergent; what was not there is deleted, but never what holds other things.
    ///
    /// # Errors
    /// `moved` if somebody else has changed an object since, `superseded` if another apply has.
    fn take_back_set<'a>(
        &'a self,
        _call: Call<'a>,
        spec: &'a ApplySpec,
        _objects: &'a [ObjectWas],
    ) -> PortResult<'a, ()> {
        Box::pin(async move { Err(takes_no_manifests(spec)) })
    }

    /// Runs a command inside an instance.
    ///
    /// # Errors
    /// `command-failed` with the exit status and the last lines.
    fn exec<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        instance: &'a Instance,
        run: &'a RunAction,
    ) -> PortResult<'a, BTreeMap<String, String>>;

    /// The last `lines` lines of an instance's log, masked.
    ///
    /// # Errors
    /// If there is no such log.
    fn logs<'a>(
        &'a self,
        call: Call<'a>,
        service: &'a ServiceName,
        instance: &'a Instance,
        lines: usize,
    ) -> PortResult<'a, Vec<String>>;

    /// Takes the lock of a service as a lease, or renews it if it is ours. Answers an epoch that grows with each new owner.
    ///
    /// # Errors
    /// `locked` (transient) while someone else holds it, saying who, from where, and since when.
    fn lock<'a>(
        &'a self,
        call: Call<'a>,
        key: &'a LockKey,
        owner: &'a LockOwner,
        lease: Duration,
    ) -> PortResult<'a, u64>;

    /// Gives the lock back if it is ours.
    ///
    /// # Errors
    /// If the target can't be asked.
    fn unlock<'a>(&'a self, call: Call<'a>, key: &'a LockKey, owner: &'a LockOwner) -> PortResult<'a, ()>;

    /// Who holds the lock, if anyone does.
    ///
    /// # Errors
    /// If the target can't be asked.
    fn lock_owner<'a>(&'a self, call: Call<'a>, key: &'a LockKey) -> PortResult<'a, Option<LockState>>;
}

fn takes_no_manifests(spec: &ApplySpec) -> Fault {
    Fault::new("unsupported", format!("{} is a set of manifests, and this target takes none", spec.path))
        .help("apply it to an environment with `target kubernetes`")
}

/// Who holds or wants a lock.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LockOwner {
    /// The run.
    pub run: crate::id::RunId,
    /// `user@host`.
    pub who: String,
    /// Process id of the engine.
    pub pid: u32,
}

/// A lock as it is held.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LockState {
    /// By whom.
    pub owner: LockOwner,
    /// Since when, milliseconds since 1970.
    pub since_ms: u64,
    /// Until when if it is not renewed, milliseconds since 1970.
    pub expires_ms: u64,
    /// Its epoch.
    pub epoch: u64,
}

/// What steers users' traffic.
pub trait Router: Send + Sync {
    /// What the router does for this route now; `None` if it does not know it.
    ///
    /// # Errors
    /// If the router can't be asked.
    fn observe<'a>(&'a self, call: Call<'a>, route: &'a Route) -> PortResult<'a, Option<RouteTable>>;

    /// Has the router do this. `seen` is what it did when the decision was made: if it does something else by now that is not
    /// `table` either, someone has interfered.
    ///
    /// # Errors
    /// `moved` on interference, `stale-epoch` if a newer owner has written, `port-in-use` and the like.
    fn apply<'a>(
        &'a self,
        call: Call<'a>,
        table: &'a RouteTable,
        seen: Option<&'a RouteTable>,
    ) -> PortResult<'a, ()>;

    /// Waits until the router is seen to do this.
    ///
    /// # Errors
    /// If it does not in time.
    fn await_routed<'a>(&'a self, call: Call<'a>, table: &'a RouteTable) -> PortResult<'a, ()>;

    /// Waits until these instances have no request in flight, for at most `drain`; what is left then is cut. They are out of the
    /// table already.
    ///
    /// # Errors
    /// If the router can't be asked.
    fn await_drained<'a>(
        &'a self,
        call: Call<'a>,
        route: &'a Route,
        release: &'a ReleaseId,
        instances: &'a [Instance],
        drain: Duration,
    ) -> PortResult<'a, ()>;

    /// Requests that each release got since the router knows it, where it counts them.
    ///
    /// # Errors
    /// If the router can't be asked.
    fn requests<'a>(
        &'a self,
        call: Call<'a>,
        route: &'a Route,
    ) -> PortResult<'a, Option<BTreeMap<ReleaseId, u64>>>;

    /// What it counts of a release, or of all of them, as [`TrafficNumbers::numbers`] says; `None` if it counts nothing.
    ///
    /// # Errors
    /// If the router can't be asked.
    fn numbers<'a>(
        &'a self,
        _call: Call<'a>,
        _route: &'a Route,
        _release: Option<&'a ReleaseId>,
    ) -> PortResult<'a, Option<String>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Forgets a route that is closed, so that nothing is kept for it any more (`cdpipe down`). A router that is somebody else's program has
    /// nothing to forget.
    ///
    /// # Errors
    /// `stale-epoch` if a newer owner has written; if the router can't be asked.
    fn forget<'a>(&'a self, _call: Call<'a>, _route: &'a Route) -> PortResult<'a, ()> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// What routers count, for who measures: `source traffic`.
pub trait TrafficNumbers: Send + Sync {
    /// What the router counts of the scope's release (of all of its service, if it names none), as Prometheus text. On every router
    /// `requests_total{code="2xx"}` (and `1xx` to `5xx`), `connect_errors_total` and `aborted_total`. A router that keeps a histogram
    /// has `response_time_seconds` with its buckets; one that keeps a mean of the last answers has it as a plain value.
    ///
    /// # Errors
    /// Why there are none, in one sentence.
    fn numbers<'a>(
        &'a self,
        call: Call<'a>,
        scope: &'a MeasureScope,
    ) -> BoxFuture<'a, Result<String, String>>;
}

/// Answers questions about the world with numbers.
pub trait Measurer: Send + Sync {
    /// Answers all requests; one that has no data is a sample without a value, not an error. `traffic` is asked for what routers count.
    fn measure<'a>(
        &'a self,
        call: Call<'a>,
        requests: &'a [MeasureRequest],
        traffic: &'a dyn TrafficNumbers,
    ) -> BoxFuture<'a, Vec<Sample>>;
}

/// Runs shell commands.
pub trait Runner: Send + Sync {
    /// Runs it to its end and answers what it wrote to `$CDPIPE_OUTPUT`. On cancel or deadline the whole process group gets TERM,
    /// then KILL.
    ///
    /// # Errors
    /// `command-failed` with the exit status and the last lines; `cancelled`; `timed-out`.
    fn run<'a>(&'a self, call: Call<'a>, run: &'a RunAction) -> PortResult<'a, BTreeMap<String, String>>;

    /// After a crash: what became of the command of this effect.
    fn probe<'a>(&'a self, call: Call<'a>) -> BoxFuture<'a, Probe>;

    /// After a crash: ends the command of this effect, which `probe` found running, as `run` does on cancel. A runner whose commands
    /// end with the engine never answers `Probe::Running` and has nothing to do here.
    fn stop<'a>(&'a self, _call: Call<'a>) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }
}

/// An HTTP request that a step makes.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpRequest<'a> {
    /// GET, POST, …
    pub method: &'a str,
    /// Whole URL; may be a secret text.
    pub url: &'a Value,
    /// Headers; values may be secret texts.
    pub headers: &'a BTreeMap<String, Value>,
    /// Body; may be a secret text.
    pub body: Option<&'a Value>,
    /// Status codes that are a success; empty means 200 to 299.
    pub expect_status: &'a [u16],
    /// What the answer's body must contain.
    pub expect_body: Option<&'a str>,
}

/// Writes to the world outside: messages, requests, flags.
pub trait Messenger: Send + Sync {
    /// Sends an HTTP request and answers its status.
    ///
    /// # Errors
    /// `http-failed` with status and the first lines of the answer.
    fn http<'a>(&'a self, call: Call<'a>, request: HttpRequest<'a>) -> PortResult<'a, u16>;

    /// Sends a message.
    ///
    /// # Errors
    /// `notify-failed` with the status.
    fn notify<'a>(
        &'a self,
        call: Call<'a>,
        channel: Channel,
        url: &'a Value,
        headers: &'a BTreeMap<String, Value>,
        text: &'a str,
        fields: &'a BTreeMap<String, String>,
    ) -> PortResult<'a, ()>;

    /// Sets a flag (`None` removes it), reads it back where the provider can, and answers what it was before.
    ///
    /// # Errors
    /// `flag-failed`.
    fn set_flag<'a>(
        &'a self,
        call: Call<'a>,
        provider: &'a FlagProvider,
        flag: &'a str,
        value: Option<&'a str>,
    ) -> PortResult<'a, Option<String>>;
}
