//! How messages are written down: as JSON, or as protobuf's bytes.
//!
//! ```text
//! JSON ────────────────────────────────► request ─► answer ────────────────────────────────► JSON
//! bytes ─► by the method's input ─► JSON ┘               └ JSON ─► by the method's output ─► bytes
//! ```
//!
//! Bytes go by protobuf's own mapping to JSON, so that a call is read, done and answered in one way.
//! Source: protobuf.dev/programming-guides/json. The descriptors are made of `proto/` when this is built.

use std::sync::LazyLock;

use axum::http::HeaderValue;
use bytes::{BufMut as _, BytesMut};
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, prost::Message as _};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::object;

static DESCRIPTORS: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/envd.binpb"));
    DescriptorPool::decode(&bytes[..]).expect("the compiler of protobuf made them")
});

/// A method of envd, as `process.Process` and `Start`.
pub(crate) fn method(service: &str, method: &str) -> Option<MethodDescriptor> {
    DESCRIPTORS.get_service_by_name(service)?.methods().find(|one| one.name() == method)
}

/// Which of the two a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    Proto,
}

impl Form {
    /// What an answer to a single call says that it is.
    pub(crate) fn kind(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Json => "application/json",
            Self::Proto => "application/proto",
        })
    }

    /// The same of a stream.
    pub(crate) fn stream_kind(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Json => "application/connect+json",
            Self::Proto => "application/connect+proto",
        })
    }
}

/// How the messages of one call are written down.
#[derive(Debug, Clone)]
pub(crate) struct Codec {
    pub form: Form,
    method: MethodDescriptor,
}

impl Codec {
    pub(crate) fn new(form: Form, method: MethodDescriptor) -> Self {
        Self { form, method }
    }

    /// Reads a message of the client. What fails is the client's fault.
    pub(crate) fn read<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, String> {
        match self.form {
            Form::Json => object(bytes),
            Form::Proto => {
                let message = DynamicMessage::decode(self.method.input(), bytes).map_err(|error| error.to_string())?;
                // As text, which takes less memory than a tree of small values would beside the message.
                let text = serde_json::to_vec(&message).map_err(|error| error.to_string())?;
                drop(message);
                object(&text)
            }
        }
    }

    /// Writes a message of Den's behind what is in `out`. What fails is Den's fault.
    pub(crate) fn write(&self, message: Value, out: &mut BytesMut) -> Result<(), String> {
        match self.form {
            Form::Json => serde_json::to_writer(out.writer(), &message).map_err(|error| error.to_string()),
            Form::Proto => {
                let message = DynamicMessage::deserialize(self.method.output(), message);
                let message = message.map_err(|error| error.to_string())?;
                message.encode(out).map_err(|error| error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn proto(service: &str, name: &str) -> Codec {
        Codec::new(Form::Proto, method(service, name).expect("a method"))
    }

    #[test]
    fn messages_are_read_by_their_numbers() {
        let input = proto("process.Process", "SendInput");
        // By hand: process 1 { pid 1: 42 }, input 2 { stdin 1: "x" }, and a field 9 that nobody knows.
        let bytes = b"\x0a\x02\x08\x2a\x12\x03\x0a\x01x\x48\x01";
        let expected = json!({ "process": { "pid": 42 }, "input": { "stdin": "eA==" } });
        assert_eq!(input.read::<Value>(bytes), Ok(expected));
        assert_eq!(input.read::<Value>(b""), Ok(json!({})));
        for bad in [&b"\x0a\xff"[..], b"\xff", b"\x0a\x02\x12\xff", b"{\"process\":{}}"] {
            assert!(input.read::<Value>(bad).is_err(), "{bad:?}");
        }
        let signal = proto("process.Process", "SendSignal");
        assert_eq!(signal.read::<Value>(b"\x10\x0f"), Ok(json!({ "signal": "SIGNAL_SIGTERM" })));
        assert_eq!(signal.read::<Value>(b"\x10\x07"), Ok(json!({ "signal": 7 })));
    }

    #[test]
    fn messages_are_written_by_their_numbers() {
        let written = |codec: &Codec, message| {
            let mut out = BytesMut::new();
            codec.write(message, &mut out).map(|()| out.to_vec())
        };
        let start = proto("process.Process", "Start");
        // event 1 { end 3 { exit_code 1: -1, as zigzag } }
        let end = json!({ "event": { "end": { "exitCode": -1 } } });
        assert_eq!(written(&start, end), Ok(b"\x0a\x04\x1a\x02\x08\x01".to_vec()));
        let stat = proto("filesystem.Filesystem", "Stat");
        // entry 1 { size 4: 4, modified_time 9 { seconds 1: 1 } }
        let entry = json!({ "entry": { "size": "4", "modifiedTime": "1970-01-01T00:00:01.000000Z" } });
        assert_eq!(written(&stat, entry), Ok(b"\x0a\x06\x20\x04\x4a\x02\x08\x01".to_vec()));
        assert!(written(&stat, json!({ "entry": { "no_such": 1 } })).is_err(), "a field without a number");
    }

    #[test]
    fn nesting_has_an_end() {
        // A group begun a thousand times, of an unknown number.
        assert!(proto("process.Process", "List").read::<Value>(&[0x7b; 1000]).is_err());
    }
}
