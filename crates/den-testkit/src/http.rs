//! HTTP/1.1 by hand, so that tests see exactly what travels.
//!
//! One connection a request, closed after it. A stream is read as it comes.

use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// No answer for this long fails the test.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// A daemon's HTTP face.
#[derive(Debug, Clone)]
pub struct Api {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its bearer token.
    pub token: String,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// Names in small letters.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// The body as JSON; panics with the body where it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("status {}: no JSON ({e}): {}", self.status, self.text()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// Panics with the body unless the status is `status`.
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// Checks the shape of a refusal and its code; returns the `error` object.
    pub fn refusal(&self, status: u16, code: &str) -> serde_json::Value {
        assert_eq!(self.status, status, "wanted {code}: {}", self.text());
        let error = self.json()["error"].clone();
        assert_eq!(error["code"], code, "{error}");
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "a message: {error}");
        assert!(error["retryable"].is_boolean(), "retryable: {error}");
        error
    }
}

/// The head of an answer, and its body as it comes.
pub struct Stream {
    /// The status.
    pub status: u16,
    /// Names in small letters.
    pub headers: Vec<(String, String)>,
    body: Body,
}

enum Body {
    Sized(io::Take<BufReader<TcpStream>>),
    Chunked { from: BufReader<TcpStream>, left: u64, done: bool },
    UntilClose(BufReader<TcpStream>),
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.body {
            Body::Sized(body) => {
                let got = body.read(buffer)?;
                if got == 0 && body.limit() > 0 && !buffer.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(got)
            }
            Body::UntilClose(body) => body.read(buffer),
            Body::Chunked { done: true, .. } => Ok(0),
            Body::Chunked { from, left, done } => {
                if *left == 0 {
                    let mut line = String::new();
                    if from.read_line(&mut line)? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    let size = line.trim().split(';').next().unwrap_or_default();
                    *left = u64::from_str_radix(size, 16)
                        .map_err(|_| io::Error::other(format!("no chunk size: {line:?}")))?;
                    if *left == 0 {
                        *done = true;
                        return Ok(0);
                    }
                }
                let want = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                let got = from.read(&mut buffer[..want])?;
                if got == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                *left -= got as u64;
                if *left == 0 {
                    let mut end = [0; 2];
                    from.read_exact(&mut end)?;
                }
                Ok(got)
            }
        }
    }
}

impl Stream {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// Reads server-sent events until `stop` says so or the stream ends: (event, id, data).
    pub fn events(self, mut stop: impl FnMut(&str) -> bool) -> Vec<(String, String, String)> {
        let (mut event, mut id, mut data) = (String::new(), String::new(), String::new());
        let mut events = Vec::new();
        for line in BufReader::new(self).lines() {
            let line = line.expect("a line of events");
            if line.is_empty() {
                if !data.is_empty() || !event.is_empty() {
                    let last = stop(&event);
                    events.push((std::mem::take(&mut event), std::mem::take(&mut id), std::mem::take(&mut data)));
                    if last {
                        break;
                    }
                }
            } else if let Some(value) = line.strip_prefix("event:") {
                event = value.trim().to_owned();
            } else if let Some(value) = line.strip_prefix("id:") {
                id = value.trim().to_owned();
            } else if let Some(value) = line.strip_prefix("data:") {
                data.push_str(value.trim());
            }
        }
        events
    }
}

impl Api {
    /// `GET path`.
    pub fn get(&self, path: &str) -> Reply {
        self.request("GET", path, &[], b"")
    }

    /// `DELETE path`.
    pub fn delete(&self, path: &str) -> Reply {
        self.request("DELETE", path, &[], b"")
    }

    /// `POST path` with JSON.
    pub fn post(&self, path: &str, body: &serde_json::Value) -> Reply {
        self.request("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    /// `PUT path` with bytes.
    pub fn put(&self, path: &str, body: &[u8]) -> Reply {
        self.request("PUT", path, &[("content-type", "application/octet-stream")], body)
    }

    /// Any request, read whole.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut stream = self.open(method, path, headers, body).unwrap_or_else(|e| panic!("{method} {path}: {e}"));
        let mut body = Vec::new();
        stream.read_to_end(&mut body).unwrap_or_else(|e| panic!("{method} {path}: the answer broke off: {e}"));
        Reply { status: stream.status, headers: stream.headers, body }
    }

    /// Any request; the body of the answer is read from what it returns.
    pub fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Stream> {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {}\r\n",
            self.addr,
            body.len()
        );
        if !self.token.is_empty() && !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization")) {
            head.push_str(&format!("authorization: Bearer {}\r\n", self.token));
        }
        for (name, value) in headers {
            if name.eq_ignore_ascii_case("host") {
                head = head.replacen(&format!("host: {}", self.addr), &format!("host: {value}"), 1);
            } else {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        head.push_str("\r\n");
        let mut tcp = TcpStream::connect(self.addr)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(SILENCE_MAX))?;
        tcp.write_all(head.as_bytes())?;
        // An early refusal may close the connection before the body is through.
        let sent = tcp.write_all(body);
        let mut from = BufReader::with_capacity(256 * 1024, tcp);
        let (status, headers) = read_head(&mut from).map_err(|e| sent.err().unwrap_or(e))?;
        let find = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        let body = if find("transfer-encoding").is_some_and(|v| v.contains("chunked")) {
            Body::Chunked { from, left: 0, done: false }
        } else if let Some(length) = find("content-length") {
            Body::Sized(from.take(length.parse().map_err(io::Error::other)?))
        } else if status == 204 || status == 304 {
            Body::Sized(from.take(0))
        } else {
            Body::UntilClose(from)
        };
        Ok(Stream { status, headers, body })
    }
}

fn read_head(from: &mut impl io::BufRead) -> io::Result<(u16, Vec<(String, String)>)> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let status = line
        .split_whitespace()
        .nth(1)
        .and_then(|s| s.parse().ok())
        .ok_or_else(|| io::Error::other(format!("no status line: {line:?}")))?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { return Ok((status, headers)) };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}
