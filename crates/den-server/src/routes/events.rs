//! What happens.

use axum::{
    Extension, Json,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use den_api::EventPage;
use den_control::{EventReader, ReadEvents};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    App,
    pages::{self, LAST_EVENT_ID_HEADER, Pages},
};
use crate::{error::ApiError, extract::Query, guard::RequestId, output::Form};

/// Which events to read.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventQuery {
    /// Only beyond this number: the `next` of an answer before. `Last-Event-ID` goes before it.
    after: Option<u64>,
    /// Events at most: 1 to 1000, 100 without.
    limit: Option<usize>,
    /// The latest so many, in place of `after` and `limit`; with `follow` these first.
    last: Option<usize>,
    /// Only those of this computer: name, id or unique beginning of an id. It may be gone.
    computer: Option<String>,
    /// Only these kinds, with `,` between them.
    kind: Option<String>,
    /// Whether to go on as more happens, as server-sent events. So does `Accept: text/event-stream`.
    #[serde(default)]
    follow: bool,
}

/// Reads what happened, the oldest first. As `text/event-stream`: an event `event` each, whose id goes on
/// from there; `lost` where events are missing.
#[utoipa::path(
    get,
    path = "/v1/events",
    tag = "service",
    params(EventQuery),
    responses((status = 200, description = "Events", content(
        (EventPage = "application/json"),
        (String = "text/event-stream"),
    )))
)]
pub(crate) async fn events(
    State(app): State<App>,
    Extension(RequestId(request)): Extension<RequestId>,
    headers: HeaderMap,
    Query(query): Query<EventQuery>,
) -> Result<Response, ApiError> {
    let EventQuery { after, limit, last, computer, kind, follow } = query;
    let kinds = kind.iter().flat_map(|kinds| kinds.split(',')).map(|kind| kind.trim().to_owned()).collect();
    let mut read = ReadEvents { after, limit, last, computer, kinds };
    if !follow && Form::of(&headers) != Form::Events {
        return Ok(Json(app.control.events(read).await?).into_response());
    }
    let mut first = None;
    if let Some(id) = headers.get(LAST_EVENT_ID_HEADER).and_then(|value| value.to_str().ok()) {
        let after = id.parse().map_err(|_| ApiError::bad_request(format!("`{LAST_EVENT_ID_HEADER}`: `{id}`")))?;
        (read.after, read.last) = (Some(after), None);
    } else if read.last.is_some() {
        let page = app.control.events(read.clone()).await?;
        (read.after, read.last) = (Some(page.next), None);
        first = Some(page);
    }
    let reader = app.control.follow_events(read).await?;
    Ok(pages::respond(first, reader, request))
}

impl Pages for EventReader {
    type Page = EventPage;

    async fn next(&mut self) -> Result<Option<EventPage>, den_control::Error> {
        EventReader::next(self).await
    }

    fn as_events(page: &EventPage) -> Bytes {
        as_events(page)
    }
}

fn as_events(page: &EventPage) -> Bytes {
    let mut text = Vec::new();
    if page.lost {
        text.extend_from_slice(b"event: lost\ndata: {}\n\n");
    }
    for event in &page.events {
        let json = serde_json::to_vec(event).expect("events are plain data");
        text.extend_from_slice(format!("id: {}\nevent: event\ndata: ", event.number).as_bytes());
        text.extend_from_slice(&json);
        text.extend_from_slice(b"\n\n");
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_says_where_to_go_on() {
        let event =
            |number: u64| serde_json::from_value(serde_json::json!({ "number": number, "at": 1, "kind": "created" }));
        let page = EventPage { events: vec![event(7).unwrap(), event(9).unwrap()], next: 12, lost: true };
        let expected = "event: lost\ndata: {}\n\n\
                        id: 7\nevent: event\ndata: {\"number\":7,\"at\":1,\"kind\":\"created\"}\n\n\
                        id: 9\nevent: event\ndata: {\"number\":9,\"at\":1,\"kind\":\"created\"}\n\n";
        assert_eq!(as_events(&page), expected);
    }
}
