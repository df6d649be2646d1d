//! One WebSocket session: opened, spoken over for its whole life, and closed by us.

use super::attempt::{Outcome, check_request_id, compare, fail, header, open, request_id, send};
use super::connections::Connections;
use super::kinds::payload;
use super::{Clock, FailureKind, Kind, Load, Record};
use bytes::Bytes;
use cdpipe_demo::REQUEST_ID_HEADER;
use cdpipe_demo::websocket::{CLOSE_NORMAL, Message, Role, WebSocket, WebSocketError, accept_key, base64};
use http::header::{CONNECTION, HOST, UPGRADE};
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

pub(super) async fn session(
    load: &Load,
    clock: Clock,
    connections: &Connections,
    record: &mut Record,
) -> Outcome {
    let Kind::Socket { messages, every_ms, bytes } = record.kind else { return Ok(()) };
    let key = base64(&payload(load.seed, record.index, 16));
    let request = Request::get("/ws")
        .header(HOST, load.target.to_string())
        .header(REQUEST_ID_HEADER, request_id(load, record))
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", &key)
        .body(Full::new(Bytes::new()));
    let request = match request {
        Ok(request) => request,
        Err(error) => return fail(FailureKind::Connect, format!("the request cannot be made: {error}")),
    };
    let mut connection = open(connections).await?;
    let mut response = send(clock, &mut connection, request, record).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return fail(FailureKind::Status, format!("expected 101, found {}", response.status().as_u16()));
    }
    check_request_id(load, record, response.headers())?;
    let accept = header(response.headers(), "sec-websocket-accept");
    if accept != Some(&accept_key(&key)) {
        return fail(FailureKind::Corrupt, format!("the handshake's proof is wrong: {accept:?}"));
    }
    let stream = match hyper::upgrade::on(&mut response).await {
        Ok(stream) => stream,
        Err(error) => return fail(FailureKind::Cut, format!("before the first message: {error}")),
    };
    let mut socket = WebSocket::new(TokioIo::new(stream), Role::Client, load.seed ^ record.index);
    let mut pace = tokio::time::interval(Duration::from_millis(u64::from(every_ms.max(1))));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for n in 0..messages {
        pace.tick().await;
        let message = payload(load.seed ^ u64::from(n), record.index, bytes);
        let cut = |error: WebSocketError| {
            fail(FailureKind::Cut, format!("after {n} of {messages} messages: {error}"))
        };
        if let Err(error) = socket.send_binary(&message).await {
            return cut(error);
        }
        record.sent_bytes += message.len() as u64;
        match socket.receive().await {
            Ok(Message::Binary(echo)) => compare(&message, &echo)?,
            Ok(Message::Text(text)) => {
                return fail(FailureKind::Corrupt, format!("expected bytes, found text: {text:?}"));
            }
            Ok(Message::Close(code, reason)) => {
                let detail = format!("after {n} of {messages} messages: closed with {code} {reason:?}");
                return fail(FailureKind::Cut, detail);
            }
            Err(error) => return cut(error),
        }
        record.verified_bytes += message.len() as u64;
    }
    let goodbye = async {
        socket.send_close(CLOSE_NORMAL, "done").await?;
        socket.receive().await
    };
    match goodbye.await {
        Ok(Message::Close(CLOSE_NORMAL, _)) => Ok(()),
        Ok(other) => fail(FailureKind::Corrupt, format!("expected our close back, found {other:?}")),
        Err(error) => fail(FailureKind::Cut, format!("our close was not answered: {error}")),
    }
}
