//! Services: added, looked at and waited for, started, stopped, removed.

use std::time::Duration;

use axum::{Json, extract::State, http::StatusCode};
use den_api::service::{AddService, SERVICE_WAIT_MS_MAX, ServiceList, ServiceView};
use serde::Deserialize;

use super::{App, who};
use crate::{
    error::ApiError,
    extract::{Body, Path, Query},
};

/// Gives a computer a service. It is started at once where the computer runs, and at each start of it.
#[utoipa::path(
    post,
    path = "/v1/computers/{c}/services",
    tag = "services",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    request_body = AddService,
    responses((status = 201, description = "It is recorded; its state says how far it is", body = ServiceView))
)]
pub(crate) async fn add(
    State(app): State<App>,
    Path(c): Path<String>,
    Body(request): Body<AddService>,
) -> Result<(StatusCode, Json<ServiceView>), ApiError> {
    Ok((StatusCode::CREATED, Json(app.control.add_service(&c, request, &who()).await?)))
}

/// Lists the services of a computer.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/services",
    tag = "services",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    responses((status = 200, description = "By name", body = ServiceList))
)]
pub(crate) async fn list(State(app): State<App>, Path(c): Path<String>) -> Result<Json<ServiceList>, ApiError> {
    Ok(Json(ServiceList { items: app.control.services(&c)? }))
}

/// How to look at a service.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Look {
    seen: Option<u64>,
    wait_ms: Option<u64>,
}

/// One service; with `wait_ms` once it is another than at the revision `seen`, or when that time is over.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/services/{service}",
    tag = "services",
    params(
        ("c" = String, Path, description = "Name, id or unique beginning of an id"),
        ("service" = String, Path, description = "The service's name"),
        ("seen" = Option<u64>, Query, description = "A `revision`: waits while it is this one"),
        ("wait_ms" = Option<u64>, Query, description = "How long to wait at most, up to 60000"),
    ),
    responses((status = 200, description = "As it is now", body = ServiceView))
)]
pub(crate) async fn get(
    State(app): State<App>,
    Path((c, service)): Path<(String, String)>,
    Query(Look { seen, wait_ms }): Query<Look>,
) -> Result<Json<ServiceView>, ApiError> {
    if wait_ms.is_some_and(|wait| wait > SERVICE_WAIT_MS_MAX) {
        return Err(ApiError::bad_request(format!("`wait_ms` is beyond {SERVICE_WAIT_MS_MAX}"))
            .hint("ask again with `seen` when the time is over"));
    }
    let wait = wait_ms.map(Duration::from_millis).unwrap_or_default();
    Ok(Json(app.control.service(&c, &service, seen, wait).await?))
}

/// Has a service run from now on, while its computer runs. One that runs goes on.
#[utoipa::path(
    post,
    path = "/v1/computers/{c}/services/{service}/start",
    tag = "services",
    params(
        ("c" = String, Path, description = "Name, id or unique beginning of an id"),
        ("service" = String, Path, description = "The service's name"),
    ),
    responses((status = 200, description = "It is recorded; its state says how far it is", body = ServiceView))
)]
pub(crate) async fn start(
    State(app): State<App>,
    Path((c, service)): Path<(String, String)>,
) -> Result<Json<ServiceView>, ApiError> {
    Ok(Json(app.control.start_service(&c, &service, &who()).await?))
}

/// Ends a service until it is started again, also over starts of its computer.
#[utoipa::path(
    post,
    path = "/v1/computers/{c}/services/{service}/stop",
    tag = "services",
    params(
        ("c" = String, Path, description = "Name, id or unique beginning of an id"),
        ("service" = String, Path, description = "The service's name"),
    ),
    responses((status = 200, description = "It has ended", body = ServiceView))
)]
pub(crate) async fn stop(
    State(app): State<App>,
    Path((c, service)): Path<(String, String)>,
) -> Result<Json<ServiceView>, ApiError> {
    Ok(Json(app.control.stop_service(&c, &service, &who()).await?))
}

/// Ends a service and starts it.
#[utoipa::path(
    post,
    path = "/v1/computers/{c}/services/{service}/restart",
    tag = "services",
    params(
        ("c" = String, Path, description = "Name, id or unique beginning of an id"),
        ("service" = String, Path, description = "The service's name"),
    ),
    responses((status = 200, description = "It has ended; its state says how far it is again", body = ServiceView))
)]
pub(crate) async fn restart(
    State(app): State<App>,
    Path((c, service)): Path<(String, String)>,
) -> Result<Json<ServiceView>, ApiError> {
    Ok(Json(app.control.restart_service(&c, &service, &who()).await?))
}

/// Ends and forgets a service. Its steps and their output stay.
#[utoipa::path(
    delete,
    path = "/v1/computers/{c}/services/{service}",
    tag = "services",
    params(
        ("c" = String, Path, description = "Name, id or unique beginning of an id"),
        ("service" = String, Path, description = "The service's name"),
    ),
    responses((status = 204, description = "It has ended and is forgotten"))
)]
pub(crate) async fn remove(
    State(app): State<App>,
    Path((c, service)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    app.control.remove_service(&c, &service, &who()).await?;
    Ok(StatusCode::NO_CONTENT)
}
