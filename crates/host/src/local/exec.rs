//! `exec`: a command with the environment and in the folder of an instance.

use super::Local;
use crate::resolve;
use crate::runner::Command;
use crate::state::InstanceState;
use crate::supervise::{instance_environment, machine_environment};
use cdpipe_model::Fault;
use cdpipe_model::action::RunAction;
use cdpipe_model::observe::Instance;
use cdpipe_model::ports::Call;
use cdpipe_model::release::ReleaseSpec;
use std::collections::BTreeMap;

impl Local {
    pub(super) async fn exec_in(
        &self,
        call: Call<'_>,
        spec: &ReleaseSpec,
        instance: &Instance,
        run: &RunAction,
    ) -> Result<BTreeMap<String, String>, Fault> {
        let gone = || {
            Fault::new(
                "instance-missing",
                format!("instance {} of {} does not run", instance.id, spec.service),
            )
            .help("`cdpipe status` shows what runs")
        };
        let (release, _) = self.release(spec)?.ok_or_else(gone)?;
        for state in release.instances()? {
            let Some(config) = state.config() else { continue };
            if config.id != instance.id {
                continue;
            }
            let Some(status) = state.status().filter(|_| state.is_alive()) else { return Err(gone()) };
            let place = InstanceState::at(
                &std::path::absolute(state.folder())
                    .map_err(|error| crate::durable::io_fault("find", state.folder(), &error))?,
            );
            let mut env = instance_environment(&config, &place, status.port);
            // What a person starts there must not be taken for a stray of the instance and ended with it.
            env.remove(place.marker().0);
            for (name, value) in config.launch.env.iter().chain(&config.extra_env) {
                if matches!(value, cdpipe_model::Value::Secret(_)) {
                    let text = resolve::text(value, call.secrets, &self.masker).await?;
                    env.insert(name.clone(), text.expose().to_owned());
                }
            }
            let folder = match &run.dir {
                Some(dir) => config.launch.folder.join(dir),
                None => config.launch.folder.clone(),
            };
            return self
                .shell
                .run(
                    call,
                    Command {
                        run,
                        folder: &folder,
                        base_env: &machine_environment(),
                        env,
                        scratch: &self.config.state.join("tmp"),
                    },
                )
                .await;
        }
        Err(gone())
    }
}
