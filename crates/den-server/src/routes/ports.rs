//! Ports inside: what listens, and connections to it over an upgraded HTTP connection.
//!
//! ```text
//! GET …/ports/{port}/connect, Upgrade: den-tcp ─► dialled inside ─► 101, then the connection's bytes
//!                                                     └ refused ─► an ordinary refusal
//! ```
//!
//! An upgraded connection has no time limit. Keep-alive finds a client's host that is gone.

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::{FromRequestParts, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::Response,
};
use den_api::{PortList, ports::PORT_UPGRADE};
use den_control::Connection;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use tokio::net::TcpStream;

use super::App;
use crate::{error::ApiError, extract::Path};

/// Silence after which TCP asks whether the client's host is still there.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);

/// Lists what listens inside.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/ports",
    tag = "ports",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    responses((status = 200, description = "TCP sockets that listen, UDP sockets that take from anyone", body = PortList))
)]
pub(crate) async fn list(State(app): State<App>, Path(c): Path<String>) -> Result<Json<PortList>, ApiError> {
    Ok(Json(PortList { items: app.control.ports(&c).await? }))
}

/// A request that is to become a connection.
pub(crate) struct Upgrade(OnUpgrade);

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let asked = has_word(&parts.headers, header::CONNECTION, "upgrade")
            && has_word(&parts.headers, header::UPGRADE, PORT_UPGRADE);
        match parts.extensions.remove::<OnUpgrade>() {
            Some(upgrade) if asked => Ok(Self(upgrade)),
            _ => Err(ApiError::new(
                StatusCode::UPGRADE_REQUIRED,
                "upgrade_required",
                "this becomes a TCP connection, which the request does not ask for",
            )
            .hint("send `Connection: upgrade` and `Upgrade: den-tcp` over HTTP/1.1; `den forward` does")),
        }
    }
}

/// Whether a header is a list with this word in it.
fn has_word(headers: &HeaderMap, name: header::HeaderName, word: &str) -> bool {
    let values = headers.get_all(name);
    let mut words = values.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    words.any(|given| given.trim().eq_ignore_ascii_case(word))
}

/// Connects to a TCP port inside, loopback-only servers included. After `101` the connection carries
/// the bytes of the one inside: an end in either direction is passed on by itself, a break as a reset.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/ports/{port}/connect",
    tag = "ports",
    params(
        ("c" = String, Path, description = "Name, id or unique beginning of an id"),
        ("port" = u16, Path, description = "The port, 1 to 65535"),
        ("upgrade" = String, Header, description = "`den-tcp`, with `Connection: upgrade`"),
    ),
    responses((status = 101, description = "The connection's bytes from here on"))
)]
pub(crate) async fn connect(
    State(app): State<App>,
    Path((c, port)): Path<(String, u16)>,
    Upgrade(upgrade): Upgrade,
) -> Result<Response, ApiError> {
    if port == 0 {
        return Err(ApiError::bad_request("port 0 is none").hint("a port is a number from 1 to 65535"));
    }
    let connection = app.control.dial(&c, port).await?;
    tokio::spawn(carry(connection, upgrade));
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(PORT_UPGRADE));
    Ok(response)
}

async fn carry(connection: Connection, upgrade: OnUpgrade) {
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => return tracing::debug!(%error, "a client went away before its connection was there"),
    };
    let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else {
        return tracing::error!("an upgraded connection is no TCP connection");
    };
    let client = parts.io.into_inner();
    let kept =
        sockopt::set_socket_keepalive(&client, true).and_then(|()| sockopt::set_tcp_keepidle(&client, KEEPALIVE_AFTER));
    if let Err(error) = kept {
        tracing::debug!(%error, "SO_KEEPALIVE is not set");
    }
    connection.carry(client, &parts.read_buf).await;
}
