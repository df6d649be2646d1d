//! What an engine and the supervisor of its commands say to each other: JSON, a message a line.

use cdpipe_model::Fault;
use cdpipe_model::event::Stream;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// Longest message in bytes. A command can't be given as much: the kernel allows some megabytes of arguments and environment.
pub(super) const MESSAGE_LIMIT_BYTES: usize = 16 << 20;

/// From the engine.
#[derive(Serialize, Deserialize)]
pub(super) enum ToSupervisor {
    /// The first message. With an environment, commands get that one from now on instead of the supervisor's own.
    Hello { env: Option<Vec<(OsString, OsString)>> },
    /// Starts a command. If one of this effect runs already, it is attached to instead.
    Start(Box<Start>),
    /// Asks for lines and end of a command that may run.
    Attach { effect: String },
    /// Ends a command: TERM, its grace, KILL.
    Stop { effect: String },
    /// Ends all of them.
    StopAll,
    /// The last message of an engine that has taken everything.
    Bye,
}

/// A command.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Start {
    /// Which effect it is.
    pub(crate) effect: String,
    /// Its first line, masked, for messages.
    pub(crate) title: String,
    /// For `/bin/sh -ec`.
    pub(crate) script: String,
    /// Working directory, absolute.
    pub(crate) folder: PathBuf,
    /// Environment on top of what all commands have; secrets are resolved.
    pub(crate) env: BTreeMap<String, String>,
    /// Standard input.
    pub(crate) stdin: Option<String>,
    /// Names that are read from `$CDPIPE_OUTPUT` afterwards. Without any there is no such file.
    pub(crate) outputs: Vec<String>,
    /// How long it may take.
    pub(crate) deadline_ms: u64,
    /// How long it may take to end after TERM.
    pub(crate) grace_ms: u64,
    /// Values to mask, besides those that were told before.
    pub(crate) mask: Vec<String>,
}

/// From the supervisor.
#[derive(Serialize, Deserialize)]
pub(super) enum ToEngine {
    /// The answer to `Hello`; with how many commands run.
    Welcome { running: usize },
    /// The answer to `Attach`. `unseen` is where in the record output stands that maybe no engine has taken: from, to.
    Attached { effect: String, running: bool, unseen: Option<(u64, u64)> },
    /// Output, masked; `first` is the number of the first of these lines, from 1 on.
    Lines { effect: String, first: u64, lines: Vec<WireLine> },
    /// A command has ended. It is in the record by now.
    Ended { effect: String, ended: Ended },
}

/// A line of output: whether it is of standard error, and its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WireLine(pub(super) bool, pub(super) String);

impl WireLine {
    pub(super) fn new((stream, text): (Stream, String)) -> Self {
        Self(stream == Stream::Stderr, text)
    }

    fn into_line(self, number: u64) -> NumberedLine {
        NumberedLine { number, stream: if self.0 { Stream::Stderr } else { Stream::Stdout }, text: self.1 }
    }
}

/// A line, and which one of its command it is: from 1 on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NumberedLine {
    pub(crate) number: u64,
    pub(crate) stream: Stream,
    pub(crate) text: String,
}

/// Gives lines their numbers.
pub(super) fn numbered(first: u64, lines: Vec<WireLine>) -> impl Iterator<Item = NumberedLine> {
    (first..).zip(lines).map(|(number, line)| line.into_line(number))
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) how: How,
    pub(crate) took_ms: u64,
    /// The last lines of its output, if it did not succeed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) last: Vec<String>,
}

/// In which way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum How {
    /// By itself; the status as `wait` gives it.
    Exited(i32),
    /// It was told to.
    Cancelled,
    /// It took too long.
    TimedOut,
    /// It never began.
    NotStarted(Fault),
    /// Its status could not be had.
    Lost(String),
}

/// Appends a message.
pub(super) fn encode<T: Serialize>(message: &T, bytes: &mut Vec<u8>) {
    let before = bytes.len();
    // Writing to memory fails for nothing that these types can hold; half a message must not be sent all the same.
    if serde_json::to_writer(&mut *bytes, message).is_err() {
        bytes.truncate(before);
        return;
    }
    bytes.push(b'\n');
}

/// Cuts a stream of bytes into messages.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    bytes: Vec<u8>,
    /// Up to here there is no line end.
    looked_at: usize,
}

impl Decoder {
    /// Where the next bytes belong.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The messages that are whole by now.
    ///
    /// # Errors
    /// What could not be understood: then the other side is none of ours.
    pub(super) fn take<T: DeserializeOwned>(&mut self) -> Result<Vec<T>, String> {
        let mut messages = Vec::new();
        let mut from = 0;
        while let Some(length) = self.bytes[self.looked_at..].iter().position(|byte| *byte == b'\n') {
            let end = self.looked_at + length;
            messages.push(serde_json::from_slice(&self.bytes[from..end]).map_err(|error| error.to_string())?);
            (from, self.looked_at) = (end + 1, end + 1);
        }
        // They may hold secrets.
        self.bytes[..from].fill(0);
        self.bytes.drain(..from);
        self.looked_at = self.bytes.len();
        if self.bytes.len() > MESSAGE_LIMIT_BYTES {
            return Err("a message is too long".to_owned());
        }
        Ok(messages)
    }
}
