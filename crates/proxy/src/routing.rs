//! The table in force, and the one step that matters: choosing a member and counting the request on it.
//!
//! Each worker has its own lock over its own copy of the pointer to the table. A pick holds one of them, a swap holds all
//! of them. So once a swap has returned, every request that was chosen by the old table is counted on its member, and
//! none will be chosen by it any more: a member that the new table does not name and whose count is zero stays at zero.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cdpipe_model::observe::{Role, RouteEntry, RouteRule, RouteTable};
use cdpipe_model::service::Route;
use cdpipe_model::strategy::{RouteMatch, Sticky};

use crate::control::protocol::Selection;
use crate::http1::request::Facts;
use crate::metrics::{ReleaseStats, StatsKey};
use crate::table::{ProxyTable, listen_address, member_address, normal_prefix, route_name};
use crate::upstream::{Member, MemberKey};
use crate::weights::{BUCKETS, Schedule, bucket_of_address, owner_of_bucket};

/// A table made ready for requests.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) table: ProxyTable,
    listeners: Vec<(SocketAddr, ListenerRoutes)>,
}

/// The routes of one listen address.
#[derive(Debug, Default)]
struct ListenerRoutes {
    /// By lower-case host, longest path first.
    hosts: HashMap<String, Vec<LiveRoute>>,
    /// For every host, longest path first.
    any: Vec<LiveRoute>,
}

#[derive(Debug)]
struct LiveRoute {
    service: String,
    prefix: String,
    rules: Vec<RouteRule>,
    sticky: Sticky,
    cookie: String,
    /// Basis points.
    weights: Vec<u32>,
    /// Release indices, candidates first: the order of the sticky buckets.
    order: Vec<usize>,
    schedule: Schedule,
    releases: Vec<Arc<LiveRelease>>,
}

/// One release of one route.
#[derive(Debug)]
pub(crate) struct LiveRelease {
    pub(crate) service: String,
    pub(crate) release: String,
    role: Role,
    pub(crate) stats: Arc<ReleaseStats>,
    members: Vec<Arc<Member>>,
    turn: AtomicUsize,
}

/// Why no member could be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PickError {
    /// No route matches listener, host and path.
    NoRoute,
    /// The route is there and has no release.
    Closed { service: String },
    /// The release that must answer has no member left to try.
    NoMember { service: String, release: String },
}

/// A request that is counted on its member until this is dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) release: Arc<LiveRelease>,
    member: usize,
    /// `Set-Cookie` value for a user who was placed or moved.
    pub(crate) set_cookie: Option<String>,
    upgraded: bool,
}

impl InFlight {
    pub(crate) fn member(&self) -> &Arc<Member> {
        &self.release.members[self.member]
    }

    /// From now on this is an upgraded connection.
    pub(crate) fn upgrade(&mut self) {
        if !self.upgraded {
            self.upgraded = true;
            self.member().enter_upgraded();
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let member = self.member();
        if self.upgraded {
            member.leave_upgraded();
        }
        member.leave();
    }
}

/// A worker's pointer to the table; aligned so that two workers' locks never share a cache line.
#[derive(Debug)]
#[repr(align(128))]
struct Slot(Mutex<Arc<Live>>);

/// The pointer to the table in force, one copy for each worker.
#[derive(Debug)]
pub(crate) struct Routing {
    slots: Box<[Slot]>,
}

impl Routing {
    pub(crate) fn new(workers: usize, live: Arc<Live>) -> Routing {
        Routing { slots: (0..workers.max(1)).map(|_| Slot(Mutex::new(live.clone()))).collect() }
    }

    fn lock(&self, worker: usize) -> MutexGuard<'_, Arc<Live>> {
        self.slots[worker].0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn current(&self) -> Arc<Live> {
        self.lock(0).clone()
    }

    /// Puts `live` in force for all workers at one moment. Returns when no pick by the old table is under way.
    pub(crate) fn swap(&self, live: &Arc<Live>) {
        let mut all: Vec<_> = (0..self.slots.len()).map(|worker| self.lock(worker)).collect();
        for slot in &mut all {
            **slot = live.clone();
        }
    }

    /// Chooses the member for a request and counts it there, as one step.
    ///
    /// `tried` are members that could not be reached for this request; `before` is the release they belong to, which is
    /// kept while the table still routes to it.
    ///
    /// # Errors
    /// [`PickError`] if the table has nobody to answer.
    pub(crate) fn pick(
        &self,
        worker: usize,
        listen: SocketAddr,
        facts: &Facts<'_>,
        tried: &[u64],
        before: Option<&str>,
        now_ms: u64,
    ) -> Result<InFlight, PickError> {
        let live = self.lock(worker);
        let route = live.route(listen, facts).ok_or(PickError::NoRoute)?;
        if route.releases.is_empty() {
            return Err(PickError::Closed { service: route.service.clone() });
        }
        let (index, set_cookie) = route.choose(facts, before);
        let release = route.releases.get(index).ok_or(PickError::NoRoute)?;
        let Some(member) = release.least_requests(tried, now_ms) else {
            return Err(PickError::NoMember {
                service: release.service.clone(),
                release: release.release.clone(),
            });
        };
        release.members[member].enter();
        Ok(InFlight { release: release.clone(), member, set_cookie, upgraded: false })
    }
}

impl Live {
    /// Makes a validated table ready. `member` and `stats` find or make what outlives a table.
    pub(crate) fn new(
        table: ProxyTable,
        mut member: impl FnMut(MemberKey) -> Arc<Member>,
        mut stats: impl FnMut(StatsKey) -> Arc<ReleaseStats>,
    ) -> Live {
        let mut listeners: Vec<(SocketAddr, ListenerRoutes)> = Vec::new();
        for RouteTable { route, entries, rules, sticky } in table.routes.iter().map(|fenced| &fenced.table) {
            // Validated before; a route that can not be listened on would be one that nobody reaches.
            let Ok(listen) = listen_address(route) else { continue };
            let live = LiveRoute::new(route, entries, rules, *sticky, &mut member, &mut stats);
            let at = match listeners.iter().position(|(other, _)| *other == listen) {
                Some(at) => at,
                None => {
                    listeners.push((listen, ListenerRoutes::default()));
                    listeners.len() - 1
                }
            };
            let routes = &mut listeners[at].1;
            let list = match &route.host {
                Some(host) => routes.hosts.entry(host.to_ascii_lowercase()).or_default(),
                None => &mut routes.any,
            };
            let place = list.partition_point(|other| other.prefix.len() > live.prefix.len());
            list.insert(place, live);
        }
        Live { table, listeners }
    }

    /// Host first, then the longest path: a host's own routes win over those of every host, whatever the path.
    fn route(&self, listen: SocketAddr, facts: &Facts<'_>) -> Option<&LiveRoute> {
        let (_, routes) = self.listeners.iter().find(|(address, _)| *address == listen)?;
        if !routes.hosts.is_empty() && !facts.host.is_empty() {
            let mut room = [0u8; 256];
            let host = facts.host.as_bytes();
            if let Some(lower) = room.get_mut(..host.len()) {
                lower.copy_from_slice(host);
                lower.make_ascii_lowercase();
                let found = std::str::from_utf8(lower).ok().and_then(|host| routes.hosts.get(host));
                if let Some(route) = found.and_then(|list| list.iter().find(|r| r.covers(facts.path))) {
                    return Some(route);
                }
            }
        }
        routes.any.iter().find(|route| route.covers(facts.path))
    }

    /// Whether the table can still send a request to what is selected.
    pub(crate) fn routes_to(&self, what: &Selection) -> bool {
        self.tables(&what.service, what.route.as_ref().map(route_name).as_deref()).any(|table| {
            table.entries.iter().filter(|entry| entry.release.as_str() == what.release).any(|entry| {
                let routed =
                    entry.weight_bp > 0 || table.rules.iter().any(|rule| rule.release == entry.release);
                let selected = |member: &cdpipe_model::observe::Member| what.covers(member.instance.as_str());
                routed && (what.instances.is_none() || entry.members.iter().any(selected))
            })
        })
    }

    /// The role the table gives a release of a route.
    pub(crate) fn role_of(&self, service: &str, route: &str, release: &str) -> Option<Role> {
        self.tables(service, Some(route))
            .flat_map(|table| &table.entries)
            .find(|entry| entry.release.as_str() == release)
            .map(|entry| entry.role)
    }

    fn tables<'a>(
        &'a self,
        service: &'a str,
        route: Option<&'a str>,
    ) -> impl Iterator<Item = &'a RouteTable> {
        self.table
            .routes
            .iter()
            .map(|fenced| &fenced.table)
            .filter(move |table| table.service().as_str() == service)
            .filter(move |table| route.is_none_or(|wanted| route_name(&table.route) == wanted))
    }
}

impl LiveRoute {
    fn new(
        route: &Route,
        entries: &[RouteEntry],
        rules: &[RouteRule],
        sticky: Sticky,
        member: &mut impl FnMut(MemberKey) -> Arc<Member>,
        stats: &mut impl FnMut(StatsKey) -> Arc<ReleaseStats>,
    ) -> LiveRoute {
        let service = route.service.as_str();
        let name = route_name(route);
        let weights: Vec<u32> = entries.iter().map(|entry| entry.weight_bp).collect();
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by_key(|&index| entries[index].role != Role::Candidate);
        let releases = entries
            .iter()
            .map(|entry| {
                let release = entry.release.as_str();
                let key = |m: &cdpipe_model::observe::Member| {
                    // Validated before, as above.
                    let address = member_address(&m.address).ok()?;
                    Some(MemberKey {
                        service: service.to_owned(),
                        route: name.clone(),
                        release: release.to_owned(),
                        instance: m.instance.as_str().to_owned(),
                        address,
                    })
                };
                Arc::new(LiveRelease {
                    service: service.to_owned(),
                    release: release.to_owned(),
                    role: entry.role,
                    stats: stats(StatsKey {
                        service: service.to_owned(),
                        route: name.clone(),
                        release: release.to_owned(),
                        role: entry.role,
                    }),
                    members: entry.members.iter().filter_map(key).map(&mut *member).collect(),
                    turn: AtomicUsize::new(0),
                })
            })
            .collect();
        let cookie_name: String =
            service.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        LiveRoute {
            service: service.to_owned(),
            prefix: route.path.as_deref().map(normal_prefix).unwrap_or("").to_owned(),
            rules: rules.to_vec(),
            sticky,
            cookie: format!("cdpipe_{cookie_name}"),
            schedule: Schedule::new(&weights),
            weights,
            order,
            releases,
        }
    }

    fn covers(&self, path: &str) -> bool {
        match path.strip_prefix(self.prefix.as_str()) {
            Some(rest) => self.prefix.is_empty() || rest.is_empty() || rest.starts_with(['/', '?']),
            None => false,
        }
    }

    fn index_of(&self, release: &str) -> Option<usize> {
        self.releases.iter().position(|r| r.release == release)
    }

    /// The release that answers, and the cookie that tells the user so.
    fn choose(&self, facts: &Facts<'_>, before: Option<&str>) -> (usize, Option<String>) {
        if let Some(pinned) = self.rules.iter().find(|rule| matches(&rule.matches, facts))
            && let Some(index) = self.index_of(pinned.release.as_str())
        {
            return (index, None);
        }
        match self.sticky {
            Sticky::None => {
                let kept = before
                    .and_then(|release| self.index_of(release))
                    .filter(|&index| self.weights[index] > 0);
                (kept.unwrap_or_else(|| self.schedule.choose()), None)
            }
            Sticky::ClientAddress => {
                let bucket = bucket_of_address(facts.client);
                (owner_of_bucket(bucket, &self.order, &self.weights).unwrap_or(0), None)
            }
            Sticky::Cookie => {
                let place = cookie(facts, &self.cookie).and_then(parse_place);
                let bucket = place.map_or_else(|| self.schedule.new_bucket(), |(bucket, _)| bucket);
                let held = place
                    .and_then(|(_, release)| self.index_of(release))
                    .filter(|&index| self.weights[index] > 0);
                let index = match held {
                    // A user of the candidate stays there as long as it has any weight.
                    Some(index) if self.releases[index].role == Role::Candidate => index,
                    _ => owner_of_bucket(bucket, &self.order, &self.weights).unwrap_or(0),
                };
                if held == Some(index) {
                    return (index, None);
                }
                let value = format!(
                    "{}={bucket}.{}; Path={}; HttpOnly; SameSite=Lax",
                    self.cookie,
                    self.releases[index].release,
                    if self.prefix.is_empty() { "/" } else { &self.prefix }
                );
                (index, Some(value))
            }
        }
    }
}

impl LiveRelease {
    /// The member with the fewest requests, the turn going round among equals; one that lately refused comes last.
    fn least_requests(&self, tried: &[u64], now_ms: u64) -> Option<usize> {
        let count = self.members.len();
        if count == 1 {
            return (!tried.contains(&self.members[0].id)).then_some(0);
        }
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        (0..count)
            .map(|step| (start.wrapping_add(step)) % count)
            .filter(|&index| !tried.contains(&self.members[index].id))
            .min_by_key(|&index| (self.members[index].passed_over(now_ms), self.members[index].in_flight()))
    }
}

fn matches(rule: &RouteMatch, facts: &Facts<'_>) -> bool {
    match rule {
        RouteMatch::Header { name, value } => facts
            .headers
            .iter()
            .filter(|h| h.name.eq_ignore_ascii_case(name))
            .any(|h| h.value.trim_ascii() == value.as_bytes()),
        RouteMatch::Cookie { name, value } => cookie(facts, name).is_some_and(|found| found == value),
    }
}

/// The value of the first cookie of this name.
fn cookie<'a>(facts: &Facts<'a>, name: &str) -> Option<&'a str> {
    facts
        .headers
        .iter()
        .filter(|h| h.name.eq_ignore_ascii_case("cookie"))
        .filter_map(|h| std::str::from_utf8(h.value).ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(found, _)| *found == name)
        .map(|(_, value)| value)
}

/// `bucket.release` of a sticky cookie; whatever else a user sends is as good as no cookie.
fn parse_place(value: &str) -> Option<(u32, &str)> {
    let (bucket, release) = value.split_once('.')?;
    let bucket = bucket.parse().ok().filter(|b| *b < BUCKETS)?;
    Some((bucket, release))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::FencedRoute;
    use std::sync::atomic::AtomicBool;
    use std::time::{Duration, Instant};

    const LISTEN: &str = "127.0.0.1:80";

    fn table(release: &str) -> ProxyTable {
        let table = serde_json::from_str(&format!(
            r#"{{"route":{{"service":"web","host":null,"path":null,"listen":"{LISTEN}","object":null}},
                "entries":[{{"release":"{release}","role":"stable","weight_bp":10000,
                             "members":[{{"instance":"{release}","address":"127.0.0.1:81"}}]}}],
                "rules":[],"sticky":"none"}}"#
        ))
        .expect("a table");
        ProxyTable { revision: 1, routes: vec![FencedRoute { epoch: 1, owner: "test".into(), table }] }
    }

    /// Threads pick as fast as they can while the table goes to and fro. Once a swap away from a member has returned and its
    /// count was seen at zero, nobody may come out of a pick with that member.
    #[test]
    fn no_pick_is_counted_after_a_swap_and_a_zero() {
        const WORKERS: usize = 4;
        let mut members: HashMap<MemberKey, Arc<Member>> = HashMap::new();
        let mut live = |release: &str| {
            Arc::new(Live::new(
                table(release),
                |key| {
                    members.entry(key.clone()).or_insert_with(|| Arc::new(Member::new(key, WORKERS))).clone()
                },
                |key| Arc::new(ReleaseStats::new(key, WORKERS)),
            ))
        };
        let tables = [live("r0"), live("r1")];
        let member =
            |n: usize| members.values().find(|m| m.key.release == format!("r{n}")).expect("made").clone();
        let counted = [member(0), member(1)];
        let at_rest = [AtomicBool::new(false), AtomicBool::new(true)];
        let routing = Routing::new(WORKERS, tables[0].clone());
        const SWAPS: usize = 300;
        // Long enough to meet the race if there is one; a loaded machine may take longer, and may not hang.
        let (enough, end) =
            (Instant::now() + Duration::from_millis(2_000), Instant::now() + Duration::from_secs(30));
        let (mut swaps, picks, done) = (0usize, AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for worker in 0..WORKERS {
                let (routing, at_rest, picks, done) = (&routing, &at_rest, &picks, &done);
                scope.spawn(move || {
                    let listen = LISTEN.parse().expect("an address");
                    let facts = Facts {
                        host: "",
                        path: "/",
                        headers: &[],
                        client: std::net::Ipv4Addr::LOCALHOST.into(),
                    };
                    while !done.load(Ordering::Relaxed) {
                        let picked = routing.pick(worker, listen, &facts, &[], None, 0).expect("a member");
                        let n = usize::from(picked.release.release == "r1");
                        assert!(!at_rest[n].load(Ordering::SeqCst), "r{n} was picked at rest");
                        picks.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            while (swaps < SWAPS || Instant::now() < enough) && Instant::now() < end {
                swaps += 1;
                let (new, old) = (swaps % 2, (swaps + 1) % 2);
                at_rest[new].store(false, Ordering::SeqCst);
                routing.swap(&tables[new]);
                while counted[old].in_flight() > 0 {
                    std::thread::yield_now();
                }
                at_rest[old].store(true, Ordering::SeqCst);
                // Long enough for a pick that is under way to come out.
                let until = Instant::now() + Duration::from_micros(20);
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(swaps >= SWAPS, "{swaps} swaps, {picks:?} picks");
        assert!(picks.load(Ordering::Relaxed) > SWAPS);
        assert!(counted.iter().all(|m| m.in_flight() == 0));
    }
}
