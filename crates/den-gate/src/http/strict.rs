//! Reads a request's framing as narrowly as it can be read (RFC 9112), byte by byte.
//!
//! A parser that is generous with line ends, folded lines or two lengths reads another request than
//! the next one does. hyper is generous in places, by design; so what it gets was held against this
//! first. Pure: no I/O, no clock.

use http::Uri;

/// Longest head, in bytes.
pub(super) const HEAD_BYTES_MAX: usize = 64 << 10;
/// Lines of a head after the first, at most.
pub(super) const HEADERS_MAX: usize = 100;
/// Longest line that says how long a chunk is, in bytes.
const CHUNK_LINE_BYTES_MAX: u16 = 1024;
/// Longest trailer, all lines together, in bytes.
const TRAILER_BYTES_MAX: u16 = 8192;

/// Why a head or a body is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is written in a way that could be read in two ways, or in none.
    Malformed(&'static str),
    /// Its head has no end within [`HEAD_BYTES_MAX`] or [`HEADERS_MAX`].
    TooLarge,
    /// Its head did not come in time.
    TooSlow,
}

/// How long a request's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// This many bytes.
    Length(u64),
    /// Until the last chunk.
    Chunked,
}

/// What a head says of what comes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// Of the body.
    pub(super) framing: Framing,
    /// It asks for a WebSocket: what follows may be no HTTP.
    pub(super) websocket: bool,
}

/// Looks for the empty line that ends a head, from byte `from` on, which begins a line. Returns
/// where the head ends, or where to go on looking when there is more.
pub(super) fn find_end(bytes: &[u8], mut from: usize) -> Result<Result<usize, usize>, Fault> {
    while let Some(length) = bytes[from..].iter().position(|&byte| byte == b'\n') {
        let line = &bytes[from..from + length];
        if line.last() != Some(&b'\r') {
            return Err(Fault::Malformed("a line ends with LF alone"));
        }
        from += length + 1;
        if line.len() == 1 {
            return Ok(Ok(from));
        }
    }
    Ok(Err(from))
}

/// Checks a whole head, its empty line included.
pub(super) fn check(head: &[u8]) -> Result<Head, Fault> {
    let mut lines = head.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let one_dot_one = check_request_line(lines.next().unwrap_or_default())?;

    let (mut host, mut length, mut chunked, mut upgrade, mut websocket) = (false, None, false, false, false);
    let mut count = 0;
    for line in lines.take_while(|line| !line.is_empty()) {
        count += 1;
        if count > HEADERS_MAX {
            return Err(Fault::TooLarge);
        }
        if matches!(line[0], b' ' | b'\t') {
            return Err(Fault::Malformed("a header is folded over two lines"));
        }
        let colon = line.iter().position(|&byte| byte == b':').ok_or(Fault::Malformed("a header has no colon"))?;
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        if name.is_empty() || !name.iter().copied().all(is_token) {
            return Err(Fault::Malformed("a header's name has a character that none may have"));
        }
        if !value.iter().copied().all(is_text) {
            return Err(Fault::Malformed("a header's value has a control character"));
        }
        if name.eq_ignore_ascii_case(b"host") {
            if std::mem::replace(&mut host, true) {
                return Err(Fault::Malformed("there are two Host headers"));
            }
        } else if name.eq_ignore_ascii_case(b"content-length") {
            if length.is_some() {
                return Err(Fault::Malformed("there are two Content-Length headers"));
            }
            length = Some(parse_length(value).ok_or(Fault::Malformed("Content-Length is no number"))?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Fault::Malformed("Transfer-Encoding is something else than `chunked`, once"));
            }
            chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            websocket = !upgrade && value.eq_ignore_ascii_case(b"websocket");
            upgrade = true;
        }
    }
    if !host {
        return Err(Fault::Malformed("there is no Host header"));
    }
    let framing = match (length, chunked) {
        (Some(_), true) => return Err(Fault::Malformed("there are both Content-Length and Transfer-Encoding")),
        (None, true) if !one_dot_one => return Err(Fault::Malformed("HTTP/1.0 has no Transfer-Encoding")),
        (None, true) => Framing::Chunked,
        (length, false) => Framing::Length(length.unwrap_or(0)),
    };
    Ok(Head { framing, websocket: websocket && framing == Framing::Length(0) })
}

/// `METHOD SP target SP HTTP/1.x`. Returns whether it is 1.1.
fn check_request_line(line: &[u8]) -> Result<bool, Fault> {
    let mut parts = line.split(|&byte| byte == b' ');
    let (method, target, version) = (parts.next(), parts.next(), parts.next());
    let (Some(method), Some(target), Some(version), None) = (method, target, version, parts.next()) else {
        return Err(Fault::Malformed("the first line is not `METHOD target HTTP/1.1`"));
    };
    if method.is_empty() || method.len() > 32 || !method.iter().copied().all(is_token) {
        return Err(Fault::Malformed("the method is no word"));
    }
    let plain = target.iter().all(|&byte| byte > b' ' && byte != 0x7f);
    if !plain || Uri::try_from(target).is_err() {
        return Err(Fault::Malformed("the target is no URI"));
    }
    match version {
        b"HTTP/1.1" => Ok(true),
        b"HTTP/1.0" => Ok(false),
        _ => Err(Fault::Malformed("the version is not HTTP/1.1 or HTTP/1.0")),
    }
}

/// Digits and nothing else; no sign, no list.
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Takes blanks off both ends: spaces and tabulators, and none of the other characters that look like it.
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What a value may have in it: no control character but the tabulator.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// Where in a chunked body the reading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunks {
    at: At,
    /// Bytes left of a chunk, or its size so far.
    size: u64,
    /// Bytes of the line so far, or of the trailer.
    line: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Size,
    Extension,
    SizeEnd,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLineEnd,
    End,
}

impl Chunks {
    pub(super) const fn new() -> Self {
        Self { at: At::Size, size: 0, line: 0 }
    }

    /// Reads on. Returns how many of the bytes belong to the body, and whether that is all of it.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<(usize, bool), Fault> {
        let mut index = 0;
        while let Some(&byte) = bytes.get(index) {
            if self.at == At::Data {
                let taken = self.size.min((bytes.len() - index) as u64);
                self.size -= taken;
                index += taken as usize;
                if self.size == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            index += 1;
            if self.step(byte)? {
                return Ok((index, true));
            }
        }
        Ok((index, false))
    }

    fn step(&mut self, byte: u8) -> Result<bool, Fault> {
        const LINE: Fault = Fault::Malformed("a chunk does not begin with its length in hexadecimal");
        const TRAILER: Fault = Fault::Malformed("the trailer is not made of headers");
        let trailer = matches!(self.at, At::TrailerStart | At::TrailerName | At::TrailerValue | At::TrailerLineEnd);
        self.line += 1;
        if self.line > if trailer { TRAILER_BYTES_MAX } else { CHUNK_LINE_BYTES_MAX } {
            return Err(if trailer { TRAILER } else { LINE });
        }
        self.at = match (self.at, byte) {
            (At::Size, byte) if byte.is_ascii_hexdigit() => {
                if self.line > 15 {
                    return Err(LINE);
                }
                self.size = self.size * 16 + u64::from((byte as char).to_digit(16).unwrap_or(0));
                At::Size
            }
            (At::Size, b'\r') if self.line > 1 => At::SizeEnd,
            (At::Size, b';') if self.line > 1 => At::Extension,
            (At::Extension, b'\r') => At::SizeEnd,
            (At::Extension, byte) if is_text(byte) => At::Extension,
            (At::SizeEnd, b'\n') => {
                self.line = 0;
                if self.size == 0 { At::TrailerStart } else { At::Data }
            }
            (At::Size | At::Extension | At::SizeEnd, _) => return Err(LINE),
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => {
                self.line = 0;
                At::Size
            }
            (At::Data | At::DataCr | At::DataLf, _) => {
                return Err(Fault::Malformed("a chunk is longer than it says"));
            }
            (At::TrailerStart, b'\r') => At::End,
            (At::TrailerStart | At::TrailerName, byte) if is_token(byte) => At::TrailerName,
            (At::TrailerName, b':') => At::TrailerValue,
            (At::TrailerValue, b'\r') => At::TrailerLineEnd,
            (At::TrailerValue, byte) if is_text(byte) => At::TrailerValue,
            (At::TrailerLineEnd, b'\n') => At::TrailerStart,
            (At::End, b'\n') => return Ok(true),
            _ => return Err(TRAILER),
        };
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Head, Fault> {
        check(text.as_bytes())
    }

    fn is_refused(text: &str) {
        assert!(matches!(head(text), Err(Fault::Malformed(_))), "{text:?}: {:?}", head(text));
    }

    #[test]
    fn a_plain_head_says_how_long_its_body_is() {
        let expected = |framing| Ok(Head { framing, websocket: false });
        assert_eq!(head("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), expected(Framing::Length(0)));
        assert_eq!(head("GET http://a/?q=%20 HTTP/1.0\r\nHost:a\r\n\r\n"), expected(Framing::Length(0)));
        assert_eq!(head("PUT /x HTTP/1.1\r\nhost: a\r\nContent-Length: 12\r\n\r\n"), expected(Framing::Length(12)));
        assert_eq!(
            head("PUT /x HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: Chunked \r\n\r\n"),
            expected(Framing::Chunked)
        );
        assert_eq!(
            head("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\n\r\n"),
            Ok(Head { framing: Framing::Length(0), websocket: true })
        );
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        is_refused("GET / HTTP/1.1\r\n\r\n");
        is_refused("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
        is_refused("GET  / HTTP/1.1\r\nHost: a\r\n\r\n");
        is_refused("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n");
        is_refused("GET / HTTP/1.2\r\nHost: a\r\n\r\n");
        is_refused("PRI * HTTP/2.0\r\n\r\n");
        is_refused("GET /\r\nHost: a\r\n\r\n");
        is_refused("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n");
        is_refused("GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n");
        is_refused("GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n");
        is_refused("GET / HTTP/1.1\r\nHost: a\0\r\n\r\n");
        is_refused("GET / HTTP/1.1\r\nHost: a\r\r\n\r\n");
        is_refused("GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n");
        for length in ["", "+1", "-1", "0x1", "1,1", "1 1", "9999999999999999999"] {
            is_refused(&format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"));
        }
        is_refused("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n");
        is_refused("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n");
        is_refused("PUT / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        for coding in [
            "identity",
            "chunked, chunked",
            "gzip, chunked",
            "xchunked",
            "chunked;a=b",
            "\u{b}chunked",
            "\u{c}chunked",
            "\"chunked\"",
        ] {
            is_refused(&format!("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {coding}\r\n\r\n"));
        }
        is_refused("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n");
        is_refused("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n");
        let many = "X: y\r\n".repeat(HEADERS_MAX);
        assert_eq!(head(&format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n")), Err(Fault::TooLarge));
    }

    #[test]
    fn the_end_of_a_head_is_found_in_pieces() {
        let bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
        let mut from = 0;
        for length in 0..28 {
            match find_end(&bytes[..length], from) {
                Ok(Err(next)) => from = next,
                Ok(Ok(end)) => assert_eq!((length, end), (27, 27), "the end"),
                Err(fault) => panic!("{fault:?}"),
            }
        }
        assert_eq!(find_end(bytes, from), Ok(Ok(27)));
        assert!(find_end(b"GET / HTTP/1.1\nHost: a\r\n", 0).is_err());
        assert!(find_end(b"GET / HTTP/1.1\r\nHost: a\r\n\n", 0).is_err());
    }

    #[test]
    fn chunks_are_read_to_their_end() {
        let bodies = [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "00a;name=\"value\"\r\n0123456789\r\n1\r\nx\r\n0\r\nDigest: abc\r\nEmpty:\r\n\r\n",
        ];
        for body in bodies {
            let bytes = format!("{body}GET /");
            assert_eq!(Chunks::new().read(bytes.as_bytes()), Ok((body.len(), true)), "{body:?}");
            let mut chunks = Chunks::new();
            for (index, byte) in body.bytes().enumerate() {
                assert_eq!(chunks.read(&[byte]), Ok((1, index + 1 == body.len())), "{body:?} {index}");
            }
        }
        let long = format!("1;{}\r\n", "x".repeat(2000));
        let trailer = format!("0\r\nX: {}\r\n\r\n", "x".repeat(9000));
        for body in [
            "5\nhello",
            "\r\n",
            "g\r\n",
            " 5\r\n",
            "5 \r\n",
            "0x5\r\n",
            "-5\r\n",
            "5\r\nhello!",
            "5\r\nhello\n",
            "0000000000000001\r\n",
            "0\r\n folded: x\r\n\r\n",
            "0\r\nno colon\r\n\r\n",
            "0\r\nGET / HTTP/1.1\r\n\r\n",
            "0\r\nX: y\n\r\n",
            &long,
            &trailer,
        ] {
            assert!(Chunks::new().read(body.as_bytes()).is_err(), "{body:?}");
        }
    }
}
