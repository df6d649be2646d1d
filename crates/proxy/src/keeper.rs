//! Changes of the table: fence, check, bind, write down, swap, close. In that order, so that whatever fails leaves the old
//! table in force, on disk and on its ports.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cdpipe_model::observe::RouteTable;
use cdpipe_model::service::Route;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use crate::control::protocol::{Expect, PutRoute, Refusal, RefusalCode};
use crate::plane::{Listener, Plane};
use crate::state;
use crate::table::{FencedRoute, ProxyTable, check_name, same_route};

/// How long the end of a listener is waited for.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Accepting {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Kept {
    table: ProxyTable,
    accepting: HashMap<SocketAddr, Accepting>,
    stopping: bool,
}

/// Holds the table and its listeners; one change at a time.
#[derive(Debug)]
pub(crate) struct Keeper {
    directory: PathBuf,
    plane: Arc<Plane>,
    kept: Mutex<Kept>,
}

impl Keeper {
    pub(crate) fn new(directory: PathBuf, plane: Arc<Plane>) -> Keeper {
        Keeper { directory, plane, kept: Mutex::default() }
    }

    /// Serves a table that is on disk already.
    ///
    /// # Errors
    /// An address that can not be listened on.
    pub(crate) async fn restore(&self, table: ProxyTable) -> Result<(), (SocketAddr, io::Error)> {
        let mut kept = self.kept.lock().await;
        let bound = bind_new(&kept, &table)?;
        self.swap(&mut kept, table, bound).await;
        Ok(())
    }

    /// The table in force.
    pub(crate) async fn table(&self) -> ProxyTable {
        self.kept.lock().await.table.clone()
    }

    /// Changes routes, all or none. Returns the new revision.
    pub(crate) async fn put(
        &self,
        routes: Vec<PutRoute>,
        remove: Vec<Route>,
        epoch: u64,
        owner: &str,
    ) -> Result<u64, Refusal> {
        check_name(owner).map_err(|what| Refusal::new(RefusalCode::Invalid, format!("owner: {what}")))?;
        let mut kept = self.kept.lock().await;
        if kept.stopping {
            return Err(Refusal::new(RefusalCode::Stopping, "the proxy is stopping and takes no new table"));
        }
        let mut table = kept.table.clone();
        for put in &routes {
            let current = table.find(&put.table.route);
            check_fence(current, epoch, owner)?;
            check_expected(current.map(|fenced| &fenced.table), put)?;
        }
        for route in &remove {
            check_fence(table.find(route), epoch, owner)?;
            table.routes.retain(|fenced| !same_route(&fenced.table.route, route));
        }
        for put in routes {
            let fenced = FencedRoute { epoch, owner: owner.to_owned(), table: put.table };
            match table.routes.iter_mut().find(|other| same_route(&other.table.route, &fenced.table.route)) {
                Some(other) => *other = fenced,
                None => table.routes.push(fenced),
            }
        }
        if table == kept.table {
            return Ok(table.revision);
        }
        table.revision += 1;
        table.validate().map_err(|error| Refusal::new(RefusalCode::Invalid, error.to_string()))?;
        let bound = bind_new(&kept, &table).map_err(|(address, error)| bind_refusal(address, &error))?;
        let (directory, written) = (self.directory.clone(), table.clone());
        let saved = tokio::task::spawn_blocking(move || state::save(&directory, &written)).await;
        saved.map_err(io::Error::other).and_then(|result| result).map_err(|error| {
            Refusal::new(
                RefusalCode::StateUnwritable,
                format!(
                    "the table can not be written to {}: {error}",
                    self.directory.join(state::FILE).display()
                ),
            )
        })?;
        let revision = table.revision;
        self.swap(&mut kept, table, bound).await;
        tracing::info!(revision, epoch, owner, "a new table is in force");
        Ok(revision)
    }

    /// Nothing can fail here.
    async fn swap(&self, kept: &mut Kept, table: ProxyTable, bound: Vec<Listener>) {
        self.plane.put(table.clone());
        for listener in bound {
            let (stop, stopped) = watch::channel(false);
            let address = listener.address;
            tracing::info!(%address, "listening");
            let task = tokio::spawn(self.plane.clone().accept(listener, stopped));
            kept.accepting.insert(address, Accepting { stop, task });
        }
        let wanted = table.listen_addresses();
        let unwanted: Vec<SocketAddr> =
            kept.accepting.keys().filter(|a| !wanted.contains(a)).copied().collect();
        for address in unwanted {
            if let Some(accepting) = kept.accepting.remove(&address) {
                close(address, accepting).await;
            }
        }
        kept.table = table;
    }

    /// Closes all listeners for good.
    pub(crate) async fn stop(&self) {
        let mut kept = self.kept.lock().await;
        kept.stopping = true;
        for (address, accepting) in kept.accepting.drain() {
            close(address, accepting).await;
        }
    }
}

async fn close(address: SocketAddr, accepting: Accepting) {
    let _ = accepting.stop.send(true);
    if tokio::time::timeout(CLOSE_TIMEOUT, accepting.task).await.is_err() {
        tracing::warn!(%address, "the listener did not close in time");
    }
    tracing::info!(%address, "no longer listening");
}

/// Binds what the table needs and nobody has bound yet; all or none. An address that only closed routes are on may stay
/// unbound: to close a route is how a deploy goes back that could not have its port, and that must not fail for the
/// same reason.
fn bind_new(kept: &Kept, table: &ProxyTable) -> Result<Vec<Listener>, (SocketAddr, io::Error)> {
    let mut bound = Vec::new();
    for address in table.listen_addresses() {
        if kept.accepting.contains_key(&address) {
            continue;
        }
        match Listener::bind(address) {
            Ok(listener) => bound.push(listener),
            Err(error) if table.is_closed(address) => {
                tracing::warn!(%address, %error, "not listening for a closed route");
            }
            Err(error) => return Err((address, error)),
        }
    }
    Ok(bound)
}

fn bind_refusal(address: SocketAddr, error: &io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::AddrInUse => Refusal::new(
            RefusalCode::PortInUse,
            format!("another program listens on {address}; the table before stays in force"),
        ),
        _ => Refusal::new(
            RefusalCode::BindFailed,
            format!("{address} can not be listened on: {error}; the table before stays in force"),
        ),
    }
}

fn check_fence(current: Option<&FencedRoute>, epoch: u64, owner: &str) -> Result<(), Refusal> {
    let Some(current) = current else { return Ok(()) };
    if epoch > current.epoch || (epoch == current.epoch && owner == current.owner) {
        return Ok(());
    }
    Err(Refusal {
        epoch: Some(current.epoch),
        owner: Some(current.owner.clone()),
        ..Refusal::new(
            RefusalCode::Stale,
            format!(
                "the route of service {} was written by {} with epoch {}; {owner} with epoch {epoch} may not change it any more",
                current.table.service(),
                current.owner,
                current.epoch
            ),
        )
    })
}

fn check_expected(current: Option<&RouteTable>, put: &PutRoute) -> Result<(), Refusal> {
    let (Expect::Seen(seen), Some(current)) = (&put.expect, current) else { return Ok(()) };
    // A closed route is as good as none: it has nobody whose traffic could be taken away.
    let as_seen = seen.as_ref().map_or(current.entries.is_empty(), |seen| seen == current);
    if as_seen || *current == put.table {
        return Ok(());
    }
    Err(Refusal::new(
        RefusalCode::Moved,
        format!(
            "the route of service {} is not as it was seen: expected {}, found {}",
            current.service(),
            seen.as_ref().map_or_else(|| "no releases".to_owned(), shares),
            shares(current)
        ),
    ))
}

/// `r1 90 %, r2 10 %`, for messages.
fn shares(table: &RouteTable) -> String {
    let shares: Vec<String> = table
        .entries
        .iter()
        .map(|e| format!("{} {} % on {} members", e.release, f64::from(e.weight_bp) / 100.0, e.members.len()))
        .collect();
    if shares.is_empty() { "no releases".to_owned() } else { shares.join(", ") }
}
