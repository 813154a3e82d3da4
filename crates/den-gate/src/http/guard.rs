//! The client's stream, with each head held back until it is whole and was found to be clean.
//!
//! A head that is not clean never reaches the parser. In its place goes one of our own making, and
//! the number under which the service will see it: so answers stay in their order, behind those of
//! requests that were clean, and the client gets a reason and not a reset.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::strict::{Chunks, Fault, Framing, HEAD_BYTES_MAX, check, find_end};

/// How long a head may take from its first byte to its last.
const HEAD_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// How much is read at a time.
const READ_BYTES: usize = 16 << 10;
/// What the parser gets in the place of a head that was refused.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\n\r\n";

/// What the stream and the service tell each other.
#[derive(Debug, Default)]
pub(super) struct Shared {
    up: AtomicU64,
    down: AtomicU64,
    turn: Mutex<Turn>,
}

#[derive(Debug, Default)]
struct Turn {
    /// The request that was refused, counted from 0, and why. It is the last one.
    fault: Option<(u64, Fault)>,
    /// Requests whose answer is known.
    answered: u64,
    /// From here on it is no HTTP.
    raw: bool,
    waker: Option<Waker>,
}

/// A stream of requests.
#[derive(Debug)]
pub(super) struct Guarded<C> {
    inner: C,
    shared: Arc<Shared>,
    state: State,
    /// Read, and not given out.
    pending: BytesMut,
    /// Bytes at the front of `pending` that were found clean.
    clean: usize,
    /// Where to go on looking for the end of the head.
    scanned: usize,
    /// Heads that were given out.
    heads: u64,
    timer: Option<Pin<Box<Sleep>>>,
    /// The client has said that it sends no more.
    ended: bool,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Head,
    Length(u64),
    Chunked(Chunks),
    /// This request, counted from 0, may become a WebSocket: nothing is read before it is answered.
    Held(u64),
    Raw,
    /// A head was refused. What else comes is not looked at.
    Over,
}

impl Shared {
    /// Why request `number`, counted from 0, was refused before it was parsed.
    pub(super) fn fault(&self, number: u64) -> Option<Fault> {
        self.turn().fault.filter(|(faulty, _)| *faulty == number).map(|(_, fault)| fault)
    }

    /// Says that the answer to request `number` is known, and whether it ends HTTP.
    pub(super) fn answered(&self, number: u64, raw: bool) {
        let mut turn = self.turn();
        turn.answered = turn.answered.max(number + 1);
        turn.raw |= raw;
        if let Some(waker) = turn.waker.take() {
            waker.wake();
        }
    }

    /// Bytes from and to the client.
    pub(super) fn totals(&self) -> (u64, u64) {
        (self.up.load(Ordering::Relaxed), self.down.load(Ordering::Relaxed))
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> Guarded<C> {
    pub(super) fn new(inner: C, shared: Arc<Shared>) -> Self {
        Self {
            inner,
            shared,
            state: State::Head,
            pending: BytesMut::new(),
            clean: 0,
            scanned: 0,
            heads: 0,
            timer: None,
            ended: false,
        }
    }

    /// Reads and drops what the client still sends, until it has nothing more to say, for a while
    /// at most: a socket that is closed over unread bytes resets, and takes the last answer along.
    pub(super) async fn linger(mut self, time: Duration) {
        if self.ended {
            return;
        }
        let drain = async {
            let mut waste = [0; 4096];
            loop {
                match tokio::io::AsyncReadExt::read(&mut self.inner, &mut waste).await {
                    Ok(0) | Err(_) => break,
                    Ok(length) => self.shared.up.fetch_add(length as u64, Ordering::Relaxed),
                };
            }
        };
        let _ = tokio::time::timeout(time, drain).await;
    }

    /// Reads more into `pending`. Returns whether there was any.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.ended {
            return Poll::Ready(Ok(false));
        }
        let before = self.pending.len();
        self.pending.resize(before + READ_BYTES, 0);
        let mut buffer = ReadBuf::new(&mut self.pending[before..]);
        let read = Pin::new(&mut self.inner).poll_read(cx, &mut buffer);
        let length = buffer.filled().len();
        self.pending.truncate(before + length);
        ready!(read)?;
        self.shared.up.fetch_add(length as u64, Ordering::Relaxed);
        self.ended = length == 0;
        Poll::Ready(Ok(length > 0))
    }

    /// Gives out of `pending`, `most` bytes at most. Returns how many.
    fn give(&mut self, buffer: &mut ReadBuf<'_>, most: usize) -> usize {
        let length = most.min(self.pending.len()).min(buffer.remaining());
        buffer.put_slice(&self.pending[..length]);
        self.pending.advance(length);
        length
    }

    /// Reads past `pending`, `most` bytes at most. Returns how many.
    fn poll_body(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>, most: u64) -> Poll<io::Result<usize>> {
        let room = buffer.initialize_unfilled();
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(room.len());
        let mut part = ReadBuf::new(&mut room[..most]);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut part))?;
        let length = part.filled().len();
        buffer.advance(length);
        self.shared.up.fetch_add(length as u64, Ordering::Relaxed);
        self.ended |= length == 0;
        Poll::Ready(Ok(length))
    }

    /// Looks at the head that is coming in. Returns false when the client has nothing more to say.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            // An empty line before a request is passed over (RFC 9112 section 2.2).
            while self.scanned == 0 && self.pending.starts_with(b"\r\n") {
                self.pending.advance(2);
            }
            let fault = match find_end(&self.pending, self.scanned) {
                Ok(Ok(end)) => match check(&self.pending[..end]) {
                    Ok(_) if end > HEAD_BYTES_MAX => Fault::TooLarge,
                    Ok(head) => {
                        self.clean = end;
                        self.scanned = 0;
                        self.timer = None;
                        self.state = match head.framing {
                            _ if head.websocket => State::Held(self.heads),
                            Framing::Length(0) => State::Head,
                            Framing::Length(length) => State::Length(length),
                            Framing::Chunked => State::Chunked(Chunks::new()),
                        };
                        self.heads += 1;
                        return Poll::Ready(Ok(true));
                    }
                    Err(fault) => fault,
                },
                Ok(Err(_)) if self.pending.len() > HEAD_BYTES_MAX => Fault::TooLarge,
                Ok(Err(next)) => {
                    self.scanned = next;
                    match self.poll_fill(cx)? {
                        Poll::Ready(true) => continue,
                        Poll::Ready(false) => return Poll::Ready(Ok(false)),
                        Poll::Pending if self.pending.is_empty() => return Poll::Pending,
                        Poll::Pending => {
                            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(HEAD_TIMEOUT)));
                            ready!(timer.as_mut().poll(cx));
                            Fault::TooSlow
                        }
                    }
                }
                Err(fault) => fault,
            };
            self.shared.turn().fault = Some((self.heads, fault));
            self.pending.clear();
            self.pending.extend_from_slice(STAND_IN);
            self.clean = STAND_IN.len();
            self.state = State::Over;
            return Poll::Ready(Ok(true));
        }
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guarded<C> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.clean > 0 {
                this.clean -= this.give(buffer, this.clean);
                return Poll::Ready(Ok(()));
            }
            match &mut this.state {
                State::Head => {
                    if !ready!(this.poll_head(cx))? {
                        return Poll::Ready(Ok(()));
                    }
                }
                State::Length(left) => {
                    let left = *left;
                    let length = if this.pending.is_empty() {
                        ready!(this.poll_body(cx, buffer, left))?
                    } else {
                        this.give(buffer, usize::try_from(left).unwrap_or(usize::MAX))
                    };
                    let left = left - length as u64;
                    this.state = if left == 0 { State::Head } else { State::Length(left) };
                    return Poll::Ready(Ok(()));
                }
                State::Chunked(chunks) => {
                    if this.pending.is_empty() {
                        if !ready!(this.poll_fill(cx))? {
                            return Poll::Ready(Ok(()));
                        }
                        continue;
                    }
                    let most = this.pending.len().min(buffer.remaining());
                    let (length, done) = chunks.read(&this.pending[..most]).map_err(|fault| {
                        let Fault::Malformed(what) = fault else { return io::ErrorKind::InvalidData.into() };
                        io::Error::new(io::ErrorKind::InvalidData, what)
                    })?;
                    this.give(buffer, length);
                    if done {
                        this.state = State::Head;
                    }
                    return Poll::Ready(Ok(()));
                }
                State::Held(number) => {
                    let mut turn = this.shared.turn();
                    if turn.answered <= *number {
                        turn.waker = Some(cx.waker().clone());
                        return Poll::Pending;
                    }
                    this.state = if turn.raw { State::Raw } else { State::Head };
                }
                State::Raw => {
                    if this.pending.is_empty() {
                        ready!(this.poll_body(cx, buffer, u64::MAX))?;
                    } else {
                        this.give(buffer, usize::MAX);
                    }
                    return Poll::Ready(Ok(()));
                }
                State::Over => return Poll::Pending,
            }
        }
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Guarded<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let length = ready!(Pin::new(&mut self.inner).poll_write(cx, bytes))?;
        self.shared.down.fetch_add(length as u64, Ordering::Relaxed);
        Poll::Ready(Ok(length))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, slices))?;
        self.shared.down.fetch_add(length as u64, Ordering::Relaxed);
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
