//! What stands before every handler.
//!
//! ```text
//! request ─► id ─► Host (loopback only) ─► token (/v1 only) ─► handler ─► refusal's body ─► response
//!                                                                └ a panic becomes `internal`
//! ```
//!
//! - Authority is the token and nothing else; the token is looked at before the path is, so an
//!   unknown path under `/v1` tells a stranger nothing.
//! - On a loopback address only loopback names are taken as `Host`: a page whose name was rebound
//!   to 127.0.0.1 is refused before anything is read from it.

use std::{
    net::{IpAddr, SocketAddr},
    panic::AssertUnwindSafe,
    time::Instant,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use den_model::{Id, id::Kind};
use futures_util::FutureExt;
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    Token,
    error::{ApiError, Refusal},
};

/// The response's header that names the request.
pub const REQUEST_ID_HEADER: &str = "x-request-id";

/// The kind of [`RequestId`]s.
pub(crate) enum RequestKind {}

impl Kind for RequestKind {
    const PREFIX: &'static str = "req";
}

/// Names a request in the log and in every refusal; in a request's extensions.
#[derive(Clone)]
pub(crate) struct RequestId(pub(crate) String);

/// The two ends of the connection that a request came over; in a request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// The address that the daemon listens on.
    pub listening: SocketAddr,
    /// The client's address.
    pub peer: SocketAddr,
}

/// The middleware around all routes.
pub(crate) async fn guard(State(token): State<Token>, mut request: Request, next: Next) -> Response {
    let id = Id::<RequestKind>::from_uuid(Uuid::now_v7()).to_string();
    let span = tracing::debug_span!("request", id, method = %request.method(), path = request.uri().path());
    let began = Instant::now();
    request.extensions_mut().insert(RequestId(id.clone()));

    let mut response =
        match admit(&request, &token) {
            Err(refusal) => refusal.into_response(),
            Ok(()) => AssertUnwindSafe(next.run(request).instrument(span.clone())).catch_unwind().await.unwrap_or_else(
                |panic| ApiError::internal(format!("a handler panicked: {}", words(&*panic))).into_response(),
            ),
        };
    if let Some(Refusal(error)) = response.extensions_mut().remove::<Refusal>() {
        let headers = std::mem::take(response.headers_mut());
        response = error.render(&id);
        for (name, value) in &headers {
            // Such as Allow, Content-Range and WWW-Authenticate; never the length of no body.
            if !matches!(*name, header::CONTENT_LENGTH | header::CONTENT_TYPE) {
                response.headers_mut().append(name, value.clone());
            }
        }
    }
    tracing::debug!(parent: &span, status = response.status().as_u16(), took = ?began.elapsed(), "answered");
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID_HEADER, value);
    }
    response
}

fn admit(request: &Request, token: &Token) -> Result<(), ApiError> {
    if request.extensions().get::<Ends>().is_some_and(|ends| ends.listening.ip().is_loopback()) {
        check_host(request.uri(), request.headers())?;
    }
    let path = request.uri().path();
    if path == "/v1" || path.starts_with("/v1/") { authorised(request.headers(), token) } else { Ok(()) }
}

/// Whether a request has the token.
pub(crate) fn authorised(headers: &HeaderMap, token: &Token) -> Result<(), ApiError> {
    if bearer(headers).is_some_and(|it| token.matches(it)) { Ok(()) } else { Err(unauthorized(headers)) }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

fn unauthorized(headers: &HeaderMap) -> ApiError {
    let message = if headers.contains_key(header::AUTHORIZATION) {
        "the bearer token is not the daemon's"
    } else {
        "the request has no bearer token"
    };
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
        .hint("send `Authorization: Bearer TOKEN`; the token is in `client.json` in the daemon's data folder")
}

fn check_host(uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let given = match (uri.host(), headers.get(header::HOST)) {
        (Some(host), _) => host, // The absolute form, which outranks the header: RFC 9112 section 3.2.2.
        (None, Some(value)) => value.to_str().unwrap_or("?"),
        (None, None) => return Ok(()), // HTTP/1.0; no browser sends it.
    };
    if is_loopback_name(given) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        "host_refused",
        format!("`Host: {given}` names no loopback address, and the daemon listens on one"),
    )
    .hint("use the url of `client.json`, or start `den serve` with `--listen ADDRESS:PORT`"))
}

/// Whether a `Host` (with or without port) can only mean this machine.
fn is_loopback_name(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(address, _)| address),
        None => host.rsplit_once(':').filter(|(name, _)| !name.contains(':')).map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without words")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_pass() {
        for name in ["localhost", "LocalHost:7878", "127.0.0.1:7878", "127.0.0.1", "[::1]:7878", "[::1]", "127.8.9.1:1"]
        {
            assert!(is_loopback_name(name), "{name}");
        }
        for name in [
            "",
            "evil.test",
            "evil.test:7878",
            "localhost.evil.test",
            "10.0.0.1",
            "[::2]:1",
            "[::1",
            "127.0.0.1.evil.test",
        ] {
            assert!(!is_loopback_name(name), "{name}");
        }
    }

    #[test]
    fn the_scheme_has_no_case() {
        let mut headers = HeaderMap::new();
        for (value, token) in
            [("Bearer a", Some(&b"a"[..])), ("bearer  a ", Some(b"a")), ("Basic a", None), ("Bear", None)]
        {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            assert_eq!(bearer(&headers), token, "{value}");
        }
    }
}
