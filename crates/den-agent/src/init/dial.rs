//! Bytes between the host and a TCP port inside.

use std::net::{Ipv4Addr, Ipv6Addr};

use den_wire::agent::{FailureKind, Reply};
use den_wire::frame::message_bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::conn::Conn;
use super::failure::failure;

/// Each direction's buffer, in bytes: there may be thousands of connections.
const BUFFER_BYTES: usize = 16 << 10;

/// Connects, and carries bytes until both sides have ended. Each side's end is passed on by itself.
pub async fn dial(mut conn: Conn, port: u16) {
    let mut tcp = match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Ok(tcp) => tcp,
        Err(first) => match TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await {
            Ok(tcp) => tcp,
            Err(_) => {
                let refused = failure(FailureKind::Refused, format!("port {port}"), first.raw_os_error());
                return conn.answer(&Reply::Failed(refused)).await;
            }
        },
    };
    let _ = tcp.set_nodelay(true);
    let (mut host, ahead) = conn.into_raw();
    if host.write_all(&message_bytes(&Reply::Done)).await.is_err() || tcp.write_all(&ahead).await.is_err() {
        return;
    }
    drop(ahead);
    let _ = tokio::io::copy_bidirectional_with_sizes(&mut host, &mut tcp, BUFFER_BYTES, BUFFER_BYTES).await;
}
