//! What the shop answers to each request.

use crate::metrics::Route;
use crate::pages::Facts;
use crate::server::{Busy, Phase, Shared};
use crate::streams::{CountedBody, EventStream};
use crate::websocket::{self, CLOSE_GOING_AWAY, Message, Role, WebSocket, WebSocketError};
use crate::{RELEASE_HEADER, REQUEST_ID_HEADER, VERSION_HEADER};
use bytes::Bytes;
use http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, UPGRADE,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited, combinators::BoxBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest body that `/echo` takes.
const ECHO_LIMIT_BYTES: usize = 16 << 20;
/// How long a client may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest wait that a query can ask for, for one answer or between two events.
const WAIT_LIMIT_MS: u64 = 60_000;
/// The most events that a query can ask for.
const EVENT_LIMIT: u64 = 10_000;

type Answer = Response<BoxBody<Bytes, Infallible>>;

const TEXT: &str = "text/plain; charset=utf-8";

/// Answers one request; what goes wrong becomes a status, so it cannot fail.
pub(crate) async fn answer(
    shared: Arc<Shared>,
    busy: Busy,
    request: Request<Incoming>,
) -> Result<Response<CountedBody>, Infallible> {
    let request_id = request.headers().get(REQUEST_ID_HEADER).cloned();
    let (mut response, in_flight) = match request.uri().path() {
        "/health" => (health(&shared), None),
        "/metrics" => (text(StatusCode::OK, shared.metrics.render()), None),
        _ => {
            let (arrived, in_flight) = (Instant::now(), shared.metrics.enter());
            let route = route_of(&request);
            let response = user_answer(&shared, busy, request, route).await;
            shared.metrics.answered(route, response.status().as_u16(), arrived.elapsed());
            (response, Some(in_flight))
        }
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    insert_text(headers, RELEASE_HEADER, &shared.config.release);
    insert_text(headers, VERSION_HEADER, &shared.config.version);
    if let Some(id) = request_id {
        headers.insert(REQUEST_ID_HEADER, id);
    }
    Ok(response.map(|body| CountedBody::new(body, in_flight)))
}

fn insert_text(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // A version that no header can carry is still on the page and in the metrics.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

fn route_of<B>(request: &Request<B>) -> Route {
    const PATHS: [&str; 6] = ["/", "/version", "/slow", "/echo", "/stream", "/ws"];
    const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let known = |names: &[&'static str], name: &str, other| {
        names.iter().find(|known| **known == name).copied().unwrap_or(other)
    };
    Route {
        path: known(&PATHS, request.uri().path(), "other"),
        method: known(&METHODS, request.method().as_str(), "OTHER"),
    }
}

fn health(shared: &Shared) -> Answer {
    let (status, word) = match *shared.phase.borrow() {
        Phase::Ready => (StatusCode::OK, "ok\n"),
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        Phase::Draining | Phase::Closing | Phase::Crashed => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    };
    text(status, word)
}

async fn user_answer(shared: &Arc<Shared>, busy: Busy, request: Request<Incoming>, route: Route) -> Answer {
    if *shared.phase.borrow() == Phase::Starting {
        return text(StatusCode::SERVICE_UNAVAILABLE, "The shop is not open yet.\n");
    }
    let fault = &shared.config.fault;
    if shared.started.elapsed() >= fault.after {
        tokio::time::sleep(fault.latency).await;
        if shared.errors.next_fails() {
            return text(StatusCode::INTERNAL_SERVER_ERROR, "The shop made a mistake.\n");
        }
    }
    let facts = Facts {
        version: &shared.config.version,
        release: &shared.config.release,
        up: shared.started.elapsed(),
    };
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    match route.path {
        "/" if get && wants_html(request.headers()) => {
            typed(StatusCode::OK, "text/html; charset=utf-8", facts.html())
        }
        "/" if get => text(StatusCode::OK, facts.text()),
        "/version" if get => typed(StatusCode::OK, "application/json", facts.json()),
        "/slow" if get => slow(&request, &facts).await,
        "/stream" if get => stream(&request, &facts),
        "/ws" if get => open_socket(shared, busy, request),
        "/echo" if *request.method() == Method::POST => echo(request).await,
        "other" => text(StatusCode::NOT_FOUND, "The shop has no such page.\n"),
        path => {
            let allowed = if path == "/echo" { "POST" } else { "GET, HEAD" };
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("{path} takes {allowed}.\n"));
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
            response
        }
    }
}

fn wants_html(headers: &HeaderMap) -> bool {
    headers
        .get(ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/html"))
}

async fn slow<B>(request: &Request<B>, facts: &Facts<'_>) -> Answer {
    match query_number(request, "ms", 500, 0..=WAIT_LIMIT_MS) {
        Err(complaint) => text(StatusCode::BAD_REQUEST, complaint),
        Ok(ms) => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            text(StatusCode::OK, format!("{} took its time: {ms} ms.\n", facts.version))
        }
    }
}

fn stream<B>(request: &Request<B>, facts: &Facts<'_>) -> Answer {
    let asked = query_number(request, "events", 20, 0..=EVENT_LIMIT).and_then(|events| {
        // The cast is exact: the limit is far below it.
        Ok((events as u32, query_number(request, "every_ms", 50, 1..=WAIT_LIMIT_MS)?))
    });
    match asked {
        Err(complaint) => text(StatusCode::BAD_REQUEST, complaint),
        Ok((events, every_ms)) => {
            let body = EventStream::new(facts.release, events, Duration::from_millis(every_ms));
            let mut response = Response::new(body.boxed());
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            response
        }
    }
}

async fn echo(request: Request<Incoming>) -> Answer {
    let content_type = request.headers().get(CONTENT_TYPE).cloned();
    let body = Limited::new(request.into_body(), ECHO_LIMIT_BYTES);
    match tokio::time::timeout(BODY_TIMEOUT, body.collect()).await {
        Err(_) => text(StatusCode::REQUEST_TIMEOUT, "The body did not arrive within 60 s.\n"),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            text(StatusCode::PAYLOAD_TOO_LARGE, "The shop echoes 16 MiB at most.\n")
        }
        Ok(Err(error)) => text(StatusCode::BAD_REQUEST, format!("The body was cut: {error}\n")),
        Ok(Ok(body)) => {
            let mut response = Response::new(Full::new(body.to_bytes()).boxed());
            let binary = HeaderValue::from_static("application/octet-stream");
            response.headers_mut().insert(CONTENT_TYPE, content_type.unwrap_or(binary));
            response
        }
    }
}

fn open_socket(shared: &Arc<Shared>, busy: Busy, mut request: Request<Incoming>) -> Answer {
    let headers = request.headers();
    let says = |name: &str, word: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(word))
    };
    let key = headers.get("sec-websocket-key").and_then(|key| key.to_str().ok());
    let opens =
        says("upgrade", "websocket") && says("connection", "upgrade") && says("sec-websocket-version", "13");
    let Some(accept) = key.filter(|_| opens).map(websocket::accept_key) else {
        let mut response = text(StatusCode::UPGRADE_REQUIRED, "/ws speaks WebSocket, version 13.\n");
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
        return response;
    };
    let shared = Arc::clone(shared);
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(stream) = upgrade.await {
            let in_flight = shared.metrics.enter();
            echo_messages(WebSocket::new(TokioIo::new(stream), Role::Server, 0), &shared).await;
            drop((in_flight, busy));
        }
    });
    let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.clear();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    insert_text(headers, "sec-websocket-accept", &accept);
    response
}

/// Echoes until the client closes. A drain lets the session go on, as any request in flight; when its time is up the
/// client is told that this end goes away.
async fn echo_messages<S>(mut socket: WebSocket<S>, shared: &Shared)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut phase = shared.phase.subscribe();
    loop {
        let received = tokio::select! {
            received = socket.receive() => received,
            polite = async { phase.wait_for(|phase| *phase >= Phase::Closing).await.is_ok_and(|phase| *phase == Phase::Closing) } => {
                if polite {
                    // The session ends here whether or not the client can still be told.
                    let _ = socket.send_close(CLOSE_GOING_AWAY, "the shop closes").await;
                }
                return;
            }
        };
        let echoed: Result<(), WebSocketError> = match received {
            Ok(Message::Text(text)) => socket.send_text(&text).await,
            Ok(Message::Binary(bytes)) => socket.send_binary(&bytes).await,
            Ok(Message::Close(..)) | Err(_) => return,
        };
        if echoed.is_err() {
            return;
        }
    }
}

/// A number of the query, within a range, or what to tell the client.
fn query_number<B>(
    request: &Request<B>,
    name: &str,
    default: u64,
    range: std::ops::RangeInclusive<u64>,
) -> Result<u64, String> {
    let query = request.uri().query().unwrap_or_default();
    let Some(found) = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')) else {
        return Ok(default);
    };
    match found.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!(
            "{name}: expected a number from {} to {}, found {found:?}\n",
            range.start(),
            range.end()
        )),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    typed(status, TEXT, body)
}

fn typed(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
