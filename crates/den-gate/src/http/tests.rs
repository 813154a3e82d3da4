//! A client, the gate's half, and a server that is written out by hand: over real sockets, so that
//! every byte the server sees can be looked at.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{DialRefused, Event, Totals, serve};
use crate::host::Host;
use crate::record::Outcome;

const SOON: Duration = Duration::from_secs(5);

struct World {
    client: TcpStream,
    server: TcpListener,
    dials: Arc<AtomicUsize>,
    events: Arc<Mutex<Vec<String>>>,
    gate: JoinHandle<Totals>,
}

/// A client that was let through to `good.test`, at this port.
async fn world(port: u16) -> World {
    let server = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = server.local_addr().expect("address");
    let dials = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&dials);
    let (client, events, gate) = gate(port, move || {
        count.fetch_add(1, Ordering::Relaxed);
        TcpStream::connect(address)
    })
    .await;
    World { client, server, dials, events, gate }
}

type Events = Arc<Mutex<Vec<String>>>;

async fn gate<D, F>(port: u16, dial: D) -> (TcpStream, Events, JoinHandle<Totals>)
where
    D: FnMut() -> F + Send + 'static,
    F: Future<Output = io::Result<TcpStream>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
    let (inside, _) = listener.accept().await.expect("accept");
    let events = Events::default();
    let seen = Arc::clone(&events);
    let gate = tokio::spawn(async move {
        let name: Host = "good.test".parse().expect("a host");
        let observe = move |event: Event<'_>| {
            let verdict = if event.verdict == Outcome::Allow { "allow" } else { "deny" };
            let Event { method, path, status, why, .. } = event;
            let status = status.unwrap_or(0);
            seen.lock().expect("lock").push(format!("{method} {path} {status} {verdict} {why}"));
        };
        serve(inside, &name, port, dial, &observe).await
    });
    (client, events, gate)
}

impl World {
    async fn say(&mut self, text: &str) {
        self.client.write_all(text.as_bytes()).await.expect("write");
    }

    async fn accept(&self) -> TcpStream {
        timeout(SOON, self.server.accept()).await.expect("a connection in time").expect("accept").0
    }

    async fn hear(&mut self) -> String {
        head(&mut self.client).await
    }

    fn events(&self) -> Vec<String> {
        self.events.lock().expect("lock").clone()
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::Relaxed)
    }

    /// Closes the client; returns what was counted.
    async fn end(self) -> Totals {
        drop(self.client);
        timeout(SOON, self.gate).await.expect("ends in time").expect("no panic")
    }
}

/// Reads up to an empty line.
async fn head(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        let byte = timeout(SOON, stream.read_u8()).await;
        match byte.unwrap_or_else(|_| panic!("waited for more than {:?}", String::from_utf8_lossy(&text))) {
            Ok(byte) => text.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(text).expect("text")
}

async fn exactly(stream: &mut TcpStream, length: usize) -> String {
    let mut text = vec![0; length];
    timeout(SOON, stream.read_exact(&mut text)).await.expect("in time").expect("read");
    String::from_utf8(text).expect("text")
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    timeout(SOON, stream.read_to_end(&mut text)).await.expect("in time").expect("read");
    String::from_utf8(text).expect("text")
}

async fn is_silent(stream: &mut TcpStream) {
    let mut byte = [0];
    let read = timeout(Duration::from_millis(100), stream.read(&mut byte)).await;
    assert!(matches!(read, Err(_) | Ok(Ok(0)) | Ok(Err(_))), "{read:?}");
}

#[tokio::test]
async fn requests_of_one_connection_share_an_upstream_and_are_written_anew() {
    let mut world = world(8080).await;
    world.say("GET /a?q=1 HTTP/1.1\r\nhOsT: GOOD.test:8080\r\nX-CaSe: Kept\r\nConnection: keep-alive, x-hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nAccept: */*\r\n\r\n").await;
    let mut server = world.accept().await;
    let seen = head(&mut server).await;
    assert!(seen.starts_with("GET /a?q=1 HTTP/1.1\r\n"), "{seen}");
    assert!(seen.contains(": good.test:8080\r\n") && seen.contains("X-CaSe: Kept\r\n"), "{seen}");
    assert!(!seen.to_lowercase().contains("hop") && !seen.to_lowercase().contains("keep-alive"), "{seen}");
    server
        .write_all(b"HTTP/1.1 299 Odd\r\nETag: \"x\"\r\nKeep-Alive: 9\r\nContent-Length: 5\r\n\r\nhello")
        .await
        .expect("write");
    let heard = world.hear().await;
    assert!(heard.starts_with("HTTP/1.1 299 Odd\r\n") && heard.contains("ETag: \"x\"\r\n"), "{heard}");
    assert!(!heard.to_lowercase().contains("keep-alive") && !heard.to_lowercase().contains("date:"), "{heard}");
    assert_eq!(exactly(&mut world.client, 5).await, "hello");

    world.say("POST http://good.test:8080/b HTTP/1.1\r\nHost: good.test\r\nContent-Length: 3\r\n\r\nabc").await;
    let seen = head(&mut server).await;
    assert!(seen.starts_with("POST /b HTTP/1.1\r\n"), "{seen}");
    assert_eq!(exactly(&mut server, 3).await, "abc");
    server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("write");
    assert!(world.hear().await.starts_with("HTTP/1.1 204 No Content\r\n"));
    assert_eq!(world.dials(), 1);
    assert_eq!(world.events(), ["GET /a 299 allow allowed_rule", "POST /b 204 allow allowed_rule"]);
    let totals = world.end().await;
    assert!(totals.up > 200 && totals.down > 60, "{totals:?}");
}

#[tokio::test]
async fn each_request_is_held_against_the_name() {
    for (second, code) in [
        ("GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n", "421"),
        ("GET / HTTP/1.1\r\nHost: good.test:81\r\n\r\n", "421"),
        ("GET / HTTP/1.1\r\nHost: good.test:99999\r\n\r\n", "421"),
        ("GET / HTTP/1.1\r\nHost: good.test.evil.test\r\n\r\n", "421"),
        ("GET / HTTP/1.1\r\nHost: a@good.test\r\n\r\n", "421"),
        ("GET / HTTP/1.1\r\nHost: good.test,evil.test\r\n\r\n", "421"),
        ("GET / HTTP/1.1\r\nHost: \r\n\r\n", "421"),
        ("GET http://evil.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", "421"),
        ("GET http://good.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n", "421"),
        ("GET http://good.test@evil.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", "421"),
        ("GET https://good.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", "400"),
        ("GET evil.test:80 HTTP/1.1\r\nHost: good.test\r\n\r\n", "400"),
        ("CONNECT good.test:80 HTTP/1.1\r\nHost: good.test\r\n\r\n", "405"),
        ("TRACE / HTTP/1.1\r\nHost: good.test\r\n\r\n", "405"),
    ] {
        let mut world = world(80).await;
        world
            .say(&format!(
                "GET /1 HTTP/1.1\r\nHost: good.test\r\n\r\n{second}GET /3 HTTP/1.1\r\nHost: good.test\r\n\r\n"
            ))
            .await;
        let mut server = world.accept().await;
        assert!(head(&mut server).await.starts_with("GET /1 "));
        server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.expect("write");
        assert!(world.hear().await.starts_with("HTTP/1.1 200 "), "{second}");
        let heard = rest(&mut world.client).await;
        assert!(heard.starts_with(&format!("HTTP/1.1 {code} ")), "{second}: {heard}");
        assert!(heard.contains("\"error\":{\"code\":\"") && heard.contains("connection: close"), "{heard}");
        assert_eq!(heard.matches("HTTP/1.1 ").count(), 1, "the third is not looked at: {heard}");
        is_silent(&mut server).await;
        let events = world.events();
        assert_eq!(events.len(), 2, "{events:?}");
        assert!(events[1].contains(&format!(" {code} deny ")), "{events:?}");
    }
}

#[tokio::test]
async fn what_can_be_read_in_two_ways_never_gets_out() {
    let inner = "GET /inner HTTP/1.1\r\nHost: good.test\r\n\r\n";
    for raw in [
        format!(
            "POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}",
            inner.len() + 5
        ),
        format!(
            "POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{inner}"
        ),
        format!(
            "POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n{inner}"
        ),
        format!("POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{inner}"),
        format!(
            "POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 0\r\nContent-Length: {}\r\n\r\n{inner}",
            inner.len()
        ),
        format!("GET / HTTP/1.1\nHost: good.test\n\n{inner}"),
        format!("GET / HTTP/1.1\r\nHost: good.test\r\nX: y\n\r\n{inner}"),
        format!("GET / HTTP/1.1\r\nHost: good.test\r\nX: y\rEvil: z\r\n\r\n{inner}"),
        format!("GET / HTTP/1.1\r\nHost: good.test\r\n Host: evil.test\r\n\r\n{inner}"),
        format!("GET / HTTP/1.1\r\nHost: good.test\r\nHost: evil.test\r\n\r\n{inner}"),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\nHost: good.test\r\nX: {}\r\n\r\n", "y".repeat(70_000)),
        format!("GET / HTTP/1.1\r\nHost: good.test\r\n{}\r\n", "X: y\r\n".repeat(101)),
    ] {
        let mut world = world(80).await;
        world.say(&raw).await;
        let heard = rest(&mut world.client).await;
        let short = &raw[..raw.len().min(200)];
        let code = if raw.len() > 600 { "431" } else { "400" };
        assert!(heard.starts_with(&format!("HTTP/1.1 {code} ")), "{short}: {heard}");
        assert!(heard.contains("{\"error\":{\"code\":\""), "{heard}");
        assert_eq!(world.dials(), 0, "{short}");
        assert_eq!(world.events().len(), 1, "{short}: {:?}", world.events());
    }
}

#[tokio::test]
async fn a_body_that_breaks_its_framing_is_never_complete_upstream() {
    for chunk in [
        "5\r\nhello!\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nGET / HTTP/1.1\r\n\r\n",
    ] {
        let mut world = world(80).await;
        world.say("POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        let mut server = world.accept().await;
        let seen = head(&mut server).await;
        assert!(seen.to_lowercase().contains("transfer-encoding: chunked\r\n"), "{seen}");
        world.say(chunk).await;
        let mut seen = Vec::new();
        let _ = timeout(SOON, server.read_to_end(&mut seen)).await.expect("ends in time");
        let seen = String::from_utf8(seen).expect("text");
        assert!(!seen.contains("0\r\n\r\n") && !seen.contains("GET"), "{chunk:?}: {seen:?}");
        world.end().await;
    }
}

#[tokio::test]
async fn only_a_websocket_is_upgraded() {
    // h2c is offered by some clients on every request: it is not passed on, the request is.
    let mut world = world(80).await;
    world.say("GET / HTTP/1.1\r\nHost: good.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n").await;
    let mut server = world.accept().await;
    let seen = head(&mut server).await.to_lowercase();
    assert!(!seen.contains("upgrade") && !seen.contains("http2"), "{seen}");
    // A server that switches all the same gets nowhere.
    server
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        .await
        .expect("write");
    let heard = rest(&mut world.client).await;
    assert!(heard.starts_with("HTTP/1.1 502 ") && heard.contains("bad_answer"), "{heard}");
    is_silent(&mut server).await;

    let ask = "GET /chat HTTP/1.1\r\nHost: good.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    // Refused by the server: the connection stays one of requests, and they are looked at.
    let mut world = self::world(80).await;
    world.say(ask).await;
    let mut server = world.accept().await;
    head(&mut server).await;
    server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.expect("write");
    assert!(world.hear().await.starts_with("HTTP/1.1 200 "));
    world.say("GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n").await;
    assert!(rest(&mut world.client).await.starts_with("HTTP/1.1 421 "));
    is_silent(&mut server).await;

    // Agreed: from here on bytes are bytes, both ways.
    let mut world = self::world(80).await;
    world.say(ask).await;
    let mut server = world.accept().await;
    let seen = head(&mut server).await.to_lowercase();
    assert!(seen.contains("upgrade: websocket\r\n") && seen.contains("connection: upgrade\r\n"), "{seen}");
    assert!(seen.contains("sec-websocket-key: "), "{seen}");
    server.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nfirst").await.expect("write");
    let heard = world.hear().await;
    assert!(heard.starts_with("HTTP/1.1 101 ") && heard.to_lowercase().contains("upgrade: websocket"), "{heard}");
    assert_eq!(exactly(&mut world.client, 5).await, "first");
    world.say("GET / HTTP/1.1\nraw").await;
    assert_eq!(exactly(&mut server, 18).await, "GET / HTTP/1.1\nraw");
    server.write_all(b"back").await.expect("write");
    assert_eq!(exactly(&mut world.client, 4).await, "back");
    assert_eq!(world.events(), ["GET /chat 101 allow allowed_rule"]);
    drop(server);
    assert_eq!(rest(&mut world.client).await, "");
    let totals = world.end().await;
    assert_eq!(totals.up, ask.len() as u64 + 18);
}

#[tokio::test]
async fn bodies_chunks_and_trailers_go_through() {
    let mut world = world(80).await;
    world.say("POST /up HTTP/1.1\r\nHost: good.test\r\nExpect: 100-continue\r\nTE: trailers\r\nConnection: TE\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let mut server = world.accept().await;
    let seen = head(&mut server).await.to_lowercase();
    assert!(!seen.contains("expect") && seen.contains("te: trailers\r\n"), "{seen}");
    assert_eq!(world.hear().await, "HTTP/1.1 100 Continue\r\n\r\n");
    world.say("4;ext=1\r\nwiki\r\n0\r\nX-Sum: 7\r\n\r\n").await;
    let mut body = String::new();
    while !body.ends_with("\r\n\r\n") {
        body.push_str(&exactly(&mut server, 1).await);
    }
    assert_eq!(body.to_lowercase(), "4\r\nwiki\r\n0\r\nx-sum: 7\r\n\r\n");
    server.write_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nTrailer: X-End\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await.expect("write");
    let heard = world.hear().await;
    assert!(
        heard.starts_with("HTTP/1.1 200 OK\r\n") && heard.to_lowercase().contains("transfer-encoding: chunked\r\n"),
        "{heard}"
    );
    assert_eq!(exactly(&mut world.client, 8).await, "3\r\nabc\r\n", "what has come goes on at once");
    server.write_all(b"0\r\nX-End: yes\r\n\r\n").await.expect("write");
    let end = world.hear().await.to_lowercase();
    assert_eq!(end, "0\r\nx-end: yes\r\n\r\n");
    // A GET with a body in chunks keeps it.
    world.say("GET /odd HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n").await;
    let seen = head(&mut server).await.to_lowercase();
    assert!(seen.contains("transfer-encoding: chunked\r\n"), "{seen}");
    assert_eq!(exactly(&mut server, 11).await, "1\r\nx\r\n0\r\n\r\n");
    server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.expect("write");
    assert!(world.hear().await.starts_with("HTTP/1.1 200 "));
    world.end().await;
}

#[tokio::test]
async fn answers_without_a_body_keep_their_headers() {
    let mut world = world(80).await;
    world.say("HEAD /big HTTP/1.1\r\nHost: good.test\r\n\r\nGET /same HTTP/1.1\r\nHost: good.test\r\nIf-None-Match: \"x\"\r\n\r\nGET /old HTTP/1.0\r\nHost: good.test\r\n\r\n").await;
    let mut server = world.accept().await;
    assert!(head(&mut server).await.starts_with("HEAD /big "));
    server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n").await.expect("write");
    let heard = world.hear().await.to_lowercase();
    assert!(heard.contains("content-length: 12345\r\n"), "{heard}");
    assert!(head(&mut server).await.starts_with("GET /same "));
    server.write_all(b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n").await.expect("write");
    let heard = world.hear().await.to_lowercase();
    assert!(
        heard.starts_with("http/1.1 304 ") && !heard.contains("content-length") && !heard.contains("transfer"),
        "{heard}"
    );
    assert!(head(&mut server).await.starts_with("GET /old HTTP/1.1\r\n"));
    // Without a length: until the server closes. To a client of 1.0 that is how it is passed on.
    server.write_all(b"HTTP/1.0 200 OK\r\n\r\nall of it").await.expect("write");
    drop(server);
    let heard = rest(&mut world.client).await;
    assert!(heard.ends_with("\r\n\r\nall of it"), "{heard}");
    assert_eq!(world.events().len(), 3);
}

#[tokio::test]
async fn an_upstream_that_has_closed_is_dialled_again() {
    let mut world = world(80).await;
    for n in 1..=3 {
        world.say(&format!("GET /{n} HTTP/1.1\r\nHost: good.test\r\n\r\n")).await;
        let mut server = world.accept().await;
        assert!(head(&mut server).await.starts_with(&format!("GET /{n} ")));
        // Only one of them says so.
        let close = if n == 1 { "Connection: close\r\n" } else { "" };
        server
            .write_all(format!("HTTP/1.1 200 OK\r\n{close}Content-Length: 0\r\n\r\n").as_bytes())
            .await
            .expect("write");
        let heard = world.hear().await;
        assert!(heard.starts_with("HTTP/1.1 200 ") && !heard.to_lowercase().contains("connection"), "{heard}");
        drop(server);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(world.dials(), 3);
    // Closed while the request is under way: what may be asked twice is asked again …
    world.say("GET /4 HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
    let mut server = world.accept().await;
    head(&mut server).await;
    server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.expect("write");
    world.hear().await;
    world.say("GET /5 HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
    head(&mut server).await;
    drop(server);
    let mut server = world.accept().await;
    assert!(head(&mut server).await.starts_with("GET /5 "));
    server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.expect("write");
    assert!(world.hear().await.starts_with("HTTP/1.1 200 "));
    // … and what may not, is not.
    world.say("POST /6 HTTP/1.1\r\nHost: good.test\r\nContent-Length: 1\r\n\r\nx").await;
    head(&mut server).await;
    drop(server);
    let heard = rest(&mut world.client).await;
    assert!(heard.starts_with("HTTP/1.1 502 ") && heard.contains("no_answer"), "{heard}");
    assert_eq!(world.dials(), 5);
}

#[tokio::test]
async fn a_dial_that_fails_says_so() {
    let ask = b"GET / HTTP/1.1\r\nHost: good.test\r\n\r\n";
    type Make = fn() -> io::Error;
    let refused: Make = || {
        let (message, hint) = ("10.0.0.1 is private".to_owned(), "ask the operator".to_owned());
        io::Error::other(DialRefused { code: "floor", message, hint })
    };
    for (make, expected) in [
        ((|| io::ErrorKind::ConnectionRefused.into()) as Make, "502 Bad Gateway|dial_failed|allow"),
        (|| io::ErrorKind::TimedOut.into(), "504 Gateway Timeout|dial_timeout|allow"),
        (|| io::ErrorKind::NotFound.into(), "502 Bad Gateway|no_address|allow"),
        (refused, "403 Forbidden|floor|deny"),
    ] {
        let (mut client, events, gate) = gate(80, move || std::future::ready(Err(make()))).await;
        client.write_all(ask).await.expect("write");
        let heard = rest(&mut client).await;
        let parts: Vec<_> = expected.split('|').collect();
        assert!(heard.starts_with(&format!("HTTP/1.1 {}", parts[0])), "{heard}");
        assert!(heard.contains(&format!("\"code\":\"{}\"", parts[1])), "{heard}");
        let event = events.lock().expect("lock")[0].clone();
        assert!(event.contains(parts[2]) && event.ends_with(parts[1]), "{event}");
        drop(client);
        timeout(SOON, gate).await.expect("ends").expect("no panic");
    }
    let text =
        String::from_utf8(super::refusal("no_rule", "`evil.test` is \"not\" allowed", "add a rule")).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    assert!(
        head.starts_with("HTTP/1.1 403 Forbidden\r\n") && head.contains(&format!("content-length: {}", body.len()))
    );
    let body: serde_json::Value = serde_json::from_str(body).expect("json");
    assert_eq!(body["error"]["message"], "`evil.test` is \"not\" allowed");
}

#[tokio::test]
async fn long_bodies_stream_and_a_slow_reader_slows_the_writer() {
    const LENGTH: usize = 64 << 20;
    let mut world = world(80).await;
    world.say(&format!("PUT /big HTTP/1.1\r\nHost: good.test\r\nContent-Length: {LENGTH}\r\n\r\n")).await;
    let mut server = world.accept().await;
    head(&mut server).await;
    // The server reads nothing: the client is held up long before the end.
    let block = vec![b'u'; 1 << 16];
    let mut sent = 0;
    while let Ok(written) = timeout(Duration::from_millis(500), world.client.write(&block)).await {
        sent += written.expect("write");
        assert!(sent < LENGTH / 2, "nothing holds the client up");
    }
    let (mut reader, mut writer) = world.client.into_split();
    let up = tokio::spawn(async move {
        while sent < LENGTH {
            let most = block.len().min(LENGTH - sent);
            sent += writer.write(&block[..most]).await.expect("write");
        }
        writer
    });
    let mut buffer = vec![0; 1 << 16];
    let mut got = 0;
    while got < LENGTH {
        let length = timeout(SOON, server.read(&mut buffer)).await.expect("in time").expect("read");
        assert!(buffer[..length].iter().all(|&byte| byte == b'u'));
        got += length;
    }
    assert_eq!(got, LENGTH);
    let _writer = up.await.expect("sent");
    let down = tokio::spawn(async move {
        server
            .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").as_bytes())
            .await
            .expect("write");
        for _ in 0..LENGTH >> 16 {
            server.write_all(&[b'd'; 1 << 16]).await.expect("write");
        }
        server
    });
    let mut got = 0;
    while got < LENGTH {
        got += timeout(SOON, reader.read(&mut buffer)).await.expect("in time").expect("read");
    }
    let _server = down.await.expect("sent");
    assert_eq!(world.events.lock().expect("lock").as_slice(), ["PUT /big 200 allow allowed_rule"]);
    world.gate.abort();
}

#[tokio::test]
async fn requests_that_come_byte_by_byte_are_the_same_requests() {
    let mut world = world(80).await;
    world.client.set_nodelay(true).expect("nodelay");
    let all = concat!(
        "\r\nPOST /1 HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "POST /2 HTTP/1.1\r\nHost: good.test\r\nContent-Length: 3\r\n\r\ndef",
        "GET /3 HTTP/1.1\r\nHost: good.test\r\n\r\n",
    );
    let (_reader, mut writer) = world.client.split();
    for byte in all.as_bytes() {
        writer.write_all(&[*byte]).await.expect("write");
        tokio::task::yield_now().await;
    }
    let mut server = world.accept().await;
    for (path, body, end) in [("/1", "abc", "\r\n0\r\n\r\n"), ("/2", "def", "f"), ("/3", "", "")] {
        let seen = head(&mut server).await;
        assert!(seen.contains(&format!(" {path} HTTP/1.1\r\n")), "{seen}");
        let mut got = String::new();
        while !got.ends_with(end) {
            got.push_str(&exactly(&mut server, 1).await);
        }
        let letters: String = got.chars().filter(char::is_ascii_lowercase).collect();
        assert_eq!(letters, body);
        server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.expect("write");
        assert!(world.hear().await.starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test]
async fn a_head_that_never_ends_is_given_up() {
    let mut world = world(80).await;
    world.say("GET / HTTP/1.1\r\nHost: good").await;
    let heard = rest(&mut world.client).await;
    assert!(heard.starts_with("HTTP/1.1 408 ") && heard.contains("head_timeout"), "{heard}");
    assert_eq!(world.events(), ["  408 deny head_timeout"]);
}

#[tokio::test]
async fn a_client_that_goes_takes_its_upstream_along() {
    let mut world = world(80).await;
    world.say("GET /slow HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
    let mut server = world.accept().await;
    head(&mut server).await;
    let events = Arc::clone(&world.events);
    world.end().await;
    assert_eq!(rest(&mut server).await, "");
    assert_eq!(*events.lock().expect("lock"), ["GET /slow 0 allow allowed_rule"]);

    // A policy that changed: the future is dropped, and both ends are closed.
    let mut world = self::world(80).await;
    world.say("GET /slow HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
    let mut server = world.accept().await;
    head(&mut server).await;
    world.gate.abort();
    assert_eq!(rest(&mut server).await, "");
    assert_eq!(rest(&mut world.client).await, "");
}
