//! WebSocket framing (RFC 6455), both roles, without extensions.
//!
//! A [`WebSocket`] stands on a stream whose opening handshake is done. It puts fragments together, answers pings by
//! itself, and refuses what the standard forbids: a peer with the wrong masking, reserved bits, oversized or fragmented
//! control frames, text that is not UTF-8, messages over [`MESSAGE_LIMIT_BYTES`].

mod handshake;

pub use handshake::{accept_key, base64};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The longest message that is received; a longer one ends the session with code 1009.
pub const MESSAGE_LIMIT_BYTES: usize = 1 << 20;

/// A close code: the session has done its work.
pub const CLOSE_NORMAL: u16 = 1000;
/// A close code: this end is shutting down.
pub const CLOSE_GOING_AWAY: u16 = 1001;

/// Which end of the connection this is; a client masks what it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Accepted the connection.
    Server,
    /// Opened the connection.
    Client,
}

/// One whole message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// UTF-8 text.
    Text(String),
    /// Bytes.
    Binary(Bytes),
    /// The peer asks to close, with its code (1005: it gave none) and reason. It was answered already.
    Close(u16, String),
}

/// Why a session ended otherwise than by a close frame.
#[derive(Debug, thiserror::Error)]
pub enum WebSocketError {
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// The stream ended without a close frame: the session was cut.
    #[error("the connection ended without a close frame")]
    Cut,
    /// The peer broke the protocol.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
}

impl WebSocketError {
    fn close_code(&self) -> u16 {
        match self {
            Self::Protocol(TOO_LONG) => 1009,
            Self::Protocol(NOT_UTF8) => 1007,
            _ => 1002,
        }
    }
}

const TOO_LONG: &str = "the message is longer than 1 MiB";
const NOT_UTF8: &str = "the text is not UTF-8";

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

struct Frame {
    last: bool,
    opcode: u8,
    payload: Bytes,
}

/// A session on a stream.
#[derive(Debug)]
pub struct WebSocket<S> {
    stream: S,
    role: Role,
    read: BytesMut,
    /// Opcode and bytes of the fragmented message in progress.
    partial: Option<(u8, BytesMut)>,
    mask_state: u64,
    /// After its own close frame an end may send nothing more.
    close_sent: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// A session on `stream`. `mask_seed` starts a client's masking keys; they keep proxies from being confused by
    /// payloads and are no secret, so any number that differs between sessions will do.
    pub fn new(stream: S, role: Role, mask_seed: u64) -> Self {
        Self {
            stream,
            role,
            read: BytesMut::with_capacity(4096),
            partial: None,
            mask_state: mask_seed,
            close_sent: false,
        }
    }

    /// Sends one text message.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn send_text(&mut self, text: &str) -> Result<(), WebSocketError> {
        self.send(TEXT, text.as_bytes()).await
    }

    /// Sends one binary message.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn send_binary(&mut self, bytes: &[u8]) -> Result<(), WebSocketError> {
        self.send(BINARY, bytes).await
    }

    /// Sends a close frame. The peer answers it with its own, which [`WebSocket::receive`] then returns.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn send_close(&mut self, code: u16, reason: &str) -> Result<(), WebSocketError> {
        self.close_sent = true;
        let mut payload = code.to_be_bytes().to_vec();
        let mut end = reason.len().min(123);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        payload.extend_from_slice(&reason.as_bytes()[..end]);
        self.send(CLOSE, &payload).await
    }

    /// The next whole message. A wait is safe to abandon between messages; when the peer breaks the protocol it is
    /// told so with a close frame before the error is returned.
    ///
    /// # Errors
    /// [`WebSocketError::Cut`] when the stream ends without a close frame; else what the peer or the connection did.
    pub async fn receive(&mut self) -> Result<Message, WebSocketError> {
        match self.receive_inner().await {
            Err(error @ WebSocketError::Protocol(reason)) => {
                // The session is lost already; that the peer can't be told changes nothing.
                let _ = self.send_close(error.close_code(), reason).await;
                Err(error)
            }
            other => other,
        }
    }

    async fn receive_inner(&mut self) -> Result<Message, WebSocketError> {
        loop {
            let frame = loop {
                if let Some(frame) = take_frame(&mut self.read, self.role)? {
                    break frame;
                }
                if self.stream.read_buf(&mut self.read).await? == 0 {
                    return Err(WebSocketError::Cut);
                }
            };
            match frame.opcode {
                PING => self.send(PONG, &frame.payload).await?,
                PONG => {}
                CLOSE => {
                    let (code, reason) = read_close(&frame.payload)?;
                    if !self.close_sent {
                        self.close_sent = true;
                        // The peer may be gone already after its close frame: that is no error of the session.
                        let _ = self.send(CLOSE, &frame.payload).await;
                    }
                    return Ok(Message::Close(code, reason));
                }
                _ => {
                    if let Some(message) = self.add_fragment(frame)? {
                        return Ok(message);
                    }
                }
            }
        }
    }

    fn add_fragment(&mut self, frame: Frame) -> Result<Option<Message>, WebSocketError> {
        let (opcode, payload) = match (frame.opcode, self.partial.take()) {
            (CONTINUATION, None) => return Err(WebSocketError::Protocol("a continuation of no message")),
            (CONTINUATION, Some((opcode, mut bytes))) => {
                if bytes.len() + frame.payload.len() > MESSAGE_LIMIT_BYTES {
                    return Err(WebSocketError::Protocol(TOO_LONG));
                }
                bytes.extend_from_slice(&frame.payload);
                (opcode, bytes)
            }
            (_, Some(_)) => return Err(WebSocketError::Protocol("a new message within a fragmented one")),
            (opcode @ (TEXT | BINARY), None) => (opcode, BytesMut::from(&frame.payload[..])),
            _ => return Err(WebSocketError::Protocol("a reserved opcode")),
        };
        if !frame.last {
            self.partial = Some((opcode, payload));
            return Ok(None);
        }
        if opcode == BINARY {
            return Ok(Some(Message::Binary(payload.freeze())));
        }
        match String::from_utf8(payload.to_vec()) {
            Ok(text) => Ok(Some(Message::Text(text))),
            Err(_) => Err(WebSocketError::Protocol(NOT_UTF8)),
        }
    }

    async fn send(&mut self, opcode: u8, payload: &[u8]) -> Result<(), WebSocketError> {
        let mask = (self.role == Role::Client).then(|| {
            self.mask_state = self.mask_state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.mask_state >> 32) as u32
        });
        let frame = encode_frame(opcode, payload, mask.map(u32::to_be_bytes));
        self.stream.write_all(&frame).await?;
        self.stream.flush().await?;
        Ok(())
    }
}

fn encode_frame(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> BytesMut {
    let mut frame = BytesMut::with_capacity(payload.len() + 14);
    frame.put_u8(0x80 | opcode);
    let mask_bit = if mask.is_some() { 0x80 } else { 0 };
    match payload.len() {
        short @ 0..126 => frame.put_u8(mask_bit | short as u8),
        medium @ 126..65_536 => {
            frame.put_u8(mask_bit | 126);
            frame.put_u16(medium as u16);
        }
        long => {
            frame.put_u8(mask_bit | 127);
            frame.put_u64(long as u64);
        }
    }
    match mask {
        None => frame.extend_from_slice(payload),
        Some(mask) => {
            frame.extend_from_slice(&mask);
            frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        }
    }
    frame
}

/// Takes one frame off the buffer if a whole one is there. `role` is the receiver's.
fn take_frame(buffer: &mut BytesMut, role: Role) -> Result<Option<Frame>, WebSocketError> {
    let [first, second, rest @ ..] = &buffer[..] else { return Ok(None) };
    let (last, opcode) = (first & 0x80 != 0, first & 0x0F);
    if first & 0x70 != 0 {
        return Err(WebSocketError::Protocol("a reserved bit is set"));
    }
    let masked = second & 0x80 != 0;
    if masked != (role == Role::Server) {
        return Err(WebSocketError::Protocol("a client must mask its frames, a server must not"));
    }
    if opcode >= CLOSE && (!last || second & 0x7F > 125) {
        return Err(WebSocketError::Protocol("a control frame is fragmented or longer than 125 bytes"));
    }
    let (length, length_bytes) = match (second & 0x7F, rest) {
        (126, [a, b, ..]) => (u64::from(u16::from_be_bytes([*a, *b])), 2),
        (127, [a, b, c, d, e, f, g, h, ..]) => (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), 8),
        (126 | 127, _) => return Ok(None),
        (short, _) => (u64::from(short), 0),
    };
    // Judged before the payload is waited for, so a hostile length can't make the buffer grow.
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > MESSAGE_LIMIT_BYTES {
        return Err(WebSocketError::Protocol(TOO_LONG));
    }
    let head = 2 + length_bytes + if masked { 4 } else { 0 };
    if buffer.len() < head + length {
        buffer.reserve(head + length - buffer.len());
        return Ok(None);
    }
    let mask: [u8; 4] = match buffer[2 + length_bytes..head] {
        [a, b, c, d] => [a, b, c, d],
        _ => [0; 4],
    };
    buffer.advance(head);
    let mut payload = buffer.split_to(length);
    for (byte, key) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
    Ok(Some(Frame { last, opcode, payload: payload.freeze() }))
}

fn read_close(payload: &[u8]) -> Result<(u16, String), WebSocketError> {
    match payload {
        [] => Ok((1005, String::new())),
        [_] => Err(WebSocketError::Protocol("a close frame of one byte")),
        [high, low, reason @ ..] => match std::str::from_utf8(reason) {
            Ok(reason) => Ok((u16::from_be_bytes([*high, *low]), reason.to_owned())),
            Err(_) => Err(WebSocketError::Protocol(NOT_UTF8)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, duplex};

    /// Sends raw bytes to a server, ends the stream, and says what the server made of them and answered.
    async fn server_receives(bytes: &[u8]) -> (Result<Message, String>, Vec<u8>) {
        let (mut peer, stream) = duplex(4 << 20);
        peer.write_all(bytes).await.unwrap();
        peer.shutdown().await.unwrap();
        let mut socket = WebSocket::new(stream, Role::Server, 0);
        let message = socket.receive().await.map_err(|error| error.to_string());
        drop(socket);
        let mut answer = Vec::new();
        peer.read_to_end(&mut answer).await.unwrap();
        (message, answer)
    }

    const HELLO_MASKED: [u8; 11] = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];

    #[tokio::test]
    async fn the_standards_own_frames() {
        // RFC 6455, section 5.7.
        assert_eq!(encode_frame(TEXT, b"Hello", Some([0x37, 0xfa, 0x21, 0x3d])), &HELLO_MASKED[..]);
        assert_eq!(encode_frame(TEXT, b"Hello", None), &b"\x81\x05Hello"[..]);
        assert_eq!(server_receives(&HELLO_MASKED).await, (Ok(Message::Text("Hello".into())), vec![]));
    }

    #[tokio::test]
    async fn puts_fragments_together_and_answers_a_ping_between_them() {
        let bytes = [
            &[0x01, 0x83, 0, 0, 0, 0][..],
            b"Hel",
            &[0x89, 0x82, 0, 0, 0, 0],
            b"hi",
            &[0x80, 0x82, 0, 0, 0, 0],
            b"lo",
        ]
        .concat();
        assert_eq!(
            server_receives(&bytes).await,
            (Ok(Message::Text("Hello".into())), b"\x8A\x02hi".to_vec())
        );
    }

    #[tokio::test]
    async fn refuses_what_the_standard_forbids() {
        let cases: [(&[u8], &str, u16); 8] = [
            (b"\x81\x05Hello", "protocol error: a client must mask its frames, a server must not", 1002),
            (&[0xC1, 0x80, 0, 0, 0, 0], "protocol error: a reserved bit is set", 1002),
            (&[0x83, 0x80, 0, 0, 0, 0], "protocol error: a reserved opcode", 1002),
            (&[0x80, 0x80, 0, 0, 0, 0], "protocol error: a continuation of no message", 1002),
            (
                &[0x09, 0x80, 0, 0, 0, 0],
                "protocol error: a control frame is fragmented or longer than 125 bytes",
                1002,
            ),
            (&[0x81, 0x81, 0, 0, 0, 0, 0xFF], "protocol error: the text is not UTF-8", 1007),
            (
                &[0x82, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 0],
                "protocol error: the message is longer than 1 MiB",
                1009,
            ),
            (&[0x88, 0x81, 0, 0, 0, 0, 3], "protocol error: a close frame of one byte", 1002),
        ];
        for (bytes, error, code) in cases {
            let (message, answer) = server_receives(bytes).await;
            assert_eq!(message, Err(error.to_owned()));
            assert_eq!(answer[0], 0x88, "no close frame after {error}");
            assert_eq!(u16::from_be_bytes([answer[2], answer[3]]), code, "{error}");
        }
    }

    #[tokio::test]
    async fn a_cut_is_told_from_a_close() {
        assert_eq!(
            server_receives(&HELLO_MASKED[..7]).await.0,
            Err("the connection ended without a close frame".to_owned())
        );
        let (message, answer) = server_receives(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xE8]).await;
        assert_eq!(message, Ok(Message::Close(CLOSE_NORMAL, String::new())));
        assert_eq!(answer, [0x88, 0x02, 0x03, 0xE8]);
    }

    #[tokio::test]
    async fn both_roles_understand_each_other_at_every_length_class() {
        let (a, b): (DuplexStream, DuplexStream) = duplex(256 * 1024);
        let (mut client, mut server) =
            (WebSocket::new(a, Role::Client, 7), WebSocket::new(b, Role::Server, 0));
        for length in [0, 1, 125, 126, 65_535, 65_536, 200_000] {
            let bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            client.send_binary(&bytes).await.unwrap();
            let Message::Binary(received) = server.receive().await.unwrap() else { panic!("not binary") };
            assert_eq!(received, bytes);
            server.send_binary(&received).await.unwrap();
            assert_eq!(client.receive().await.unwrap(), Message::Binary(bytes.into()));
        }
        client.send_close(CLOSE_GOING_AWAY, "bye").await.unwrap();
        assert_eq!(server.receive().await.unwrap(), Message::Close(CLOSE_GOING_AWAY, "bye".into()));
        assert_eq!(client.receive().await.unwrap(), Message::Close(CLOSE_GOING_AWAY, "bye".into()));
    }
}
