//! One request: sent once, and its answer judged to the last byte.

use super::connections::{Connection, Connections, describe};
use super::kinds::payload;
use super::{Clock, Failure, FailureKind, Kind, Load, Record, socket};
use bytes::{Bytes, BytesMut};
use cdpipe_demo::{RELEASE_HEADER, REQUEST_ID_HEADER, VERSION_HEADER};
use http::header::{CONNECTION, HOST, HeaderMap};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use std::sync::Arc;

/// The longest answer that is read.
const ANSWER_LIMIT_BYTES: usize = 32 << 20;

/// Sends the request of this record and fills the record in. It ends within the load's patience and the kind's own
/// length, whatever the target does.
pub(super) async fn attempt(
    load: Arc<Load>,
    clock: Clock,
    connections: Arc<Connections>,
    record: Record,
) -> Record {
    let mut record = record;
    record.start = clock.now();
    let limit = load.patience + record.kind.natural_length();
    let done = async {
        match record.kind {
            Kind::Socket { .. } => socket::session(&load, clock, &connections, &mut record).await,
            _ => exchange(&load, clock, &connections, &mut record).await,
        }
    };
    let outcome = match tokio::time::timeout(limit, done).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let had = if record.answered.is_some() { "the answer had begun" } else { "no answer had begun" };
            fail(FailureKind::TimedOut, format!("not over within {} ms; {had}", limit.as_millis()))
        }
    };
    record.failure = outcome.err();
    record.end = clock.now();
    record
}

/// What a request comes to; a failure ends it.
pub(super) type Outcome<T = ()> = Result<T, Failure>;

pub(super) fn fail<T>(kind: FailureKind, detail: impl Into<String>) -> Outcome<T> {
    Err(Failure { kind, detail: detail.into() })
}

/// A request's own name, which its answer must repeat.
pub(super) fn request_id(load: &Load, record: &Record) -> String {
    format!("{:x}-{}", load.seed, record.index)
}

async fn exchange(load: &Load, clock: Clock, connections: &Connections, record: &mut Record) -> Outcome {
    let (method, path, body) = match record.kind {
        Kind::Slow { ms } => ("GET", format!("/slow?ms={ms}"), Vec::new()),
        Kind::Echo { bytes } => ("POST", "/echo".to_owned(), payload(load.seed, record.index, bytes)),
        Kind::Stream { events, every_ms } => {
            ("GET", format!("/stream?events={events}&every_ms={every_ms}"), Vec::new())
        }
        Kind::Short | Kind::Fresh | Kind::Socket { .. } => ("GET", "/".to_owned(), Vec::new()),
    };
    let body = Bytes::from(body);
    let fresh = record.kind == Kind::Fresh;
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, load.host())
        .header(REQUEST_ID_HEADER, request_id(load, record));
    if fresh {
        request = request.header(CONNECTION, "close");
    }
    let request = match request.body(Full::new(body.clone())) {
        Ok(request) => request,
        Err(error) => return fail(FailureKind::Connect, format!("the request cannot be made: {error}")),
    };
    let mut connection = match connections.take_idle().await.filter(|_| !fresh) {
        Some(connection) => {
            record.kept_alive = true;
            connection
        }
        None => open(connections).await?,
    };
    record.sent_bytes = body.len() as u64;
    let (head, arriving) = send(clock, &mut connection, request, record).await?.into_parts();
    let answer = read_whole(arriving, record).await?;
    if !fresh {
        connections.keep(connection);
    }
    if head.status != StatusCode::OK {
        let said = String::from_utf8_lossy(&answer[..answer.len().min(120)]).trim_end().to_owned();
        return fail(FailureKind::Status, format!("expected 200, found {}: {said}", head.status.as_u16()));
    }
    check_request_id(load, record, &head.headers)?;
    if record.release.is_none() {
        record.release = release_in_page(&answer);
    }
    let expected = match record.kind {
        Kind::Echo { .. } => body,
        kind => expected_answer(kind, record, &answer)?,
    };
    compare(&expected, &answer)?;
    record.verified_bytes = answer.len() as u64;
    let took = clock.now().saturating_sub(record.start);
    if took < record.kind.natural_length() && matches!(record.kind, Kind::Slow { .. }) {
        return fail(FailureKind::Early, format!("answered after {} ms already", took.as_millis()));
    }
    Ok(())
}

pub(super) async fn open(connections: &Connections) -> Outcome<Connection> {
    match connections.open().await {
        Ok(connection) => Ok(connection),
        Err(detail) => fail(FailureKind::Connect, detail),
    }
}

/// Sends the request and notes the answer's head.
pub(super) async fn send(
    clock: Clock,
    connection: &mut Connection,
    request: Request<Full<Bytes>>,
    record: &mut Record,
) -> Outcome<Response<Incoming>> {
    match connection.send_request(request).await {
        Ok(response) => {
            record.answered = Some(clock.now());
            record.status = Some(response.status().as_u16());
            record.release = header(response.headers(), RELEASE_HEADER).map(str::to_owned);
            record.version = header(response.headers(), VERSION_HEADER).map(str::to_owned);
            Ok(response)
        }
        Err(error) => {
            let connection = if record.kept_alive { "kept-alive" } else { "new" };
            fail(FailureKind::Dropped, format!("on a {connection} connection: {}", describe(&error)))
        }
    }
}

async fn read_whole(mut body: Incoming, record: &Record) -> Outcome<Bytes> {
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    read.extend_from_slice(&data);
                }
            }
            Err(error) => {
                let so_far = match record.kind {
                    Kind::Stream { events, .. } => format!("{} of {events} events", events_in(&read)),
                    _ => format!("{} bytes", read.len()),
                };
                return fail(FailureKind::Cut, format!("after {so_far}: {}", describe(&error)));
            }
        }
        if read.len() > ANSWER_LIMIT_BYTES {
            return fail(
                FailureKind::Corrupt,
                format!("the answer is longer than {ANSWER_LIMIT_BYTES} bytes"),
            );
        }
    }
    Ok(read.freeze())
}

fn events_in(body: &[u8]) -> usize {
    String::from_utf8_lossy(body).split("\n\n").filter(|event| event.starts_with("id: ")).count()
}

pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

pub(super) fn check_request_id(load: &Load, record: &Record, headers: &HeaderMap) -> Outcome {
    let expected = request_id(load, record);
    match header(headers, REQUEST_ID_HEADER) {
        Some(found) if found == expected => Ok(()),
        Some(found) => {
            fail(FailureKind::Crossed, format!("expected the answer to {expected}, found that to {found}"))
        }
        None => fail(FailureKind::Crossed, format!("expected the answer to {expected}, found one to nobody")),
    }
}

fn release_in_page(answer: &[u8]) -> Option<String> {
    let page = std::str::from_utf8(answer).ok()?;
    Some(page.split_once("(release ")?.1.split_once(')')?.0.to_owned())
}

/// What the shop that names itself in the answer's head must have said. Head and body come from one place only if
/// they agree.
fn expected_answer(kind: Kind, record: &Record, answer: &[u8]) -> Outcome<Bytes> {
    let Some(release) = &record.release else {
        return fail(FailureKind::Corrupt, "the answer names no release");
    };
    let Some(version) = &record.version else {
        return fail(FailureKind::Corrupt, "the answer names no version");
    };
    let expected = match kind {
        Kind::Slow { ms } => format!("{version} took its time: {ms} ms.\n"),
        Kind::Stream { events, .. } => {
            let mut text = String::new();
            for n in 1..=events {
                text.push_str(&format!("id: {n}\ndata: {n} of {events} from {release}\n\n"));
            }
            text.push_str(&format!("event: end\ndata: {events}\n\n"));
            text
        }
        _ => {
            // How long the shop has been open is the only part that is its own to say.
            let start = format!("The shop, {version} (release {release}), open for ");
            let page = String::from_utf8_lossy(answer);
            let open_s: String =
                page.chars().skip(start.chars().count()).take_while(char::is_ascii_digit).collect();
            format!("{start}{open_s} s.\n")
        }
    };
    Ok(Bytes::from(expected))
}

/// Whether the bytes are those expected; else where they part.
pub(super) fn compare(expected: &[u8], found: &[u8]) -> Outcome {
    if expected == found {
        return Ok(());
    }
    let same = expected.iter().zip(found).take_while(|(a, b)| a == b).count();
    let (expected_bytes, found_bytes) = (expected.len(), found.len());
    fail(
        FailureKind::Corrupt,
        format!("expected {expected_bytes} bytes, found {found_bytes}; they differ from byte {same} on"),
    )
}
