//! HAProxy by its runtime socket.
//!
//! The user's configuration has a backend with slots (`server-template cdpipe 1-20 127.0.0.1:1 disabled`); cdpipe gives a slot an address
//! and a weight and puts it in use, or takes it out. HAProxy can't keep whose a slot is, so that is a small file beside the socket: the
//! table, its owner's epoch and the slots. It is written before the first word to the socket and after the last, so a crash between is
//! found, and what HAProxy does is compared with it at every look.
//!
//! Not here: `use-server` and `use_backend` rules, which a runtime socket can't make; so no header and no cookie chooses a release.

mod book;
mod numbers;
mod runtime;
#[cfg(test)]
mod tests;
mod weights;

use crate::bounds::{bounded, may_change, moved, not_routed, same_route};
use crate::change::Change;
use crate::hash::hash;
use book::{Book, Slot, differs, forgotten, in_force};
use cdpipe_model::event::Stream;
use cdpipe_model::fault::Fault;
use cdpipe_model::id::ReleaseId;
use cdpipe_model::observe::{Instance, RouteTable};
use cdpipe_model::ports::{Call, PortResult, Router};
use cdpipe_model::service::Route;
use cdpipe_model::transport::{Endpoint, Transport};
use numbers::{numbers, since};
use runtime::{Counted, Live};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Slots have names that begin so.
const SLOT: &str = "cdpipe";
/// How often a wait looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// An HAProxy that does not answer for so long is gone.
const GONE_AFTER: Duration = Duration::from_secs(5);
/// Commands of one exchange: well within HAProxy's buffer for a line.
const COMMANDS: usize = 40;
const TITLE: &str = "# Whose the slots of HAProxy's backend are. Written by cdpipe at each deploy.";
const CHECK: &str = "# cdpipe-check: ";

/// Where HAProxy is and how it is asked.
#[derive(Debug, Clone)]
pub struct HaproxyConfig {
    /// Path of the runtime socket, with level admin, as the transport understands it.
    pub socket: String,
    /// The backend; `None` if it is named as the service.
    pub backend: Option<String>,
}

/// Steers traffic through an HAProxy.
pub struct HaproxyRouter {
    config: HaproxyConfig,
    transport: Arc<dyn Transport>,
}

/// The book and its second line, by which a later look tells whether it is still the same.
struct Found {
    book: Book,
    mark: String,
}

impl HaproxyRouter {
    /// `transport` leads to where HAProxy runs.
    pub fn new(config: HaproxyConfig, transport: Arc<dyn Transport>) -> Self {
        Self { config, transport }
    }

    fn name(&self) -> String {
        format!("HAProxy on {}", self.transport.place())
    }

    fn backend<'a>(&'a self, route: &'a Route) -> &'a str {
        self.config.backend.as_deref().unwrap_or(route.service.as_str())
    }

    fn path(&self, route: &Route) -> String {
        format!("{}.{}.cdpipe", self.config.socket, self.backend(route))
    }

    async fn found(&self, call: Call<'_>, route: &Route) -> Result<Found, Fault> {
        let path = self.path(route);
        let Some(bytes) = self.transport.read(call, &path).await? else {
            return Ok(Found { book: Book { version: 1, ..Book::default() }, mark: "absent".to_owned() });
        };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let mut lines = text.lines().skip(1);
        let (mark, json) = (lines.next().unwrap_or_default().to_owned(), lines.next().unwrap_or_default());
        if mark != format!("{CHECK}{}", hash(json)) {
            return Err(moved(format!("{path} was changed by hand since cdpipe wrote it")).help(format!(
                "put it back, or remove it after all slots of the backend are in maintenance: {path}"
            )));
        }
        let unreadable = |what: String| {
            Fault::new("router-version", format!("{path} was written by another version of cdpipe: {what}"))
        };
        let book: Book = serde_json::from_str(json).map_err(|error| unreadable(error.to_string()))?;
        if book.version != 1 {
            return Err(unreadable(format!("version {}", book.version)));
        }
        if let Some(other) = book.table.as_ref().or(book.pending.as_ref())
            && !same_route(&other.route, route)
        {
            return Err(Fault::new(
                "invalid-route",
                format!(
                    "backend {} of {} carries the route of service {} on {}, and can't carry another on {}",
                    self.backend(route),
                    self.name(),
                    other.route.service,
                    other.route.listen.as_deref().unwrap_or("its frontend"),
                    route.listen.as_deref().unwrap_or("its frontend")
                ),
            )
            .help("a backend is for one service, and a `preview` needs a router that can listen: `proxy` or `nginx`"));
        }
        Ok(Found { book, mark })
    }

    async fn write(&self, call: Call<'_>, route: &Route, found: &mut Found) -> Result<(), Fault> {
        let path = self.path(route);
        let json = serde_json::to_string(&found.book)
            .map_err(|error| Fault::new("internal", format!("a route table can't be written: {error}")))?;
        let mark = format!("{CHECK}{}", hash(&json));
        let text = format!("{TITLE}\n{mark}\n{json}\n");
        let check = ["true".to_owned()];
        let change =
            Change { path: &path, mark: &found.mark, text: &text, end: &json, check: &check, reload: &[] };
        if !change.carry_out(call, &*self.transport).await? {
            return Err(moved(format!("{path} was changed by somebody else while it was written")));
        }
        found.mark = mark;
        Ok(())
    }

    async fn say(&self, call: Call<'_>, commands: &str) -> Result<String, Fault> {
        let to = Endpoint::Unix(self.config.socket.clone());
        let answer = self.transport.exchange(call, &to, format!("{commands}\n").as_bytes()).await.map_err(
            |fault| {
                if fault.kind == "unreachable" {
                    Fault::new(
                        "router-unreachable",
                        format!("the runtime socket of {}: {fault}", self.name()),
                    )
                    .help(format!(
                        "see whether HAProxy runs, and whether its `stats socket` is {} with level admin",
                        self.config.socket
                    ))
                    .transient()
                } else {
                    fault
                }
            },
        )?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        if answer.starts_with("Permission denied") {
            return Err(Fault::new("router-refused", format!("{} refuses: {}", self.name(), answer.trim()))
                .help(format!("give the socket {} `level admin`", self.config.socket)));
        }
        Ok(answer)
    }

    async fn live(&self, call: Call<'_>, route: &Route) -> Result<Vec<Live>, Fault> {
        let backend = self.backend(route);
        let answer = self.say(call, &format!("show servers state {backend}")).await?;
        match runtime::servers(&answer, backend, SLOT) {
            Some(live) if !live.is_empty() => Ok(live),
            _ => Err(Fault::new(
                "no-slots",
                format!(
                    "backend `{backend}` of {} has no servers named {SLOT}…: {}",
                    self.name(),
                    answer.trim()
                ),
            )
            .help(format!(
                "add `server-template {SLOT} 1-20 127.0.0.1:1 disabled` to `backend {backend}` in haproxy.cfg"
            ))),
        }
    }

    async fn counted(&self, call: Call<'_>, route: &Route) -> Result<BTreeMap<String, Counted>, Fault> {
        let backend = self.backend(route);
        let answer = self.say(call, &format!("show stat {backend} 4 -1")).await?;
        runtime::stat(&answer, backend).ok_or_else(|| {
            Fault::new(
                "router-unreachable",
                format!("{} does not show its statistics: {}", self.name(), answer.trim()),
            )
            .transient()
        })
    }

    /// The address as HAProxy takes it: names are looked up where it runs.
    async fn resolved(&self, call: Call<'_>, address: &str) -> Result<SocketAddr, Fault> {
        if let Ok(address) = address.parse() {
            return Ok(address);
        }
        let wrong = || {
            Fault::new("invalid-route", format!("{} has no address for `{address}`", self.name()))
                .help("HAProxy's slots need addresses: the name must be known where HAProxy runs")
        };
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let argv = ["getent", "ahosts", host].map(str::to_owned);
        let ran = self.transport.exec(call, &argv, b"").await?;
        let ip = ran.stdout.split_whitespace().next().and_then(|ip| ip.parse().ok()).ok_or_else(wrong)?;
        Ok(SocketAddr::new(ip, port.parse().map_err(|_| wrong())?))
    }

    /// The slots for a table: an instance keeps the one it has, others get free ones, and who is not in the table is left.
    async fn slots(
        &self,
        call: Call<'_>,
        book: &Book,
        table: &RouteTable,
        live: &[Live],
    ) -> Result<Vec<Slot>, Fault> {
        let counted = self.counted(call, &table.route).await?;
        let shares: Vec<(u32, usize)> =
            table.entries.iter().map(|entry| (entry.weight_bp, entry.members.len())).collect();
        let mut slots = book.slots.clone();
        slots.retain(|slot| live.iter().any(|live| live.name == slot.name));
        slots.iter_mut().for_each(|slot| slot.left = true);
        for (entry, weights) in table.entries.iter().zip(weights::weights(&shares)) {
            for (member, weight) in entry.members.iter().zip(weights) {
                let mine = |slot: &&mut Slot| slot.release == entry.release && slot.member == *member;
                if let Some(slot) = slots.iter_mut().find(mine) {
                    (slot.left, slot.weight) = (false, weight);
                    continue;
                }
                let at = self.resolved(call, &member.address).await?.to_string();
                let counts = |name: &str| counted.get(name).copied().unwrap_or_default();
                // A slot that was never given first; then one whose last request has ended.
                let unused = |live: &&Live| !slots.iter().any(|slot| slot.name == live.name);
                let ended = |live: &&Live| {
                    counts(&live.name).in_flight == 0
                        && !slots.iter().any(|slot| slot.name == live.name && !slot.left)
                };
                let free = live.iter().find(unused).or_else(|| live.iter().find(ended));
                let Some(name) = free.map(|live| live.name.clone()) else {
                    return Err(Fault::new(
                        "no-slots",
                        format!(
                            "backend `{}` of {} has {} slots, and none is free for {}",
                            self.backend(&table.route),
                            self.name(),
                            live.len(),
                            member.instance
                        ),
                    )
                    .help("give `server-template` more servers: twice the instances, and as many as may still drain"));
                };
                slots.retain(|slot| slot.name != name);
                slots.push(Slot {
                    base: counts(&name).requests,
                    before: counts(&name).answers,
                    before_ms: counts(&name).response_ms,
                    name,
                    release: entry.release.clone(),
                    member: member.clone(),
                    at,
                    weight,
                    left: false,
                });
            }
        }
        Ok(slots)
    }

    async fn set(&self, call: Call<'_>, table: &RouteTable, seen: Option<&RouteTable>) -> Result<(), Fault> {
        if !table.rules.is_empty() {
            return Err(Fault::new(
                "invalid-route",
                "a header or a cookie can't choose a release by HAProxy's runtime socket".to_owned(),
            )
            .help("leave `route header(…)` out, or use the router `proxy` or `nginx`"));
        }
        let route = &table.route;
        let mut found = self.found(call, route).await?;
        let live = self.live(call, route).await?;
        let book = &found.book;
        let current = book.pending.as_ref().filter(|pending| *pending == table).or(book.table.as_ref());
        // Of one that has forgotten, nobody could see what the book says.
        let now = in_force(book, &live);
        let unseen = forgotten(book, &live) && (seen.is_none() || seen == now.as_ref());
        let seen = if unseen { book.table.as_ref() } else { seen };
        may_change(current.map(|current| (current, book.epoch)), table, seen, call.epoch, &self.path(route))?;
        if current.is_none() && book.epoch > call.epoch {
            return Err(Fault::new("stale-epoch", format!("a newer owner has written {}", self.path(route))));
        }
        self.unmoved(book, &live, route)?;
        if book.table.as_ref() == Some(table)
            && book.pending.is_none()
            && book.epoch == call.epoch
            && differs(book, &live).is_none()
        {
            return Ok(());
        }
        let slots = self.slots(call, book, table, &live).await?;
        found.book = Book {
            version: 1,
            epoch: call.epoch,
            table: book.table.clone(),
            pending: Some(table.clone()),
            slots,
        };
        self.write(call, route, &mut found).await?;
        self.tell(call, route, &found.book.slots).await?;
        let live = self.live(call, route).await?;
        if let Some(what) = differs(&found.book, &live) {
            return Err(Fault::new("router-refused", format!("{} did not do as it was told: {what}", self.name()))
                .help("its log says why; `balance roundrobin` or `leastconn` lets weights change, `static-rr` does not"));
        }
        found.book.table = found.book.pending.take();
        self.write(call, route, &mut found).await
    }

    /// Puts slots in use before it takes others out, so that there is no moment without any.
    async fn tell(&self, call: Call<'_>, route: &Route, slots: &[Slot]) -> Result<(), Fault> {
        let backend = self.backend(route);
        let mut commands = Vec::new();
        for slot in slots.iter().filter(|slot| !slot.left) {
            let server = format!("{backend}/{}", slot.name);
            let address: SocketAddr = slot.at.parse().map_err(|_| {
                Fault::new("invalid-route", format!("`{}` is no address for {}", slot.at, self.name()))
            })?;
            commands.push(format!("set server {server} addr {} port {}", address.ip(), address.port()));
            commands.push(format!("set server {server} weight {}", slot.weight));
            commands.push(format!("set server {server} state ready"));
        }
        for slot in slots.iter().filter(|slot| slot.left) {
            commands.push(format!("set server {backend}/{} state maint", slot.name));
        }
        for some in commands.chunks(COMMANDS) {
            self.say(call, &some.join(";")).await?;
        }
        Ok(())
    }

    /// Refuses if somebody else has given slots another use. An HAProxy that was restarted has forgotten all of them, and is told again.
    fn unmoved(&self, book: &Book, live: &[Live], route: &Route) -> Result<(), Fault> {
        let restarted = live.iter().all(|live| !live.in_use);
        if book.pending.is_some() || restarted {
            return Ok(());
        }
        match differs(book, live) {
            None => Ok(()),
            Some(what) => Err(moved(format!(
                "somebody else has changed backend {} of {}: {what}",
                self.backend(route),
                self.name()
            ))),
        }
    }

    async fn drained(
        &self,
        call: Call<'_>,
        route: &Route,
        release: &ReleaseId,
        instances: &[Instance],
        drain: Duration,
    ) -> Result<(), Fault> {
        let book = self.found(call, route).await?.book;
        not_routed(book.table.as_ref(), release, instances, &self.name())?;
        let theirs = |slot: &&Slot| {
            slot.left
                && slot.release == *release
                && (instances.is_empty()
                    || instances.iter().any(|instance| instance.id == slot.member.instance))
        };
        let slots: Vec<&Slot> = book.slots.iter().filter(theirs).collect();
        let until = Instant::now() + drain;
        let mut silent_since = None;
        loop {
            let counted = match self.counted(call, route).await {
                Ok(counted) => counted,
                // One that is being reloaded misses an answer; one that is gone has nothing in flight.
                Err(fault) if fault.kind == "router-unreachable" => {
                    let now = Instant::now();
                    let since = *silent_since.get_or_insert(now);
                    if now >= until || now.saturating_duration_since(since) >= GONE_AFTER {
                        return Ok(());
                    }
                    call.sink.progress(&format!("draining release {release}: HAProxy does not answer now"));
                    sleep(LOOK_EVERY).await;
                    continue;
                }
                Err(fault) => return Err(fault),
            };
            silent_since = None;
            let in_flight =
                |slot: &&&Slot| counted.get(&slot.name).is_some_and(|counted| counted.in_flight > 0);
            let busy: Vec<&&Slot> = slots.iter().filter(in_flight).collect();
            let left: u64 = busy.iter().filter_map(|slot| counted.get(&slot.name)).map(|c| c.in_flight).sum();
            if busy.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                call.sink.output(
                    Stream::Stderr,
                    &format!(
                        "release {release} of service {}: {left} requests did not end within {} ms and are cut",
                        route.service,
                        drain.as_millis()
                    ),
                );
                let backend = self.backend(route);
                let cut: Vec<String> = busy
                    .iter()
                    .map(|slot| format!("shutdown sessions server {backend}/{}", slot.name))
                    .collect();
                for some in cut.chunks(COMMANDS) {
                    self.say(call, &some.join(";")).await?;
                }
                return Ok(());
            }
            call.sink.progress(&format!("draining release {release}: {left} requests in flight"));
            sleep(LOOK_EVERY).await;
        }
    }
}

impl Router for HaproxyRouter {
    fn observe<'a>(&'a self, call: Call<'a>, route: &'a Route) -> PortResult<'a, Option<RouteTable>> {
        Box::pin(async move {
            bounded(call, &self.name(), async {
                let book = self.found(call, route).await?.book;
                let live = self.live(call, route).await?;
                self.unmoved(&book, &live, route)?;
                Ok(in_force(&book, &live))
            })
            .await
        })
    }

    fn apply<'a>(
        &'a self,
        call: Call<'a>,
        table: &'a RouteTable,
        seen: Option<&'a RouteTable>,
    ) -> PortResult<'a, ()> {
        Box::pin(async move { bounded(call, &self.name(), self.set(call, table, seen)).await })
    }

    fn await_routed<'a>(&'a self, call: Call<'a>, table: &'a RouteTable) -> PortResult<'a, ()> {
        Box::pin(async move {
            bounded(call, &self.name(), async {
                loop {
                    let book = self.found(call, &table.route).await?.book;
                    if book.table.as_ref() != Some(table) {
                        return Err(moved(format!(
                            "{} does not do what was written: expected {}, found {}",
                            self.name(),
                            crate::bounds::shares(Some(table)),
                            crate::bounds::shares(book.table.as_ref())
                        )));
                    }
                    let live = self.live(call, &table.route).await?;
                    if forgotten(&book, &live) {
                        // It was restarted since.
                        self.tell(call, &table.route, &book.slots).await?;
                        sleep(LOOK_EVERY).await;
                        continue;
                    }
                    self.unmoved(&book, &live, &table.route)?;
                    let waits: Vec<&str> = live
                        .iter()
                        .filter(|live| live.in_use && !live.running)
                        .map(|live| live.name.as_str())
                        .collect();
                    if waits.is_empty() {
                        return Ok(());
                    }
                    call.sink
                        .progress(&format!("HAProxy's own checks do not pass yet: {}", waits.join(", ")));
                    sleep(LOOK_EVERY).await;
                }
            })
            .await
        })
    }

    fn await_drained<'a>(
        &'a self,
        call: Call<'a>,
        route: &'a Route,
        release: &'a ReleaseId,
        instances: &'a [Instance],
        drain: Duration,
    ) -> PortResult<'a, ()> {
        Box::pin(async move {
            bounded(call, &self.name(), self.drained(call, route, release, instances, drain)).await
        })
    }

    fn requests<'a>(
        &'a self,
        call: Call<'a>,
        route: &'a Route,
    ) -> PortResult<'a, Option<BTreeMap<ReleaseId, u64>>> {
        Box::pin(async move {
            bounded(call, &self.name(), async {
                let book = self.found(call, route).await?.book;
                let counted = self.counted(call, route).await?;
                let mut requests = BTreeMap::new();
                for slot in &book.slots {
                    let now = counted.get(&slot.name).map_or(0, |counted| counted.requests);
                    *requests.entry(slot.release.clone()).or_insert(0) += since(now, slot.base);
                }
                Ok(Some(requests))
            })
            .await
        })
    }

    fn numbers<'a>(
        &'a self,
        call: Call<'a>,
        route: &'a Route,
        release: Option<&'a ReleaseId>,
    ) -> PortResult<'a, Option<String>> {
        Box::pin(async move {
            bounded(call, &self.name(), async {
                let book = self.found(call, route).await?.book;
                let counted = self.counted(call, route).await?;
                Ok(Some(numbers(&book.slots, &counted, release)))
            })
            .await
        })
    }
}
