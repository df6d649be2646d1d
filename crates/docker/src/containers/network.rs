//! The network that containers join.
//!
//! An engine does not keep two networks from having one name: when two cdpipe make it at the same moment, it has both, and takes the
//! name for neither from then on. Making a volume of a name is atomic, so whoever makes the volume `cdpipe-making-NETWORK` makes the
//! network, and the others wait for it. The volume is removed again.

use super::Containers;
use crate::client::Session;
use crate::labels;
use bollard::models::{NetworkCreateRequest, VolumeCreateRequest};
use bollard::query_parameters::{ListNetworksOptions, RemoveVolumeOptions};
use cdpipe_model::Fault;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Longer than an engine takes for a network: whoever was to make it has died.
const MAKING_LIMIT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(50);

impl Containers {
    /// Sees to it that the network is there.
    pub(super) async fn ensure_network(&self, session: &Session<'_>) -> Result<(), Fault> {
        if self.has_network(session).await? {
            return Ok(());
        }
        let begun = Instant::now();
        let mut limit = MAKING_LIMIT;
        while !self.may_make_network(session).await? {
            if self.has_network(session).await? {
                return Ok(());
            }
            if begun.elapsed() > limit {
                limit += MAKING_LIMIT;
                self.end_making(session).await?;
            }
            tokio::time::sleep(PAUSE).await;
        }
        let made = self.make_network(session).await;
        self.end_making(session).await?;
        made
    }

    async fn make_network(&self, session: &Session<'_>) -> Result<(), Fault> {
        // Another one may have made it, and given its volume back, since we looked.
        if self.has_network(session).await? {
            return Ok(());
        }
        let environment = (labels::ENVIRONMENT.to_owned(), self.config.environment.to_string());
        let request = NetworkCreateRequest {
            name: self.config.network.clone(),
            driver: Some("bridge".to_owned()),
            labels: Some(HashMap::from([environment])),
            ..Default::default()
        };
        match session.ask("make a network", session.api.create_network(request)).await {
            Ok(_) => Ok(()),
            Err(fault) if fault.kind == "conflict" => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    async fn has_network(&self, session: &Session<'_>) -> Result<bool, Fault> {
        let name = &self.config.network;
        let filters = HashMap::from([("name".to_owned(), vec![name.clone()])]);
        let options = ListNetworksOptions { filters: Some(filters) };
        let found = session.ask("list its networks", session.api.list_networks(Some(options))).await?;
        // The filter also answers those that have it in their names. An id is a name, too.
        Ok(found
            .iter()
            .any(|network| network.name.as_ref() == Some(name) || network.id.as_ref() == Some(name)))
    }

    /// Whether it is us who make it.
    async fn may_make_network(&self, session: &Session<'_>) -> Result<bool, Fault> {
        let ours = session.call.effect.to_string();
        let request = VolumeCreateRequest {
            name: Some(self.making()),
            driver: Some("local".to_owned()),
            labels: Some(HashMap::from([(labels::EFFECT.to_owned(), ours.clone())])),
            ..Default::default()
        };
        let there = session.ask("make a volume for its network", session.api.create_volume(request)).await?;
        Ok(there.labels.get(labels::EFFECT) == Some(&ours))
    }

    async fn end_making(&self, session: &Session<'_>) -> Result<(), Fault> {
        let name = self.making();
        let remove = session.api.remove_volume(&name, None::<RemoveVolumeOptions>);
        session.ask_for("remove a volume of its network", remove).await.map(|_| ())
    }

    fn making(&self) -> String {
        format!("cdpipe-making-{}", self.config.network)
    }
}
