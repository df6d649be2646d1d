//! The Swarm itself: whether this engine manages one, the addresses of its nodes, and writes at a version index.

use super::At;
use bollard::models::{Config, ConfigSpec, Service, ServiceSpec};
use bollard::query_parameters::{
    ListConfigsOptionsBuilder, ListServicesOptionsBuilder, UpdateConfigOptionsBuilder,
    UpdateServiceOptionsBuilder,
};
use cdpipe_model::Fault;
use std::collections::{BTreeMap, HashMap};

impl At<'_> {
    /// # Errors
    /// `no-swarm` if the engine manages none.
    pub(super) async fn must_be_manager(&self) -> Result<(), Fault> {
        let info = self.session.ask("describe itself", self.session.api.info()).await?;
        if info.swarm.and_then(|swarm| swarm.control_available).unwrap_or(false) {
            return Ok(());
        }
        let endpoint = self.swarm.config.engine.endpoint();
        Err(Fault::new("no-swarm", format!("the engine at {endpoint} does not manage a Swarm"))
            .help("`docker swarm init` makes one of it; or name a manager as `endpoint` of the target"))
    }

    /// Address by node.
    pub(super) async fn nodes(&self) -> Result<BTreeMap<String, String>, Fault> {
        let none: Option<bollard::query_parameters::ListNodesOptions> = None;
        let nodes = self.session.ask("list its nodes", self.session.api.list_nodes(none)).await?;
        let address = |node: bollard::models::Node| {
            let address = node.status?.addr.filter(|address| !address.is_empty() && address != "0.0.0.0");
            Some((node.id?, address.unwrap_or_else(|| "127.0.0.1".to_owned())))
        };
        Ok(nodes.into_iter().filter_map(address).collect())
    }

    /// Services that carry these labels (`KEY=VALUE`).
    pub(super) async fn services(&self, labels: Vec<String>) -> Result<Vec<Service>, Fault> {
        let filters = HashMap::from([("label".to_owned(), labels)]);
        let options = ListServicesOptionsBuilder::default().filters(&filters).build();
        self.session.ask("list services", self.session.api.list_services(Some(options))).await
    }

    /// The service of exactly this name.
    pub(super) async fn service(&self, name: &str) -> Result<Option<Service>, Fault> {
        self.session.ask_for("inspect a service", self.session.api.inspect_service(name, None)).await
    }

    /// # Errors
    /// `conflict` if the name is taken.
    pub(super) async fn create(&self, spec: ServiceSpec) -> Result<(), Fault> {
        let name = spec.name.clone().unwrap_or_default();
        let credentials = self.credentials(&image_of(&spec)).await?;
        let create = self.session.api.create_service(spec, credentials);
        self.session.ask("create a service", create).await.map_err(|fault| {
            let taken = fault.message.contains("name conflicts") || fault.message.contains("already exists");
            if taken { Fault::new("conflict", format!("a service {name} is there already")) } else { fault }
        })?;
        Ok(())
    }

    /// Writes at the version that was read. `false`: somebody else has written since.
    pub(super) async fn update(&self, seen: &Service, spec: ServiceSpec) -> Result<bool, Fault> {
        let (id, index) = (seen.id.clone().unwrap_or_default(), index(seen.version.as_ref()));
        let version = i32::try_from(index).map_err(|_| {
            Fault::new("unsupported", format!("the Swarm's version index {index} is too large for its API"))
        })?;
        let options = UpdateServiceOptionsBuilder::default().version(version).build();
        let credentials = self.credentials(&image_of(&spec)).await?;
        let work = self.session.api.update_service(&id, spec, options, credentials);
        match self.session.ask("update a service", work).await {
            Ok(_) => Ok(true),
            Err(fault) if fault.message.contains("out of sequence") || fault.kind == "not-found" => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    pub(super) async fn delete(&self, name: &str) -> Result<(), Fault> {
        self.session.ask_for("remove a service", self.session.api.delete_service(name)).await.map(|_| ())
    }

    pub(super) async fn configs(&self, labels: Vec<String>) -> Result<Vec<Config>, Fault> {
        let filters = HashMap::from([("label".to_owned(), labels)]);
        let options = ListConfigsOptionsBuilder::default().filters(&filters).build();
        self.session.ask("list configs", self.session.api.list_configs(Some(options))).await
    }

    pub(super) async fn config(&self, name: &str) -> Result<Option<Config>, Fault> {
        self.session.ask_for("inspect a config", self.session.api.inspect_config(name)).await
    }

    /// `false` if one of this name is there already.
    pub(super) async fn create_config(&self, spec: ConfigSpec) -> Result<bool, Fault> {
        match self.session.ask("create a config", self.session.api.create_config(spec)).await {
            Ok(_) => Ok(true),
            Err(fault) if fault.kind == "conflict" => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// Sets the labels of a config at the version that was read. `false`: somebody else has written since.
    pub(super) async fn relabel(
        &self,
        seen: &Config,
        labels: HashMap<String, String>,
    ) -> Result<bool, Fault> {
        let version = i64::try_from(index(seen.version.as_ref())).unwrap_or(i64::MAX);
        let spec = ConfigSpec { labels: Some(labels), ..seen.spec.clone().unwrap_or_default() };
        let options = UpdateConfigOptionsBuilder::default().version(version).build();
        let id = seen.id.clone().unwrap_or_default();
        match self.session.ask("update a config", self.session.api.update_config(&id, spec, options)).await {
            Ok(_) => Ok(true),
            Err(fault) if fault.message.contains("out of sequence") || fault.kind == "not-found" => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    pub(super) async fn delete_config(&self, name: &str) -> Result<(), Fault> {
        self.session.ask_for("remove a config", self.session.api.delete_config(name)).await.map(|_| ())
    }
}

fn index(version: Option<&bollard::models::ObjectVersion>) -> u64 {
    version.and_then(|version| version.index).unwrap_or(0)
}

/// The image that the tasks of a service run.
fn image_of(spec: &ServiceSpec) -> String {
    let container = spec.task_template.as_ref().and_then(|task| task.container_spec.as_ref());
    container.and_then(|container| container.image.clone()).unwrap_or_default()
}
