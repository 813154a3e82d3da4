//! What listens inside, and connections to it.

use bytes::Bytes;
use http::{Method, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Answer, Body, Client, ClientError, calls::NOTHING};
use crate::ports::{PORT_UPGRADE, PortList, PortView};

/// A connection to a port inside.
#[derive(Debug)]
pub struct PortStream {
    /// Carries the connection's own bytes, its ends and its resets.
    pub stream: TcpStream,
    /// What came of it already.
    pub ahead: Bytes,
}

impl Client {
    /// What listens inside a computer.
    pub async fn ports(&self, name: &str) -> Result<Vec<PortView>, ClientError> {
        let target = Self::computer_target(name, "/ports");
        let list: PortList = self.json(Method::GET, &target.text, NOTHING).await?;
        Ok(list.items)
    }

    /// Connects to a TCP port inside a computer, loopback-only servers included.
    pub async fn dial(&self, name: &str, port: u16) -> Result<PortStream, ClientError> {
        let target = Self::computer_target(name, &format!("/ports/{port}/connect"));
        let request = self
            .request(Method::GET, &target.text)
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, PORT_UPGRADE)
            .body(Body::Empty)
            .expect("paths are percent-encoded");
        let mut sender = self.connect().await?;
        let response = sender.send_request(request).await.map_err(|error| self.broken(error))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = response.status();
            return Err(match (Answer { client: self.clone(), response, sender }) {
                answer if status.as_u16() >= 400 => answer.refusal().await,
                _ => self.malformed(format_args!("status {status} where a connection was wanted")),
            });
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| self.broken(error))?;
        let parts = upgraded
            .downcast::<TokioIo<TcpStream>>()
            .map_err(|_| self.malformed("a connection that is no TCP connection"))?;
        Ok(PortStream { stream: parts.io.into_inner(), ahead: parts.read_buf })
    }
}
