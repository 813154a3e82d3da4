//! Pages that are followed, as server-sent events.

use std::{future::Future, io};

use axum::{
    body::Body as HttpBody,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use den_api::ErrorBody;
use futures_util::{Stream, StreamExt as _, stream};

use crate::{
    error::ApiError,
    output::{kept_alive, nameless_event},
};

/// The request's header by which an event stream that broke goes on.
pub(super) const LAST_EVENT_ID_HEADER: &str = "last-event-id";

/// A reader that gives page after page as they come.
pub(super) trait Pages: Send + 'static {
    /// What it gives.
    type Page: Send + 'static;

    /// The next page; none at the end.
    fn next(&mut self) -> impl Future<Output = Result<Option<Self::Page>, den_control::Error>> + Send;

    /// A page as events.
    fn as_events(page: &Self::Page) -> Bytes;
}

/// `first`, if there is one, then all that comes.
pub(super) fn respond<R: Pages>(first: Option<R::Page>, reader: R, request_id: String) -> Response {
    let first = stream::iter(first.map(|page| Ok(R::as_events(&page))));
    let body = HttpBody::from_stream(kept_alive(first.chain(following(reader, request_id))));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, body).into_response()
}

/// The events of a reader; what breaks in the middle is an event `error`, and the end.
fn following<R: Pages>(reader: R, request_id: String) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold(Some(reader), move |reader| {
        let request_id = request_id.clone();
        async move {
            let mut reader = reader?;
            match reader.next().await {
                Ok(Some(page)) => Some((Ok(R::as_events(&page)), Some(reader))),
                Ok(None) => None,
                Err(error) => {
                    let error = ApiError::from(error).into_detail(&request_id);
                    Some((Ok(nameless_event("error", &ErrorBody { error })), None))
                }
            }
        }
    })
}
