//! A step over a WebSocket: its output one way, standard input, sizes and signals the other.

use bytes::Bytes;
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use http::{Request, header};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, handshake::client::generate_key, protocol::WebSocketConfig},
};

use super::{Client, ClientError, refusal, streams::head_of};
use crate::{
    ExecRequest, WsInput,
    output::{OUTPUT_BYTES_MAX, OUTPUT_HEAD_BYTES, OutputFrame},
};

type Socket = WebSocketStream<TcpStream>;

/// A step in both directions.
pub struct Session {
    /// What it prints, and how it ends.
    pub output: SessionOutput,
    /// What it is given.
    pub input: SessionInput,
}

/// What a step prints, and how it ends.
pub struct SessionOutput {
    client: Client,
    socket: SplitStream<Socket>,
}

/// What a step is given.
pub struct SessionInput {
    client: Client,
    socket: SplitSink<Socket, Message>,
}

impl Session {
    /// Opens the WebSocket at `target`, and sends `first` where there is one.
    pub(super) async fn open(client: &Client, target: &str, first: Option<&ExecRequest>) -> Result<Self, ClientError> {
        let stream = client.connect_tcp().await?;
        let request = Request::get(format!("ws://{}{target}", client.shared.authority.to_str().unwrap_or("den")))
            .header(header::HOST, &client.shared.authority)
            .header(header::AUTHORIZATION, &client.shared.bearer)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, generate_key())
            .body(())
            .map_err(|error| client.malformed(error))?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(OUTPUT_HEAD_BYTES + OUTPUT_BYTES_MAX))
            .max_frame_size(Some(OUTPUT_HEAD_BYTES + OUTPUT_BYTES_MAX));
        let (mut socket, _) = tokio_tungstenite::client_async_with_config(request, stream, Some(config))
            .await
            .map_err(|error| match error {
                tungstenite::Error::Http(response) => {
                    refusal(client, response.status(), response.body().as_deref().unwrap_or_default())
                }
                other => client.broken(other),
            })?;
        if let Some(first) = first {
            let text = serde_json::to_string(first).expect("requests are plain data with text keys");
            socket.send(Message::text(text)).await.map_err(|error| client.broken(error))?;
        }
        let (sink, stream) = socket.split();
        Ok(Self {
            output: SessionOutput { client: client.clone(), socket: stream },
            input: SessionInput { client: client.clone(), socket: sink },
        })
    }
}

impl SessionOutput {
    /// The next frame; `None` when the daemon has closed the session.
    pub async fn next(&mut self) -> Result<Option<OutputFrame>, ClientError> {
        loop {
            match self.socket.next().await {
                None | Some(Ok(Message::Close(_))) => return Ok(None),
                Some(Err(error)) => return Err(self.client.broken(error)),
                Some(Ok(Message::Binary(bytes))) => {
                    if bytes.len() < OUTPUT_HEAD_BYTES {
                        return Err(self.client.malformed("an output frame without a whole head"));
                    }
                    let (kind, length, offset) = head_of(&bytes).map_err(|reason| self.client.malformed(reason))?;
                    if bytes.len() != OUTPUT_HEAD_BYTES + length {
                        return Err(self.client.malformed("an output frame of another length than it says"));
                    }
                    return Ok(Some(OutputFrame { kind, offset, payload: bytes.slice(OUTPUT_HEAD_BYTES..) }));
                }
                Some(Ok(_)) => {}
            }
        }
    }
}

impl SessionInput {
    /// Gives it bytes. An empty chunk sends nothing, for on the wire that would be the end.
    pub async fn stdin(&mut self, bytes: Bytes) -> Result<(), ClientError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.send(Message::Binary(bytes)).await
    }

    /// Ends its standard input.
    pub async fn close_stdin(&mut self) -> Result<(), ClientError> {
        self.send(Message::Binary(Bytes::new())).await
    }

    /// The terminal has another size.
    pub async fn resize(&mut self, rows: u16, cols: u16) -> Result<(), ClientError> {
        self.control(&WsInput::Resize { rows, cols }).await
    }

    /// Sends its process group a signal: a name (`INT`) or a number as text.
    pub async fn signal(&mut self, signal: &str) -> Result<(), ClientError> {
        self.control(&WsInput::Signal { signal: signal.to_owned() }).await
    }

    async fn control(&mut self, input: &WsInput) -> Result<(), ClientError> {
        let text = serde_json::to_string(input).expect("plain data");
        self.send(Message::text(text)).await
    }

    async fn send(&mut self, message: Message) -> Result<(), ClientError> {
        self.socket.send(message).await.map_err(|error| self.client.broken(error))
    }
}
