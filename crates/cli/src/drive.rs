//! Drives a run from this process: the engine on a runtime, reporters on their threads, the person at the keyboard, signals.

use crate::failure::{self, Failure};
use crate::keyboard::Keyboard;
use crate::times::now_ms;
use crate::ui::Ui;
use crate::wiring::Wiring;
use crate::{state, wiring};
use cdpipe_engine::{
    Ask, Engine, Fanout, Journal, Options, OutputLog, Past, RunEnd, RunJournal, Store, SystemClock, Verdict,
};
use cdpipe_model::Fault;
use cdpipe_model::record::{RunHeader, Signal};
use cdpipe_report::Reporter;
use cdpipe_report::ci::GitHub;
use cdpipe_report::json::JsonLines;
use cdpipe_report::plain::Plain;
use cdpipe_report::prometheus::MetricsFile;
use cdpipe_report::state::RunState;
use cdpipe_report::style::Style;
use cdpipe_report::terminal::{self, Terminal};
use clap::ValueEnum;
use std::collections::VecDeque;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// How long the supervisor of commands may take to end after the run: it has nothing to wait for.
const SUPERVISOR_ENDS_WITHIN: Duration = Duration::from_secs(2);

/// The variable that says how long a lock lasts without being renewed.
const LEASE_VARIABLE: &str = "CDPIPE_LEASE";

/// What it may be: a shorter one is lost to a busy machine, a longer one keeps others waiting for a dead owner.
const LEASE_MS: std::ops::RangeInclusive<u64> = 1_000..=600_000;

/// How progress is shown; arguments of every command that drives a run.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct ShowArgs {
    /// One JSON object a line instead of text.
    #[arg(long)]
    json: bool,
    /// Lines, also on a terminal.
    #[arg(long, conflicts_with = "json")]
    plain: bool,
    /// Annotations and groups for the log of a CI job.
    #[arg(long, value_enum, value_name = "KIND", conflicts_with_all = ["json", "plain"])]
    ci: Option<Ci>,
    /// Write numbers of the run to this file, as Prometheus text.
    #[arg(long, value_name = "FILE")]
    metrics_file: Option<PathBuf>,
    /// Wait for people instead of ending with 5; on a terminal that is so anyway.
    #[arg(long)]
    wait: bool,
}

impl ShowArgs {
    /// Whether a program reads what is shown, so nobody can be asked.
    pub(crate) fn is_for_programs(&self) -> bool {
        self.json || self.ci.is_some()
    }
}

/// `--ci`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ci {
    /// GitHub Actions.
    Github,
    /// By the environment: GitHub Actions if it is that, else plain lines.
    Auto,
}

/// What is driven.
pub(crate) enum What {
    /// A run that has not begun.
    New(Arc<RunHeader>),
    /// A run that was begun.
    Past(Box<Past>),
}

/// Drives a run to where it ends, for now, and answers the exit code.
pub(crate) fn drive(
    what: What,
    journal: RunJournal,
    store: &Arc<Store>,
    wiring: Wiring,
    show: &ShowArgs,
    ui: &Ui,
) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8))
        .enable_all()
        .build()
        .map_err(|error| Failure::new(&failure::CANNOT_RUN, format!("no threads can be started: {error}")))?;
    install_tls();
    let header = match &what {
        What::New(header) => Arc::clone(header),
        What::Past(past) => Arc::clone(past.header()),
    };
    let run = header.run.clone();
    let before = match &what {
        What::New(_) => RunState::default(),
        What::Past(_) => crate::history::fold(store, &header.run)?.0,
    };
    let stage = Stage::new(show, before, ui);
    let mut events = Fanout::new();
    stage.attach(&mut events);
    let log = OutputLog::open(&store.log_dir(), &header.run)?;
    let (interrupt, interrupts) = watch::channel(0u32);
    let people = stage.people(Arc::clone(store), &header);
    let options = Options {
        wait: show.wait || people.is_some(),
        ask: people.as_ref().map(|people| people.ask()),
        lease_ms: lease_ms()?,
        ..Options::new(&state::user_at_host(), interrupts)
    };
    let engine = Engine {
        ports: wiring.ports,
        locks: Arc::new(Arc::clone(store)),
        clock: Arc::new(SystemClock::default()),
        events,
        log: Some(log),
        options,
    };
    let screen = Arc::clone(&stage.shared);
    let journal: Arc<dyn Journal> = Arc::new(journal);
    #[cfg(debug_assertions)]
    let journal = crate::crash::planned(journal);
    let end = runtime.block_on(async move {
        let signals = tokio::spawn(count_signals(interrupt, screen));
        let end = match what {
            What::New(header) => engine.run(header, journal).await,
            What::Past(past) => engine.resume(*past, journal).await,
        };
        signals.abort();
        end
    });
    // Whatever still blocks a thread (a port that does not end) is not waited for.
    runtime.shutdown_timeout(Duration::from_millis(200));
    drop(people);
    if matches!(end, RunEnd::Finished(_)) {
        // A resume needs it no more. What can't be removed costs only its room.
        let commands = wiring::commands_dir(store.dir());
        let _ = cdpipe_host::commands::forget(&commands, &run, SUPERVISOR_ENDS_WITHIN);
    }
    stage.close();
    if let RunEnd::Stopped(fault) = &end {
        ui.note(&Failure::from_fault(&failure::STATE, fault.clone()).render(ui.err));
        ui.note(&format!(
            "nothing was done after the last record; go on with: cdpipe resume {}\n",
            header.run
        ));
    }
    Ok(end.exit_code())
}

/// How long a lock lasts without being renewed: `$CDPIPE_LEASE`, where it is set.
fn lease_ms() -> Result<Option<u64>, Failure> {
    let Some(text) = std::env::var_os(LEASE_VARIABLE).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let text = text.to_string_lossy();
    let ms = text.strip_suffix("ms").map(|number| (number, 1)).or_else(|| {
        let (number, unit) = text.split_at_checked(text.len() - 1)?;
        Some((
            number,
            match unit {
                "s" => 1_000,
                "m" => 60_000,
                _ => return None,
            },
        ))
    });
    let ms = ms.and_then(|(number, factor)| number.parse::<u64>().ok()?.checked_mul(factor));
    match ms.filter(|ms| LEASE_MS.contains(ms)) {
        Some(ms) => Ok(Some(ms)),
        None => Err(Failure::new(
            &failure::BAD_ARGUMENT,
            format!("`{LEASE_VARIABLE}={text}` is no duration from 1s to 10m"),
        )
        .help(format!("write `{LEASE_VARIABLE}=30s`, which it is without it"))),
    }
}

/// TLS for whatever speaks it. Costs nothing that is not used.
pub(crate) fn install_tls() {
    // It fails only if it was done before.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Counts Ctrl-C and TERM; says what they do.
async fn count_signals(interrupt: watch::Sender<u32>, screen: Arc<Shared>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut int), Ok(mut term)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    loop {
        tokio::select! {
            got = int.recv() => if got.is_none() { return },
            got = term.recv() => if got.is_none() { return },
        }
        let mut count = 0;
        interrupt.send_modify(|sent| {
            *sent += 1;
            count = *sent;
        });
        screen.lock().notice(if count == 1 {
            "stopping: waits for what is under way; once more to stop at once"
        } else {
            "stopping at once"
        });
    }
}

/// The reporters of this process.
struct Stage {
    shared: Arc<Shared>,
    ticker: Option<std::thread::JoinHandle<()>>,
    over: Arc<AtomicBool>,
}

/// What reporters, keyboard and signals share.
struct Shared(Mutex<Screen>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Screen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Screen {
    main: Main,
    metrics: Option<MetricsFile>,
    questions: VecDeque<Question>,
}

/// The reporter for whoever looks at this process.
enum Main {
    Terminal(Box<Terminal>),
    Lines(Box<dyn Reporter>, Ui),
}

/// Something that only the person at the terminal knows.
struct Question {
    text: String,
    answer: oneshot::Sender<Verdict>,
}

impl Screen {
    fn reporter(&mut self) -> &mut dyn Reporter {
        match &mut self.main {
            Main::Terminal(terminal) => &mut **terminal,
            Main::Lines(lines, _) => &mut **lines,
        }
    }

    fn notice(&mut self, text: &str) {
        match &mut self.main {
            Main::Terminal(terminal) => terminal.notice(text),
            Main::Lines(_, ui) => ui.note(&format!("cdpipe: {text}\n")),
        }
    }
}

impl Stage {
    fn new(show: &ShowArgs, before: RunState, ui: &Ui) -> Self {
        let stdout = std::io::stdout();
        let github = match show.ci {
            Some(Ci::Github) => true,
            Some(Ci::Auto) => std::env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true"),
            None => false,
        };
        let lines = |reporter: Box<dyn Reporter>| Main::Lines(reporter, *ui);
        let main = if show.json {
            lines(Box::new(JsonLines::new(stdout, before.clone())))
        } else if github {
            lines(Box::new(GitHub::new(stdout, before.clone())))
        } else if ui.err.terminal && !show.plain && show.ci.is_none() {
            let style = Style { color: ui.err.color, unicode: ui.err.unicode };
            Main::Terminal(Box::new(Terminal::new(style, Box::new(screen_size), before.clone())))
        } else {
            let style = Style { color: ui.out.color, unicode: ui.out.unicode };
            lines(Box::new(Plain::new(stdout, style, before.clone())))
        };
        let metrics = show.metrics_file.clone().map(|path| MetricsFile::new(path, before.clone()));
        let shared = Arc::new(Shared(Mutex::new(Screen { main, metrics, questions: VecDeque::new() })));
        let over = Arc::new(AtomicBool::new(false));
        let ticker = {
            let (shared, over) = (Arc::clone(&shared), Arc::clone(&over));
            std::thread::Builder::new().name("cdpipe-ticker".to_owned()).spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    std::thread::sleep(terminal::TICK);
                    shared.lock().reporter().tick(now_ms());
                }
            })
        };
        // Without a ticker the drawing moves with events alone.
        Self { shared, ticker: ticker.ok(), over }
    }

    /// Listens to the run.
    fn attach(&self, events: &mut Fanout) {
        let shared = Arc::clone(&self.shared);
        events.add(
            "main",
            Box::new(move |delivery| {
                let mut screen = shared.lock();
                let now = now_ms();
                if delivery.dropped_before > 0 {
                    let text = format!(
                        "{} events were not shown: this terminal is too slow",
                        delivery.dropped_before
                    );
                    screen.notice(&text);
                }
                screen.reporter().event(now, delivery.event);
                if let Some(metrics) = &mut screen.metrics {
                    metrics.event(now, delivery.event);
                }
            }),
        );
    }

    /// The person at the terminal, if there is one who can be asked.
    fn people(&self, store: Arc<Store>, header: &Arc<RunHeader>) -> Option<People> {
        if !matches!(self.shared.lock().main, Main::Terminal(_)) {
            return None;
        }
        let keyboard = Keyboard::take()?;
        let over = Arc::new(AtomicBool::new(false));
        let thread = {
            let (shared, over, run) = (Arc::clone(&self.shared), Arc::clone(&over), header.run.clone());
            std::thread::Builder::new()
                .name("cdpipe-keyboard".to_owned())
                .spawn(move || listen(&keyboard, &shared, &over, &store, &run))
                .ok()?
        };
        Some(People { shared: Arc::clone(&self.shared), over, thread: Some(thread) })
    }

    /// Leaves the streams in order.
    fn close(mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(ticker) = self.ticker.take() {
            let _ = ticker.join();
        }
        let mut screen = self.shared.lock();
        let now = now_ms();
        screen.reporter().finish(now);
        if let Some(metrics) = &mut screen.metrics {
            metrics.finish(now);
        }
        let _ = std::io::stdout().flush();
    }
}

fn screen_size() -> (usize, usize) {
    rustix::termios::tcgetwinsize(rustix::stdio::stderr())
        .ok()
        .filter(|size| size.ws_col > 0 && size.ws_row > 0)
        .map_or((80, 24), |size| (usize::from(size.ws_col), usize::from(size.ws_row)))
}

/// The person at the terminal.
struct People {
    shared: Arc<Shared>,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl People {
    /// Asks whether something was done, of which nobody else knows.
    fn ask(&self) -> Ask {
        let shared = Arc::clone(&self.shared);
        Arc::new(move |action: &cdpipe_model::action::Action, fault: &Fault| {
            let (answer, answered) = oneshot::channel();
            let mut screen = shared.lock();
            let what = match &screen.main {
                Main::Terminal(terminal) => {
                    let state = terminal.state();
                    format!("{}: {}", state.name(action.step.node), state.label(&action.step))
                }
                Main::Lines(..) => String::new(),
            };
            let text = format!("{what}: {}. Was it done? [d]one, [a]gain, or [f]ail", fault.message);
            screen.questions.push_back(Question { text, answer });
            Box::pin(async move { answered.await.unwrap_or(Verdict::Unknown) })
        })
    }
}

impl Drop for People {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads keys until the run is over: answers to questions, and approvals.
fn listen(keyboard: &Keyboard, shared: &Shared, over: &AtomicBool, store: &Store, run: &cdpipe_model::RunId) {
    let me = state::user();
    // What was typed before the question stood there is no answer to it.
    let mut asked = String::new();
    while !over.load(Ordering::Relaxed) {
        let prompt = prompt(&mut shared.lock(), &me);
        let key = keyboard.key();
        if prompt.as_ref().is_none_or(|prompt| prompt.text != asked) {
            asked = prompt.map_or_else(String::new, |prompt| prompt.text);
            continue;
        }
        let (Some(key), Some(prompt)) = (key, prompt) else { continue };
        let key = key.to_ascii_lowercase();
        match prompt.kind {
            PromptKind::Question => {
                let verdict = match key {
                    'd' => Verdict::Done,
                    'a' => Verdict::Again,
                    'f' => Verdict::Unknown,
                    _ => continue,
                };
                if let Some(question) = shared.lock().questions.pop_front() {
                    let _ = question.answer.send(verdict);
                }
            }
            PromptKind::Approval { node, by, effect_hash } => {
                let signal = match key {
                    'y' => {
                        Signal::Approve { node, person: crate::people::person_of(&by, &me), by, effect_hash }
                    }
                    'n' => Signal::Reject { node, by, reason: String::new() },
                    _ => continue,
                };
                if let Err(error) = store.send(run, signal) {
                    shared.lock().notice(&error.to_string());
                }
            }
        }
        asked.clear();
    }
}

struct Prompt {
    text: String,
    kind: PromptKind,
}

enum PromptKind {
    Question,
    Approval { node: cdpipe_model::NodeId, by: String, effect_hash: String },
}

/// What is asked now, if anything; it is shown below everything else.
fn prompt(screen: &mut Screen, me: &str) -> Option<Prompt> {
    let question = screen.questions.front().map(|question| question.text.clone());
    let Main::Terminal(terminal) = &mut screen.main else { return None };
    let prompt = if let Some(text) = question {
        Some(Prompt { text, kind: PromptKind::Question })
    } else {
        let state = terminal.state();
        let waiting = state.nodes.iter().enumerate().find_map(|(at, node)| {
            let approval = node.approval.as_ref()?;
            let by = crate::people::name_for(&approval.by, me)?;
            if approval.given.contains(&crate::people::person_of(&by, me)) {
                return None;
            }
            Some((cdpipe_model::NodeId(u32::try_from(at).ok()?), by, approval.effect_hash.clone()))
        });
        waiting.map(|(node, by, effect_hash)| Prompt {
            text: format!("approve {} as {by}? [y/n]", state.name(Some(node))),
            kind: PromptKind::Approval { node, by, effect_hash },
        })
    };
    terminal.ask(prompt.as_ref().map(|prompt| prompt.text.clone()));
    prompt
}

/// Wires and drives a run that was begun before.
pub(crate) fn resume(
    store: &Arc<Store>,
    run: &cdpipe_model::RunId,
    show: &ShowArgs,
    ui: &Ui,
) -> Result<u8, Failure> {
    // Taken first: nobody else appends between what is read and what is done next.
    let journal = store.take(run)?;
    let past = Past::read(store, run)?;
    let header = Arc::clone(past.header());
    let wiring = wiring::wire(&header.plan, Path::new(&header.file), store.dir())?;
    drive(What::Past(Box::new(past)), journal, store, wiring, show, ui)
}
