//! What each request must be before it is passed on, and what is taken off it on the way.

use std::borrow::Cow;

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, StatusCode, Uri, Version};

use super::refusal::Refusal;
use super::strict::Fault;
use crate::host::Host;

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is passed on.
    Pass,
    /// It is passed on, and may become a WebSocket.
    PassWebSocket,
    /// It is not passed on.
    Refuse(Refusal),
}

/// Decides over one request on a connection that was let through to `name`, port `port`.
///
/// Every request passes here, whatever came before it on the connection. Later obligations of a
/// rule (methods and paths, credentials put in) have their place here too.
pub fn authorise<B>(request: &Request<B>, name: &Host, port: u16) -> Verdict {
    match decide(request, name, port) {
        Ok(verdict) => verdict,
        Err(refusal) => Verdict::Refuse(refusal),
    }
}

fn decide<B>(request: &Request<B>, name: &Host, port: u16) -> Result<Verdict, Refusal> {
    let (method, uri, headers) = (request.method(), request.uri(), request.headers());
    if *method == Method::CONNECT || *method == Method::TRACE || method.as_str().eq_ignore_ascii_case("track") {
        return Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "CONNECT and TRACE are not passed on: the gate is no proxy to tunnel through",
            "connect to the host directly; the gate is transparent",
        ));
    }
    if let Some(authority) = uri.authority() {
        if uri.scheme() != Some(&Scheme::HTTP) {
            return Err(bad_request("the target of a plain request is not an http:// URI or a path"));
        }
        agrees(authority.as_str(), name, port)?;
    } else if !(uri.path().starts_with('/') || (uri.path() == "*" && *method == Method::OPTIONS)) {
        return Err(bad_request("the target is neither a path nor an http:// URI"));
    }
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(bad_request("there is not exactly one Host header"));
    };
    let Ok(host) = host.to_str() else { return Err(bad_request("the Host header is not a host's name")) };
    agrees(host, name, port)?;
    Ok(if is_websocket(request) { Verdict::PassWebSocket } else { Verdict::Pass })
}

/// Is `authority` this name, at this port or none?
fn agrees(authority: &str, name: &Host, port: u16) -> Result<(), Refusal> {
    let parsed: Option<(Host, Option<u16>)> = authority.parse::<Authority>().ok().and_then(|authority| {
        // Who is asked by whom (`user@host`) has no place in a request.
        if authority.as_str().contains('@') {
            return None;
        }
        let port = match authority.port() {
            Some(port) => Some(port.as_str().parse().ok()?),
            // A colon with something else than a port after it, such as `:99999`, is no authority.
            None if authority.as_str().len() != authority.host().len() => return None,
            None => None,
        };
        Some((authority.host().parse().ok()?, port))
    });
    let said = match parsed {
        Some((host, said_port)) if host == *name && said_port.is_none_or(|said| said == port) => return Ok(()),
        Some((host, Some(port))) => Cow::Owned(format!("`{host}:{port}`")),
        Some((host, None)) => Cow::Owned(format!("`{host}`")),
        None => Cow::Borrowed("another host"),
    };
    Err(Refusal {
        status: StatusCode::MISDIRECTED_REQUEST,
        code: "host_mismatch",
        message: format!("the request is for {said}, on a connection that was let through to `{name}:{port}`").into(),
        hint: "open a connection of its own to each host; each one is held against the rules".into(),
    })
}

/// A request that asks for a WebSocket, and for nothing else (RFC 6455 section 4.1).
fn is_websocket<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    let mut upgrades = headers.get_all(UPGRADE).iter();
    let upgrade = matches!((upgrades.next(), upgrades.next()), (Some(one), None) if is_word(one, "websocket"));
    upgrade
        && *request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && has_token(headers, CONNECTION, "upgrade")
        && headers.contains_key("sec-websocket-key")
        && !headers.contains_key(TRANSFER_ENCODING)
        && headers.get(CONTENT_LENGTH).is_none_or(|length| length == "0")
}

/// Does an answer of 101 agree to a WebSocket?
pub(super) fn is_websocket_answer(headers: &HeaderMap) -> bool {
    let mut upgrades = headers.get_all(UPGRADE).iter();
    matches!((upgrades.next(), upgrades.next()), (Some(one), None) if is_word(one, "websocket"))
}

/// Makes a request what the upstream shall see: its own path, the host that was decided, and none
/// of the headers that are meant for the next hop.
pub(super) fn prepare<B>(request: &mut Request<B>, name: &Host, port: u16, websocket: bool) {
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    let trailers = has_token(headers, TE, "trailers");
    strip_hop(headers);
    headers.remove(EXPECT); // It is met here: reading the body sends 100.
    headers.remove("http2-settings");
    headers.remove("proxy-authorization");
    let host = if port == 80 { name.as_str().to_owned() } else { format!("{name}:{port}") };
    if let Ok(host) = HeaderValue::try_from(host) {
        headers.insert(HOST, host);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if websocket {
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
}

/// Takes off what is meant for the next hop only (RFC 9110 section 7.6.1). The framing stays, also
/// where `Connection` names it: it was read already, and is written anew by hyper.
pub(super) fn strip_hop(headers: &mut HeaderMap) {
    let kept = [CONTENT_LENGTH, TRANSFER_ENCODING, HOST, TRAILER];
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|token| HeaderName::try_from(token.trim()).ok())
        .filter(|name| !kept.contains(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [CONNECTION, UPGRADE, TE] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
}

fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let values = headers.get_all(name);
    values.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(|part| {
        let part = part.split(';').next().unwrap_or_default();
        part.trim().eq_ignore_ascii_case(token)
    })
}

fn is_word(value: &HeaderValue, word: &str) -> bool {
    value.as_bytes().trim_ascii().eq_ignore_ascii_case(word.as_bytes())
}

fn bad_request(message: &'static str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "bad_request", message, "send the request as RFC 9112 says")
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Malformed(what) => bad_request(what),
            Fault::TooLarge => Self::new(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "head_too_large",
                "the request's head is longer than 64 KiB or has more than 100 headers",
                "send fewer or shorter headers",
            ),
            Fault::TooSlow => Self::new(
                StatusCode::REQUEST_TIMEOUT,
                "head_timeout",
                "the request's head did not come within 10 seconds",
                "send a request's head at once",
            ),
        }
    }
}
