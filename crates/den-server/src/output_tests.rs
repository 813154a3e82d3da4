use bytes::Buf;
use den_api::{OutputFrame, output::OutputKind};
use http_body_util::BodyExt;

use super::*;

fn step(output_bytes: u64) -> Box<StepView> {
    Box::new(StepView {
        number: 3,
        kind: "exec".into(),
        status: "ended".into(),
        argv: vec!["true".into()],
        user: None,
        cwd: None,
        pty: false,
        who: "api".into(),
        started_at: 1,
        ended_at: Some(2),
        end: None,
        output_bytes,
        snapshot: None,
        changes: None,
    })
}

fn data(stream: OutputStream, offset: u64, bytes: impl Into<Bytes>) -> OutputItem {
    OutputItem::Data { stream, offset, bytes: bytes.into() }
}

/// Both streams, bytes that are no UTF-8, a hole, and a piece longer than a frame may be.
fn story() -> Vec<OutputItem> {
    vec![
        data(OutputStream::Stdout, 0, &b"a\n\xff"[..]),
        data(OutputStream::Stderr, 3, &b"e"[..]),
        OutputItem::Cut { offset: 4, bytes: 96 },
        data(OutputStream::Terminal, 100, vec![7; OUTPUT_BYTES_MAX + 5]),
        OutputItem::End(step(105 + OUTPUT_BYTES_MAX as u64)),
    ]
}

async fn body(form: Form, items: Vec<Result<OutputItem, ApiError>>) -> Result<Bytes, axum::Error> {
    let started = form.started(&step(0), 0);
    let response = respond(form, started, stream::iter(items), "req_test".into());
    assert_eq!(response.headers()[header::CONTENT_TYPE], form.media_type());
    Ok(response.into_body().collect().await?.to_bytes())
}

#[tokio::test]
async fn binary_frames_read_back() {
    let body = body(Form::Binary, story().into_iter().map(Ok).collect()).await.unwrap();
    let mut body = BytesMut::from(body);
    let mut frames = Vec::new();
    while let Some(OutputFrame { kind, offset, payload }) = OutputFrame::take(&mut body).unwrap() {
        frames.push((kind, offset, payload));
    }
    assert!(body.is_empty());
    let shape: Vec<_> = frames.iter().map(|(kind, offset, payload)| (*kind, *offset, payload.len())).collect();
    let end = shape.last().unwrap().2;
    assert_eq!(
        shape,
        [
            (OutputKind::Started, 0, shape[0].2),
            (OutputKind::Stdout, 0, 3),
            (OutputKind::Stderr, 3, 1),
            (OutputKind::Cut, 4, 8),
            (OutputKind::Terminal, 100, OUTPUT_BYTES_MAX),
            (OutputKind::Terminal, 100 + OUTPUT_BYTES_MAX as u64, 5),
            (OutputKind::End, 105 + OUTPUT_BYTES_MAX as u64, end),
        ]
    );
    assert_eq!(frames[3].2.clone().get_u64_le(), 96);
    assert_eq!(serde_json::from_slice::<StepView>(&frames[6].2).unwrap(), *step(105 + OUTPUT_BYTES_MAX as u64));
}

#[tokio::test]
async fn each_piece_of_a_socket_is_a_whole_frame() {
    for item in story() {
        let mut pieces = Vec::new();
        frames(item, usize::MAX, &mut pieces);
        for piece in pieces {
            let mut piece = BytesMut::from(piece);
            assert!(OutputFrame::take(&mut piece).unwrap().is_some() && piece.is_empty());
        }
    }
}

#[tokio::test]
async fn events_say_where_to_go_on() {
    let body = body(Form::Events, story().into_iter().map(Ok).collect()).await.unwrap();
    let text = String::from_utf8(body.into()).unwrap();
    let events: Vec<&str> = text.split_terminator("\n\n").collect();
    assert!(events[0].starts_with("id: 0\nevent: started\ndata: {\"number\":3,"), "{}", events[0]);
    assert_eq!(events[1], "id: 3\nevent: stdout\ndata: {\"offset\":0,\"data\":\"YQr/\"}");
    assert_eq!(events[2], "id: 4\nevent: stderr\ndata: {\"offset\":3,\"data\":\"ZQ==\"}");
    assert_eq!(events[3], "id: 100\nevent: cut\ndata: {\"offset\":4,\"bytes\":96}");
    let pieces = events.iter().filter(|event| event.contains("event: terminal")).count();
    assert_eq!(pieces, (OUTPUT_BYTES_MAX + 5).div_ceil(EVENT_BYTES_MAX));
    assert!(events.last().unwrap().contains("event: end\ndata: {\"number\":3,"));
}

#[tokio::test]
async fn raw_output_is_the_bytes_alone() {
    let items = vec![
        Ok(data(OutputStream::Stdout, 0, &b"ab"[..])),
        Ok(data(OutputStream::Stderr, 2, &b"c"[..])),
        Ok(OutputItem::End(step(3))),
    ];
    assert_eq!(body(Form::Raw, items).await.unwrap(), &b"abc"[..]);
}

#[tokio::test]
async fn what_breaks_in_the_middle_is_told_and_nothing_follows() {
    let broken = || {
        vec![
            Ok(data(OutputStream::Stdout, 0, &b"a"[..])),
            Err(ApiError::bad_request("no more")),
            Ok(data(OutputStream::Stdout, 1, &b"never"[..])),
        ]
    };
    let mut frames = BytesMut::from(body(Form::Binary, broken()).await.unwrap());
    let mut last = None;
    while let Some(frame) = OutputFrame::take(&mut frames).unwrap() {
        last = Some(frame);
    }
    let last = last.unwrap();
    assert_eq!(last.kind, OutputKind::Error);
    let error: ErrorBody = serde_json::from_slice(&last.payload).unwrap();
    assert_eq!((error.error.code.as_str(), error.error.request_id.as_deref()), ("bad_request", Some("req_test")));

    let events = body(Form::Events, broken()).await.unwrap();
    assert!(events.windows(12).any(|window| window == b"event: error") && !events.ends_with(b"never\n\n"));
    assert!(body(Form::Raw, broken()).await.is_err(), "raw bytes that end early break the connection");
}

#[tokio::test(start_paused = true)]
async fn a_silent_event_stream_says_that_it_lives() {
    let silent = stream::once(async {
        tokio::time::sleep(KEEP_ALIVE * 2 + Duration::from_secs(1)).await;
        Ok(Bytes::from_static(b"event: end\n\n"))
    });
    let all: Vec<_> = kept_alive(silent).map(Result::unwrap).collect().await;
    assert_eq!(all, [&b": still here\n\n"[..], b": still here\n\n", b"event: end\n\n"]);
}

#[test]
fn the_first_known_form_of_accept_counts() {
    let check = |accept: &str, expected| {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        assert_eq!(Form::of(&headers), expected, "{accept}");
    };
    check("*/*", Form::Json);
    check("text/html, */*", Form::Json);
    check("text/event-stream", Form::Events);
    check("text/event-stream;q=0.9, application/json", Form::Events);
    check("application/vnd.den.output", Form::Binary);
    check("application/octet-stream", Form::Raw);
    assert_eq!(Form::of(&HeaderMap::new()), Form::Json);
}
