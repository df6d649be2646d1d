//! HTTP/1.1 as a forwarder needs it (RFC 9110, RFC 9112): heads are parsed and written anew, bodies are only measured.
//!
//! Written by hand on `httparse`, see docs/proxy.md for the numbers that decided it. Strict where leniency lets two parsers
//! disagree about where a message ends: one framing header only, digits only, CRLF only in chunks, no folded lines.

pub(crate) mod body;
pub(crate) mod chunked;
pub(crate) mod request;
pub(crate) mod response;

/// Most headers of one head.
pub(crate) const MAX_HEADERS: usize = 128;

/// Splits a header value at commas and trims each part.
pub(crate) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|part| !part.is_empty())
}

/// Digits only, as RFC 9110 8.6 has it; a sign, a blank or an overflow is no length.
pub(crate) fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Headers that end at this hop whatever `Connection` says (RFC 9110 7.6.1).
pub(crate) fn is_hop_by_hop(name: &str) -> bool {
    match name.len() {
        2 => name.eq_ignore_ascii_case("te"),
        7 => name.eq_ignore_ascii_case("upgrade"),
        10 => name.eq_ignore_ascii_case("connection") || name.eq_ignore_ascii_case("keep-alive"),
        14 => name.eq_ignore_ascii_case("http2-settings"),
        16 => name.eq_ignore_ascii_case("proxy-connection"),
        17 => name.eq_ignore_ascii_case("transfer-encoding"),
        _ => false,
    }
}

/// Options of all `Connection` headers of one head.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ConnectionOptions {
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    pub(crate) upgrade: bool,
    /// Something else is named: the headers have to be looked at one by one.
    pub(crate) names_headers: bool,
}

impl ConnectionOptions {
    pub(crate) fn add(&mut self, value: &[u8]) {
        for option in list(value) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else {
                self.names_headers = true;
            }
        }
    }
}

/// Whether some `Connection` header names `name`. Headers that frame or address the message can not be named away.
pub(crate) fn named_by_connection(headers: &[httparse::Header<'_>], name: &str) -> bool {
    const NEVER: [&str; 8] = [
        "host",
        "content-length",
        "cookie",
        "set-cookie",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "authorization",
    ];
    if NEVER.iter().any(|never| never.eq_ignore_ascii_case(name)) {
        return false;
    }
    headers
        .iter()
        .filter(|h| h.name.eq_ignore_ascii_case("connection"))
        .flat_map(|h| list(h.value))
        .any(|option| option.eq_ignore_ascii_case(name.as_bytes()))
}

pub(crate) fn push_header(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes a number without going through the formatter: lengths are on every answer's way.
pub(crate) fn push_decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}
