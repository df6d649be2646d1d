//! Unix sockets whose path may be longer than the 107 bytes a socket address holds.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Name of the control socket in the state directory.
pub(crate) const FILE: &str = "control.sock";

/// Longest path that is used as it is.
const MAX_PATH_BYTES: usize = 100;

/// A path that fits, and what must stay open while it is used.
fn short(directory: &Path, file: &str) -> io::Result<(PathBuf, Option<File>)> {
    let path = directory.join(file);
    if path.as_os_str().len() <= MAX_PATH_BYTES {
        return Ok((path, None));
    }
    let open = File::open(directory)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd())).join(file), Some(open)))
}

/// Makes the control socket. It is never there with another mode: it gets its name when it has its mode.
pub(crate) fn bind(directory: &Path) -> io::Result<UnixListener> {
    let fresh = format!("{FILE}.new");
    match fs::remove_file(directory.join(&fresh)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (path, _open) = short(directory, &fresh)?;
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(directory.join(&fresh), Permissions::from_mode(0o600))?;
    fs::rename(directory.join(&fresh), directory.join(FILE))?;
    Ok(listener)
}

/// Opens the control socket.
pub(crate) async fn connect(directory: &Path) -> io::Result<UnixStream> {
    let (path, _open) = short(directory, FILE)?;
    UnixStream::connect(path).await
}
