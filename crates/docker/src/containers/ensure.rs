//! `ensure`: at least so many containers of a release.
//!
//! Names follow from what a container is, so a container that a killed cdpipe has made is found, and one that is being made at this very
//! moment by a request of before is met as a conflict.

use super::body::Making;
use super::found::Found;
use super::{Containers, Publish, not_an_image};
use crate::client::Session;
use crate::{images, labels};
use bollard::query_parameters::{CreateContainerOptions, RemoveContainerOptions, StartContainerOptions};
use cdpipe_model::observe::Instance;
use cdpipe_model::ports::expose;
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::{Fault, Value};
use futures_util::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::TcpListener;
use std::time::Duration;

/// More instances of one release than this on one engine are a mistake.
const INSTANCES_LIMIT: u32 = 500;
/// Below the ports that the kernel hands out, so that nobody has one by accident.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// Ports that are tried for one container.
const PORT_TRIES: u32 = 30;
/// How long a container may take to be made or started on a machine that is busy.
const START_LIMIT: Duration = Duration::from_secs(60);

impl Containers {
    pub(super) async fn ensure_containers(
        &self,
        session: Session<'_>,
        spec: &ReleaseSpec,
        count: u32,
        extra: &BTreeMap<String, Value>,
    ) -> Result<Vec<Instance>, Fault> {
        if count > INSTANCES_LIMIT {
            return Err(Fault::new(
                "too-many-instances",
                format!(
                    "{count} instances of {} are wanted; the target docker runs at most {INSTANCES_LIMIT}",
                    spec.service
                ),
            ));
        }
        let Artifact::Image { reference, digest, .. } = &spec.artifact else {
            return Err(not_an_image(spec));
        };
        // Secrets first: without them nothing should be changed.
        let mut env = Vec::new();
        for (name, value) in spec.env.iter().filter(|(name, _)| !extra.contains_key(*name)).chain(extra) {
            env.push(format!("{name}={}", expose(value, session.call.secrets).await?));
        }
        self.ensure_network(&session).await?;
        let found = self.of_release(&session, spec).await?;
        let (same, _): (Vec<&Found>, Vec<&Found>) = found.iter().partition(|found| found.extra() == *extra);
        let up: BTreeSet<u32> =
            same.iter().filter(|found| found.is_up()).map(|found| found.number()).collect();
        let running = u32::try_from(same.iter().filter(|found| found.is_up()).count()).unwrap_or(u32::MAX);
        let mut missing = count.saturating_sub(running);
        // Those that were there before cdpipe are brought back as they are: nobody here knows all that they were made with.
        for found in same.iter().filter(|found| !found.is_up() && found.is_adopted()) {
            if missing == 0 {
                break;
            }
            let start = session.api.start_container(&found.name, None::<StartContainerOptions>);
            session.ask_within("start a container", START_LIMIT, start).await?;
            missing -= 1;
        }
        if missing > 0 {
            let docker_config = &self.config.docker_config;
            let image =
                images::pinned(&session, reference, digest.as_deref(), docker_config, &self.masker).await?;
            let making = Making { spec, image, env, extra, effect: session.call.effect };
            let numbers = (1..).filter(|number| !up.contains(number));
            let started = numbers
                .take(usize::try_from(missing).unwrap_or(0))
                .map(|number| self.make(&session, &making, number));
            for result in join_all(started).await {
                result?;
            }
        }
        let found = self.of_release(&session, spec).await?;
        self.instances(&session, spec, &found).await
    }

    /// Has one container of this number run, whatever is there under its name.
    async fn make(&self, session: &Session<'_>, making: &Making<'_>, number: u32) -> Result<(), Fault> {
        let name = self.name(making.spec, !making.extra.is_empty(), number);
        if let Some(found) = self.container(session, &name).await? {
            if found.label(labels::RELEASE) != making.spec.id().as_str() {
                return Err(Fault::new(
                    "name-taken",
                    format!("a container {name} is there that is not of this release"),
                )
                .help(format!("remove it: docker rm -f {name}")));
            }
            if found.is_up() {
                return Ok(());
            }
            // Kept from before, or its start was cut short: secrets may have changed, so it is made again.
            self.delete(session, &name).await?;
        }
        for attempt in 0..PORT_TRIES {
            let port = self.choose_port(&name, attempt);
            let body = self.body(making, &name, port)?;
            let options = CreateContainerOptions { name: Some(name.clone()), platform: String::new() };
            let create = session.api.create_container(Some(options), body);
            match session.ask_within("make a container", START_LIMIT, create).await {
                Ok(_) => {}
                // A request of a cdpipe that was killed: it has the same name, so it is the same.
                Err(fault) if fault.kind == "conflict" => {}
                Err(fault) => return Err(fault),
            }
            let start = session.api.start_container(&name, None::<StartContainerOptions>);
            match session.ask_within("start a container", START_LIMIT, start).await {
                Ok(()) => return Ok(()),
                Err(fault) if is_port_taken(&fault) => self.delete(session, &name).await?,
                Err(fault) => return Err(self.not_started(session, making, &name, fault).await),
            }
        }
        Err(Fault::new("port-in-use", format!("no free port was found for the container {name}"))
            .help(format!("ports {} to {} of the engine's machine seem to be taken", PORTS.start, PORTS.end)))
    }

    async fn not_started(
        &self,
        session: &Session<'_>,
        making: &Making<'_>,
        name: &str,
        fault: Fault,
    ) -> Fault {
        if !matches!(fault.kind.as_str(), "engine-refused" | "not-found") {
            return fault;
        }
        let lines = self.last_lines_of(session, name, 20).await.unwrap_or_default();
        let reference = match &making.spec.artifact {
            Artifact::Image { reference, .. } => reference.as_str(),
            _ => "",
        };
        Fault::new(
            "not-ready",
            format!("an instance of {} did not start: {}", making.spec.service, fault.message),
        )
        .details(lines)
        .help(format!("see whether the image {reference} has that program, and the mounts are there"))
    }

    pub(super) async fn delete(&self, session: &Session<'_>, name: &str) -> Result<(), Fault> {
        let options = RemoveContainerOptions { force: true, v: true, link: false };
        let remove = session.api.remove_container(name, Some(options));
        match session.ask_within("remove a container", START_LIMIT, remove).await {
            Ok(()) => Ok(()),
            Err(fault) if fault.kind == "not-found" => Ok(()),
            // It is being removed already.
            Err(fault) if fault.kind == "conflict" => self.await_gone(session, name).await,
            Err(fault) => Err(fault),
        }
    }

    async fn await_gone(&self, session: &Session<'_>, name: &str) -> Result<(), Fault> {
        let begun = std::time::Instant::now();
        while self.container(session, name).await?.is_some() {
            if begun.elapsed() > START_LIMIT {
                return Err(Fault::new(
                    "conflict",
                    format!("the container {name} is being removed, and stays"),
                )
                .help(format!("docker rm -f {name}")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// A port that follows from the name, so that a container that is made again is found where it was; another one for each attempt.
    fn choose_port(&self, name: &str, attempt: u32) -> u16 {
        let Publish::On(address) = &self.config.publish else { return 0 };
        let span = u64::from(PORTS.end - PORTS.start);
        for step in 0..64_u32 {
            let mut hasher = DefaultHasher::new();
            (name, attempt, step).hash(&mut hasher);
            let port = PORTS.start + u16::try_from(hasher.finish() % span).unwrap_or(0);
            let free = !self.config.engine.is_here() || TcpListener::bind((address.as_str(), port)).is_ok();
            if free {
                return port;
            }
        }
        PORTS.start
    }
}

fn is_port_taken(fault: &Fault) -> bool {
    fault.message.contains("port is already allocated") || fault.message.contains("address already in use")
}
