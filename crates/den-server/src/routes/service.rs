//! The daemon itself: whether it lives, who it is, its contract, its end.

use std::{sync::LazyLock, time::Duration};

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use den_api::{Shutdown, VersionView};
use den_control::limits::GRACE_MAX;

use super::App;
use crate::{error::ApiError, extract::Body};

static OPENAPI: LazyLock<Bytes> = LazyLock::new(|| crate::openapi_json().into());

/// Says that the daemon lives. Needs no token.
#[utoipa::path(get, path = "/healthz", tag = "service", security(()), responses((status = 200, description = "`ok`")))]
pub(crate) async fn healthz() -> &'static str {
    "ok"
}

/// Says who answers.
#[utoipa::path(
    get,
    path = "/v1/version",
    tag = "service",
    responses((status = 200, description = "Version, data folder, storage", body = VersionView))
)]
pub(crate) async fn version(State(app): State<App>) -> Json<VersionView> {
    Json(app.control.version().await)
}

/// This contract.
#[utoipa::path(
    get,
    path = "/v1/openapi.json",
    tag = "service",
    responses((status = 200, description = "OpenAPI", content_type = "application/json"))
)]
pub(crate) async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI.clone())
}

/// Stops all computers, then ends the launcher and the daemon. The answer comes before that is done.
#[utoipa::path(
    post,
    path = "/v1/shutdown",
    tag = "service",
    request_body = Shutdown,
    responses((status = 202, description = "It has begun"))
)]
pub(crate) async fn shutdown(State(app): State<App>, Body(shutdown): Body<Shutdown>) -> Result<StatusCode, ApiError> {
    let grace = shutdown.grace_ms.map(Duration::from_millis);
    if grace.is_some_and(|grace| grace > GRACE_MAX) {
        let most = GRACE_MAX.as_millis();
        return Err(ApiError::bad_request(format!("`grace_ms` is beyond {most}")));
    }
    // A task of its own, for the client may go before it is done. It ends with the daemon.
    tokio::spawn(async move {
        if let Err(error) = app.control.shutdown(grace).await {
            tracing::error!(code = error.code, error = error.message, "the shutdown was not clean");
        }
        app.stop.cancel();
    });
    Ok(StatusCode::ACCEPTED)
}
