//! A client's stream whose bytes are counted and slowed, for flows that are inspected here.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::link::{Link, Live, Way};

/// A computer's end of a flow.
pub(super) struct Metered {
    stream: TcpStream,
    link: Arc<Link>,
    live: Arc<Live>,
    up: Pause,
    down: Pause,
}

/// Until when nothing more moves one way.
#[derive(Default)]
struct Pause(Option<Pin<Box<Sleep>>>);

impl Pause {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(sleep) = &mut self.0 {
            ready!(sleep.as_mut().poll(context));
            self.0 = None;
        }
        Poll::Ready(())
    }
}

impl Metered {
    pub(super) fn new(stream: TcpStream, link: Arc<Link>, live: Arc<Live>) -> Self {
        Self { stream, link, live, up: Pause::default(), down: Pause::default() }
    }

    fn charge(&mut self, way: Way, bytes: usize) {
        let wait = self.link.charge(&self.live, way, bytes);
        if !wait.is_zero() {
            let sleep = Some(Box::pin(tokio::time::sleep_until(Instant::now() + wait)));
            match way {
                Way::Up => self.up.0 = sleep,
                Way::Down => self.down.0 = sleep,
            }
        }
    }
}

impl AsyncRead for Metered {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.up.poll(context));
        let before = into.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, into))?;
        let bytes = into.filled().len() - before;
        if bytes > 0 {
            this.charge(Way::Up, bytes);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.down.poll(context));
        let written = ready!(Pin::new(&mut this.stream).poll_write(context, bytes))?;
        this.charge(Way::Down, written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
