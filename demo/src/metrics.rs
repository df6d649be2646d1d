//! The shop's own measurements, in Prometheus text.
//!
//! Only user requests are counted. `/health` and `/metrics` are asked by machines at their own pace; counted together
//! with users they would thin out the share of errors that a canary is judged by.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the histogram's buckets, in microseconds with the text that Prometheus expects, in seconds.
const BUCKETS: [(u64, &str); 12] = [
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_500_000, "2.5"),
    (10_000_000, "10"),
];

/// Counters of one running shop.
#[derive(Debug)]
pub struct Metrics {
    version: String,
    release: String,
    in_flight: Arc<AtomicI64>,
    routes: Mutex<BTreeMap<Route, Counts>>,
}

/// What requests are told apart by; both words come from closed sets, so the table cannot grow without bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The path's own name: `/slow` for `/slow?ms=5`, `other` for a path the shop does not have.
    pub path: &'static str,
    /// The method, `OTHER` for one the shop does not know.
    pub method: &'static str,
}

#[derive(Debug, Default)]
struct Counts {
    by_status: BTreeMap<u16, u64>,
    buckets: [u64; BUCKETS.len()],
    sum_us: u64,
    count: u64,
}

/// Counts one request as in flight until it is dropped.
#[derive(Debug)]
pub struct InFlight(Arc<AtomicI64>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// Counters at zero, labelled with this version and release.
    pub fn new(version: &str, release: &str) -> Self {
        Self {
            version: escape_label(version),
            release: escape_label(release),
            in_flight: Arc::default(),
            routes: Mutex::default(),
        }
    }

    /// Counts a request as in flight for as long as the answer lives.
    pub fn enter(&self) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(&self.in_flight))
    }

    /// Counts an answer whose head was ready after `took`; a stream's or a socket's life is not part of it.
    pub fn answered(&self, route: Route, status: u16, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = routes.entry(route).or_default();
        *counts.by_status.entry(status).or_default() += 1;
        counts.sum_us = counts.sum_us.saturating_add(took_us);
        counts.count += 1;
        for (bucket, (upper_us, _)) in counts.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(took_us <= upper_us);
        }
    }

    /// Everything, as Prometheus text (format 0.0.4).
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(4096);
        // Writing to a String cannot fail.
        let _ = self.write(&mut text);
        let _ = write_process_facts(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let (version, release) = (&self.version, &self.release);
        head(text, "shop_build_info", "gauge", "Version and release of this shop; always 1.")?;
        writeln!(text, "shop_build_info{{version=\"{version}\",release=\"{release}\"}} 1")?;

        head(text, "http_requests_in_flight", "gauge", "User requests whose answer is not complete yet.")?;
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        writeln!(text, "http_requests_in_flight{{release=\"{release}\"}} {in_flight}")?;

        let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        head(text, "http_requests_total", "counter", "User requests answered.")?;
        for (Route { path, method }, counts) in routes.iter() {
            for (status, count) in &counts.by_status {
                let labels =
                    format!("method=\"{method}\",path=\"{path}\",status=\"{status}\",release=\"{release}\"");
                writeln!(text, "http_requests_total{{{labels}}} {count}")?;
            }
        }

        let name = "http_request_duration_seconds";
        head(text, name, "histogram", "Time from a user request's arrival to the head of its answer.")?;
        for (Route { path, method }, counts) in routes.iter() {
            let labels = format!("method=\"{method}\",path=\"{path}\",release=\"{release}\"");
            for (count, (_, upper)) in counts.buckets.iter().zip(BUCKETS) {
                writeln!(text, "{name}_bucket{{{labels},le=\"{upper}\"}} {count}")?;
            }
            writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", counts.count)?;
            writeln!(text, "{name}_sum{{{labels}}} {}", counts.sum_us as f64 / 1e6)?;
            writeln!(text, "{name}_count{{{labels}}} {}", counts.count)?;
        }
        Ok(())
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) -> std::fmt::Result {
    writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}")
}

/// What the kernel knows of this process. A fact that cannot be read is left out rather than guessed.
fn write_process_facts(text: &mut String) -> std::fmt::Result {
    // Linux counts process time in ticks of 10 ms in everything it shows to user space, on every architecture.
    const TICKS_PER_S: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is the program's name in parentheses and may hold blanks: count from its end.
    let fields: Vec<f64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect())
        .unwrap_or_default();
    if let (Some(user), Some(system)) = (fields.get(11), fields.get(12)) {
        head(text, "process_cpu_seconds_total", "counter", "User and system time used.")?;
        writeln!(text, "process_cpu_seconds_total {}", (user + system) / TICKS_PER_S)?;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    if let Some(resident_kib) = resident.and_then(|kib| kib.trim().parse::<u64>().ok()) {
        let bytes = resident_kib * 1024;
        head(text, "process_resident_memory_bytes", "gauge", "Memory held.")?;
        writeln!(text, "process_resident_memory_bytes {bytes}")?;
    }
    let boot = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let boot_s = boot.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
    if let (Some(boot_s), Some(start_ticks)) = (boot_s, fields.get(19)) {
        head(text, "process_start_time_seconds", "gauge", "Start of the process, Unix time.")?;
        writeln!(text, "process_start_time_seconds {}", boot_s + start_ticks / TICKS_PER_S)?;
    }
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        head(text, "process_open_fds", "gauge", "Open file descriptors.")?;
        writeln!(text, "process_open_fds {}", descriptors.count())?;
    }
    Ok(())
}

fn escape_label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::{Metrics, Route};
    use std::time::Duration;

    #[test]
    fn renders_prometheus_text() {
        let metrics = Metrics::new("v2", "web-\"1\"");
        let route = Route { path: "/", method: "GET" };
        metrics.answered(route, 200, Duration::from_millis(4));
        metrics.answered(route, 200, Duration::from_millis(60));
        metrics.answered(route, 500, Duration::from_secs(30));
        let _waiting = metrics.enter();
        drop(metrics.enter());

        let text = metrics.render();
        let (ours, process) = text.split_once("# HELP process_").unwrap();
        assert_eq!(
            ours,
            r##"# HELP shop_build_info Version and release of this shop; always 1.
# TYPE shop_build_info gauge
shop_build_info{version="v2",release="web-\"1\""} 1
# HELP http_requests_in_flight User requests whose answer is not complete yet.
# TYPE http_requests_in_flight gauge
http_requests_in_flight{release="web-\"1\""} 1
# HELP http_requests_total User requests answered.
# TYPE http_requests_total counter
http_requests_total{method="GET",path="/",status="200",release="web-\"1\""} 2
http_requests_total{method="GET",path="/",status="500",release="web-\"1\""} 1
# HELP http_request_duration_seconds Time from a user request's arrival to the head of its answer.
# TYPE http_request_duration_seconds histogram
http_request_duration_seconds_bucket{method="GET",path="/",release="web-\"1\"",le="0.001"} 0
http_request_duration_seconds_bucket{method="GET",path="/",release="web-\"1\"",le="0.0025"} 0
http_request_duration_seconds_bucket{method="GET",path="/",release="web-\"1\"",le="0.005"} 1
http_request_duration_seconds_bucket{method="GET",path="/",release="web-\"1\"",le="0.01"} 1
http_request_duration_seconds_bucket{method="GET",path="/",release="web-\"1\"",le="0.025"} 1
http_request_duration_seconds_bucket{method="GET",path="/",release="web-\"1\"",le="0.05"} 1
http_request_duration_seconds_bucket{method="GET",path="/",release="web-\"1\"",le="0.1"} 2
http_request_duration_seconds_bucket{method="GET",path="/",release="web-\"1\"",le="0.25"} 2
http_request_duration_seconds_bucket{method="GET",path="/",release="web-\"1\"",le="0.5"} 2
http_request_duration_seconds_bucket{method="GET",path="/",release="web-\"1\"",le="1"} 2
http_request_duration_seconds_bucket{method="GET",path="/",release="web-\"1\"",le="2.5"} 2
http_request_duration_seconds_bucket{method="GET",path="/",release="web-\"1\"",le="10"} 2
http_request_duration_seconds_bucket{method="GET",path="/",release="web-\"1\"",le="+Inf"} 3
http_request_duration_seconds_sum{method="GET",path="/",release="web-\"1\""} 30.064
http_request_duration_seconds_count{method="GET",path="/",release="web-\"1\""} 3
"##
        );
        for fact in ["cpu_seconds_total", "resident_memory_bytes", "start_time_seconds", "open_fds"] {
            assert!(process.contains(fact), "{fact} is missing from {process}");
        }
    }
}
