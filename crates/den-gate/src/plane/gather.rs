//! Fewer wakings of a fast flow: its reader is woken once much has come, not for every packet.
//!
//! ```text
//! each packet wakes ── 32 MiB within 100 ms ──► every 512 KiB wake ──┐
//!        ▲                                                           │
//!        └────────── less than that within a millisecond ────────────┘
//! ```
//!
//! To wake a thread costs more than to move a packet, above all where processors sleep between two, and a
//! sender that paces itself by what is taken takes each stop for a slow way.
//!
//! Invariant: what has come waits for [`WAIT`] at most. The end of a stream and a reset wake at once
//! (`tcp_fin` and `tcp_reset` of net/ipv4/tcp_input.c).

use std::io;
use std::time::{Duration, Instant};

use tokio::io::Interest;

use super::relay::Side;

/// A reader of a fast flow is woken when so much has come.
const BYTES: i32 = 512 << 10;
/// How long what is less than that may wait.
const WAIT: Duration = Duration::from_millis(1);
/// A flow is fast that brings this much within [`FAST_TIME`].
const FAST_BYTES: usize = 32 << 20;
/// See [`FAST_BYTES`].
const FAST_TIME: Duration = Duration::from_millis(100);

/// How the reader of one direction is woken.
pub(super) struct Gather {
    since: Instant,
    bytes: usize,
    on: bool,
}

impl Gather {
    /// By every packet.
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), bytes: 0, on: false }
    }

    /// Waits until there is something to read from here.
    pub(super) async fn ready(&mut self, from: Side<'_>) -> io::Result<()> {
        if self.on {
            match tokio::time::timeout(WAIT, from.ready(Interest::READABLE)).await {
                Ok(ready) => return ready,
                // What has come by now wakes.
                Err(_) => self.wake_from(from, 1),
            }
        }
        from.ready(Interest::READABLE).await
    }

    /// So many bytes were read.
    pub(super) fn moved(&mut self, from: Side<'_>, bytes: usize) {
        self.bytes += bytes;
        if self.bytes < FAST_BYTES {
            return;
        }
        let now = Instant::now();
        let fast = now.duration_since(self.since) <= FAST_TIME;
        (self.since, self.bytes) = (now, 0);
        if fast && !self.on {
            self.wake_from(from, BYTES);
        }
    }

    fn wake_from(&mut self, from: Side<'_>, bytes: i32) {
        // A socket that does not take it wakes as before.
        self.on = from.wake_from(bytes) && bytes > 1;
        (self.since, self.bytes) = (Instant::now(), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::{BYTES, FAST_BYTES, FAST_TIME, Gather};
    use crate::plane::relay::Side;

    /// Longer than a test may wait, shorter than one that hangs.
    const LONG: Duration = Duration::from_secs(20);

    /// A reader that has just read much, and who writes to it.
    async fn fast() -> (Gather, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let reader = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (writer, _) = listener.accept().await.unwrap();
        let mut gather = Gather::new();
        // Between the two lines above and here a busy host may let time pass.
        while !gather.on {
            gather.moved(Side::Tcp(&reader), FAST_BYTES);
        }
        (gather, reader, writer)
    }

    #[tokio::test]
    async fn a_byte_after_many_is_not_held_back() {
        let (mut gather, mut reader, mut writer) = fast().await;
        writer.write_all(b"1").await.unwrap();
        timeout(LONG, gather.ready(Side::Tcp(&reader))).await.expect("it wakes").unwrap();
        assert_eq!(reader.read_u8().await.unwrap(), b'1');
        // From here on every packet wakes.
        assert!(!gather.on);
        writer.write_all(b"2").await.unwrap();
        timeout(LONG, gather.ready(Side::Tcp(&reader))).await.expect("it wakes").unwrap();
        assert_eq!(reader.read_u8().await.unwrap(), b'2');
    }

    #[tokio::test]
    async fn an_end_and_a_reset_wake_at_once() {
        let (mut gather, mut reader, writer) = fast().await;
        drop(writer);
        timeout(LONG, gather.ready(Side::Tcp(&reader))).await.expect("it wakes").unwrap();
        assert_eq!(reader.read(&mut [0]).await.unwrap(), 0);

        let (mut gather, mut reader, writer) = fast().await;
        writer.set_zero_linger().unwrap();
        drop(writer);
        timeout(LONG, gather.ready(Side::Tcp(&reader))).await.expect("it wakes").unwrap();
        reader.read(&mut [0]).await.unwrap_err();
    }

    #[tokio::test]
    async fn much_arrives_whole() {
        let (mut gather, mut reader, mut writer) = fast().await;
        let much = vec![7; BYTES as usize * 4];
        let sent = tokio::spawn(async move { writer.write_all(&much).await.map(|()| writer) });
        let mut got = 0;
        let mut buffer = vec![0; BYTES as usize];
        while got < BYTES as usize * 4 {
            timeout(LONG, gather.ready(Side::Tcp(&reader))).await.expect("it wakes").unwrap();
            got += reader.read(&mut buffer).await.unwrap();
        }
        sent.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_slow_flow_is_left_as_it_is() {
        let (_, reader, _writer) = fast().await;
        let mut gather = Gather { since: Instant::now() - FAST_TIME * 2, ..Gather::new() };
        gather.moved(Side::Tcp(&reader), FAST_BYTES);
        assert!(!gather.on);
    }
}
