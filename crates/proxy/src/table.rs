//! The routing table as it is put over the control socket and kept in the state file: the model's route tables, each with the
//! fence of whoever wrote it, and what makes one fit to be served.
//!
//! What a table means for one request is in `routing`.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use cdpipe_model::observe::RouteTable;
use cdpipe_model::service::Route;
use cdpipe_model::strategy::RouteMatch;
use serde::{Deserialize, Serialize};

/// Most routes in one table.
pub const MAX_ROUTES: usize = 1_000;
/// Most releases of one route.
pub const MAX_RELEASES_PER_ROUTE: usize = 16;
/// Most members of one release.
pub const MAX_MEMBERS_PER_RELEASE: usize = 1_000;
/// Most header and cookie rules of one route.
pub const MAX_RULES_PER_ROUTE: usize = 64;
/// Longest name (service, release, instance, owner) in bytes.
pub const MAX_NAME_BYTES: usize = 128;
/// All of the traffic, in basis points.
pub const WHOLE_BP: u32 = 10_000;

/// Everything the proxy serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyTable {
    /// Grows by one with each change of anything in it.
    pub revision: u64,
    /// The routes, each with its fence. Order does not matter: the most specific route that matches a request answers it.
    pub routes: Vec<FencedRoute>,
}

/// One route and who may change it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FencedRoute {
    /// Epoch of the last writer. A write with a smaller one is stale; with the same one it must come from the same owner.
    pub epoch: u64,
    /// The last writer.
    pub owner: String,
    /// What is served. Without entries the route is closed and answers 503.
    pub table: RouteTable,
}

/// Why a table is not one that can be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableError {
    /// Which part, such as `routes[2].entries[0].weight_bp`.
    pub at: String,
    /// What is wrong, what was expected and what was found.
    pub what: String,
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.what)
    }
}

impl std::error::Error for TableError {}

impl ProxyTable {
    /// Checks everything that can be known without binding a port.
    ///
    /// # Errors
    /// The first thing found that can not be served, with its place in the table.
    pub fn validate(&self) -> Result<(), TableError> {
        let fail = |at: String, what: String| Err(TableError { at, what });
        if self.routes.len() > MAX_ROUTES {
            return fail(
                "routes".into(),
                format!("expected at most {MAX_ROUTES} routes, found {}", self.routes.len()),
            );
        }
        let mut keys = HashMap::new();
        let mut listens: Vec<SocketAddr> = Vec::new();
        for (index, route) in self.routes.iter().enumerate() {
            let at = format!("routes[{index}]");
            check_name(&route.owner).or_else(|what| fail(format!("{at}.owner"), what))?;
            validate_route(&route.table, &at)?;
            let listen =
                listen_address(&route.table.route).map_err(|what| TableError { at: at.clone(), what })?;
            let host = route.table.route.host.as_ref().map(|h| h.to_ascii_lowercase());
            let prefix = normal_prefix(route.table.route.path.as_deref().unwrap_or("")).to_owned();
            if let Some(other) = keys.insert((listen, host, prefix), index) {
                return fail(
                    at,
                    format!(
                        "service {:?} claims the same listen address, host and path as service {:?}",
                        route.table.route.service.as_str(),
                        self.routes[other].table.route.service.as_str()
                    ),
                );
            }
            // A wildcard and an address of the same port can not both be bound; better said here than by bind.
            if let Some(other) = listens.iter().find(|other| {
                other.port() == listen.port()
                    && **other != listen
                    && (other.ip().is_unspecified() || listen.ip().is_unspecified())
            }) {
                return fail(at, format!("{listen} and {other} overlap: use one of them for both routes"));
            }
            listens.push(listen);
        }
        Ok(())
    }

    /// The listen addresses, each once, in the order of the routes. Routes that do not validate are left out.
    pub fn listen_addresses(&self) -> Vec<SocketAddr> {
        let mut seen = HashSet::new();
        self.routes
            .iter()
            .filter_map(|r| listen_address(&r.table.route).ok())
            .filter(|a| seen.insert(*a))
            .collect()
    }

    /// Whether no route on this address has a release behind it.
    pub fn is_closed(&self, address: SocketAddr) -> bool {
        let mut here = self.routes.iter().filter(|r| listen_address(&r.table.route) == Ok(address));
        here.all(|r| r.table.entries.is_empty())
    }

    /// The entry of a route. A route is the same when service, listen address, host and path are.
    pub fn find(&self, route: &Route) -> Option<&FencedRoute> {
        self.routes.iter().find(|other| same_route(&other.table.route, route))
    }
}

/// What a route is called in metrics and lists, the same for all that are [`same_route`]: `127.0.0.1:8080`,
/// `shop.example.com@127.0.0.1:8080/api`.
pub(crate) fn route_name(route: &Route) -> String {
    let listen =
        listen_address(route).map_or_else(|_| route.listen.clone().unwrap_or_default(), |a| a.to_string());
    let host = route.host.as_ref().map_or_else(String::new, |host| format!("{}@", host.to_ascii_lowercase()));
    format!("{host}{listen}{}", normal_prefix(route.path.as_deref().unwrap_or("")))
}

/// Whether both name the same way in for the same service.
pub(crate) fn same_route(a: &Route, b: &Route) -> bool {
    a.service == b.service && route_name(a) == route_name(b)
}

/// The address a route listens on. `:PORT` is every IPv4 address of the machine.
///
/// # Errors
/// One sentence with what was expected and found.
pub(crate) fn listen_address(route: &Route) -> Result<SocketAddr, String> {
    let expected = "expected an address and port to listen on, such as \"127.0.0.1:8080\" or \":8080\"";
    let Some(text) = route.listen.as_deref() else {
        return Err(format!("{expected}; the route of service {:?} has none", route.service.as_str()));
    };
    let address = match text.rsplit_once(':') {
        Some(("" | "*", port)) => {
            port.parse().ok().map(|port| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
        }
        Some(("localhost", port)) => {
            port.parse().ok().map(|port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port))
        }
        _ => text.parse().ok(),
    };
    match address {
        Some(address) if address.port() != 0 => Ok(address),
        _ => Err(format!("{expected}; found {text:?}")),
    }
}

/// Where a member is: known, or a name that is asked for at each new connection, so that a restart may change its address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum MemberAddress {
    Socket(SocketAddr),
    Name(String, u16),
}

impl fmt::Display for MemberAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MemberAddress::Socket(address) => write!(f, "{address}"),
            MemberAddress::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// Reads a member's `HOST:PORT`.
pub(crate) fn member_address(text: &str) -> Result<MemberAddress, String> {
    let fail = || Err(format!("expected HOST:PORT to connect to, found {text:?}"));
    if let Ok(address) = text.parse::<SocketAddr>() {
        return if address.port() == 0 || address.ip().is_unspecified() {
            fail()
        } else {
            Ok(MemberAddress::Socket(address))
        };
    }
    match text.rsplit_once(':') {
        Some((host, port)) if is_host(host) && !host.contains([':', '[', ']']) => match port.parse::<u16>() {
            Ok(port) if port > 0 && host == "localhost" => {
                Ok(MemberAddress::Socket(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)))
            }
            Ok(port) if port > 0 => Ok(MemberAddress::Name(host.to_owned(), port)),
            _ => fail(),
        },
        _ => fail(),
    }
}

fn validate_route(table: &RouteTable, at: &str) -> Result<(), TableError> {
    let fail = |part: String, what: String| Err(TableError { at: format!("{at}.{part}"), what });
    let route = &table.route;
    check_name(route.service.as_str()).or_else(|what| fail("route.service".into(), what))?;
    let listen =
        listen_address(route).or_else(|what| fail("route.listen".into(), what).map(|()| any_address()))?;
    if let Some(host) = &route.host
        && !is_host(host)
    {
        return fail("route.host".into(), format!("expected a host name without port, found {host:?}"));
    }
    if let Some(path) = &route.path
        && (!path.starts_with('/')
            || path.len() > 1024
            || !path.bytes().all(|b| b.is_ascii_graphic() && !b"\"\\;".contains(&b)))
    {
        return fail("route.path".into(), format!("expected a path that starts with \"/\", found {path:?}"));
    }
    if table.entries.len() > MAX_RELEASES_PER_ROUTE {
        return fail(
            "entries".into(),
            format!("expected at most {MAX_RELEASES_PER_ROUTE} releases, found {}", table.entries.len()),
        );
    }
    let mut releases = HashSet::new();
    for (index, entry) in table.entries.iter().enumerate() {
        let part = format!("entries[{index}]");
        let release = entry.release.as_str();
        check_name(release).or_else(|what| fail(format!("{part}.release"), what))?;
        if !releases.insert(release) {
            return fail(part, format!("release {release:?} is named twice"));
        }
        if entry.members.len() > MAX_MEMBERS_PER_RELEASE {
            return fail(
                format!("{part}.members"),
                format!("expected at most {MAX_MEMBERS_PER_RELEASE} members, found {}", entry.members.len()),
            );
        }
        let pinned = table.rules.iter().any(|rule| rule.release == entry.release);
        if entry.members.is_empty() && (entry.weight_bp > 0 || pinned) {
            let by = if entry.weight_bp > 0 {
                format!("{} basis points", entry.weight_bp)
            } else {
                "by a rule".into()
            };
            return fail(
                format!("{part}.members"),
                format!("release {release:?} is routed to ({by}) and has no member"),
            );
        }
        let mut instances = HashSet::new();
        for member in &entry.members {
            let instance = member.instance.as_str();
            check_name(instance).or_else(|what| fail(format!("{part}.members"), what))?;
            if !instances.insert(instance) {
                return fail(format!("{part}.members"), format!("instance {instance:?} is named twice"));
            }
            match member_address(&member.address) {
                Err(what) => {
                    return fail(format!("{part}.members"), format!("instance {instance:?}: {what}"));
                }
                Ok(MemberAddress::Socket(address)) if address == listen => {
                    return fail(
                        format!("{part}.members"),
                        format!("instance {instance:?} is the route's own listen address {listen}"),
                    );
                }
                Ok(_) => {}
            }
        }
    }
    let sum: u64 = table.entries.iter().map(|e| u64::from(e.weight_bp)).sum();
    if !table.entries.is_empty() && sum != u64::from(WHOLE_BP) {
        return fail(
            "entries".into(),
            format!("expected weights that sum to {WHOLE_BP} basis points, found {sum}"),
        );
    }
    if table.rules.len() > MAX_RULES_PER_ROUTE {
        return fail(
            "rules".into(),
            format!("expected at most {MAX_RULES_PER_ROUTE} rules, found {}", table.rules.len()),
        );
    }
    for (index, rule) in table.rules.iter().enumerate() {
        let part = format!("rules[{index}]");
        if !releases.contains(rule.release.as_str()) {
            return fail(
                part,
                format!("release {:?} is not one of the route's releases", rule.release.as_str()),
            );
        }
        let (RouteMatch::Header { name, value } | RouteMatch::Cookie { name, value }) = &rule.matches;
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(is_token) {
            return fail(part, format!("expected a header or cookie name, found {name:?}"));
        }
        if value.len() > 1024 || value.bytes().any(|b| b < 0x20 || b == 0x7f) {
            return fail(part, "expected a value of at most 1024 bytes without control characters".into());
        }
    }
    Ok(())
}

fn any_address() -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0)
}

fn is_host(host: &str) -> bool {
    !host.is_empty()
        && host.len() <= 253
        && host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']'))
}

/// A prefix without its trailing slashes: `/api/` and `/api` are one prefix, `/` is none.
pub(crate) fn normal_prefix(prefix: &str) -> &str {
    prefix.trim_end_matches('/')
}

/// RFC 9110 `tchar`.
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Names travel as header values, cookie values, metric labels and file content.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty()
        || name.len() > MAX_NAME_BYTES
        || !name.bytes().all(|b| b.is_ascii_graphic() && !b"\"\\;,".contains(&b))
    {
        return Err(format!(
            "expected a name of 1 to {MAX_NAME_BYTES} printable ASCII characters without blanks, quotes, backslashes, commas \
             or semicolons, found {name:?}"
        ));
    }
    Ok(())
}
