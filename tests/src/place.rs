//! A place of its own for one test: a folder to work in, a state folder, and the binaries of this workspace.

use crate::processes::{self, Ended, RunError, Running};
use crate::transcript::Normaliser;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long a command may take unless a test says otherwise.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Variables of the caller that a command gets; no others, so that a test says the same everywhere.
const KEPT_VARIABLES: [&str; 5] = ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "TMPDIR"];

/// A binary that is not there.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The binary was not built.
    #[error(
        "{0} is not there: build it first (cargo build -p cdpipe -p cdpipe-demo), or say where it is in $CDPIPE_BIN_DIR"
    )]
    NotBuilt(PathBuf),
    /// The folder could not be made or filled.
    #[error("cannot set up a place for a test: {0}")]
    Io(#[from] std::io::Error),
}

/// The path of a binary of this workspace: in `$CDPIPE_BIN_DIR`, else beside the running test's folder.
///
/// # Errors
/// When it is not there.
pub fn binary(name: &str) -> Result<PathBuf, PlaceError> {
    let folder = match std::env::var_os("CDPIPE_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        // target/debug/deps/TEST -> target/debug
        None => std::env::current_exe()?.ancestors().nth(2).map(Path::to_path_buf).unwrap_or_default(),
    };
    let path = folder.join(name);
    if path.is_file() { Ok(path) } else { Err(PlaceError::NotBuilt(path)) }
}

/// The root of this repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// A folder to work in and a state folder. What was started in it ends with it.
#[derive(Debug)]
pub struct Place {
    folder: tempfile::TempDir,
    cdpipe: PathBuf,
    variables: Vec<(String, String)>,
    limit: Duration,
}

impl Place {
    /// An empty place.
    ///
    /// # Errors
    /// When `cdpipe` was not built or the folder can't be made.
    pub fn new() -> Result<Self, PlaceError> {
        let folder = tempfile::Builder::new().prefix("cdpipe-test-").tempdir()?;
        std::fs::create_dir(folder.path().join("work"))?;
        Ok(Self { folder, cdpipe: binary("cdpipe")?, variables: Vec::new(), limit: LIMIT })
    }

    /// The folder that commands run in.
    pub fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// The state folder, `$CDPIPE_STATE`.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Sets a variable for every command from now on.
    pub fn set(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// How long a command may take from now on.
    pub fn limit(&mut self, limit: Duration) -> &mut Self {
        self.limit = limit;
        self
    }

    /// Writes a file into the working folder, with the folders it stands in.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> std::io::Result<PathBuf> {
        let path = self.work().join(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&path, contents)?;
        Ok(path)
    }

    /// A `cdpipe` command in this place, not started yet.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(&self.cdpipe);
        command.args(arguments).current_dir(self.work()).env_clear();
        for name in KEPT_VARIABLES {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.env("CDPIPE_STATE", self.state()).env("LANG", "C.UTF-8");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs `cdpipe` with these arguments to its end.
    ///
    /// # Errors
    /// When it can't be started, hangs, or leaves its output open.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Ended, RunError> {
        processes::run(&mut self.command(arguments), self.limit)
    }

    /// What runs in this place now: services, supervisors, proxies.
    pub fn running(&self) -> Vec<Running> {
        processes::belonging_to(self.folder.path())
    }

    /// Takes this place's own paths out of a text.
    pub fn normaliser(&self) -> Normaliser {
        Normaliser::new()
            .replace(&self.work().to_string_lossy(), "<work>")
            .replace(&self.state().to_string_lossy(), "<state>")
            .replace(&repository().to_string_lossy(), "<repository>")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        processes::end_all_belonging_to(self.folder.path());
    }
}
