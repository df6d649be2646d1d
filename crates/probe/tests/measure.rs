//! Questions to real sockets and real commands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use cdpipe_model::action::{Block, StepRef};
use cdpipe_model::event::Stream;
use cdpipe_model::expr::{Expr, MeasureName, MetricRef, Subject};
use cdpipe_model::measure::{MeasureRequest, MeasureScope, Metric, MetricSource, Query, Sample};
use cdpipe_model::ports::{BoxFuture, Call, Cancel, Measurer, PortResult, Secrets, Sink, TrafficNumbers};
use cdpipe_model::secret::SecretValue;
use cdpipe_model::value::{Type, Value};
use cdpipe_model::{EffectId, Fault};
use cdpipe_probe::Probes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// The address of a part of the lab. Says past libtest's capture that it is missing; where CI runs that is a failure.
fn lab(test: &str, variable: &str) -> Option<String> {
    use std::io::Write as _;
    let found = std::env::var(variable).ok();
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "{test} needs {variable}, which a CI run must have");
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: needs {variable} (cargo xtask test brings it)");
    }
    found
}

struct Nothing;

impl Sink for Nothing {
    fn output(&self, _: Stream, _: &str) {}
    fn progress(&self, _: &str) {}
}

impl Cancel for Nothing {
    fn is_cancelled(&self) -> bool {
        false
    }
    fn cancelled(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

impl Secrets for Nothing {
    fn resolve<'a>(&'a self, name: &'a str) -> PortResult<'a, SecretValue> {
        Box::pin(async move {
            if name == "token" {
                Ok(SecretValue::new("s3cret".into()))
            } else {
                Err(Fault::new("secret-missing", name))
            }
        })
    }
}

/// A router whose counters are read from here, one page after the other.
struct Router(Mutex<Vec<&'static str>>);

impl TrafficNumbers for Router {
    fn numbers<'a>(&'a self, _: Call<'a>, scope: &'a MeasureScope) -> BoxFuture<'a, Result<String, String>> {
        let mut pages = self.0.lock().unwrap();
        let page = if scope.release == "abc123" {
            Ok(pages.remove(0).to_owned())
        } else {
            Err("no such release".to_owned())
        };
        Box::pin(std::future::ready(page))
    }
}

/// Serves these bodies one after the other, the last one again and again; remembers what was asked.
async fn server(status: &'static str, bodies: Vec<String>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut at = 0;
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 16_384];
            let length = socket.read(&mut head).await.unwrap();
            log.lock().unwrap().push(String::from_utf8_lossy(&head[..length]).into_owned());
            let body = &bodies[at.min(bodies.len() - 1)];
            at += 1;
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
    (address, asked)
}

fn request(source: MetricSource, unit: Type, query: Query, addresses: Vec<String>) -> MeasureRequest {
    MeasureRequest {
        metric: MetricRef {
            subject: Subject::Candidate,
            measure: MeasureName::Named { set: "shop".into(), name: "error_rate".into() },
        },
        scope: MeasureScope {
            service: "shop".into(),
            environment: "here".into(),
            release: "abc123".into(),
            role: "candidate".into(),
            window_ms: 1000,
            addresses,
        },
        definition: Some((source, Metric { unit, query })),
    }
}

async fn ask(probes: &Probes, request: MeasureRequest) -> Sample {
    ask_behind(&Router(Mutex::default()), probes, request).await
}

async fn ask_behind(router: &Router, probes: &Probes, request: MeasureRequest) -> Sample {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (effect, step) = (EffectId("r/1".into()), StepRef { node: None, block: Block::Main, index: 0 });
    let call = Call {
        effect: &effect,
        step: &step,
        deadline: Duration::from_millis(1500),
        sink: &Nothing,
        cancel: &Nothing,
        secrets: &Nothing,
        epoch: 0,
    };
    probes.measure(call, &[request], router).await.remove(0)
}

fn probes() -> Probes {
    Probes::new(std::env::temp_dir())
}

fn raw(text: &str) -> Query {
    Query::Raw(text.to_owned())
}

fn scrape() -> MetricSource {
    MetricSource::Scrape { path: "/metrics".into() }
}

fn ratio() -> Query {
    Query::Ratio(Box::new(raw("r{s=~\"5..\"}")), Box::new(raw("r")))
}

#[tokio::test]
async fn a_scraped_ratio_compares_two_readings_and_adds_instances_up() {
    let (one, _) =
        server("200 OK", vec!["r{s=\"200\"} 10\n".into(), "r{s=\"200\"} 20\nr{s=\"500\"} 10\n".into()]).await;
    let (two, _) = server("200 OK", vec!["r{s=\"200\"} 0\n".into(), "r{s=\"200\"} 80\n".into()]).await;
    let sample = ask(&probes(), request(scrape(), Type::Percent, ratio(), vec![one, two])).await;
    assert_eq!(sample.value, Some(Value::Percent(10.0)), "{sample:?}");
    assert_eq!(sample.note.as_deref(), Some("10 of 100"));
}

#[tokio::test]
async fn what_a_router_counts_is_compared_between_two_readings() {
    let page = |good: u32, bad: u32| {
        let text = format!("requests_total{{code=\"2xx\"}} {good}\nrequests_total{{code=\"5xx\"}} {bad}\n");
        &*text.leak()
    };
    let pages = vec![page(100, 0), page(190, 10), "response_time_seconds 0.040\n"];
    let (router, probes) = (Router(Mutex::new(pages)), probes());
    let query = Query::Ratio(Box::new(raw("requests_total{code=\"5xx\"}")), Box::new(raw("requests_total")));
    let errors = request(MetricSource::Traffic, Type::Percent, query, vec![]);
    let sample = ask_behind(&router, &probes, errors).await;
    assert_eq!(sample.value, Some(Value::Percent(10.0)), "{sample:?}");
    assert_eq!(sample.asked, "what the router of here counts");
    let time = request(MetricSource::Traffic, Type::Duration, raw("response_time_seconds"), vec![]);
    assert_eq!(ask_behind(&router, &probes, time.clone()).await.value, Some(Value::Duration(40.0)));
    let mut other = time;
    other.scope.release = "another".into();
    let sample = ask_behind(&router, &probes, other).await;
    assert_eq!((sample.value, sample.note.as_deref()), (None, Some("no such release")));
}

#[tokio::test]
async fn silence_is_no_data_with_its_reason() {
    let probes = probes();
    let sample = ask(&probes, request(scrape(), Type::Percent, ratio(), vec![])).await;
    assert_eq!((sample.value, sample.note.as_deref()), (None, Some("no instance is ready")));
    let sample = ask(&probes, request(scrape(), Type::Percent, ratio(), vec!["127.0.0.1:1".into()])).await;
    assert_eq!(sample.value, None);
    assert!(sample.note.unwrap().contains("cannot be reached"));
    let (down, _) = server("503 Service Unavailable", vec!["not now".into()]).await;
    let sample = ask(&probes, request(scrape(), Type::Percent, ratio(), vec![down])).await;
    assert!(sample.note.unwrap().contains("503"), "an error page is no data");
}

#[tokio::test]
async fn a_server_that_never_answers_is_no_data_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let sample = ask(&probes(), request(scrape(), Type::Percent, ratio(), vec![address])).await;
    assert_eq!(sample.value, None);
    assert!(sample.note.unwrap().contains("time"));
}

#[tokio::test]
async fn prometheus_gets_the_placeholders_and_the_secret_header() {
    let body =
        r#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"0.25"]}]}}"#;
    let (address, asked) = server("200 OK", vec![body.into()]).await;
    use cdpipe_model::secret::{SecretPart, SecretText};
    let token = SecretText(vec![SecretPart::Text("Bearer ".into()), SecretPart::Secret("token".into())]);
    let source = MetricSource::Prometheus {
        url: Expr::text(format!("http://{address}/")),
        headers: BTreeMap::from([("authorization".into(), Expr::Value(Value::Secret(token)))]),
    };
    let sample =
        ask(&probes(), request(source, Type::Duration, raw("x{release=\"$release\"}"), vec![])).await;
    assert_eq!(sample.value, Some(Value::Duration(250.0)), "seconds by default");
    assert_eq!(sample.asked, "x{release=\"abc123\"}");
    let asked = asked.lock().unwrap().join("\n");
    assert!(asked.contains("query=x%7Brelease%3D%22abc123%22%7D"), "{asked}");
    assert!(asked.contains("authorization: Bearer s3cret"), "{asked}");
}

#[tokio::test]
async fn json_at_a_path() {
    let (address, asked) = server("200 OK", vec![r#"{"data":[{"errors":"0.5"}]}"#.into()]).await;
    let source = MetricSource::Http {
        url: Expr::text(format!("http://{address}/s?r=$release")),
        headers: BTreeMap::new(),
    };
    let sample = ask(&probes(), request(source.clone(), Type::Percent, raw("data[0].errors"), vec![])).await;
    assert_eq!(sample.value, Some(Value::Percent(50.0)));
    assert!(asked.lock().unwrap()[0].starts_with("GET /s?r=abc123 "));
    let sample = ask(&probes(), request(source, Type::Percent, raw("data[1].errors"), vec![])).await;
    assert!(sample.note.unwrap().contains("there is no `data[1]`"));
}

#[tokio::test]
async fn a_command_prints_a_number_or_says_why_not() {
    let probes = probes();
    let measured = async |script: &str| {
        let sample = ask(&probes, request(MetricSource::Command, Type::Number, raw(script), vec![])).await;
        sample.value.map(|value| value.to_string()).ok_or_else(|| sample.note.unwrap())
    };
    assert_eq!(measured("test \"$CDPIPE_RELEASE\" = abc123 && echo 2.5").await, Ok("2.5".into()));
    assert!(measured("echo many").await.unwrap_err().contains("not a number"));
    assert!(measured("echo oh no >&2; exit 3").await.unwrap_err().contains("exit status: 3: oh no"));
    assert!(measured("sleep 60").await.unwrap_err().contains("time"));
}

#[tokio::test]
async fn a_real_prometheus_answers() {
    let Some(url) = lab("a_real_prometheus_answers", "CDPIPE_LAB_PROMETHEUS") else { return };
    let source = MetricSource::Prometheus { url: Expr::text(url), headers: BTreeMap::new() };
    let probes = probes();
    let sample = ask(&probes, request(source.clone(), Type::Number, raw("vector(42)"), vec![])).await;
    assert_eq!(sample.value, Some(Value::Number(42.0)), "{sample:?}");
    let sample = ask(
        &probes,
        request(source.clone(), Type::Number, raw("vector(1) / vector(0) - vector(1) / vector(0)"), vec![]),
    )
    .await;
    assert_eq!(sample.value, None, "0/0 is no data");
    let sample = ask(&probes, request(source, Type::Number, raw("sum("), vec![])).await;
    assert!(sample.note.unwrap().contains("400"), "a query that is wrong says so");
}
