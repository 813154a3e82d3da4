//! Bodies of requests that are answered before they are read, as refusals are.
//!
//! By HTTP/1.1 what is left of such a body stands between the answer and the next request: the connection is closed
//! if it has not come yet, and a client that took the answer for the end of it sends its next request into that.
//!
//! Invariant: after an answer either the connection can be used again, or the answer says that it is closed.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::{HeaderValue, Version, header},
    response::Response,
};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Frame, SizeHint};
use tokio::sync::oneshot;

/// The most that is read for nothing, in bytes; a longer one costs its connection.
const BYTES_MAX: usize = 256 << 10;
/// How long the rest may take to come.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// A body that comes back when it is dropped before its end.
struct Lent {
    body: Body,
    back: Option<oneshot::Sender<Body>>,
}

/// What comes back of a request's body.
pub(crate) struct Unread(oneshot::Receiver<Body>);

/// The request, and what comes back of its body; `None` where nothing can, and for who waits to be asked for it.
pub(crate) fn lend(request: Request) -> (Request, Option<Unread>) {
    let waits = request.headers().contains_key(header::EXPECT);
    if request.version() > Version::HTTP_11 || request.body().is_end_stream() || waits {
        return (request, None);
    }
    let (back, unread) = oneshot::channel();
    (request.map(|body| Body::new(Lent { body, back: Some(back) })), Some(Unread(unread)))
}

impl Unread {
    /// Reads what is left of the body, or has the answer say that the connection ends.
    pub(crate) async fn before(mut self, mut answer: Response) -> Response {
        // Nothing has come back: it was read, or is being read.
        let Ok(body) = self.0.try_recv() else { return answer };
        let rest = Limited::new(body, BYTES_MAX).collect();
        if !matches!(tokio::time::timeout(WAIT_MAX, rest).await, Ok(Ok(_))) {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.body.is_end_stream()
            && let Some(back) = self.back.take()
        {
            // Nobody waits for it any more: then it goes.
            let _ = back.send(std::mem::take(&mut self.body));
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, http::StatusCode};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// A server that refuses all without reading them, and one connection to it.
    async fn refused_by() -> TcpStream {
        let refuse = |request: Request| async {
            let (request, unread) = lend(request);
            drop(request);
            let mut answer = Response::new(Body::from("no"));
            *answer.status_mut() = StatusCode::BAD_GATEWAY;
            match unread {
                Some(unread) => unread.before(answer).await,
                None => answer,
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(refuse)).await });
        TcpStream::connect(address).await.unwrap()
    }

    async fn answer(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        while !text.ends_with(b"no") {
            let mut byte = [0; 1];
            stream.read_exact(&mut byte).await.expect("the whole answer");
            text.push(byte[0]);
        }
        String::from_utf8(text).unwrap().to_ascii_lowercase()
    }

    #[tokio::test]
    async fn a_connection_outlives_a_refusal_whose_body_comes_late() {
        let mut stream = refused_by().await;
        for _ in 0..3 {
            stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n").await.unwrap();
            tokio::time::sleep(Duration::from_millis(30)).await;
            stream.write_all(b"12345").await.unwrap();
            let said = answer(&mut stream).await;
            assert!(said.starts_with("http/1.1 502") && !said.contains("connection: close"), "{said}");
        }
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(answer(&mut stream).await.starts_with("http/1.1 502"));
    }

    #[tokio::test]
    async fn a_body_without_end_costs_its_connection_and_the_answer_says_so() {
        let mut stream = refused_by().await;
        let length = BYTES_MAX + 1;
        stream
            .write_all(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n").as_bytes())
            .await
            .unwrap();
        stream.write_all(&vec![0; length]).await.unwrap();
        assert!(answer(&mut stream).await.contains("connection: close"));
        // And one that never comes.
        let mut stream = refused_by().await;
        stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n1").await.unwrap();
        assert!(answer(&mut stream).await.contains("connection: close"));
    }
}
