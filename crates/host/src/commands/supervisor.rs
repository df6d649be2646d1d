//! The supervisor's own life: one thread that starts commands, hears them, and talks to one engine at a time.
//!
//! Invariants: a command is not started whose start is not in the record; its end is in the record before anybody is told; a start of
//! an effect that runs already starts nothing.

use super::protocol::{
    Decoder, Ended, How, MESSAGE_LIMIT_BYTES, Start, ToEngine, ToSupervisor, WireLine, encode,
};
use super::record::Record;
use super::{Folder, socket};
use crate::durable::{FileLock, io_fault};
use crate::mask::Masker;
use crate::runner::{Limits, Output, execute, spawn};
use crate::supervise::{STARTED, TAKEN, detach, runtime, say};
use cdpipe_model::Fault;
use cdpipe_model::event::Stream;
use cdpipe_model::ports::{BoxFuture, Cancel};
use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, watch};

/// How long the engine that has started it may take to connect.
const FIRST_WAIT: Duration = Duration::from_secs(30);

/// Bytes that may wait for an engine before output is no longer read.
const OUTBOX_BYTES: usize = 256 << 10;

/// Bytes of what was sent last that are kept: nobody knows how much of it an engine that is killed has taken. It is more than the socket
/// and the queues of an engine hold.
const KEPT_BYTES: usize = 4 << 20;

/// Read from the engine at once.
const CHUNK_BYTES: usize = 64 << 10;

pub(super) fn main(path: &Path) -> ExitCode {
    // Fails only for a group leader, which has left its starter's group already.
    let _ = rustix::process::setsid();
    let (server, runtime) = match begin(path) {
        Ok(begun) => begun,
        Err(reason) => {
            say(&reason);
            return ExitCode::FAILURE;
        }
    };
    say(STARTED);
    detach();
    runtime.block_on(server.serve());
    ExitCode::SUCCESS
}

fn begin(path: &Path) -> Result<(Server, tokio::runtime::Runtime), String> {
    let folder = Folder::at(path.to_owned());
    let lock = take_lock(&folder)?;
    let record = Record::open(&folder).map_err(|fault| fault.message)?;
    let runtime = runtime().map_err(|error| error.to_string())?;
    let listener = {
        let _inside = runtime.enter();
        socket::bind(folder.path()).map_err(|error| format!("cannot make the socket: {error}"))?
    };
    let state = State {
        record,
        outbox: Vec::new(),
        kept: VecDeque::new(),
        attached: false,
        running: HashMap::new(),
        masker: Masker::default(),
        env: None,
    };
    let hub = Arc::new(Hub { folder, state: Mutex::new(state), work: Notify::new(), room: Notify::new() });
    // The kernel gives it back when the process is gone: whoever finds it free finds no process either.
    std::mem::forget(lock);
    Ok((Server { hub, listener, engine: None, sent: 0 }, runtime))
}

fn take_lock(folder: &Folder) -> Result<FileLock, String> {
    // Whoever only looks at the lock holds it for a moment.
    for _ in 0..20 {
        match FileLock::try_exclusive(&folder.lock()) {
            Ok(Some(lock)) => return Ok(lock),
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(format!("cannot lock {}: {error}", folder.lock().display())),
        }
    }
    Err(TAKEN.to_owned())
}

/// What the server and the commands share.
struct Hub {
    folder: Folder,
    state: Mutex<State>,
    /// There is something to send, or a command has ended.
    work: Notify,
    /// There is room in the outbox again.
    room: Notify,
}

struct State {
    record: Record,
    /// Messages for the engine, encoded; a part of the first may have been sent.
    outbox: Vec<u8>,
    /// The last messages that were sent, encoded. Bounded by `KEPT_BYTES`.
    kept: VecDeque<u8>,
    /// Whether an engine is there.
    attached: bool,
    running: HashMap<String, Entry>,
    masker: Masker,
    /// Environment of commands instead of this process's own.
    env: Option<Arc<Vec<(OsString, OsString)>>>,
}

/// A command that runs.
struct Entry {
    cancel: watch::Sender<bool>,
    /// The engine that is there has started it or attached to it: before that it would pass its lines over.
    followed: bool,
    /// Its lines so far.
    lines: u64,
    /// Where in the record its output stands that maybe no engine took. It is told to each engine that asks: the one before may have been
    /// killed before it took any of it, and lines have numbers.
    unseen: Option<(u64, u64)>,
}

impl Hub {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn send(&mut self, message: &ToEngine) {
        if self.attached {
            encode(message, &mut self.outbox);
        }
    }

    /// New lines: to the engine that follows them, or into the record while there is none.
    fn lines(&mut self, effect: &str, lines: Vec<WireLine>) {
        let Some(entry) = self.running.get_mut(effect) else { return };
        let first = entry.lines + 1;
        entry.lines += lines.len() as u64;
        if self.attached && entry.followed {
            self.send(&ToEngine::Lines { effect: effect.to_owned(), first, lines });
        } else {
            self.record_lines(effect, first, lines);
        }
    }

    /// Answers where they stand now.
    fn record_lines(&mut self, effect: &str, first: u64, lines: Vec<WireLine>) -> Option<(u64, u64)> {
        // A full disk loses output; that the command goes on matters more.
        let (from, to) = self.record.out(effect, first, lines).ok()?;
        if let Some(entry) = self.running.get_mut(effect) {
            entry.unseen = Some((entry.unseen.map_or(from, |(begin, _)| begin), to));
        }
        Some((from, to))
    }

    /// Takes whole messages out of the outbox, which were sent, and keeps the newest of them.
    fn keep_sent(&mut self, bytes: usize) {
        self.kept.extend(self.outbox.drain(..bytes));
        let surplus = self.kept.len().saturating_sub(KEPT_BYTES);
        if surplus > 0 {
            let end = self.kept.iter().skip(surplus).position(|byte| *byte == b'\n');
            self.kept.drain(..end.map_or(self.kept.len(), |at| surplus + at + 1));
        }
    }

    fn ended(&mut self, effect: &str, ended: Ended) {
        let unseen = self.running.remove(effect).and_then(|entry| entry.unseen);
        // If the disk is full the engine, if there is one, knows it all the same.
        let _ = self.record.end(effect, &ended, unseen);
        self.send(&ToEngine::Ended { effect: effect.to_owned(), ended });
    }
}

/// Lines of one command.
struct Said<'a> {
    hub: &'a Hub,
    effect: &'a str,
}

impl Output for Said<'_> {
    fn lines(&mut self, lines: Vec<(Stream, String)>) {
        self.hub.state().lines(self.effect, lines.into_iter().map(WireLine::new).collect());
        self.hub.work.notify_one();
    }

    async fn room(&mut self) {
        loop {
            let room = self.hub.room.notified();
            if self.hub.state().outbox.len() < OUTBOX_BYTES {
                return;
            }
            room.await;
        }
    }
}

/// Told by the engine.
struct Told(watch::Receiver<bool>);

impl Cancel for Told {
    fn is_cancelled(&self) -> bool {
        *self.0.borrow()
    }

    fn cancelled(&self) -> BoxFuture<'_, ()> {
        let mut told = self.0.clone();
        Box::pin(async move {
            if told.wait_for(|told| *told).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

/// Runs one command to its end. Its start is in the record.
async fn run(hub: Arc<Hub>, mut start: Start, cancel: watch::Receiver<bool>) {
    let begun = Instant::now();
    let output = if start.outputs.is_empty() { None } else { Some(hub.folder.output(&start.effect)) };
    let (masker, base_env) = {
        let state = hub.state();
        (state.masker.clone(), state.env.clone())
    };
    let env = std::mem::take(&mut start.env);
    let base_env = base_env.as_ref().map(|env| env.as_slice());
    let ended = match spawn(&mut start, env, base_env, output.as_deref(), &masker) {
        Err(fault) => Ended { how: How::NotStarted(fault), took_ms: 0, last: Vec::new() },
        Ok(running) => {
            // Without its process in the record it is found by its environment.
            let _ = hub.state().record.pid(&start.effect, running.pid());
            let limits = Limits {
                cancel: &Told(cancel),
                deadline: Duration::from_millis(start.deadline_ms),
                grace: Duration::from_millis(start.grace_ms),
                begun,
            };
            execute(running, limits, &mut Said { hub: &hub, effect: &start.effect }).await
        }
    };
    hub.state().ended(&start.effect, ended);
    hub.work.notify_one();
}

struct Server {
    hub: Arc<Hub>,
    listener: UnixListener,
    engine: Option<Engine>,
    /// Bytes of the outbox that were sent.
    sent: usize,
}

struct Engine {
    stream: UnixStream,
    decoder: Decoder,
}

enum Woke {
    New(io::Result<UnixStream>),
    Readable,
    Work,
    Silent,
}

impl Server {
    async fn serve(mut self) {
        let mut idle_until = Instant::now() + FIRST_WAIT;
        loop {
            self.flush();
            let alone = self.engine.is_none() && self.hub.state().running.is_empty();
            let woke = {
                let Self { hub, listener, engine, .. } = &self;
                let backlog = engine.is_some() && !hub.state().outbox.is_empty();
                tokio::select! {
                    biased;
                    () = readable(engine.as_ref()) => Woke::Readable,
                    new = listener.accept() => Woke::New(new.map(|(stream, _)| stream)),
                    () = hub.work.notified() => Woke::Work,
                    () = writable(engine.as_ref()), if backlog => Woke::Work,
                    () = tokio::time::sleep_until(idle_until.into()), if alone => Woke::Silent,
                }
            };
            match woke {
                Woke::Work => {}
                Woke::Readable => self.read(),
                Woke::New(Ok(stream)) => {
                    // What the one before has said still counts: it may have died right after.
                    self.read();
                    self.detach_engine();
                    self.engine = Some(Engine { stream, decoder: Decoder::default() });
                    self.hub.state().attached = true;
                }
                Woke::New(Err(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
                Woke::Silent => return,
            }
            if self.engine.is_some() {
                // Once an engine was there, there is nothing to wait for when it is gone.
                idle_until = Instant::now();
            }
        }
    }

    /// Takes all that the engine has said.
    fn read(&mut self) {
        loop {
            let Some(engine) = &mut self.engine else { return };
            let buffer = engine.decoder.buffer();
            buffer.reserve(CHUNK_BYTES);
            let read = engine.stream.try_read_buf(buffer);
            let over = match read {
                Ok(0) => true,
                Ok(_) => false,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => error.kind() != io::ErrorKind::Interrupted,
            };
            let messages = engine.decoder.take::<ToSupervisor>();
            match messages {
                Ok(messages) => messages.into_iter().for_each(|message| self.handle(message)),
                Err(_) => return self.detach_engine(),
            }
            if over {
                return self.detach_engine();
            }
        }
    }

    fn handle(&mut self, message: ToSupervisor) {
        let mut state = self.hub.state();
        match message {
            ToSupervisor::Hello { env } => {
                let own = || std::env::vars_os().collect::<Vec<_>>();
                state.env = env.filter(|env| *env != own()).map(Arc::new);
                let running = state.running.len();
                state.send(&ToEngine::Welcome { running });
            }
            ToSupervisor::Start(start) => {
                drop(state);
                self.start(*start);
            }
            ToSupervisor::Attach { effect } => {
                let entry = state.running.get_mut(&effect);
                let running = entry.is_some();
                let unseen = entry.and_then(|entry| {
                    entry.followed = true;
                    entry.unseen
                });
                state.send(&ToEngine::Attached { effect, running, unseen });
            }
            ToSupervisor::Stop { effect } => {
                if let Some(entry) = state.running.get(&effect) {
                    entry.cancel.send_replace(true);
                }
            }
            ToSupervisor::Bye => state.kept.clear(),
            ToSupervisor::StopAll => {
                for entry in state.running.values() {
                    entry.cancel.send_replace(true);
                }
            }
        }
    }

    fn start(&self, mut start: Start) {
        let mut state = self.hub.state();
        for value in std::mem::take(&mut start.mask) {
            state.masker.learn_text(&value);
        }
        if let Some(entry) = state.running.get_mut(&start.effect) {
            entry.followed = true;
            return;
        }
        if let Err(error) = state.record.start(&start.effect, &start.title, &start.outputs) {
            let fault: Fault = io_fault("write", &self.hub.folder.record(), &error);
            let ended = Ended { how: How::NotStarted(fault), took_ms: 0, last: Vec::new() };
            return state.ended(&start.effect, ended);
        }
        let (cancel, cancelled) = watch::channel(false);
        state.running.insert(start.effect.clone(), Entry { cancel, followed: true, lines: 0, unseen: None });
        drop(state);
        tokio::spawn(run(Arc::clone(&self.hub), start, cancelled));
    }

    /// Sends as much as the engine takes now.
    fn flush(&mut self) {
        let Some(engine) = &self.engine else { return };
        let mut state = self.hub.state();
        while self.sent < state.outbox.len() {
            match engine.stream.try_write(&state.outbox[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Anything else than a full socket shows itself at the next read.
                Err(_) => break,
            }
        }
        // The beginning of a message that was sent in part is kept: see `detach_engine`.
        let whole = state.outbox[..self.sent].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        state.keep_sent(whole);
        self.sent -= whole;
        if state.outbox.len() < OUTBOX_BYTES {
            self.hub.room.notify_waiters();
        }
        debug_assert!(state.outbox.len() <= OUTBOX_BYTES + MESSAGE_LIMIT_BYTES, "output waits for room");
    }

    /// The engine is gone: output that it may not have taken goes into the record.
    fn detach_engine(&mut self) {
        let Some(_gone) = self.engine.take() else { return };
        let mut state = self.hub.state();
        state.attached = false;
        state.running.values_mut().for_each(|entry| entry.followed = false);
        self.sent = 0;
        let mut parts: HashMap<String, (u64, u64)> = HashMap::new();
        let mut said = Vec::from(std::mem::take(&mut state.kept));
        said.append(&mut state.outbox);
        for message in said.split(|byte| *byte == b'\n') {
            match serde_json::from_slice(message) {
                Ok(ToEngine::Lines { effect, first, lines }) => {
                    if let Some((from, to)) = state.record_lines(&effect, first, lines) {
                        parts.entry(effect).and_modify(|part| part.1 = to).or_insert((from, to));
                    }
                }
                // Its end is in the record; now with where its last lines are.
                Ok(ToEngine::Ended { effect, ended }) => {
                    if let Some(part) = parts.remove(&effect) {
                        let _ = state.record.end(&effect, &ended, Some(part));
                    }
                }
                _ => {}
            }
        }
        self.hub.room.notify_waiters();
    }
}

async fn readable(engine: Option<&Engine>) {
    match engine {
        // An error shows itself at the read that follows.
        Some(engine) => drop(engine.stream.readable().await),
        None => std::future::pending().await,
    }
}

async fn writable(engine: Option<&Engine>) {
    match engine {
        Some(engine) => drop(engine.stream.writable().await),
        None => std::future::pending().await,
    }
}
