//! Files of this host into a computer, without a byte of them passing through this process.
//!
//! ```text
//! thread: head ─► sendfile(2) ─► … ─► answer        a connection of its own, closed after it
//!                     └ an answer that is there before the end is a refusal: no more is sent
//! ```

use std::{
    fs::File,
    io::{self, Read, Write},
    net::TcpStream,
};

use http::{Method, StatusCode, header};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
};

use super::{Body, Client, ClientError, JSON_BYTES_MAX, WriteFile, refusal};
use crate::StatView;

/// How much one call sends, in bytes; between two the daemon's answer is looked for.
const SEND_BYTES: usize = 1 << 20;

/// The longest head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Why there is no answer.
enum Failure {
    Source(io::Error),
    Connection(io::Error),
    Malformed(&'static str),
}

impl Client {
    /// Writes a file inside: the next `length` bytes of `file`, which is a regular one. `sent` is told of
    /// each piece. As [`Client::write_file`], and faster for large files.
    ///
    /// Errors: [`ClientError::Source`] where `file` cannot be read or ends early; `EINVAL` in it where its
    /// file system has no sendfile(2).
    pub async fn send_file(
        &self,
        name: &str,
        path: impl AsRef<[u8]>,
        how: &WriteFile,
        (file, length): (File, u64),
        sent: impl FnMut(usize) + Send + 'static,
    ) -> Result<StatView, ClientError> {
        let target = Self::write_target(name, path.as_ref(), how);
        let request = self
            .request(Method::PUT, &target.text)
            .header(header::CONNECTION, "close")
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, length)
            .body(Body::Empty)
            .expect("paths are percent-encoded");
        let mut head = format!("{} {} HTTP/1.1\r\n", request.method(), request.uri()).into_bytes();
        for (name, value) in request.headers() {
            head.extend_from_slice(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        head.extend_from_slice(b"\r\n");
        let stream = self.connect_tcp().await?.into_std().map_err(|error| self.broken(error))?;
        let exchanged = tokio::task::spawn_blocking(move || exchange(stream, &head, &file, length, sent)).await;
        match exchanged.map_err(|error| self.broken(error))? {
            Ok((status, body)) if status.as_u16() < 400 => {
                serde_json::from_slice(&body).map_err(|error| self.malformed(error))
            }
            Ok((status, body)) => Err(refusal(self, status, &body)),
            Err(Failure::Source(source)) => Err(ClientError::Source { source }),
            Err(Failure::Connection(error)) => Err(self.broken(error)),
            Err(Failure::Malformed(reason)) => Err(self.malformed(reason)),
        }
    }
}

fn exchange(
    mut stream: TcpStream,
    head: &[u8],
    file: &File,
    length: u64,
    mut sent: impl FnMut(usize),
) -> Result<(StatusCode, Vec<u8>), Failure> {
    stream.set_nonblocking(false).and_then(|()| stream.write_all(head)).map_err(Failure::Connection)?;
    let mut left = length;
    let mut broke = None;
    while left > 0 && !answers(&stream) {
        let most = SEND_BYTES.min(usize::try_from(left).unwrap_or(SEND_BYTES));
        match rustix::fs::sendfile(&stream, file, None, most) {
            Ok(0) => {
                let text = format!("it became {left} bytes shorter while it was read");
                return Err(Failure::Source(io::Error::other(text)));
            }
            Ok(count) => {
                left -= count as u64;
                sent(count);
            }
            Err(Errno::INTR) => {}
            Err(errno @ (Errno::PIPE | Errno::CONNRESET)) => {
                // A refusal may have come before the connection was closed.
                broke = Some(errno.into());
                break;
            }
            Err(errno) => return Err(Failure::Source(errno.into())),
        }
    }
    answer(&stream).map_err(|failure| match (broke, failure) {
        (Some(error), Failure::Connection(_)) => Failure::Connection(error),
        (_, failure) => failure,
    })
}

/// Whether the daemon has said something, or has gone.
fn answers(stream: &TcpStream) -> bool {
    let mut polled = [PollFd::new(stream, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|count| count > 0)
}

/// Reads an answer to its end: that of the connection, as `Connection: close` asks for.
fn answer(stream: &TcpStream) -> Result<(StatusCode, Vec<u8>), Failure> {
    let mut bytes = Vec::new();
    let read = stream.take((HEAD_BYTES_MAX + JSON_BYTES_MAX) as u64).read_to_end(&mut bytes);
    let end = match (bytes.windows(4).position(|four| four == b"\r\n\r\n"), read) {
        (Some(end), _) => end,
        (None, Err(error)) => return Err(Failure::Connection(error)),
        (None, Ok(_)) => return Err(Failure::Connection(io::ErrorKind::UnexpectedEof.into())),
    };
    let body = bytes.split_off(end + 4);
    let head = str::from_utf8(&bytes).map_err(|_| Failure::Malformed("its head is no text"))?;
    let mut lines = head.lines();
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1."))
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .and_then(|number: u16| StatusCode::from_u16(number).ok())
        .ok_or(Failure::Malformed("it has no status"))?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok())
        .ok_or(Failure::Malformed("it has no length"))?;
    if body.len() < length {
        return Err(Failure::Connection(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok((status, body))
}
