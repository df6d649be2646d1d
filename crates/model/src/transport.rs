//! How a router's or a target's files and commands are reached where they live: on this machine, on another one over SSH, inside a
//! container. Whoever writes an nginx include or speaks to a runtime socket does it through this, and does not know which it is.

use crate::ports::{Call, PortResult};

/// What a command that was run by a [`Transport`] came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Exit status; 128 and the signal's number where a signal ended it.
    pub status: i32,
    /// Standard output, at most 1 MiB of it, masked.
    pub stdout: String,
    /// Standard error, at most 1 MiB of it, masked.
    pub stderr: String,
}

impl Ran {
    /// Whether it ended with 0.
    pub fn ok(&self) -> bool {
        self.status == 0
    }
}

/// Where a request of [`Transport::exchange`] goes, as seen from there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A Unix socket by its path.
    Unix(String),
    /// `HOST:PORT`.
    Tcp(String),
}

/// A place with files, commands and sockets. Every call ends by the deadline of its [`Call`], or when that is cancelled; a cancelled
/// one leaves nothing of its own running.
pub trait Transport: Send + Sync {
    /// For people: `this machine`, `web-1.example.com`, `container edge`.
    fn place(&self) -> String;

    /// The bytes of a file, at most 4 MiB; `None` if there is none.
    ///
    /// # Errors
    /// If it can't be read, or is larger.
    fn read<'a>(&'a self, call: Call<'a>, path: &'a str) -> PortResult<'a, Option<Vec<u8>>>;

    /// Writes a file whole or not at all: beside it, synced, then renamed over it. Keeps owner and mode of a file that is there; a new
    /// one gets `mode`. Does not make folders.
    ///
    /// # Errors
    /// If it can't be written; the former file is there then.
    fn write<'a>(&'a self, call: Call<'a>, path: &'a str, bytes: &'a [u8], mode: u32) -> PortResult<'a, ()>;

    /// Removes a file; none there is fine.
    ///
    /// # Errors
    /// If it can't be removed.
    fn remove<'a>(&'a self, call: Call<'a>, path: &'a str) -> PortResult<'a, ()>;

    /// Runs a program with arguments, never through a shell where that can be avoided and with every argument quoted where it can't.
    /// Any exit status is an answer, not an error.
    ///
    /// # Errors
    /// If it can't be started; `timed-out`; `cancelled`.
    fn exec<'a>(&'a self, call: Call<'a>, argv: &'a [String], stdin: &'a [u8]) -> PortResult<'a, Ran>;

    /// Connects, sends the request, and answers all that comes back until the other side closes, at most 4 MiB.
    ///
    /// # Errors
    /// `unreachable` if nobody listens; `timed-out`; `cancelled`.
    fn exchange<'a>(&'a self, call: Call<'a>, to: &'a Endpoint, request: &'a [u8])
    -> PortResult<'a, Vec<u8>>;
}
