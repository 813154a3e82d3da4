//! WebSockets: a command with standard input, and coming back to one.
//!
//! ```text
//! client ── text ExecRequest (exec only) ──►
//!        ── binary: standard input, empty: its end · text: WsInput ──►
//!        ◄── binary: one output frame each: Started, …, End or Error ──
//!        ◄── close ── (then what the client still sends is read away, so that End arrives)
//! ```
//!
//! - Output and input run side by side: a command that does not read holds up only the input.
//! - A client that goes away leaves the command running; the standard input that it streamed ends.

use std::time::Duration;

use axum::{
    Extension,
    extract::{
        FromRequestParts, State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    http::request::Parts,
    response::Response,
};
use bytes::Bytes;
use den_api::{ExecRequest, StepView, WsInput};
use den_control::{Execution, Follow, Input, OutputReader};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use serde::Deserialize;
use tokio::time::timeout;
use utoipa::IntoParams;

use super::{App, who};
use crate::{
    error::ApiError,
    extract::{JSON_BYTES_MAX, Path, Query, parse_json},
    guard::RequestId,
    output::{Form, frames, items},
};

/// How long a client may take to say what it wants.
const FIRST_MESSAGE_TIME_MAX: Duration = Duration::from_secs(30);

/// The longest message that a client may send, in bytes.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Silence after which the client is pinged, so that one that is gone is noticed.
const PING_AFTER: Duration = Duration::from_secs(30);

/// How long the client may take to close from its side.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(2);

/// A request that is to become a WebSocket.
pub(crate) struct Upgrade(WebSocketUpgrade);

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match WebSocketUpgrade::from_request_parts(parts, state).await {
            Ok(upgrade) => Ok(Self(upgrade.max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX))),
            Err(rejection) => Err(ApiError::bad_request(format!("this is a WebSocket: {}", rejection.body_text()))
                .hint("open it with a WebSocket client; POST …/steps runs a command without one")),
        }
    }
}

/// Runs a command with standard input. The first message (text) is an ExecRequest; then binary
/// messages are its standard input (an empty one ends it) and text messages are WsInput. The
/// server sends one output frame (application/vnd.den.output) per binary message.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/exec",
    tag = "steps",
    params(("c" = String, Path, description = "Name, id or unique beginning of an id")),
    responses((status = 101, description = "A WebSocket"))
)]
pub(crate) async fn exec_socket(
    State(app): State<App>,
    Extension(RequestId(request)): Extension<RequestId>,
    Path(c): Path<String>,
    Upgrade(upgrade): Upgrade,
) -> Response {
    upgrade.on_upgrade(move |socket| {
        serve(socket, request, async move |source| {
            let exec = first_message(source).await?;
            let Execution { step, output, input, .. } = app.control.exec(&c, exec, &who()).await?;
            Ok(Open { step, from: 0, output, input })
        })
    })
}

/// Where to go on.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct AttachQuery {
    /// The first byte of output, counted over all streams together; 0 without.
    from: Option<u64>,
}

/// Comes back to a step, in both directions, with its output from any byte.
#[utoipa::path(
    get,
    path = "/v1/computers/{c}/steps/{n}/attach",
    tag = "steps",
    params(
        ("c" = String, Path, description = "Name, id or unique beginning of an id"),
        ("n" = u64, Path, description = "The step's number"),
        AttachQuery,
    ),
    responses((status = 101, description = "A WebSocket"))
)]
pub(crate) async fn attach(
    State(app): State<App>,
    Extension(RequestId(request)): Extension<RequestId>,
    Path((c, n)): Path<(String, u64)>,
    Query(query): Query<AttachQuery>,
    Upgrade(upgrade): Upgrade,
) -> Result<Response, ApiError> {
    let input = app.control.attach(&c, n).await?;
    let from = query.from.unwrap_or(0);
    let output = app.control.output(&c, n, from, Follow::ToTheEnd, None).await?;
    let step = app.control.step(&c, n).await?;
    let open = Open { step, from, output, input };
    Ok(upgrade.on_upgrade(move |socket| serve(socket, request, async move |_| Ok(open))))
}

/// A step, both ways.
struct Open {
    step: StepView,
    from: u64,
    output: OutputReader,
    input: Input,
}

async fn first_message(source: &mut SplitStream<WebSocket>) -> Result<ExecRequest, ApiError> {
    let wanted = || ApiError::bad_request("the first message is to be an ExecRequest, as text");
    let message = async {
        loop {
            match source.next().await {
                Some(Ok(Message::Text(text))) if text.len() <= JSON_BYTES_MAX => return parse_json(text.as_bytes()),
                Some(Ok(Message::Text(text))) => {
                    let limit = JSON_BYTES_MAX;
                    return Err(ApiError::bad_request(format!(
                        "the first message has {} bytes; {limit} is the most",
                        text.len()
                    ))
                    .hint("set `stream_stdin` and send standard input as binary messages"));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => return Err(wanted()),
            }
        }
    };
    timeout(FIRST_MESSAGE_TIME_MAX, message).await.unwrap_or_else(|_| Err(wanted()))
}

/// Serves a socket from the step that `open` finds or starts until either side is done.
async fn serve(
    socket: WebSocket,
    request_id: String,
    open: impl AsyncFnOnce(&mut SplitStream<WebSocket>) -> Result<Open, ApiError>,
) {
    let (mut sink, mut source) = socket.split();
    let end = match open(&mut source).await {
        Err(refusal) => Err(refusal),
        Ok(Open { step, from, output, input }) => {
            let started = Form::Binary.started(&step, from).expect("the binary form has a start");
            // The client's going away ends this, and leaves the step to its computer.
            tokio::select! {
                end = send_output(started, output, &mut sink) => end,
                end = take_input(input, &mut source) => end,
            }
        }
    };
    if let Err(error) = end
        && let Ok(frame) = Form::Binary.broken(error, &request_id)
    {
        let _ = sink.send(Message::Binary(frame)).await;
    }
    let _ = sink.send(Message::Close(Some(CloseFrame { code: close_code::NORMAL, reason: "".into() }))).await;
    // Closing a TCP connection with unread bytes resets it, and could take End along.
    let _ = timeout(CLOSE_TIME_MAX, async { while let Some(Ok(_)) = source.next().await {} }).await;
}

async fn send_output(
    started: Bytes,
    output: OutputReader,
    sink: &mut SplitSink<WebSocket, Message>,
) -> Result<(), ApiError> {
    let mut messages = vec![started];
    let mut items = Box::pin(items(output));
    loop {
        for message in messages.drain(..) {
            if sink.feed(Message::Binary(message)).await.is_err() {
                return Ok(());
            }
        }
        // More that is there already goes out with the same write; what is fed is bounded by the
        // socket's own buffer, for `feed` waits once that is full.
        let item = match next_now(&mut items).await {
            Some(item) => item,
            None => {
                if sink.flush().await.is_err() {
                    return Ok(());
                }
                match timeout(PING_AFTER, items.next()).await {
                    Ok(item) => item,
                    Err(_) => {
                        if sink.send(Message::Ping(Bytes::new())).await.is_err() {
                            return Ok(());
                        }
                        continue;
                    }
                }
            }
        };
        match item {
            Some(item) => frames(item?, usize::MAX, &mut messages),
            None => {
                let _ = sink.flush().await;
                return Ok(());
            }
        }
    }
}

/// The next item where there is one at once.
async fn next_now<S: StreamExt + Unpin>(items: &mut S) -> Option<Option<S::Item>> {
    match futures_util::poll!(items.next()) {
        std::task::Poll::Ready(item) => Some(item),
        std::task::Poll::Pending => None,
    }
}

async fn take_input(mut input: Input, source: &mut SplitStream<WebSocket>) -> Result<(), ApiError> {
    // Once the step takes nothing more, what comes is read away: how it ended is told by the output.
    let mut over = false;
    while let Some(Ok(message)) = source.next().await {
        let done = match message {
            Message::Close(_) => break,
            _ if over => continue,
            Message::Binary(bytes) if bytes.is_empty() => input.close_stdin().await,
            Message::Binary(bytes) => input.stdin(&bytes).await,
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(WsInput::Resize { rows, cols }) => input.resize(rows, cols).await,
                Ok(WsInput::Signal { signal }) => input.signal(&signal).await,
                Err(error) => {
                    return Err(ApiError::bad_request(format!("a message is not understood: {error}"))
                        .hint("text messages are `{\"type\":\"resize\",…}` or `{\"type\":\"signal\",…}`"));
                }
            },
            Message::Ping(_) | Message::Pong(_) => Ok(()),
        };
        match done {
            Ok(()) => {}
            Err(error) if error.code == "bad_request" => return Err(error.into()),
            Err(error) => {
                tracing::debug!(code = error.code, error = error.message, "a step takes no more input");
                over = true;
            }
        }
    }
    Ok(())
}
