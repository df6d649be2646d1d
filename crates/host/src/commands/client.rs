//! The engine's end: finds or starts the supervisor of a run, has it start commands, and hears from it.

use super::protocol::{
    Decoder, Ended, MESSAGE_LIMIT_BYTES, NumberedLine, Start, ToEngine, ToSupervisor, encode, numbered,
};
use super::record::{self, Told};
use super::{Folder, SUPERVISE_COMMANDS, socket};
use crate::durable::{FileLock, io_fault, make_folder};
use crate::mask::Masker;
use crate::supervise::{STARTED, TAKEN, log::last_lines};
use cdpipe_model::Fault;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

/// How long a supervisor may take to begin and to answer. It does little; the rest is a busy machine.
const START_WAIT: Duration = Duration::from_secs(20);

/// Between two looks at a supervisor that begins or ends.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Messages for one command that wait to be taken; then the socket waits, and at last the command.
const QUEUE_MESSAGES: usize = 16;

/// Read from the supervisor at once.
const CHUNK_BYTES: usize = 64 << 10;

/// What a client needs to know.
#[derive(Debug)]
pub(crate) struct ClientConfig {
    /// The cdpipe that becomes the supervisor.
    pub(crate) program: PathBuf,
    /// Folder of the commands of all runs.
    pub(crate) all: PathBuf,
    /// Variables of this process that commands don't get.
    pub(crate) hidden: Vec<OsString>,
    pub(crate) masker: Masker,
}

/// Talks to the supervisors of runs; in practice of one.
#[derive(Debug)]
pub(crate) struct Client {
    config: ClientConfig,
    link: Mutex<Option<Arc<Link>>>,
    connecting: tokio::sync::Mutex<()>,
}

/// What became of a command that this process has not started.
pub(crate) enum Past {
    /// It was not.
    NotStarted,
    /// It runs. Then its lines since nobody listened, and the rest to follow.
    Running(Following, Tale),
    /// It has ended.
    Ended(Ended, Tale),
    /// It runs, and its supervisor is gone: nobody will know how it ends.
    Orphan(u32),
    /// Nobody knows.
    Unknown(Fault),
}

/// What is known of a command besides its end.
pub(crate) struct Tale {
    pub(crate) title: String,
    pub(crate) outputs: Vec<String>,
    /// Output that maybe no engine took.
    pub(crate) lines: Vec<NumberedLine>,
}

/// What is heard of a command.
pub(crate) enum Event {
    Lines(Vec<NumberedLine>),
    Ended(Ended),
}

impl Client {
    pub(crate) fn new(config: ClientConfig) -> Self {
        Self { config, link: Mutex::new(None), connecting: tokio::sync::Mutex::new(()) }
    }

    /// The folder of the run that an effect is of.
    pub(crate) fn folder(&self, effect: &str) -> Folder {
        let run = effect.rsplit_once('/').map_or(effect, |(run, _)| run);
        Folder::of_run(&self.config.all, run)
    }

    /// Has a command started.
    ///
    /// # Errors
    /// If there is no supervisor and none can be started. Then the command was not started either.
    pub(crate) async fn start(&self, mut start: Start) -> Result<Following, Fault> {
        let folder = self.folder(&start.effect);
        let Some(link) = self.link(&folder, true).await? else {
            return Err(Fault::new("supervisor-failed", "commands have no supervisor").transient());
        };
        let following = link.follow(&start.effect);
        if !start.outputs.is_empty() {
            crate::runner::create_output(&folder.output(&start.effect))?;
        }
        let mut told = link.told.lock().unwrap_or_else(PoisonError::into_inner);
        (start.mask, *told) = self.config.masker.values_after(*told);
        if !link.send(&ToSupervisor::Start(Box::new(start))) {
            return Err(crate::runner::too_large());
        }
        drop(told);
        Ok(following)
    }

    /// What became of a command. Attaches to it if it runs.
    ///
    /// # Errors
    /// If the record can't be read, or the supervisor does not answer.
    pub(crate) async fn past(&self, effect: &str) -> Result<Past, Fault> {
        let folder = self.folder(effect);
        let attached = match self.link(&folder, false).await? {
            Some(link) => link.attach(effect).await?,
            None => None,
        };
        // Read after the supervisor was asked: what it does not run any more is in there.
        let told = record::read(&folder, effect)?;
        if let Some((following, unseen)) = attached {
            let tale = tale(&folder, effect, &told, unseen)?;
            return Ok(Past::Running(following, tale));
        }
        if let Some(ended) = told.ended.clone() {
            let tale = tale(&folder, effect, &told, told.unseen)?;
            return Ok(Past::Ended(ended, tale));
        }
        let of_this_boot = record::is_of_this_boot(&folder);
        if told.start.is_none() && of_this_boot {
            return Ok(Past::NotStarted);
        }
        if of_this_boot && let Some(pid) = record::living(&told, effect) {
            return Ok(Past::Orphan(pid));
        }
        let why = if of_this_boot {
            "the process that supervised it was killed"
        } else {
            "the machine was started anew since"
        };
        let name =
            told.start.map_or_else(|| format!("the command of {effect}"), |(title, _)| format!("`{title}`"));
        Ok(Past::Unknown(unknown(&name, why)))
    }

    /// The connection; without `spawn` only if there is a supervisor.
    async fn link(&self, folder: &Folder, spawn: bool) -> Result<Option<Arc<Link>>, Fault> {
        if let Some(link) = self.current(folder) {
            return Ok(Some(link));
        }
        let _one_at_a_time = self.connecting.lock().await;
        if let Some(link) = self.current(folder) {
            return Ok(Some(link));
        }
        let until = Instant::now() + START_WAIT;
        while Instant::now() < until {
            if FileLock::is_held(&folder.lock()) {
                let hello = ToSupervisor::Hello { env: Some(self.environment()) };
                // One that is just ending, or just beginning, does not answer: then it is looked at again.
                if let Some((link, _)) = Link::open(folder, &hello).await {
                    let link = Arc::new(link);
                    *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&link));
                    return Ok(Some(link));
                }
                tokio::time::sleep(LOOK_EVERY).await;
            } else if spawn {
                self.spawn(folder).await?;
            } else {
                return Ok(None);
            }
        }
        let message = format!("the supervisor of commands in {} does not answer", folder.path().display());
        Err(Fault::new("supervisor-failed", message).transient())
    }

    fn current(&self, folder: &Folder) -> Option<Arc<Link>> {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        link.as_ref().filter(|link| link.folder.path() == folder.path() && link.is_alive()).cloned()
    }

    /// What commands get of this process's environment.
    fn environment(&self) -> Vec<(OsString, OsString)> {
        std::env::vars_os().filter(|(name, _)| !self.config.hidden.contains(name)).collect()
    }

    /// Starts a supervisor and waits until it says that it has begun, or that there is one.
    async fn spawn(&self, folder: &Folder) -> Result<(), Fault> {
        make_folder(folder.path())?;
        let path =
            std::path::absolute(folder.path()).map_err(|error| io_fault("find", folder.path(), &error))?;
        let program = &self.config.program;
        let complaints = OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.log())
            .map_err(|error| io_fault("open", &folder.log(), &error))?;
        let mut command = tokio::process::Command::new(program);
        command.arg(SUPERVISE_COMMANDS).arg(path).current_dir("/");
        for name in &self.config.hidden {
            command.env_remove(name);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(complaints)
            .spawn()
            .map_err(|error| io_fault("start the supervisor of commands,", program, &error))?;
        let mut said = Vec::new();
        let hear = async {
            match child.stdout.take() {
                Some(stdout) => stdout.take(4096).read_to_end(&mut said).await,
                None => Ok(0),
            }
        };
        if tokio::time::timeout(START_WAIT, hear).await.is_err() {
            let _ = child.start_kill();
            let message = format!("the supervisor of commands said nothing for {} s", START_WAIT.as_secs());
            return Err(Fault::new("supervisor-failed", message).transient());
        }
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        if said == STARTED || said == TAKEN {
            return Ok(());
        }
        let reason = if said.is_empty() { "it ended without a word".to_owned() } else { said };
        Err(Fault::new("supervisor-failed", format!("the supervisor of commands could not begin: {reason}"))
            .details(last_lines(&folder.log(), 20))
            .help(format!("{} must be a cdpipe that knows `{SUPERVISE_COMMANDS}`", program.display())))
    }
}

/// The fault of a command whose end nobody knows.
pub(super) fn unknown(name: &str, why: &str) -> Fault {
    Fault::new("outcome-unknown", format!("nobody knows how {name} ended: {why}")).help(
        "look at what it should have done; `on_interrupt = retry` on a step says that twice does no harm",
    )
}

fn tale(folder: &Folder, effect: &str, told: &Told, unseen: Option<(u64, u64)>) -> Result<Tale, Fault> {
    let (title, outputs) = told.start.clone().unwrap_or_default();
    let lines = match unseen {
        Some(part) => record::output(folder, effect, part)?,
        None => Vec::new(),
    };
    Ok(Tale { title, outputs, lines })
}

/// Tells the supervisor to end all commands. Answers how many there are.
pub(super) async fn end_all(folder: &Folder, wait: Duration) -> Result<usize, Fault> {
    let until = Instant::now() + wait;
    while FileLock::is_held(&folder.lock()) {
        if let Some((link, running)) = Link::open(folder, &ToSupervisor::Hello { env: None }).await {
            link.send(&ToSupervisor::StopAll);
            link.sent().await;
            return Ok(running);
        }
        if Instant::now() >= until {
            let message =
                format!("the supervisor of commands in {} does not answer", folder.path().display());
            return Err(Fault::new("busy", message).transient());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(0)
}

type Listeners = HashMap<String, mpsc::Sender<ToEngine>>;

/// A connection to a supervisor.
#[derive(Debug)]
struct Link {
    folder: Folder,
    shared: Arc<Shared>,
    /// How many values to mask it was told.
    told: Mutex<usize>,
    tasks: [JoinHandle<()>; 2],
}

#[derive(Debug)]
struct Shared {
    stream: UnixStream,
    dead: AtomicBool,
    /// Somebody has stopped listening before a command's end.
    abandoned: AtomicBool,
    listeners: Mutex<Listeners>,
    /// What the socket did not take yet.
    backlog: Mutex<Vec<u8>>,
    /// There is a backlog, or there is none any more.
    moved: Notify,
}

impl Shared {
    fn listeners(&self) -> MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn backlog(&self) -> MutexGuard<'_, Vec<u8>> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what the socket takes, removes it, and answers whether anything is left.
    fn write(&self, bytes: &mut Vec<u8>) -> bool {
        let mut sent = 0;
        while sent < bytes.len() {
            match self.stream.try_write(&bytes[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The reader finds out too.
                Err(_) => sent = bytes.len(),
            }
        }
        // They may hold secrets.
        bytes[..sent].fill(0);
        bytes.drain(..sent);
        !bytes.is_empty()
    }
}

impl Link {
    /// Connects and says hello; `None` if nobody answers. Answers how many commands run, too.
    async fn open(folder: &Folder, hello: &ToSupervisor) -> Option<(Self, usize)> {
        let stream = socket::connect(folder.path()).await.ok()?;
        let shared = Arc::new(Shared {
            stream,
            dead: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            listeners: Mutex::new(HashMap::new()),
            backlog: Mutex::new(Vec::new()),
            moved: Notify::new(),
        });
        let writer = tokio::spawn(write_on(Arc::clone(&shared)));
        let (welcome, mut welcomed) = mpsc::channel(1);
        let reader = tokio::spawn(read_on(Arc::clone(&shared), welcome));
        let link = Self { folder: folder.clone(), shared, told: Mutex::new(0), tasks: [writer, reader] };
        link.send(hello);
        match tokio::time::timeout(START_WAIT, welcomed.recv()).await {
            Ok(Some(running)) => Some((link, running)),
            _ => None,
        }
    }

    fn is_alive(&self) -> bool {
        !self.shared.dead.load(Ordering::SeqCst)
    }

    /// From now on, hears what is said of this effect.
    fn follow(self: &Arc<Self>, effect: &str) -> Following {
        let (sender, events) = mpsc::channel(QUEUE_MESSAGES);
        {
            let mut listeners = self.shared.listeners();
            // One that has just died clears the listeners once: who comes after that must not wait for ever.
            if self.is_alive() {
                listeners.insert(effect.to_owned(), sender);
            }
        }
        Following { link: Arc::clone(self), effect: effect.to_owned(), events, over: false }
    }

    /// Answers `None` if it does not run.
    async fn attach(
        self: &Arc<Self>,
        effect: &str,
    ) -> Result<Option<(Following, Option<(u64, u64)>)>, Fault> {
        let mut following = self.follow(effect);
        self.send(&ToSupervisor::Attach { effect: effect.to_owned() });
        let answer = tokio::time::timeout(START_WAIT, following.events.recv()).await;
        match answer {
            Ok(Some(ToEngine::Attached { running, unseen, .. })) => {
                following.over = !running;
                Ok(running.then_some((following, unseen)))
            }
            // It died: the record says the rest.
            Ok(_) => Ok(None),
            Err(_) => {
                Err(Fault::new("supervisor-failed", "the supervisor of commands does not answer").transient())
            }
        }
    }

    /// Never waits. Answers `false` for a message that is too long to be sent.
    fn send(&self, message: &ToSupervisor) -> bool {
        let mut bytes = Vec::with_capacity(512);
        encode(message, &mut bytes);
        if bytes.len() > MESSAGE_LIMIT_BYTES {
            return false;
        }
        let mut backlog = self.shared.backlog();
        if !backlog.is_empty() {
            backlog.append(&mut bytes);
        } else if self.shared.write(&mut bytes) {
            *backlog = bytes;
            self.shared.moved.notify_one();
        }
        true
    }

    /// Resolves when all was handed to the socket, or nobody is there to take it.
    async fn sent(&self) {
        let until = Instant::now() + START_WAIT;
        while self.is_alive() && !self.shared.backlog().is_empty() && Instant::now() < until {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Who follows a command holds this, so nobody does: all that was said was taken.
        if self.is_alive() && !self.shared.abandoned.load(Ordering::SeqCst) {
            self.send(&ToSupervisor::Bye);
        }
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn write_on(shared: Arc<Shared>) {
    loop {
        if shared.backlog().is_empty() {
            shared.moved.notified().await;
        }
        if shared.stream.writable().await.is_err() || shared.dead.load(Ordering::SeqCst) {
            return;
        }
        shared.write(&mut shared.backlog());
    }
}

async fn read_on(shared: Arc<Shared>, welcome: mpsc::Sender<usize>) {
    let mut decoder = Decoder::default();
    'read: loop {
        if shared.stream.readable().await.is_err() {
            break;
        }
        let buffer = decoder.buffer();
        buffer.reserve(CHUNK_BYTES);
        match shared.stream.try_read_buf(buffer) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                continue;
            }
            Err(_) => break,
        }
        let Ok(messages) = decoder.take::<ToEngine>() else { break };
        for message in messages {
            let listener = match &message {
                ToEngine::Welcome { running } => {
                    if welcome.send(*running).await.is_err() {
                        break 'read;
                    }
                    continue;
                }
                ToEngine::Ended { effect, .. } => shared.listeners().remove(effect),
                ToEngine::Attached { effect, .. } | ToEngine::Lines { effect, .. } => {
                    shared.listeners().get(effect).cloned()
                }
            };
            // Who has given up on a command no longer listens; it goes on all the same.
            if let Some(listener) = listener {
                let _ = listener.send(message).await;
            }
        }
    }
    let mut listeners = shared.listeners();
    shared.dead.store(true, Ordering::SeqCst);
    listeners.clear();
}

/// A command as it is heard of.
pub(crate) struct Following {
    link: Arc<Link>,
    effect: String,
    events: mpsc::Receiver<ToEngine>,
    /// It was heard to its end.
    over: bool,
}

impl Following {
    /// What is heard next; `None` if the supervisor is gone.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            return match self.events.recv().await? {
                ToEngine::Lines { first, lines, .. } => Some(Event::Lines(numbered(first, lines).collect())),
                ToEngine::Ended { ended, .. } => {
                    self.over = true;
                    Some(Event::Ended(ended))
                }
                ToEngine::Welcome { .. } | ToEngine::Attached { .. } => continue,
            };
        }
    }

    /// Has it ended: TERM, its grace, KILL. Its end comes as any other.
    pub(crate) fn stop(&self) {
        self.link.send(&ToSupervisor::Stop { effect: self.effect.clone() });
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.link.shared.listeners().remove(&self.effect);
        if !self.over {
            self.link.shared.abandoned.store(true, Ordering::SeqCst);
        }
    }
}
