//! `stop`: containers end, and are removed or kept; older releases that were kept are pruned.

use super::Containers;
use super::found::Found;
use crate::client::Session;
use crate::labels;
use bollard::query_parameters::StopContainerOptions;
use cdpipe_model::observe::Instance;
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::strategy::OldRelease;
use cdpipe_model::{Fault, ServiceName};
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::time::Duration;

/// Beyond the drain time, how long the engine may take to kill what is left.
const END_WAIT: Duration = Duration::from_secs(30);

impl Containers {
    pub(super) async fn stop_containers(
        &self,
        session: Session<'_>,
        spec: &ReleaseSpec,
        chosen: &[Instance],
        old: Option<OldRelease>,
        retain: u32,
    ) -> Result<Vec<Instance>, Fault> {
        let all = self.of_release(&session, spec).await?;
        let is_chosen =
            |found: &Found| chosen.is_empty() || chosen.iter().any(|chosen| chosen.id.as_str() == found.name);
        let (ending, staying): (Vec<&Found>, Vec<&Found>) = all.iter().partition(|found| is_chosen(found));
        self.end(&session, &ending, spec.drain_ms).await?;
        let last = !staying.iter().any(|found| found.is_wanted());
        let gone: Vec<&Found> = match old {
            Some(OldRelease::Remove) if last => all.iter().collect(),
            // One of them keeps the release: it is brought back from what it says.
            Some(OldRelease::Stop | OldRelease::ScaleToZero) | None if last && staying.is_empty() => {
                ending.iter().skip(1).copied().collect()
            }
            _ => ending,
        };
        for result in join_all(gone.iter().map(|found| self.delete(&session, &found.name))).await {
            result?;
        }
        self.prune(&session, &spec.service, retain).await?;
        let found = self.of_release(&session, spec).await?;
        self.instances(&session, spec, &found).await
    }

    /// Asks all of them to end at once, and waits until they have.
    async fn end(&self, session: &Session<'_>, ending: &[&Found], drain_ms: u64) -> Result<(), Fault> {
        let seconds = i32::try_from(drain_ms.div_ceil(1000)).unwrap_or(i32::MAX);
        let within = Duration::from_millis(drain_ms).saturating_add(END_WAIT);
        let up: Vec<&&Found> = ending.iter().filter(|found| found.is_up()).collect();
        let stops = up.iter().map(|found| async {
            let options = StopContainerOptions { t: Some(seconds), signal: None };
            let stop = session.api.stop_container(&found.name, Some(options));
            match session.ask_within("stop a container", within, stop).await {
                Err(fault) if fault.kind != "not-found" => Err(fault),
                _ => Ok(()),
            }
        });
        for result in join_all(stops).await {
            result?;
        }
        if !up.is_empty() {
            session.call.sink.progress(&format!("{} stopped", up.len()));
        }
        Ok(())
    }

    /// Removes kept releases beyond `retain`, the longest unused first. Never one with something that runs.
    async fn prune(&self, session: &Session<'_>, service: &ServiceName, retain: u32) -> Result<(), Fault> {
        let labels =
            [(labels::ENVIRONMENT, self.config.environment.as_str()), (labels::SERVICE, service.as_str())];
        let mut releases: BTreeMap<String, Vec<Found>> = BTreeMap::new();
        for found in self.labelled(session, &labels).await? {
            releases.entry(found.label(labels::RELEASE).to_owned()).or_default().push(found);
        }
        let mut kept: Vec<Vec<Found>> =
            releases.into_values().filter(|all| !all.iter().any(Found::is_wanted)).collect();
        let used = |all: &Vec<Found>| all.iter().map(|found| found.finished.clone()).max();
        kept.sort_by_key(|all| std::cmp::Reverse(used(all)));
        for all in kept.into_iter().skip(usize::try_from(retain).unwrap_or(usize::MAX)) {
            for found in all {
                self.delete(session, &found.name).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn remove_service(
        &self,
        session: Session<'_>,
        service: &ServiceName,
    ) -> Result<usize, Fault> {
        let labels =
            [(labels::ENVIRONMENT, self.config.environment.as_str()), (labels::SERVICE, service.as_str())];
        let all = self.labelled(&session, &labels).await?;
        let up = all.iter().filter(|found| found.is_up()).count();
        // The router was drained before; what runs is asked to end, and has as long as its release says.
        let drain_ms = all
            .iter()
            .filter_map(|found| serde_json::from_str::<ReleaseSpec>(found.label(labels::SPEC)).ok())
            .map(|spec| spec.drain_ms)
            .max()
            .unwrap_or(10_000);
        self.end(&session, &all.iter().collect::<Vec<_>>(), drain_ms).await?;
        for found in &all {
            self.delete(&session, &found.name).await?;
        }
        Ok(up)
    }
}
