//! The target over all machines of an environment: who is asked what, and what their answers mean together.

mod artifact;
mod lock;

use crate::outage::Outages;
use crate::protocol::{Reply, Request};
use crate::session::Session;
use crate::spread;
use crate::ssh::{HostName, SshConfig};
use cdpipe_host::Packed;
use cdpipe_model::action::RunAction;
use cdpipe_model::observe::{Instance, Observation, ObservedRelease};
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::{Call, LockOwner, LockState, PortResult, Target};
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::strategy::OldRelease;
use cdpipe_model::{Fault, InstanceId, ServiceName, Value};
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// So long before its deadline a call whose connection was lost says so.
const ANSWER_MARGIN: Duration = Duration::from_millis(1500);

/// What the target needs to know.
#[derive(Debug, Clone)]
pub struct HostsConfig {
    /// The machines, in the order in which instances are spread over them.
    pub hosts: Vec<HostName>,
    /// Where a router reaches each of them, in the same order; empty asks each for the address that its SSH server is reached at.
    pub addresses: Vec<String>,
    /// How they are reached.
    pub ssh: SshConfig,
    /// Folder that paths in the pipeline are relative to.
    pub base: PathBuf,
}

struct Machine {
    name: HostName,
    /// What its instances' ids end with.
    label: String,
    address: Option<String>,
    session: Mutex<Option<Arc<Session>>>,
}

/// Machines over SSH.
pub struct Hosts {
    config: HostsConfig,
    machines: Vec<Arc<Machine>>,
    names: Vec<String>,
    outages: Outages,
    /// Artifacts that were looked at in this process: reading and hashing them takes time.
    packed: Mutex<BTreeMap<String, (PathBuf, Packed)>>,
}

impl Hosts {
    /// The target of one environment. Nothing is connected until it is used.
    pub fn new(config: HostsConfig) -> Self {
        let mut machines: Vec<Arc<Machine>> = Vec::new();
        for (index, name) in config.hosts.iter().enumerate() {
            let plain =
                |text: &str| text.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '.', "-");
            let mut label = plain(&name.host);
            if machines.iter().any(|machine| machine.label == label) {
                label = format!(
                    "{label}-{}",
                    name.port.map_or_else(|| index.to_string(), |port| port.to_string())
                );
            }
            machines.push(Arc::new(Machine {
                name: name.clone(),
                label,
                address: config.addresses.get(index).cloned(),
                session: Mutex::new(None),
            }));
        }
        let names = machines.iter().map(|machine| machine.name.written.clone()).collect();
        Self { config, machines, names, outages: Outages::default(), packed: Mutex::default() }
    }

    /// The first machine, for people.
    pub(crate) fn first_name(&self) -> String {
        self.names.first().cloned().unwrap_or_default()
    }

    /// Has the first machine do something.
    pub(crate) async fn ask_first(
        &self,
        call: Call<'_>,
        request: Request,
        upload: Option<Vec<u8>>,
    ) -> Result<Reply, Fault> {
        let machine = self.machines.first().ok_or_else(|| Fault::new("host-unfit", "there is no machine"))?;
        let upload = upload.map(|bytes| Box::new(std::io::Cursor::new(bytes)) as Box<dyn Read + Send>);
        self.session(machine).await?.call(call, &request, upload).await
    }

    /// The same of what can be asked twice: once more where the connection was lost.
    pub(crate) async fn ask_first_twice(&self, call: Call<'_>, request: Request) -> Result<Reply, Fault> {
        if self.machines.is_empty() {
            return Err(Fault::new("host-unfit", "there is no machine"));
        }
        self.ask(0, call, &request).await
    }

    /// The connection to a machine. Where there is none a task of its own makes it: bringing the agent may take longer than the call that
    /// needs it may, and the next call then waits for the same upload instead of beginning another.
    async fn session(&self, machine: &Arc<Machine>) -> Result<Arc<Session>, Fault> {
        let (machine, ssh) = (Arc::clone(machine), self.config.ssh.clone());
        let connecting = tokio::spawn(async move {
            let mut held = machine.session.lock().await;
            if let Some(session) = held.as_ref().filter(|session| !session.is_over()) {
                return Ok(Arc::clone(session));
            }
            *held = None;
            let session = Arc::new(Session::open(&ssh, &machine.name).await?);
            *held = Some(Arc::clone(&session));
            Ok(session)
        });
        connecting
            .await
            .map_err(|error| Fault::new("internal", format!("connecting ended early: {error}")))?
    }

    /// Has one machine do something. What can be asked twice is asked again, once, where the connection was lost.
    async fn ask(&self, index: usize, call: Call<'_>, request: &Request) -> Result<Reply, Fault> {
        if let Some(fault) = self.outages.still(index) {
            return Err(fault);
        }
        let machine = &self.machines[index];
        let once = async || {
            let session = tokio::select! {
                session = self.session(machine) => session?,
                () = call.cancel.cancelled() => return Err(Fault::new("cancelled", "cancelled while connecting")),
            };
            session.call(call, request, None).await
        };
        let begun = Instant::now();
        let mut answer = once().await;
        let twice = !matches!(request, Request::Exec { .. });
        if twice && matches!(&answer, Err(fault) if fault.kind == "host-lost") {
            call.sink.progress(&format!("{}: the connection was lost, another try", machine.name.written));
            // Whoever waits must hear which machine it is before it has waited for too long.
            let left = call.deadline.saturating_sub(begun.elapsed() + ANSWER_MARGIN);
            if let Ok(second) = tokio::time::timeout(left, once()).await {
                answer = second;
            }
        }
        self.outages.note(index, &answer);
        answer
    }

    /// Has several machines do something at once. Answers of those that are there.
    async fn ask_all(
        &self,
        call: Call<'_>,
        requests: Vec<(usize, Request)>,
    ) -> Result<Vec<(usize, Reply)>, Fault> {
        let asking =
            requests.into_iter().map(async |(index, request)| (index, self.ask(index, call, &request).await));
        let answers = join_all(asking).await;
        self.outages.those_there(&self.names, answers)
    }

    fn everywhere(&self, request: &Request) -> Vec<(usize, Request)> {
        (0..self.machines.len()).map(|index| (index, request.clone())).collect()
    }

    /// An instance as the rest of the world knows it: with the machine in its id, and an address that leads there.
    async fn seen_from_outside(&self, index: usize, instance: Instance) -> Instance {
        let machine = &self.machines[index];
        let address = match (&machine.address, machine.session.lock().await.as_ref()) {
            (Some(address), _) => Some(address.clone()),
            (None, Some(session)) => session.address.clone(),
            (None, None) => None,
        };
        let address = match (instance.address, address) {
            (Some(there), Some(address)) => {
                there.rsplit_once(':').map(|(_, port)| match address.contains(':') {
                    true => format!("[{address}]:{port}"),
                    false => format!("{address}:{port}"),
                })
            }
            (there, _) => there,
        };
        Instance { id: self.id_outside(index, &instance.id), address, ..instance }
    }

    fn id_outside(&self, index: usize, id: &InstanceId) -> InstanceId {
        InstanceId(format!("{id}.{}", self.machines[index].label))
    }

    /// Which machine an instance is on, and its id there.
    fn machine_of(&self, id: &InstanceId) -> Option<(usize, InstanceId)> {
        let found = self.machines.iter().enumerate().filter_map(|(index, machine)| {
            let inside = id.as_str().strip_suffix(machine.label.as_str())?.strip_suffix('.')?;
            Some((index, machine.label.len(), inside))
        });
        found.max_by_key(|(_, length, _)| *length).map(|(index, _, inside)| (index, InstanceId::from(inside)))
    }

    fn must_know(&self, instance: &Instance) -> Result<(usize, Instance), Fault> {
        let (index, id) = self.machine_of(&instance.id).ok_or_else(|| {
            Fault::new(
                "instance-missing",
                format!("{} is on none of the machines of this environment", instance.id),
            )
            .help("the list `hosts` of the target was changed since it was started")
        })?;
        Ok((index, Instance { id, ..instance.clone() }))
    }

    /// All instances that several machines answered, in one list.
    async fn together(&self, answers: Vec<(usize, Reply)>) -> Result<Vec<Instance>, Fault> {
        let mut lists = Vec::new();
        for (index, answer) in answers {
            let Reply::Instances { instances, canaries } = answer else { return Err(strange()) };
            lists.push(self.list(index, instances, &canaries).await);
        }
        Ok(spread::in_order(lists))
    }

    async fn list(&self, index: usize, instances: Vec<Instance>, canaries: &[InstanceId]) -> spread::List {
        let mut outside = Vec::new();
        for instance in instances {
            outside.push(self.seen_from_outside(index, instance).await);
        }
        (outside, canaries.iter().map(|id| self.id_outside(index, id)).collect())
    }

    async fn observe_all(
        &self,
        call: Call<'_>,
        service: &ServiceName,
        platform_name: Option<&str>,
    ) -> Result<Observation, Fault> {
        let request =
            Request::Observe { service: service.clone(), platform_name: platform_name.map(str::to_owned) };
        let answers = self.ask_all(call, self.everywhere(&request)).await?;
        let mut unmanaged = Vec::new();
        let mut releases: Vec<(ObservedRelease, Vec<spread::List>)> = Vec::new();
        for (index, answer) in answers {
            let Reply::Observed { observation, canaries } = answer else { return Err(strange()) };
            let name = &self.names[index];
            unmanaged.extend(observation.unmanaged.into_iter().map(|found| format!("{found} on {name}")));
            // A release that this machine made between two that are known goes between them.
            let mut after = 0;
            for release in observation.releases {
                let list = self.list(index, release.instances, &canaries).await;
                let at = match releases.iter().position(|(known, _)| known.id == release.id) {
                    Some(at) => at,
                    None => {
                        let empty = ObservedRelease {
                            wanted: 0,
                            instances: Vec::new(),
                            id: release.id,
                            spec: release.spec,
                        };
                        releases.insert(after, (empty, Vec::new()));
                        after
                    }
                };
                let (known, lists) = &mut releases[at];
                known.wanted = known.wanted.saturating_add(release.wanted);
                lists.push(list);
                after = at + 1;
            }
        }
        let releases = releases
            .into_iter()
            .map(|(release, lists)| ObservedRelease { instances: spread::in_order(lists), ..release })
            .collect();
        Ok(Observation { releases, unmanaged, table: None, fence: None, autoscaled: None })
    }

    /// How many instances of a release run on each machine that is there, and whether it wants the artifact.
    async fn survey(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        extra_env: &BTreeMap<String, Value>,
    ) -> Result<Vec<(usize, u32, bool)>, Fault> {
        let request = Request::Survey { spec: spec.clone(), extra_env: extra_env.clone() };
        let answers = self.ask_all(call, self.everywhere(&request)).await?;
        answers
            .into_iter()
            .map(|(index, answer)| match answer {
                Reply::Surveyed { running, wants_upload } => Ok((index, running, wants_upload)),
                _ => Err(strange()),
            })
            .collect()
    }

    async fn ensure_all(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        count: u32,
        extra_env: &BTreeMap<String, Value>,
    ) -> Result<Vec<Instance>, Fault> {
        let there = self.survey(call, spec, extra_env).await?;
        let mut running = vec![None; self.machines.len()];
        for (index, found, _) in &there {
            running[*index] = Some(*found);
        }
        let wanted = spread::wanted(&running, count);
        let uploads: Vec<usize> = there
            .iter()
            .filter(|(index, _, wants)| *wants && wanted[*index] > 0)
            .map(|(index, ..)| *index)
            .collect();
        if !uploads.is_empty() {
            self.upload(call, spec, &uploads).await?;
        }
        // All of them, also those that get none: each answers what runs there.
        let requests = there.iter().map(|(index, ..)| {
            let count = wanted[*index];
            let request = if count > 0 {
                Request::Ensure { spec: spec.clone(), count, extra_env: extra_env.clone() }
            } else {
                // What is there of it, without making a release where none is wanted.
                Request::AwaitReady { spec: spec.clone(), count: 0, may_fail: 0 }
            };
            (*index, request)
        });
        let answers = self.ask_all(call, requests.collect()).await?;
        self.together(answers).await
    }

    async fn await_all(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        count: u32,
        may_fail: u32,
    ) -> Result<Vec<Instance>, Fault> {
        let observation = self.observe_all(call, &spec.service, spec.platform_name.as_deref()).await?;
        let id = spec.id();
        let mut running = vec![0_u32; self.machines.len()];
        for instance in observation
            .releases
            .iter()
            .filter(|release| release.id == id)
            .flat_map(|release| &release.instances)
        {
            if let Some((index, _)) = self.machine_of(&instance.id) {
                running[index] += 1;
            }
        }
        let awaited = spread::awaited(&running, count);
        let requests =
            (0..self.machines.len()).filter(|index| self.outages.still(*index).is_none()).map(|index| {
                let count = awaited[index];
                (index, Request::AwaitReady { spec: spec.clone(), count, may_fail: may_fail.min(count) })
            });
        let answers = self.ask_all(call, requests.collect()).await?;
        let instances = self.together(answers).await?;
        let ready =
            u32::try_from(instances.iter().filter(|instance| instance.ready).count()).unwrap_or(u32::MAX);
        if ready.saturating_add(may_fail) < count {
            return Err(Fault::new(
                "not-ready",
                format!(
                    "{ready} of {count} instances of {} are ready on all machines together",
                    spec.service
                ),
            )
            .help("`cdpipe status` shows which; `cdpipe logs` shows what they said"));
        }
        Ok(instances)
    }

    async fn stop_all(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        chosen: &[Instance],
        old: Option<OldRelease>,
        retain: u32,
    ) -> Result<Vec<Instance>, Fault> {
        let mut by_machine: BTreeMap<usize, Vec<Instance>> = BTreeMap::new();
        for instance in chosen {
            let (index, inside) = self.must_know(instance)?;
            by_machine.entry(index).or_default().push(inside);
        }
        let requests = (0..self.machines.len()).map(|index| {
            let request = match (chosen.is_empty(), by_machine.remove(&index)) {
                (true, _) => Request::Stop { spec: spec.clone(), instances: Vec::new(), old, retain },
                (false, Some(instances)) => Request::Stop { spec: spec.clone(), instances, old, retain },
                // Nothing of it ends here; an empty list would mean all of them.
                (false, None) => Request::AwaitReady { spec: spec.clone(), count: 0, may_fail: 0 },
            };
            (index, request)
        });
        let answers = self.ask_all(call, requests.collect()).await?;
        self.together(answers).await
    }
}

pub(crate) fn strange() -> Fault {
    Fault::new("internal", "the agent answered something else than it was asked")
}

impl Target for Hosts {
    fn resolve<'a>(&'a self, call: Call<'a>, spec: &'a ReleaseSpec) -> PortResult<'a, ReleaseSpec> {
        Box::pin(self.resolve_all(call, spec))
    }

    fn observe<'a>(
        &'a self,
        call: Call<'a>,
        service: &'a ServiceName,
        platform_name: Option<&'a str>,
    ) -> PortResult<'a, Observation> {
        Box::pin(self.observe_all(call, service, platform_name))
    }

    fn ensure<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        count: u32,
        extra_env: &'a BTreeMap<String, Value>,
    ) -> PortResult<'a, Vec<Instance>> {
        Box::pin(self.ensure_all(call, spec, count, extra_env))
    }

    fn await_ready<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        count: u32,
        may_fail: u32,
    ) -> PortResult<'a, Vec<Instance>> {
        Box::pin(self.await_all(call, spec, count, may_fail))
    }

    fn stop<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        instances: &'a [Instance],
        old: Option<OldRelease>,
        retain: u32,
    ) -> PortResult<'a, Vec<Instance>> {
        Box::pin(self.stop_all(call, spec, instances, old, retain))
    }

    fn remove<'a>(&'a self, call: Call<'a>, service: &'a ServiceName) -> PortResult<'a, usize> {
        Box::pin(async move {
            let request = Request::Remove { service: service.clone() };
            let answers = self.ask_all(call, self.everywhere(&request)).await?;
            Ok(answers
                .into_iter()
                .map(|(_, answer)| if let Reply::Count { count } = answer { count } else { 0 })
                .sum())
        })
    }

    fn exec<'a>(
        &'a self,
        call: Call<'a>,
        spec: &'a ReleaseSpec,
        instance: &'a Instance,
        run: &'a RunAction,
    ) -> PortResult<'a, BTreeMap<String, String>> {
        Box::pin(async move {
            let (index, instance) = self.must_know(instance)?;
            match self
                .ask(index, call, &Request::Exec { spec: spec.clone(), instance, run: run.clone() })
                .await?
            {
                Reply::Outputs { outputs } => Ok(outputs),
                _ => Err(strange()),
            }
        })
    }

    fn logs<'a>(
        &'a self,
        call: Call<'a>,
        service: &'a ServiceName,
        instance: &'a Instance,
        lines: usize,
    ) -> PortResult<'a, Vec<String>> {
        Box::pin(async move {
            let (index, instance) = self.must_know(instance)?;
            match self.ask(index, call, &Request::Logs { service: service.clone(), instance, lines }).await? {
                Reply::Lines { lines } => Ok(lines),
                _ => Err(strange()),
            }
        })
    }

    fn lock<'a>(
        &'a self,
        call: Call<'a>,
        key: &'a LockKey,
        owner: &'a LockOwner,
        lease: Duration,
    ) -> PortResult<'a, u64> {
        Box::pin(self.lock_all(call, key, owner, lease))
    }

    fn unlock<'a>(&'a self, call: Call<'a>, key: &'a LockKey, owner: &'a LockOwner) -> PortResult<'a, ()> {
        Box::pin(self.unlock_all(call, key, owner))
    }

    fn lock_owner<'a>(&'a self, call: Call<'a>, key: &'a LockKey) -> PortResult<'a, Option<LockState>> {
        Box::pin(self.lock_owner_of(call, key))
    }
}
