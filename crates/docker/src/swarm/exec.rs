//! Commands inside a task's container, and its log.

use super::At;
use super::seen::{Seen, is_live, is_workload, name_of};
use crate::exec::{Lines, piece};
use bollard::models::Task;
use bollard::query_parameters::LogsOptionsBuilder;
use cdpipe_model::action::RunAction;
use cdpipe_model::observe::Instance;
use cdpipe_model::ports::Call;
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::{Fault, ServiceName};
use futures_util::StreamExt;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a log may take to be read.
const LOG_WITHIN: Duration = Duration::from_secs(10);

impl At<'_> {
    async fn task(&self, service: &ServiceName, instance: &Instance) -> Result<Task, Fault> {
        let of = |one: &Seen| -> Option<Task> {
            let name = name_of(&one.service);
            let found = one.tasks.iter().find(|task| match is_workload(&one.service) {
                true => instance
                    .id
                    .as_str()
                    .rsplit_once('.')
                    .is_some_and(|(_, id)| task.id.as_deref() == Some(id)),
                false => name == instance.id.as_str() && is_live(task),
            });
            found.cloned()
        };
        let seen = self.seen(service).await?;
        seen.iter().find_map(of).ok_or_else(|| {
            Fault::new("instance-missing", format!("instance {} of {service} does not run", instance.id))
                .help("`cdpipe status` shows what runs")
        })
    }

    pub(super) async fn exec(
        &self,
        spec: &ReleaseSpec,
        instance: &Instance,
        run: &RunAction,
    ) -> Result<BTreeMap<String, String>, Fault> {
        let task = self.task(&spec.service, instance).await?;
        let container = task
            .status
            .as_ref()
            .and_then(|status| status.container_status.as_ref())
            .and_then(|container| container.container_id.clone())
            .unwrap_or_default();
        let here = self
            .session
            .ask_for("inspect a container", self.session.api.inspect_container(&container, None))
            .await?;
        if container.is_empty() || here.is_none() {
            let node = task.node_id.unwrap_or_default();
            return Err(Fault::new(
                "instance-elsewhere",
                format!("instance {} runs on node {node}, and a command can be run only on the node that cdpipe speaks with", instance.id),
            )
            .help("name that node's engine as `endpoint`, or check over the network: `http \"/path\"`"));
        }
        // A container like any other: its input, its outputs, and its end when it is cancelled are those of the target docker.
        let call = Call { deadline: self.session.left(), ..self.session.call };
        self.swarm.steps().exec_in_container(call, &container, run).await
    }

    pub(super) async fn logs(
        &self,
        service: &ServiceName,
        instance: &Instance,
        lines: usize,
    ) -> Result<Vec<String>, Fault> {
        let task = self.task(service, instance).await?;
        self.task_log(task.id.as_deref().unwrap_or_default(), lines).await
    }

    pub(super) async fn task_log(&self, task: &str, lines: usize) -> Result<Vec<String>, Fault> {
        let options =
            LogsOptionsBuilder::default().stdout(true).stderr(true).tail(&lines.to_string()).build();
        let mut stream = Box::pin(self.session.api.task_logs(task, Some(options)));
        let (mut cut, mut found) = (Lines::default(), Vec::new());
        let read = async {
            while let Some(chunk) = stream.next().await {
                let (stream, bytes) = piece(chunk?);
                cut.feed(stream, &bytes, |_, line| found.push(line.to_owned()));
            }
            Ok(())
        };
        self.session.ask_within("read the log of a task", LOG_WITHIN, read).await?;
        cut.finish(|_, line| found.push(line.to_owned()));
        let skip = found.len().saturating_sub(lines);
        Ok(found.iter().skip(skip).map(|line| self.swarm.masker.mask(line).into_owned()).collect())
    }
}
