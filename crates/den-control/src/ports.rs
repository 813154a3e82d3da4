//! What listens inside a computer, and connections to it.

use std::{future::Future, io, net::IpAddr, sync::Arc};

use den_api::PortView;
use den_machine::LinkError;
use den_relay::{Side, relay};
use den_wire::agent::{FailureKind, Listening, PortProtocol};
use rustix::process::Resource;
use tokio::{
    net::UnixStream,
    sync::{OwnedSemaphorePermit, watch},
};

use crate::{
    Error,
    answer::{answered, carried},
    control::Control,
    errors::too_many,
    handle::{Handle, Status},
    limits::{DIALS_MAX, DIALS_SHARE},
};

/// Descriptors that one connection takes: to the client, to the agent.
const DESCRIPTORS: u64 = 2;

/// How many connections the daemon's limit on descriptors leaves room for.
pub(crate) fn dials_max() -> usize {
    let descriptors = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
    usize::try_from(descriptors / DIALS_SHARE / DESCRIPTORS).unwrap_or(usize::MAX).clamp(64, 1 << 20)
}

/// A connection to a port inside. Dropping it resets it there.
pub struct Connection {
    stream: UnixStream,
    status: watch::Receiver<Status>,
    _places: [OwnedSemaphorePermit; 2],
}

impl Connection {
    /// Carries bytes between it and a client, of which `ahead` was read already, until both directions
    /// have ended, one side broke or the computer ended.
    pub async fn carry(self, client: impl Side, ahead: &[u8]) -> den_relay::End {
        let Self { stream, status, _places } = self;
        relay(client, stream, ahead, ended(status)).await
    }
}

/// Done once the computer that runs now does not any more, or is cut off. One that stands still is waited for.
fn ended(mut status: watch::Receiver<Status>) -> impl Future<Output = ()> {
    // Running again is another run, though nobody looked in between.
    let run = |status: &Status| status.machine.as_ref().map(|machine| (machine.net_link(), machine.pid()));
    let now = run(&status.borrow());
    async move {
        let over = |status: &Status| status.cut || status.machine.is_none() || run(status) != now;
        // An error: the computer was removed.
        drop(status.wait_for(over).await);
    }
}

impl Control {
    /// What listens inside, by port.
    ///
    /// Errors: `computer_stopped`, and `unsupported` of an agent that is too old.
    pub async fn ports(&self, computer: &str) -> Result<Vec<PortView>, Error> {
        let handle = self.0.registry.find(computer)?;
        let machine = handle.awake().await?;
        let mut sockets = answered(&handle, machine.link().ports()).await.map_err(|error| handle.link_error(error))?;
        sockets.sort_unstable_by(|one, two| {
            let key = |socket: &Listening| (socket.port, socket.protocol, socket.address.len());
            key(one).cmp(&key(two)).then_with(|| one.address.cmp(&two.address))
        });
        Ok(sockets.iter().filter_map(view).collect())
    }

    /// Connects to a TCP port inside; servers that listen on the loopback alone are reached too.
    ///
    /// Errors: `port_refused`, `port_failed`, `computer_stopped`, `too_many`.
    pub async fn dial(&self, computer: &str, port: u16) -> Result<Connection, Error> {
        let handle = self.0.registry.find(computer)?;
        let machine = handle.awake().await?;
        let places = [
            Arc::clone(&handle.dials)
                .try_acquire_owned()
                .map_err(|_| too_many(&format!("connections to ports of `{}`", handle.name()), DIALS_MAX))?,
            Arc::clone(&self.0.dials)
                .try_acquire_owned()
                .map_err(|_| too_many("connections to ports of all computers", dials_max()))?,
        ];
        let status = handle.status.subscribe();
        let stream =
            carried(&handle, machine.link().dial(port)).await.map_err(|error| dial_error(&handle, port, error))?;
        Ok(Connection { stream, status, _places: places })
    }
}

fn dial_error(handle: &Handle, port: u16, error: LinkError) -> Error {
    let name = handle.name();
    let LinkError::Failed(failure) = &error else { return handle.link_error(error) };
    match (failure.kind, failure.errno.map(io::Error::from_raw_os_error)) {
        (FailureKind::Refused, Some(words)) if words.kind() == io::ErrorKind::TimedOut => {
            Error::new("port_refused", 502, format!("port {port} in `{name}`: what listens there takes no connection"))
                .hint("its queue is full: see whether it still accepts")
                .retryable()
        }
        (FailureKind::Refused, _) => {
            Error::new("port_refused", 502, format!("nothing listens on port {port} in `{name}`"))
                .hint(format!("`den ports {name}` shows what listens"))
                .retryable()
        }
        (FailureKind::Other, Some(words)) => {
            Error::new("port_failed", 502, format!("port {port} in `{name}`: {words}")).retryable()
        }
        _ => handle.link_error(error),
    }
}

/// `None` for an address that is none.
fn view(socket: &Listening) -> Option<PortView> {
    let address: IpAddr = match socket.address.len() {
        4 => <[u8; 4]>::try_from(&socket.address[..]).ok()?.into(),
        16 => <[u8; 16]>::try_from(&socket.address[..]).ok()?.into(),
        _ => return None,
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let argv = socket.argv.as_deref().map(|argv| argv.strip_suffix(b"\0").unwrap_or(argv)).filter(|a| !a.is_empty());
    Some(PortView {
        protocol: match socket.protocol {
            PortProtocol::Tcp => "tcp".to_owned(),
            PortProtocol::Udp => "udp".to_owned(),
        },
        address: address.to_string(),
        port: socket.port,
        uid: socket.uid,
        pid: socket.pid,
        command: socket.command.as_deref().map(|command| text(command)),
        argv: argv.map(|argv| argv.split(|&byte| byte == 0).map(text).collect()).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_says_is_shown_or_left_out() {
        let socket = |address: &[u8]| Listening {
            protocol: PortProtocol::Udp,
            address: address.to_vec().into(),
            port: 53,
            uid: 0,
            pid: Some(7),
            command: Some(b"named".to_vec().into()),
            argv: Some(b"named\0-g\0".to_vec().into()),
        };
        let shown = view(&socket(&[127, 0, 0, 1])).unwrap();
        assert_eq!((shown.protocol.as_str(), shown.address.as_str(), shown.port), ("udp", "127.0.0.1", 53));
        assert_eq!(shown.argv, ["named", "-g"]);
        assert_eq!(view(&socket(&[0; 16])).unwrap().address, "::");
        assert_eq!(view(&socket(&[1, 2, 3])), None);
    }
}
