//! `run "…" { image = … }`: a Job for one command, named by its effect, so that it outlives the cdpipe that started it and is found again
//! with its exit code. What it writes to `$CDPIPE_OUTPUT` is the message that its container ends with, 4096 bytes at most.
//!
//! The Job is deleted a moment after it has ended; until its outcome is in the journal it is the only proof of it. The cluster ends what a
//! killed cdpipe leaves when its time is over, and deletes it an hour after its end. The Secret with the secrets of its environment belongs to the Job and goes with it.

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
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, Pod, Secret};
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
const CONTAINER: &str = "run";
/// How much longer the cluster lets it run than we do.
const OUR_DEADLINE_FIRST: Duration = Duration::from_secs(60);
/// The longest time that a Job may be given.
const LONGEST_S: u64 = i32::MAX as u64;
/// How long ending one may take whose call is over.
const END_LIMIT: Duration = Duration::from_secs(8);

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

/// How the container of the command is; others may stand beside it that somebody puts into each pod.
fn state(pod: &Pod) -> Option<&ContainerState> {
    let all = pod.status.as_ref()?.container_statuses.as_ref()?;
    all.iter().find(|container| container.name == CONTAINER)?.state.as_ref()
}

fn ended(pod: &Pod) -> Option<&ContainerStateTerminated> {
    state(pod)?.terminated.as_ref()
}

fn is_started(pod: &Pod) -> bool {
    state(pod).is_some_and(|state| state.running.is_some() || state.terminated.is_some())
}

/// Why the cluster has given a Job up, if it has: its time is over, or somebody has evicted its pod.
fn given_up(job: &Job) -> Option<Fault> {
    let conditions = job.status.as_ref()?.conditions.iter().flatten();
    let failed = conditions.into_iter().find(|one| one.type_ == "Failed" && one.status == "True")?;
    let why = failed.message.as_deref().or(failed.reason.as_deref()).unwrap_or_default();
    let kind = match failed.reason.as_deref() {
        Some("DeadlineExceeded") => "timed-out",
        _ => "command-failed",
    };
    Some(Fault::new(kind, format!("the cluster has ended the command: {why}")))
}

impl Kubernetes {
    pub(crate) async fn run_job(
        &self,
        call: Call<'_>,
        run: &RunAction,
    ) -> Result<BTreeMap<String, String>, Fault> {
        let session = self.cluster.session(call).await?;
        let name = name(call);
        let in_time = |fault| late(fault, session.left());
        self.make(&session, &name, run).await.map_err(in_time)?;
        let result = self.follow(&session, &name, run).await.map_err(in_time);
        match &result {
            // It has ended, or never will begin.
            Ok(_) => remove_later(&session, name),
            Err(fault) if fault.kind == "command-failed" => remove_later(&session, name),
            // What comes after it must not meet it.
            Err(_) => end_now(&session, &name).await,
        }
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
        let mut container = json!({"name": CONTAINER, "image": run.image, "command": command, "env": env,
            "terminationMessagePath": MESSAGE});
        if let Some(dir) = &run.dir {
            container["workingDir"] = json!(dir);
        }
        let outputs = serde_json::to_string(&run.outputs)
            .map_err(|error| Fault::new("internal", format!("outputs cannot be written down: {error}")))?;
        let labels = json!({"app.kubernetes.io/managed-by": MANAGER, "cdpipe.dev/kind": "run"});
        // Ours comes first; this one is for a cdpipe that is killed and never comes back.
        let within_s = (session.left() + OUR_DEADLINE_FIRST).as_secs().min(LONGEST_S);
        let job: Job = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels,
                "annotations": {OUTPUTS: outputs, EFFECT: session.call.effect.as_str()}},
            "spec": {"backoffLimit": 0, "ttlSecondsAfterFinished": KEPT_S, "activeDeadlineSeconds": within_s, "template": {
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
        let made = match session.ask(&format!("create the Job {name}"), || jobs.create(&post, &job)).await {
            // Asked twice.
            Err(fault) if fault.kind == "conflict" => {
                session.ask(&format!("read the Job {name}"), || jobs.get(name)).await
            }
            made => made,
        };
        match made {
            Ok(made) if !secrets.is_empty() => {
                let owner = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": made.metadata.uid}]);
                let patch = Patch::Apply(secret(owner));
                session.ask(&what, || api.patch(name, &params, &patch)).await.map(drop)
            }
            Ok(_) => Ok(()),
            Err(fault) => {
                if !secrets.is_empty() {
                    // Nobody else would; that there is no Job is what is told.
                    let _ = tokio::time::timeout(END_LIMIT, api.delete(name, &DeleteParams::default())).await;
                }
                Err(fault)
            }
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
            let container = Some(CONTAINER.to_owned());
            let params = LogParams { follow: true, container, ..LogParams::default() };
            let what = format!("follow the log of {pod}");
            let stream = session.ask(&what, || api.log_stream(&pod, &params)).await?;
            let read = async {
                said.read(Stream::Stdout, stream.compat()).await;
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
        let Some((pod, ended)) = pods.iter().find_map(|pod| Some((pod, ended(pod)?))) else {
            return Ok(match given_up(&job) {
                Some(fault) => {
                    remove_later(&session, name);
                    Probe::Failed(fault)
                }
                None => Probe::Running,
            });
        };
        let annotations = job.metadata.annotations.unwrap_or_default();
        let outputs: Vec<String> =
            annotations.get(OUTPUTS).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let pod = pod.metadata.name.as_deref().unwrap_or_default();
        let last =
            pods::log(&session, &self.masker, (pod, Some(CONTAINER)), 20, false).await.unwrap_or_default();
        let probe = match self.outcome(&session, ended, &outputs, last) {
            Ok(outputs) => Probe::Done(Answer::Exited { outputs }),
            Err(fault) => Probe::Failed(fault),
        };
        remove_later(&session, name);
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

/// A command whose time ends while the cluster still has to answer has run out of time: only a cluster that is silent for longer than it
/// is given for an answer hangs.
fn late(fault: Fault, left: Duration) -> Fault {
    if fault.kind != "cluster-hangs" || !left.is_zero() {
        return fault;
    }
    Fault::new("timed-out", "the command did not end in time")
        .details([fault.message])
        .help("set a larger `timeout` if the cluster needs it, or see whether the control plane is healthy")
}

/// Deletes it when its outcome is sure to be known.
fn remove_later(session: &Session<'_>, name: String) {
    let api = jobs(session);
    tokio::spawn(async move {
        tokio::time::sleep(PROOF_STAYS).await;
        // The cluster deletes it in the end.
        let _ = api.delete(&name, &DeleteParams::background()).await;
    });
}

/// Ends one that is not waited for any more, with its pods. Not by the session: its call is over.
async fn end_now(session: &Session<'_>, name: &str) {
    let (api, params) = (jobs(session), DeleteParams::background());
    let pods: Api<Pod> = Api::namespaced(session.client(), session.namespace());
    let end = async {
        loop {
            match api.delete(name, &params).await {
                Err(kube::Error::Api(status)) if status.code == 404 => break,
                Err(_) => tokio::time::sleep(POLL).await,
                Ok(_) => break,
            }
        }
        while !pods.list_metadata(&of_job(name)).await.is_ok_and(|left| left.items.is_empty()) {
            tokio::time::sleep(POLL).await;
        }
    };
    // Then its own deadline ends it.
    let _ = tokio::time::timeout(END_LIMIT, end).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_whose_time_ends_before_the_cluster_answers_has_run_out_of_time() {
        let hangs = || Fault::new("cluster-hangs", "no answer").transient();
        let over = late(hangs(), Duration::ZERO);
        assert_eq!(
            (over.kind.as_str(), over.transient, over.details),
            ("timed-out", false, vec!["no answer".to_owned()])
        );
        assert_eq!(late(hangs(), Duration::from_secs(1)).kind, "cluster-hangs");
        assert_eq!(late(Fault::new("not-found", "gone"), Duration::ZERO).kind, "not-found");
    }
}
