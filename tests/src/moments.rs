//! What a run's own record (`cdpipe run --json`) says about who was allowed to serve when, to judge a load by.

use crate::load::{Clock, Timeline};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// The record's times and the load's are both cut to a millisecond.
const ROUNDING: Duration = Duration::from_millis(2);

/// Puts the routes of a run that has ended into `timeline`, releases by their version. Before a route was observed the
/// releases before it are allowed, after it those it names, and both from the last progress before it (the wait until
/// the candidate is ready tells of each instance) until it was observed. A run that moved no traffic allows nothing new.
///
/// # Errors
/// With the line that is not what the record promises.
pub fn allow_routes(record: &str, clock: Clock, timeline: &mut Timeline) -> Result<(), String> {
    let mut versions = BTreeMap::new();
    let mut serving: Vec<String> = Vec::new();
    let mut ready_ms = 0;
    for line in record.lines() {
        let event: Value = serde_json::from_str(line).map_err(|error| format!("{line}: {error}"))?;
        let at_ms = event["at_ms"].as_u64().ok_or_else(|| format!("no at_ms: {line}"))?;
        for role in ["stable", "candidate"] {
            if let (Some(release), Some(version)) =
                (event[role]["release"].as_str(), event[role]["version"].as_str())
            {
                versions.insert(release.to_owned(), version.to_owned());
                if role == "stable" && serving.is_empty() {
                    serving.push(version.to_owned());
                }
            }
        }
        if event["type"] == "routed" {
            let releases = event["releases"].as_array().ok_or_else(|| format!("no releases: {line}"))?;
            let next = releases
                .iter()
                .filter(|release| release["percent"].as_f64().is_some_and(|percent| percent > 0.0))
                .map(|release| {
                    let id = release["release"].as_str().unwrap_or_default();
                    versions.get(id).cloned().ok_or_else(|| format!("a release nobody told of: {line}"))
                })
                .collect::<Result<Vec<_>, _>>()?;
            let from = clock.at_unix_ms(u128::from(ready_ms)).saturating_sub(ROUNDING);
            timeline.allow_from(from, serving.iter().chain(&next));
            timeline.allow_from(clock.at_unix_ms(u128::from(at_ms)) + ROUNDING, &next);
            serving = next;
        }
        if event["type"] == "progress" {
            ready_ms = at_ms;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(timeline: &Timeline, from_ms: u64, to_ms: u64) -> String {
        let ms = Duration::from_millis;
        timeline.allowed_between(ms(from_ms), ms(to_ms)).into_iter().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_candidate_may_serve_from_the_first_route_on_and_stable_until_it_lost_the_last() {
        let record = r#"{"at_ms":1000,"type":"opened"}
{"at_ms":1100,"type":"plan","stable":{"release":"a","version":"v1"},"candidate":{"release":"b","version":"v2"}}
{"at_ms":1200,"type":"progress"}
{"at_ms":1205,"type":"watch"}
{"at_ms":1210,"type":"routed","releases":[{"release":"a","percent":75.0},{"release":"b","percent":25.0}]}
{"at_ms":1400,"type":"progress"}
{"at_ms":1410,"type":"routed","releases":[{"release":"a","percent":0.0},{"release":"b","percent":100.0}]}
{"at_ms":1500,"type":"closed"}"#;
        let mut timeline = Timeline::new();
        timeline.allow_from(Duration::ZERO, ["v1"]);
        allow_routes(record, Clock::of_unix_ms(1000), &mut timeline).unwrap();
        assert_eq!(allowed(&timeline, 0, 197), "v1");
        assert_eq!(allowed(&timeline, 150, 199), "v1 v2");
        assert_eq!(allowed(&timeline, 300, 310), "v1 v2");
        assert_eq!(allowed(&timeline, 411, 411), "v1 v2");
        assert_eq!(allowed(&timeline, 412, 900), "v2");
    }

    #[test]
    fn a_run_that_moves_no_traffic_allows_nothing_new() {
        let record = r#"{"at_ms":1,"type":"plan","stable":{"release":"a","version":"v1"},"candidate":{"release":"b","version":"v2"}}"#;
        let mut timeline = Timeline::new();
        timeline.allow_from(Duration::ZERO, ["v1"]);
        allow_routes(record, Clock::of_unix_ms(0), &mut timeline).unwrap();
        assert_eq!(allowed(&timeline, 0, 9_000), "v1");
    }

    #[test]
    fn a_record_without_what_it_promises_is_refused() {
        let of = |record: &str| {
            allow_routes(record, Clock::of_unix_ms(0), &mut Timeline::new()).expect_err("it is refused")
        };
        assert!(of("no").starts_with("no: "), "{}", of("no"));
        assert!(of("{}").starts_with("no at_ms"));
        assert!(of(r#"{"at_ms":1,"type":"routed"}"#).starts_with("no releases"));
        let stranger = r#"{"at_ms":1,"type":"routed","releases":[{"release":"z","percent":100.0}]}"#;
        assert!(of(stranger).starts_with("a release nobody told of"));
    }
}
