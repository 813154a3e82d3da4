//! Connections: accepting them, HTTP on each, and ending them.
//!
//! ```text
//! plain ───────────────────────────► HTTP/1.1 ─┐
//! TLS ─► handshake ─► ALPN ─┬─ else ──► HTTP/1.1 ─┼─► router
//!                           └─ `h2` ──► HTTP/2 ───┘
//! ```
//!
//! hyper is driven here rather than by `axum::serve` for four settings that it does not pass on:
//! the size of the write buffer (frames of 256 KiB go out without a flush between head and
//! payload), a limit on connections, a time limit for request heads, and a limit on how long open
//! streams may hold up the daemon's end.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Body, extract::Request};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::Service,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

use crate::guard::Ends;

/// Connections at once. The next one waits in the kernel's queue until one ends.
pub const CONNECTIONS_MAX: usize = 4096;

/// How long a connection may take to send a request's head, idle time before it included.
pub const HEAD_TIME_MAX: Duration = Duration::from_secs(90);

/// How long streams that are open when the daemon ends may go on. Clients take them up again from
/// the last offset.
pub const LAST_WORDS_TIME_MAX: Duration = Duration::from_secs(1);

/// How long a client may take to agree on TLS.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);

/// Requests at once on one connection of HTTP/2. A client's commands and watches that go on are one each.
const STREAMS_MAX: u32 = 1024;

/// What one request, and all of a connection, may have sent that nobody has read yet, in bytes.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// A client of HTTP/2 that is silent is asked whether it is there, and let go where it does not say.
const ASK_AFTER: Duration = Duration::from_secs(60);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);

/// What hyper gathers before it writes, and the most that it reads at once, in bytes.
const BUFFER_BYTES_MAX: usize = 1 << 20;

/// Pause after `accept` failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `router` until `shutdown` is done, then waits for the requests under way, at most
/// [`LAST_WORDS_TIME_MAX`].
///
/// Errors: the listener has no address.
pub async fn serve(listener: TcpListener, router: Router, shutdown: impl Future<Output = ()>) -> io::Result<()> {
    serve_all(listener, None, router, shutdown).await
}

/// The same over TLS: HTTP/2 for clients that offer `h2`, HTTP/1.1 for all others.
///
/// Errors: the listener has no address.
pub async fn serve_tls(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    serve_all(listener, Some(TlsAcceptor::from(tls)), router, shutdown).await
}

async fn serve_all(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let listening = listener.local_addr()?;
    let (end, ending) = watch::channel(false);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut shutdown = pin!(shutdown);
    loop {
        let next = async {
            let place = Arc::clone(&room).acquire_owned().await.expect("the semaphore is never closed");
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            biased;
            () = &mut shutdown => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, peer)) => {
                let ends = Ends { listening, peer };
                let connection = connection(stream, tls.clone(), ends, router.clone(), ending.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "accept failed; pausing");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    drop(ending);
    let _ = end.send(true);
    if timeout(LAST_WORDS_TIME_MAX, end.closed()).await.is_err() {
        tracing::info!(connections = end.receiver_count(), "streams that are still open are cut");
    }
    Ok(())
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    ends: Ends,
    router: Router,
    ending: watch::Receiver<bool>,
) {
    // Small frames are answers to someone who waits.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY is not set");
    }
    let service = WithEnds { inner: TowerToHyperService::new(router), ends };
    let Some(tls) = tls else { return one(stream, service, ending).await };
    match timeout(HANDSHAKE_TIME_MAX, tls.accept(stream)).await {
        Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => two(stream, service, ending).await,
        Ok(Ok(stream)) => one(stream, service, ending).await,
        Ok(Err(error)) => tracing::debug!(%error, peer = %ends.peer, "no TLS with a client"),
        Err(_) => tracing::debug!(peer = %ends.peer, "a client is too slow to agree on TLS"),
    }
}

/// HTTP/1.1 until either side ends it.
async fn one<S>(stream: S, service: WithEnds, ending: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let peer = service.ends.peer;
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        .writev(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    to_its_end(served, http1::UpgradeableConnection::graceful_shutdown, ending, peer).await;
}

/// HTTP/2 until either side ends it.
async fn two<S>(stream: S, service: WithEnds, ending: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let peer = service.ends.peer;
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(ASK_AFTER)
        .keep_alive_timeout(ANSWER_TIME_MAX)
        .serve_connection(TokioIo::new(stream), service);
    to_its_end(served, http2::Connection::graceful_shutdown, ending, peer).await;
}

/// Serves until either side ends it: ours once what is under way is answered.
async fn to_its_end<C>(served: C, end: fn(Pin<&mut C>), mut ending: watch::Receiver<bool>, peer: SocketAddr)
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut served = pin!(served);
    let result = tokio::select! {
        result = served.as_mut() => result,
        () = async { drop(ending.wait_for(|ending| *ending).await) } => {
            end(served.as_mut());
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, %peer, "a connection broke");
    }
}

/// Puts the connection's ends into each request.
struct WithEnds {
    inner: TowerToHyperService<Router>,
    ends: Ends,
}

impl Service<hyper::Request<Incoming>> for WithEnds {
    type Response = <TowerToHyperService<Router> as Service<Request>>::Response;
    type Error = <TowerToHyperService<Router> as Service<Request>>::Error;
    type Future = <TowerToHyperService<Router> as Service<Request>>::Future;

    fn call(&self, request: hyper::Request<Incoming>) -> Self::Future {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.ends);
        self.inner.call(request)
    }
}

/// Whether `accept` only says that the one connection is gone already: accept(2), "Error handling".
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as E;
    matches!(error.kind(), E::ConnectionRefused | E::ConnectionAborted | E::ConnectionReset | E::Interrupted)
}

/// Whether a client sits on this machine.
pub(crate) fn is_local(peer: SocketAddr) -> bool {
    peer.ip().to_canonical().is_loopback()
}
