//! States: kept, forked, gone back to, looked into, compared, merged; who changed what.
//!
//! A state is named by `12` (after step 12; `0` is as it was made), a label, or `now`.

use std::{io, time::Duration};

use axum::{
    Extension, Json,
    body::Body as HttpBody,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use den_api::{
    BlameView, DiffView, ErrorBody, ExploreEvent, ExploreRequest, ExploreView, ForkRequest, ForkView, GrepList,
    MergeRequest, MergeView, MetaView, ProgressView, RestoreRequest, RestoreView, SnapRequest, SnapshotList,
    SnapshotView, StateEntry, StateList, StepChanges,
};
use den_control::{DiffRequest, GrepRequest, Progress, StateBytes};
use futures_util::{Stream, stream};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::IntoParams;

use super::{App, who};
use crate::{
    error::ApiError,
    extract::{Body, Path, Query, bad, computer_path},
    guard::RequestId,
    output::{Form, kept_alive, nameless_event},
};

/// Keeps the state as it is now. With a label it is kept until it is removed.
#[utoipa::path(
    post,
    path = "/v1/computers/{c}/snapshots",
    tag = "history",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    request_body = SnapRequest,
    responses((status = 200, description = "The state that is kept", body = SnapshotView))
)]
pub(crate) async fn snap(
    State(app): State<App>,
    Path(c): Path<String>,
    Body(snap): Body<SnapRequest>,
) -> Result<Json<SnapshotView>, ApiError> {
    Ok(Json(app.control.snap(&c, snap, &who()).await?))
}

/// Lists the states that are kept, the oldest first.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/snapshots",
    tag = "history",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    responses((status = 200, description = "All of them", body = SnapshotList))
)]
pub(crate) async fn snapshots(State(app): State<App>, Path(c): Path<String>) -> Result<Json<SnapshotList>, ApiError> {
    Ok(Json(app.control.snapshots(&c).await?))
}

/// Forgets a state.
#[utoipa::path(
    delete,
    path = "/v1/computers/{c}/snapshots/{state}",
    tag = "history",
    params(
        ("c" = String, Path, description = "Name, id or unique beginning of an id"),
        ("state" = String, Path, description = "A step's number or a label"),
    ),
    responses((status = 204, description = "It is gone"))
)]
pub(crate) async fn drop_snapshot(
    State(app): State<App>,
    Path((c, state)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    app.control.drop_snapshot(&c, &state).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes computers that begin as a state of this one: all that were asked for, or none.
#[utoipa::path(
    post,
    path = "/v1/computers/{c}/fork",
    tag = "history",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    request_body = ForkRequest,
    responses((status = 201, description = "They run", body = ForkView))
)]
pub(crate) async fn fork(
    State(app): State<App>,
    Path(c): Path<String>,
    Body(fork): Body<ForkRequest>,
) -> Result<(StatusCode, Json<ForkView>), ApiError> {
    Ok((StatusCode::CREATED, Json(app.control.fork(&c, fork, &who()).await?)))
}

/// Puts the disk back to a state. Processes end; the computer boots again if it ran. The state
/// before is kept, so that this can be taken back.
#[utoipa::path(
    post,
    path = "/v1/computers/{c}/restore",
    tag = "history",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    request_body = RestoreRequest,
    responses((status = 200, description = "The disk is the old one", body = RestoreView))
)]
pub(crate) async fn restore(
    State(app): State<App>,
    Path(c): Path<String>,
    Body(restore): Body<RestoreRequest>,
) -> Result<Json<RestoreView>, ApiError> {
    Ok(Json(app.control.restore(&c, restore, &who()).await?))
}

/// Which path of a state.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PathQuery {
    /// A path inside the state.
    path: Option<String>,
    /// The same as base64, where it is no UTF-8.
    path_base64: Option<String>,
}

impl PathQuery {
    fn bytes(self) -> Result<Vec<u8>, ApiError> {
        computer_path(self.path, self.path_base64)
    }
}

/// Reads a file of a state, whether the computer runs or not. `X-Den-Mode` (octal), `X-Den-Uid`,
/// `X-Den-Gid`, `X-Den-Mtime` (microseconds since the epoch) and `X-Den-Size` say what it is.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/states/{state}/file",
    tag = "history",
    params(
        ("c" = String, Path, description = "Name, id or unique beginning of an id"),
        ("state" = String, Path, description = "A step's number, a label or `now`"),
        PathQuery,
    ),
    responses((status = 200, description = "The file", content_type = "application/octet-stream"))
)]
pub(crate) async fn state_file(
    State(app): State<App>,
    Extension(RequestId(request)): Extension<RequestId>,
    Path((c, state)): Path<(String, String)>,
    Query(query): Query<PathQuery>,
) -> Result<Response, ApiError> {
    let (meta, bytes) = app.control.state_file(&c, &state, &query.bytes()?).await?;
    let mut response = body_of(bytes, request).into_response();
    describe(response.headers_mut(), &meta);
    Ok(response)
}

fn describe(headers: &mut HeaderMap, meta: &MetaView) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(meta.size));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let mode = HeaderValue::from_str(&format!("{:04o}", meta.mode)).expect("digits");
    headers.insert(HeaderName::from_static("x-den-mode"), mode);
    headers.insert(HeaderName::from_static("x-den-uid"), HeaderValue::from(meta.uid));
    headers.insert(HeaderName::from_static("x-den-gid"), HeaderValue::from(meta.gid));
    headers.insert(HeaderName::from_static("x-den-mtime"), HeaderValue::from(meta.mtime));
    headers.insert(HeaderName::from_static("x-den-size"), HeaderValue::from(meta.size));
}

/// What to list of a state.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct StateListQuery {
    /// A path inside the state.
    path: Option<String>,
    /// The same as base64, where it is no UTF-8.
    path_base64: Option<String>,
    /// Levels: 1 to 64, 1 without.
    depth: Option<u32>,
    /// Entries at most: 1 to 100,000, 10,000 without.
    limit: Option<usize>,
}

/// Lists a directory of a state, whether the computer runs or not.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/states/{state}/list",
    tag = "history",
    params(
        ("c" = String, Path, description = "Name, id or unique beginning of an id"),
        ("state" = String, Path, description = "A step's number, a label or `now`"),
        StateListQuery,
    ),
    responses((status = 200, description = "What is there", body = StateList))
)]
pub(crate) async fn state_list(
    State(app): State<App>,
    Path((c, state)): Path<(String, String)>,
    Query(query): Query<StateListQuery>,
) -> Result<Json<StateList>, ApiError> {
    let path = computer_path(query.path, query.path_base64)?;
    Ok(Json(app.control.state_list(&c, &state, &path, query.depth, query.limit).await?))
}

/// Shows what a path of a state is; a symbolic link itself, not where it points.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/states/{state}/stat",
    tag = "history",
    params(
        ("c" = String, Path, description = "Name, id or unique beginning of an id"),
        ("state" = String, Path, description = "A step's number, a label or `now`"),
        PathQuery,
    ),
    responses((status = 200, description = "Its attributes", body = StateEntry))
)]
pub(crate) async fn state_stat(
    State(app): State<App>,
    Path((c, state)): Path<(String, String)>,
    Query(query): Query<PathQuery>,
) -> Result<Json<StateEntry>, ApiError> {
    Ok(Json(app.control.state_stat(&c, &state, &query.bytes()?).await?))
}

/// What to look for in the files of a state.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct GrepQuery {
    /// A file, or a directory with all below it.
    path: Option<String>,
    /// The same as base64, where it is no UTF-8.
    path_base64: Option<String>,
    /// A regular expression, or with `fixed` a text.
    pattern: String,
    /// Capitals and small letters are the same.
    #[serde(default)]
    ignore_case: bool,
    /// The pattern is a text.
    #[serde(default)]
    fixed: bool,
    /// Lines at most: 1 to 10,000, 1000 without.
    limit: Option<usize>,
}

/// Finds lines in the files of a state. Links and files above 64 MiB are passed over.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/states/{state}/grep",
    tag = "history",
    params(
        ("c" = String, Path, description = "Name, id or unique beginning of an id"),
        ("state" = String, Path, description = "A step's number, a label or `now`"),
        GrepQuery,
    ),
    responses((status = 200, description = "The lines", body = GrepList))
)]
pub(crate) async fn state_grep(
    State(app): State<App>,
    Path((c, state)): Path<(String, String)>,
    Query(query): Query<GrepQuery>,
) -> Result<Json<GrepList>, ApiError> {
    let GrepQuery { path, path_base64, pattern, ignore_case, fixed, limit } = query;
    let path = computer_path(path, path_base64)?;
    let grep = GrepRequest { pattern, ignore_case, fixed, limit };
    Ok(Json(app.control.state_grep(&c, &state, &path, grep).await?))
}

/// Packs a file or a tree of a state, with owners, modes, times and links.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/states/{state}/tar",
    tag = "history",
    params(
        ("c" = String, Path, description = "Name, id or unique beginning of an id"),
        ("state" = String, Path, description = "A step's number, a label or `now`"),
        PathQuery,
    ),
    responses((status = 200, description = "A tar stream", content_type = "application/x-tar"))
)]
pub(crate) async fn state_tar(
    State(app): State<App>,
    Extension(RequestId(request)): Extension<RequestId>,
    Path((c, state)): Path<(String, String)>,
    Query(query): Query<PathQuery>,
) -> Result<Response, ApiError> {
    let bytes = app.control.state_tar(&c, &state, &query.bytes()?).await?;
    let mut response = body_of(bytes, request).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    Ok(response)
}

/// A body of what a state gives out. A failure in the middle breaks the connection: the client must
/// not take half for the whole.
fn body_of(bytes: StateBytes, request_id: String) -> HttpBody {
    HttpBody::from_stream(stream::try_unfold((bytes, request_id), |(mut bytes, request_id)| async move {
        match bytes.next().await {
            Ok(Some(piece)) => Ok(Some((piece, (bytes, request_id)))),
            Ok(None) => Ok(None),
            Err(error) => {
                let cause = error.chain();
                tracing::warn!(request = request_id, code = error.code, error = cause, "reading a state broke off");
                Err(io::Error::other(error.message))
            }
        }
    }))
}

/// Which states to compare.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query; it is read by hand, for `path` may come several times")]
pub(crate) struct DiffQuery {
    /// The first: `NAME` or `NAME@STATE`.
    a: String,
    /// The second. Without: `NAME@STATE` against the same computer now, a fork's `NAME` against the
    /// state it was made from.
    b: Option<String>,
    /// Only this path and what is below it. May be given several times.
    path: Option<Vec<String>>,
    /// Whether text files come with a unified diff.
    text: Option<bool>,
    /// Paths at most: 1 to 100,000, 10,000 without.
    limit: Option<usize>,
}

/// How two states differ: by path, and by meaning (packages, users, services, …).
#[utoipa::path(
    get,
    path = "/v1/diff",
    tag = "history",
    params(DiffQuery),
    responses((status = 200, description = "The difference, or events on the way to it", content(
        (DiffView = "application/json"),
        (ProgressView = "text/event-stream"),
    )))
)]
pub(crate) async fn diff(
    State(app): State<App>,
    Extension(RequestId(request)): Extension<RequestId>,
    headers: HeaderMap,
    Query(query): Query<Vec<(String, String)>>,
) -> Result<Response, ApiError> {
    let diff = diff_request(query)?;
    if Form::of(&headers) != Form::Events {
        return Ok(Json(app.control.diff(diff).await?).into_response());
    }
    let progress = Progress::default();
    let (control, told) = (app.control.clone(), progress.clone());
    Ok(watched(async move { control.diff_watched(diff, &told).await }, progress, request))
}

/// How often it is looked whether there is something to tell.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// Events `progress` until `work` is done, and then `end` or `error`.
fn watched<T, W>(work: W, progress: Progress, request_id: String) -> Response
where
    T: Serialize + Send + 'static,
    W: Future<Output = Result<T, den_control::Error>> + Send + 'static,
{
    let state = Some((Box::pin(work), None));
    let events = stream::unfold(state, move |state| {
        let (progress, request_id) = (progress.clone(), request_id.clone());
        async move {
            let (mut work, told) = state?;
            loop {
                match timeout(PROGRESS_EVERY, &mut work).await {
                    Ok(Ok(view)) => return Some((Ok(nameless_event("end", &view)), None)),
                    Ok(Err(error)) => return Some((Ok(refused(error.into(), &request_id)), None)),
                    Err(_) => {
                        let now = progress.view();
                        if told.as_ref() != Some(&now) {
                            return Some((Ok(nameless_event("progress", &now)), Some((work, Some(now)))));
                        }
                    }
                }
            }
        }
    });
    events_of(events)
}

/// The event of a refusal.
fn refused(error: ApiError, request_id: &str) -> Bytes {
    nameless_event("error", &ErrorBody { error: error.into_detail(request_id) })
}

fn events_of(events: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, HttpBody::from_stream(kept_alive(events))).into_response()
}

fn diff_request(query: Vec<(String, String)>) -> Result<DiffRequest, ApiError> {
    let (mut diff, mut a) = (DiffRequest::default(), None);
    for (name, value) in query {
        match name.as_str() {
            "a" => a = Some(value),
            "b" => diff.b = Some(value),
            "path" => diff.paths.push(value),
            "text" => diff.text = value.parse().map_err(|_| bad("text", &value, "wanted `true` or `false`"))?,
            "limit" => diff.limit = Some(value.parse().map_err(|error| bad("limit", &value, error))?),
            _ => {
                return Err(ApiError::bad_request(format!("`{name}` is no parameter of a diff"))
                    .hint("`a`, `b`, `path`, `text` and `limit` are"));
            }
        }
    }
    diff.a = a.ok_or_else(|| ApiError::bad_request("`a` is missing").hint("add `?a=NAME@STATE` to the URL"))?;
    Ok(diff)
}

/// Brings the changes of a fork since it was made into this computer, as one step: all of them, or
/// none and the conflicts.
#[utoipa::path(
    post,
    path = "/v1/computers/{c}/merge",
    tag = "history",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    request_body = MergeRequest,
    responses((status = 200, description = "What came, or what stands against it; or events on the way to it", content(
        (MergeView = "application/json"),
        (ProgressView = "text/event-stream"),
    )))
)]
pub(crate) async fn merge(
    State(app): State<App>,
    Extension(RequestId(request)): Extension<RequestId>,
    Path(c): Path<String>,
    headers: HeaderMap,
    Body(merge): Body<MergeRequest>,
) -> Result<Response, ApiError> {
    if Form::of(&headers) != Form::Events {
        return Ok(Json(app.control.merge(&c, merge, &who()).await?).into_response());
    }
    let progress = Progress::default();
    let (control, told) = (app.control.clone(), progress.clone());
    let work = async move { control.merge_watched(&c, merge, &who(), &told).await };
    Ok(watched(work, progress, request))
}

/// Tries a command in several forks, scores them, and keeps or merges the best. As `text/event-stream` with an
/// event for each ExploreEvent as it happens: `forked`, `ran`, `tried`, `merging`, and `end` or `error`. Whoever
/// hangs up ends it, and no fork of it stays.
#[utoipa::path(
    post,
    path = "/v1/computers/{c}/explore",
    tag = "history",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    request_body = ExploreRequest,
    responses((status = 200, description = "What came of it, or the events on the way to it", content(
        (ExploreView = "application/json"),
        (ExploreEvent = "text/event-stream"),
    )))
)]
pub(crate) async fn explore(
    State(app): State<App>,
    Extension(RequestId(request)): Extension<RequestId>,
    Path(c): Path<String>,
    headers: HeaderMap,
    Body(explore): Body<ExploreRequest>,
) -> Result<Response, ApiError> {
    let mut exploration = app.control.explore(&c, explore, &who()).await?;
    if Form::of(&headers) == Form::Events {
        let events = stream::unfold((exploration, request), |(mut exploration, request)| async move {
            let event = match exploration.next().await? {
                Ok(ExploreEvent::Forked(forks)) => nameless_event("forked", &forks),
                Ok(ExploreEvent::Ran(ran)) => nameless_event("ran", &ran),
                Ok(ExploreEvent::Tried(fork)) => nameless_event("tried", &fork),
                Ok(ExploreEvent::Merging(fork)) => nameless_event("merging", &fork),
                Ok(ExploreEvent::End(view)) => nameless_event("end", &view),
                Err(error) => refused(error.into(), &request),
            };
            Some((Ok(event), (exploration, request)))
        });
        return Ok(events_of(events));
    }
    while let Some(event) = exploration.next().await {
        if let ExploreEvent::End(view) = event? {
            return Ok(Json(view).into_response());
        }
    }
    Err(ApiError::internal("an exploration ended without its end"))
}

/// Lists what a step changed.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/steps/{n}/changes",
    tag = "history",
    params(
        ("c" = String, Path, description = "Name, id or unique beginning of an id"),
        ("n" = u64, Path, description = "The step's number"),
    ),
    responses((status = 200, description = "Paths and how many", body = StepChanges))
)]
pub(crate) async fn changes(
    State(app): State<App>,
    Path((c, n)): Path<(String, u64)>,
) -> Result<Json<StepChanges>, ApiError> {
    Ok(Json(app.control.step_changes(&c, n).await?))
}

/// Of what to say who changed it.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct BlameQuery {
    /// A path inside.
    path: Option<String>,
    /// The same as base64, where it is no UTF-8.
    path_base64: Option<String>,
    /// Whether to go line by line; for text files.
    #[serde(default)]
    lines: bool,
}

/// Names the step that changed a path last, or that of each line of a text file.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/blame",
    tag = "history",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id"), BlameQuery),
    responses((status = 200, description = "The step, and the lines", body = BlameView))
)]
pub(crate) async fn blame(
    State(app): State<App>,
    Path(c): Path<String>,
    Query(query): Query<BlameQuery>,
) -> Result<Json<BlameView>, ApiError> {
    let path = computer_path(query.path, query.path_base64)?;
    Ok(Json(app.control.blame(&c, &path, query.lines).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_diff_takes_many_paths() {
        let query =
            [("a", "web@3"), ("b", "web"), ("path", "/etc"), ("path", "/srv"), ("text", "true"), ("limit", "5")];
        let diff = diff_request(pairs(&query)).unwrap();
        assert_eq!((diff.a.as_str(), diff.b.as_deref()), ("web@3", Some("web")));
        assert_eq!((diff.paths.len(), diff.text, diff.limit), (2, true, Some(5)));
        for wrong in [&[("b", "web")][..], &[("a", "x"), ("text", "yes")], &[("a", "x"), ("limit", "-1")], &[("x", "")]]
        {
            assert!(diff_request(pairs(wrong)).is_err(), "{wrong:?}");
        }
    }
}
