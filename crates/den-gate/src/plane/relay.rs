//! Bytes between two sockets, both ways.
//!
//! ```text
//! few bytes    read ─► write            one buffer a thread; no pipe, and no descriptor besides the sockets
//! many         splice ─► pipe ─► splice   from the moment a read fills the buffer, until they get few again
//! ```
//!
//! A flow of many bytes that is quiet for a moment gives its pipe back and takes one with the next byte. What
//! is moved at once is kept small: the reader copies it while it is in the cache, and the sender is not held up.
//!
//! Invariants:
//! - The end of one direction is passed on as such, and the other goes on.
//! - An error of either side, and the end of the gate, resets both: no half-told stream looks like a whole one.
//! - A quiet flow holds nothing but its two sockets.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use den_sys::splice::Pipe;
use rustix::net::{Shutdown, sockopt};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use crate::peek::{PEEK_BYTES_MAX, Peeked, peek};

use super::gather::Gather;
use super::link::{Link, Live, Way};

/// Bytes that are read at once; more come through a pipe.
const BUFFER_BYTES: usize = 32 << 10;
/// Bytes of a pipe, where the kernel allows it: a slot for every page, and a packet from afar takes one.
const PIPE_BYTES: usize = 1 << 20;
/// Bytes that are moved at once.
const PORTION_BYTES: usize = 256 << 10;
/// Pipes that are kept for the next flow.
const PIPES_KEPT: usize = 16;
/// A splice that moves less than this is one of few bytes.
const FEW_BYTES: usize = 8 << 10;
/// As many of those in a row, and the pipe is given back.
const FEW_TIMES: u32 = 8;
/// Rounds that may follow each other without another task having its turn.
const ROUNDS_MAX: u32 = 16;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER_BYTES]);
}

/// One side of a flow.
#[derive(Clone, Copy)]
pub(super) enum Side<'a> {
    Tcp(&'a TcpStream),
    Unix(&'a UnixStream),
}

impl Side<'_> {
    pub(super) async fn ready(self, interest: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.ready(interest).await.map(|_| ()),
            Self::Unix(stream) => stream.ready(interest).await.map(|_| ()),
        }
    }

    fn try_io<T>(self, interest: Interest, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self {
            Self::Tcp(stream) => stream.try_io(interest, call),
            Self::Unix(stream) => stream.try_io(interest, call),
        }
    }

    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }

    fn try_read(self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(buffer),
            Self::Unix(stream) => stream.try_read(buffer),
        }
    }

    fn try_write(self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(buffer),
            Self::Unix(stream) => stream.try_write(buffer),
        }
    }

    /// Whoever waits is woken once there are so many bytes; whether that is so. A unix socket knows no such number.
    pub(super) fn wake_from(self, bytes: i32) -> bool {
        match self {
            Self::Tcp(stream) => den_sys::transparent::wake_from(stream, bytes).is_ok(),
            Self::Unix(_) => false,
        }
    }

    /// Nothing more comes from here. A side that is gone does not mind.
    fn end(self) {
        let _ = rustix::net::shutdown(self.fd(), Shutdown::Write);
    }

    /// Whether closing it is a reset from here on. A unix socket has none: closing it has to do.
    pub(super) fn reset_on_close(self, reset: bool) {
        if let Self::Tcp(stream) = self {
            let _ = sockopt::set_socket_linger(stream, reset.then_some(Duration::ZERO));
        }
    }
}

/// Empty pipes for whoever needs one.
#[derive(Default)]
pub(super) struct Pipes(Mutex<Vec<Pipe>>);

impl Pipes {
    /// None: there is none that is better than copying. Pipes are short when many flows hold one.
    fn take(&self) -> Option<Pipe> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.or_else(|| {
            let mut pipe = Pipe::new().ok()?;
            pipe.grow(PIPE_BYTES);
            (pipe.size() > BUFFER_BYTES).then_some(pipe)
        })
    }

    /// One that is not empty goes.
    fn give(&self, pipe: Pipe) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pipe.held() == 0 && kept.len() < PIPES_KEPT {
            kept.push(pipe);
        }
    }
}

/// A pipe on loan.
struct Loan<'a> {
    pipes: &'a Pipes,
    pipe: Option<Pipe>,
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            self.pipes.give(pipe);
        }
    }
}

/// Carries bytes both ways until both have ended, or one side fails; says how it ended.
/// `first` gets what the computer's first bytes are, where nobody has looked before.
pub(super) async fn relay(
    link: &Link,
    live: &Live,
    pipes: &Pipes,
    client: Side<'_>,
    upstream: Side<'_>,
    first: &OnceLock<Peeked>,
) -> &'static str {
    let up = async { pump(link, live, pipes, client, upstream, Way::Up, Some(first)).await };
    let down = async { pump(link, live, pipes, upstream, client, Way::Down, None).await };
    let both = async { tokio::try_join!(up, down) };
    tokio::select! {
        biased;
        why = live.cut.fired() => why,
        ended = both => match ended {
            Ok(_) => "done",
            Err(why) => why,
        },
    }
}

/// Which side has failed.
fn broken(way: Way, writing: bool) -> &'static str {
    match (way, writing) {
        (Way::Up, false) | (Way::Down, true) => "reset_by_computer",
        (Way::Up, true) | (Way::Down, false) => "reset_by_upstream",
    }
}

async fn pump(
    link: &Link,
    live: &Live,
    pipes: &Pipes,
    from: Side<'_>,
    to: Side<'_>,
    way: Way,
    mut first: Option<&OnceLock<Peeked>>,
) -> Result<(), &'static str> {
    let mut loan = Loan { pipes, pipe: None };
    let (mut many, mut few, mut rounds) = (false, 0, 0);
    let mut sleep_until = None;
    let mut gather = Gather::new();
    loop {
        if let Some(until) = sleep_until.take() {
            tokio::time::sleep_until(until).await;
        }
        gather.ready(from).await.map_err(|_| broken(way, false))?;
        if many && loan.pipe.is_none() {
            loan.pipe = pipes.take();
        }
        let moved = match loan.pipe.as_mut() {
            None => copy(link, from, to, way, &mut first).await?,
            Some(pipe) => splice(link, pipe, from, to, way).await?,
        };
        let Some(bytes) = moved else {
            // Quiet: somebody else may have the pipe.
            drop(std::mem::replace(&mut loan, Loan { pipes, pipe: None }));
            continue;
        };
        if bytes == 0 {
            to.end();
            return Ok(());
        }
        if loan.pipe.is_none() {
            (many, few) = (bytes >= BUFFER_BYTES, 0);
        } else if bytes >= FEW_BYTES {
            few = 0;
        } else {
            few += 1;
            if few == FEW_TIMES {
                many = false;
                drop(std::mem::replace(&mut loan, Loan { pipes, pipe: None }));
            }
        }
        gather.moved(from, bytes);
        let wait = link.charge(live, way, bytes);
        if !wait.is_zero() {
            sleep_until = Some(tokio::time::Instant::now() + wait);
        }
        rounds += 1;
        if rounds == ROUNDS_MAX {
            rounds = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// One read and what it takes to write that. None: there was nothing.
async fn copy(
    link: &Link,
    from: Side<'_>,
    to: Side<'_>,
    way: Way,
    first: &mut Option<&OnceLock<Peeked>>,
) -> Result<Option<usize>, &'static str> {
    let portion = link.portion(BUFFER_BYTES);
    let mut once = || {
        BUFFER.with_borrow_mut(|buffer| {
            let bytes = match from.try_read(&mut buffer[..portion]) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(_) => return Err(broken(way, false)),
            };
            if bytes > 0
                && let Some(first) = first.take()
            {
                let _ = first.set(peek(&buffer[..bytes.min(PEEK_BYTES_MAX)]));
            }
            let written = match to.try_write(&buffer[..bytes]) {
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(_) if bytes > 0 => return Err(broken(way, true)),
                Err(_) => 0,
            };
            let rest = if written < bytes { buffer[written..bytes].to_vec() } else { Vec::new() };
            Ok(Some((bytes, rest)))
        })
    };
    let Some((bytes, rest)) = once()? else { return Ok(None) };
    let mut rest = &rest[..];
    while !rest.is_empty() {
        to.ready(Interest::WRITABLE).await.map_err(|_| broken(way, true))?;
        match to.try_write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(broken(way, true)),
        }
    }
    Ok(Some(bytes))
}

/// One filling of the pipe, and its emptying. None: there was nothing.
async fn splice(
    link: &Link,
    pipe: &mut Pipe,
    from: Side<'_>,
    to: Side<'_>,
    way: Way,
) -> Result<Option<usize>, &'static str> {
    let portion = link.portion(pipe.size().min(PORTION_BYTES));
    let bytes = match from.try_io(Interest::READABLE, || pipe.fill(from.fd(), portion)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(_) => return Err(broken(way, false)),
    };
    while pipe.held() > 0 {
        match to.try_io(Interest::WRITABLE, || pipe.drain(to.fd())) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                to.ready(Interest::WRITABLE).await.map_err(|_| broken(way, true))?;
            }
            Err(_) => return Err(broken(way, true)),
        }
    }
    Ok(Some(bytes))
}
