//! DNS of all computers: datagrams on one socket, which say by which link they came, and streams,
//! which are flows to port 53 wherever they were sent.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use den_sys::datagram;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;

use crate::decide::Outcome;
use crate::dns::{self, EDE_OTHER, Transport};
use crate::record::Record;

use super::link::Link;
use super::{Gate, Rest};

/// The longest query that is read.
const QUERY_BYTES_MAX: usize = 4096;
/// Queries of one computer that are being answered at once.
const QUERIES_MAX: u32 = 64;
/// The same, of one stream.
const STREAM_QUERIES_MAX: usize = 8;
/// For the next query of a stream.
const STREAM_IDLE: Duration = Duration::from_secs(5);
/// Datagrams that are read in a row without another task having its turn.
const DATAGRAMS_MAX: u32 = 32;

/// A query that is being answered.
struct Pending(Arc<Link>);

impl Pending {
    fn begin(link: &Arc<Link>) -> Option<Self> {
        let pending = Self(Arc::clone(link));
        (link.queries.fetch_add(1, Ordering::Relaxed) < QUERIES_MAX).then_some(pending)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.queries.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers datagrams until the gate ends.
pub(super) async fn serve(gate: Arc<Gate>, socket: OwnedFd) {
    let socket = match UdpSocket::from_std(socket.into()) {
        Ok(socket) => Arc::new(socket),
        Err(error) => return tracing::error!(%error, "no DNS: the socket cannot be waited for"),
    };
    let mut buffer = vec![0; QUERY_BYTES_MAX];
    let mut rounds = 0;
    loop {
        if socket.readable().await.is_err() {
            return;
        }
        match socket.try_io(Interest::READABLE, || datagram::receive(socket.as_fd(), &mut buffer)) {
            Ok((length, envelope)) => take(&gate, &socket, &buffer[..length], envelope),
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::WouldBlock) => {}
            // What an earlier answer met: a computer that has gone.
            Err(error) => tracing::debug!(%error, "a datagram was not read"),
        }
        rounds += 1;
        if rounds == DATAGRAMS_MAX {
            rounds = 0;
            tokio::task::yield_now().await;
        }
    }
}

fn take(gate: &Arc<Gate>, socket: &Arc<UdpSocket>, query: &[u8], envelope: datagram::Envelope) {
    let Some(link) = gate.links().by_index.get(&envelope.interface).cloned() else { return };
    let Some(rest) = gate.rest() else { return };
    if !link.takes_query() {
        if let Some(answer) = over(&link, query) {
            let _ = datagram::answer(socket.as_fd(), &envelope, &answer);
        }
        return;
    }
    let Some(pending) = Pending::begin(&link) else { return link.limited("dns_at_once", 1) };
    let (socket, query) = (Arc::clone(socket), query.to_vec());
    tokio::spawn(async move {
        if let Some(answer) = answer(&link, &rest, &query, Transport::Udp).await {
            // A full socket buffer, or a computer that has gone: who asked asks again.
            let _ = datagram::answer(socket.as_fd(), &envelope, &answer);
        }
        drop(pending);
    });
}

/// Too many queries: the refusal.
fn over(link: &Link, query: &[u8]) -> Option<Vec<u8>> {
    link.count(Outcome::Deny);
    link.limited("dns_per_s", 1);
    dns::refused(query, EDE_OTHER)
}

async fn answer(link: &Link, rest: &Rest, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let told = link.told();
    let record = |record: &Record<'_>| {
        if let Some(verdict) = record.verdict {
            link.count(verdict);
        }
        let _ = link.write(record);
    };
    dns::answer(query, transport, &told.policy, &link.names, &rest.resolver, &record).await
}

/// Answers the queries of a stream, several at once and each when it is known.
pub(super) async fn stream(link: &Arc<Link>, rest: &Arc<Rest>, mut client: TcpStream) {
    let mut answers: JoinSet<Option<Vec<u8>>> = JoinSet::new();
    let mut input = Vec::with_capacity(512);
    let mut ended = false;
    while !ended || !answers.is_empty() {
        let hungry = answers.len() < STREAM_QUERIES_MAX && !ended;
        let more = async {
            match hungry {
                true => tokio::time::timeout(STREAM_IDLE, client.read_buf(&mut input)).await,
                false => std::future::pending().await,
            }
        };
        // Both may be dropped without losing anything.
        let answered = tokio::select! {
            Some(answered) = answers.join_next() => answered.ok().flatten(),
            read = more => {
                ended = !matches!(read, Ok(Ok(length)) if length > 0);
                None
            }
        };
        if let Some(answer) = answered {
            let Ok(length) = u16::try_from(answer.len()) else { continue };
            let framed = [&length.to_be_bytes()[..], &answer].concat();
            if client.write_all(&framed).await.is_err() {
                break;
            }
        }
        while let Some((head, rest_of)) = input.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*head));
            if length > QUERY_BYTES_MAX {
                tracing::debug!(computer = link.id, "a query is too long");
                let _ = client.set_zero_linger();
                return;
            }
            if rest_of.len() < length || answers.len() >= STREAM_QUERIES_MAX {
                break;
            }
            let query = rest_of[..length].to_vec();
            input.drain(..2 + length);
            let (link, rest) = (Arc::clone(link), Arc::clone(rest));
            if !link.takes_query() {
                let refusal = over(&link, &query);
                answers.spawn(std::future::ready(refusal));
                continue;
            }
            answers.spawn(async move {
                let pending = Pending::begin(&link);
                if pending.is_none() {
                    link.limited("dns_at_once", 1);
                    return dns::refused(&query, EDE_OTHER);
                }
                answer(&link, &rest, &query, Transport::Tcp).await
            });
        }
    }
}
