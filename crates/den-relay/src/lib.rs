//! Two sockets carried into each other: bytes, ends and breaks.
//!
//! ```text
//! client ═tcp═ den forward ═tcp═ den serve ═unix═ agent ═tcp═ server inside
//!                   └ relay ┘         └ relay ┘      └ relay ┘
//! ```
//!
//! Invariants:
//! - The end of one direction is passed on as an end (FIN, `shutdown`), and the other goes on.
//! - A connection that breaks never looks as if it had ended: TCP is told by a reset. A unix socket has
//!   none, so there it is the closing of the whole socket while a direction is still open.
//! - What one side said before it broke is delivered first.
//! - A connection that waits has no buffer; one whose receiver is slow holds [`BUFFER_BYTES`] at most
//!   in each direction.
//!
//! Deliberately absent: connecting, timeouts, any look at the bytes.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// The most that is read at once, in bytes.
pub const BUFFER_BYTES: usize = 128 << 10;

/// Reads of one direction before others have their turn.
const TURN_READS: usize = 8;

thread_local! {
    /// Shared by all relays of a thread: bytes stay in it only while one poll lasts.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One of the two sockets.
pub trait Side: AsyncRead + AsyncWrite + Unpin {
    /// Whether the other process has closed the whole socket, not one direction of it.
    fn is_gone(&self) -> bool;

    /// Makes the close that follows look like a break to whoever is on the other side.
    fn will_break(&self);
}

impl Side for TcpStream {
    fn is_gone(&self) -> bool {
        // A reset comes out of `read` and `write` as an error; a close is a FIN as any other.
        false
    }

    fn will_break(&self) {
        let _ = self.set_zero_linger();
    }
}

impl Side for UnixStream {
    fn is_gone(&self) -> bool {
        // unix(7) sockets: POLLRDHUP for a shutdown of one direction, POLLHUP once it is both.
        let mut polled = [PollFd::new(self, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut polled, Some(&now)).is_ok() && polled[0].revents().contains(PollFlags::HUP)
    }

    fn will_break(&self) {}
}

/// How a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both directions, each by its own end.
    Whole,
    /// One side broke, or `until` came first; the other side was told.
    Broken,
}

/// How one direction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FlowEnd {
    /// Its end was passed on.
    Whole,
    /// The receiver takes nothing more. What it has said itself may still be on its way.
    Unwanted,
    /// The sender broke.
    Cut,
}

/// One direction.
struct Flow {
    /// Read and not yet written.
    rest: Vec<u8>,
    written: usize,
    ending: bool,
    end: Option<FlowEnd>,
}

impl Flow {
    fn new(ahead: &[u8]) -> Self {
        Self { rest: ahead.to_vec(), written: 0, ending: false, end: None }
    }

    /// Carries what there is. `back` says how the other direction ended.
    fn poll(
        &mut self,
        from: &mut impl Side,
        to: &mut impl Side,
        back: Option<FlowEnd>,
        cx: &mut Context<'_>,
    ) -> Poll<FlowEnd> {
        let end = ready!(self.carry(from, to, back, cx));
        self.end = Some(end);
        self.rest = Vec::new();
        Poll::Ready(end)
    }

    fn carry(
        &mut self,
        from: &mut impl Side,
        to: &mut impl Side,
        back: Option<FlowEnd>,
        cx: &mut Context<'_>,
    ) -> Poll<FlowEnd> {
        for _ in 0..TURN_READS {
            while self.written < self.rest.len() {
                match ready!(Pin::new(&mut *to).poll_write(cx, &self.rest[self.written..])) {
                    Ok(count) if count > 0 => self.written += count,
                    _ => return Poll::Ready(FlowEnd::Unwanted),
                }
            }
            if !self.rest.is_empty() {
                (self.rest, self.written) = (Vec::new(), 0);
            }
            if self.ending {
                let ended = ready!(Pin::new(&mut *to).poll_shutdown(cx)).is_ok();
                return Poll::Ready(if ended { FlowEnd::Whole } else { FlowEnd::Unwanted });
            }
            match ready!(self.pass(from, to, cx)) {
                Ok(0) if back != Some(FlowEnd::Whole) && from.is_gone() => return Poll::Ready(FlowEnd::Cut),
                Ok(0) => self.ending = true,
                Ok(_) => {}
                Err(end) => return Poll::Ready(end),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One read and one write of it; what the receiver does not take at once is kept.
    fn pass(&mut self, from: &mut impl Side, to: &mut impl Side, cx: &mut Context<'_>) -> Poll<Result<usize, FlowEnd>> {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(BUFFER_BYTES, 0);
            let mut buffer = ReadBuf::new(scratch);
            if ready!(Pin::new(from).poll_read(cx, &mut buffer)).is_err() {
                return Poll::Ready(Err(FlowEnd::Cut));
            }
            let bytes = buffer.filled();
            if bytes.is_empty() {
                return Poll::Ready(Ok(0));
            }
            match Pin::new(to).poll_write(cx, bytes) {
                Poll::Ready(Ok(count)) => self.rest.extend_from_slice(&bytes[count..]),
                Poll::Pending => self.rest.extend_from_slice(bytes),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(FlowEnd::Unwanted)),
            }
            Poll::Ready(Ok(bytes.len()))
        })
    }
}

/// Carries bytes both ways until both directions have ended, one side has broken, or `until` is
/// done; then both are closed. `ahead` was read of `a` already.
pub async fn relay<A: Side, B: Side>(mut a: A, mut b: B, ahead: &[u8], until: impl Future<Output = ()>) -> End {
    let (mut there, mut back) = (Flow::new(ahead), Flow::new(&[]));
    let mut until = pin!(until);
    let end = poll_fn(|cx| {
        if until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Broken);
        }
        if there.end.is_none() {
            let _ = there.poll(&mut a, &mut b, back.end, cx);
        }
        if back.end.is_none() {
            let _ = back.poll(&mut b, &mut a, there.end, cx);
        }
        match (there.end, back.end) {
            (Some(FlowEnd::Cut), _) | (_, Some(FlowEnd::Cut)) => Poll::Ready(End::Broken),
            (Some(FlowEnd::Whole), Some(FlowEnd::Whole)) => Poll::Ready(End::Whole),
            (Some(_), Some(_)) => Poll::Ready(End::Broken),
            _ => Poll::Pending,
        }
    })
    .await;
    if end == End::Broken {
        a.will_break();
        b.will_break();
    }
    end
}

#[cfg(test)]
mod tests;
