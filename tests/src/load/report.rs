//! What a load has to say when it is over.

use super::{Record, Timeline};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

/// The most failures that are written out one by one.
const SHOWN_LIMIT: usize = 20;

/// Every record of a load, with the questions a test asks of them.
#[derive(Debug, Clone)]
pub struct Report {
    records: Vec<Record>,
    arrivals_ended: Duration,
}

/// By what a timeline names who may serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// By release id.
    ByRelease,
    /// By version.
    ByVersion,
}

/// An answer from a release that was not allowed at any moment between the request's start and the answer's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAllowed<'a> {
    /// The request.
    pub record: &'a Record,
    /// What was allowed in its span.
    pub allowed: Vec<String>,
}

impl fmt::Display for NotAllowed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let allowed = if self.allowed.is_empty() { "nobody".to_owned() } else { self.allowed.join(", ") };
        write!(f, "{}; allowed then: {allowed}", self.record)
    }
}

impl Report {
    pub(super) fn new(records: Vec<Record>, arrivals_ended: Duration) -> Self {
        Self { records, arrivals_ended }
    }

    /// Every request, in the order of arrival.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The requests that failed.
    pub fn failures(&self) -> Vec<&Record> {
        self.records.iter().filter(|record| !record.good()).collect()
    }

    /// Good answers by release, of requests that began within `window`.
    pub fn answers_by_release(&self, window: Range<Duration>) -> BTreeMap<&str, u64> {
        let mut counts = BTreeMap::new();
        for record in self.records.iter().filter(|record| record.good() && window.contains(&record.start)) {
            *counts.entry(record.release.as_deref().unwrap_or("nobody known")).or_default() += 1;
        }
        counts
    }

    /// Every answer whose release was allowed at no moment between the request's start and the answer's head, also of
    /// requests that failed later; an answer that names no release is one of them.
    pub fn not_allowed(&self, timeline: &Timeline, named: Named) -> Vec<NotAllowed<'_>> {
        let judge = |record: &'_ Record| {
            let allowed = timeline.allowed_between(record.start, record.answered?);
            let who = match named {
                Named::ByRelease => record.release.as_deref(),
                Named::ByVersion => record.version.as_deref(),
            };
            let fine = who.is_some_and(|who| allowed.contains(who));
            (!fine).then(|| allowed.into_iter().map(str::to_owned).collect())
        };
        self.records
            .iter()
            .filter_map(|record| Some(NotAllowed { allowed: judge(record)?, record }))
            .collect()
    }

    /// The latency that this percentage (0 to 100) of the good requests of these kinds stayed within; `None` where
    /// there is no such request. `kinds` are names; none means all.
    pub fn latency(&self, percentile: f64, kinds: &[&str]) -> Option<Duration> {
        let chosen =
            |record: &&Record| record.good() && (kinds.is_empty() || kinds.contains(&record.kind.name()));
        percentile_of(self.records.iter().filter(chosen).map(Record::latency), percentile)
    }

    /// How late this percentage of the requests was sent, after it was due: beyond a few milliseconds the machine, not
    /// the target, is what was measured.
    pub fn lateness(&self, percentile: f64) -> Option<Duration> {
        percentile_of(self.records.iter().map(|record| record.start.saturating_sub(record.due)), percentile)
    }

    /// Arrivals each second, over the time in which there were any.
    pub fn arrivals_per_s(&self) -> f64 {
        self.records.len() as f64 / self.arrivals_ended.as_secs_f64().max(f64::EPSILON)
    }
}

/// The nearest-rank percentile.
fn percentile_of(values: impl Iterator<Item = Duration>, percentile: f64) -> Option<Duration> {
    let mut values: Vec<Duration> = values.collect();
    values.sort_unstable();
    // The rank is within 1 and the length, so the cast is exact.
    let rank = (percentile.clamp(0.0, 100.0) / 100.0 * values.len() as f64).ceil().max(1.0) as usize;
    values.get(rank - 1).copied()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failures = self.failures();
        let (all, failed, rate) = (self.records.len(), failures.len(), self.arrivals_per_s());
        writeln!(f, "{all} requests at {rate:.1}/s, {failed} failed")?;
        for (release, count) in self.answers_by_release(Duration::ZERO..Duration::MAX) {
            writeln!(f, "  {count} by {release}")?;
        }
        let mut by_kind: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for record in &self.records {
            let (kind, kept) = by_kind.entry(record.kind.name()).or_default();
            *kind += 1;
            *kept += u64::from(record.kept_alive);
        }
        let ms = |latency: Option<Duration>| latency.map_or(0.0, |latency| latency.as_secs_f64() * 1e3);
        for (kind, (count, kept)) in by_kind {
            let (p50, p99) = (ms(self.latency(50.0, &[kind])), ms(self.latency(99.0, &[kind])));
            writeln!(f, "  {kind}: {count} ({kept} kept alive), p50 {p50:.1} ms, p99 {p99:.1} ms")?;
        }
        writeln!(
            f,
            "  sent late by: p50 {:.1} ms, p99 {:.1} ms",
            ms(self.lateness(50.0)),
            ms(self.lateness(99.0))
        )?;
        for record in failures.iter().take(SHOWN_LIMIT) {
            writeln!(f, "  {record}")?;
        }
        if failed > SHOWN_LIMIT {
            writeln!(f, "  and {} more failures", failed - SHOWN_LIMIT)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Failure, FailureKind, Kind, Record, Timeline};
    use super::{Named, Report};
    use std::time::Duration;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn answered(index: u64, start: u64, head: u64, release: &str) -> Record {
        let due = ms(index * 10);
        Record {
            start: ms(start),
            answered: Some(ms(head)),
            end: ms(head + 5),
            status: Some(200),
            release: (!release.is_empty()).then(|| release.to_owned()),
            version: Some("1.0".to_owned()),
            ..Record::due(index, Kind::Short, due)
        }
    }

    fn report() -> Report {
        let cut = Failure { kind: FailureKind::Cut, detail: "after 3 of 20 events".to_owned() };
        let failed = Record { failure: Some(cut), ..answered(4, 40, 45, "v2") };
        let records = vec![
            answered(0, 0, 5, "v1"),
            answered(1, 10, 18, "v2"),
            answered(2, 20, 24, "v1"),
            answered(3, 33, 34, ""),
            failed,
        ];
        Report::new(records, ms(50))
    }

    #[test]
    fn finds_answers_of_releases_that_were_not_allowed() {
        let mut timeline = Timeline::new();
        timeline.allow_from(ms(0), ["v1"]).allow_from(ms(15), ["v1", "v2"]).allow_from(ms(19), ["v2"]);
        let report = report();
        let said: Vec<String> =
            report.not_allowed(&timeline, Named::ByRelease).iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "#2 short 20..29 ms by v1: good; allowed then: v2",
                "#3 short 33..39 ms by nobody known: good; allowed then: v2",
            ]
        );
        let mut versions = Timeline::new();
        versions.allow_from(ms(0), ["1.0"]).allow_from(ms(36), ["1.1"]);
        let late: Vec<u64> =
            report.not_allowed(&versions, Named::ByVersion).iter().map(|found| found.record.index).collect();
        assert_eq!(late, [4]);
    }

    #[test]
    fn sums_up() {
        let report = report();
        assert_eq!(
            report.answers_by_release(ms(0)..ms(20)).into_iter().collect::<Vec<_>>(),
            [("v1", 1), ("v2", 1)]
        );
        assert_eq!(report.latency(50.0, &[]), Some(ms(9)));
        assert_eq!(report.latency(100.0, &["short"]), Some(ms(13)));
        assert_eq!(report.latency(50.0, &["socket"]), None);
        assert_eq!(
            report.to_string(),
            "5 requests at 100.0/s, 1 failed\n  1 by nobody known\n  2 by v1\n  1 by v2\n  \
             short: 5 (0 kept alive), p50 9.0 ms, p99 13.0 ms\n  sent late by: p50 0.0 ms, p99 3.0 ms\n  \
             #4 short 40..50 ms by v2: cut: after 3 of 20 events\n"
        );
    }
}
