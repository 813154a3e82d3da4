//! Pools: made, looked at, changed, removed.

use axum::{Json, extract::State, http::StatusCode};
use den_api::{ChangePool, CreatePool, PoolList, PoolView};

use super::{App, who};
use crate::{
    error::ApiError,
    extract::{Body, Path},
};

/// Lists the pools, the default first.
#[utoipa::path(
    get,
    path = "/v1/pools",
    tag = "pools",
    responses((status = 200, description = "What each has, and what is taken of it", body = PoolList))
)]
pub(crate) async fn list(State(app): State<App>) -> Json<PoolList> {
    Json(app.control.pools())
}

/// Makes a pool.
#[utoipa::path(
    post,
    path = "/v1/pools",
    tag = "pools",
    request_body = CreatePool,
    responses((status = 201, description = "It is there, with nobody in it", body = PoolView))
)]
pub(crate) async fn create(
    State(app): State<App>,
    Body(request): Body<CreatePool>,
) -> Result<(StatusCode, Json<PoolView>), ApiError> {
    Ok((StatusCode::CREATED, Json(app.control.new_pool(request, &who()).await?)))
}

/// One pool.
#[utoipa::path(
    get,
    path = "/v1/pools/{pool}",
    tag = "pools",
    params(("pool" = String, Path, description = "Its name")),
    responses((status = 200, description = "What it has, and what is taken of it", body = PoolView))
)]
pub(crate) async fn get(State(app): State<App>, Path(pool): Path<String>) -> Result<Json<PoolView>, ApiError> {
    Ok(Json(app.control.pool(&pool)?))
}

/// Gives a pool other limits; what runs is held to them at once. Less than is taken is refused.
#[utoipa::path(
    patch,
    path = "/v1/pools/{pool}",
    tag = "pools",
    params(("pool" = String, Path, description = "Its name")),
    request_body = ChangePool,
    responses((status = 200, description = "As it is now", body = PoolView))
)]
pub(crate) async fn change(
    State(app): State<App>,
    Path(pool): Path<String>,
    Body(request): Body<ChangePool>,
) -> Result<Json<PoolView>, ApiError> {
    Ok(Json(app.control.change_pool(&pool, request, &who()).await?))
}

/// Removes a pool that nobody is in.
#[utoipa::path(
    delete,
    path = "/v1/pools/{pool}",
    tag = "pools",
    params(("pool" = String, Path, description = "Its name")),
    responses((status = 204, description = "It is gone"))
)]
pub(crate) async fn remove(State(app): State<App>, Path(pool): Path<String>) -> Result<StatusCode, ApiError> {
    app.control.remove_pool(&pool, &who()).await?;
    Ok(StatusCode::NO_CONTENT)
}
