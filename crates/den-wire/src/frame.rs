//! Frames on a byte stream.

use std::io;

use minicbor::{Decode, Encode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::FRAME_BYTES_MAX;

/// Length of a frame's head, in bytes.
pub const HEAD_BYTES: usize = 5;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A CBOR message.
    Message = 1,
    /// Bytes of a file, an archive or a standard input.
    Data = 2,
    /// No more data follows.
    End = 3,
}

/// A frame whose length and kind have been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: FrameKind,
    /// The payload.
    pub payload: Vec<u8>,
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection was closed between frames.
    #[error("the other side closed the connection")]
    Closed,
    /// A length beyond [`FRAME_BYTES_MAX`].
    #[error("a frame of {0} bytes is longer than {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// A kind that this side does not know.
    #[error("a frame of unknown kind {0}")]
    UnknownKind(u8),
    /// A payload that is no message of the wanted type.
    #[error("a message that does not decode: {0}")]
    Malformed(String),
    /// Another frame than the exchange has room for.
    #[error("a frame of kind {0:?} where none belongs")]
    Unexpected(FrameKind),
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[from] io::Error),
}

impl Frame {
    /// Decodes the message in it.
    ///
    /// Errors: `Unexpected` for data, `Malformed` for what is no `T`.
    pub fn message<'a, T: Decode<'a, ()>>(&'a self) -> Result<T, WireError> {
        match self.kind {
            FrameKind::Message => minicbor::decode(&self.payload).map_err(|e| WireError::Malformed(e.to_string())),
            other => Err(WireError::Unexpected(other)),
        }
    }
}

/// Reads and checks a head: the kind, and the length of the payload that follows.
pub fn parse_head(head: [u8; HEAD_BYTES]) -> Result<(FrameKind, usize), WireError> {
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(WireError::TooLong(length));
    }
    let kind = match head[4] {
        1 => FrameKind::Message,
        2 => FrameKind::Data,
        3 => FrameKind::End,
        other => return Err(WireError::UnknownKind(other)),
    };
    Ok((kind, length))
}

/// The head of a frame. `length` is at most [`FRAME_BYTES_MAX`].
pub fn head(kind: FrameKind, length: usize) -> [u8; HEAD_BYTES] {
    debug_assert!(length <= FRAME_BYTES_MAX);
    let l = (length as u32).to_le_bytes();
    [l[0], l[1], l[2], l[3], kind as u8]
}

/// A message with its head, ready to be written.
pub fn message_bytes<T: Encode<()>>(message: &T) -> Vec<u8> {
    let mut bytes = vec![0; HEAD_BYTES];
    minicbor::encode(message, &mut bytes).expect("a Vec takes everything");
    let head = head(FrameKind::Message, bytes.len() - HEAD_BYTES);
    bytes[..HEAD_BYTES].copy_from_slice(&head);
    bytes
}

/// Reads the next frame.
pub async fn read_frame<R: AsyncRead + Unpin>(from: &mut R) -> Result<Frame, WireError> {
    let mut bytes = [0; HEAD_BYTES];
    match from.read_exact(&mut bytes[..1]).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(WireError::Closed),
        Err(error) => return Err(error.into()),
    }
    from.read_exact(&mut bytes[1..]).await?;
    let (kind, length) = parse_head(bytes)?;
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).await?;
    Ok(Frame { kind, payload })
}

/// Writes a frame of `kind` with `payload`, which is at most [`FRAME_BYTES_MAX`] long.
pub async fn write_frame<W: AsyncWrite + Unpin>(to: &mut W, kind: FrameKind, payload: &[u8]) -> io::Result<()> {
    let head = head(kind, payload.len());
    let mut slices = [io::IoSlice::new(&head), io::IoSlice::new(payload)];
    let mut left = &mut slices[..];
    while !left.is_empty() {
        let written = to.write_vectored(left).await?;
        if written == 0 && left.iter().any(|slice| !slice.is_empty()) {
            return Err(io::ErrorKind::WriteZero.into());
        }
        io::IoSlice::advance_slices(&mut left, written);
        if left.iter().all(|slice| slice.is_empty()) {
            break;
        }
    }
    Ok(())
}

/// Writes a message.
pub async fn write_message<W: AsyncWrite + Unpin, T: Encode<()>>(to: &mut W, message: &T) -> io::Result<()> {
    to.write_all(&message_bytes(message)).await
}

/// Says that no more data follows.
pub async fn write_end<W: AsyncWrite + Unpin>(to: &mut W) -> io::Result<()> {
    write_frame(to, FrameKind::End, &[]).await
}

/// The same on blocking streams, for threads.
pub mod blocking {
    use std::io::{self, Read, Write};

    use super::{Encode, Frame, FrameKind, HEAD_BYTES, WireError, head, message_bytes, parse_head};

    /// Reads the next frame into `payload`, which is reused; returns its kind.
    pub fn read_frame_into(from: &mut impl Read, payload: &mut Vec<u8>) -> Result<FrameKind, WireError> {
        let mut bytes = [0; HEAD_BYTES];
        if from.read(&mut bytes[..1])? == 0 {
            return Err(WireError::Closed);
        }
        from.read_exact(&mut bytes[1..])?;
        let (kind, length) = parse_head(bytes)?;
        payload.resize(length, 0);
        from.read_exact(payload)?;
        Ok(kind)
    }

    /// Reads the next frame.
    pub fn read_frame(from: &mut impl Read) -> Result<Frame, WireError> {
        let mut payload = Vec::new();
        let kind = read_frame_into(from, &mut payload)?;
        Ok(Frame { kind, payload })
    }

    /// Writes a frame.
    pub fn write_frame(to: &mut impl Write, kind: FrameKind, payload: &[u8]) -> io::Result<()> {
        let head = head(kind, payload.len());
        let mut slices = [io::IoSlice::new(&head), io::IoSlice::new(payload)];
        let mut left = &mut slices[..];
        while left.iter().any(|slice| !slice.is_empty()) {
            let written = to.write_vectored(left)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            io::IoSlice::advance_slices(&mut left, written);
        }
        Ok(())
    }

    /// Writes a message.
    pub fn write_message<T: Encode<()>>(to: &mut impl Write, message: &T) -> io::Result<()> {
        to.write_all(&message_bytes(message))
    }
}
