//! What can go wrong with the state directory, and what a user can do about it.

use cdpipe_model::{Fault, RunId};
use rusqlite::ErrorCode;
use std::path::{Path, PathBuf};

/// A failure of the store. Cloned to everyone whose batch was in the same commit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The directory or the file can't be used.
    #[error("the state in {} cannot be used: {detail}", path.display())]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// The disk does not write or read any more.
    #[error("the disk below {} fails: {detail}", path.display())]
    Failing {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        detail: String,
    },
    /// A database of a newer cdpipe.
    #[error(
        "{} has state of version {found}, written by a newer cdpipe; this one reads up to version {supported}",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version that can be read.
        supported: i64,
    },
    /// A file that something else made.
    #[error("{} is not a state database of cdpipe", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// Damaged.
    #[error("the state database {} is damaged: {detail}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What SQLite or the decoder said.
        detail: String,
    },
    /// No room.
    #[error("there is no room left for the journal in {}", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// Another process writes for too long.
    #[error("the state database {} is held by another process", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// No such run.
    #[error("there is no run `{run}` in {}", path.display())]
    UnknownRun {
        /// As asked for.
        run: String,
        /// The file.
        path: PathBuf,
    },
    /// There is a run of this id.
    #[error("there is already a run `{run}`")]
    Exists {
        /// Which.
        run: RunId,
    },
    /// Another engine drives the run.
    #[error("run `{run}` is driven by {by}")]
    Owned {
        /// Which.
        run: RunId,
        /// Process and host.
        by: String,
    },
    /// This engine drove the run, and another one has taken it.
    #[error("run `{run}` was taken over by another cdpipe")]
    LostOwnership {
        /// Which.
        run: RunId,
    },
    /// The run is over: it can't be resumed or signalled.
    #[error("run `{run}` is over: it is {status}")]
    Over {
        /// Which.
        run: RunId,
        /// How it ended.
        status: String,
    },
    /// The journal of the run was pruned.
    #[error("the journal of run `{run}` was pruned")]
    Pruned {
        /// Which.
        run: RunId,
    },
    /// The journal of one run can't be read.
    #[error("the journal of run `{run}` cannot be read at record {seq}: {detail}")]
    Unreadable {
        /// Which.
        run: RunId,
        /// Number of the record, from 1; 0 is the header.
        seq: u64,
        /// Why.
        detail: String,
    },
    /// The journal of one run has a newer format.
    #[error(
        "run `{run}` was written by a newer cdpipe (journal version {found}; this one reads {supported})"
    )]
    NewerJournal {
        /// Which.
        run: RunId,
        /// Its version.
        found: u32,
        /// The newest version that can be read.
        supported: u32,
    },
    /// The thread that writes has gone.
    #[error("the journal of {} is closed", path.display())]
    Closed {
        /// The file.
        path: PathBuf,
    },
}

impl StoreError {
    /// Sorts an error of SQLite.
    pub(super) fn sqlite(path: &Path, error: &rusqlite::Error) -> Self {
        let path = path.to_owned();
        // A value of a type that we never write there.
        if matches!(
            error,
            rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
        ) {
            return StoreError::Corrupt { path, detail: error.to_string() };
        }
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => StoreError::NotOurs { path },
            Some(ErrorCode::DatabaseCorrupt) => StoreError::Corrupt { path, detail: error.to_string() },
            Some(ErrorCode::SystemIoFailure) => StoreError::Failing { path, detail: error.to_string() },
            Some(ErrorCode::DiskFull) => StoreError::Full { path },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy { path },
            _ => StoreError::Io { path, detail: error.to_string() },
        }
    }

    /// Stable word for scripts.
    pub fn kind(&self) -> &'static str {
        match self {
            StoreError::Io { .. } => "state-unusable",
            StoreError::Failing { .. } => "state-failing",
            StoreError::Newer { .. } => "state-newer",
            StoreError::NotOurs { .. } => "state-not-ours",
            StoreError::Corrupt { .. } => "state-damaged",
            StoreError::Full { .. } => "state-full",
            StoreError::Busy { .. } => "state-busy",
            StoreError::UnknownRun { .. } => "run-unknown",
            StoreError::Exists { .. } => "run-exists",
            StoreError::Owned { .. } => "run-owned",
            StoreError::LostOwnership { .. } => "run-taken-over",
            StoreError::Over { .. } => "run-over",
            StoreError::Pruned { .. } => "run-pruned",
            StoreError::Unreadable { .. } => "journal-unreadable",
            StoreError::NewerJournal { .. } => "journal-newer",
            StoreError::Closed { .. } => "state-closed",
        }
    }

    fn help(&self) -> &'static str {
        match self {
            StoreError::Io { .. } => {
                "make the directory writable for you, or set CDPIPE_STATE to one that is, on a local disk"
            }
            StoreError::Failing { .. } => {
                "see what the kernel says of the disk (`dmesg`); when it works again `cdpipe resume` the run: nothing was done after the \
                 last record"
            }
            StoreError::Newer { .. } | StoreError::NewerJournal { .. } => {
                "use the newer cdpipe, or set CDPIPE_STATE to another directory"
            }
            StoreError::NotOurs { .. } => {
                "nothing was changed; set CDPIPE_STATE to another directory, or move that file away"
            }
            StoreError::Corrupt { .. } => {
                "move cdpipe.db, cdpipe.db-wal and cdpipe.db-shm away together and keep them; what runs on the targets carries \
                 labels and will be found again by the next run"
            }
            StoreError::Full { .. } => {
                "free some space and `cdpipe resume` the run; nothing was done after the last record"
            }
            StoreError::Busy { .. } => "look for a stopped cdpipe process (`cdpipe runs`), then try again",
            StoreError::UnknownRun { .. } => "`cdpipe runs` lists them",
            StoreError::Exists { .. } => "start it again: each run gets an id of its own",
            StoreError::Owned { .. } => {
                "follow it with `cdpipe status`, end it with `cdpipe cancel`, or wait for it"
            }
            StoreError::LostOwnership { .. } => "nothing more is done here; follow it with `cdpipe status`",
            StoreError::Over { .. } => "start a new run",
            StoreError::Pruned { .. } => "only its summary was kept; start a new run",
            StoreError::Unreadable { .. } => {
                "it can't be resumed: `cdpipe runs --abandon` it and start a new run, which observes what is there"
            }
            StoreError::Closed { .. } => "this is a bug of cdpipe; `cdpipe resume` the run",
        }
    }

    /// As users see it.
    pub fn fault(&self) -> Fault {
        let fault = Fault::new(self.kind(), self.to_string()).help(self.help());
        if matches!(self, StoreError::Busy { .. } | StoreError::Full { .. }) {
            fault.transient()
        } else {
            fault
        }
    }
}

/// Whether a fault is one of the state: then it is no matter of the stage that met it.
pub(crate) fn is_of_state(fault: &Fault) -> bool {
    fault.kind.starts_with("state-")
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        error.fault()
    }
}
