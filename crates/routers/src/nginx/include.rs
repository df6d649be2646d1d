//! The include file: route tables in, nginx's words out, and back again.
//!
//! The file says in its head, for a machine, which tables it was made from, so that reading it back is exact. Its check sum covers the
//! whole of it: a change by hand is found. Its *generation* names what it does, and is what a running nginx is asked for.

use crate::bounds::same_route;
use crate::hash::hash;
use crate::nginx::processes::Worker;
use cdpipe_model::fault::Fault;
use cdpipe_model::observe::{RouteEntry, RouteTable};
use cdpipe_model::service::Route;
use cdpipe_model::strategy::{RouteMatch, Sticky};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// First line of a file of ours.
const TITLE: &str =
    "# Written by cdpipe at each deploy. A change by hand is refused: change the pipeline instead.";
/// First line of a file that a person made to let nginx start before the first deploy.
pub(crate) const SEED: &str = "# cdpipe: replace me";
const CHECK: &str = "# cdpipe-check: ";
const STATE: &str = "# cdpipe-state: ";
/// Last line: a file without it was cut short.
pub(crate) const END: &str = "# cdpipe-end";
/// Host name of the server that says which generation is in force. Ends in a name that can't be registered.
pub(crate) const STATUS_HOST: &str = "cdpipe-status.invalid";
const GENERATION: &str = "@GENERATION@";

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Include {
    /// Version of this form.
    version: u32,
    /// Where the status server listens.
    pub(crate) status: String,
    /// One for each route.
    pub(crate) routes: Vec<Fenced>,
    /// nginx's workers when the file was written: those that may still do what it did before.
    pub(crate) replaced: Vec<Worker>,
}

/// A table and whose it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fenced {
    /// Epoch of the owner that wrote it.
    pub(crate) epoch: u64,
    /// The table.
    pub(crate) table: RouteTable,
}

/// What was found at the path.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    /// What the file says; empty if there is none.
    pub(crate) include: Include,
    /// Its second line, by which a later look tells whether it is still the same; `absent` without a file.
    pub(crate) mark: String,
    /// The whole text, if there is a file.
    pub(crate) text: Option<String>,
}

impl Include {
    /// Nothing yet.
    pub(crate) fn new(status: &str) -> Self {
        Self { version: 1, status: status.to_owned(), ..Self::default() }
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// `moved` if it is not ours, or was changed since it was written; `router-version`.
    pub(crate) fn read(bytes: Option<&[u8]>, path: &str, status: &str) -> Result<Found, Fault> {
        let Some(bytes) = bytes else {
            return Ok(Found { include: Self::new(status), mark: "absent".to_owned(), text: None });
        };
        let text = String::from_utf8_lossy(bytes).into_owned();
        let mark = text.lines().nth(1).unwrap_or_default().to_owned();
        if text.trim().is_empty() || text.lines().next().is_some_and(|line| line.trim_end() == SEED) {
            return Ok(Found { include: Self::new(status), mark, text: Some(text) });
        }
        let refused = |what: &str| {
            Err(Fault::new("moved", format!("{path} {what}")).help(format!(
                "put it back as cdpipe wrote it ({path}.old is the one before), or remove it, and cdpipe writes it anew at the next deploy"
            )))
        };
        if !text.starts_with(TITLE) {
            return refused("is not a file that cdpipe wrote: expected its name in the first line");
        }
        let Some(check) = mark.strip_prefix(CHECK) else {
            return refused("was changed by hand since cdpipe wrote it: its check sum is gone");
        };
        let found = hash(&text.replacen(check, "", 1));
        if found != check {
            return refused(&format!(
                "was changed by hand since cdpipe wrote it: expected check sum {check}, found {found}"
            ));
        }
        let state = text.lines().nth(2).and_then(|line| line.strip_prefix(STATE)).unwrap_or_default();
        match serde_json::from_str::<Self>(state) {
            Ok(include) if include.version == 1 => Ok(Found { include, mark, text: Some(text) }),
            Ok(include) => Err(version(path, &format!("version {}", include.version))),
            Err(error) => Err(version(path, &error.to_string())),
        }
    }

    /// The table of a route.
    pub(crate) fn find(&self, route: &Route) -> Option<&Fenced> {
        self.routes.iter().find(|fenced| same_route(&fenced.table.route, route))
    }

    /// Puts a table in.
    pub(crate) fn put(&mut self, table: &RouteTable, epoch: u64) {
        self.routes.retain(|fenced| !same_route(&fenced.table.route, &table.route));
        self.routes.push(Fenced { epoch, table: table.clone() });
        self.routes.sort_by(|a, b| a.table.route.cmp(&b.table.route));
    }

    /// The name of what it does.
    pub(crate) fn generation(&self) -> Result<String, Fault> {
        Ok(hash(&self.body()?))
    }

    /// The whole file.
    ///
    /// # Errors
    /// `invalid-route` for what nginx has no words for.
    pub(crate) fn text(&self) -> Result<String, Fault> {
        let body = self.body()?.replace(GENERATION, &self.generation()?);
        let state = serde_json::to_string(self)
            .map_err(|error| Fault::new("internal", format!("a route table can't be written: {error}")))?;
        let without = format!("{TITLE}\n{CHECK}\n{STATE}{state}\n{body}{END}\n");
        let check = hash(&without);
        Ok(without.replacen(&format!("{CHECK}\n"), &format!("{CHECK}{check}\n"), 1))
    }

    fn body(&self) -> Result<String, Fault> {
        let mut out = String::new();
        let mut names = BTreeMap::new();
        for fenced in &self.routes {
            let name = variable(&fenced.table.route);
            if let Some(other) = names.insert(name.clone(), &fenced.table.route.service) {
                return Err(invalid(format!(
                    "services {other} and {} would share nginx's variable ${name}: rename one of them",
                    fenced.table.route.service
                )));
            }
            route(&mut out, &fenced.table, &name)?;
        }
        self.answering(&mut out);
        self.servers(&mut out)?;
        Ok(out)
    }

    /// `$cdpipe_release` and `$cdpipe_role`: who answered, for logs and headers of the user's own servers.
    fn answering(&self, out: &mut String) {
        let mut known = BTreeSet::new();
        let (mut releases, mut roles) = (String::new(), String::new());
        for fenced in &self.routes {
            let name = variable(&fenced.table.route);
            for entry in &fenced.table.entries {
                let group = group(&name, entry);
                if known.insert(group.clone()) {
                    let key = exactly(&group);
                    let _ = writeln!(releases, "    \"~^{key}\\z\" \"{}\";", entry.release.as_str());
                    let _ = writeln!(roles, "    \"~^{key}\\z\" {};", entry.role.as_str());
                }
            }
        }
        let _ = write!(
            out,
            "\n# Who answers. Asked again each time, for it is known only when the request is passed on.\n\
             map $proxy_host $cdpipe_release {{\n    volatile;\n    default \"\";\n{releases}}}\n\
             map $proxy_host $cdpipe_role {{\n    volatile;\n    default \"\";\n{roles}}}\n\
             map $http_upgrade $cdpipe_connection {{\n    default upgrade;\n    \"\" close;\n}}\n"
        );
    }

    fn servers(&self, out: &mut String) -> Result<(), Fault> {
        let _ = write!(
            out,
            "\n# A closed route ends here, and cdpipe asks here which generation is in force.\n\
             upstream cdpipe-closed {{\n    server {0} max_fails=0;\n}}\n\
             server {{\n    listen {0} default_server;\n    access_log off;\n    return 503 \"no release serves here now\\n\";\n}}\n\
             server {{\n    listen {0};\n    server_name {STATUS_HOST};\n    access_log off;\n    \
             return 200 \"cdpipe {GENERATION} $pid\\n\";\n}}\n",
            self.status
        );
        // One server for each address and host: routes that differ in their path alone are locations of it.
        let mut servers: BTreeMap<(&str, Option<&str>), Vec<&RouteTable>> = BTreeMap::new();
        for fenced in &self.routes {
            if let Some(listen) = &fenced.table.route.listen {
                let key = (listen.as_str(), fenced.table.route.host.as_deref());
                servers.entry(key).or_default().push(&fenced.table);
            }
        }
        let listens: BTreeSet<&str> = servers.keys().map(|(listen, _)| *listen).collect();
        for listen in listens {
            let address = listen.strip_prefix(':').unwrap_or(listen);
            plain(address, "listen")?;
            if !servers.contains_key(&(listen, None)) {
                let _ =
                    write!(out, "\nserver {{\n    listen {address} default_server;\n    return 404;\n}}\n");
            }
            for ((_, host), tables) in servers.iter().filter(|((other, _), _)| *other == listen) {
                let _ = writeln!(out, "\nserver {{");
                match host {
                    Some(host) => {
                        plain(host, "host")?;
                        let _ = writeln!(out, "    listen {address};\n    server_name {host};");
                    }
                    None => {
                        let _ = writeln!(out, "    listen {address} default_server;");
                    }
                }
                out.push_str("    client_max_body_size 0;\n");
                let mut rest = true;
                for table in tables {
                    let path = table.route.path.as_deref().unwrap_or("/").trim_end_matches('/');
                    if path.is_empty() {
                        rest = false;
                        location(out, "/", table);
                    } else {
                        plain(path, "path")?;
                        location(out, &format!("= {path}"), table);
                        location(out, &format!("{path}/"), table);
                    }
                }
                if rest {
                    out.push_str("    location / {\n        return 404;\n    }\n");
                }
                out.push_str("}\n");
            }
        }
        Ok(())
    }
}

/// Nothing in it that nginx would read as more than a word.
fn plain(text: &str, what: &str) -> Result<(), Fault> {
    let fits = !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~:/[]*%+@!,".contains(&byte));
    if fits {
        return Ok(());
    }
    Err(invalid(format!(
        "expected a `{what}` of letters, digits and `-._~:/[]*%+@!,` for nginx, found `{text}`"
    )))
}

fn location(out: &mut String, at: &str, table: &RouteTable) {
    let _ = writeln!(out, "    location {at} {{");
    if table.entries.is_empty() {
        out.push_str("        return 503 \"no release serves here now\\n\";\n    }\n");
        return;
    }
    let name = variable(&table.route);
    // Nothing is buffered or retried that could be seen: answers stream, and a request goes to a second instance only if the first
    // refused its connection or broke it before it answered, and never if repeating it could change something.
    let _ = write!(
        out,
        "        proxy_pass http://${name};\n        proxy_http_version 1.1;\n        \
         proxy_set_header Host $http_host;\n        proxy_set_header Upgrade $http_upgrade;\n        \
         proxy_set_header Connection $cdpipe_connection;\n        \
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n        \
         proxy_set_header X-Forwarded-Proto $scheme;\n        proxy_buffering off;\n        \
         proxy_connect_timeout 5s;\n        proxy_read_timeout 300s;\n        proxy_send_timeout 300s;\n        \
         proxy_next_upstream error;\n    }}\n"
    );
}

/// The variable that holds the upstream group a request goes to, without `$`.
pub(crate) fn variable(route: &Route) -> String {
    let service: String =
        route.service.as_str().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    match &route.listen {
        // The user's own server names it, so it must be known beforehand.
        None => format!("cdpipe_upstream_{service}"),
        Some(_) => {
            let key = format!("{:?} {:?} {:?}", route.listen, route.host, route.path);
            format!("cdpipe_upstream_{service}_{}", hash(&key).get(..8).unwrap_or_default())
        }
    }
}

/// The upstream group of a release. A name that may stand in a Host header.
fn group(variable: &str, entry: &RouteEntry) -> String {
    let name =
        variable.strip_prefix("cdpipe_upstream_").unwrap_or(variable).replace('_', "-").to_ascii_lowercase();
    format!("cdpipe-{name}-{}", hash(&format!("{variable} {}", entry.release)).get(..10).unwrap_or_default())
}

fn route(out: &mut String, table: &RouteTable, name: &str) -> Result<(), Fault> {
    let _ = writeln!(out, "\n# service {}", table.route.service);
    let mut groups: BTreeMap<&str, String> = BTreeMap::new();
    for entry in &table.entries {
        let group = group(name, entry);
        if entry.members.is_empty() {
            groups.insert(entry.release.as_str(), "cdpipe-closed".to_owned());
            continue;
        }
        let _ = writeln!(out, "upstream {group} {{  # {}", entry.release.as_str());
        for member in &entry.members {
            plain(&member.address, "address")?;
            // Who is healthy is cdpipe's business, and a list that every worker counts for itself is nobody's.
            let _ = writeln!(out, "    server {} max_fails=0;", member.address);
        }
        out.push_str("}\n");
        groups.insert(entry.release.as_str(), group);
    }
    let last = if table.rules.is_empty() { name.to_owned() } else { format!("{name}_share") };
    share(out, table, &last, &groups);
    // First match wins: each map falls through to the next.
    for (index, rule) in table.rules.iter().enumerate() {
        let this = if index == 0 { name.to_owned() } else { format!("{name}_rule{index}") };
        let next =
            if index + 1 == table.rules.len() { last.clone() } else { format!("{name}_rule{}", index + 1) };
        let Some(group) = groups.get(rule.release.as_str()) else {
            return Err(invalid(format!(
                "a rule leads to release {}, which is not in the table",
                rule.release
            )));
        };
        let (of, pattern) = match &rule.matches {
            RouteMatch::Header { name, value } => {
                let header = name.to_ascii_lowercase().replace('-', "_");
                if !header.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                    return Err(invalid(format!("nginx has no variable for a header named `{name}`")));
                }
                (format!("$http_{header}"), format!("^{}\\z", exactly(value)))
            }
            RouteMatch::Cookie { name, value } => (
                "$http_cookie".to_owned(),
                format!("(?:^|;[ ]*){}={}[ ]*(?:;|\\z)", exactly(name), exactly(value)),
            ),
        };
        let _ = write!(out, "map {of} ${this} {{\n    default ${next};\n    \"~{pattern}\" {group};\n}}\n");
    }
    Ok(())
}

/// The variable that weights alone decide.
fn share(out: &mut String, table: &RouteTable, name: &str, groups: &BTreeMap<&str, String>) {
    let group = |entry: &RouteEntry| groups.get(entry.release.as_str()).cloned().unwrap_or_default();
    // Candidates first: as a candidate's weight rises its stretch only grows, so an address that is on it stays on it.
    let mut weighted: Vec<&RouteEntry> = table.entries.iter().filter(|entry| entry.weight_bp > 0).collect();
    weighted.sort_by_key(|entry| std::cmp::Reverse(entry.role));
    let Some((rest, first)) = weighted.split_last() else {
        let _ = write!(out, "map \"\" ${name} {{\n    default cdpipe-closed;\n}}\n");
        return;
    };
    if first.is_empty() {
        let _ = write!(out, "map \"\" ${name} {{\n    default {};\n}}\n", group(rest));
        return;
    }
    let key = match table.sticky {
        Sticky::ClientAddress => format!("${{remote_addr}}{name}"),
        Sticky::None | Sticky::Cookie => "$request_id".to_owned(),
    };
    let _ = writeln!(out, "split_clients \"{key}\" ${name} {{");
    for entry in first {
        let _ =
            writeln!(out, "    {}.{:02}% {};", entry.weight_bp / 100, entry.weight_bp % 100, group(entry));
    }
    let _ = write!(out, "    * {};\n}}\n", group(rest));
}

/// A regular expression for exactly this text. All that is no letter or digit is written as a number, so neither nginx's own reading of
/// quotes, dollars and backslashes nor the expression's sees anything in it.
fn exactly(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

fn invalid(what: String) -> Fault {
    Fault::new("invalid-route", what)
}

fn version(path: &str, found: &str) -> Fault {
    Fault::new("router-version", format!("{path} was written by another version of cdpipe: {found}"))
        .help("remove it, and cdpipe writes it anew at the next deploy")
}
