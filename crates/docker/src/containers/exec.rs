//! `exec`: a shell command inside an instance; and the last lines of a log.

use super::Containers;
use crate::archive;
use crate::client::Session;
use crate::exec::{Command, Lines, run, run_through};
use bollard::query_parameters::{DownloadFromContainerOptions, LogsOptions};
use cdpipe_host::read_outputs;
use cdpipe_model::Fault;
use cdpipe_model::action::RunAction;
use cdpipe_model::event::Stream;
use cdpipe_model::observe::Instance;
use cdpipe_model::ports::{Call, expose};
use cdpipe_model::release::ReleaseSpec;
use futures_util::StreamExt as _;
use std::collections::BTreeMap;
use std::time::Duration;

/// Lines that explain a failure.
const LAST_LINES: usize = 20;
/// More than this is a log, not an output.
const OUTPUT_LIMIT: usize = (1 << 20) + 4096;
/// How long ending what was cancelled may take.
const END_LIMIT: Duration = Duration::from_secs(5);

impl Containers {
    pub(super) async fn exec_in(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        instance: &Instance,
        action: &RunAction,
    ) -> Result<BTreeMap<String, String>, Fault> {
        let engine = &self.config.engine;
        let name = instance.id.as_str();
        let found =
            engine.patiently(call, |session| async move { self.container(&session, name).await }).await?;
        if !found.is_some_and(|found| found.is_running()) {
            return Err(Fault::new(
                "instance-missing",
                format!("instance {name} of {} does not run", spec.service),
            )
            .help("`cdpipe status` shows what runs"));
        }
        self.exec_in_container(call, name, action).await
    }

    /// Runs it in a container that runs.
    pub(crate) async fn exec_in_container(
        &self,
        call: Call<'_>,
        name: &str,
        action: &RunAction,
    ) -> Result<BTreeMap<String, String>, Fault> {
        let engine = &self.config.engine;
        let mark = file_name(call.effect.as_str());
        let (output, pid) = (format!("/tmp/cdpipe-output-{mark}"), format!("/tmp/cdpipe-pid-{mark}"));
        let mut env = vec![format!("CDPIPE_OUTPUT={output}"), format!("CDPIPE_PID_FILE={pid}")];
        for (name, value) in &action.env {
            env.push(format!("{name}={}", expose(value, call.secrets).await?));
        }
        let stdin = match &action.stdin {
            Some(value) => Some(expose(value, call.secrets).await?),
            None => None,
        };
        // Its process leads a session, so its number is that of its group: that is how it is ended when it has to be.
        let wrapper = "echo $$ > \"$CDPIPE_PID_FILE\" 2>/dev/null; exec /bin/sh -c \"$0\"";
        let command = Command {
            container: name,
            argv: ["/bin/sh", "-c", wrapper, &action.script].map(str::to_owned).to_vec(),
            env,
            dir: action.dir.clone(),
            stdin: stdin.as_deref().map(str::as_bytes),
        };
        let mut said = Said::new(self, call);
        let status = run_through(engine, call, &command, |stream, bytes| said.feed(stream, bytes)).await;
        let last = said.finish();
        let status = match status {
            Ok(status) => status,
            Err(fault) => {
                self.end_exec(call, name, &pid).await;
                return Err(fault);
            }
        };
        let result = if status == 0 {
            let file = output.as_str();
            let read = |session| async move { self.output_of(&session, name, file).await };
            let text = engine.patiently(call, read).await?;
            read_outputs(&text, &action.outputs, &self.masker, call.sink)
        } else {
            Err(failed(&action.script, status, last))
        };
        let clear = Command {
            container: name,
            argv: ["rm", "-f", &output, &pid].map(str::to_owned).to_vec(),
            env: Vec::new(),
            dir: None,
            stdin: None,
        };
        // Files of a few bytes in a container that goes in the end: not worth failing for.
        if let Ok(session) = engine.session(call).await {
            let _ = run(&session, &clear, |_, _| {}).await;
        }
        result
    }

    /// Ends what a cancelled or late command has left in the container.
    async fn end_exec(&self, call: Call<'_>, container: &str, pid: &str) {
        let never = Never;
        let call = Call { deadline: END_LIMIT, cancel: &never, ..call };
        let Ok(session) = self.config.engine.session(call).await else { return };
        let script = format!("p=$(cat {pid}) && kill -TERM -- -$p; sleep 1; kill -KILL -- -$p; rm -f {pid}");
        let command = Command {
            container,
            argv: ["/bin/sh".to_owned(), "-c".to_owned(), script].to_vec(),
            env: Vec::new(),
            dir: None,
            stdin: None,
        };
        let _ = run(&session, &command, |_, _| {}).await;
    }

    /// What was written to a file in a container; nothing if it is not there.
    pub(super) async fn output_of(
        &self,
        session: &Session<'_>,
        container: &str,
        path: &str,
    ) -> Result<String, Fault> {
        let options = DownloadFromContainerOptions { path: path.to_owned() };
        let mut pieces = std::pin::pin!(session.api.download_from_container(container, Some(options)));
        let mut tar = Vec::new();
        loop {
            let next = async { Ok(pieces.next().await) };
            match session.ask("read a file in a container", next).await? {
                None => break,
                Some(Ok(piece)) if tar.len() + piece.len() <= OUTPUT_LIMIT => tar.extend_from_slice(&piece),
                Some(Ok(_)) => {
                    return Err(Fault::new(
                        "output-unreadable",
                        "the command wrote more than 1 MiB to $CDPIPE_OUTPUT",
                    )
                    .help("write large results to a file, and its path as the output"));
                }
                Some(Err(error)) => {
                    let fault = session.fault("read a file in a container", &error);
                    return if fault.kind == "not-found" { Ok(String::new()) } else { Err(fault) };
                }
            }
        }
        let bytes = archive::unpack(&tar).map(|file| file.bytes).unwrap_or_default();
        String::from_utf8(bytes).map_err(|_| {
            Fault::new("output-unreadable", "what the command wrote to $CDPIPE_OUTPUT is not UTF-8")
        })
    }

    pub(super) async fn last_lines(
        &self,
        session: Session<'_>,
        container: &str,
        lines: usize,
    ) -> Result<Vec<String>, Fault> {
        self.last_lines_of(&session, container, lines).await
    }

    pub(super) async fn last_lines_of(
        &self,
        session: &Session<'_>,
        container: &str,
        lines: usize,
    ) -> Result<Vec<String>, Fault> {
        let options = LogsOptions {
            follow: false,
            stdout: true,
            stderr: true,
            tail: lines.to_string(),
            ..Default::default()
        };
        let mut stream = std::pin::pin!(session.api.logs(container, Some(options)));
        let mut cut = Lines::default();
        let mut found = Vec::new();
        loop {
            let next = async { Ok(stream.next().await) };
            match session.ask("read a log", next).await? {
                None => break,
                Some(Ok(piece)) => {
                    cut.feed(Stream::Stdout, &piece.into_bytes(), |_, line| found.push(line.to_owned()));
                }
                Some(Err(error)) => return Err(session.fault("read a log", &error)),
            }
        }
        cut.finish(|_, line| found.push(line.to_owned()));
        Ok(found.into_iter().map(|line| self.masker.mask(&line).into_owned()).collect())
    }
}

/// What a command says: to the sink line by line, masked, and the last of it for an error.
pub(super) struct Said<'a> {
    masker: cdpipe_host::Masker,
    call: Call<'a>,
    lines: Lines,
    last: std::collections::VecDeque<String>,
}

impl<'a> Said<'a> {
    pub(super) fn new(target: &Containers, call: Call<'a>) -> Self {
        Self {
            masker: target.masker.clone(),
            call,
            lines: Lines::default(),
            last: std::collections::VecDeque::new(),
        }
    }

    pub(super) fn feed(&mut self, stream: Stream, bytes: &[u8]) {
        let Self { masker, call, lines, last } = self;
        lines.feed(stream, bytes, |stream, line| say(masker, call, last, stream, line));
    }

    pub(super) fn finish(self) -> Vec<String> {
        let Self { masker, call, lines, mut last } = self;
        lines.finish(|stream, line| say(&masker, &call, &mut last, stream, line));
        last.into()
    }
}

fn say(
    masker: &cdpipe_host::Masker,
    call: &Call<'_>,
    last: &mut std::collections::VecDeque<String>,
    stream: Stream,
    line: &str,
) {
    let line = masker.mask(line);
    call.sink.output(stream, &line);
    if last.len() == LAST_LINES {
        last.pop_front();
    }
    last.push_back(line.into_owned());
}

/// A command that did not end with 0.
pub(super) fn failed(script: &str, status: i64, last: Vec<String>) -> Fault {
    let first = script.trim().lines().next().unwrap_or_default();
    let mut fault = Fault::new("command-failed", format!("`{first}` ended with {status}")).details(last);
    if status == 126 || status == 127 {
        fault = fault.help("is the program, and a /bin/sh, in the image?");
    }
    fault
}

/// An effect id as part of a name.
pub(super) fn file_name(effect: &str) -> String {
    effect.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect()
}

/// What clears up behind a cancelled call is not cancelled with it.
pub(super) struct Never;

impl cdpipe_model::ports::Cancel for Never {
    fn is_cancelled(&self) -> bool {
        false
    }

    fn cancelled(&self) -> cdpipe_model::ports::BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}
