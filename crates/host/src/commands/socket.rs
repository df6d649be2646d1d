//! Unix sockets whose path may be longer than the 107 bytes a socket address holds.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixStream};

const FILE: &str = "socket";

/// A path that fits, and what must stay open while it is used.
fn short(folder: &Path) -> io::Result<(PathBuf, File)> {
    let open = File::open(folder)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd())).join(FILE), open))
}

/// Makes the socket; one that a dead supervisor has left is removed. The folder is its owner's alone, and so is the socket by that.
pub(super) fn bind(folder: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(folder.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (path, _open) = short(folder)?;
    UnixListener::bind(path)
}

/// Opens it.
pub(super) async fn connect(folder: &Path) -> io::Result<UnixStream> {
    let (path, _open) = short(folder)?;
    UnixStream::connect(path).await
}
