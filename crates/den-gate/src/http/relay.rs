//! One connection of a client: its requests, and the connection to the upstream they go over.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::TRANSFER_ENCODING;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::{Either, Empty, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

use super::authorise::{Verdict, authorise, is_websocket_answer, prepare, strip_hop};
use super::guard::{Guarded, Shared};
use super::refusal::{DialRefused, Refusal};
use super::strict::{HEAD_BYTES_MAX, HEADERS_MAX};
use crate::host::Host;
use crate::record::Outcome;

/// Longest path in an [`Event`], in bytes.
pub const PATH_BYTES_MAX: usize = 256;
/// How long a connection to the upstream that was used before may take to be ready again.
const READY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a client may take to close after its last answer.
const LINGER: Duration = Duration::from_secs(1);
/// Buffer of each direction after 101, in bytes.
const RELAY_BYTES: usize = 32 << 10;

/// One request of the connection, when its answer's head is known, or will never be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// Empty where the head could not be read.
    pub method: &'a str,
    /// Without its query; the first [`PATH_BYTES_MAX`] bytes. Empty where the head could not be read.
    pub path: &'a str,
    /// Of the answer; none: the client went before there was one.
    pub status: Option<u16>,
    /// Was it passed on?
    pub verdict: Outcome,
    /// Why, as a stable code: `allowed_rule`, or that of the refusal.
    pub why: &'static str,
}

/// Bytes that the client has sent and got, with heads and all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// From the client.
    pub up: u64,
    /// To the client.
    pub down: u64,
}

/// A body to the upstream.
type Up = Either<Incoming, Empty<Bytes>>;
/// A body to the client.
type Down = Either<Incoming, Full<Bytes>>;

/// One connection.
struct Relay<'a, D> {
    name: &'a Host,
    port: u16,
    shared: Arc<Shared>,
    requests: AtomicU64,
    observe: &'a (dyn Fn(Event<'_>) + Sync),
    upstream: tokio::sync::Mutex<Upstream<D>>,
    /// Both ends of a WebSocket, once there is one.
    upgraded: Mutex<Option<(OnUpgrade, OnUpgrade)>>,
}

struct Upstream<D> {
    dial: D,
    connection: Option<Connection>,
}

/// A connection to the upstream; it ends with this value.
struct Connection {
    requests: client::SendRequest<Up>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Serves a client's connection, until one of the two ends it, and tells what went over it.
///
/// `client` is a connection that was let through to `name`, port `port`; bytes that were read from
/// it already come first. `dial` connects to the upstream: it is called for the first request that
/// may pass, and again when the upstream has closed between two requests. `observe` hears of each
/// request. Dropping the future ends both connections at once.
pub async fn serve<C, S, D, F>(
    client: C,
    name: &Host,
    port: u16,
    dial: D,
    observe: &(dyn Fn(Event<'_>) + Sync),
) -> Totals
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    D: FnMut() -> F + Send,
    F: Future<Output = io::Result<S>> + Send,
{
    let shared = Arc::new(Shared::default());
    let relay = Relay {
        name,
        port,
        shared: Arc::clone(&shared),
        requests: AtomicU64::new(0),
        observe,
        upstream: tokio::sync::Mutex::new(Upstream { dial, connection: None }),
        upgraded: Mutex::new(None),
    };
    let client = TokioIo::new(Guarded::new(client, Arc::clone(&shared)));
    let mut connection = server::Builder::new()
        .preserve_header_case(true)
        .auto_date_header(false)
        .max_headers(HEADERS_MAX)
        .max_buf_size(2 * HEAD_BYTES_MAX)
        .serve_connection(client, service_fn(|request| relay.handle(request)))
        .with_upgrades();
    if let Err(error) = (&mut connection).await {
        tracing::debug!(name = name.as_str(), %error, source = ?error.source(), "a client's connection ended");
    }
    let upgraded = relay.upgraded.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((down, up)) = upgraded {
        if let (Ok(down), Ok(up)) = (down.await, up.await) {
            let (mut down, mut up) = (TokioIo::new(down), TokioIo::new(up));
            let _ = tokio::io::copy_bidirectional_with_sizes(&mut down, &mut up, RELAY_BYTES, RELAY_BYTES).await;
        }
    } else if let Some(parts) = connection.into_parts() {
        parts.io.into_inner().linger(LINGER).await;
    }
    let (up, down) = shared.totals();
    Totals { up, down }
}

impl<D, F, S> Relay<'_, D>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    D: FnMut() -> F + Send,
    F: Future<Output = io::Result<S>> + Send,
{
    async fn handle(&self, request: Request<Incoming>) -> Result<Response<Down>, Infallible> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        if let Some(fault) = self.shared.fault(number) {
            let refusal = Refusal::from(fault);
            let mut seen = Seen::new(self, number, None);
            return Ok(seen.refuse(&refusal));
        }
        let mut seen = Seen::new(self, number, Some(&request));
        let answer = match authorise(&request, self.name, self.port) {
            Verdict::Refuse(refusal) => seen.refuse(&refusal),
            verdict => {
                seen.verdict = Outcome::Allow;
                match self.pass(request, verdict == Verdict::PassWebSocket).await {
                    Ok((answer, raw)) => {
                        seen.status = Some(answer.status());
                        seen.raw = raw;
                        answer
                    }
                    Err(refusal) => {
                        let refused = refusal.status == StatusCode::FORBIDDEN;
                        seen.verdict = if refused { Outcome::Deny } else { Outcome::Allow };
                        seen.answer(&refusal)
                    }
                }
            }
        };
        Ok(answer)
    }

    /// Passes a request on. Returns the answer, and whether it ends HTTP.
    async fn pass(&self, mut request: Request<Incoming>, websocket: bool) -> Result<(Response<Down>, bool), Refusal> {
        let down = websocket.then(|| hyper::upgrade::on(&mut request));
        prepare(&mut request, self.name, self.port, websocket);
        let request =
            request.map(|body| if body.is_end_stream() { Either::Right(Empty::new()) } else { Either::Left(body) });
        let mut answer = self.send(request).await?;
        *answer.version_mut() = Version::HTTP_11;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            strip_hop(answer.headers_mut());
            answer.headers_mut().remove(TRANSFER_ENCODING);
            return Ok((answer.map(Either::Left), false));
        }
        let Some(down) = down.filter(|_| is_websocket_answer(answer.headers())) else {
            self.upstream.lock().await.connection = None;
            return Err(Refusal::new(
                StatusCode::BAD_GATEWAY,
                "bad_answer",
                "the host has switched to a protocol that was not asked for",
                "the gate passes HTTP/1.1 and WebSockets",
            ));
        };
        let up = hyper::upgrade::on(&mut answer);
        *self.upgraded.lock().unwrap_or_else(PoisonError::into_inner) = Some((down, up));
        Ok((answer.map(|_| Either::Right(Full::default())), true))
    }

    /// Sends a request over the connection there is, or over a new one.
    async fn send(&self, mut request: Request<Up>) -> Result<Response<Incoming>, Refusal> {
        let mut upstream = self.upstream.lock().await;
        loop {
            let (mut connection, used) = match upstream.connection.take() {
                Some(mut connection) => {
                    let ready = tokio::time::timeout(READY_TIMEOUT, connection.requests.ready()).await;
                    if !matches!(ready, Ok(Ok(()))) {
                        continue;
                    }
                    (connection, true)
                }
                None => ((upstream.connect(self.name, self.port).await)?, false),
            };
            // A connection that was open may close while it is written to. What has no body and
            // changes nothing is then asked once more (RFC 9110 section 9.2.2).
            let again = (used && is_repeatable(&request)).then(|| copy(&request));
            match connection.requests.try_send_request(request).await {
                Ok(answer) => {
                    upstream.connection = Some(connection);
                    return Ok(answer);
                }
                Err(mut failed) => {
                    if used && let Some(unsent) = failed.take_message() {
                        request = unsent;
                        continue;
                    }
                    let error = failed.into_error();
                    if let Some(again) =
                        again.filter(|_| error.is_closed() || error.is_incomplete_message() || error.is_canceled())
                    {
                        request = again;
                        continue;
                    }
                    tracing::debug!(name = self.name.as_str(), %error, source = ?error.source(), "a request got no answer");
                    return Err(unanswered(&error));
                }
            }
        }
    }
}

impl<D, F, S> Upstream<D>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    D: FnMut() -> F + Send,
    F: Future<Output = io::Result<S>> + Send,
{
    async fn connect(&mut self, name: &Host, port: u16) -> Result<Connection, Refusal> {
        let stream = (self.dial)().await.map_err(|error| undialled(&error, name, port))?;
        let (requests, connection) = client::Builder::new()
            .preserve_header_case(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| undialled(&io::Error::other(error), name, port))?;
        let driver = tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        Ok(Connection { requests, driver })
    }
}

/// One request, told to the observer when this goes: with an answer, or without.
struct Seen<'a> {
    number: u64,
    shared: &'a Shared,
    observe: &'a (dyn Fn(Event<'_>) + Sync),
    method: Method,
    path: Box<str>,
    status: Option<StatusCode>,
    verdict: Outcome,
    why: &'static str,
    raw: bool,
}

impl<'a> Seen<'a> {
    fn new<D>(relay: &'a Relay<'_, D>, number: u64, request: Option<&Request<Incoming>>) -> Self {
        let path = request.map_or("", |request| request.uri().path());
        let mut end = path.len().min(PATH_BYTES_MAX);
        while !path.is_char_boundary(end) {
            end -= 1;
        }
        Self {
            number,
            shared: &relay.shared,
            observe: relay.observe,
            method: request.map_or(Method::GET, |request| request.method().clone()),
            path: path[..end].into(),
            status: None,
            verdict: Outcome::Deny,
            why: "allowed_rule",
            raw: false,
        }
    }

    fn refuse(&mut self, refusal: &Refusal) -> Response<Down> {
        self.verdict = Outcome::Deny;
        self.answer(refusal)
    }

    fn answer(&mut self, refusal: &Refusal) -> Response<Down> {
        self.status = Some(refusal.status);
        self.why = refusal.code;
        refusal.response().map(Either::Right)
    }
}

impl Drop for Seen<'_> {
    fn drop(&mut self) {
        self.shared.answered(self.number, self.raw);
        (self.observe)(Event {
            method: if self.path.is_empty() { "" } else { self.method.as_str() },
            path: &self.path,
            status: self.status.map(|status| status.as_u16()),
            verdict: self.verdict,
            why: self.why,
        });
    }
}

/// May a request be sent a second time?
fn is_repeatable(request: &Request<Up>) -> bool {
    let safe = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
    safe && matches!(request.body(), Either::Right(_))
}

fn copy(request: &Request<Up>) -> Request<Up> {
    let mut copy = Request::new(Either::Right(Empty::new()));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    copy
}

/// Why there is no connection to the upstream.
fn undialled(error: &io::Error, name: &Host, port: u16) -> Refusal {
    if let Some(refused) = error.get_ref().and_then(|inner| inner.downcast_ref::<DialRefused>()) {
        return Refusal {
            status: StatusCode::FORBIDDEN,
            code: refused.code,
            message: refused.message.clone().into(),
            hint: refused.hint.clone().into(),
        };
    }
    let (status, code) = match error.kind() {
        io::ErrorKind::TimedOut => (StatusCode::GATEWAY_TIMEOUT, "dial_timeout"),
        io::ErrorKind::NotFound => (StatusCode::BAD_GATEWAY, "no_address"),
        _ => (StatusCode::BAD_GATEWAY, "dial_failed"),
    };
    Refusal {
        status,
        code,
        message: format!("`{name}:{port}` is allowed, but there is no connection to it: {error}").into(),
        hint: "see whether the host is up, and try again".into(),
    }
}

/// Why a request that was sent got no answer.
fn unanswered(error: &hyper::Error) -> Refusal {
    if error.is_user() {
        return Refusal::new(
            StatusCode::BAD_REQUEST,
            "bad_body",
            "the request's body broke off, or is not framed as its head says",
            "send the whole body, as RFC 9112 says",
        );
    }
    if error.is_parse() || error.is_parse_too_large() {
        return Refusal::new(
            StatusCode::BAD_GATEWAY,
            "bad_answer",
            "the host's answer is no HTTP/1.1",
            "use `tcp://` in the rule if the host speaks another protocol at this port",
        );
    }
    Refusal::new(
        StatusCode::BAD_GATEWAY,
        "no_answer",
        "the host has closed the connection without an answer",
        "try again",
    )
}
