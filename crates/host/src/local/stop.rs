//! `stop`: instances end, and their release is removed, kept or left.

use super::ensure::clear_strays;
use super::{Local, instances};
use crate::durable::remove_folder;
use crate::process::ProcessRef;
use crate::state::{
    InstanceState, Phase, ReleaseRecord, ReleaseState, ServiceState, StopRequest, SwitchedOff,
};
use cdpipe_model::Fault;
use cdpipe_model::observe::Instance;
use cdpipe_model::ports::Call;
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::strategy::OldRelease;
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// How long a supervisor may take beyond the drain time to kill what is left and end itself.
const END_WAIT: Duration = Duration::from_secs(10);

impl Local {
    pub(super) async fn stop_instances(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        chosen: &[Instance],
        old: Option<OldRelease>,
        retain: u32,
    ) -> Result<Vec<Instance>, Fault> {
        let service = self.state.service(&spec.service)?;
        if !service.folder().exists() {
            return Ok(Vec::new());
        }
        let _lock = self.change(call, &spec.service, &service).await?;
        let release = service.release(&spec.id())?;
        let Some(mut record) = release.record()? else {
            self.prune(call, &service, retain).await?;
            return Ok(Vec::new());
        };
        let mut ending = Vec::new();
        let mut staying = 0_u32;
        for instance in release.instances()? {
            let id = instance.config().map(|config| config.id);
            if chosen.is_empty() || chosen.iter().any(|chosen| Some(&chosen.id) == id.as_ref()) {
                ending.push(instance);
            } else if instance.is_alive() && !instance.is_ending() {
                staying += 1;
            }
        }
        // What should be is written down before it is done: a stop that is cut short is finished by the next one.
        record.wanted = record.wanted.min(staying);
        record.effect = call.effect.clone();
        if staying == 0 {
            record.off = match old {
                Some(OldRelease::Remove) => Some(SwitchedOff::Removing),
                Some(OldRelease::Stop | OldRelease::ScaleToZero) => Some(SwitchedOff::Kept),
                None => record.off,
            };
        }
        release.write(&record)?;
        self.end(call, &ending, spec.drain_ms).await?;
        if record.off == Some(SwitchedOff::Removing) {
            remove_folder(release.folder())?;
        }
        self.prune(call, &service, retain).await?;
        if release.folder().exists() { instances(&release) } else { Ok(Vec::new()) }
    }

    /// Ends all instances of a release and removes it; answers how many ran.
    pub(super) async fn end_release(
        &self,
        call: Call<'_>,
        release: &ReleaseState,
        mut record: ReleaseRecord,
    ) -> Result<usize, Fault> {
        record.wanted = 0;
        record.off = Some(SwitchedOff::Removing);
        release.write(&record)?;
        let all = release.instances()?;
        let running = all.iter().filter(|instance| instance.is_alive()).count();
        self.end(call, &all, record.spec.drain_ms).await?;
        remove_folder(release.folder())?;
        Ok(running)
    }

    /// Asks all of them to end at once, waits, and removes what they leave.
    async fn end(&self, call: Call<'_>, ending: &[InstanceState], drain_ms: u64) -> Result<(), Fault> {
        for instance in ending {
            ask_to_end(instance, drain_ms)?;
        }
        let until = Instant::now() + Duration::from_millis(drain_ms) + END_WAIT;
        let mut said = None;
        loop {
            let left: Vec<&InstanceState> = ending.iter().filter(|instance| instance.is_alive()).collect();
            if said != Some(left.len()) {
                said = Some(left.len());
                call.sink.progress(&format!("{} of {} stopped", ending.len() - left.len(), ending.len()));
            }
            if left.is_empty() {
                break;
            }
            if call.cancel.is_cancelled() {
                return Err(Fault::new(
                    "cancelled",
                    "cancelled while instances were ending; they end by themselves",
                ));
            }
            if Instant::now() >= until {
                // The supervisor hangs: without it the kernel ends the instance.
                for instance in left {
                    if let Some(status) = instance.status() {
                        let _ = status.supervisor.signal(Signal::KILL);
                    }
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for instance in ending {
            if instance.is_alive() {
                return Err(Fault::new(
                    "stop-failed",
                    format!("{} does not end", instance.folder().display()),
                )
                .help("see what its processes are doing, and stop again"));
            }
            if !instance.status().is_some_and(|status| status.phase == Phase::Stopped) {
                // Its supervisor did not get to clear up behind it.
                clear_strays(instance).await;
            }
            super::units::forget(instance).await;
            remove_folder(instance.folder())?;
        }
        Ok(())
    }

    /// Finishes removals that were cut short, and removes kept releases beyond `retain`, the longest unused first. Never one with
    /// instances.
    async fn prune(&self, call: Call<'_>, service: &ServiceState, retain: u32) -> Result<(), Fault> {
        let mut kept = Vec::new();
        for (release, record) in service.releases()? {
            if record.off == Some(SwitchedOff::Removing) {
                self.end_release(call, &release, record).await?;
                continue;
            }
            let idle = record.wanted == 0 && record.off.is_some();
            if idle && !release.instances()?.iter().any(InstanceState::is_alive) {
                kept.push((record.used, release, record));
            }
        }
        kept.sort_by_key(|(used, _, _)| std::cmp::Reverse(*used));
        for (_, release, record) in kept.into_iter().skip(usize::try_from(retain).unwrap_or(usize::MAX)) {
            self.end_release(call, &release, record).await?;
        }
        Ok(())
    }
}

fn ask_to_end(instance: &InstanceState, drain_ms: u64) -> Result<(), Fault> {
    if !instance.is_alive() {
        return Ok(());
    }
    instance.write_stop_request(StopRequest { drain_ms })?;
    let supervisor: Option<ProcessRef> = instance.status().map(|status| status.supervisor);
    match supervisor {
        Some(supervisor) => supervisor.signal(Signal::TERM).map(|_| ()).map_err(|error| {
            Fault::new(
                "stop-failed",
                format!("cannot ask the supervisor (process {}) to end: {error}", supervisor.pid),
            )
        }),
        // It holds its lock and has not spoken yet: the loop that waits will end it.
        None => Ok(()),
    }
}
