//! Images: list, look, remove, and the long jobs that bring them in.
//!
//! A job's answer is NDJSON, one JobEvent per line as it happens; the last one is `done` or
//! `failed`. A client that goes away ends its job, and nothing of it is left.

use std::path::PathBuf;

use axum::{Extension, Json, body::Body as HttpBody, extract::State, http::StatusCode, response::Response};
use den_api::{BuildImage, ImageList, ImageView, JobEvent, PullImage};
use den_control::Job;
use futures_util::stream;
use serde::Deserialize;
use tokio_util::io::{StreamReader, SyncIoBridge};
use utoipa::IntoParams;

use super::{App, transfer::Upload};
use crate::{
    error::ApiError,
    extract::{Body, Path, Query, computer_path},
    guard::{Ends, RequestId},
    serve::is_local,
};

/// Lists the images.
#[utoipa::path(
    get,
    path = "/v1/images",
    tag = "images",
    responses((status = 200, description = "All of them", body = ImageList))
)]
pub(crate) async fn list(State(app): State<App>) -> Result<Json<ImageList>, ApiError> {
    Ok(Json(ImageList { items: app.control.images().await? }))
}

/// Shows an image.
#[utoipa::path(
    get,
    path = "/v1/images/{*name}",
    tag = "images",
    params(("name" = String, Path, description = "An image's name; slashes in it are as they are")),
    responses((status = 200, description = "The image", body = ImageView))
)]
pub(crate) async fn get(State(app): State<App>, Path(name): Path<String>) -> Result<Json<ImageView>, ApiError> {
    Ok(Json(app.control.image(&name).await?))
}

/// Removes an image's name, and with its last name its layers once no computer stands on them.
#[utoipa::path(
    delete,
    path = "/v1/images/{*name}",
    tag = "images",
    params(("name" = String, Path, description = "An image's name; slashes in it are as they are")),
    responses((status = 204, description = "It is gone"))
)]
pub(crate) async fn remove(State(app): State<App>, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    app.control.remove_image(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Fetches an image from a registry.
#[utoipa::path(
    post,
    path = "/v1/images/pull",
    tag = "images",
    request_body = PullImage,
    responses((status = 200, description = "A line per JobEvent", content_type = "application/x-ndjson", body = JobEvent))
)]
pub(crate) async fn pull(
    State(app): State<App>,
    Extension(RequestId(request)): Extension<RequestId>,
    Body(pull): Body<PullImage>,
) -> Result<Response, ApiError> {
    Ok(lines(app.control.pull_image(pull).await?, request))
}

/// Builds an image from Debian packages.
#[utoipa::path(
    post,
    path = "/v1/images/build",
    tag = "images",
    request_body = BuildImage,
    responses((status = 200, description = "A line per JobEvent", content_type = "application/x-ndjson", body = JobEvent))
)]
pub(crate) async fn build(
    State(app): State<App>,
    Extension(RequestId(request)): Extension<RequestId>,
    Body(build): Body<BuildImage>,
) -> Result<Response, ApiError> {
    Ok(lines(app.control.build_image(build).await?, request))
}

/// What to import.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ImportQuery {
    /// The image's name to be.
    name: String,
    /// A file or folder on the daemon's host in place of a body; only for clients on that host.
    path: Option<String>,
    /// The same as base64, where it is no UTF-8.
    path_base64: Option<String>,
}

/// Imports the tar of a root filesystem, an OCI layout or archive, or what `docker save` wrote.
#[utoipa::path(
    post,
    path = "/v1/images/import",
    tag = "images",
    params(ImportQuery),
    request_body(content_type = "application/octet-stream", description = "The tar stream, compressed or not"),
    responses((status = 200, description = "A line per JobEvent", content_type = "application/x-ndjson", body = JobEvent))
)]
pub(crate) async fn import(
    State(app): State<App>,
    Extension(RequestId(request)): Extension<RequestId>,
    ends: Option<Extension<Ends>>,
    query: Result<Query<ImportQuery>, ApiError>,
    body: HttpBody,
) -> Result<Response, ApiError> {
    let upload = Upload::new(body);
    let Query(query) = match query {
        Ok(query) => query,
        Err(refusal) => return Err(upload.refuse(refusal).await),
    };
    let job = if query.path.is_some() || query.path_base64.is_some() {
        if !ends.is_some_and(|Extension(ends)| is_local(ends.peer)) {
            let refusal = ApiError::new(
                StatusCode::FORBIDDEN,
                "permission_denied",
                "`path` names a file of the daemon's host, and the request comes from another",
            )
            .hint("send the file as the request's body");
            return Err(upload.refuse(refusal).await);
        }
        use std::os::unix::ffi::OsStringExt;
        let path = PathBuf::from(std::ffi::OsString::from_vec(computer_path(query.path, query.path_base64)?));
        app.control.import_image_path(query.name, path).await?
    } else {
        // Unpacking is blocking code: the bridge hands it the body piece by piece.
        let stream = Box::pin(upload.into_stream());
        let reader = SyncIoBridge::new(StreamReader::new(stream));
        app.control.import_image(query.name, Box::new(reader)).await?
    };
    Ok(lines(job, request))
}

fn lines(job: Job, request_id: String) -> Response {
    super::lines::lines(stream::unfold((job, request_id), |(mut job, request_id)| async move {
        let mut event = job.recv().await?;
        if let JobEvent::Failed { error } = &mut event {
            error.request_id.get_or_insert_with(|| request_id.clone());
        }
        Some((event, (job, request_id)))
    }))
}
