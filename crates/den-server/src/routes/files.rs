//! Files inside a computer.

use axum::Extension;
use axum::{
    Json,
    body::Body as HttpBody,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use den_api::{ChangeView, EntryList, FileOperation, StatView};
use den_control::WriteFile;
use futures_util::stream;
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    App,
    transfer::{Upload, body_of},
    who,
};
use crate::{
    error::ApiError,
    extract::{Body, Path, Query, computer_path, mode},
    guard::RequestId,
    output::{kept_alive, nameless_event},
    range::Range,
};

/// Which path.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PathQuery {
    /// A path inside the computer.
    path: Option<String>,
    /// The same as base64, where it is no UTF-8.
    path_base64: Option<String>,
}

/// Reads a file, or with `Range` a part of it. `X-Den-Mode` (octal), `X-Den-Uid`, `X-Den-Gid`,
/// `X-Den-Mtime` (microseconds since the epoch) and `X-Den-Size` say what it is.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/files",
    tag = "files",
    params(
        ("c" = String, Path, description = "Name, id or unique beginning of an id"),
        PathQuery,
        ("Range" = Option<String>, Header, description = "One range: `bytes=0-99`, `bytes=100-`, `bytes=-100`"),
    ),
    responses(
        (status = 200, description = "The whole file", content_type = "application/octet-stream"),
        (status = 206, description = "The part that was asked for", content_type = "application/octet-stream"),
        (status = 416, description = "No byte of the range is there", body = den_api::ErrorBody),
    )
)]
pub(crate) async fn read(
    State(app): State<App>,
    Extension(RequestId(request)): Extension<RequestId>,
    Path(c): Path<String>,
    Query(query): Query<PathQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let path = computer_path(query.path, query.path_base64)?;
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).and_then(Range::parse);

    // The answer to the read says the size, so only a range from the end needs to ask before.
    let (offset, length) = match range {
        None => (0, None),
        Some(Range::From(first)) => (first, None),
        Some(Range::Between(first, last)) => (first, Some((last - first).saturating_add(1))),
        Some(range @ Range::Last(_)) => {
            let size = app.control.stat(&c, &path, true).await?.size;
            let Some((first, length)) = range.within(size) else {
                return Ok(not_satisfiable(size));
            };
            (first, Some(length))
        }
    };
    let (stat, reader) = app.control.read_file(&c, &path, offset, length).await?;

    // Files of /proc and /sys say 0 and have content: such a body goes without its length.
    let sized = stat.size > 0;
    let mut response = Response::new(HttpBody::empty());
    describe(response.headers_mut(), &stat);
    let body_length = match range {
        Some(range) if sized => {
            // A range from the end was made definite above, against a size that may have changed.
            let definite = match range {
                Range::Last(_) => Range::Between(offset, offset.saturating_add(length.unwrap_or(1)).saturating_sub(1)),
                definite => definite,
            };
            let Some((first, length)) = definite.within(stat.size) else {
                return Ok(not_satisfiable(stat.size));
            };
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let content_range = format!("bytes {first}-{}/{}", first + length - 1, stat.size);
            insert(response.headers_mut(), header::CONTENT_RANGE, &content_range);
            Some(length)
        }
        Some(_) if stat.path.starts_with("/proc/") || stat.path.starts_with("/sys/") => None,
        Some(_) => return Ok(not_satisfiable(0)),
        None => sized.then_some(stat.size),
    };
    if let Some(length) = body_length {
        insert(response.headers_mut(), header::CONTENT_LENGTH, &length.to_string());
    }
    *response.body_mut() = body_of(reader, request);
    Ok(response)
}

fn describe(headers: &mut HeaderMap, stat: &StatView) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    insert(headers, HeaderName::from_static("x-den-mode"), &stat.mode);
    insert(headers, HeaderName::from_static("x-den-uid"), &stat.uid.to_string());
    insert(headers, HeaderName::from_static("x-den-gid"), &stat.gid.to_string());
    insert(headers, HeaderName::from_static("x-den-mtime"), &stat.mtime.to_string());
    insert(headers, HeaderName::from_static("x-den-size"), &stat.size.to_string());
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn not_satisfiable(size: u64) -> Response {
    let error = ApiError::new(
        StatusCode::RANGE_NOT_SATISFIABLE,
        "bad_range",
        format!("the file has {size} bytes, and none of the range that was asked for"),
    );
    let mut response = error.into_response();
    insert(response.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{size}"));
    response
}

/// How a file is written.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct WriteQuery {
    /// A path inside the computer.
    path: Option<String>,
    /// The same as base64, where it is no UTF-8.
    path_base64: Option<String>,
    /// Permission bits in octal; those of the file that is there, or 0644.
    #[param(example = "0644")]
    mode: Option<String>,
    /// `user[:group]`, names or numbers.
    owner: Option<String>,
    /// Modified, microseconds since the epoch.
    mtime: Option<i64>,
    /// Makes the directories above it.
    #[serde(default)]
    parents: bool,
    /// Adds to the end in place of writing anew.
    #[serde(default)]
    append: bool,
}

/// Writes a file of any size. It is there whole once this is answered, or it is as it was.
#[utoipa::path(
    put,
    path = "/v1/computers/{c}/files",
    tag = "files",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id"), WriteQuery),
    request_body(content_type = "application/octet-stream", description = "The file's bytes"),
    responses((status = 200, description = "What was written", body = StatView))
)]
pub(crate) async fn write(
    State(app): State<App>,
    Path(c): Path<String>,
    query: Result<Query<WriteQuery>, ApiError>,
    body: HttpBody,
) -> Result<Json<StatView>, ApiError> {
    let mut upload = Upload::new(body);
    let file = match query.and_then(|Query(query)| write_request(query)) {
        Ok(file) => file,
        Err(refusal) => return Err(upload.refuse(refusal).await),
    };
    let mut writer = match app.control.write_file(&c, file, &who()).await {
        Ok(writer) => writer,
        Err(refusal) => return Err(upload.refuse(refusal).await),
    };
    // Leaving early drops the writer, and with it what was written so far.
    while let Some(bytes) = upload.next().await? {
        if let Err(refusal) = writer.send(&bytes).await {
            return Err(upload.refuse(refusal).await);
        }
    }
    Ok(Json(writer.finish().await?))
}

fn write_request(query: WriteQuery) -> Result<WriteFile, ApiError> {
    Ok(WriteFile {
        path: computer_path(query.path, query.path_base64)?,
        mode: query.mode.as_deref().map(mode).transpose()?,
        owner: query.owner,
        mtime: query.mtime,
        parents: query.parents,
        append: query.append,
        in_place: false,
        attributes: None,
    })
}

/// Changes one thing: makes a directory, moves, removes, sets bits or owner, links.
#[utoipa::path(
    post,
    path = "/v1/computers/{c}/files",
    tag = "files",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    request_body = FileOperation,
    responses((status = 204, description = "It is done"))
)]
pub(crate) async fn change(
    State(app): State<App>,
    Path(c): Path<String>,
    Body(operation): Body<FileOperation>,
) -> Result<StatusCode, ApiError> {
    app.control.change_file(&c, operation, &who()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What to look at.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct StatQuery {
    /// A path inside the computer.
    path: Option<String>,
    /// The same as base64, where it is no UTF-8.
    path_base64: Option<String>,
    /// Whether a symbolic link at the end is followed; it is without.
    follow: Option<bool>,
}

/// Says what a path is.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/files/stat",
    tag = "files",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id"), StatQuery),
    responses((status = 200, description = "Kind and attributes", body = StatView))
)]
pub(crate) async fn stat(
    State(app): State<App>,
    Path(c): Path<String>,
    Query(query): Query<StatQuery>,
) -> Result<Json<StatView>, ApiError> {
    let path = computer_path(query.path, query.path_base64)?;
    Ok(Json(app.control.stat(&c, &path, query.follow.unwrap_or(true)).await?))
}

/// What to list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// A path inside the computer.
    path: Option<String>,
    /// The same as base64, where it is no UTF-8.
    path_base64: Option<String>,
    /// Levels; 1 without.
    depth: Option<u32>,
}

/// Lists a directory.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/files/list",
    tag = "files",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id"), ListQuery),
    responses((status = 200, description = "The entries", body = EntryList))
)]
pub(crate) async fn list(
    State(app): State<App>,
    Path(c): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<EntryList>, ApiError> {
    let path = computer_path(query.path, query.path_base64)?;
    let items = app.control.list_files(&c, &path, query.depth.unwrap_or(1)).await?;
    Ok(Json(EntryList { items }))
}

/// What to watch.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct WatchQuery {
    /// A path inside the computer.
    path: Option<String>,
    /// The same as base64, where it is no UTF-8.
    path_base64: Option<String>,
    /// With all below.
    #[serde(default)]
    recursive: bool,
}

/// Watches a directory: server-sent events `watching` once it is armed, then `change` with a
/// ChangeView each, and `error` when it ends.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/files/watch",
    tag = "files",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id"), WatchQuery),
    responses((status = 200, description = "Changes as they happen", content_type = "text/event-stream", body = ChangeView))
)]
pub(crate) async fn watch(
    State(app): State<App>,
    Extension(RequestId(request)): Extension<RequestId>,
    Path(c): Path<String>,
    Query(query): Query<WatchQuery>,
) -> Result<Response, ApiError> {
    let path = computer_path(query.path, query.path_base64)?;
    let watcher = app.control.watch(&c, &path, query.recursive).await?;
    let armed = nameless_event("watching", &serde_json::json!({}));
    let changes = stream::unfold(Some((watcher, request)), |open| async {
        let (mut watcher, request) = open?;
        match watcher.next().await {
            Ok(change) => Some((Ok(nameless_event("change", &change)), Some((watcher, request)))),
            Err(error) => {
                let body = den_api::ErrorBody { error: ApiError::from(error).into_detail(&request) };
                Some((Ok(nameless_event("error", &body)), None))
            }
        }
    });
    let events = futures_util::StreamExt::chain(stream::iter([Ok(armed)]), changes);
    let mut response = HttpBody::from_stream(kept_alive(events)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
