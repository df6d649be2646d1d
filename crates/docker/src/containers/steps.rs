//! `run "…" { image = … }`: a container for one command, named by its effect, so that it outlives the cdpipe that started it and is found
//! again with its exit code.
//!
//! It is removed a moment after it has ended, not at once: until its outcome is in the journal it is the only proof of it. What a killed
//! cdpipe has left stays for a day, for its run may still be resumed; then the next step that runs removes it.

use super::Containers;
use super::exec::{Never, Said, failed, file_name};
use super::found::Found;
use crate::client::{Session, cancelled, time_for_answers};
use crate::{images, labels};
use bollard::container::LogOutput;
use bollard::models::{
    ContainerCreateBody, ContainerStateStatusEnum, HostConfig, RestartPolicy, RestartPolicyNameEnum,
};
use bollard::query_parameters::{
    AttachContainerOptions, CreateContainerOptions, LogsOptions, StartContainerOptions, StopContainerOptions,
};
use cdpipe_host::read_outputs;
use cdpipe_model::Fault;
use cdpipe_model::action::{Answer, RunAction};
use cdpipe_model::event::Stream;
use cdpipe_model::ports::{Call, Probe, expose};
use futures_util::StreamExt as _;
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinHandle;

/// Where `$CDPIPE_OUTPUT` lies.
const OUTPUT: &str = "/tmp/cdpipe-output";
/// Between TERM and KILL.
const GRACE_S: i32 = 5;
const END_LIMIT: Duration = Duration::from_secs(20);
/// Long enough for an outcome to be in the journal.
const PROOF_STAYS: Duration = Duration::from_secs(2);
/// What a killed run has left is there so long for its resume.
const LEFT_STAYS: Duration = Duration::from_secs(24 * 3600);
const PAUSE: Duration = Duration::from_millis(100);

impl Containers {
    pub(super) async fn run_step(
        &self,
        call: Call<'_>,
        run: &RunAction,
    ) -> Result<BTreeMap<String, String>, Fault> {
        let begun = Instant::now();
        let result = self.step(call, run).await;
        let left = time_for_answers(call.deadline).saturating_sub(begun.elapsed());
        result.map_err(|fault| late(fault, left, &run.script))
    }

    async fn step(&self, call: Call<'_>, run: &RunAction) -> Result<BTreeMap<String, String>, Fault> {
        let engine = &self.config.engine;
        let name = step_name(call);
        let reference = run.image.as_deref().unwrap_or_default();
        engine
            .patiently(call, |session| async move {
                self.sweep_steps(&session).await?;
                self.ensure_network(&session).await?;
                images::resolve(&session, reference, &self.config.docker_config, &self.masker).await
            })
            .await?;
        let session = engine.session(call).await?;
        let mut env = vec![format!("CDPIPE_OUTPUT={OUTPUT}")];
        for (name, value) in &run.env {
            env.push(format!("{name}={}", expose(value, call.secrets).await?));
        }
        let stdin = match &run.stdin {
            Some(value) => Some(expose(value, call.secrets).await?),
            None => None,
        };
        let body = self.step_body(call, run, env, stdin.is_some())?;
        let options = CreateContainerOptions { name: Some(name.clone()), platform: String::new() };
        match session.ask("make a container", session.api.create_container(Some(options), body)).await {
            Ok(_) => {}
            Err(fault) if fault.kind == "conflict" => {}
            Err(fault) => return Err(fault),
        }
        let result = self.follow(&session, &name, run, stdin).await;
        if result.is_err() {
            // A task of its own: it ends also if nobody waits for it any more. One that was cancelled or ran out of time still runs.
            let _ = self.afterwards(call, &name, Afterwards::End).await;
        }
        self.afterwards(call, &name, Afterwards::Remove);
        result
    }

    fn step_body(
        &self,
        call: Call<'_>,
        run: &RunAction,
        env: Vec<String>,
        reads: bool,
    ) -> Result<ContainerCreateBody, Fault> {
        let outputs = serde_json::to_string(&run.outputs)
            .map_err(|error| Fault::new("internal", format!("outputs cannot be written down: {error}")))?;
        let labels = [
            (labels::KIND, "run".to_owned()),
            (labels::ENVIRONMENT, self.config.environment.to_string()),
            (labels::RUN, labels::run_of(call.effect.as_str()).to_owned()),
            (labels::EFFECT, call.effect.to_string()),
            (labels::OUTPUTS, outputs),
        ];
        Ok(ContainerCreateBody {
            image: Some(images::Reference::parse(run.image.as_deref().unwrap_or_default()).wanted()),
            entrypoint: Some(vec!["/bin/sh".to_owned(), "-c".to_owned()]),
            cmd: Some(vec![run.script.clone()]),
            env: Some(env),
            working_dir: run.dir.clone(),
            labels: Some(labels.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()),
            attach_stdin: Some(reads),
            open_stdin: Some(reads),
            stdin_once: Some(reads),
            host_config: Some(HostConfig {
                network_mode: Some(self.config.network.clone()),
                restart_policy: Some(RestartPolicy {
                    name: Some(RestartPolicyNameEnum::NO),
                    maximum_retry_count: None,
                }),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    /// Starts it, follows what it says, and answers as it ended.
    async fn follow(
        &self,
        session: &Session<'_>,
        name: &str,
        run: &RunAction,
        stdin: Option<String>,
    ) -> Result<BTreeMap<String, String>, Fault> {
        let attached = match &stdin {
            Some(_) => {
                let options = AttachContainerOptions { stdin: true, stream: true, ..Default::default() };
                Some(
                    session
                        .ask("attach to a container", session.api.attach_container(name, Some(options)))
                        .await?,
                )
            }
            None => None,
        };
        let start = session.api.start_container(name, None::<StartContainerOptions>);
        session.ask_within("start a container", END_LIMIT, start).await.map_err(|fault| {
            match fault.kind.as_str() {
                "engine-refused" | "not-found" => {
                    Fault::new("command-failed", fault.message).help("is there a /bin/sh in the image?")
                }
                _ => fault,
            }
        })?;
        if let (Some(mut attached), Some(text)) = (attached, stdin) {
            // A command that does not read its input has ended; its status says more.
            let _ = attached.input.write_all(text.as_bytes()).await;
            let _ = attached.input.shutdown().await;
        }
        let options = LogsOptions {
            follow: true,
            stdout: true,
            stderr: true,
            tail: "all".to_owned(),
            ..Default::default()
        };
        let mut said = Said::new(self, session.call);
        {
            let mut logs = std::pin::pin!(session.api.logs(name, Some(options)));
            loop {
                let next = async { Ok(logs.next().await) };
                match session.ask_within("follow a container", session.left(), next).await {
                    Ok(None | Some(Err(_))) => break,
                    Ok(Some(Ok(LogOutput::StdErr { message }))) => said.feed(Stream::Stderr, &message),
                    Ok(Some(Ok(other))) => said.feed(Stream::Stdout, &other.into_bytes()),
                    Err(fault) => {
                        said.finish();
                        return Err(if session.left().is_zero() { not_in_time(&run.script) } else { fault });
                    }
                }
            }
        }
        let last = said.finish();
        loop {
            // The engine may have been restarted: what counts is how the container ended.
            let found = self
                .config
                .engine
                .patiently(session.call, |session| async move { self.container(&session, name).await });
            let found = found.await?.ok_or_else(|| gone(name))?;
            if !found.is_up() {
                let session = self.config.engine.session(session.call).await?;
                return self.outcome(&session, &found, &run.script, &run.outputs, last).await;
            }
            if session.left().is_zero() {
                return Err(not_in_time(&run.script));
            }
            tokio::select! {
                () = session.call.cancel.cancelled() => return Err(cancelled()),
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn outcome(
        &self,
        session: &Session<'_>,
        found: &Found,
        script: &str,
        outputs: &[String],
        last: Vec<String>,
    ) -> Result<BTreeMap<String, String>, Fault> {
        if found.exit_code != 0 || found.oom_killed {
            let fault = failed(script, found.exit_code, last);
            return Err(if found.oom_killed {
                fault.help("it needed more memory than there is")
            } else {
                fault
            });
        }
        let text = self.output_of(session, &found.name, OUTPUT).await?;
        read_outputs(&text, outputs, &self.masker, session.call.sink)
    }

    pub(super) async fn probe_step(&self, session: Session<'_>) -> Result<Probe, Fault> {
        let name = step_name(session.call);
        let Some(found) = self.container(&session, &name).await? else { return Ok(Probe::NotDone) };
        match found.state {
            ContainerStateStatusEnum::CREATED => {
                self.delete(&session, &name).await?;
                Ok(Probe::NotDone)
            }
            _ if found.is_up() => Ok(Probe::Running),
            _ => {
                let outputs: Vec<String> =
                    serde_json::from_str(found.label(labels::OUTPUTS)).unwrap_or_default();
                let last = self.last_lines_of(&session, &name, 20).await.unwrap_or_default();
                let script = found.cmd.first().cloned().unwrap_or_default();
                let probe = match self.outcome(&session, &found, &script, &outputs, last).await {
                    Ok(outputs) => Probe::Done(Answer::Exited { outputs }),
                    Err(fault) => Probe::Failed(fault),
                };
                self.afterwards(session.call, &name, Afterwards::Remove);
                Ok(probe)
            }
        }
    }

    pub(super) async fn stop_step(&self, session: Session<'_>) -> Result<(), Fault> {
        self.end_step(&session, &step_name(session.call)).await
    }

    async fn end_step(&self, session: &Session<'_>, name: &str) -> Result<(), Fault> {
        let options = StopContainerOptions { t: Some(GRACE_S), signal: None };
        let stop = session.api.stop_container(name, Some(options));
        match session.ask_within("stop a container", END_LIMIT, stop).await {
            Err(fault) if fault.kind == "not-found" => Ok(()),
            _ => self.delete(session, name).await,
        }
    }

    /// Ends or removes it, by a task of its own with time of its own.
    fn afterwards(&self, call: Call<'_>, name: &str, what: Afterwards) -> JoinHandle<()> {
        let (this, name) = (self.clone(), name.to_owned());
        let (effect, step) = (call.effect.clone(), call.step.clone());
        tokio::spawn(async move {
            let (sink, never) = (Quiet, Never);
            let call = Call {
                effect: &effect,
                step: &step,
                deadline: PROOF_STAYS + END_LIMIT * 2,
                sink: &sink,
                cancel: &never,
                secrets: &sink,
                epoch: 0,
            };
            let Ok(session) = this.config.engine.session(call).await else { return };
            match what {
                Afterwards::End => {
                    let options = StopContainerOptions { t: Some(GRACE_S), signal: None };
                    let stop = session.api.stop_container(&name, Some(options));
                    let _ = session.ask_within("stop a container", END_LIMIT, stop).await;
                }
                Afterwards::Remove => {
                    tokio::time::sleep(PROOF_STAYS).await;
                    let _ = this.delete(&session, &name).await;
                }
            }
        })
    }

    /// Removes what earlier runs left: containers of steps that have ended long ago, of runs other than this. A younger one may be the only
    /// proof of how the step of a killed run ended, or be about to be started by a run that lives.
    async fn sweep_steps(&self, session: &Session<'_>) -> Result<(), Fault> {
        let ours = labels::run_of(session.call.effect.as_str());
        let labels = [(labels::ENVIRONMENT, self.config.environment.as_str()), (labels::KIND, "run")];
        let before = utc(SystemTime::now().checked_sub(LEFT_STAYS).unwrap_or(UNIX_EPOCH));
        for found in self.labelled(session, &labels).await? {
            if found.label(labels::RUN) != ours && is_left(&found, &before) {
                self.delete(session, &found.name).await?;
            }
        }
        Ok(())
    }
}

/// What becomes of a step's container when its call has been answered.
enum Afterwards {
    /// It is ended, if it still runs: it was cancelled, or ran out of time.
    End,
    /// It is removed when its outcome is sure to be known.
    Remove,
}

/// A command whose time ends while the engine still has to answer has run out of time: only an engine that is silent for longer than
/// it is given for an answer hangs.
fn late(fault: Fault, left: Duration, script: &str) -> Fault {
    if fault.kind != "engine-hangs" || !left.is_zero() {
        return fault;
    }
    not_in_time(script).details([fault.message]).help(
        "set a larger `timeout` if the engine needs it, or see what the daemon is doing (`docker info`, its log)",
    )
}

fn not_in_time(script: &str) -> Fault {
    Fault::new("timed-out", format!("`{}` did not end in time", first_line(script)))
}

fn step_name(call: Call<'_>) -> String {
    format!("cdpipe-run-{}", file_name(call.effect.as_str()))
}

/// Whether a container of a step rests since before this time. One that was never started rests since it was made.
fn is_left(found: &Found, before: &str) -> bool {
    let since = match found.state {
        ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::DEAD => &found.finished,
        ContainerStateStatusEnum::CREATED => &found.created,
        _ => return false,
    };
    // An engine says year 1 for never. All times are in UTC, to the second they compare as texts.
    !since.is_empty() && !since.starts_with("0001-") && since.as_str() < before
}

/// A time as the engine writes it, to the second.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days from 1 March of year 0: leap days are then the last of their years. 146 097 days are 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    format!("{year:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

fn first_line(script: &str) -> &str {
    script.trim().lines().next().unwrap_or_default()
}

fn gone(name: &str) -> Fault {
    Fault::new("command-failed", format!("the container {name} was removed by somebody while it ran"))
}

/// For what is done after a call has been answered.
struct Quiet;

impl cdpipe_model::ports::Sink for Quiet {
    fn output(&self, _: Stream, _: &str) {}
    fn progress(&self, _: &str) {}
}

impl cdpipe_model::ports::Secrets for Quiet {
    fn resolve<'a>(
        &'a self,
        name: &'a str,
    ) -> cdpipe_model::ports::PortResult<'a, cdpipe_model::secret::SecretValue> {
        Box::pin(async move { Err(Fault::new("secret-missing", format!("`{name}` is not needed here"))) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::{ContainerInspectResponse, ContainerState};

    #[test]
    fn a_step_whose_time_ends_before_the_engine_answers_has_run_out_of_time() {
        let hangs = || Fault::new("engine-hangs", "the engine at X did not answer for 0.8s").transient();
        let over = late(hangs(), Duration::ZERO, "sleep 60\ntrue");
        assert_eq!(
            (over.kind.as_str(), over.message.as_str()),
            ("timed-out", "`sleep 60` did not end in time")
        );
        assert_eq!(over.details, [hangs().message]);
        assert_eq!(late(hangs(), Duration::from_secs(1), "true").kind, "engine-hangs");
        assert_eq!(late(Fault::new("engine-lost", "gone"), Duration::ZERO, "true").kind, "engine-lost");
    }

    #[test]
    fn a_time_is_written_as_the_engine_does() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_399, "2000-02-28T23:59:59"),
            (951_782_400, "2000-02-29T00:00:00"),
            (1_795_901_048, "2026-11-28T21:24:08"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn what_a_run_left_goes_only_when_it_is_old() {
        use ContainerStateStatusEnum as Status;
        let left = |status, created: &str, finished: &str| {
            let inspected = ContainerInspectResponse {
                created: Some(created.to_owned()),
                state: Some(ContainerState {
                    status: Some(status),
                    finished_at: Some(finished.to_owned()),
                    ..Default::default()
                }),
                ..Default::default()
            };
            is_left(&Found::of(inspected, "net"), "2026-11-28T12:00:00")
        };
        let (old, young) = ("2026-11-28T11:59:59.9Z", "2026-11-28T12:00:00.1Z");
        let never = "0001-01-01T00:00:00Z";
        assert!(left(Status::EXITED, old, old));
        assert!(!left(Status::EXITED, old, young), "its exit code is for a resume");
        assert!(!left(Status::EXITED, old, never));
        assert!(!left(Status::CREATED, young, never), "it is about to be started");
        assert!(left(Status::CREATED, old, never));
        assert!(!left(Status::RUNNING, old, old));
    }
}
