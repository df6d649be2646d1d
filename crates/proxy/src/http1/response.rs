//! A member's answer: its head parsed, judged, and written anew for the client.

use httparse::{Header, ParserConfig, Response, Status};

use super::body::Framing;
use super::chunked::Scanner;
use super::request::{HeaderRoom, RequestInfo};
use super::{ConnectionOptions, content_length, is_hop_by_hop, named_by_connection, push_header};

/// Name of the header that says which release answered.
pub(crate) const RELEASE_HEADER: &str = "x-cdpipe-release";
/// Name of the header that says why the proxy answered by itself.
pub(crate) const ERROR_HEADER: &str = "x-cdpipe-proxy-error";

/// The answer is not one this proxy can pass on. The text says what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadResponse(pub(crate) &'static str);

/// A parsed answer's head, borrowed from the read buffer.
pub(crate) struct ResponseHead<'h, 'b> {
    minor: u8,
    pub(crate) status: u16,
    reason: &'b str,
    headers: &'h [Header<'b>],
    /// Bytes of the head, the empty line included.
    pub(crate) len: usize,
}

/// What the rest of the exchange has to know about an answer.
#[derive(Clone, Debug)]
pub(crate) struct ResponseInfo {
    pub(crate) framing: Framing,
    /// The member lets its connection live.
    pub(crate) keep_alive: bool,
    /// `Keep-Alive: timeout=`, in milliseconds.
    pub(crate) keep_alive_ms: Option<u64>,
    options: ConnectionOptions,
    has_chunked: bool,
}

/// What the proxy adds to an answer.
pub(crate) struct Additions<'a> {
    pub(crate) release: Option<&'a str>,
    pub(crate) set_cookie: Option<&'a str>,
    /// The client's connection ends with this answer.
    pub(crate) close: bool,
}

/// Parses a head. None means the head is not complete yet.
pub(crate) fn parse<'h, 'b>(
    bytes: &'b [u8],
    room: &'h mut HeaderRoom<'b>,
) -> Result<Option<ResponseHead<'h, 'b>>, BadResponse> {
    let mut response = Response::new(&mut []);
    let len = match ParserConfig::default().parse_response_with_uninit_headers(&mut response, bytes, room) {
        Ok(Status::Complete(len)) => len,
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(BadResponse("too many headers")),
        Err(_) => return Err(BadResponse("no HTTP/1 answer")),
    };
    match (response.version, response.code) {
        (Some(minor), Some(status)) if (100..=999).contains(&status) => Ok(Some(ResponseHead {
            minor,
            status,
            reason: response.reason.unwrap_or(""),
            headers: response.headers,
            len,
        })),
        _ => Err(BadResponse("no HTTP/1 answer")),
    }
}

impl ResponseHead<'_, '_> {
    /// Judges the head: where the body ends and whether the member's connection can be used again.
    pub(crate) fn info(&self, request: &RequestInfo) -> Result<ResponseInfo, BadResponse> {
        let mut options = ConnectionOptions::default();
        let mut length: Option<u64> = None;
        let mut chunked = false;
        let mut keep_alive_ms = None;
        for header in self.headers {
            match header.name.len() {
                10 if header.name.eq_ignore_ascii_case("connection") => options.add(header.value),
                10 if header.name.eq_ignore_ascii_case("keep-alive") => {
                    keep_alive_ms = keep_alive_timeout_ms(header.value)
                }
                14 if header.name.eq_ignore_ascii_case("content-length") => {
                    let value = content_length(header.value)
                        .ok_or(BadResponse("a Content-Length that is no number"))?;
                    if length.replace(value).is_some_and(|before| before != value) {
                        return Err(BadResponse("two Content-Lengths that differ"));
                    }
                }
                17 if header.name.eq_ignore_ascii_case("transfer-encoding") => {
                    if chunked || !header.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                        return Err(BadResponse("a Transfer-Encoding other than chunked"));
                    }
                    chunked = true;
                }
                _ => {}
            }
        }
        let bodiless = request.is_head || matches!(self.status, 100..=199 | 204 | 304);
        if chunked && !bodiless && (length.is_some() || self.minor == 0) {
            return Err(BadResponse("Transfer-Encoding beside Content-Length or in HTTP/1.0"));
        }
        let framing = match length {
            _ if bodiless => Framing::NONE,
            _ if chunked && request.http10 => Framing::Unchunk(Scanner::new()),
            _ if chunked => Framing::Chunked(Scanner::new()),
            Some(length) => Framing::Length(length),
            None => Framing::Close,
        };
        let keep_alive = !options.close
            && (self.minor == 1 || options.keep_alive)
            && !matches!(framing, Framing::Close)
            // After a refused or made upgrade the member may think of the connection as it likes.
            && self.status != 101;
        Ok(ResponseInfo { framing, keep_alive, keep_alive_ms, options, has_chunked: chunked })
    }

    /// Writes the head as the client gets it.
    pub(crate) fn write(
        &self,
        info: &ResponseInfo,
        request: &RequestInfo,
        out: &mut Vec<u8>,
        add: &Additions<'_>,
    ) {
        let status = self.status;
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(&[
            b'0' + (status / 100) as u8,
            b'0' + (status / 10 % 10) as u8,
            b'0' + (status % 10) as u8,
            b' ',
        ]);
        out.extend_from_slice(self.reason.as_bytes());
        out.extend_from_slice(b"\r\n");
        let switching = status == 101;
        for header in self.headers {
            let name = header.name;
            if switching && name.eq_ignore_ascii_case("upgrade") {
                push_header(out, name, header.value);
                continue;
            }
            if is_hop_by_hop(name)
                || (add.release.is_some()
                    && name.len() == RELEASE_HEADER.len()
                    && name.eq_ignore_ascii_case(RELEASE_HEADER))
                || (info.options.names_headers && named_by_connection(self.headers, name))
            {
                continue;
            }
            push_header(out, name, header.value);
        }
        if let Some(release) = add.release {
            push_header(out, RELEASE_HEADER, release.as_bytes());
        }
        if let Some(cookie) = add.set_cookie {
            push_header(out, "set-cookie", cookie.as_bytes());
        }
        if info.has_chunked && !request.http10 && status >= 200 && status != 204 {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        if switching {
            out.extend_from_slice(b"connection: upgrade\r\n");
        } else if status >= 200 {
            if add.close {
                out.extend_from_slice(b"connection: close\r\n");
            } else if request.http10 {
                out.extend_from_slice(b"connection: keep-alive\r\n");
            }
        }
        out.extend_from_slice(b"\r\n");
    }
}

fn keep_alive_timeout_ms(value: &[u8]) -> Option<u64> {
    super::list(value).find_map(|part| {
        let seconds = part.strip_prefix(b"timeout=")?;
        content_length(seconds)?.checked_mul(1_000)
    })
}

#[cfg(test)]
mod tests {
    use super::super::request;
    use super::*;

    fn request_info(text: &str) -> RequestInfo {
        let mut room = request::header_room();
        request::parse(text.as_bytes(), &mut room).expect("good").expect("complete").info("m").expect("good")
    }

    fn read(request: &str, answer: &str) -> Result<(ResponseInfo, String), BadResponse> {
        let request = request_info(request);
        let mut room = request::header_room();
        let head = parse(answer.as_bytes(), &mut room)?.expect("complete");
        let info = head.info(&request)?;
        let mut out = Vec::new();
        head.write(
            &info,
            &request,
            &mut out,
            &Additions { release: Some("r2"), set_cookie: Some("a=b"), close: false },
        );
        Ok((info, String::from_utf8(out).expect("text")))
    }

    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    #[test]
    fn an_answer_is_passed_on_with_its_release() {
        let (info, out) = read(
            GET,
            "HTTP/1.1 200 Fine\r\nServer: x\r\nKeep-Alive: timeout=5, max=10\r\nX-Cdpipe-Release: lie\r\nContent-Length: 3\r\n\r\n",
        )
        .expect("good");
        assert!(info.keep_alive);
        assert_eq!(info.keep_alive_ms, Some(5_000));
        assert_eq!(
            out,
            "HTTP/1.1 200 Fine\r\nServer: x\r\nContent-Length: 3\r\nx-cdpipe-release: r2\r\nset-cookie: a=b\r\n\r\n"
        );
    }

    #[test]
    fn the_body_ends_where_rfc_9112_says() {
        let framing = |request: &str, answer: &str| read(request, answer).map(|(info, _)| info.framing);
        let head = "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert!(matches!(
            framing(GET, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"),
            Ok(Framing::Length(3))
        ));
        assert!(matches!(
            framing(head, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"),
            Ok(Framing::Length(0))
        ));
        assert!(matches!(
            framing(GET, "HTTP/1.1 304 Not\r\nContent-Length: 3\r\n\r\n"),
            Ok(Framing::Length(0))
        ));
        assert!(matches!(framing(GET, "HTTP/1.1 200 OK\r\n\r\n"), Ok(Framing::Close)));
        assert!(matches!(
            framing(GET, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            Ok(Framing::Chunked(_))
        ));
        assert!(matches!(
            framing("GET / HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            Ok(Framing::Unchunk(_))
        ));
        for bad in [
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "SSH-2.0-x\r\n\r\n",
        ] {
            assert!(framing(GET, bad).is_err(), "{bad:?}");
        }
    }
}
