//! A request's head: parsed, judged, and written anew for the member that gets it.

use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};

use httparse::{Header, ParserConfig, Request, Status};

use super::body::Framing;
use super::chunked::Scanner;
use super::{
    ConnectionOptions, MAX_HEADERS, content_length, is_hop_by_hop, list, named_by_connection, push_header,
};

/// Room for the headers of one head, left uninitialised by the parser where nothing stands.
pub(crate) type HeaderRoom<'b> = [MaybeUninit<Header<'b>>; MAX_HEADERS];

/// An empty [`HeaderRoom`].
pub(crate) const fn header_room<'b>() -> HeaderRoom<'b> {
    [const { MaybeUninit::uninit() }; MAX_HEADERS]
}

/// Why a head can not be served. Each has its own status in [`crate::answer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reject {
    /// Not HTTP, or not unmistakably one message. The text says what was found.
    Bad(&'static str),
    /// More headers than [`MAX_HEADERS`].
    TooManyHeaders,
    /// HTTP/2 or older than 1.0.
    Version,
    /// A method or coding this proxy does not forward.
    NotImplemented(&'static str),
    /// The request has been here before.
    Loop,
}

/// A parsed request head, borrowed from the read buffer.
pub(crate) struct RequestHead<'h, 'b> {
    pub(crate) method: &'b str,
    /// The target as it came.
    target: &'b str,
    /// HTTP/1.`minor`.
    minor: u8,
    pub(crate) headers: &'h [Header<'b>],
    /// Bytes of the head, the empty line included.
    pub(crate) len: usize,
}

/// What the rest of the exchange has to know about a request.
#[derive(Clone, Debug)]
pub(crate) struct RequestInfo {
    pub(crate) framing: Framing,
    /// The client lets the connection live.
    pub(crate) keep_alive: bool,
    /// The client speaks HTTP/1.0: no chunks, no interim answers.
    pub(crate) http10: bool,
    /// The client asks to change the protocol.
    pub(crate) upgrade: bool,
    /// May be sent twice (RFC 9110 9.2.2).
    pub(crate) idempotent: bool,
    pub(crate) is_head: bool,
    te_trailers: bool,
    options: ConnectionOptions,
}

/// What routing looks at.
pub(crate) struct Facts<'a> {
    /// The host the request names, without port; empty if it names none.
    pub(crate) host: &'a str,
    pub(crate) path: &'a str,
    pub(crate) headers: &'a [Header<'a>],
    pub(crate) client: IpAddr,
}

/// Parses a head. None means the head is not complete yet.
pub(crate) fn parse<'h, 'b>(
    bytes: &'b [u8],
    room: &'h mut HeaderRoom<'b>,
) -> Result<Option<RequestHead<'h, 'b>>, Reject> {
    let mut request = Request::new(&mut []);
    let len = match ParserConfig::default().parse_request_with_uninit_headers(&mut request, bytes, room) {
        Ok(Status::Complete(len)) => len,
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Reject::TooManyHeaders),
        Err(httparse::Error::Version) => return Err(Reject::Version),
        Err(httparse::Error::HeaderName) => {
            return Err(Reject::Bad("a header name with a character that is not allowed"));
        }
        Err(httparse::Error::HeaderValue) => {
            return Err(Reject::Bad("a header value with a character that is not allowed"));
        }
        Err(httparse::Error::NewLine) => return Err(Reject::Bad("a line that does not end in CRLF")),
        Err(_) => return Err(Reject::Bad("no HTTP/1 request line")),
    };
    match (request.method, request.path, request.version) {
        (Some(method), Some(target), Some(minor)) => {
            Ok(Some(RequestHead { method, target, minor, headers: request.headers, len }))
        }
        _ => Err(Reject::Bad("no HTTP/1 request line")),
    }
}

impl<'b> RequestHead<'_, 'b> {
    /// The authority and the path of an absolute-form target, or the target alone.
    fn split_target(&self) -> (Option<&'b str>, &'b str) {
        let scheme = self.target.get(..7).filter(|s| s.eq_ignore_ascii_case("http://"));
        if scheme.is_none() {
            return (None, self.target);
        }
        let rest = &self.target[7..];
        match rest.find(['/', '?']) {
            // `http://host?query`: no path to pass on; what is left does not start with `/` and is refused.
            Some(at) => (Some(&rest[..at]), &rest[at..]),
            None => (Some(rest), "/"),
        }
    }

    fn authority(&self) -> &'b str {
        self.split_target().0.unwrap_or_else(|| {
            self.headers
                .iter()
                .find(|h| h.name.eq_ignore_ascii_case("host"))
                .and_then(|h| std::str::from_utf8(h.value).ok())
                .unwrap_or("")
        })
    }

    pub(crate) fn facts(&self, client: IpAddr) -> Facts<'_> {
        let (_, path) = self.split_target();
        Facts { host: without_port(self.authority()), path, headers: self.headers, client }
    }

    /// Judges the head: where the body ends, whether the connection lives, what is refused.
    pub(crate) fn info(&self, loop_mark: &str) -> Result<RequestInfo, Reject> {
        let mut options = ConnectionOptions::default();
        let mut length: Option<u64> = None;
        let mut chunked = false;
        let mut hosts = 0;
        let mut has_upgrade = false;
        let mut te_trailers = false;
        for header in self.headers {
            match header.name.len() {
                10 if header.name.eq_ignore_ascii_case("connection") => options.add(header.value),
                14 if header.name.eq_ignore_ascii_case("content-length") => {
                    let value = content_length(header.value)
                        .ok_or(Reject::Bad("a Content-Length that is no number"))?;
                    if length.replace(value).is_some_and(|before| before != value) {
                        return Err(Reject::Bad("two Content-Lengths that differ"));
                    }
                }
                17 if header.name.eq_ignore_ascii_case("transfer-encoding") => {
                    if chunked {
                        return Err(Reject::Bad("two Transfer-Encodings"));
                    }
                    if !header.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                        return Err(Reject::NotImplemented("a Transfer-Encoding other than chunked"));
                    }
                    chunked = true;
                }
                4 if header.name.eq_ignore_ascii_case("host") => {
                    hosts += 1;
                    if !is_authority(header.value) {
                        return Err(Reject::Bad("a Host that is no host"));
                    }
                }
                7 if header.name.eq_ignore_ascii_case("upgrade") => {
                    // An upgrade to HTTP/2 would carry later requests past the routing table.
                    has_upgrade = !list(header.value).any(|p| p.eq_ignore_ascii_case(b"h2c"));
                }
                2 if header.name.eq_ignore_ascii_case("te") => {
                    te_trailers |= list(header.value).any(|t| t.eq_ignore_ascii_case(b"trailers"));
                }
                3 if header.name.eq_ignore_ascii_case("via")
                    && memchr::memmem::find(header.value, loop_mark.as_bytes()).is_some() =>
                {
                    return Err(Reject::Loop);
                }
                _ => {}
            }
        }
        let http10 = self.minor == 0;
        if hosts > 1 || (hosts == 0 && !http10) {
            return Err(Reject::Bad(if hosts > 1 { "two Host headers" } else { "no Host header" }));
        }
        if chunked && (length.is_some() || http10) {
            return Err(Reject::Bad("Transfer-Encoding beside Content-Length or in HTTP/1.0"));
        }
        let (authority, path) = self.split_target();
        if authority.is_some_and(|a| a.is_empty() || !is_authority(a.as_bytes())) {
            return Err(Reject::Bad("a target with no host"));
        }
        if self.method == "CONNECT" {
            return Err(Reject::NotImplemented("the method CONNECT"));
        }
        let asterisk = path == "*" && self.method == "OPTIONS";
        if !asterisk && !path.starts_with('/') {
            return Err(Reject::Bad("a target that is no path"));
        }
        let framing = match length {
            _ if chunked => Framing::Chunked(Scanner::new()),
            Some(length) => Framing::Length(length),
            None => Framing::NONE,
        };
        Ok(RequestInfo {
            framing,
            keep_alive: if http10 { options.keep_alive && !options.close } else { !options.close },
            http10,
            upgrade: has_upgrade && options.upgrade && !http10,
            idempotent: matches!(self.method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"),
            is_head: self.method == "HEAD",
            te_trailers,
            options,
        })
    }

    /// Writes the head as the member gets it.
    pub(crate) fn write(
        &self,
        info: &RequestInfo,
        out: &mut Vec<u8>,
        client: &str,
        listen: SocketAddr,
        mark: &str,
    ) {
        let (authority, path) = self.split_target();
        out.extend_from_slice(self.method.as_bytes());
        out.push(b' ');
        out.extend_from_slice(path.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        let mut has_proto = false;
        let mut has_forwarded_host = false;
        let mut has_host = false;
        for header in self.headers {
            let name = header.name;
            match name.len() {
                4 if name.eq_ignore_ascii_case("host") => {
                    has_host = true;
                    if let Some(authority) = authority {
                        push_header(out, "Host", authority.as_bytes());
                        continue;
                    }
                }
                6 if info.http10 && name.eq_ignore_ascii_case("expect") => continue,
                15 if name.eq_ignore_ascii_case("x-forwarded-for") => continue,
                16 if name.eq_ignore_ascii_case("x-forwarded-host") => has_forwarded_host = true,
                17 if name.eq_ignore_ascii_case("x-forwarded-proto") => has_proto = true,
                _ => {}
            }
            if is_hop_by_hop(name) || (info.options.names_headers && named_by_connection(self.headers, name))
            {
                continue;
            }
            push_header(out, name, header.value);
        }
        if !has_host {
            match authority {
                Some(authority) => push_header(out, "Host", authority.as_bytes()),
                None => push_header(out, "Host", listen.to_string().as_bytes()),
            }
        }
        out.extend_from_slice(b"X-Forwarded-For: ");
        for header in self.headers.iter().filter(|h| h.name.eq_ignore_ascii_case("x-forwarded-for")) {
            out.extend_from_slice(header.value);
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(client.as_bytes());
        out.extend_from_slice(b"\r\n");
        if !has_proto {
            out.extend_from_slice(b"X-Forwarded-Proto: http\r\n");
        }
        if !has_forwarded_host && !self.authority().is_empty() {
            push_header(out, "X-Forwarded-Host", self.authority().as_bytes());
        }
        out.extend_from_slice(b"Via: 1.1 ");
        out.extend_from_slice(mark.as_bytes());
        out.extend_from_slice(b"\r\n");
        if matches!(info.framing, Framing::Chunked(_)) {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        if info.upgrade {
            for header in self.headers.iter().filter(|h| h.name.eq_ignore_ascii_case("upgrade")) {
                push_header(out, "Upgrade", header.value);
            }
            out.extend_from_slice(b"Connection: upgrade\r\n");
        } else if info.te_trailers {
            out.extend_from_slice(b"TE: trailers\r\nConnection: TE\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// `host`, `host:port`, `[v6]:port`, or nothing.
fn is_authority(value: &[u8]) -> bool {
    value.len() <= 512 && value.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(b))
}

fn without_port(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(at)
            if authority[at + 1..].bytes().all(|b| b.is_ascii_digit()) && !authority[at..].contains(']') =>
        {
            // `[::1]` ends in a bracket; a bare v6 address without brackets has no port to take off.
            if authority.starts_with('[') || authority.find(':') == Some(at) {
                &authority[..at]
            } else {
                authority
            }
        }
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(RequestInfo, String), Reject> {
        let mut room = header_room();
        let head = parse(text.as_bytes(), &mut room)?.expect("complete");
        let info = head.info("cdpipe-1")?;
        let mut out = Vec::new();
        head.write(&info, &mut out, "10.0.0.9", "127.0.0.1:80".parse().expect("address"), "cdpipe-1");
        Ok((info, String::from_utf8(out).expect("text")))
    }

    #[test]
    fn hop_by_hop_headers_end_here_and_the_rest_goes_on_as_it_came() {
        let (info, out) = read(
            "GET /a?b HTTP/1.1\r\nHost: Shop:8080\r\nconnection: keep-alive, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: 5\r\n\
             X-Forwarded-For: 1.2.3.4\r\nTE: trailers, gzip\r\nAccept-Thing: Yes\r\n\r\n",
        )
        .expect("good");
        assert!(info.keep_alive && info.idempotent && !info.upgrade);
        assert_eq!(
            out,
            "GET /a?b HTTP/1.1\r\nHost: Shop:8080\r\nAccept-Thing: Yes\r\nX-Forwarded-For: 1.2.3.4, 10.0.0.9\r\n\
             X-Forwarded-Proto: http\r\nX-Forwarded-Host: Shop:8080\r\nVia: 1.1 cdpipe-1\r\nTE: trailers\r\nConnection: TE\r\n\r\n"
        );
    }

    #[test]
    fn an_absolute_target_decides_the_host() {
        let (_, out) = read("GET http://real/x HTTP/1.1\r\nHost: other\r\n\r\n").expect("good");
        assert!(out.starts_with("GET /x HTTP/1.1\r\nHost: real\r\n"), "{out}");
    }

    #[test]
    fn an_upgrade_is_passed_on_but_never_to_http2() {
        let (info, out) =
            read("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                .expect("good");
        assert!(info.upgrade);
        assert!(out.ends_with("Upgrade: websocket\r\nConnection: upgrade\r\n\r\n"), "{out}");
        let (info, out) =
            read("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n")
                .expect("good");
        assert!(!info.upgrade);
        assert!(!out.contains("h2c") && !out.contains("HTTP2-Settings"), "{out}");
    }

    #[test]
    fn what_could_be_read_two_ways_is_refused() {
        for (text, why) in [
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
                "beside Content-Length",
            ),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", "differ"),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\n", "no number"),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n", "no number"),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                "two Transfer",
            ),
            ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.0"),
            ("GET / HTTP/1.1\r\n\r\n", "no Host"),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "two Host"),
            ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "no host"),
            ("GET x HTTP/1.1\r\nHost: a\r\n\r\n", "no path"),
        ] {
            match read(text) {
                Err(Reject::Bad(found)) => assert!(found.contains(why), "{text:?}: {found}"),
                other => panic!("{text:?}: {other:?}"),
            }
        }
        assert_eq!(
            read("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n").err(),
            Some(Reject::NotImplemented("a Transfer-Encoding other than chunked"))
        );
        assert_eq!(
            read("GET / HTTP/1.1\r\nHost: a\r\nVia: 1.0 x, 1.1 cdpipe-1\r\n\r\n").err(),
            Some(Reject::Loop)
        );
        for text in ["GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", "GET / HTTP/1.1\r\nHost : a\r\n\r\n"] {
            assert!(matches!(read(text), Err(Reject::Bad(_))), "{text:?}");
        }
    }

    #[test]
    fn ports_are_taken_off_hosts() {
        for (authority, host) in [
            ("a:80", "a"),
            ("a", "a"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("::1", "::1"),
            ("a:", "a"),
        ] {
            assert_eq!(without_port(authority), host);
        }
    }
}
