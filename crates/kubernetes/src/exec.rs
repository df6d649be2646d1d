//! Commands inside a pod.
//!
//! The variables of a command go in by its standard input, not as arguments: arguments are part of a URL, which API servers write down.
//! A command whose call is cancelled goes on in its pod: no API ends it.

use crate::client::Session;
use cdpipe_host::{Masker, read_outputs};
use cdpipe_model::Fault;
use cdpipe_model::action::RunAction;
use cdpipe_model::event::Stream;
use cdpipe_model::ports::expose;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::Api;
use kube::api::AttachParams;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader,
};

/// Lines of output that a failure shows.
pub(crate) const LAST_LINES: usize = 20;

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
    pub(crate) async fn read(&self, stream: Stream, from: impl AsyncBufRead + Unpin) {
        let mut lines = from.split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            let text = String::from_utf8_lossy(&line);
            let line = self.masker.mask(text.trim_end_matches('\r')).into_owned();
            self.session.call.sink.output(stream, &line);
            if let Ok(mut last) = self.last.lock() {
                if last.len() == LAST_LINES {
                    last.pop_front();
                }
                last.push_back(line);
            }
        }
    }

    pub(crate) fn last(self) -> Vec<String> {
        self.last.into_inner().map(Vec::from).unwrap_or_default()
    }
}

/// Text as one word of a shell.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Runs it in the first container of a pod, and answers what it wrote to `$CDPIPE_OUTPUT`.
pub(crate) async fn exec(
    session: &Session<'_>,
    masker: &Masker,
    pod: &str,
    run: &RunAction,
) -> Result<BTreeMap<String, String>, Fault> {
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
    let status = attached(session, pod, &script, |out, err| {
        let said = &said;
        async move {
            let (out, err) = (BufReader::new(out), BufReader::new(err));
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
    attached(session, pod, &script, |mut out, _err| {
        let text = &mut text;
        async move {
            // What could be read is what there is.
            let _ = out.read_to_end(text).await;
        }
    })
    .await?;
    read_outputs(&String::from_utf8_lossy(&text), &run.outputs, masker, session.call.sink)
}

async fn attached<F>(
    session: &Session<'_>,
    pod: &str,
    script: &str,
    read: impl FnOnce(Output, Output) -> F,
) -> Result<Option<Status>, Fault>
where
    F: Future<Output = ()>,
{
    let pods: Api<Pod> = Api::namespaced(session.patient_client(), session.namespace());
    let params = AttachParams::default().stdin(true).stdout(true).stderr(true);
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
