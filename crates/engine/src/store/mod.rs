//! The state directory: one SQLite database for journals, inboxes, owners and named locks of all runs of a project, and a folder for the
//! output of commands.
//!
//! Invariants: records are only appended, by the one owner of a run, in one transaction a batch that checks the ownership too;
//! an answer means durable; whatever can't be read or written is an error with a way out, never a silent gap.

mod error;
mod locks;
mod process;
mod read;
mod registry;
mod retention;
mod run;
mod schema;
mod writer;

pub use error::StoreError;
pub(crate) use error::is_of_state;
pub use locks::{NamedLockState, Unlocked};
pub use process::Process;
pub use registry::{Owner, RunState, RunSummary};
pub use retention::{Pruned, Retention};
pub use run::RunJournal;

use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use writer::Writer;

/// Name of the database in the state directory.
const DATABASE: &str = "cdpipe.db";

/// Folder of the output logs in the state directory.
const LOGS: &str = "logs";

/// The state of a project.
pub struct Store {
    dir: PathBuf,
    path: PathBuf,
    /// For everything but appends. Writes on it are synced.
    conn: Mutex<Connection>,
    writer: Mutex<Option<Writer>>,
}

impl Store {
    /// Opens the state in this directory, making both if they are not there.
    ///
    /// # Errors
    /// If the directory can't be written, or its database is of a newer version, not ours, or damaged.
    pub fn open(dir: &Path) -> Result<Arc<Self>, StoreError> {
        make_private_dir(dir)?;
        Self::open_at(dir, true)
    }

    /// Opens the state in this directory; `None` if there is none yet. For commands that only look.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_existing(dir: &Path) -> Result<Option<Arc<Self>>, StoreError> {
        if !dir.join(DATABASE).exists() {
            return Ok(None);
        }
        Self::open_at(dir, false).map(Some)
    }

    fn open_at(dir: &Path, create: bool) -> Result<Arc<Self>, StoreError> {
        let path = dir.join(DATABASE);
        let conn = schema::open(&path, create)?;
        Ok(Arc::new(Self { dir: dir.to_owned(), path, conn: Mutex::new(conn), writer: Mutex::new(None) }))
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the output of commands is kept.
    pub fn log_dir(&self) -> PathBuf {
        self.dir.join(LOGS)
    }

    fn conn(&self) -> MutexGuard<'_, Connection> {
        self.conn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something in one synced transaction that begins as a writer, so that what it reads first stays true until it commits.
    fn transaction<T>(
        &self,
        body: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut conn = self.conn();
        let fault = |error: rusqlite::Error| self.fault(&error);
        let transaction =
            conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(fault)?;
        let answer = body(&transaction)?;
        transaction.commit().map_err(fault)?;
        Ok(answer)
    }

    fn writer(&self) -> Result<Writer, StoreError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        match &*writer {
            Some(writer) => Ok(writer.clone()),
            None => Ok(writer.insert(Writer::start(&self.path)?).clone()),
        }
    }

    fn fault(&self, error: &rusqlite::Error) -> StoreError {
        StoreError::sqlite(&self.path, error)
    }
}

/// Approvals are given by whoever can write the state, so a directory that we make is its owner's alone.
fn make_private_dir(dir: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| StoreError::Io { path: dir.to_owned(), detail: error.to_string() })
}
