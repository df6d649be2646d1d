//! Metrics: where they come from, how they are asked, and what an answer looks like.

use crate::expr::{Expr, MetricRef};
use crate::value::{Type, Value};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A `metrics` block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricSet {
    /// Its name.
    pub name: String,
    /// Where the numbers are.
    pub source: MetricSource,
    /// The named metrics.
    pub metrics: BTreeMap<String, Metric>,
}

/// Where numbers are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricSource {
    /// A Prometheus server's HTTP API.
    Prometheus {
        /// Base URL.
        url: Expr,
        /// Headers, whose values may be secret texts.
        headers: BTreeMap<String, Expr>,
    },
    /// The release's own `/metrics`, read from each ready instance and added up.
    Scrape {
        /// Path on the instance.
        path: String,
    },
    /// Prometheus text at any URL; `$role`, `$release` and the other placeholders may stand in it.
    Text {
        /// URL with placeholders.
        url: Expr,
        /// Headers, whose values may be secret texts.
        headers: BTreeMap<String, Expr>,
    },
    /// A JSON document; a metric's query is a path into it (`a.b[0].c`).
    Http {
        /// URL with placeholders.
        url: Expr,
        /// Headers, whose values may be secret texts.
        headers: BTreeMap<String, Expr>,
    },
    /// What the environment's router counts of each release; queries name [`crate::ports::TrafficNumbers`]' series.
    Traffic,
    /// A shell command that prints a number; the metric's query is the command, placeholders come as environment
    /// variables (`$CDPIPE_RELEASE`, `$CDPIPE_ROLE`, …).
    Command,
}

/// One named metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// `Percent`, `Duration`, `Number`, `Int` or `Size`.
    pub unit: Type,
    /// How it is asked.
    pub query: Query,
}

/// How a metric is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Query {
    /// A query in the source's own language, with placeholders (`$release`, `$role`, `$service`, `$environment`, `$window`).
    Raw(String),
    /// `ratio(a, b)`: an absent numerator is 0, an absent or small total is no data.
    Ratio(Box<Query>, Box<Query>),
    /// `rate(m)`: increase a second between two readings of a counter.
    Rate(Box<Query>),
    /// `quantile(q, m)`: from a histogram's buckets, of what came between two readings.
    Quantile {
        /// 0 to 1.
        q: f64,
        /// The histogram's name, with labels if any.
        of: Box<Query>,
    },
    /// `sample(m, unit = ms)`: the value as it stands; a duration in this unit.
    Sample {
        /// The series.
        of: Box<Query>,
        /// Milliseconds in one unit of the source, for durations (`1000` for seconds).
        unit_ms: Option<f64>,
    },
}

/// One question of a watch or a gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeasureRequest {
    /// What is asked, as rules name it.
    pub metric: MetricRef,
    /// What it belongs to; values for the placeholders.
    pub scope: MeasureScope,
    /// The metric's source and query; `None` for the measures that are always there.
    pub definition: Option<(MetricSource, Metric)>,
}

/// Values for a query's placeholders, and where the instances are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasureScope {
    /// `$service`.
    pub service: String,
    /// `$environment`.
    pub environment: String,
    /// `$release`: id of the release on the asked side; empty for the whole service.
    pub release: String,
    /// `$role`: `stable` or `candidate`; empty for the whole service.
    pub role: String,
    /// `$window`: how far back a rate should look.
    pub window_ms: u64,
    /// `HOST:PORT` of each instance that is ready on the asked side.
    pub addresses: Vec<String>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// What was asked.
    pub metric: MetricRef,
    /// The value in the metric's unit; `None` is no data.
    pub value: Option<Value>,
    /// Where it was asked and how, for the reader of a verdict: the query with its placeholders filled, or the URL.
    pub asked: String,
    /// Why there is no data, or a remark on how much there was ("412 requests").
    pub note: Option<String>,
}
