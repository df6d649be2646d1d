//! Commands inside a pod.
//!
//! The variables of a command go in by its standard input, not as arguments: arguments are part of a URL, which API servers write down.
//! A command whose call is cancelled goes on in its pod: no API ends it.

use crate::client::Session;
use crate::{given, pods};
use cdpipe_host::{Lines, MaskStream, Masker, read_outputs};
use cdpipe_model::Fault;
use cdpipe_model::action::RunAction;
use cdpipe_model::event::Stream;
use cdpipe_model::ports::expose;
use cdpipe_model::release::ReleaseSpec;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::Api;
use kube::api::AttachParams;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

/// Lines of output that a failure shows.
pub(crate) const LAST_LINES: usize = 20;
const CHUNK_BYTES: usize = 16 * 1024;
/// More than this is a log, not an output.
const OUTPUTS_LIMIT: u64 = 1 << 20;

/// What a command says, told as it comes, the end of it kept.
pub(crate) struct Said<'a> {
    session: &'a Session<'a>,
    masker: &'a Masker,
    last: Mutex<VecDeque<String>>,
}

impl<'a> Said<'a> {
    pub(crate) fn new(session: &'a Session<'a>, masker: &'a Masker) -> Self {
        Self { session, masker, last: Mutex::default() }
    }

    /// Reads to the end; what breaks off has ended too.
    pub(crate) async fn read(&self, stream: Stream, mut from: impl AsyncRead + Unpin) {
        let (mut mask, mut lines) = (MaskStream::new(self.masker.clone()), Lines::default());
        let mut bytes = vec![0; CHUNK_BYTES];
        let mut give = |line: &str| self.say(stream, line);
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            lines.feed(&mask.feed(&bytes[..count]), &mut give);
        }
        lines.feed(&mask.finish(), &mut give);
        lines.finish(&mut give);
    }

    fn say(&self, stream: Stream, line: &str) {
        self.session.call.sink.output(stream, line);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == LAST_LINES {
            last.pop_front();
        }
        last.push_back(line.to_owned());
    }

    pub(crate) fn last(self) -> Vec<String> {
        self.last.into_inner().map(Vec::from).unwrap_or_default()
    }
}

/// Text as one word of a shell.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Runs it in the container of a pod that is the service, and answers what it wrote to `$CDPIPE_OUTPUT`.
pub(crate) async fn exec(
    session: &Session<'_>,
    masker: &Masker,
    spec: &ReleaseSpec,
    pod: &str,
    run: &RunAction,
) -> Result<BTreeMap<String, String>, Fault> {
    let container = match given::container_name(spec)? {
        Some(container) => Some(container),
        None => pods::main_container_of(session, pod).await?,
    };
    let place = (pod, container);
    let file = format!("/tmp/cdpipe-{}", session.call.effect.to_string().replace('/', "-"));
    let mut script = format!("export CDPIPE_OUTPUT={}\n", quoted(&file));
    for (name, value) in &run.env {
        let value = expose(value, session.call.secrets).await?;
        script.push_str(&format!("export {name}={}\n", quoted(&value)));
    }
    if let Some(dir) = &run.dir {
        script.push_str(&format!("cd {} || exit\n", quoted(dir)));
    }
    match &run.stdin {
        Some(stdin) => {
            let text = expose(stdin, session.call.secrets).await?;
            script.push_str(&format!("printf %s {} | /bin/sh -c {}\n", quoted(&text), quoted(&run.script)));
        }
        None => script.push_str(&run.script),
    }
    let said = Said::new(session, masker);
    let status = attached(session, &place, &script, |out, err| {
        let said = &said;
        async move {
            tokio::join!(said.read(Stream::Stdout, out), said.read(Stream::Stderr, err));
        }
    })
    .await?;
    if let Some(code) = code(status.as_ref())? {
        let why = format!("the command in {pod} exited with {code}");
        return Err(Fault::new("command-failed", why).details(said.last()));
    }
    if run.outputs.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut text = Vec::new();
    let script = format!("cat {0} 2>/dev/null; rm -f {0}", quoted(&file));
    attached(session, &place, &script, |out, _err| {
        let text = &mut text;
        async move {
            // What could be read is what there is; one byte too many says that there is more.
            let _ = out.take(OUTPUTS_LIMIT + 1).read_to_end(text).await;
        }
    })
    .await?;
    if text.len() as u64 > OUTPUTS_LIMIT {
        return Err(Fault::new("output-unreadable", "the command wrote more than 1 MiB to $CDPIPE_OUTPUT")
            .help("write large results to a file, and its path as the output"));
    }
    read_outputs(&String::from_utf8_lossy(&text), &run.outputs, masker, session.call.sink)
}

async fn attached<F>(
    session: &Session<'_>,
    (pod, container): &(&str, Option<String>),
    script: &str,
    read: impl FnOnce(Output, Output) -> F,
) -> Result<Option<Status>, Fault>
where
    F: Future<Output = ()>,
{
    let pods: Api<Pod> = Api::namespaced(session.patient_client(), session.namespace());
    let mut params = AttachParams::default().stdin(true).stdout(true).stderr(true);
    params.container.clone_from(container);
    let what = format!("run a command in {pod}");
    let command = ["/bin/sh", "-c", "eval \"$(cat)\""];
    let mut process = session.once(&what, pods.exec(pod, command, &params)).await?;
    let (stdin, out, err) = (process.stdin(), process.stdout(), process.stderr());
    let (Some(mut stdin), Some(out), Some(err), Some(status)) = (stdin, out, err, process.take_status())
    else {
        return Err(Fault::new("internal", "a command in a pod has no streams"));
    };
    let work = async {
        let write = async {
            // A container without a shell has ended already; its status says so.
            let _ = stdin.write_all(script.as_bytes()).await;
            let _ = stdin.shutdown().await;
            drop(stdin);
        };
        tokio::join!(write, read(Box::new(out), Box::new(err)));
        Ok(status.await)
    };
    let status = session.once(&what, work).await;
    process.abort();
    status
}

/// A stream of a process.
type Output = Box<dyn AsyncRead + Send + Unpin>;

/// With which code it ended, if not with 0.
fn code(status: Option<&Status>) -> Result<Option<String>, Fault> {
    let Some(status) = status else {
        return Err(Fault::new("command-failed", "the connection to a command in a pod broke off")
            .help("its pod may have ended, or the API server; nobody knows how the command ended"));
    };
    if status.status.as_deref() == Some("Success") {
        return Ok(None);
    }
    let mut causes = status.details.iter().flat_map(|details| details.causes.iter().flatten());
    match causes.find(|cause| cause.reason.as_deref() == Some("ExitCode")) {
        Some(cause) => Ok(Some(cause.message.clone().unwrap_or_default())),
        None => {
            let why = status.message.as_deref().unwrap_or_default();
            Err(Fault::new("command-failed", format!("the command could not be run: {why}"))
                .help("is there a /bin/sh in the image?"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_of_a_shell_is_one_word_whatever_it_holds() {
        assert_eq!(quoted("a 'b' $c"), "'a '\\''b'\\'' $c'");
    }

    #[test]
    fn how_a_command_ended_is_in_its_status() {
        let status = |value: serde_json::Value| serde_json::from_value::<Status>(value).unwrap();
        let fine = status(serde_json::json!({"status": "Success"}));
        assert_eq!(code(Some(&fine)).unwrap(), None);
        let three =
            status(serde_json::json!({"status": "Failure", "reason": "NonZeroExitCode", "message": "…",
            "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}}));
        assert_eq!(code(Some(&three)).unwrap().as_deref(), Some("3"));
        assert!(code(None).is_err());
    }
}
