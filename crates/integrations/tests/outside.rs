//! Messages, requests and flags against real sockets, a real file, and a real Redis where the lab has one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use cdpipe_integrations::Integrations;
use cdpipe_model::action::{Block, StepRef};
use cdpipe_model::event::Stream;
use cdpipe_model::expr::Expr;
use cdpipe_model::plan::{Channel, FlagProvider};
use cdpipe_model::ports::{BoxFuture, Call, Cancel, HttpRequest, Messenger, PortResult, Secrets, Sink};
use cdpipe_model::secret::{SecretPart, SecretText, SecretValue};
use cdpipe_model::{EffectId, Fault, Value};
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

struct Port;

impl Sink for Port {
    fn output(&self, _: Stream, _: &str) {}
    fn progress(&self, _: &str) {}
}

impl Cancel for Port {
    fn is_cancelled(&self) -> bool {
        false
    }
    fn cancelled(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

impl Secrets for Port {
    fn resolve<'a>(&'a self, name: &'a str) -> PortResult<'a, SecretValue> {
        Box::pin(async move {
            let values = VALUES.lock().unwrap();
            let value = name.parse::<usize>().ok().and_then(|at| values.get(at)).cloned();
            value.map(SecretValue::new).ok_or_else(|| Fault::new("secret-missing", name))
        })
    }
}

fn with_call<T>(work: impl AsyncFnOnce(Call<'_>) -> T) -> T {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (effect, step) = (EffectId("r/1".into()), StepRef { node: None, block: Block::Main, index: 0 });
    let deadline = Duration::from_millis(2_000);
    let call =
        Call { effect: &effect, step: &step, deadline, sink: &Port, cancel: &Port, secrets: &Port, epoch: 0 };
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work(call))
}

/// Values of secrets; the name of each is its index.
static VALUES: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn secret(value: &str) -> Value {
    let mut values = VALUES.lock().unwrap();
    values.push(value.to_owned());
    Value::Secret(SecretText(vec![SecretPart::Secret((values.len() - 1).to_string())]))
}

/// Answers each request with what `answer` makes of it: status line and body.
async fn server(
    answer: impl Fn(&str) -> (String, String) + Send + 'static,
) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut text = String::new();
            let mut buffer = [0; 4096];
            loop {
                let length = socket.read(&mut buffer).await.unwrap();
                text.push_str(&String::from_utf8_lossy(&buffer[..length]));
                let Some((head, body)) = text.split_once("\r\n\r\n") else {
                    if length == 0 { break } else { continue }
                };
                let wanted = head
                    .lines()
                    .find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned))
                    .map_or(0, |length| length.parse().unwrap());
                if body.len() >= wanted || length == 0 {
                    break;
                }
            }
            let (status, body) = answer(&text);
            log.lock().unwrap().push(text);
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
    (address, asked)
}

fn integrations() -> Integrations {
    Integrations::new(std::env::temp_dir())
}

#[test]
fn an_http_step_expects_what_it_says() {
    with_call(async |call| {
        let (address, asked) = server(|request| {
            if request.starts_with("POST /missing") {
                ("404 Not Found".into(), "no such thing\nat all".into())
            } else {
                ("201 Created".into(), "made it".into())
            }
        })
        .await;
        let url = |path: &str| Value::Str(format!("http://{address}{path}"));
        let headers = BTreeMap::from([("x-key".to_owned(), secret("hunter2"))]);
        let port = integrations();
        let body = Value::Str("{}".into());
        let ask = async |url: &Value, expect_status: &[u16], expect_body: Option<&str>| {
            let request = HttpRequest {
                method: "POST",
                url,
                headers: &headers,
                body: Some(&body),
                expect_status,
                expect_body,
            };
            port.http(call, request).await
        };
        assert_eq!(ask(&url("/a"), &[], None).await, Ok(201));
        assert_eq!(ask(&url("/missing"), &[404], None).await, Ok(404));
        let fault = ask(&url("/missing"), &[], None).await.unwrap_err();
        assert!(fault.message.contains("answered 404; expected 2xx"), "{fault}");
        assert_eq!(fault.details, ["no such thing", "at all"]);
        assert!(!fault.transient);
        let fault = ask(&url("/a"), &[], Some("broke it")).await.unwrap_err();
        assert!(fault.message.contains("does not contain \"broke it\""), "{fault}");
        assert!(asked.lock().unwrap()[0].contains("x-key: hunter2"));
        let fault = ask(&secret("http://user:hunter2@127.0.0.1:1/"), &[], None).await.unwrap_err();
        assert!(!format!("{fault:?}").contains("hunter2"), "{fault:?}");
        assert!(fault.transient);
        let fault = ask(&Value::Str("not a url".into()), &[], None).await.unwrap_err();
        assert!(fault.message.contains("not a URL"), "{fault}");
    });
}

#[test]
fn a_server_that_never_answers_ends_with_the_deadline() {
    with_call(async |call| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Value::Str(format!("http://{}/", listener.local_addr().unwrap()));
        let call = Call { deadline: Duration::from_millis(200), ..call };
        let headers = BTreeMap::new();
        let request = HttpRequest {
            method: "GET",
            url: &url,
            headers: &headers,
            body: None,
            expect_status: &[],
            expect_body: None,
        };
        let fault = integrations().http(call, request).await.unwrap_err();
        assert!(fault.message.contains("did not answer in time"), "{fault}");
    });
}

#[test]
fn messages_go_to_slack_and_plain_webhooks() {
    with_call(async |call| {
        let (address, asked) = server(|request| {
            let refused = request.starts_with("POST /refused");
            (if refused { "500 Oh" } else { "200 OK" }.into(), "invalid_payload".into())
        })
        .await;
        let fields = BTreeMap::from([("stage".to_owned(), "production".to_owned())]);
        let none = BTreeMap::new();
        let port = integrations();
        let hook = secret(&format!("http://{address}/hook"));
        port.notify(call, Channel::Slack, &hook, &none, "v2 <is> live", &fields).await.unwrap();
        port.notify(call, Channel::Webhook, &hook, &none, "v2", &fields).await.unwrap();
        let refused = secret(&format!("http://{address}/refused"));
        let fault = port.notify(call, Channel::Slack, &refused, &none, "x", &fields).await.unwrap_err();
        assert!(fault.message.contains("500") && fault.transient && fault.details == ["invalid_payload"]);
        let asked = asked.lock().unwrap();
        assert!(asked[0].ends_with(r#"{"text":"v2 &lt;is&gt; live"}"#), "{}", asked[0]);
        assert!(asked[1].ends_with(r#"{"stage":"production","text":"v2"}"#), "{}", asked[1]);
    });
}

#[test]
fn a_flag_in_a_file_is_set_and_taken_back() {
    with_call(async |call| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flags.json");
        std::fs::write(&path, r#"{"old": "blue", "on": true}"#).unwrap();
        let provider = FlagProvider::File { path: path.display().to_string() };
        let port = integrations();
        let set = async |flag: &str, value: Option<&str>| port.set_flag(call, &provider, flag, value).await;
        assert_eq!(set("on", Some("false")).await, Ok(Some("true".into())));
        assert_eq!(set("new", Some("30%")).await, Ok(None));
        assert_eq!(set("old", None).await, Ok(Some("blue".into())));
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\n  \"new\": \"30%\",\n  \"on\": false\n}\n");
        std::fs::write(&path, "[]").unwrap();
        assert!(set("x", Some("1")).await.unwrap_err().message.contains("is not a JSON object"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "[]", "what could not be read is left alone");
    });
}

#[test]
fn a_flag_behind_an_admin_api_is_read_back() {
    with_call(async |call| {
        let stored = Arc::new(Mutex::new("true".to_owned()));
        let state = Arc::clone(&stored);
        let (address, asked) = server(move |request| {
            let mut state = state.lock().unwrap();
            if request.starts_with("PUT") {
                let body = request.rsplit("\r\n\r\n").next().unwrap();
                let document: serde_json::Value = serde_json::from_str(body).unwrap();
                if document["enabled"] != "stuck" {
                    *state = document["enabled"].as_str().unwrap().to_owned();
                }
            }
            ("200 OK".into(), format!(r#"{{"flag":{{"enabled":"{}"}}}}"#, *state))
        })
        .await;
        let provider = FlagProvider::Http {
            url: Expr::text(format!("http://{address}/flags/$flag")),
            method: "PUT".into(),
            headers: BTreeMap::from([("authorization".into(), Expr::Value(secret("hunter2")))]),
            body: Some(Expr::text(r#"{"name": "$flag", "enabled": "$value"}"#)),
            read_url: Some(Expr::text(format!("http://{address}/flags/$flag"))),
            read_path: Some("flag.enabled".into()),
        };
        let port = integrations();
        let was = port.set_flag(call, &provider, "new \"checkout\"", Some("false")).await;
        assert_eq!(was, Ok(Some("true".into())));
        assert_eq!(*stored.lock().unwrap(), "false");
        assert!(asked.lock().unwrap()[1].starts_with("PUT /flags/new%20%22checkout%22 "));
        let fault = port.set_flag(call, &provider, "x", Some("stuck")).await.unwrap_err();
        assert!(fault.message.contains("it was written, but reads \"false\""), "{fault}");
    });
}

#[test]
fn a_flag_in_redis_is_set_and_taken_back() {
    let Some(url) = lab("a_flag_in_redis_is_set_and_taken_back", "CDPIPE_LAB_REDIS") else { return };
    with_call(async |call| {
        let provider = FlagProvider::Redis {
            url: Expr::Value(secret(&url)),
            key: format!("test-{}:$flag", std::process::id()),
        };
        let port = integrations();
        let set = async |value: Option<&str>| port.set_flag(call, &provider, "new-checkout", value).await;
        assert_eq!(set(Some("on")).await, Ok(None));
        assert_eq!(set(Some("off")).await, Ok(Some("on".into())));
        assert_eq!(set(None).await, Ok(Some("off".into())));
        assert_eq!(set(None).await, Ok(None));
    });
}

#[test]
fn a_redis_that_is_not_there_is_worth_another_try_and_keeps_its_password() {
    with_call(async |call| {
        let url = secret("redis://user:hunter2@127.0.0.1:1/");
        let provider = FlagProvider::Redis { url: Expr::Value(url), key: "$flag".into() };
        let fault = integrations().set_flag(call, &provider, "x", Some("1")).await.unwrap_err();
        assert!(fault.transient && !format!("{fault:?}").contains("hunter2"), "{fault:?}");
    });
}
