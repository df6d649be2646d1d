//! Readiness: asked of the instances, and the wait for it. What can't become ready any more ends the wait at once.
//!
//! HTTP and TCP are asked from here, at the published address or the container's own on its network; a command and the image's own
//! `HEALTHCHECK` are asked by the engine, inside.

use super::Containers;
use super::found::Found;
use crate::client::{Session, cancelled};
use bollard::models::{ContainerStateStatusEnum, HealthStatusEnum};
use cdpipe_model::Fault;
use cdpipe_model::observe::Instance;
use cdpipe_model::release::ReleaseSpec;
use cdpipe_model::service::{Health, HealthCheck, HealthKind};
use cdpipe_model::value::format_duration_ms;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long a new instance may take when no readiness check says so.
const WITHIN_DEFAULT_MS: u64 = 60_000;
/// One that nobody can ask is taken for ready when it has run that long.
const SETTLED: Duration = Duration::from_secs(1);
/// So many restarts in one wait are a crash loop.
const CRASH_LOOP: u32 = 3;
/// Last lines of a log that explain a failure.
const LOG_LINES: usize = 20;
const PAUSE: Duration = Duration::from_millis(100);
/// A published port is accepted by the engine even if nobody listens behind it; then it is closed at once.
const TCP_HOLDS: Duration = Duration::from_millis(100);

impl Containers {
    /// Whether it may get traffic, as a watch sees it: a check has as many tries as it may miss.
    pub(super) async fn is_ready_now(
        &self,
        session: &Session<'_>,
        spec: &ReleaseSpec,
        found: &Found,
    ) -> bool {
        if !found.is_running() || !is_healthy(found) {
            return false;
        }
        let Some(address) = self.asked_at(spec, found) else { return true };
        for check in checks(spec) {
            let mut ready = false;
            for attempt in 0..check.failures.max(1) {
                if attempt > 0 {
                    tokio::time::sleep(Duration::from_millis(check.every_ms).min(PAUSE)).await;
                }
                if session.call.cancel.is_cancelled() {
                    return false;
                }
                if ask(check, &address).await.is_ok() {
                    ready = true;
                    break;
                }
            }
            if !ready {
                return false;
            }
        }
        true
    }

    pub(super) async fn wait_until_ready(
        &self,
        session: Session<'_>,
        spec: &ReleaseSpec,
        count: u32,
        may_fail: u32,
    ) -> Result<Vec<Instance>, Fault> {
        let begun = Instant::now();
        let within = Duration::from_millis(within_ms(spec));
        let mut said = None;
        let mut looks = Looks::default();
        loop {
            let all = self.of_release(&session, spec).await?;
            let found: Vec<&Found> =
                all.iter().filter(|found| found.is_wanted() || !is_kept(found)).collect();
            looks.note(&found);
            let mut ready = 0_u32;
            let mut lost = Vec::new();
            let mut late = Vec::new();
            for found in &found {
                match self.judge(spec, found, &mut looks).await {
                    Judged::Ready => ready += 1,
                    Judged::Lost(why) => lost.push((*found, why)),
                    Judged::Coming(why) => late.push((*found, why)),
                }
            }
            let coming = u32::try_from(late.len()).unwrap_or(u32::MAX);
            if said != Some(ready) {
                said = Some(ready);
                session.call.sink.progress(&format!("{ready} of {count} ready"));
            }
            let enough = ready.saturating_add(may_fail) >= count;
            if ready >= count || (enough && coming == 0) {
                return self.instances(&session, spec, &all).await;
            }
            if ready.saturating_add(coming).saturating_add(may_fail) < count {
                let fault = match lost.first() {
                    Some((found, why)) => {
                        let text =
                            format!("{ready} of {count} instances of {} are ready: {why}", spec.service);
                        let lines =
                            self.last_lines_of(&session, &found.name, LOG_LINES).await.unwrap_or_default();
                        Fault::new("not-ready", text)
                            .details(lines)
                            .help("the last lines of its log are above; `cdpipe logs` shows more")
                    }
                    None => Fault::new(
                        "not-ready",
                        format!("only {} of {count} instances of {} are there", ready + coming, spec.service),
                    )
                    .help("somebody else may be removing them: see `cdpipe status`"),
                };
                return Err(fault);
            }
            if begun.elapsed() >= within {
                if enough {
                    return self.instances(&session, spec, &all).await;
                }
                let after = format_duration_ms(within.as_secs_f64() * 1000.0);
                let mut text =
                    format!("{ready} of {count} instances of {} are ready after {after}", spec.service);
                let mut lines = Vec::new();
                if let Some((found, why)) = late.first() {
                    text.push_str(&format!(": {why}"));
                    lines = self.last_lines_of(&session, &found.name, LOG_LINES).await.unwrap_or_default();
                }
                return Err(Fault::new("not-ready", text).details(lines).help(
                    "look at the log above; if it only needs longer, raise `within` of its health check",
                ));
            }
            if session.left().is_zero() {
                return Err(Fault::new(
                    "timed-out",
                    format!("{ready} of {count} instances of {} were ready in time", spec.service),
                ));
            }
            tokio::select! {
                () = session.call.cancel.cancelled() => return Err(cancelled()),
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn judge(&self, spec: &ReleaseSpec, found: &Found, looks: &mut Looks) -> Judged {
        let how = |found: &Found| match (found.oom_killed, found.error.is_empty()) {
            (true, _) => "was killed because it needed more memory than it may have".to_owned(),
            (_, false) => format!("could not run: {}", found.error),
            _ => format!("ended with exit code {}", found.exit_code),
        };
        let restarts = looks.restarts(found);
        match found.state {
            ContainerStateStatusEnum::CREATED => return Judged::Coming("it is not started yet".to_owned()),
            ContainerStateStatusEnum::RUNNING | ContainerStateStatusEnum::PAUSED => {}
            ContainerStateStatusEnum::RESTARTING if restarts < CRASH_LOOP => {
                return Judged::Coming(format!("instance {} {}", found.number(), how(found)));
            }
            ContainerStateStatusEnum::RESTARTING => {
                return Judged::Lost(format!(
                    "instance {} {}, {restarts} times in a row",
                    found.number(),
                    how(found)
                ));
            }
            _ => return Judged::Lost(format!("instance {} {}", found.number(), how(found))),
        }
        if restarts >= CRASH_LOOP {
            return Judged::Lost(format!("instance {} was restarted {restarts} times", found.number()));
        }
        let since = looks.steady.entry((found.name.clone(), found.restarts)).or_insert_with(Instant::now);
        if !is_healthy(found) {
            let said = found.health_said.as_deref().unwrap_or("it has not answered yet");
            // The image says how often it may miss, and nothing else says how long to wait.
            if found.health == Some(HealthStatusEnum::UNHEALTHY) && spec.health.is_empty() {
                return Judged::Lost(format!(
                    "instance {} is unhealthy, its image's check says: {said}",
                    found.number()
                ));
            }
            return Judged::Coming(format!("its health check says: {said}"));
        }
        let mut asked = found.health.is_some();
        if let Some(address) = self.asked_at(spec, found) {
            for check in checks(spec) {
                asked = true;
                if let Err(why) = ask(check, &address).await {
                    return Judged::Coming(why);
                }
            }
        }
        if !asked && since.elapsed() < SETTLED {
            return Judged::Coming("it has just started, and has no health check".to_owned());
        }
        Judged::Ready
    }
}

/// What the looks of one wait have seen.
#[derive(Default)]
struct Looks {
    /// How often each had been restarted when this wait first looked: the engine counts for the whole life of a container, and one that
    /// was restarted over months is no crash loop.
    before: Option<BTreeMap<String, u32>>,
    /// Since when each has been running without a restart.
    steady: BTreeMap<(String, u32), Instant>,
}

impl Looks {
    fn note(&mut self, found: &[&Found]) {
        match &mut self.before {
            None => {
                let first = found.iter().map(|found| (found.name.clone(), found.restarts));
                self.before = Some(first.collect());
            }
            // One that was made anew under its name counts from the beginning, too.
            Some(before) => {
                for found in found {
                    let known = before.entry(found.name.clone()).or_default();
                    *known = found.restarts.min(*known);
                }
            }
        }
    }

    /// How often it was restarted in this wait. One that was not there at the first look was made in it.
    fn restarts(&self, found: &Found) -> u32 {
        let before = self.before.as_ref().and_then(|before| before.get(&found.name));
        found.restarts.saturating_sub(before.copied().unwrap_or(0))
    }
}

enum Judged {
    Ready,
    Coming(String),
    /// Nothing more is to be expected of it.
    Lost(String),
}

/// Stopped on purpose: kept for a rollback. One that restarts by itself and does not run was stopped by somebody.
fn is_kept(found: &Found) -> bool {
    !found.is_wanted() && found.restarts_by_itself
}

fn is_healthy(found: &Found) -> bool {
    found.health.is_none_or(|health| health == HealthStatusEnum::HEALTHY)
}

/// What is asked from here.
fn checks(spec: &ReleaseSpec) -> impl Iterator<Item = &Health> {
    spec.health.iter().filter(|health| {
        health.kind == HealthKind::Ready && !matches!(health.check, HealthCheck::Command { .. })
    })
}

fn within_ms(spec: &ReleaseSpec) -> u64 {
    let ready = spec.health.iter().filter(|check| check.kind == HealthKind::Ready);
    ready.map(|check| check.within_ms).max().unwrap_or(WITHIN_DEFAULT_MS)
}

/// Asks once; the error says what came instead.
async fn ask(health: &Health, address: &str) -> Result<(), String> {
    let timeout = Duration::from_millis(health.timeout_ms);
    let answer = async {
        match &health.check {
            HealthCheck::Http { path } => http(address, path).await,
            HealthCheck::Tcp => tcp(address).await,
            // The engine asks these.
            HealthCheck::Command { .. } => Ok(()),
        }
    };
    tokio::time::timeout(timeout, answer)
        .await
        .unwrap_or_else(|_| Err(format!("{address} did not answer within {}ms", timeout.as_millis())))
}

async fn http(address: &str, path: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("GET {path} at {address}: {error}");
    let mut stream = TcpStream::connect(address).await.map_err(failed)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: cdpipe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut head = Vec::new();
    let mut piece = [0; 512];
    while !head.contains(&b'\n') && head.len() < 4096 {
        let count = stream.read(&mut piece).await.map_err(failed)?;
        if count == 0 {
            break;
        }
        head.extend_from_slice(&piece[..count]);
    }
    let line = String::from_utf8_lossy(&head);
    let status =
        line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.get(..3)?.parse::<u16>().ok());
    match status {
        Some(status) if (200..400).contains(&status) => Ok(()),
        Some(status) => Err(format!("GET {path} at {address} answers {status}")),
        None => Err(format!("GET {path} at {address} is not answered")),
    }
}

async fn tcp(address: &str) -> Result<(), String> {
    let mut stream = TcpStream::connect(address).await.map_err(|error| format!("{address}: {error}"))?;
    let mut byte = [0; 1];
    match tokio::time::timeout(TCP_HOLDS, stream.read(&mut byte)).await {
        Ok(Ok(0) | Err(_)) => Err(format!("{address} closes connections at once")),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::{ContainerInspectResponse, ContainerState};

    fn container(name: &str, restarts: u32, status: ContainerStateStatusEnum) -> Found {
        let state = ContainerState { status: Some(status), exit_code: Some(1), ..Default::default() };
        let inspected = ContainerInspectResponse {
            name: Some(name.to_owned()),
            restart_count: Some(i64::from(restarts)),
            state: Some(state),
            ..Default::default()
        };
        Found::of(inspected, "net")
    }

    #[test]
    fn only_restarts_of_this_wait_are_a_crash_loop() {
        let running = |name, restarts| container(name, restarts, ContainerStateStatusEnum::RUNNING);
        let mut looks = Looks::default();
        looks.note(&[&running("old-1", 7)]);
        assert_eq!(looks.restarts(&running("old-1", 7)), 0, "months of restarts are none of this wait");
        looks.note(&[&running("old-1", 10), &running("new-1", 3)]);
        assert_eq!(looks.restarts(&running("old-1", 10)), CRASH_LOOP);
        assert_eq!(looks.restarts(&running("new-1", 3)), CRASH_LOOP, "it was made in this wait");
        looks.note(&[&running("old-1", 1)]);
        looks.note(&[&running("old-1", 4)]);
        assert_eq!(looks.restarts(&running("old-1", 4)), CRASH_LOOP, "it was made anew");
    }

    #[tokio::test]
    async fn a_container_that_was_restarted_long_ago_is_not_lost() {
        let target = crate::containers::tests::target();
        let spec = crate::containers::tests::spec();
        for (status, says) in [
            (ContainerStateStatusEnum::RUNNING, "was restarted 3 times"),
            (ContainerStateStatusEnum::RESTARTING, "ended with exit code 1, 3 times in a row"),
        ] {
            let mut looks = Looks::default();
            let then = container("web-1", 5, status);
            looks.note(&[&then]);
            assert!(!matches!(target.judge(&spec, &then, &mut looks).await, Judged::Lost(_)), "{status}");
            let now = container("web-1", 8, status);
            looks.note(&[&now]);
            match target.judge(&spec, &now, &mut looks).await {
                Judged::Lost(why) => assert!(why.ends_with(says), "{why}"),
                _ => panic!("a crash loop is not seen: {status}"),
            }
        }
    }
}
