//! `run "…" { image = … }`: a Job for one command, named by its effect, so that it outlives the cdpipe that started it and is found again
//! with its exit code. What it writes to `$CDPIPE_OUTPUT` is the message that its container ends with, 4096 bytes at most.
//!
//! The Job is deleted a moment after it has ended; until its outcome is in the journal it is the only proof of it. The cluster deletes what a
//! killed cdpipe leaves, an hour after its end. The Secret with the secrets of its environment belongs to the Job and goes with it.

use crate::client::Session;
use crate::exec::Said;
use crate::found;
use crate::manifest::MANAGER;
use crate::pods::{self, Patience};
use crate::target::{Kubernetes, POLL};
use cdpipe_host::read_outputs;
use cdpipe_model::action::{Answer, RunAction};
use cdpipe_model::event::Stream;
use cdpipe_model::ports::{Call, Probe, expose};
use cdpipe_model::{Fault, Value};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod, Secret};
use kube::Api;
use kube::api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_util::compat::FuturesAsyncReadCompatExt as _;

/// Annotation: the names that the command may write to `$CDPIPE_OUTPUT`.
const OUTPUTS: &str = "cdpipe.dev/outputs";
const EFFECT: &str = "cdpipe.dev/effect";
const MESSAGE: &str = "/dev/termination-log";
/// Long enough for an outcome to be in the journal.
const PROOF_STAYS: Duration = Duration::from_secs(2);
/// How long the cluster keeps what nobody has deleted.
const KEPT_S: i32 = 3600;
const GRACE_S: u32 = 5;

fn name(call: Call<'_>) -> String {
    let hash = Sha256::digest(call.effect.as_str().as_bytes());
    let text: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("cdpipe-run-{text}")
}

fn jobs(session: &Session<'_>) -> Api<Job> {
    Api::namespaced(session.client(), session.namespace())
}

fn of_job(name: &str) -> ListParams {
    ListParams::default().labels(&format!("batch.kubernetes.io/job-name={name}"))
}

fn ended(pod: &Pod) -> Option<&ContainerStateTerminated> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()?.state.as_ref()?.terminated.as_ref()
}

fn is_started(pod: &Pod) -> bool {
    let container = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref()?.first());
    let state = container.and_then(|container| container.state.as_ref());
    state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
}

impl Kubernetes {
    pub(crate) async fn run_job(
        &self,
        call: Call<'_>,
        run: &RunAction,
    ) -> Result<BTreeMap<String, String>, Fault> {
        let session = self.cluster.session(call).await?;
        let name = name(call);
        self.make(&session, &name, run).await?;
        let result = self.follow(&session, &name, run).await;
        remove_later(&session, name, result.is_ok());
        result
    }

    async fn make(&self, session: &Session<'_>, name: &str, run: &RunAction) -> Result<(), Fault> {
        let mut secrets = BTreeMap::new();
        let mut env = vec![json!({"name": "CDPIPE_OUTPUT", "value": MESSAGE})];
        let given = run.env.iter().map(|(key, value)| (key.as_str(), value));
        // What is read may be long and may be a secret.
        for (key, value) in given.chain(run.stdin.as_ref().map(|value| ("CDPIPE_STDIN", value))) {
            if matches!(value, Value::Secret(_)) {
                secrets.insert(key.to_owned(), expose(value, session.call.secrets).await?);
                env.push(json!({"name": key, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}));
            } else {
                env.push(json!({"name": key, "value": value.to_string()}));
            }
        }
        let command = match run.stdin {
            Some(_) => {
                json!(["/bin/sh", "-c", "printf %s \"$CDPIPE_STDIN\" | /bin/sh -c \"$0\"", run.script])
            }
            None => json!(["/bin/sh", "-c", run.script]),
        };
        let mut container = json!({"name": "run", "image": run.image, "command": command, "env": env,
            "terminationMessagePath": MESSAGE});
        if let Some(dir) = &run.dir {
            container["workingDir"] = json!(dir);
        }
        let outputs = serde_json::to_string(&run.outputs)
            .map_err(|error| Fault::new("internal", format!("outputs cannot be written down: {error}")))?;
        let labels = json!({"app.kubernetes.io/managed-by": MANAGER, "cdpipe.dev/kind": "run"});
        let job: Job = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels,
                "annotations": {OUTPUTS: outputs, EFFECT: session.call.effect.as_str()}},
            "spec": {"backoffLimit": 0, "ttlSecondsAfterFinished": KEPT_S, "template": {
                "metadata": {"labels": labels},
                "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": GRACE_S, "containers": [container]}}},
        }))
        .map_err(|error| Fault::new("internal", format!("a Job cannot be written down: {error}")))?;
        let api: Api<Secret> = Api::namespaced(session.client(), session.namespace());
        let secret = |owner: serde_json::Value| {
            json!({"apiVersion": "v1", "kind": "Secret", "stringData": secrets,
            "metadata": {"name": name, "labels": labels, "ownerReferences": owner}})
        };
        let params = PatchParams::apply(MANAGER).force();
        let what = format!("apply the Secret {name}");
        if !secrets.is_empty() {
            let patch = Patch::Apply(secret(json!([])));
            session.ask(&what, || api.patch(name, &params, &patch)).await?;
        }
        let (jobs, post) = (jobs(session), PostParams::default());
        match session.ask(&format!("create the Job {name}"), || jobs.create(&post, &job)).await {
            Ok(made) if !secrets.is_empty() => {
                let owner = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": made.metadata.uid}]);
                let patch = Patch::Apply(secret(owner));
                session.ask(&what, || api.patch(name, &params, &patch)).await.map(drop)
            }
            Ok(_) => Ok(()),
            // Asked twice.
            Err(fault) if fault.kind == "conflict" => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    async fn follow(
        &self,
        session: &Session<'_>,
        name: &str,
        run: &RunAction,
    ) -> Result<BTreeMap<String, String>, Fault> {
        let mut patience = Patience::default();
        let pod = loop {
            let pods = found::pods(session, &of_job(name)).await?;
            if let Some(pod) = pods.iter().find(|pod| is_started(pod)) {
                break pod.metadata.name.clone().unwrap_or_default();
            }
            if let Some(hopeless) = patience.worst(&pods) {
                return Err(Fault::new(
                    "command-failed",
                    format!("the command can't be started in {}: {}", hopeless.pod, hopeless.why),
                )
                .help("see whether the image is there, has a /bin/sh, and finds a node"));
            }
            session.pause(POLL).await?;
        };
        let said = Said::new(session, &self.masker);
        {
            let api: Api<Pod> = Api::namespaced(session.patient_client(), session.namespace());
            let params = LogParams { follow: true, ..LogParams::default() };
            let what = format!("follow the log of {pod}");
            let stream = session.once(&what, api.log_stream(&pod, &params)).await?;
            let read = async {
                said.read(Stream::Stdout, Box::pin(tokio::io::BufReader::new(stream.compat()))).await;
                Ok(())
            };
            session.once(&what, read).await?;
        }
        let last = said.last();
        loop {
            // The stream may have broken off: what counts is how the container ended.
            let pods = found::pods(session, &of_job(name)).await?;
            let pod = pods.first().ok_or_else(|| {
                Fault::new("command-failed", format!("the Job {name} was removed while it ran"))
            })?;
            if let Some(ended) = ended(pod) {
                return self.outcome(session, ended, &run.outputs, last);
            }
            session.pause(POLL).await?;
        }
    }

    fn outcome(
        &self,
        session: &Session<'_>,
        ended: &ContainerStateTerminated,
        outputs: &[String],
        last: Vec<String>,
    ) -> Result<BTreeMap<String, String>, Fault> {
        if ended.exit_code != 0 {
            let fault = Fault::new("command-failed", format!("the command exited with {}", ended.exit_code));
            return Err(match ended.reason.as_deref() {
                Some("OOMKilled") => fault.details(last).help("it needed more memory than it may have"),
                _ => fault.details(last),
            });
        }
        let text = ended.message.as_deref().unwrap_or_default();
        read_outputs(text, outputs, &self.masker, session.call.sink)
    }

    pub(crate) async fn probe_job(&self, call: Call<'_>) -> Result<Probe, Fault> {
        let session = self.cluster.session(call).await?;
        let (api, name) = (jobs(&session), name(call));
        let Some(job) = session.ask(&format!("read the Job {name}"), || api.get_opt(&name)).await? else {
            return Ok(Probe::NotDone);
        };
        let pods = found::pods(&session, &of_job(&name)).await?;
        let Some(pod) = pods.iter().find(|pod| ended(pod).is_some()) else { return Ok(Probe::Running) };
        let Some(ended) = ended(pod) else { return Ok(Probe::Running) };
        let annotations = job.metadata.annotations.unwrap_or_default();
        let outputs: Vec<String> =
            annotations.get(OUTPUTS).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let pod = pod.metadata.name.as_deref().unwrap_or_default();
        let last = pods::log(&session, &self.masker, pod, 20, false).await.unwrap_or_default();
        let probe = match self.outcome(&session, ended, &outputs, last) {
            Ok(outputs) => Probe::Done(Answer::Exited { outputs }),
            Err(fault) => Probe::Failed(fault),
        };
        remove_later(&session, name, true);
        Ok(probe)
    }

    pub(crate) async fn stop_job(&self, call: Call<'_>) -> Result<(), Fault> {
        let session = self.cluster.session(call).await?;
        let (api, name, params) = (jobs(&session), name(call), DeleteParams::background());
        session.ask_for(&format!("delete the Job {name}"), || api.delete(&name, &params)).await?;
        while !found::pods(&session, &of_job(&name)).await?.is_empty() {
            session.pause(POLL).await?;
        }
        Ok(())
    }
}

/// Deletes it when its outcome is sure to be known; one that was cancelled or can't start, at once.
fn remove_later(session: &Session<'_>, name: String, is_done: bool) {
    let api = jobs(session);
    tokio::spawn(async move {
        if is_done {
            tokio::time::sleep(PROOF_STAYS).await;
        }
        // The cluster deletes it in the end.
        let _ = api.delete(&name, &DeleteParams::background()).await;
    });
}
