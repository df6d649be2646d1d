//! Pods that cannot be reached from here are reached through the API server: a local port for each, which forwards every connection.
//!
//! A port lives as long as the target, which is as long as the run. After a crash the next engine listens on the same ports again, since
//! they are part of what was journaled.

use crate::client::Cluster;
use cdpipe_model::Fault;
use cdpipe_model::observe::Instance;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Ports at a time; the one that was opened first makes room.
const MAX_PORTS: usize = 256;
/// Connections at a time through one port.
const MAX_CONNECTIONS: usize = 32;
/// How long the API server may take to connect to a pod.
const CONNECT_WITHIN: Duration = Duration::from_secs(15);
/// How long a pod may go on answering after its client has said all.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

struct Port {
    at: SocketAddr,
    opened: u64,
    task: JoinHandle<()>,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The local ports of one target.
#[derive(Default)]
pub(crate) struct Forwards {
    /// By pod and its port.
    ports: Mutex<BTreeMap<(String, u16), Port>>,
}

impl std::fmt::Debug for Forwards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = self.ports.lock().unwrap_or_else(PoisonError::into_inner).len();
        write!(f, "{count} forwarded ports")
    }
}

impl Forwards {
    /// Says of each instance where it is reached from here, and has that be so.
    ///
    /// # Errors
    /// If no local port can be had.
    pub(crate) async fn reach(&self, cluster: &Cluster, instances: &mut [Instance]) -> Result<(), Fault> {
        for instance in instances {
            let port = instance.address.as_ref().and_then(|address| address.rsplit_once(':')?.1.parse().ok());
            if let Some(port) = port {
                let at = self.open(cluster, instance.id.as_str(), port, 0).await?;
                instance.reached_at = Some(at.to_string());
            }
        }
        Ok(())
    }

    /// Listens again where an engine before this one did. A port that is taken by now is passed over: whoever asks there is told by what
    /// answers, and the next look at the pod has another one.
    pub(crate) async fn again(&self, cluster: &Cluster, instances: &[Instance]) {
        for instance in instances {
            let of =
                |text: &Option<String>| -> Option<u16> { text.as_ref()?.rsplit_once(':')?.1.parse().ok() };
            if let (Some(port), Some(local)) = (of(&instance.address), of(&instance.reached_at)) {
                let _ = self.open(cluster, instance.id.as_str(), port, local).await;
            }
        }
    }

    async fn open(&self, cluster: &Cluster, pod: &str, port: u16, local: u16) -> Result<SocketAddr, Fault> {
        let key = (pod.to_owned(), port);
        {
            let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(open) = ports.get(&key).filter(|open| !open.task.is_finished()) {
                return Ok(open.at);
            }
        }
        let (client, namespace) = cluster.patient().await?;
        let no_port = |error: std::io::Error| {
            Fault::new("port-in-use", format!("no local port can be had to reach the pod {pod} by: {error}"))
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, local)).await.map_err(no_port)?;
        let at = listener.local_addr().map_err(no_port)?;
        let task = tokio::spawn(serve(listener, client, namespace, pod.to_owned(), port));
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = ports.values().map(|port| port.opened).max().unwrap_or(0) + 1;
        if ports.len() >= MAX_PORTS
            && let Some(oldest) = ports.iter().min_by_key(|(_, port)| port.opened).map(|(key, _)| key.clone())
        {
            ports.remove(&oldest);
        }
        ports.insert(key, Port { at, opened, task });
        Ok(at)
    }
}

async fn serve(listener: TcpListener, client: Client, namespace: String, pod: String, port: u16) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Ends with this task, and every connection with it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of files or the like: that passes, or everything else fails too.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        let pod = pod.clone();
        connections.spawn(async move {
            pass(stream, &pods, &pod, port).await;
            drop(permit);
        });
    }
}

/// One connection. What can't be forwarded is closed, as by a pod that refuses it.
async fn pass(mut client: TcpStream, pods: &Api<Pod>, pod: &str, port: u16) {
    let opened = tokio::time::timeout(CONNECT_WITHIN, pods.portforward(pod, &[port])).await;
    let Ok(Ok(mut forwarder)) = opened else { return };
    if let Some(stream) = forwarder.take_stream(port) {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_pod, mut to_pod) = tokio::io::split(stream);
        let asks = async {
            let _ = tokio::io::copy(&mut from_client, &mut to_pod).await;
            let _ = to_pod.flush().await;
        };
        let answers = async {
            let _ = tokio::io::copy(&mut from_pod, &mut to_client).await;
            let _ = to_client.shutdown().await;
        };
        tokio::pin!(asks, answers);
        tokio::select! {
            () = &mut answers => {}
            // The API server knows no half of a connection: the pod is left its time to answer.
            () = &mut asks => {
                let _ = tokio::time::timeout(ANSWER_WITHIN, answers).await;
            }
        }
    }
    forwarder.abort();
}
