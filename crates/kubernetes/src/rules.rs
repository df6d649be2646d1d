//! How shares and matches are written into somebody's HTTPRoute or VirtualService: only backends that name our service change, and only in
//! the rules that name it. Plain data in, plain data out.

use crate::manifest::RELEASE;
use cdpipe_model::ReleaseId;
use cdpipe_model::observe::RouteTable;
use cdpipe_model::strategy::RouteMatch;
use serde_json::{Value, json};

/// All of the users, in basis points.
const ALL_BP: u64 = 10_000;
/// The largest weight of a backend (Gateway API, `HTTPBackendRef.weight`).
const MAX_WEIGHT: u64 = 1_000_000;

/// Which kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An HTTPRoute of the Gateway API.
    HttpRoute,
    /// A VirtualService of Istio.
    VirtualService,
}

/// Whose backends are meant.
#[derive(Clone, Copy)]
pub(crate) struct Ours<'a> {
    /// What the user's own rules name.
    pub(crate) service: &'a str,
    pub(crate) namespace: &'a str,
    /// Whether a release is a subset of a DestinationRule, not a Service of its own.
    pub(crate) subsets: bool,
}

impl Ours<'_> {
    /// The Service of one release.
    pub(crate) fn of(&self, release: &ReleaseId) -> String {
        format!("{}-{release}", self.service)
    }
}

/// How the subsets are named that cdpipe makes.
const SUBSET: &str = "cdpipe-";

/// The subset of one release.
pub(crate) fn subset(release: &ReleaseId) -> Value {
    json!({"name": format!("{SUBSET}{release}"), "labels": {RELEASE: release.as_str()}})
}

/// Whether a subset of a DestinationRule is cdpipe's.
pub(crate) fn is_our_subset(subset: &Value) -> bool {
    subset["name"].as_str().is_some_and(|name| name.starts_with(SUBSET))
}

impl Kind {
    /// Where its rules are in `spec`.
    pub(crate) fn rules(self) -> &'static str {
        match self {
            Kind::HttpRoute => "rules",
            Kind::VirtualService => "http",
        }
    }

    fn backends(self) -> &'static str {
        match self {
            Kind::HttpRoute => "backendRefs",
            Kind::VirtualService => "route",
        }
    }

    fn matches(self) -> &'static str {
        match self {
            Kind::HttpRoute => "matches",
            Kind::VirtualService => "match",
        }
    }

    fn is_ours(self, backend: &Value, ours: &Ours<'_>) -> bool {
        let (name, space) = (ours.service, ours.namespace);
        match self {
            Kind::HttpRoute => {
                backend["name"] == name
                    && backend["kind"].as_str().is_none_or(|kind| kind == "Service")
                    && backend["namespace"].as_str().is_none_or(|there| there == space)
            }
            // What cdpipe wrote is not what the user's own rules name.
            Kind::VirtualService
                if backend["destination"]["subset"].as_str().is_some_and(|name| name.starts_with(SUBSET)) =>
            {
                false
            }
            Kind::VirtualService => backend["destination"]["host"].as_str().is_some_and(|host| {
                host == name
                    || host.strip_prefix(name).is_some_and(|rest| {
                        rest.strip_prefix('.').is_some_and(|rest| {
                            rest == space
                                || rest == format!("{space}.svc")
                                || rest.starts_with(&format!("{space}.svc."))
                        })
                    })
            }),
        }
    }

    /// The same backend, but of one release.
    fn of_release(self, backend: &Value, ours: &Ours<'_>, release: &ReleaseId, weight: u64) -> Value {
        let mut backend = backend.clone();
        match self {
            Kind::HttpRoute => backend["name"] = json!(ours.of(release)),
            Kind::VirtualService if ours.subsets => {
                backend["destination"]["subset"] = subset(release)["name"].clone();
            }
            Kind::VirtualService => {
                let host = backend["destination"]["host"].as_str().unwrap_or_default();
                let rest = host.strip_prefix(ours.service).unwrap_or_default();
                backend["destination"]["host"] = json!(format!("{}{rest}", ours.of(release)));
            }
        }
        backend["weight"] = json!(weight);
        backend
    }

    /// This match, and the header or cookie beside it.
    fn narrowed(self, there: &Value, rule: &RouteMatch) -> Value {
        let mut there = if there.is_object() { there.clone() } else { json!({}) };
        let (name, value, exact) = match rule {
            RouteMatch::Header { name, value } => (name.as_str(), value.clone(), true),
            RouteMatch::Cookie { name, value } => {
                let pattern = format!("(^|.*; ?){}={}(;.*|$)", escaped(name), escaped(value));
                ("cookie", pattern, false)
            }
        };
        match self {
            Kind::HttpRoute => {
                let kind = if exact { "Exact" } else { "RegularExpression" };
                let header = json!({"type": kind, "name": name, "value": value});
                match there["headers"].as_array_mut() {
                    Some(headers) => headers.push(header),
                    None => there["headers"] = json!([header]),
                }
            }
            Kind::VirtualService => {
                let how = if exact { "exact" } else { "regex" };
                there["headers"][name] = json!({how: value});
            }
        }
        there
    }
}

/// Text as a regular expression of RE2.
fn escaped(text: &str) -> String {
    let special = |letter: char| !letter.is_ascii_alphanumeric() && letter != '_' && letter != '-';
    text.chars().flat_map(|letter| special(letter).then_some('\\').into_iter().chain([letter])).collect()
}

/// The port that the rules say our service has, if they do.
pub(crate) fn port(kind: Kind, rules: &[Value], ours: &Ours<'_>) -> Option<u16> {
    let all = rules.iter().flat_map(|rule| rule[kind.backends()].as_array().into_iter().flatten());
    let mut mine = all.filter(|backend| kind.is_ours(backend, ours));
    mine.find_map(|backend| match kind {
        Kind::HttpRoute => backend["port"].as_u64(),
        Kind::VirtualService => backend["destination"]["port"]["number"].as_u64(),
    })
    .and_then(|port| u16::try_from(port).ok())
}

/// Whether any rule names our service.
pub(crate) fn names_us(kind: Kind, rules: &[Value], ours: &Ours<'_>) -> bool {
    rules.iter().any(|rule| names(kind, rule, ours))
}

fn names(kind: Kind, rule: &Value, ours: &Ours<'_>) -> bool {
    rule[kind.backends()].as_array().is_some_and(|all| all.iter().any(|one| kind.is_ours(one, ours)))
}

/// The user's rules with the table in them.
pub(crate) fn render(kind: Kind, rules: &[Value], ours: &Ours<'_>, table: &RouteTable) -> Vec<Value> {
    if table.entries.is_empty() {
        return rules.to_vec();
    }
    let mut made = Vec::new();
    for rule in rules {
        if !names(kind, rule, ours) {
            made.push(rule.clone());
            continue;
        }
        let backends: Vec<Value> = rule[kind.backends()].as_array().cloned().unwrap_or_default();
        for special in &table.rules {
            let mut copy = rule.clone();
            // Names of rules are unique.
            if let Some(copy) = copy.as_object_mut() {
                copy.remove("name");
            }
            let matches = rule[kind.matches()].as_array().cloned().unwrap_or_else(|| vec![json!({})]);
            let narrowed: Vec<Value> =
                matches.iter().map(|one| kind.narrowed(one, &special.matches)).collect();
            copy[kind.matches()] = json!(narrowed);
            let mine = backends.iter().find(|backend| kind.is_ours(backend, ours));
            copy[kind.backends()] = mine
                .map(|mine| json!([kind.of_release(mine, ours, &special.release, 1)]))
                .unwrap_or_default();
            made.push(copy);
        }
        let alone = backends.iter().all(|backend| kind.is_ours(backend, ours));
        let mut shared = Vec::new();
        for backend in &backends {
            let weight = backend["weight"].as_u64().unwrap_or(1);
            if !kind.is_ours(backend, ours) {
                let mut other = backend.clone();
                other["weight"] = json!(weight.saturating_mul(ALL_BP));
                shared.push(other);
                continue;
            }
            for entry in table.entries.iter().filter(|entry| entry.weight_bp > 0) {
                let share = u64::from(entry.weight_bp).saturating_mul(if alone { 1 } else { weight });
                shared.push(kind.of_release(backend, ours, &entry.release, share));
            }
        }
        reduce(&mut shared);
        let mut rule = rule.clone();
        rule[kind.backends()] = json!(shared);
        made.push(rule);
    }
    made
}

/// Shares in smaller numbers that stand to each other as before, as nearly as can be where one is more than a route may have.
fn reduce(backends: &mut [Value]) {
    let weights = || backends.iter().filter_map(|backend| backend["weight"].as_u64());
    let largest = weights().max().unwrap_or(0);
    if largest <= MAX_WEIGHT {
        return;
    }
    let divisor = weights().fold(0, gcd).max(1);
    for backend in backends.iter_mut() {
        let Some(weight) = backend["weight"].as_u64() else { continue };
        let weight = u128::from(weight / divisor);
        let largest = u128::from(largest / divisor).max(u128::from(MAX_WEIGHT));
        // One that has a share keeps one.
        let fits = (weight * u128::from(MAX_WEIGHT) / largest).max(u128::from(weight > 0));
        backend["weight"] = json!(u64::try_from(fits).unwrap_or(MAX_WEIGHT));
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    match b {
        0 => a,
        _ => gcd(b, a % b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdpipe_model::observe::{Role, RouteEntry, RouteRule};
    use cdpipe_model::service::Route;
    use cdpipe_model::strategy::Sticky;

    const OURS: Ours<'_> = Ours { service: "web", namespace: "shop", subsets: false };

    fn table(shares: &[(&str, u32)], rules: Vec<RouteRule>) -> RouteTable {
        let route = Route {
            service: "web".into(),
            host: None,
            path: None,
            listen: None,
            object: Some("edge".into()),
        };
        let entries = shares.iter().map(|(release, weight_bp)| RouteEntry {
            release: ReleaseId::from(*release),
            role: Role::Stable,
            weight_bp: *weight_bp,
            members: Vec::new(),
        });
        RouteTable { route, entries: entries.collect(), rules, sticky: Sticky::None }
    }

    fn header() -> RouteRule {
        let matches = RouteMatch::Header { name: "canary".to_owned(), value: "true".to_owned() };
        RouteRule { matches, release: ReleaseId::from("new") }
    }

    #[test]
    fn an_http_route_keeps_what_is_not_ours() {
        let other = json!({"matches": [{"path": {"type": "PathPrefix", "value": "/admin"}}], "backendRefs": [{"name": "admin", "port": 80}]});
        let mine = json!({"name": "shop", "matches": [{"path": {"type": "PathPrefix", "value": "/"}}], "filters": [{"type": "X"}],
            "backendRefs": [{"name": "web", "port": 80, "kind": "Service"}]});
        let rules = [other.clone(), mine.clone()];
        let made =
            render(Kind::HttpRoute, &rules, &OURS, &table(&[("old", 9000), ("new", 1000)], vec![header()]));
        assert_eq!(made.len(), 3);
        assert_eq!(made[0], other);
        assert_eq!(
            made[1],
            json!({"matches": [{"path": {"type": "PathPrefix", "value": "/"},
                "headers": [{"type": "Exact", "name": "canary", "value": "true"}]}], "filters": [{"type": "X"}],
                "backendRefs": [{"name": "web-new", "port": 80, "kind": "Service", "weight": 1}]})
        );
        assert_eq!(
            made[2]["backendRefs"],
            json!([{"name": "web-old", "port": 80, "kind": "Service", "weight": 9000},
                   {"name": "web-new", "port": 80, "kind": "Service", "weight": 1000}])
        );
        assert_eq!(port(Kind::HttpRoute, &rules, &OURS), Some(80));
        // Closed means as it was.
        assert_eq!(render(Kind::HttpRoute, &rules, &OURS, &table(&[], Vec::new())), rules);
        assert!(!names_us(Kind::HttpRoute, &made, &OURS));
    }

    #[test]
    fn a_share_among_other_backends_stays_the_same() {
        let rules = [json!({"backendRefs": [{"name": "web", "weight": 3}, {"name": "legacy"}]})];
        let made =
            render(Kind::HttpRoute, &rules, &OURS, &table(&[("old", 5000), ("new", 5000)], Vec::new()));
        let weights: Vec<u64> = made[0]["backendRefs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|backend| backend["weight"].as_u64().unwrap())
            .collect();
        assert_eq!(weights, [15_000, 15_000, 10_000]);
    }

    #[test]
    fn shares_stay_within_what_a_route_may_have() {
        let reduced = |weights: &[u64]| -> Vec<u64> {
            let mut backends: Vec<Value> = weights.iter().map(|weight| json!({"weight": weight})).collect();
            reduce(&mut backends);
            backends.iter().map(|backend| backend["weight"].as_u64().unwrap()).collect()
        };
        assert_eq!(reduced(&[15_000, 5_000]), [15_000, 5_000]);
        assert_eq!(reduced(&[4_500_000, 500_000, 3_000_000]), [9, 1, 6]);
        assert_eq!(reduced(&[9_999_999_999, 1, 0]), [1_000_000, 1, 0]);
    }

    #[test]
    fn a_virtual_service_is_known_by_any_form_of_its_host() {
        for host in ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local"] {
            let rules = [json!({"route": [{"destination": {"host": host, "port": {"number": 80}}}]})];
            assert!(names_us(Kind::VirtualService, &rules, &OURS), "{host}");
            let made =
                render(Kind::VirtualService, &rules, &OURS, &table(&[("new", 10_000)], vec![header()]));
            assert_eq!(made[0]["match"], json!([{"headers": {"canary": {"exact": "true"}}}]));
            let expected = host.replacen("web", "web-new", 1);
            assert_eq!(made[1]["route"][0]["destination"]["host"], json!(expected));
        }
        for host in ["web2", "web.other", "web.shopping", "web-new"] {
            let rules = [json!({"route": [{"destination": {"host": host}}]})];
            assert!(!names_us(Kind::VirtualService, &rules, &OURS), "{host}");
        }
    }

    #[test]
    fn a_subset_is_of_the_same_host_and_not_taken_for_the_users_own() {
        let ours = Ours { subsets: true, ..OURS };
        let rules = [json!({"route": [{"destination": {"host": "web", "port": {"number": 80}}}]})];
        let shares = table(&[("old", 7000), ("new", 3000)], Vec::new());
        let made = render(Kind::VirtualService, &rules, &ours, &shares);
        let backend = |release: &str, weight: u32| json!({"destination": {"host": "web", "subset": format!("cdpipe-{release}"), "port": {"number": 80}}, "weight": weight});
        assert_eq!(made[0]["route"], json!([backend("old", 7000), backend("new", 3000)]));
        assert!(
            !names_us(Kind::VirtualService, &made, &ours) && !names_us(Kind::VirtualService, &made, &OURS)
        );
        assert!(is_our_subset(&subset(&ReleaseId::from("new"))) && !is_our_subset(&json!({"name": "v1"})));
    }

    #[test]
    fn a_cookie_is_matched_whole() {
        let rule = RouteMatch::Cookie { name: "beta".to_owned(), value: "a.b".to_owned() };
        let made = Kind::VirtualService.narrowed(&Value::Null, &rule);
        assert_eq!(made, json!({"headers": {"cookie": {"regex": "(^|.*; ?)beta=a\\.b(;.*|$)"}}}));
    }
}
