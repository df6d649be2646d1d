//! Measurements: reads numbers from the releases' own `/metrics`, what the router counts, a Prometheus server, Prometheus text at a URL, JSON, or a command.
//!
//! Uses `model`. Deliberately not here: anything that changes the world (`integrations` writes), what a number means (`machine`
//! judges), and the measures that targets and routers know themselves (`ready`, `failed`, `requests`: the engine asks those).
//!
//! Invariants: no data is a sample without a value and with a note that says why, never an error and never a zero; every question has
//! a deadline and a bound on its answer; a placeholder's value is escaped for where it stands.

mod command;
mod exposition;
mod fetch;
mod json;
mod placeholder;
mod prometheus;
mod reading;
mod selector;

use cdpipe_model::expr::Expr;
use cdpipe_model::measure::{MeasureRequest, MeasureScope, Metric, MetricSource, Query, Sample};
use cdpipe_model::ports::{BoxFuture, Call, Measurer, TrafficNumbers, expose};
use cdpipe_model::value::{Type, Value};
use placeholder::Place;
use reading::{Compiled, Found, Reading};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Asks all sources. Keeps the last reading of each place it scrapes, because a rate is what happened between two.
pub struct Probes {
    client: OnceLock<reqwest::Client>,
    /// Working directory of commands.
    directory: PathBuf,
    started: Instant,
    last: Mutex<BTreeMap<String, Arc<Reading>>>,
}

/// How many places' readings are kept; past that the oldest go.
const MOST_READINGS: usize = 256;
/// The longest that one page may take.
const PAGE_MS: u64 = 10_000;

impl Probes {
    /// `directory` is where commands run: that of the pipeline's file.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            client: OnceLock::new(),
            directory,
            started: Instant::now(),
            last: Mutex::new(BTreeMap::new()),
        }
    }

    fn client(&self) -> &reqwest::Client {
        self.client.get_or_init(|| {
            reqwest::Client::builder()
                .connect_timeout(Duration::from_secs(5))
                .pool_max_idle_per_host(2)
                .build()
                // Without a usable TLS set-up the default client says so at its first request.
                .unwrap_or_default()
        })
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn one(
        &self,
        call: Call<'_>,
        request: &MeasureRequest,
        traffic: &dyn TrafficNumbers,
        round: &Round,
    ) -> Sample {
        let Some((source, metric)) = &request.definition else {
            return no_data(request, String::new(), "the metric has no definition");
        };
        match source {
            MetricSource::Scrape { path } => {
                let asked = format!("{path} of {} instances", request.scope.addresses.len());
                if request.scope.addresses.is_empty() {
                    return no_data(request, asked, "no instance is ready");
                }
                let urls =
                    request.scope.addresses.iter().map(|address| format!("http://{address}{path}")).collect();
                let pages = Pages::At { urls, headers: BTreeMap::new() };
                self.readings(call, request, metric, round, pages, asked).await
            }
            MetricSource::Traffic => {
                let asked = format!("what the router of {} counts", request.scope.environment);
                self.readings(call, request, metric, round, Pages::Traffic(traffic, &request.scope), asked)
                    .await
            }
            MetricSource::Text { url, headers } => {
                let asked = placeholder::fill(&known(url), &request.scope, Place::Url);
                let headers = match self.headers(call, headers).await {
                    Ok(headers) => headers,
                    Err(note) => return no_data(request, asked, &note),
                };
                let pages = Pages::At { urls: vec![asked.clone()], headers };
                self.readings(call, request, metric, round, pages, asked).await
            }
            MetricSource::Prometheus { url, headers } => {
                self.prometheus(call, request, metric, url, headers).await
            }
            MetricSource::Http { url, headers } => {
                let asked = placeholder::fill(&known(url), &request.scope, Place::Url);
                let path = raw(&metric.query).unwrap_or_default();
                let body = match self.headers(call, headers).await {
                    Ok(headers) => fetch::get(self.client(), &asked, &headers, page_time(call)).await,
                    Err(note) => Err(note),
                };
                let number = body.and_then(|body| {
                    let document =
                        serde_json::from_str(&body).map_err(|_| "the answer is not JSON".to_owned())?;
                    json::number_at(&document, path)
                });
                let asked = if path.is_empty() { asked } else { format!("{asked} at {path}") };
                match number {
                    Ok(number) => sample(request, metric, asked, Found { value: Some(number), note: None }),
                    Err(note) => no_data(request, asked, &note),
                }
            }
            MetricSource::Command => {
                let script = raw(&metric.query).unwrap_or_default();
                match command::run(script, &request.scope, &self.directory, call).await {
                    Ok(number) => {
                        sample(request, metric, script.to_owned(), Found { value: Some(number), note: None })
                    }
                    Err(note) => no_data(request, script.to_owned(), &note),
                }
            }
        }
    }

    async fn headers(
        &self,
        call: Call<'_>,
        headers: &BTreeMap<String, Expr>,
    ) -> Result<BTreeMap<String, String>, String> {
        let mut out = BTreeMap::new();
        for (name, expr) in headers {
            let value = expr.known().ok_or_else(|| format!("header `{name}` is not known"))?;
            out.insert(name.clone(), expose(value, call.secrets).await.map_err(|fault| fault.message)?);
        }
        Ok(out)
    }

    async fn prometheus(
        &self,
        call: Call<'_>,
        request: &MeasureRequest,
        metric: &Metric,
        url: &Expr,
        headers: &BTreeMap<String, Expr>,
    ) -> Sample {
        let headers = match self.headers(call, headers).await {
            Ok(headers) => headers,
            Err(note) => return no_data(request, known(url), &note),
        };
        let base = known(url);
        let ask = async |text: &str| {
            let query = placeholder::fill(text, &request.scope, Place::PromQl);
            let body =
                fetch::get(self.client(), &prometheus::query_url(&base, &query), &headers, page_time(call))
                    .await;
            (query, body.and_then(|body| prometheus::read(&body)))
        };
        let (part, whole) = match &metric.query {
            Query::Ratio(part, whole) => (raw(part).unwrap_or_default(), raw(whole)),
            query => (raw(query).unwrap_or_default(), None),
        };
        let Some(whole) = whole else {
            let (asked, answer) = ask(part).await;
            return match answer {
                Ok(Some(value)) => sample(request, metric, asked, Found { value: Some(value), note: None }),
                Ok(None) => no_data(request, asked, "the query has no result"),
                Err(note) => no_data(request, asked, &note),
            };
        };
        let (asked_whole, whole) = ask(whole).await;
        let (asked_part, part) = ask(part).await;
        let asked = format!("{asked_part} / {asked_whole}");
        match (part, whole) {
            (Err(note), _) | (_, Err(note)) => no_data(request, asked, &note),
            (_, Ok(None)) => no_data(request, asked, "the total has no result"),
            (_, Ok(Some(whole))) if whole <= 0.0 => no_data(request, asked, "the total is zero"),
            // An absent part is none of it.
            (Ok(part), Ok(Some(whole))) => {
                let value = part.unwrap_or(0.0) / whole;
                sample(request, metric, asked, Found { value: Some(value), note: None })
            }
        }
    }

    /// Reads pages and compares them with those of the last time.
    async fn readings(
        &self,
        call: Call<'_>,
        request: &MeasureRequest,
        metric: &Metric,
        round: &Round,
        pages: Pages<'_>,
        asked: String,
    ) -> Sample {
        let compiled = match Compiled::new(&metric.query) {
            Ok(compiled) => compiled,
            Err(note) => return no_data(request, asked, &note),
        };
        let from = match &pages {
            Pages::At { urls, .. } => urls.join("\n"),
            Pages::Traffic(_, scope) => format!("{} {}", scope.environment, scope.service),
        };
        let place = format!("{}\n{}\n{from}", request.scope.release, request.scope.role);
        // What one release's pages are told apart by must not change when an instance comes or goes.
        let key = if request.scope.release.is_empty() {
            place
        } else {
            let by = if matches!(pages, Pages::Traffic(..)) { "traffic of " } else { "" };
            let MeasureScope { service, environment, release, .. } = &request.scope;
            format!("{by}{service} {environment} {release}")
        };
        let reading = match round.read(self, call, &key, compiled.needs_two(), &pages).await {
            Ok(reading) => reading,
            Err(note) => return no_data(request, asked, &note),
        };
        sample(request, metric, asked, compiled.value(reading.before.as_deref(), &reading.now))
    }

    async fn pages(&self, call: Call<'_>, pages: &Pages<'_>) -> Result<Reading, String> {
        let (urls, headers) = match pages {
            Pages::At { urls, headers } => (urls, headers),
            Pages::Traffic(traffic, scope) => {
                let page = exposition::parse(&traffic.numbers(call, scope).await?);
                return Ok(Reading { at_ms: self.now_ms(), pages: BTreeMap::from([(String::new(), page)]) });
            }
        };
        let mut read = BTreeMap::new();
        let mut trouble = None;
        // One after the other: a handful of loopback or cluster pages, and the bound on time holds for all.
        for url in urls {
            match fetch::get(self.client(), url, headers, page_time(call)).await {
                Ok(body) => {
                    read.insert(url.clone(), exposition::parse(&body));
                }
                Err(note) => trouble = Some(format!("{url}: {note}")),
            }
        }
        match (read.is_empty(), trouble) {
            (true, Some(note)) => Err(note),
            _ => Ok(Reading { at_ms: self.now_ms(), pages: read }),
        }
    }
}

/// Where counters are read.
enum Pages<'a> {
    At { urls: Vec<String>, headers: BTreeMap<String, String> },
    Traffic(&'a dyn TrafficNumbers, &'a MeasureScope),
}

type OnceReading = tokio::sync::OnceCell<Result<Pair, String>>;

/// Readings of one round of questions: several metrics of one release share its pages, and releases are read side by side.
#[derive(Default)]
struct Round {
    read: Mutex<BTreeMap<(String, bool), Arc<OnceReading>>>,
}

#[derive(Clone)]
struct Pair {
    before: Option<Arc<Reading>>,
    now: Arc<Reading>,
}

impl Round {
    async fn read(
        &self,
        probes: &Probes,
        call: Call<'_>,
        key: &str,
        two: bool,
        pages: &Pages<'_>,
    ) -> Result<Pair, String> {
        let cell = match self.read.lock() {
            Ok(mut read) => Arc::clone(read.entry((key.to_owned(), two)).or_default()),
            // Only a panic while it was held could do this; the question is then asked anew.
            Err(_) => Arc::default(),
        };
        let fresh = async {
            if two {
                Self::fresh(probes, call, key, pages).await
            } else {
                probes.pages(call, pages).await.map(|now| Pair { before: None, now: Arc::new(now) })
            }
        };
        cell.get_or_init(|| fresh).await.clone()
    }

    async fn fresh(probes: &Probes, call: Call<'_>, key: &str, pages: &Pages<'_>) -> Result<Pair, String> {
        let last = probes.last.lock().ok().and_then(|last| last.get(key).cloned());
        let before = match last {
            Some(last) => last,
            None => {
                // The first question: two readings as far apart as the deadline allows, so that it has an answer too.
                let first = Arc::new(probes.pages(call, pages).await?);
                tokio::time::sleep((call.deadline / 2).min(Duration::from_secs(2))).await;
                first
            }
        };
        let now = Arc::new(probes.pages(call, pages).await?);
        if let Ok(mut last) = probes.last.lock() {
            if last.len() >= MOST_READINGS
                && let Some(oldest) =
                    last.iter().min_by_key(|(_, reading)| reading.at_ms).map(|(key, _)| key.clone())
            {
                last.remove(&oldest);
            }
            last.insert(key.to_owned(), Arc::clone(&now));
        }
        Ok(Pair { before: Some(before), now })
    }
}

impl Measurer for Probes {
    fn measure<'a>(
        &'a self,
        call: Call<'a>,
        requests: &'a [MeasureRequest],
        traffic: &'a dyn TrafficNumbers,
    ) -> BoxFuture<'a, Vec<Sample>> {
        Box::pin(async move {
            let round = Round::default();
            let questions = requests.iter().map(|request| {
                let asked = tokio::time::timeout(call.deadline, self.one(call, request, traffic, &round));
                async move {
                    asked
                        .await
                        .unwrap_or_else(|_| no_data(request, String::new(), "there was no answer in time"))
                }
            });
            // A handful of metrics, of which those of one release share one reading.
            futures_util::future::join_all(questions).await
        })
    }
}

fn page_time(call: Call<'_>) -> Duration {
    call.deadline.min(Duration::from_millis(PAGE_MS))
}

/// The text of an expression that is known.
fn known(expr: &Expr) -> String {
    expr.known().map(Value::to_string).unwrap_or_default()
}

fn raw(query: &Query) -> Option<&str> {
    match query {
        Query::Raw(text) => Some(text),
        Query::Sample { of, .. } | Query::Rate(of) | Query::Quantile { of, .. } => raw(of),
        Query::Ratio(..) => None,
    }
}

fn no_data(request: &MeasureRequest, asked: String, note: &str) -> Sample {
    Sample { metric: request.metric.clone(), value: None, asked, note: Some(note.to_owned()) }
}

/// In the metric's unit: a bare number is a ratio for percent and seconds for a duration, unless `sample(…, unit = …)` says otherwise.
fn sample(request: &MeasureRequest, metric: &Metric, asked: String, found: Found) -> Sample {
    let value = found.value.filter(|number| number.is_finite()).map(|number| match metric.unit {
        Type::Percent => Value::Percent(number * 100.0),
        Type::Duration => {
            let unit_ms = match &metric.query {
                Query::Sample { unit_ms: Some(unit_ms), .. } => *unit_ms,
                _ => 1000.0,
            };
            Value::Duration(number * unit_ms)
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates, which is right for a count"
        )]
        Type::Size => Value::Size(number.max(0.0) as u64),
        #[allow(clippy::cast_possible_truncation, reason = "saturates, which is right for a count")]
        Type::Int => Value::Int(number.round() as i64),
        _ => Value::Number(number),
    });
    Sample { metric: request.metric.clone(), value, asked, note: found.note }
}
