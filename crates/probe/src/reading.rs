//! Two readings of the same counters, and what happened between them.

use crate::exposition::Series;
use crate::selector::Selector;
use cdpipe_model::measure::Query;
use std::collections::BTreeMap;

/// Fewer events than this in a window say nothing about a share or a quantile.
pub(crate) const FEWEST_EVENTS: f64 = 5.0;

/// Everything that was read at one moment, by place it was read from.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    /// Milliseconds on a clock that only goes forward.
    pub(crate) at_ms: u64,
    /// Address to its page.
    pub(crate) pages: BTreeMap<String, Vec<Series>>,
}

/// What a query gave.
#[derive(Debug, PartialEq)]
pub(crate) struct Found {
    /// In the source's own unit; a share is 0 to 1.
    pub(crate) value: Option<f64>,
    /// Why there is none, or on how much it rests.
    pub(crate) note: Option<String>,
}

impl Found {
    fn nothing(note: impl Into<String>) -> Self {
        Self { value: None, note: Some(note.into()) }
    }
}

/// A query with its selectors read.
#[derive(Debug)]
pub(crate) enum Compiled {
    Sample(Selector),
    Rate(Selector),
    Ratio(Selector, Selector),
    Quantile(f64, Selector),
}

impl Compiled {
    /// Reads the selectors of a query.
    ///
    /// # Errors
    /// What is wrong, in one sentence.
    pub(crate) fn new(query: &Query) -> Result<Self, String> {
        let selector = |query: &Query| match query {
            Query::Raw(text) => Selector::parse(text),
            Query::Rate(of) | Query::Sample { of, .. } => match &**of {
                Query::Raw(text) => Selector::parse(text),
                _ => Err("expected a series here, found another function".to_owned()),
            },
            Query::Ratio(..) | Query::Quantile { .. } => {
                Err("expected a series here, found another function".to_owned())
            }
        };
        Ok(match query {
            Query::Raw(_) | Query::Sample { .. } => Self::Sample(selector(query)?),
            Query::Rate(_) => Self::Rate(selector(query)?),
            Query::Ratio(part, whole) => Self::Ratio(selector(part)?, selector(whole)?),
            Query::Quantile { q, of } => Self::Quantile(*q, selector(of)?),
        })
    }

    /// Whether it compares two readings.
    pub(crate) fn needs_two(&self) -> bool {
        !matches!(self, Self::Sample(_))
    }

    /// The value between two readings, or at the last one.
    pub(crate) fn value(&self, before: Option<&Reading>, now: &Reading) -> Found {
        match (self, before) {
            (Self::Sample(selector), _) => sample(selector, now),
            (_, None) => Found::nothing("there is no earlier reading to compare with"),
            (Self::Rate(selector), Some(before)) => {
                let seconds = seconds_between(before, now);
                match increase(&|series| selector.picks(series), before, now) {
                    None => Found::nothing(format!("no series {} is there", selector.name)),
                    Some(_) if seconds <= 0.0 => Found::nothing("no time passed between two readings"),
                    Some(events) => Found {
                        value: Some(events / seconds),
                        note: Some(format!("{events:.0} in {seconds:.1} s")),
                    },
                }
            }
            (Self::Ratio(part, whole), Some(before)) => {
                // An absent part is none of it; an absent whole is no data.
                let part = increase(&|series| part.picks(series), before, now).unwrap_or(0.0);
                match increase(&|series| whole.picks(series), before, now) {
                    None => Found::nothing(format!("no series {} is there", whole.name)),
                    Some(total) if total < FEWEST_EVENTS => Found::nothing(format!(
                        "only {total:.0} events, at least {FEWEST_EVENTS:.0} are needed"
                    )),
                    Some(total) => {
                        Found { value: Some(part / total), note: Some(format!("{part:.0} of {total:.0}")) }
                    }
                }
            }
            (Self::Quantile(q, selector), Some(before)) => quantile(*q, selector, before, now),
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "milliseconds between two readings, far below 2^53")]
fn seconds_between(before: &Reading, now: &Reading) -> f64 {
    now.at_ms.saturating_sub(before.at_ms) as f64 / 1000.0
}

fn sample(selector: &Selector, now: &Reading) -> Found {
    let picked: Vec<f64> = now
        .pages
        .values()
        .flatten()
        .filter(|series| selector.picks(series) && series.value.is_finite())
        .map(|series| series.value)
        .collect();
    if picked.is_empty() {
        return Found::nothing(format!("no series {} is there", selector.name));
    }
    Found { value: Some(picked.iter().sum()), note: None }
}

/// How much the picked counters grew, over all pages. A counter that fell was reset: what it shows came since. A page or series that
/// is new counts from zero, because it began after the first reading. `None` if no such series is there now.
fn increase(picks: &dyn Fn(&Series) -> bool, before: &Reading, now: &Reading) -> Option<f64> {
    let mut total = None;
    for (address, page) in &now.pages {
        let old = before.pages.get(address);
        for series in page.iter().filter(|series| picks(series) && series.value.is_finite()) {
            let was = old
                .and_then(|page| {
                    page.iter().find(|old| old.name == series.name && old.labels == series.labels)
                })
                .map_or(0.0, |old| old.value);
            let grown = if series.value >= was { series.value - was } else { series.value };
            *total.get_or_insert(0.0) += grown;
        }
    }
    total
}

/// Linear interpolation in the bucket that holds the rank, as Prometheus' `histogram_quantile` does.
fn quantile(q: f64, selector: &Selector, before: &Reading, now: &Reading) -> Found {
    let bucket_name = format!("{}_bucket", selector.name);
    let mut bounds: Vec<(f64, String)> = now
        .pages
        .values()
        .flatten()
        .filter(|series| series.name == bucket_name && selector.picks_labels(series))
        .filter_map(|series| {
            let le = series.labels.get("le")?;
            let bound = if le == "+Inf" { f64::INFINITY } else { le.parse().ok()? };
            Some((bound, le.clone()))
        })
        .collect();
    bounds.sort_by(|a, b| a.0.total_cmp(&b.0));
    bounds.dedup_by(|a, b| a.1 == b.1);
    if bounds.is_empty() {
        return Found::nothing(format!("no histogram {} is there", selector.name));
    }
    let counts: Vec<(f64, f64)> = bounds
        .iter()
        .map(|(bound, le)| {
            let picks = |series: &Series| {
                series.name == bucket_name
                    && series.labels.get("le") == Some(le)
                    && selector.picks_labels(series)
            };
            (*bound, increase(&picks, before, now).unwrap_or(0.0))
        })
        .collect();
    let total = counts.last().map_or(0.0, |(_, count)| *count);
    if total < FEWEST_EVENTS {
        return Found::nothing(format!("only {total:.0} events, at least {FEWEST_EVENTS:.0} are needed"));
    }
    let rank = q * total;
    let mut low = (0.0, 0.0);
    for (bound, count) in &counts {
        if *count >= rank {
            let value = if bound.is_infinite() {
                // All that is known is that it lies above the last finite bound.
                low.0
            } else if *count > low.1 {
                low.0 + (bound - low.0) * (rank - low.1) / (count - low.1)
            } else {
                *bound
            };
            return Found { value: Some(value), note: Some(format!("of {total:.0}")) };
        }
        low = (*bound, *count);
    }
    Found { value: Some(low.0), note: Some(format!("of {total:.0}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(at_ms: u64, pages: &[(&str, &str)]) -> Reading {
        let pages =
            pages.iter().map(|(address, text)| ((*address).to_owned(), crate::exposition::parse(text)));
        Reading { at_ms, pages: pages.collect() }
    }

    fn ratio() -> Compiled {
        let raw = |text: &str| Box::new(Query::Raw(text.into()));
        Compiled::new(&Query::Ratio(raw("r{s=~\"5..\"}"), raw("r"))).unwrap()
    }

    #[test]
    fn a_perfect_release_has_a_rate_of_zero_and_a_silent_one_has_none() {
        let before = reading(0, &[("a", "r{s=\"200\"} 10\n")]);
        let perfect = reading(1000, &[("a", "r{s=\"200\"} 110\n")]);
        assert_eq!(ratio().value(Some(&before), &perfect).value, Some(0.0));
        assert_eq!(ratio().value(Some(&before), &before).value, None, "no requests");
        assert_eq!(ratio().value(Some(&before), &reading(1000, &[("a", "")])).value, None, "no series");
        assert_eq!(ratio().value(None, &perfect).value, None, "no earlier reading");
    }

    #[test]
    fn instances_add_up_and_a_restart_counts_from_zero() {
        let before = reading(0, &[("a", "r{s=\"200\"} 100\nr{s=\"500\"} 50\n")]);
        let now = reading(2000, &[("a", "r{s=\"200\"} 6\nr{s=\"500\"} 2\n"), ("b", "r{s=\"200\"} 2\n")]);
        let found = ratio().value(Some(&before), &now);
        assert_eq!(found, Found { value: Some(0.2), note: Some("2 of 10".into()) });
    }

    #[test]
    fn a_quantile_is_interpolated_in_its_bucket() {
        let page = |a: u32, b: u32, c: u32| {
            format!("h_bucket{{le=\"0.1\"}} {a}\nh_bucket{{le=\"0.5\"}} {b}\nh_bucket{{le=\"+Inf\"}} {c}\n")
        };
        let before = reading(0, &[("a", &page(10, 10, 10))]);
        let now = reading(1000, &[("a", &page(60, 110, 110))]);
        let quantile = |q| {
            let query = Query::Quantile { q, of: Box::new(Query::Raw("h".into())) };
            Compiled::new(&query).unwrap().value(Some(&before), &now).value
        };
        assert_eq!(quantile(0.5), Some(0.1));
        assert_eq!(quantile(0.75), Some(0.1 + 0.4 * 0.5));
        let tail = reading(1000, &[("a", &page(10, 10, 110))]);
        let query = Query::Quantile { q: 0.9, of: Box::new(Query::Raw("h".into())) };
        assert_eq!(Compiled::new(&query).unwrap().value(Some(&before), &tail).value, Some(0.5));
    }

    proptest::proptest! {
        #[test]
        fn a_share_is_a_share(good in 0_u32..1000, bad in 0_u32..1000) {
            let before = reading(0, &[("a", "r{s=\"200\"} 0\nr{s=\"500\"} 0\n")]);
            let now = reading(1000, &[("a", &format!("r{{s=\"200\"}} {good}\nr{{s=\"500\"}} {bad}\n"))]);
            match ratio().value(Some(&before), &now).value {
                Some(share) => proptest::prop_assert!((0.0..=1.0).contains(&share)),
                None => proptest::prop_assert!(good + bad < 5),
            }
        }
    }
}
