//! `ensure`: the release is here, and at least so many instances of it have a supervisor.
//!
//! All of it happens under the service's lock, and each step leaves something that the next call can go on from: the copied artifact
//! appears whole, a release counts as there once its record is, an instance is there as long as its supervisor holds its lock.

use super::start::start;
use super::{Local, blocking, instances};
use crate::artifact::{Manifest, Place, copy};
use crate::durable::{io_fault, make_folder};
use crate::process;
use crate::resolve;
use crate::state::{
    FORMAT, InstanceConfig, InstanceState, Launch, ReleaseRecord, ReleaseState, ServiceState,
};
use crate::supervise::Handover;
use cdpipe_model::observe::Instance;
use cdpipe_model::ports::Call;
use cdpipe_model::release::{Artifact, ReleaseSpec};
use cdpipe_model::{Fault, InstanceId, Value};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::time::Duration;

/// More instances of one release than this on one machine are a mistake.
const INSTANCES_LIMIT: u32 = 1_000;

impl Local {
    pub(super) async fn ensure_instances(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        count: u32,
        extra_env: &BTreeMap<String, Value>,
    ) -> Result<Vec<Instance>, Fault> {
        if count > INSTANCES_LIMIT {
            return Err(Fault::new(
                "too-many-instances",
                format!(
                    "{count} instances of {} are wanted; the target local runs at most {INSTANCES_LIMIT}",
                    spec.service
                ),
            ));
        }
        let service = self.state.service(&spec.service)?;
        // Secrets first: without them nothing should be changed.
        let handover = self.handover(call, spec, extra_env).await?;
        let _lock = self.change(call, &spec.service, &service).await?;
        let (release, mut record) = {
            let (this, service, spec, effect) =
                (self.clone_for_task(), service.clone(), spec.clone(), call.effect.clone());
            blocking(move || this.ensure_release(&service, &spec, effect)).await?
        };
        let mut alive = Vec::new();
        let mut others = 0_u32;
        let mut dead = Vec::new();
        for instance in release.instances()? {
            if instance.is_alive() && instance.is_ending() {
                // A stop that was cut short. It goes by itself, and does not count.
                continue;
            }
            let same = instance.config().is_some_and(|config| config.extra_env == *extra_env);
            match (instance.is_alive(), same) {
                (true, true) => alive.push(instance),
                (true, false) => others += 1,
                (false, _) => dead.push(instance),
            }
        }
        let running = u32::try_from(alive.len()).unwrap_or(u32::MAX);
        record.wanted = count.max(running).saturating_add(others);
        record.effect = call.effect.clone();
        record.off = None;
        let mut missing = Vec::new();
        for _ in running..count {
            // The place of one that died is taken again, with its port if that is still free.
            missing.push(if dead.is_empty() {
                let instance = release.instance(record.next_instance);
                record.next_instance += 1;
                instance
            } else {
                dead.remove(0)
            });
        }
        release.write(&record)?;
        for instance in &dead {
            clear_strays(instance).await;
            crate::durable::remove_folder(instance.folder())?;
        }
        self.start_all(call, &release, &record, &missing, extra_env, &handover).await?;
        instances(&release)
    }

    /// Has the release here: its record, and its artifact whole and as it was when it was resolved.
    fn ensure_release(
        &self,
        service: &ServiceState,
        spec: &ReleaseSpec,
        effect: cdpipe_model::EffectId,
    ) -> Result<(ReleaseState, ReleaseRecord), Fault> {
        let release = service.release(&spec.id())?;
        let used = 1 + service
            .releases()?
            .iter()
            .map(|(_, record)| record.used.max(record.created))
            .max()
            .unwrap_or(0);
        make_folder(&release.instances_folder())?;
        let former = release.record()?;
        let returns = former.as_ref().is_none_or(|record| record.wanted == 0);
        let record = match former {
            None => ReleaseRecord::new(spec.clone(), effect, used),
            Some(record) => {
                let same =
                    |spec: &ReleaseSpec| ReleaseSpec { version: String::new(), drain_ms: 0, ..spec.clone() };
                if same(&record.spec) != same(spec) {
                    return Err(Fault::new(
                        "release-collision",
                        format!("release {} of {} is here already, made from something else", spec.id(), spec.service),
                    )
                    .help("change anything in the service (a variable in `env`) so that the release gets another id"));
                }
                let used = if returns { used } else { record.used };
                ReleaseRecord { spec: spec.clone(), used, ..record }
            }
        };
        if returns {
            self.ensure_files(&release, spec)?;
        }
        Ok((release, record))
    }

    fn ensure_files(&self, release: &ReleaseState, spec: &ReleaseSpec) -> Result<(), Fault> {
        let Artifact::Command { argv, digest, .. } = &spec.artifact else {
            return self.place(spec, None).map(|_| ());
        };
        let (place, _) = self.place(spec, None)?;
        let Some(source) = place.source() else { return Ok(()) };
        let files = release.files();
        if files.is_dir() {
            let damaged = match release.manifest()? {
                Some(manifest) => manifest.damaged_in(&Manifest::of(&files)?),
                None => vec!["manifest.json".to_owned()],
            };
            if damaged.is_empty() {
                return Ok(());
            }
            // Instances may change data where they run; what is executed must be what was deployed.
            let program = argv.first().map(String::as_str).unwrap_or_default();
            let copied = Place { copied: Some(&files), ..place.clone() };
            let program_is_whole = copied.program(program).is_ok_and(|found| {
                found
                    .strip_prefix(&files)
                    .is_ok_and(|inside| !damaged.iter().any(|path| inside == std::path::Path::new(path)))
            });
            let source_is_same =
                Manifest::of(&source).is_ok_and(|manifest| digest.as_ref() == Some(&manifest.digest()));
            if !source_is_same {
                return if program_is_whole {
                    Ok(())
                } else {
                    Err(Fault::new(
                        "release-damaged",
                        format!(
                            "the kept files of release {} of {} were changed: {}",
                            spec.id(),
                            spec.service,
                            damaged.join(", ")
                        ),
                    )
                    .help("build that version again where `artifact` points to, and deploy it"))
                };
            }
            crate::durable::remove_folder(&files)?;
        }
        let manifest = Manifest::of(&source)?;
        if let Some(expected) = digest
            && *expected != manifest.digest()
        {
            return Err(changed(spec, &source));
        }
        copy(&source, &files)?;
        // Someone may have built again while it was copied.
        let copied = Manifest::of(&files)?;
        if !manifest.damaged_in(&copied).is_empty() {
            crate::durable::remove_folder(&files)?;
            return Err(changed(spec, &source));
        }
        release.write_manifest(&manifest)
    }

    /// Values for the supervisors: only of variables that hold secrets.
    async fn handover(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        extra_env: &BTreeMap<String, Value>,
    ) -> Result<Vec<u8>, Fault> {
        let mut handover = Handover::default();
        for (name, value) in spec.env.iter().chain(extra_env) {
            if matches!(value, Value::Secret(_)) {
                let resolved = resolve::text(value, call.secrets, &self.masker).await?;
                resolve::fits_environment(name, resolved.expose())?;
                handover.env.insert(name.clone(), resolved.expose().to_owned());
            } else {
                resolve::fits_environment(name, &value.to_string())?;
            }
        }
        for name in secret_names(spec.env.values().chain(extra_env.values())) {
            handover.mask.push(call.secrets.resolve(&name).await?.expose().to_owned());
        }
        handover.mask.extend(handover.env.values().cloned());
        serde_json::to_vec(&handover).map_err(|error| {
            Fault::new("internal", format!("secrets can't be handed to a supervisor: {error}"))
        })
    }

    async fn start_all(
        &self,
        call: Call<'_>,
        release: &ReleaseState,
        record: &ReleaseRecord,
        missing: &[InstanceState],
        extra_env: &BTreeMap<String, Value>,
        handover: &[u8],
    ) -> Result<(), Fault> {
        if missing.is_empty() {
            return Ok(());
        }
        let files = release.files();
        let (place, argv) = self.place(&record.spec, files.is_dir().then_some(files.as_path()))?;
        let program = place.program(argv.first().map(String::as_str).unwrap_or_default())?;
        let absolute = |path: &std::path::Path| {
            std::path::absolute(path).map_err(|error| io_fault("find", path, &error))
        };
        let launch = Launch {
            program: absolute(&program)?,
            args: argv.iter().skip(1).cloned().collect(),
            folder: absolute(place.working_folder())?,
            env: record.spec.env.clone(),
        };
        let id = record.spec.id();
        for instance in missing {
            let config = InstanceConfig {
                format: FORMAT,
                id: InstanceId(format!("{}-{id}-{}", record.spec.service, instance.number())),
                service: record.spec.service.clone(),
                environment: self.config.environment.clone(),
                release: id.clone(),
                effect: call.effect.clone(),
                launch: launch.clone(),
                extra_env: extra_env.clone(),
                health: record.spec.health.clone(),
                listens: record.spec.port.is_some(),
                drain_ms: record.spec.drain_ms,
                policy: self.config.policy.clone(),
                listen: self.listen,
            };
            if instance.folder().exists() {
                clear_strays(instance).await;
            }
            make_folder(instance.folder())?;
            instance.write_config(&config)?;
        }
        start(&self.config.supervisor, self.units(), missing, handover, call).await
    }
}

fn changed(spec: &ReleaseSpec, source: &std::path::Path) -> Fault {
    Fault::new(
        "artifact-changed",
        format!(
            "the artifact {} of {} has changed since the release was planned",
            source.display(),
            spec.service
        ),
    )
    .help("nothing should build there while it is deployed; run the pipeline again")
}

/// Names of all secrets in these values.
fn secret_names<'a>(values: impl Iterator<Item = &'a Value>) -> Vec<String> {
    use cdpipe_model::secret::SecretPart;
    let mut names: Vec<String> = values
        .filter_map(|value| match value {
            Value::Secret(text) => Some(text),
            _ => None,
        })
        .flat_map(|text| &text.0)
        .filter_map(|part| match part {
            SecretPart::Secret(name) | SecretPart::Base64(name) => Some(name.clone()),
            SecretPart::Text(_) => None,
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Ends what an instance has left whose supervisor was killed: the kernel ends the process itself, not what that had started.
pub(super) async fn clear_strays(instance: &InstanceState) {
    let Ok(folder) = std::path::absolute(instance.folder()) else { return };
    let (name, value) = InstanceState::at(&folder).marker();
    let entry = format!("{name}={value}");
    for _ in 0..50 {
        if instance.is_alive() {
            return;
        }
        let left = process::with_environment(&entry);
        if left.is_empty() {
            return;
        }
        for stray in left {
            // Gone in the meantime is as good.
            let _ = stray.signal(Signal::KILL);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
