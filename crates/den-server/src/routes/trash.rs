//! The trash: looked at, emptied; and what was done taken back.

use axum::{Json, extract::State};
use den_api::{EmptiedList, TrashList, UndoList, UndoRequest, Undone};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{App, who};
use crate::{
    error::ApiError,
    extract::{Body, Path, Query},
};

/// Lists what lies in the trash, the first that was removed first.
#[utoipa::path(
    get,
    path = "/v1/trash",
    tag = "trash",
    responses((status = 200, description = "What was removed and can come back", body = TrashList))
)]
pub(crate) async fn list(State(app): State<App>) -> Json<TrashList> {
    Json(app.control.trash().await)
}

/// Removes for good all that lies in the trash.
#[utoipa::path(
    delete,
    path = "/v1/trash",
    tag = "trash",
    responses((status = 200, description = "What is gone", body = EmptiedList))
)]
pub(crate) async fn empty(State(app): State<App>) -> Result<Json<EmptiedList>, ApiError> {
    Ok(Json(app.control.empty_trash(None, &who()).await?))
}

/// Removes for good one computer in the trash.
#[utoipa::path(
    delete,
    path = "/v1/trash/{c}",
    tag = "trash",
    params(("c" = String, Path, description = "Id, unique beginning of an id, or the name that it had")),
    responses((status = 200, description = "It is gone", body = EmptiedList))
)]
pub(crate) async fn empty_one(State(app): State<App>, Path(c): Path<String>) -> Result<Json<EmptiedList>, ApiError> {
    Ok(Json(app.control.empty_trash(Some(&c), &who()).await?))
}

/// Takes back what was done last: a removal, a restore, a merge, a change of what a computer may reach.
#[utoipa::path(
    post,
    path = "/v1/undo",
    tag = "trash",
    request_body = UndoRequest,
    responses((status = 200, description = "It is taken back", body = Undone))
)]
pub(crate) async fn undo(State(app): State<App>, Body(undo): Body<UndoRequest>) -> Result<Json<Undone>, ApiError> {
    Ok(Json(app.control.undo(undo, &who()).await?))
}

/// Of what to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct UndoQuery {
    /// Only what was done to this computer.
    computer: Option<String>,
    /// Entries at most: 1 to 1000, 100 without.
    limit: Option<usize>,
}

/// Lists what was done and whether it can be taken back, the newest first.
#[utoipa::path(
    get,
    path = "/v1/undo",
    tag = "trash",
    params(UndoQuery),
    responses((status = 200, description = "What was done", body = UndoList))
)]
pub(crate) async fn undo_list(
    State(app): State<App>,
    Query(query): Query<UndoQuery>,
) -> Result<Json<UndoList>, ApiError> {
    Ok(Json(app.control.undo_list(query.computer.as_deref(), query.limit).await?))
}
