//! Bytes between the host and a TCP port inside.
//!
//! ```text
//! 127.0.0.1 ─ refused ─► ::1 ─ refused ─► the address that something listens on, if any
//! ```

use std::future::pending;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use den_wire::agent::{Failure, FailureKind, Reply};
use den_wire::frame::message_bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::conn::Conn;
use super::failure::failure;
use super::ports;

/// How long a server may leave a connection in its queue. The kernel drops what a full queue does not
/// take, and asks again after 1, 3, 7 seconds.
const DIAL_TIME_MAX: Duration = Duration::from_secs(10);

/// Connects, and carries bytes until both sides have ended. Each side's end is passed on by itself,
/// and a break as a break.
pub async fn dial(mut conn: Conn, port: u16) {
    let tcp = match tokio::time::timeout(DIAL_TIME_MAX, connect(port)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return conn.answer(&Reply::Failed(refused(port, &error))).await,
        Err(_) => {
            let error = io::Error::from_raw_os_error(libc::ETIMEDOUT);
            return conn.answer(&Reply::Failed(refused(port, &error))).await;
        }
    };
    let _ = tcp.set_nodelay(true);
    let (mut host, ahead) = conn.into_raw();
    if host.write_all(&message_bytes(&Reply::Done)).await.is_err() {
        let _ = tcp.set_zero_linger();
        return;
    }
    den_relay::relay(host, tcp, &ahead, pending()).await;
}

/// `Refused` where nothing listens or nobody answers; another error of the kernel is `Other`.
fn refused(port: u16, error: &io::Error) -> Failure {
    let errno = error.raw_os_error();
    let kind = match errno {
        Some(libc::ECONNREFUSED | libc::ETIMEDOUT) => FailureKind::Refused,
        _ => FailureKind::Other,
    };
    failure(kind, format!("port {port}"), errno)
}

/// The error is that of the first address.
async fn connect(port: u16) -> io::Result<TcpStream> {
    let first = match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => error,
        other => return other,
    };
    if let Ok(tcp) = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await {
        return Ok(tcp);
    }
    for address in ports::tcp_addresses(port) {
        if !address.is_unspecified()
            && let Ok(tcp) = TcpStream::connect((address, port)).await
        {
            return Ok(tcp);
        }
    }
    Err(first)
}
