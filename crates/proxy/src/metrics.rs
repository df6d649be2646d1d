//! What the proxy counts, and its Prometheus text.
//!
//! Counters are kept per worker and summed when they are read: workers never share a cache line on the way of a request.
//! A counter belongs to a release *in a role*: a candidate that becomes stable starts new counters, so a query for
//! `role="candidate"` never holds what happened after promotion.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use cdpipe_model::observe::Role;

use crate::control::protocol::ReleaseLoad;

/// Upper bounds of the latency buckets in microseconds. From half a millisecond to half a minute, about three a decade.
const BUCKETS_US: [u64; 16] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// How a request ended, as its `code` label says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// A final status, by its class: 1 to 5.
    Class(u8),
    /// The client went away before the answer's head had come.
    ClientClosed,
}

const CODES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "client_closed"];

impl Code {
    pub(crate) fn of_status(status: u16) -> Code {
        Code::Class((status / 100).clamp(1, 5) as u8)
    }

    fn index(self) -> usize {
        match self {
            Code::Class(class) => usize::from(class.clamp(1, 5)) - 1,
            Code::ClientClosed => 5,
        }
    }
}

#[derive(Default)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    fn observe(&self, us: u64) {
        let bucket = BUCKETS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }
}

/// One worker's counters of one release in one role; aligned so that two workers never write one cache line.
#[derive(Default)]
#[repr(align(128))]
struct Shard {
    requests: [AtomicU64; CODES.len()],
    duration: Histogram,
    head: Histogram,
    connect_errors: AtomicU64,
    retries: AtomicU64,
    upgrades: AtomicU64,
    aborted: AtomicU64,
}

/// Whose counters they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct StatsKey {
    pub(crate) service: String,
    /// As [`crate::table::route_name`] calls it.
    pub(crate) route: String,
    pub(crate) release: String,
    pub(crate) role: Role,
}

/// The counters of one release of one route in one role.
pub(crate) struct ReleaseStats {
    pub(crate) key: StatsKey,
    shards: Box<[Shard]>,
}

impl std::fmt::Debug for ReleaseStats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ReleaseStats").field(&self.key).finish_non_exhaustive()
    }
}

impl ReleaseStats {
    pub(crate) fn new(key: StatsKey, workers: usize) -> ReleaseStats {
        ReleaseStats { key, shards: (0..workers.max(1)).map(|_| Shard::default()).collect() }
    }

    fn shard(&self, worker: usize) -> &Shard {
        &self.shards[worker % self.shards.len()]
    }

    /// A request ended. `head_us` is the time to the answer's head, if one came.
    pub(crate) fn finished(&self, worker: usize, code: Code, head_us: Option<u64>, duration_us: u64) {
        let shard = self.shard(worker);
        shard.requests[code.index()].fetch_add(1, Ordering::Relaxed);
        shard.duration.observe(duration_us);
        if let Some(head_us) = head_us {
            shard.head.observe(head_us);
        }
    }

    pub(crate) fn connect_error(&self, worker: usize) {
        self.shard(worker).connect_errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn retry(&self, worker: usize) {
        self.shard(worker).retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn upgrade(&self, worker: usize) {
        self.shard(worker).upgrades.fetch_add(1, Ordering::Relaxed);
    }

    /// An answer that had begun and could not be finished, whoever's fault it was.
    pub(crate) fn aborted(&self, worker: usize) {
        self.shard(worker).aborted.fetch_add(1, Ordering::Relaxed);
    }

    fn sum(&self, field: impl Fn(&Shard) -> &AtomicU64) -> u64 {
        self.shards.iter().map(|shard| field(shard).load(Ordering::Relaxed)).sum()
    }

    /// All requests that ended, of every code.
    pub(crate) fn requests(&self) -> u64 {
        (0..CODES.len()).map(|code| self.sum(|s| &s.requests[code])).sum()
    }
}

/// What is true of the proxy as a whole, when it is asked.
pub(crate) struct Overview<'a> {
    pub(crate) revision: u64,
    pub(crate) connections: u64,
    pub(crate) connections_total: u64,
    pub(crate) connections_refused: u64,
    /// Answers the proxy gave by itself, by cause.
    pub(crate) errors: &'a [(&'static str, u64)],
    pub(crate) loads: &'a [ReleaseLoad],
}

fn labels_of(service: &str, route: &str, release: &str, role: &str) -> String {
    format!("service=\"{service}\",route=\"{route}\",release=\"{release}\",role=\"{role}\"")
}

fn seconds(us: u64) -> String {
    let mut text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    let kept = text.trim_end_matches('0').trim_end_matches('.').len();
    text.truncate(kept);
    text
}

/// The Prometheus text format (version 0.0.4) of everything.
pub(crate) fn render(overview: &Overview<'_>, releases: &[std::sync::Arc<ReleaseStats>]) -> String {
    let mut text = String::with_capacity(4096);
    // Writing to a String can not fail, so the results are let go.
    let head = |text: &mut String, name: &str, kind: &str, help: &str| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    };
    let labels =
        |s: &ReleaseStats| labels_of(&s.key.service, &s.key.route, &s.key.release, s.key.role.as_str());

    head(
        &mut text,
        "cdpipe_proxy_requests_total",
        "counter",
        "Requests that ended, by release and code class.",
    );
    for stats in releases {
        for (index, code) in CODES.iter().enumerate() {
            let count = stats.sum(|s| &s.requests[index]);
            // 1xx never ends a request but for an upgrade; leaving out what never was keeps the text short.
            if count > 0 || (1..=4).contains(&index) {
                let _ = writeln!(
                    text,
                    "cdpipe_proxy_requests_total{{{},code=\"{code}\"}} {count}",
                    labels(stats)
                );
            }
        }
    }
    type Field = fn(&Shard) -> &Histogram;
    let histograms: [(&str, &str, Field); 2] = [
        (
            "cdpipe_proxy_request_duration_seconds",
            "From the request's head to the last byte of its answer; upgraded connections are left out.",
            |s| &s.duration,
        ),
        ("cdpipe_proxy_response_head_seconds", "From the request's head to the head of its answer.", |s| {
            &s.head
        }),
    ];
    for (name, help, field) in histograms {
        head(&mut text, name, "histogram", help);
        for stats in releases {
            let mut total = 0;
            for (index, bound) in BUCKETS_US.iter().enumerate() {
                total += stats.sum(|s| &field(s).buckets[index]);
                let _ =
                    writeln!(text, "{name}_bucket{{{},le=\"{}\"}} {total}", labels(stats), seconds(*bound));
            }
            total += stats.sum(|s| &field(s).buckets[BUCKETS_US.len()]);
            let _ = writeln!(text, "{name}_bucket{{{},le=\"+Inf\"}} {total}", labels(stats));
            let _ = writeln!(
                text,
                "{name}_sum{{{}}} {}",
                labels(stats),
                seconds(stats.sum(|s| &field(s).sum_us))
            );
            let _ = writeln!(text, "{name}_count{{{}}} {total}", labels(stats));
        }
    }
    type Counter = fn(&Shard) -> &AtomicU64;
    let counters: [(&str, &str, Counter); 4] = [
        ("cdpipe_proxy_connect_errors_total", "Connections to a member that could not be opened.", |s| {
            &s.connect_errors
        }),
        ("cdpipe_proxy_retries_total", "Requests sent again because the first try had sent nothing.", |s| {
            &s.retries
        }),
        ("cdpipe_proxy_upgrades_total", "Connections that were upgraded, such as websockets.", |s| {
            &s.upgrades
        }),
        ("cdpipe_proxy_aborted_total", "Answers that began and could not be finished.", |s| &s.aborted),
    ];
    for (name, help, field) in counters {
        head(&mut text, name, "counter", help);
        for stats in releases {
            let _ = writeln!(text, "{name}{{{}}} {}", labels(stats), stats.sum(field));
        }
    }
    head(&mut text, "cdpipe_proxy_in_flight", "gauge", "Requests in flight, upgraded connections included.");
    for load in overview.loads {
        let labels = labels_of(&load.service, &load.route, &load.release, &load.role);
        let _ = writeln!(text, "cdpipe_proxy_in_flight{{{labels}}} {}", load.in_flight);
    }
    head(&mut text, "cdpipe_proxy_upgraded", "gauge", "Upgraded connections in flight.");
    for load in overview.loads {
        let labels = labels_of(&load.service, &load.route, &load.release, &load.role);
        let _ = writeln!(text, "cdpipe_proxy_upgraded{{{labels}}} {}", load.upgraded);
    }
    head(&mut text, "cdpipe_proxy_errors_total", "counter", "Answers the proxy gave by itself, by cause.");
    for (cause, count) in overview.errors {
        let _ = writeln!(text, "cdpipe_proxy_errors_total{{cause=\"{cause}\"}} {count}");
    }
    head(&mut text, "cdpipe_proxy_connections", "gauge", "Client connections open.");
    let _ = writeln!(text, "cdpipe_proxy_connections {}", overview.connections);
    head(&mut text, "cdpipe_proxy_connections_total", "counter", "Client connections accepted.");
    let _ = writeln!(text, "cdpipe_proxy_connections_total {}", overview.connections_total);
    head(
        &mut text,
        "cdpipe_proxy_connections_refused_total",
        "counter",
        "Client connections turned away at the limit.",
    );
    let _ = writeln!(text, "cdpipe_proxy_connections_refused_total {}", overview.connections_refused);
    head(&mut text, "cdpipe_proxy_table_revision", "gauge", "Revision of the routing table in force.");
    let _ = writeln!(text, "cdpipe_proxy_table_revision {}", overview.revision);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn counts_are_summed_over_workers_and_buckets_are_cumulative() {
        let stats = ReleaseStats::new(
            StatsKey {
                service: "web".into(),
                route: "127.0.0.1:80".into(),
                release: "r1".into(),
                role: Role::Candidate,
            },
            2,
        );
        stats.finished(0, Code::of_status(200), Some(400), 600);
        stats.finished(1, Code::of_status(502), None, 70_000_000);
        let text = render(
            &Overview {
                revision: 3,
                connections: 1,
                connections_total: 2,
                connections_refused: 0,
                errors: &[("no_route", 4)],
                loads: &[ReleaseLoad {
                    service: "web".into(),
                    route: "127.0.0.1:80".into(),
                    release: "r1".into(),
                    role: "candidate".into(),
                    in_flight: 5,
                    upgraded: 1,
                }],
            },
            &[Arc::new(stats)],
        );
        for line in [
            r#"cdpipe_proxy_requests_total{service="web",route="127.0.0.1:80",release="r1",role="candidate",code="2xx"} 1"#,
            r#"cdpipe_proxy_requests_total{service="web",route="127.0.0.1:80",release="r1",role="candidate",code="5xx"} 1"#,
            r#"cdpipe_proxy_request_duration_seconds_bucket{service="web",route="127.0.0.1:80",release="r1",role="candidate",le="0.0005"} 0"#,
            r#"cdpipe_proxy_request_duration_seconds_bucket{service="web",route="127.0.0.1:80",release="r1",role="candidate",le="0.001"} 1"#,
            r#"cdpipe_proxy_request_duration_seconds_bucket{service="web",route="127.0.0.1:80",release="r1",role="candidate",le="60"} 1"#,
            r#"cdpipe_proxy_request_duration_seconds_bucket{service="web",route="127.0.0.1:80",release="r1",role="candidate",le="+Inf"} 2"#,
            r#"cdpipe_proxy_request_duration_seconds_sum{service="web",route="127.0.0.1:80",release="r1",role="candidate"} 70.0006"#,
            r#"cdpipe_proxy_response_head_seconds_count{service="web",route="127.0.0.1:80",release="r1",role="candidate"} 1"#,
            r#"cdpipe_proxy_in_flight{service="web",route="127.0.0.1:80",release="r1",role="candidate"} 5"#,
            r#"cdpipe_proxy_errors_total{cause="no_route"} 4"#,
            "cdpipe_proxy_table_revision 3",
        ] {
            assert!(text.lines().any(|l| l == line), "missing {line} in\n{text}");
        }
    }
}
