//! Where the values of secrets come from: environment variables, files, commands. Asked anew at each use, kept nowhere; the masker
//! learns each value before anybody gets it.

use crate::mask::Masker;
use crate::process;
use cdpipe_model::Fault;
use cdpipe_model::ports::{PortResult, Secrets};
use cdpipe_model::secret::{SecretSource, SecretValue};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;

/// Longest value.
const LIMIT_BYTES: u64 = 1 << 20;

/// How long a command may take to say a secret.
const COMMAND_WAIT: Duration = Duration::from_secs(30);

/// The secrets of a pipeline, by name.
#[derive(Debug, Clone)]
pub struct HostSecrets {
    sources: BTreeMap<String, SecretSource>,
    base: PathBuf,
    masker: Masker,
}

impl HostSecrets {
    /// Secrets from these sources; paths and commands are relative to `base`.
    pub fn new(sources: BTreeMap<String, SecretSource>, base: PathBuf, masker: Masker) -> Self {
        Self { sources, base, masker }
    }

    /// Environment variables that hold secrets: no command may inherit them.
    pub fn variables(&self) -> Vec<String> {
        self.sources
            .values()
            .filter_map(|source| match source {
                SecretSource::Env(name) => Some(name.clone()),
                SecretSource::File(_) | SecretSource::Command(_) => None,
            })
            .collect()
    }

    async fn value(&self, name: &str) -> Result<SecretValue, Fault> {
        let source = self.sources.get(name).ok_or_else(|| {
            Fault::new("secret-missing", format!("the pipeline declares no secret `{name}`"))
        })?;
        let mut bytes = match source {
            SecretSource::Env(variable) => from_environment(name, variable)?,
            SecretSource::File(path) => from_file(name, &self.base.join(path)).await?,
            SecretSource::Command(script) => from_command(name, script, &self.base).await?,
        };
        if !matches!(source, SecretSource::Env(_)) && bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        let value = match String::from_utf8(bytes) {
            Ok(value) => SecretValue::new(value),
            Err(error) => {
                error.into_bytes().fill(0);
                return Err(Fault::new("secret-unfit", format!("the secret `{name}` is not UTF-8 text"))
                    .help("store it as base64, and use base64_decode where it is text inside"));
            }
        };
        if value.expose().is_empty() {
            return Err(Fault::new(
                "secret-missing",
                format!("the secret `{name}` is empty ({})", describe(source)),
            )
            .help("give it a value, or take it out of the pipeline"));
        }
        self.masker.learn(&value);
        Ok(value)
    }
}

impl Secrets for HostSecrets {
    fn resolve<'a>(&'a self, name: &'a str) -> PortResult<'a, SecretValue> {
        Box::pin(self.value(name))
    }
}

fn describe(source: &SecretSource) -> String {
    match source {
        SecretSource::Env(variable) => format!("environment variable {variable}"),
        SecretSource::File(path) => format!("file {path}"),
        SecretSource::Command(_) => "from a command".to_owned(),
    }
}

fn from_environment(name: &str, variable: &str) -> Result<Vec<u8>, Fault> {
    use std::os::unix::ffi::OsStringExt;
    std::env::var_os(variable).map(OsStringExt::into_vec).ok_or_else(|| {
        Fault::new(
            "secret-missing",
            format!("the secret `{name}` is not set: environment variable {variable} is missing"),
        )
        .help(format!("export {variable}=… before running cdpipe"))
    })
}

async fn from_file(name: &str, path: &Path) -> Result<Vec<u8>, Fault> {
    let fail = |error: std::io::Error| {
        Fault::new(
            "secret-missing",
            format!("the secret `{name}` cannot be read from {}: {error}", path.display()),
        )
        .help("the path is relative to the pipeline's file; check that it is there and readable")
    };
    let file = tokio::fs::File::open(path).await.map_err(fail)?;
    read_bounded(name, file).await?.map_err(fail)
}

async fn read_bounded(
    name: &str,
    from: impl tokio::io::AsyncRead + Unpin,
) -> Result<Result<Vec<u8>, std::io::Error>, Fault> {
    let mut bytes = Vec::new();
    if let Err(error) = from.take(LIMIT_BYTES + 1).read_to_end(&mut bytes).await {
        return Ok(Err(error));
    }
    if bytes.len() as u64 > LIMIT_BYTES {
        bytes.fill(0);
        return Err(Fault::new("secret-unfit", format!("the secret `{name}` is larger than 1 MiB"))
            .help("check where it comes from"));
    }
    Ok(Ok(bytes))
}

async fn from_command(name: &str, script: &str, folder: &Path) -> Result<Vec<u8>, Fault> {
    let fail = |what: String| {
        Fault::new("secret-missing", format!("the secret `{name}` could not be had from its command: {what}"))
            .help("run the command by hand; what it prints on standard output is the value")
    };
    let mut child = tokio::process::Command::new("/bin/sh")
        .args(["-ec", script])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // What it says there may be the secret too, and is not known to the masker yet.
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|error| fail(error.to_string()))?;
    let group = Group(child.id());
    let stdout = child.stdout.take();
    let work = async {
        let bytes = match stdout {
            Some(stdout) => read_bounded(name, stdout).await?.map_err(|error| fail(error.to_string()))?,
            None => Vec::new(),
        };
        let status = child.wait().await.map_err(|error| fail(error.to_string()))?;
        Ok::<_, Fault>((bytes, status))
    };
    let (bytes, status) = tokio::time::timeout(COMMAND_WAIT, work)
        .await
        .map_err(|_| fail("it took longer than 30s".to_owned()))??;
    group.done();
    if status.success() { Ok(bytes) } else { Err(fail(status.to_string())) }
}

/// Ends the command with all it has started, unless it has ended by itself.
struct Group(Option<u32>);

impl Group {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            process::signal_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(source: SecretSource, base: &Path) -> HostSecrets {
        HostSecrets::new(BTreeMap::from([("s".to_owned(), source)]), base.to_owned(), Masker::default())
    }

    #[tokio::test]
    async fn values_come_from_each_source_and_are_masked_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("s.txt"), "from-a-file\n").expect("writes");
        for (source, expected) in [
            (SecretSource::Env("CARGO_PKG_NAME".to_owned()), "cdpipe-host"),
            (SecretSource::File("s.txt".to_owned()), "from-a-file"),
            (SecretSource::Command("cat s.txt; echo more".to_owned()), "from-a-file\nmore"),
        ] {
            let secrets = secrets(source, folder.path());
            assert_eq!(secrets.resolve("s").await.expect("resolves").expose(), expected);
            assert_eq!(secrets.masker.mask(expected.lines().next().unwrap_or_default()), "***");
        }
    }

    #[tokio::test]
    async fn what_is_missing_is_said_and_what_is_there_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("empty"), "\n").expect("writes");
        for source in [
            SecretSource::Env("CDPIPE_NO_SUCH_VARIABLE".to_owned()),
            SecretSource::File("nowhere".to_owned()),
            SecretSource::File("empty".to_owned()),
            SecretSource::Command("echo hunter22; echo hunter22 >&2; exit 3".to_owned()),
        ] {
            let fault = secrets(source, folder.path()).resolve("s").await.expect_err("is missing");
            assert_eq!(fault.kind, "secret-missing");
            assert!(!format!("{fault:?}").contains("hunter22"));
        }
    }
}
