//! Sleeping, and being cut off.

use axum::{Json, extract::State};
use den_api::{ChangeComputer, ComputerView, PauseComputer, UnpluggedList};

use super::{App, who};
use crate::{
    error::ApiError,
    extract::{Body, Path},
};

/// Changes what may be changed of a computer while it is there: its size, and when it sleeps by itself. A size that
/// cannot be is refused, and nothing is changed.
#[utoipa::path(
    patch,
    path = "/v1/computers/{c}",
    tag = "computers",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    request_body = ChangeComputer,
    responses((status = 200, description = "As it is now", body = ComputerView))
)]
pub(crate) async fn change(
    State(app): State<App>,
    Path(c): Path<String>,
    Body(change): Body<ChangeComputer>,
) -> Result<Json<ComputerView>, ApiError> {
    Ok(Json(app.control.change(&c, &change, &who()).await?))
}

/// Has all processes of a computer stand still; its memory and connections are kept. A request for it wakes it.
#[utoipa::path(
    post,
    path = "/v1/computers/{c}/pause",
    tag = "computers",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    request_body = PauseComputer,
    responses((status = 200, description = "It stands still", body = ComputerView))
)]
pub(crate) async fn pause(
    State(app): State<App>,
    Path(c): Path<String>,
    Body(pause): Body<PauseComputer>,
) -> Result<Json<ComputerView>, ApiError> {
    if pause.to_disk {
        return Ok(Json(app.control.hibernate(&c, &who()).await?));
    }
    Ok(Json(app.control.pause(&c, &who()).await?))
}

/// Lets the processes of a paused computer go on.
#[utoipa::path(
    post,
    path = "/v1/computers/{c}/resume",
    tag = "computers",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    responses((status = 200, description = "It runs", body = ComputerView))
)]
pub(crate) async fn resume(State(app): State<App>, Path(c): Path<String>) -> Result<Json<ComputerView>, ApiError> {
    Ok(Json(app.control.resume(&c, &who()).await?))
}

/// Cuts a computer off, whatever it is doing: its processes stand still, its flows end, nothing gets in. Disk,
/// memory, output and records stay.
#[utoipa::path(
    post,
    path = "/v1/computers/{c}/unplug",
    tag = "computers",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    responses((status = 200, description = "It is cut off", body = ComputerView))
)]
pub(crate) async fn unplug(State(app): State<App>, Path(c): Path<String>) -> Result<Json<ComputerView>, ApiError> {
    Ok(Json(app.control.unplug(&c, &who()).await?))
}

/// Cuts all computers off at once.
#[utoipa::path(
    post,
    path = "/v1/unplug",
    tag = "computers",
    responses((status = 200, description = "All that are cut off now", body = UnpluggedList))
)]
pub(crate) async fn unplug_all(State(app): State<App>) -> Result<Json<UnpluggedList>, ApiError> {
    Ok(Json(UnpluggedList { items: app.control.unplug_all(&who()).await? }))
}

/// Takes a computer that was cut off back to what it was.
#[utoipa::path(
    post,
    path = "/v1/computers/{c}/replug",
    tag = "computers",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    responses((status = 200, description = "As it was", body = ComputerView))
)]
pub(crate) async fn replug(State(app): State<App>, Path(c): Path<String>) -> Result<Json<ComputerView>, ApiError> {
    Ok(Json(app.control.replug(&c, &who()).await?))
}
