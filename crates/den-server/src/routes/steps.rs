//! Steps: run a command, list, look, read output, send signals.
//!
//! A command belongs to its computer and not to the connection: a client that goes away, in
//! whatever form it was reading, stops only its own reading.

use std::time::Duration;

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use den_api::{ExecRequest, ExecResult, OutputView, Page, SignalRequest, StepView};
use den_control::{Execution, Follow, Order, OutputStream, StepsMatching};
use futures_util::{FutureExt, StreamExt};
use serde::Deserialize;
use tokio::time::timeout;
use utoipa::IntoParams;

use super::{App, Octets, who};
use crate::{
    error::ApiError,
    extract::{Body, Path, Query, bad},
    gather,
    guard::RequestId,
    output::{Form, items, respond},
};

/// How long a JSON request for output that follows waits for the first byte.
const LONG_POLL_TIME_MAX: Duration = Duration::from_secs(60);

/// Runs a command. By `Accept`: `application/json` waits for its end; `text/event-stream` and
/// `application/vnd.den.output` stream its output as it comes. With `detach` the answer is 202 and
/// the step as soon as it runs.
#[utoipa::path(
    post,
    path = "/v1/computers/{c}/steps",
    tag = "steps",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    request_body = ExecRequest,
    responses(
        (status = 200, description = "How it ended and its output, or the stream of it", content(
            (ExecResult = "application/json"),
            (String = "text/event-stream"),
            (inline(Octets) = "application/vnd.den.output"),
        )),
        (status = 202, description = "It runs (`detach`)", body = StepView),
    )
)]
pub(crate) async fn exec(
    State(app): State<App>,
    Extension(RequestId(request)): Extension<RequestId>,
    Path(c): Path<String>,
    headers: HeaderMap,
    Body(exec): Body<ExecRequest>,
) -> Result<Response, ApiError> {
    if exec.stream_stdin {
        return Err(ApiError::bad_request("`stream_stdin` needs a connection in both directions")
            .hint("open the WebSocket GET /v1/computers/{c}/exec, or give `stdin` whole as base64"));
    }
    let (form, detach) = (Form::of(&headers), exec.detach);
    let Execution { step, output, .. } = app.control.exec(&c, exec, &who()).await?;
    if detach {
        return Ok((StatusCode::ACCEPTED, Json(step)).into_response());
    }
    let items = items(output);
    Ok(match form {
        Form::Json => Json(gather::result(items).await?).into_response(),
        form => respond(form, form.started(&step, 0), items, request),
    })
}

/// Which steps to list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// The `next` of the page before.
    after: Option<String>,
    /// Entries at most: 1 to 1000, 100 without.
    limit: Option<usize>,
    /// `asc` (the oldest first; without) or `desc`.
    order: Option<String>,
    /// Only those with this text in their command.
    grep: Option<String>,
    /// Only those that changed this path or something below it.
    path: Option<String>,
}

/// Lists a computer's steps.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/steps",
    tag = "steps",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id"), ListQuery),
    responses((status = 200, description = "A page", body = Page<StepView>))
)]
pub(crate) async fn list(
    State(app): State<App>,
    Path(c): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<StepView>>, ApiError> {
    let order = match query.order.as_deref() {
        None | Some("asc") => Order::OldestFirst,
        Some("desc") => Order::NewestFirst,
        Some(other) => return Err(bad("order", other, "wanted `asc` or `desc`")),
    };
    let after = match query.after {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| bad("after", &text, "wanted the number of a step"))?),
    };
    if query.grep.is_none() && query.path.is_none() {
        return Ok(Json(app.control.steps(&c, after, query.limit, order).await?));
    }
    let which = StepsMatching { after, limit: query.limit, order, grep: query.grep, path: query.path };
    Ok(Json(app.control.steps_matching(&c, which).await?))
}

/// Shows a step.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/steps/{n}",
    tag = "steps",
    params(
        ("c" = String, Path, description = "Name, id or unique beginning of an id"),
        ("n" = u64, Path, description = "The step's number"),
    ),
    responses((status = 200, description = "The step", body = StepView))
)]
pub(crate) async fn get(State(app): State<App>, Path((c, n)): Path<(String, u64)>) -> Result<Json<StepView>, ApiError> {
    Ok(Json(app.control.step(&c, n).await?))
}

/// Which output to read.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct OutputQuery {
    /// The first byte, counted over all streams together; 0 without. `Last-Event-ID` goes before it.
    from: Option<u64>,
    /// Whether to wait for more until the step ends.
    #[serde(default)]
    follow: bool,
    /// `stdout`, `stderr` or `terminal`; all without.
    stream: Option<String>,
}

/// Reads a step's output from any byte, while it runs and afterwards. By `Accept` as for a new
/// step, and `application/octet-stream` for the bytes alone. As JSON it gives one piece and where
/// to go on; with `follow` it waits up to a minute for the first byte.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/steps/{n}/output",
    tag = "steps",
    params(
        ("c" = String, Path, description = "Name, id or unique beginning of an id"),
        ("n" = u64, Path, description = "The step's number"),
        OutputQuery,
        ("Last-Event-ID" = Option<u64>, Header, description = "Where an event stream goes on"),
    ),
    responses((status = 200, description = "Output", content(
        (OutputView = "application/json"),
        (String = "text/event-stream"),
        (inline(Octets) = "application/vnd.den.output"),
        (inline(Octets) = "application/octet-stream"),
    )))
)]
pub(crate) async fn output(
    State(app): State<App>,
    Extension(RequestId(request)): Extension<RequestId>,
    Path((c, n)): Path<(String, u64)>,
    Query(query): Query<OutputQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let form = Form::of(&headers);
    let stream = match query.stream.as_deref() {
        None => None,
        Some("stdout") => Some(OutputStream::Stdout),
        Some("stderr") => Some(OutputStream::Stderr),
        Some("terminal") => Some(OutputStream::Terminal),
        Some(other) => return Err(bad("stream", other, "wanted `stdout`, `stderr` or `terminal`")),
    };
    let mut from = query.from.unwrap_or(0);
    if let Some(last) = headers.get("last-event-id").filter(|_| form == Form::Events) {
        let last = last.to_str().unwrap_or_default();
        from = last.parse().map_err(|_| bad("Last-Event-ID", last, "wanted a number of bytes"))?;
    }
    let follow = if query.follow { Follow::ToTheEnd } else { Follow::Present };
    let reader = app.control.output(&c, n, from, follow, stream).await?;
    if form != Form::Json {
        return Ok(respond(form, None, items(reader), request));
    }

    let mut items = Box::pin(items(reader).peekable());
    let mut page = gather::PageOf::new(from);
    if query.follow {
        let _ = timeout(LONG_POLL_TIME_MAX, items.as_mut().peek()).await;
    }
    loop {
        // What is there at once, when following; else all there is.
        let item = if query.follow { items.next().now_or_never().flatten() } else { items.next().await };
        match item {
            Some(item) => {
                if !page.take(item?) {
                    break;
                }
            }
            None => break,
        }
    }
    let step = app.control.step(&c, n).await?;
    Ok(Json(page.view(step)).into_response())
}

/// Sends a signal to a running step.
#[utoipa::path(
    post,
    path = "/v1/computers/{c}/steps/{n}/signal",
    tag = "steps",
    params(
        ("c" = String, Path, description = "Name, id or unique beginning of an id"),
        ("n" = u64, Path, description = "The step's number"),
    ),
    request_body = SignalRequest,
    responses((status = 204, description = "It was sent"))
)]
pub(crate) async fn signal(
    State(app): State<App>,
    Path((c, n)): Path<(String, u64)>,
    Body(signal): Body<SignalRequest>,
) -> Result<StatusCode, ApiError> {
    app.control.signal(&c, n, &signal).await?;
    Ok(StatusCode::NO_CONTENT)
}
