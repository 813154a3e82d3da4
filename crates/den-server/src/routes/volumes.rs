//! Shared volumes: made, looked at, removed.

use axum::{Json, extract::State, http::StatusCode};
use den_api::{CreateVolume, VolumeList, VolumeView};

use super::{App, who};
use crate::{
    error::ApiError,
    extract::{Body, Path},
};

/// Lists the shared volumes, the oldest first.
#[utoipa::path(
    get,
    path = "/v1/volumes",
    tag = "volumes",
    responses((status = 200, description = "What each may hold, and who mounts it", body = VolumeList))
)]
pub(crate) async fn list(State(app): State<App>) -> Json<VolumeList> {
    Json(app.control.volumes())
}

/// Makes a shared volume.
#[utoipa::path(
    post,
    path = "/v1/volumes",
    tag = "volumes",
    request_body = CreateVolume,
    responses((status = 201, description = "It is there, and empty", body = VolumeView))
)]
pub(crate) async fn create(
    State(app): State<App>,
    Body(request): Body<CreateVolume>,
) -> Result<(StatusCode, Json<VolumeView>), ApiError> {
    Ok((StatusCode::CREATED, Json(app.control.make_volume(request, &who()).await?)))
}

/// One shared volume.
#[utoipa::path(
    get,
    path = "/v1/volumes/{volume}",
    tag = "volumes",
    params(("volume" = String, Path, description = "Its name or id")),
    responses((status = 200, description = "What it may hold, and who mounts it", body = VolumeView))
)]
pub(crate) async fn get(State(app): State<App>, Path(volume): Path<String>) -> Result<Json<VolumeView>, ApiError> {
    Ok(Json(app.control.volume(&volume)?))
}

/// Removes a shared volume with all that is in it, for good. One that a computer mounts stays, also where that lies in
/// the trash.
#[utoipa::path(
    delete,
    path = "/v1/volumes/{volume}",
    tag = "volumes",
    params(("volume" = String, Path, description = "Its name or id")),
    responses((status = 204, description = "It is gone"))
)]
pub(crate) async fn remove(State(app): State<App>, Path(volume): Path<String>) -> Result<StatusCode, ApiError> {
    app.control.remove_volume(&volume, &who()).await?;
    Ok(StatusCode::NO_CONTENT)
}
