//! How the daemon does: metrics, readiness, what all computers use.

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use den_api::{Readiness, UsageList};

use super::App;
use crate::{error::ApiError, guard::authorised};

/// Prometheus' text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Metrics in the text format of Prometheus. Needs the token unless the daemon was told otherwise.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "service",
    responses((status = 200, description = "Metrics", body = String, content_type = "text/plain"))
)]
pub(crate) async fn metrics(State(app): State<App>, headers: HeaderMap) -> Result<Response, ApiError> {
    if !app.metrics.open {
        authorised(&headers, &app.token)?;
    }
    let text = app.control.metrics(app.metrics.per_computer).await?;
    Ok(([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response())
}

/// Says what all computers use at this moment.
#[utoipa::path(
    get,
    path = "/v1/usage",
    tag = "service",
    responses((status = 200, description = "Every computer, and the host", body = UsageList))
)]
pub(crate) async fn usage(State(app): State<App>) -> Result<Json<UsageList>, ApiError> {
    Ok(Json(app.control.usage().await?))
}

/// Says whether the daemon can do its work, part by part. Needs no token; what is wrong is said only with it.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "service",
    security(()),
    responses(
        (status = 200, description = "All is well", body = Readiness),
        (status = 503, description = "Something is not", body = Readiness),
    )
)]
pub(crate) async fn readyz(State(app): State<App>, headers: HeaderMap) -> (StatusCode, Json<Readiness>) {
    let mut readiness = app.control.ready().await;
    if authorised(&headers, &app.token).is_err() {
        for check in &mut readiness.checks {
            (check.error, check.hint) = (None, None);
        }
    }
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}
