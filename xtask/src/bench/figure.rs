//! One measured figure: what, on both sides, against which aim.

use serde_json::{Value, json};

/// What counts as reached. For a figure with a peer it is about the ratio ours / peer, else about our own value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Aim {
    /// Smaller is better.
    AtMost(f64),
    /// Greater is better.
    AtLeast(f64),
    /// None: it is told what the work takes.
    Told,
}

/// A figure, with every sample behind it.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    /// Stable, for the table and the JSON: `check-250`.
    pub(crate) id: &'static str,
    /// For people.
    pub(crate) what: String,
    /// Of the samples: `ms`, `MB`, `requests/s`.
    pub(crate) unit: &'static str,
    /// One for each round.
    pub(crate) ours: Vec<f64>,
    /// Its name and its samples, where there is one.
    pub(crate) peer: Option<(String, Vec<f64>)>,
    /// What is to be reached.
    pub(crate) aim: Aim,
}

/// The middle of some samples; the mean of the two middle ones where their number is even. 0 for none.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len() / 2, sorted.len() % 2) {
        (_, _) if sorted.is_empty() => 0.0,
        (half, 1) => sorted[half],
        (half, _) => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

impl Figure {
    /// Ratio of the medians, ours / peer.
    pub(crate) fn ratio(&self) -> Option<f64> {
        self.peer.as_ref().map(|(_, peer)| median(&self.ours) / median(peer))
    }

    /// The smallest and the largest ratio of one round.
    fn spread(&self) -> Option<(f64, f64)> {
        let (_, peer) = self.peer.as_ref()?;
        let ratios = || self.ours.iter().zip(peer).map(|(ours, peer)| ours / peer);
        Some((ratios().fold(f64::INFINITY, f64::min), ratios().fold(f64::NEG_INFINITY, f64::max)))
    }

    /// Whether the aim is reached, where there is one.
    pub(crate) fn reached(&self) -> Option<bool> {
        let value = self.ratio().unwrap_or_else(|| median(&self.ours));
        match self.aim {
            Aim::AtMost(limit) => Some(value <= limit),
            Aim::AtLeast(limit) => Some(value >= limit),
            Aim::Told => None,
        }
    }

    /// `≤ 0.5`, or `≤ 30 MB` where there is no peer.
    pub(crate) fn aim(&self) -> String {
        let unit = if self.peer.is_some() { String::new() } else { format!(" {}", self.unit) };
        match self.aim {
            Aim::AtMost(limit) => format!("≤ {limit}{unit}"),
            Aim::AtLeast(limit) => format!("≥ {limit}{unit}"),
            Aim::Told => "none".to_owned(),
        }
    }

    /// Median and unit of some samples.
    pub(crate) fn value(&self, samples: &[f64]) -> String {
        format!("{} {}", shown(median(samples)), self.unit)
    }

    /// `0.42 (0.40 .. 0.45)`, or nothing where there is no peer.
    pub(crate) fn shown_ratio(&self) -> String {
        match (self.ratio(), self.spread()) {
            (Some(ratio), Some((low, high))) => format!("{ratio:.2} ({low:.2} .. {high:.2})"),
            _ => String::new(),
        }
    }

    /// The whole figure in one line.
    pub(crate) fn line(&self) -> String {
        let mut line = format!("{:<24} {}", self.id, self.value(&self.ours));
        if let Some((name, samples)) = &self.peer {
            line = format!("{line}, {name} {}, ratio {}", self.value(samples), self.shown_ratio());
        }
        match self.reached() {
            Some(true) => format!("{line}  [aim {}: reached]", self.aim()),
            Some(false) => format!("{line}  [aim {}: SHORT OF IT]", self.aim()),
            None => line,
        }
    }
}

/// Three digits that count, no more.
fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Everything that was measured, for machines.
pub(crate) fn json(machine: &[(&'static str, String)], figures: &[Figure]) -> String {
    let machine: serde_json::Map<String, Value> =
        machine.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    let figures: Vec<Value> = figures
        .iter()
        .map(|figure| {
            json!({
                "id": figure.id,
                "what": figure.what,
                "unit": figure.unit,
                "ours": figure.ours,
                "ours_median": median(&figure.ours),
                "peer": figure.peer.as_ref().map(|(name, _)| name),
                "peer_samples": figure.peer.as_ref().map(|(_, samples)| samples),
                "peer_median": figure.peer.as_ref().map(|(_, samples)| median(samples)),
                "ratio": figure.ratio(),
                "aim": figure.aim(),
                "reached": figure.reached(),
            })
        })
        .collect();
    format!("{:#}\n", json!({ "machine": machine, "figures": figures }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(aim: Aim) -> Figure {
        Figure {
            id: "check-250",
            what: "checking 250 stages".to_owned(),
            unit: "ms",
            ours: vec![5.0, 4.0, 30.0],
            peer: Some(("actionlint".to_owned(), vec![10.0, 10.0, 12.0])),
            aim,
        }
    }

    #[test]
    fn medians() {
        assert_eq!(
            [median(&[]), median(&[3.0]), median(&[4.0, 1.0]), median(&[9.0, 1.0, 2.0])],
            [0.0, 3.0, 2.5, 2.0]
        );
    }

    #[test]
    fn a_line_has_both_sides_the_ratio_its_spread_and_the_verdict() {
        assert_eq!(
            figure(Aim::AtMost(1.0)).line(),
            "check-250                5.00 ms, actionlint 10.0 ms, ratio 0.50 (0.40 .. 2.50)  [aim ≤ 1: reached]"
        );
        assert!(figure(Aim::AtLeast(1.0)).line().ends_with("[aim ≥ 1: SHORT OF IT]"));
        assert!(figure(Aim::Told).line().ends_with("ratio 0.50 (0.40 .. 2.50)"));
    }

    #[test]
    fn without_a_peer_the_value_itself_is_judged() {
        let figure = Figure { peer: None, ..figure(Aim::AtMost(5.0)) };
        assert_eq!(figure.line(), "check-250                5.00 ms  [aim ≤ 5 ms: reached]");
    }

    #[test]
    fn json_has_every_sample() {
        let text = json(&[("cpu", "x".to_owned())], &[figure(Aim::AtMost(1.0))]);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["figures"][0]["peer_samples"], json!([10.0, 10.0, 12.0]));
        assert_eq!(value["figures"][0]["ratio"], json!(0.5));
        assert_eq!(value["machine"]["cpu"], json!("x"));
    }
}
