//! What a computer may reach, and what it did reach.

use axum::{
    Extension, Json,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use den_api::{NetChange, NetCheck, NetDecision, NetLogPage, NetRecord, NetView};
use den_control::{ReadRecords, RecordReader};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    App,
    pages::{self, LAST_EVENT_ID_HEADER, Pages},
    who,
};
use crate::{
    error::ApiError,
    extract::{Body, Path, Query},
    guard::RequestId,
    output::Form,
};

/// Shows what a computer may reach, as it is in force, and what its link has carried.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/net",
    tag = "net",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    responses((status = 200, description = "The policy", body = NetView))
)]
pub(crate) async fn get(State(app): State<App>, Path(c): Path<String>) -> Result<Json<NetView>, ApiError> {
    Ok(Json(app.control.net(&c).await?))
}

/// Changes what a computer may reach: all of it or nothing. Live flows that it no longer allows end
/// within a second.
#[utoipa::path(
    patch,
    path = "/v1/computers/{c}/net",
    tag = "net",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    request_body = NetChange,
    responses((status = 200, description = "The policy from now on", body = NetView))
)]
pub(crate) async fn change(
    State(app): State<App>,
    Path(c): Path<String>,
    Body(change): Body<NetChange>,
) -> Result<Json<NetView>, ApiError> {
    Ok(Json(app.control.change_net(&c, change, &who()).await?))
}

/// Says what would be decided about a flow. Nothing is sent.
#[utoipa::path(
    post,
    path = "/v1/computers/{c}/net/check",
    tag = "net",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    request_body = NetCheck,
    responses((status = 200, description = "The decision", body = NetDecision))
)]
pub(crate) async fn check(
    State(app): State<App>,
    Path(c): Path<String>,
    Body(check): Body<NetCheck>,
) -> Result<Json<NetDecision>, ApiError> {
    Ok(Json(app.control.check_net(&c, &check).await?))
}

/// Which records to read.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LogQuery {
    /// The `next` of an answer before; the oldest record that is kept without. `Last-Event-ID` goes before it.
    cursor: Option<String>,
    /// Records at most: 1 to 1000, 100 without.
    limit: Option<usize>,
    /// The latest so many, in place of `cursor` and `limit`; with `follow` these first.
    last: Option<usize>,
    /// Only this kind: `open`, `close`, `http`, `dns`, `limit`, `drop` or `gate`.
    kind: Option<String>,
    /// Only what was refused.
    #[serde(default)]
    denied: bool,
    /// Whether to go on as more comes, as server-sent events. So does `Accept: text/event-stream`.
    #[serde(default)]
    follow: bool,
}

/// Reads what the gate wrote down about a computer, the oldest first. As `text/event-stream`: an event
/// `record` each, whose id goes on from there; `lost` where records are missing.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/net/log",
    tag = "net",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id"), LogQuery),
    responses((status = 200, description = "Records", content(
        (NetLogPage = "application/json"),
        (String = "text/event-stream"),
    )))
)]
pub(crate) async fn log(
    State(app): State<App>,
    Extension(RequestId(request)): Extension<RequestId>,
    Path(c): Path<String>,
    headers: HeaderMap,
    Query(query): Query<LogQuery>,
) -> Result<Response, ApiError> {
    let LogQuery { cursor, limit, last, kind, denied, follow } = query;
    let mut read = ReadRecords { cursor, limit, last, kind, denied };
    if !follow && Form::of(&headers) != Form::Events {
        return Ok(Json(app.control.net_log(&c, read).await?).into_response());
    }
    let mut first = None;
    if let Some(id) = headers.get(LAST_EVENT_ID_HEADER).and_then(|value| value.to_str().ok()) {
        (read.cursor, read.last) = (Some(id.to_owned()), None);
    } else if read.last.is_some() {
        let page = app.control.net_log(&c, read.clone()).await?;
        (read.cursor, read.last) = (Some(page.next.clone()), None);
        first = Some(page);
    }
    let reader = app.control.follow_net_log(&c, read).await?;
    Ok(pages::respond(first, reader, request))
}

impl Pages for RecordReader {
    type Page = NetLogPage;

    async fn next(&mut self) -> Result<Option<NetLogPage>, den_control::Error> {
        RecordReader::next(self).await
    }

    fn as_events(page: &NetLogPage) -> Bytes {
        events(page)
    }
}

/// A page as events. A client that breaks off inside gets the rest of the page again.
fn events(page: &NetLogPage) -> Bytes {
    let mut text = Vec::new();
    if page.lost {
        text.extend_from_slice(b"event: lost\ndata: {}\n\n");
    }
    let last = page.records.len().saturating_sub(1);
    for (index, record) in page.records.iter().enumerate() {
        if index == last {
            text.extend_from_slice(format!("id: {}\n", page.next).as_bytes());
        }
        text.extend_from_slice(&event(record));
    }
    text.into()
}

fn event(record: &NetRecord) -> Vec<u8> {
    let json = serde_json::to_vec(record).expect("records are plain data");
    [b"event: record\ndata: ", json.as_slice(), b"\n\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_an_event_a_record_and_its_end_has_the_place() {
        let record = |at| -> NetRecord {
            serde_json::from_str(&format!("{{\"at\":{at},\"kind\":\"dns\",\"trust\":\"host\"}}")).unwrap()
        };
        let page = NetLogPage { records: vec![record(1), record(2)], next: "1:99".into(), lost: true };
        let expected = "event: lost\ndata: {}\n\n\
                        event: record\ndata: {\"at\":1,\"kind\":\"dns\",\"trust\":\"host\"}\n\n\
                        id: 1:99\nevent: record\ndata: {\"at\":2,\"kind\":\"dns\",\"trust\":\"host\"}\n\n";
        assert_eq!(events(&page), expected);
    }
}
