//! `cdpipe proxy` beside nginx: the same upstream (another nginx), the same keep-alive on both sides, the same load by wrk, all
//! on loopback. Everything shares the machine's cores, so the figures compare the two and say nothing about either alone.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::Setup;
use super::figure::{Aim, Figure};
use crate::lab::{Daemon, Trouble, nginx_configuration};
use crate::net;
use crate::process::{Job, write_file};
use crate::say::say;

/// One measurement; there are two in a round.
const LOAD_S: u64 = 5;
const CONNECTIONS: u32 = 64;
const CONTROL_WITHIN: Duration = Duration::from_secs(5);
const SLACK: Duration = Duration::from_secs(20);
/// Bytes of an answer's body.
const BODY: usize = 1024;
/// nginx closes a connection after 1,000 requests unless told otherwise, which would measure connecting.
const KEEP: &str = "  keepalive_requests 100000000;\n  keepalive_timeout 60s;\n";

/// What one load came to.
#[derive(Debug, PartialEq)]
struct Load {
    requests_per_s: f64,
    p99_ms: f64,
}

pub(crate) fn bench(setup: &Setup) -> Result<Vec<Figure>, String> {
    let dir = setup.fresh("proxy")?;
    let binary = PathBuf::from(setup.lab("CDPIPE_LAB_NGINX_BIN")?);
    let upstream = Daemon { dir: dir.join("upstream"), name: "upstream" };
    let peer = Daemon { dir: dir.join("nginx"), name: "nginx" };
    let result = start_nginx(&upstream, &binary, "1", |port| {
        let body = "x".repeat(BODY);
        format!("{KEEP}  server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"{body}\"; }} }}\n")
    })
    .and_then(|to| {
        let at = start_nginx(&peer, &binary, "auto", |port| {
            format!(
                "{KEEP}  upstream up {{ server 127.0.0.1:{to}; keepalive 128; keepalive_requests 100000000; }}\n  \
                 server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://up; proxy_http_version 1.1; \
                 proxy_set_header Connection \"\"; }} }}\n"
            )
        })?;
        compare(setup, &dir, to, at)
    });
    let ended = [peer.down(), upstream.down()];
    let figures = result?;
    for end in ended {
        end?;
    }
    Ok(figures)
}

fn start_nginx(
    daemon: &Daemon,
    binary: &Path,
    workers: &str,
    http: impl Fn(u16) -> String,
) -> Result<u16, String> {
    let command = |port: u16| {
        let file = daemon.dir.join("nginx.conf");
        write_file(&file, &nginx_configuration(&daemon.dir, workers, &http(port)))?;
        let mut command = Command::new(binary);
        command.arg("-p").arg(&daemon.dir).arg("-c").arg(&file).args(["-e", "stderr"]);
        Ok(command)
    };
    daemon
        .up(command, |port| net::http_status(port, "/") == Some(200))
        .map_err(|trouble: Trouble| trouble.text())
}

fn compare(setup: &Setup, dir: &Path, upstream: u16, peer: u16) -> Result<Vec<Figure>, String> {
    let wrk = setup.lab("CDPIPE_LAB_WRK")?;
    let direct = load(wrk, upstream, 2)?;
    say(&format!("upstream alone: {:.0} requests/s, p99 {:.2} ms", direct.requests_per_s, direct.p99_ms));
    let warm = load(wrk, peer, 2)?;
    say(&format!("nginx, warming up: {:.0} requests/s, p99 {:.2} ms", warm.requests_per_s, warm.p99_ms));
    let ours = Daemon { dir: dir.join("cdpipe"), name: "cdpipe" };
    let result = start_ours(setup, &ours, upstream).and_then(|ours| {
        load(wrk, ours, 2)?;
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for _ in 0..setup.rounds {
            a.push(load(wrk, ours, LOAD_S)?);
            b.push(load(wrk, peer, LOAD_S)?);
        }
        Ok(figures(&a, &b))
    });
    let ended = ours.down();
    let figures = result?;
    ended.map(|_| figures)
}

/// Starts `cdpipe proxy` and gives it one route, to the upstream, over its control socket, as a run does.
fn start_ours(setup: &Setup, daemon: &Daemon, upstream: u16) -> Result<u16, String> {
    let state = daemon.dir.join("state");
    let command = |_| {
        let mut command = Command::new(&setup.cdpipe);
        command.args(["proxy", "serve", "--state"]).arg(&state).env("CDPIPE_STATE", setup.dir.join("state"));
        Ok(command)
    };
    let ready = |port: u16| {
        // The listener is part of the route, so it has to be put before anything can answer.
        control(&state.join("control.sock"), &route(port, upstream))
            .is_some_and(|answer| answer.contains("\"ok\""))
            && net::http_status(port, "/") == Some(200)
    };
    daemon.up(command, ready).map_err(|trouble| trouble.text())
}

/// The message that makes the proxy serve one upstream on a port.
fn route(port: u16, upstream: u16) -> String {
    let member = json!({ "instance": "bench-1", "address": format!("127.0.0.1:{upstream}") });
    let entry = json!({ "release": "bench", "role": "stable", "weight_bp": 10_000, "members": [member] });
    let route = json!({
        "service": "bench", "host": null, "path": null, "listen": format!("127.0.0.1:{port}"), "object": null
    });
    let table = json!({ "route": route, "entries": [entry], "rules": [], "sticky": "none" });
    let put = json!({ "table": table, "expect": "anything" });
    json!({ "v": 1, "op": "put", "routes": [put], "remove": [], "epoch": 1, "owner": "bench" }).to_string()
}

/// One message and one answer, a line each.
fn control(socket: &Path, message: &str) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(CONTROL_WITHIN)).ok()?;
    stream.set_write_timeout(Some(CONTROL_WITHIN)).ok()?;
    stream.write_all(format!("{message}\n").as_bytes()).ok()?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).ok()?;
    Some(answer)
}

fn figures(ours: &[Load], peer: &[Load]) -> Vec<Figure> {
    let rate = |loads: &[Load]| loads.iter().map(|load| load.requests_per_s).collect::<Vec<_>>();
    let p99 = |loads: &[Load]| loads.iter().map(|load| load.p99_ms).collect::<Vec<_>>();
    let setting = format!("{CONNECTIONS} keep-alive connections, {BODY} bytes, {LOAD_S} s of wrk");
    vec![
        Figure {
            id: "proxy-throughput",
            what: format!("proxied requests: {setting}"),
            unit: "requests/s",
            ours: rate(ours),
            peer: Some(("nginx".to_owned(), rate(peer))),
            aim: Aim::AtLeast(1.0),
        },
        Figure {
            id: "proxy-p99",
            what: "99th percentile of latency in the same load".to_owned(),
            unit: "ms",
            ours: p99(ours),
            peer: Some(("nginx".to_owned(), p99(peer))),
            aim: Aim::AtMost(1.0),
        },
    ]
}

fn load(wrk: &str, port: u16, seconds: u64) -> Result<Load, String> {
    let (time, connections) = (format!("{seconds}s"), CONNECTIONS.to_string());
    let url = format!("http://127.0.0.1:{port}/");
    let args = ["-t", "1", "-c", &connections, "-d", &time, "--latency", &url];
    let said = Job::new(wrk, args, Duration::from_secs(seconds) + SLACK).must()?.output;
    read(&said).ok_or_else(|| format!("wrk against {url} said:\n{said}"))
}

/// The two figures of wrk's report; `None` where there are none, or where one request failed: a proxy that drops is not
/// fast.
fn read(report: &str) -> Option<Load> {
    if report.contains("Non-2xx") || report.contains("Socket errors") {
        return None;
    }
    let value = |label: &str| {
        report.lines().find_map(|line| Some(line.trim().strip_prefix(label)?.trim().to_owned()))
    };
    let p99 = value("99%")?;
    let (digits, unit) = p99.split_at(p99.find(|c: char| c.is_ascii_alphabetic())?);
    let digits: f64 = digits.parse().ok()?;
    let p99_ms = match unit {
        "us" => digits / 1e3,
        "ms" => digits,
        "s" => digits * 1e3,
        _ => return None,
    };
    Some(Load { requests_per_s: value("Requests/sec:")?.parse().ok()?, p99_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
Running 2s test @ http://127.0.0.1:8080/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.21ms  402.00us  13.00ms   84.00%
  Latency Distribution
     50%    1.15ms
     99%  950.00us
  104000 requests in 2.00s, 122.00MB read
Requests/sec:  52000.10
Transfer/sec:     61.00MB
";

    #[test]
    fn the_report_of_wrk_is_read_and_one_with_failures_is_not() {
        assert_eq!(read(REPORT), Some(Load { requests_per_s: 52000.10, p99_ms: 0.95 }));
        assert_eq!(read(&REPORT.replace("950.00us", "1.20s")).map(|load| load.p99_ms), Some(1200.0));
        assert_eq!(read(&format!("{REPORT}  Socket errors: connect 0, read 3, write 0, timeout 0\n")), None);
        assert_eq!(read(&format!("{REPORT}  Non-2xx or 3xx responses: 1\n")), None);
        assert_eq!(read(""), None);
    }
}
