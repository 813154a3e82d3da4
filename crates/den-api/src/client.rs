//! The typed client: one TCP connection per request, kept for the next one where it is free again.
//!
//! ```text
//! Client ── calls     a method per endpoint; JSON in, JSON out
//!        ── streams   OutputStream (frames), ByteStream (files, tar), Lines (NDJSON)
//!        ── session   WebSocket: frames one way, standard input and signals the other
//! ```
//!
//! Invariants:
//! - Memory is constant: no stream is ever held whole, and none is read ahead of its reader.
//! - A request is sent again by itself only when it never left this process (a kept connection that
//!   the daemon had closed meanwhile).
//!
//! Deliberately absent: TLS, retries, any decision about what an error means.

mod calls;
mod e2b;
mod event;
mod history;
mod life;
mod pools;
mod ports;
mod service;
mod session;
mod streams;
mod trash;
mod upload;
mod volumes;

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::{
    body::{Frame, Incoming, SizeHint},
    client::conn::http1::{Builder, SendRequest},
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{net::TcpStream, sync::mpsc};

pub use self::{
    calls::{ComputerFilter, NetLogFilter, Order, WriteFile},
    event::{EventFilter, EventStream, Told},
    history::{Exploring, StateGrep, StepFilter},
    ports::PortStream,
    session::{Session, SessionInput, SessionOutput},
    streams::{ByteStream, Events, FileHead, Lines, OutputStream},
};
use crate::{ErrorBody, ErrorDetail};

/// How long a connection may take to come about.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Idle connections that are kept.
const IDLE_MAX: usize = 32;

/// The longest JSON answer that is read, in bytes.
const JSON_BYTES_MAX: usize = 64 << 20;

/// The data folder when nobody says otherwise.
pub const DATA_DEFAULT: &str = "/var/lib/den";

/// Why a call gave no answer, or a refusal.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The daemon refused, and said why.
    #[error("{}", detail.message)]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Code, message, hint.
        detail: ErrorDetail,
    },
    /// Nobody answers there.
    #[error("no daemon answers at {url}")]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// What the connection said.
        source: io::Error,
    },
    /// The connection broke in the middle.
    #[error("the connection to {url} broke")]
    Broken {
        /// To where.
        url: String,
        /// What the connection said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No file says where the daemon is.
    #[error("no daemon is known: there is no {}", list(looked))]
    NotFound {
        /// The files that were looked for.
        looked: Vec<PathBuf>,
    },
    /// The file that says where the daemon is cannot be read.
    #[error("cannot read {}", path.display())]
    ClientFile {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An address that is none.
    #[error("`{url}` is no address of a daemon: {reason}")]
    BadUrl {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// What was to be sent cannot be read.
    #[error("what was to be sent cannot be read")]
    Source {
        /// Why not.
        source: io::Error,
    },
    /// An answer that this client does not understand.
    #[error("the answer of {url} cannot be understood: {reason}")]
    Malformed {
        /// Who answered.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ClientError {
    /// The refusal's stable code, where it is one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { detail, .. } => Some(&detail.code),
            _ => None,
        }
    }

    /// Whether the daemon is gone, or went in the middle: the same may work once it is back.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Broken { .. })
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Refused { detail, .. } => detail.hint.as_deref(),
            Self::Unreachable { .. } => Some("start it with `den serve`, or name another with --url"),
            Self::NotFound { .. } => {
                Some("start a daemon with `den serve`; with a data folder of its own pass the same --data, or DEN_DATA")
            }
            Self::ClientFile { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("become the user who started the daemon (sudo), or set DEN_URL and DEN_TOKEN")
            }
            Self::BadUrl { .. } => Some("an address looks like http://127.0.0.1:7878"),
            Self::ClientFile { .. } | Self::Source { .. } | Self::Broken { .. } | Self::Malformed { .. } => None,
        }
    }
}

/// `a, b or c`.
fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
}

/// What `client.json` says: where the daemon listens, and the token it takes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClientFile {
    /// `http://127.0.0.1:7878`.
    pub url: String,
    /// `den_…`.
    pub token: String,
}

/// A body on its way to the daemon.
#[derive(Debug)]
pub enum Body {
    /// None.
    Empty,
    /// All of it at once.
    Whole(Bytes),
    /// In chunks, as they come; an `Err` abandons the request.
    Stream {
        /// The chunks.
        chunks: mpsc::Receiver<io::Result<Bytes>>,
        /// How many bytes are still to come, where that is known.
        left: Option<u64>,
    },
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream { chunks, left } => chunks.poll_recv(cx).map(|chunk| {
                chunk.map(|chunk| {
                    chunk.map(|bytes| {
                        if let Some(left) = left {
                            *left = left.saturating_sub(bytes.len() as u64);
                        }
                        Frame::data(bytes)
                    })
                })
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Stream { left, .. } => *left == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream { left: Some(left), .. } => SizeHint::with_exact(*left),
            Self::Stream { left: None, .. } => SizeHint::new(),
        }
    }
}

/// Talks to one daemon. Clones share their idle connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

/// What all clones have in common.
struct Shared {
    url: String,
    host: String,
    port: u16,
    authority: HeaderValue,
    bearer: HeaderValue,
    idle: Mutex<Vec<SendRequest<Body>>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("url", &self.shared.url).finish_non_exhaustive()
    }
}

impl Client {
    /// A client for the daemon at `url` (`http://HOST:PORT`). Connects on the first call.
    ///
    /// Errors: [`ClientError::BadUrl`].
    pub fn new(url: &str, token: &str) -> Result<Self, ClientError> {
        let bad = |reason| ClientError::BadUrl { url: url.to_owned(), reason };
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some(("https", _)) => return Err(bad("https is not spoken yet")),
            Some(_) => return Err(bad("it does not begin with http://")),
            None => url,
        };
        let authority: http::uri::Authority =
            rest.trim_end_matches('/').parse().map_err(|_| bad("it has no host and port"))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(bad("it has no host"));
        }
        let port = authority.port_u16().unwrap_or(80);
        let mut bearer = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| bad("the token that goes with it has characters that no token has"))?;
        bearer.set_sensitive(true);
        let authority = HeaderValue::from_str(authority.as_str()).map_err(|_| bad("it has no host and port"))?;
        let url = format!("http://{}", rest.trim_end_matches('/'));
        Ok(Self { shared: Arc::new(Shared { url, host, port, authority, bearer, idle: Mutex::default() }) })
    }

    /// Finds the daemon: `url` with `token`, else `client.json` in `data`, in [`DATA_DEFAULT`], in
    /// `~/.config/den`. With `data` given no other folder is looked at.
    pub fn find(url: Option<&str>, token: Option<&str>, data: Option<&Path>) -> Result<Self, ClientError> {
        if let Some(url) = url {
            let found;
            let token = match token {
                Some(token) => token,
                // The token of a daemon on this host, if this is its address.
                None => match Self::find_file(data) {
                    Ok(file) if file.url.trim_end_matches('/') == url.trim_end_matches('/') => {
                        found = file.token;
                        found.as_str()
                    }
                    _ => "",
                },
            };
            return Self::new(url, token);
        }
        let file = Self::find_file(data)?;
        Self::new(&file.url, token.unwrap_or(&file.token))
    }

    /// Reads the first `client.json` there is.
    pub fn find_file(data: Option<&Path>) -> Result<ClientFile, ClientError> {
        let mut looked = Vec::new();
        let mut closed = None;
        let folders = match data {
            Some(data) => vec![data.to_owned()],
            None => {
                let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
                let config = home.map(|home| Path::new(&home).join(".config/den"));
                [Some(PathBuf::from(DATA_DEFAULT)), config].into_iter().flatten().collect()
            }
        };
        for folder in folders {
            let path = folder.join("client.json");
            match std::fs::read(&path) {
                Ok(text) => {
                    return serde_json::from_slice(&text)
                        .map_err(|source| ClientError::ClientFile { path, source: source.into() });
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    looked.push(path);
                }
                // A daemon of root's is there, and perhaps one of this user's too.
                Err(source) => closed = closed.or(Some(ClientError::ClientFile { path, source })),
            }
        }
        Err(closed.unwrap_or(ClientError::NotFound { looked }))
    }

    /// Whether the daemon is on this host, so that paths mean the same to both.
    pub fn is_local(&self) -> bool {
        let host = self.shared.host.as_str();
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// Where it talks to.
    pub fn url(&self) -> &str {
        &self.shared.url
    }

    async fn connect_tcp(&self) -> Result<TcpStream, ClientError> {
        let unreachable = |source| ClientError::Unreachable { url: self.shared.url.clone(), source };
        let connecting = TcpStream::connect((self.shared.host.as_str(), self.shared.port));
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(stream) => stream.map_err(unreachable)?,
            Err(_) => return Err(unreachable(io::ErrorKind::TimedOut.into())),
        };
        stream.set_nodelay(true).map_err(unreachable)?;
        Ok(stream)
    }

    async fn connect(&self) -> Result<SendRequest<Body>, ClientError> {
        let stream = self.connect_tcp().await?;
        let (sender, connection) = Builder::new()
            .max_buf_size(1 << 20)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(error))?;
        // It ends with the daemon's connection or with the sender; its error comes out at the call.
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Broken { url: self.shared.url.clone(), source: source.into() }
    }

    fn malformed(&self, reason: impl ToString) -> ClientError {
        ClientError::Malformed { url: self.shared.url.clone(), reason: reason.to_string() }
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.shared.authority)
            .header(header::AUTHORIZATION, &self.shared.bearer)
    }

    /// Sends a request and waits for the head of its answer; refusals are errors.
    async fn send(&self, request: Request<Body>) -> Result<Answer, ClientError> {
        let answer = self.send_any(request).await?;
        if answer.response.status().as_u16() < 400 { Ok(answer) } else { Err(answer.refusal().await) }
    }

    /// The same with refusals as they come.
    async fn send_any(&self, mut request: Request<Body>) -> Result<Answer, ClientError> {
        loop {
            let kept = self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let (mut sender, fresh) = match kept {
                Some(sender) if sender.is_closed() => continue,
                Some(sender) => (sender, false),
                None => (self.connect().await?, true),
            };
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(Answer { client: self.clone(), response, sender }),
                Err(mut error) => match error.take_message() {
                    Some(message) if !fresh => request = message,
                    _ => return Err(self.broken(error.into_error())),
                },
            }
        }
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, ClientError> {
        self.send(self.json_request(method, path, body)).await?.json().await
    }

    async fn nothing(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<(), ClientError> {
        self.send(self.json_request(method, path, body)).await?.bytes().await.map(drop)
    }

    fn json_request(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Request<Body> {
        let builder = self.request(method, path);
        match body {
            None => builder.body(Body::Empty),
            Some(body) => {
                let text = serde_json::to_vec(body).expect("requests are plain data with text keys");
                builder.header(header::CONTENT_TYPE, "application/json").body(Body::Whole(text.into()))
            }
        }
        .expect("paths are percent-encoded")
    }
}

/// An answer whose body is still to be read.
struct Answer {
    client: Client,
    response: http::Response<Incoming>,
    sender: SendRequest<Body>,
}

impl Answer {
    /// Reads the whole body and keeps the connection.
    async fn bytes(self) -> Result<Bytes, ClientError> {
        let Self { client, response, mut sender } = self;
        let body = http_body_util::Limited::new(response.into_body(), JSON_BYTES_MAX);
        let bytes = body.collect().await.map_err(|error| client.broken(error))?.to_bytes();
        // Ready at once where the daemon keeps the connection, or the request's body is not sent yet.
        if tokio::time::timeout(Duration::from_millis(1), sender.ready()).await.is_ok_and(|ready| ready.is_ok()) {
            let mut idle = client.shared.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < IDLE_MAX {
                idle.push(sender);
            }
        }
        Ok(bytes)
    }

    async fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let client = self.client.clone();
        serde_json::from_slice(&self.bytes().await?).map_err(|error| client.malformed(error))
    }

    async fn refusal(self) -> ClientError {
        let (client, status) = (self.client.clone(), self.response.status());
        match self.bytes().await {
            Ok(bytes) => refusal(&client, status, &bytes),
            Err(error) => error,
        }
    }
}

fn refusal(client: &Client, status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(ErrorBody { error: detail }) => ClientError::Refused { status: status.as_u16(), detail },
        Err(_) => client.malformed(format_args!("status {status} without a reason; is it Den that listens there?")),
    }
}

/// Percent-encodes what has a meaning in a path or query.
fn encode(out: &mut String, bytes: &[u8]) {
    for &byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(byte as char),
            _ => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                out.push('%');
                out.push(HEX[usize::from(byte >> 4)] as char);
                out.push(HEX[usize::from(byte & 15)] as char);
            }
        }
    }
}

/// A path with its query, built from left to right.
struct Target {
    text: String,
    asked: bool,
}

impl Target {
    /// `base/part`, with `part` encoded; a `/` in it is encoded too.
    fn new(base: &str, part: &str, rest: &str) -> Self {
        let mut text = String::with_capacity(64);
        text.push_str(base);
        let mut first = true;
        for piece in part.split('/') {
            if !first {
                text.push_str("%2F");
            }
            first = false;
            // A name of dots alone would be taken for a step up in the path.
            if !piece.is_empty() && piece.bytes().all(|byte| byte == b'.') {
                piece.bytes().for_each(|_| text.push_str("%2E"));
            } else {
                encode(&mut text, piece.as_bytes());
            }
        }
        text.push_str(rest);
        Self { text, asked: false }
    }

    fn plain(text: &str) -> Self {
        Self { text: text.to_owned(), asked: false }
    }

    fn ask(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.text.push(if self.asked { '&' } else { '?' });
        self.asked = true;
        self.text.push_str(key);
        self.text.push('=');
        encode(&mut self.text, value.as_ref());
        self
    }

    fn ask_some(self, key: &str, value: Option<impl ToString>) -> Self {
        match value {
            Some(value) => self.ask(key, value.to_string()),
            None => self,
        }
    }

    /// A path inside a computer: bytes that are no UTF-8 go as base64.
    fn path(self, path: &[u8]) -> Self {
        use base64::Engine;
        match std::str::from_utf8(path) {
            Ok(text) => self.ask("path", text),
            Err(_) => self.ask("path_base64", base64::engine::general_purpose::STANDARD.encode(path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_encoded() {
        let target = Target::new("/v1/computers/", "a/../b?", "/files").path(b"/x y&z").ask_some("from", Some(3));
        assert_eq!(target.text, "/v1/computers/a%2F%2E%2E%2Fb%3F/files?path=/x%20y%26z&from=3");
        assert_eq!(Target::plain("/f").path(b"/\xff").text, "/f?path_base64=L/8%3D");
    }

    #[test]
    fn addresses() {
        assert_eq!(Client::new("http://127.0.0.1:7878/", "t").unwrap().url(), "http://127.0.0.1:7878");
        assert_eq!(Client::new("http://[::1]:1", "t").unwrap().shared.host, "::1");
        for bad in ["https://x", "ftp://x", "http://", "http://a b", "http://x/y"] {
            assert!(matches!(Client::new(bad, "t"), Err(ClientError::BadUrl { .. })), "{bad}");
        }
    }
}
