//! Instances as systemd units: the supervisor of an instance is the main process of a unit of its own, so that it is started again
//! after a boot, or when someone kills it, and is seen with `systemctl`.
//!
//! The unit's text says only how the supervisor is started. Secrets go over a socket in the instance's folder, to whoever root or the
//! user of the unit is; they are in no file. So an instance with secrets in its environment does not come back by itself.

use crate::durable::io_fault;
use crate::state::InstanceState;
use crate::supervise::{AS_UNIT, SUPERVISE, handover_socket};
use cdpipe_model::Fault;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

/// Where units lie that an administrator has made; they are there after a boot.
const UNIT_FOLDER: &str = "/etc/systemd/system";

/// How long one `systemctl` may take.
const SYSTEMCTL_WAIT: Duration = Duration::from_secs(30);

/// What the supervisors of instances are started by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Units {
    /// By cdpipe: a process in a session of its own, which ends with the machine.
    #[default]
    Process,
    /// By systemd: a unit for each instance, which comes back with the machine.
    Systemd,
}

/// The unit of an instance: its id, and where it lies, since two environments may have the same release on one machine.
fn unit_path(instance: &InstanceState) -> Option<PathBuf> {
    let folder = std::path::absolute(instance.folder()).ok()?;
    Some(Path::new(UNIT_FOLDER).join(unit_of(instance.config()?.id.as_str(), &folder)))
}

fn unit_of(id: &str, folder: &Path) -> String {
    let place = Sha256::digest(folder.as_os_str().as_encoded_bytes());
    format!("cdpipe-{id}-{:02x}{:02x}{:02x}.service", place[0], place[1], place[2])
}

/// Writes the unit, starts it, hands the secrets to it, and answers what the supervisor says.
///
/// # Errors
/// `systemd-failed` with what systemctl says; what the file system says.
pub(super) async fn start(
    binary: &Path,
    instance: &InstanceState,
    handover: &[u8],
    within: Duration,
) -> Result<String, Fault> {
    let folder = std::path::absolute(instance.folder())
        .map_err(|error| io_fault("find", instance.folder(), &error))?;
    let Some(path) = unit_path(instance) else {
        return Err(Fault::new("internal", "an instance without a configuration can't become a unit"));
    };
    let unit = unit_name(&path);
    let text = unit_text(binary, &folder, &unit, instance)?;
    std::fs::write(&path, text).map_err(|error| {
        io_fault("write the unit", &path, &error)
            .help("units need root on the host: set `sudo = true`, or log in as root")
    })?;
    let wants = Path::new(UNIT_FOLDER).join("multi-user.target.wants");
    std::fs::create_dir_all(&wants).map_err(|error| io_fault("make the folder", &wants, &error))?;
    // By hand rather than by `enable`, which would read all units again.
    match std::os::unix::fs::symlink(&path, wants.join(&unit)) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(io_fault("enable the unit", &path, &error));
        }
        _ => {}
    }
    let (socket, _open) = handover_socket(&folder).map_err(|error| io_fault("open", &folder, &error))?;
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).map_err(|error| io_fault("listen at", &socket, &error))?;
    let said = tokio::time::timeout(within, async {
        systemctl(&["daemon-reload"]).await?;
        systemctl(&["start", "--no-block", &unit]).await?;
        let (mut stream, _) =
            listener.accept().await.map_err(|error| io_fault("listen at", &socket, &error))?;
        let mut said = String::new();
        // A supervisor that can't begin may close its end first; what it says is the better message.
        let _ = stream.write_all(handover).await;
        let _ = stream.shutdown().await;
        let _ = (&mut stream).take(4096).read_to_string(&mut said).await;
        Ok::<_, Fault>(said.trim().to_owned())
    })
    .await;
    let _ = std::fs::remove_file(&socket);
    said.unwrap_or_else(|_| {
        let message = format!("the unit {unit} did not begin within {}s", within.as_secs());
        Err(Fault::new("supervisor-failed", message)
            .help(format!("`systemctl status {unit}` on the host says more"))
            .transient())
    })
}

fn unit_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn unit_text(binary: &Path, folder: &Path, unit: &str, instance: &InstanceState) -> Result<String, Fault> {
    let quoted = |path: &Path| {
        let text = path.to_string_lossy();
        if text.contains(['"', '\\', '\n', '%', '$']) {
            return Err(Fault::new("name-unfit", format!("{text} can't stand in a unit"))
                .help("set `dir` of the target to a folder without quotes, `%` or `$`"));
        }
        Ok(format!("\"{text}\""))
    };
    let config = instance.config();
    let of = |text: Option<String>| text.unwrap_or_default();
    let drain_s = config.as_ref().map_or(0, |config| config.drain_ms.div_ceil(1000));
    Ok(format!(
        "# Written by cdpipe, which removes it with the instance.\n\
         [Unit]\nDescription={} (release {}), instance {}\nAfter=network.target\n\
         StartLimitIntervalSec=60\nStartLimitBurst=10\n\n\
         [Service]\nType=exec\nExecStart={} {SUPERVISE} {AS_UNIT} {}\nSyslogIdentifier={unit}\n\
         KillMode=mixed\nTimeoutStopSec={}\nRestart=on-failure\nRestartSec=1\n\n\
         [Install]\nWantedBy=multi-user.target\n",
        of(config.as_ref().map(|config| config.service.to_string())),
        of(config.as_ref().map(|config| config.release.to_string())),
        instance.number(),
        quoted(binary)?,
        quoted(folder)?,
        drain_s.saturating_add(20),
    ))
}

/// Removes the unit of an instance that has ended, if it has one.
pub(super) async fn forget(instance: &InstanceState) {
    let Some(path) = unit_path(instance).filter(|path| path.exists()) else { return };
    let unit = unit_name(&path);
    // It has ended by itself; this is for one that systemd is about to start again.
    let _ = systemctl(&["stop", "--no-block", &unit]).await;
    let _ = std::fs::remove_file(Path::new(UNIT_FOLDER).join("multi-user.target.wants").join(&unit));
    let _ = std::fs::remove_file(&path);
    let _ = systemctl(&["daemon-reload"]).await;
    let _ = systemctl(&["reset-failed", &unit]).await;
}

async fn systemctl(args: &[&str]) -> Result<(), Fault> {
    let failed = |why: String| {
        Fault::new("systemd-failed", format!("`systemctl {}` failed: {why}", args.join(" ")))
            .help("the host must run systemd, and the user must be root (`sudo = true`) to make units")
    };
    let mut command = tokio::process::Command::new("systemctl");
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(SYSTEMCTL_WAIT, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("it did not end in time".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_release_in_two_environments_has_two_units() {
        let unit = |folder: &str| unit_of("shop-a3b7f57b4bc2-1", Path::new(folder));
        assert_ne!(
            unit("/var/lib/cdpipe/environments/a/shop/1"),
            unit("/var/lib/cdpipe/environments/b/shop/1")
        );
        assert!(unit("/a").starts_with("cdpipe-shop-a3b7f57b4bc2-1-"), "{}", unit("/a"));
    }
}
