//! Requests for the ports that a sandbox's own servers listen on.
//!
//! ```text
//! client ═http═ here ═unix═ carried ═ agent ═tcp═ server inside
//! ```
//!
//! A connection a request: what is kept alive is the client's. An upgrade is carried through as bytes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header, request::Parts},
    response::Response,
};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::{
    E2b,
    book::Sandbox,
    build::START,
    envd::{cut, edge, not_found},
    net::host_inside,
    time::{SECOND, now},
};

/// How long a port is waited for that a start command is about to open, and between two looks.
const START_WAIT: Duration = Duration::from_secs(10);
const START_LOOK: Duration = Duration::from_millis(25);

/// For how long after its start, or its end, a start command is about to open its ports: microseconds.
const STARTED_LATELY: i64 = 30 * SECOND;

/// Headers of one connection, which are not passed on: RFC 9110 section 7.6.1.
const OF_CONNECTION: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRAILER,
];

/// Passes a request on to a port of a sandbox.
pub(crate) async fn proxy(e2b: &E2b, sandbox: &Arc<Sandbox>, port: u16, mut request: Request) -> Response {
    let closed = || edge(502, &sandbox.id, "The sandbox is running but port is not open", Some(port));
    let connection = match dial(e2b, &sandbox.id, port).await {
        Ok(connection) => connection,
        Err(error) => {
            return match error.code {
                "port_refused" | "port_failed" => closed(),
                "too_many" => edge(429, &sandbox.id, "too many connections to the sandbox", None),
                _ => not_found(&sandbox.id),
            };
        }
    };
    let (ours, theirs) = match UnixStream::pair() {
        Ok(pair) => pair,
        Err(error) => {
            tracing::warn!(%error, "no pair of sockets for a proxied request");
            return edge(503, &sandbox.id, "no descriptors are left", None);
        }
    };
    tokio::spawn(connection.carry(theirs, &[]));
    let (mut sender, driver) = match http1::handshake::<_, Body>(TokioIo::new(ours)).await {
        Ok(both) => both,
        Err(_) => return closed(),
    };
    let driver = tokio::spawn(driver.with_upgrades());
    let upgrade = is_upgrade(request.headers());
    let client = hyper::upgrade::on(&mut request);
    let (mut parts, body) = request.into_parts();
    to_one(&mut parts);
    if let Some(host) = host_inside(sandbox.facts().network.as_ref(), port) {
        parts.headers.insert(header::HOST, host);
    }
    // A server is asked for a path, not for the URL.
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).parse();
    parts.uri = path.unwrap_or_default();
    if !upgrade {
        OF_CONNECTION.iter().for_each(|name| drop(parts.headers.remove(name)));
    }
    let answered = tokio::select! {
        biased;
        () = sandbox.not_running() => {
            driver.abort();
            return not_found(&sandbox.id);
        }
        answered = sender.send_request(Request::from_parts(parts, body)) => answered,
    };
    let mut response = match answered {
        Ok(response) => response,
        Err(error) => {
            tracing::debug!(sandbox = sandbox.id, port, %error, "a server inside gave no answer");
            driver.abort();
            return closed();
        }
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let server = hyper::upgrade::on(&mut response);
        let sandbox = Arc::clone(sandbox);
        tokio::spawn(async move {
            let (Ok(client), Ok(server)) = tokio::join!(client, server) else { return };
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            tokio::select! {
                () = sandbox.not_running() => {}
                _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
            }
        });
        return response.map(|_| Body::empty());
    }
    let (mut parts, body) = response.into_parts();
    OF_CONNECTION.iter().for_each(|name| drop(parts.headers.remove(name)));
    parts.headers.remove(header::TRANSFER_ENCODING);
    parts.headers.remove(header::UPGRADE);
    // The sender stays until the body is done, for the connection ends with it.
    let stream = http_body_util::BodyDataStream::new(body);
    let stream = futures_util::StreamExt::map(stream, move |bytes| {
        let _held = &sender;
        bytes
    });
    Response::from_parts(parts, cut(Arc::clone(sandbox), stream))
}

/// Connects to a port; one that is closed is waited for while the start command of the template begins.
async fn dial(e2b: &E2b, id: &str, port: u16) -> Result<den_control::Connection, den_control::Error> {
    let until = Instant::now() + START_WAIT;
    loop {
        match e2b.control().dial(id, port).await {
            Err(error) if error.code == "port_refused" && Instant::now() < until && begins(e2b, id).await => {
                tokio::time::sleep(START_LOOK).await;
            }
            done => return done,
        }
    }
}

/// Whether the start command of a sandbox's template was begun, or ended, only just now.
async fn begins(e2b: &E2b, id: &str) -> bool {
    let seen = e2b.control().service(id, START, None, Duration::ZERO).await;
    seen.is_ok_and(|service| match service.state.as_str() {
        "starting" | "backing_off" => true,
        _ => service.wanted && now() - service.since < STARTED_LATELY,
    })
}

/// Makes HTTP/2's head one of HTTP/1.1: the host is a header, and so are all cookies together (RFC 9113 section 8.2.3).
fn to_one(parts: &mut Parts) {
    if parts.version != Version::HTTP_2 {
        return;
    }
    parts.version = Version::HTTP_11;
    if let Some(host) = parts.uri.authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok()) {
        parts.headers.insert(header::HOST, host);
    }
    let cookies: Vec<&[u8]> = parts.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(cookies) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
        && !cookies.is_empty()
    {
        parts.headers.insert(header::COOKIE, cookies);
    }
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    let words = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let mut words = words.flat_map(|text| text.split(','));
    words.any(|word| word.trim().eq_ignore_ascii_case("upgrade")) && headers.contains_key(header::UPGRADE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_of_http_2_becomes_one_of_http_1() {
        let request = Request::builder().version(Version::HTTP_2).uri("https://80-iab1.e2b.test:8443/x?y");
        let request = request.header("cookie", "a=1").header("cookie", "b=2").body(Body::empty()).unwrap();
        let (mut parts, _) = request.into_parts();
        to_one(&mut parts);
        assert_eq!(parts.version, Version::HTTP_11);
        assert_eq!(parts.headers["host"], "80-iab1.e2b.test:8443");
        assert_eq!(Vec::from_iter(parts.headers.get_all("cookie")), ["a=1; b=2"]);
        let request = Request::builder().uri("http://80-iab1.e2b.test/x").header("host", "other").body(Body::empty());
        let (mut parts, _) = request.unwrap().into_parts();
        to_one(&mut parts);
        assert_eq!((&parts.headers["host"], parts.headers.get("cookie")), (&HeaderValue::from_static("other"), None));
    }
}
