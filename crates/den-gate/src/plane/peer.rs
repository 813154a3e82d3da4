//! Flows to another computer: its agent dials, so that servers on its loopback are reached too.

use std::path::Path;
use std::time::Duration;

use den_wire::agent::{Reply, Request};
use den_wire::{read_frame, write_message};
use tokio::net::UnixStream;

use crate::decide::Why;

/// For the agent's answer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to a TCP port of the computer whose agent listens here.
pub(super) async fn dial(agent: &Path, port: u16) -> Result<UnixStream, Why> {
    let exchange = async {
        let mut stream = UnixStream::connect(agent).await.map_err(|_| Why::NoComputer)?;
        write_message(&mut stream, &Request::Dial { port }).await.map_err(|_| Why::NoComputer)?;
        let frame = read_frame(&mut stream).await.map_err(|_| Why::NoComputer)?;
        match frame.message() {
            Ok(Reply::Done) => Ok(stream),
            _ => Err(Why::DialFailed),
        }
    };
    tokio::time::timeout(DIAL_TIMEOUT, exchange).await.unwrap_or(Err(Why::DialTimeout))
}
