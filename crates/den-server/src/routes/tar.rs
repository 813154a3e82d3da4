//! Trees in and out of a computer, as tar streams.

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    App,
    transfer::{Upload, body_of},
    who,
};
use crate::{
    error::ApiError,
    extract::{Path, Query, bad, computer_path},
    guard::RequestId,
};

/// What to pack.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct OutQuery {
    /// A path inside the computer.
    path: Option<String>,
    /// The same as base64, where it is no UTF-8.
    path_base64: Option<String>,
    /// Whether a symbolic link that `path` ends in is followed.
    #[serde(default)]
    follow: bool,
}

/// Packs a file or a tree, with owners, modes, times, links and holes.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/tar",
    tag = "files",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id"), OutQuery),
    responses((status = 200, description = "A tar stream", content_type = "application/x-tar"))
)]
pub(crate) async fn pack(
    State(app): State<App>,
    Extension(RequestId(request)): Extension<RequestId>,
    Path(c): Path<String>,
    Query(query): Query<OutQuery>,
) -> Result<Response, ApiError> {
    let path = computer_path(query.path, query.path_base64)?;
    let reader = app.control.tar_out(&c, &path, query.follow).await?;
    let mut response = body_of(reader, request).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    Ok(response)
}

/// Where to unpack.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct InQuery {
    /// A directory inside the computer; made where it is not there.
    path: Option<String>,
    /// The same as base64, where it is no UTF-8.
    path_base64: Option<String>,
    /// `user[:group]` for all of it, in place of the owners in the stream.
    owner: Option<String>,
    /// In place of the first component of every name.
    rename: Option<String>,
    /// The same as base64, where it is no UTF-8.
    rename_base64: Option<String>,
}

/// Unpacks a tar stream beneath a directory.
#[utoipa::path(
    put,
    path = "/v1/computers/{c}/tar",
    tag = "files",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id"), InQuery),
    request_body(content_type = "application/x-tar", description = "A tar stream, not compressed"),
    responses((status = 204, description = "All of it is there"))
)]
pub(crate) async fn unpack(
    State(app): State<App>,
    Path(c): Path<String>,
    query: Result<Query<InQuery>, ApiError>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let mut upload = Upload::new(body);
    let (path, owner, rename) = match query.and_then(|Query(query)| unpack_request(query)) {
        Ok(request) => request,
        Err(refusal) => return Err(upload.refuse(refusal).await),
    };
    let mut writer = match app.control.tar_in(&c, &path, owner, rename, &who()).await {
        Ok(writer) => writer,
        Err(refusal) => return Err(upload.refuse(refusal).await),
    };
    while let Some(bytes) = upload.next().await? {
        if let Err(refusal) = writer.send(&bytes).await {
            return Err(upload.refuse(refusal).await);
        }
    }
    writer.finish().await?;
    Ok(StatusCode::NO_CONTENT)
}

type Unpack = (Vec<u8>, Option<String>, Option<Vec<u8>>);

fn unpack_request(query: InQuery) -> Result<Unpack, ApiError> {
    let rename = match (query.rename, query.rename_base64) {
        (Some(_), Some(_)) => return Err(ApiError::bad_request("both `rename` and `rename_base64` are given")),
        (Some(text), None) => Some(text.into_bytes()),
        (None, Some(text)) => Some(STANDARD.decode(&text).map_err(|error| bad("rename_base64", &text, error))?),
        (None, None) => None,
    };
    Ok((computer_path(query.path, query.path_base64)?, query.owner, rename))
}
