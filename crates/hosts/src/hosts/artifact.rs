//! What a release is made from: found on this machine or on the others, and brought to those that lack it.

use super::{Hosts, strange};
use crate::protocol::{Reply, Request};
use crate::ssh::is_away;
use cdpipe_host::{Local, LocalConfig, Masker, Packed, Policy};
use cdpipe_model::Fault;
use cdpipe_model::ports::{Call, Target};
use cdpipe_model::release::{Artifact, ReleaseSpec};
use futures_util::future::join_all;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

impl Hosts {
    /// The target `local` of this machine, only for what it knows of artifacts.
    fn here(&self) -> Local {
        Local::new(
            LocalConfig {
                state: PathBuf::from("/nonexistent"),
                environment: self.config.ssh.environment.clone(),
                base: self.config.base.clone(),
                supervisor: PathBuf::new(),
                policy: Policy::default(),
            },
            Masker::default(),
        )
    }

    /// The artifact of a release, as it lies on this machine; `None` if that is not what the release was made from.
    pub(super) async fn packed(&self, spec: &ReleaseSpec) -> Result<Option<(PathBuf, Packed)>, Fault> {
        let Artifact::Command { path: Some(path), digest, .. } = &spec.artifact else { return Ok(None) };
        let Some(digest) = digest else { return Ok(None) };
        let mut known = self.packed.lock().await;
        if let Some(found) = known.get(digest) {
            return Ok(Some(found.clone()));
        }
        let source = self.config.base.join(path);
        if !source.exists() {
            return Ok(None);
        }
        let looked = source.clone();
        let packed = match tokio::task::spawn_blocking(move || Packed::of(&looked)).await {
            Ok(packed) => packed?,
            Err(error) => {
                return Err(Fault::new("internal", format!("reading the artifact ended early: {error}")));
            }
        };
        if packed.digest != *digest {
            return Ok(None);
        }
        known.insert(digest.clone(), (source.clone(), packed.clone()));
        Ok(Some((source, packed)))
    }

    pub(super) async fn resolve_all(&self, call: Call<'_>, spec: &ReleaseSpec) -> Result<ReleaseSpec, Fault> {
        let (argv, path, digest) = match &spec.artifact {
            Artifact::Command { argv, path, digest } => (argv, path, digest),
            Artifact::Image { digest, .. } => return self.resolve_image(call, spec, digest.is_some()).await,
            Artifact::Document { .. } => {
                return Err(Fault::new(
                    "artifact-unfit",
                    format!("machines run processes and images, and {} is made from neither", spec.service),
                )
                .help("give the service a `command` or an `image`"));
            }
        };
        if digest.is_some() {
            // A release to go back to: it is kept there, or can be brought there again.
            let answers = self.ask_all(call, self.everywhere(&Request::Resolve { spec: spec.clone() })).await;
            return match answers {
                Ok(_) => Ok(spec.clone()),
                Err(fault) if fault.kind == "release-gone" && self.packed(spec).await?.is_some() => {
                    Ok(spec.clone())
                }
                Err(fault) => Err(fault),
            };
        }
        if path.is_some() {
            return self.here().resolve(call, spec).await;
        }
        let program = argv.first().map(String::as_str).unwrap_or_default();
        if program.contains('/') && !Path::new(program).is_absolute() {
            return Err(Fault::new(
                "artifact-missing",
                format!(
                    "`{program}` of {} is a file of this machine, and nothing brings it to the others",
                    spec.service
                ),
            )
            .help("name what is copied: `artifact = …`; or give the path of a program that is there"));
        }
        // A program of the machines themselves: all of them must have it.
        self.ask_all(call, self.everywhere(&Request::Resolve { spec: spec.clone() })).await?;
        Ok(spec.clone())
    }

    /// One machine finds what an image is, and all others have that very one: a tag may be moved between two pulls.
    async fn resolve_image(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        is_pinned: bool,
    ) -> Result<ReleaseSpec, Fault> {
        let mut pinned = is_pinned.then(|| spec.clone());
        for index in 0..self.machines.len() {
            if pinned.is_some() {
                break;
            }
            match self.ask(index, call, &Request::Resolve { spec: spec.clone() }).await {
                Ok(Reply::Resolved { spec }) => pinned = Some(spec),
                Ok(_) => return Err(strange()),
                // Told of below, with all others that are.
                Err(fault) if is_away(&fault) => {}
                Err(fault) => {
                    let message = format!("{}: {}", self.names[index], fault.message);
                    return Err(Fault { message, ..fault });
                }
            }
        }
        let spec = pinned.unwrap_or_else(|| spec.clone());
        self.ask_all(call, self.everywhere(&Request::Resolve { spec: spec.clone() })).await?;
        Ok(spec)
    }

    /// Brings the artifact to these machines, all at once.
    pub(super) async fn upload(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        machines: &[usize],
    ) -> Result<(), Fault> {
        let Some((source, packed)) = self.packed(spec).await? else {
            let names: Vec<&str> = machines.iter().map(|index| self.names[*index].as_str()).collect();
            return Err(Fault::new(
                "release-gone",
                format!(
                    "release {} of {} is not kept on {}, and its artifact here is another one by now",
                    spec.id(),
                    spec.service,
                    names.join(", ")
                ),
            )
            .help("build that version again where `artifact` points to, and deploy it"));
        };
        call.sink.progress(&format!(
            "uploading {} bytes to {}",
            packed.bytes(),
            machines.iter().map(|index| self.names[*index].as_str()).collect::<Vec<_>>().join(", ")
        ));
        let request = Request::Upload { packed: packed.clone() };
        let uploading = machines.iter().map(async |index| {
            let result = async {
                let session = self.session(&self.machines[*index]).await?;
                session.call(call, &request, Some(Box::new(Files::new(&source, &packed)))).await
            }
            .await;
            self.outages.note(*index, &result);
            (*index, result)
        });
        let answers = join_all(uploading).await;
        // A machine that was lost in the meantime is told of by what comes next.
        self.outages.those_there(&self.names, answers).map(|_| ())
    }
}

/// The files of an artifact, one after another.
struct Files {
    left: std::vec::IntoIter<(PathBuf, u64)>,
    file: Option<std::io::Take<File>>,
}

impl Files {
    fn new(source: &Path, packed: &Packed) -> Self {
        let path = |inside: &str| if packed.single { source.to_owned() } else { source.join(inside) };
        let files: Vec<(PathBuf, u64)> = packed.files().map(|(inside, size)| (path(inside), size)).collect();
        Self { left: files.into_iter(), file: None }
    }
}

impl Read for Files {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            if let Some(file) = &mut self.file {
                let count = file.read(buffer)?;
                if count > 0 {
                    return Ok(count);
                }
                self.file = None;
            }
            match self.left.next() {
                // Not more than was said: a file that grows meanwhile must not shift what follows.
                Some((path, size)) => self.file = Some(File::open(path)?.take(size)),
                None => return Ok(0),
            }
        }
    }
}
