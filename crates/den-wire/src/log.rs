//! How a step's output lies in its log file.
//!
//! ```text
//! record = head 24 bytes · payload
//! head   = magic u8 0xD5 · stream u8 · 0 u16 · length u32 · time i64 · offset u64      all LE
//! ```
//!
//! `time` is microseconds since the epoch. `offset` counts bytes of output (standard output,
//! standard error and terminal together) before this record, so that a reader finds any byte, and
//! a difference between one record's end and the next one's offset is what was cut.
//!
//! The agent writes the file through a descriptor that the host opened; the host and any number of
//! readers read it. A log keeps the first [`HEAD_KEEP_BYTES`] and the newest bytes up to its
//! limit. What lies between is cut by punching a hole: at the hole's start stands a
//! [`Stream::Cut`] record whose payload is the file position (u64) at which records go on.
//! Positions and offsets of what remains do not change.
//!
//! The new cut record is written before the hole is punched, at the first record boundary at or
//! after [`HEAD_KEEP_BYTES`]: a reader that finds no head where one should be re-reads the cut record.
//! When the disk is full to the end there may be no end record; the agent still says how it ended.
//!
//! The last record of a complete log is [`Stream::End`]; its payload is [`EndRecord`].

/// Length of a record's head, in bytes.
pub const RECORD_HEAD_BYTES: usize = 24;

/// The longest payload of a record, in bytes.
pub const RECORD_BYTES_MAX: usize = 256 << 10;

/// How much of the beginning a log keeps whatever its limit, in bytes of the file.
pub const HEAD_KEEP_BYTES: u64 = 1 << 20;

/// How much of its output a log keeps by default, in bytes.
pub const KEEP_BYTES_DEFAULT: u64 = 1 << 30;

/// The smallest limit, in bytes.
pub const KEEP_BYTES_MIN: u64 = 4 << 20;

const MAGIC: u8 = 0xD5;

/// Where a record came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stream {
    /// Standard output.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
    /// The terminal, which has one stream for both.
    Pty = 3,
    /// Nothing: records go on at the file position in the payload.
    Cut = 4,
    /// The end; nothing follows.
    End = 5,
}

/// A record's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHead {
    /// Where it came from.
    pub stream: Stream,
    /// Length of the payload, in bytes.
    pub length: u32,
    /// Microseconds since the epoch.
    pub time: i64,
    /// Bytes of output before it.
    pub offset: u64,
}

impl RecordHead {
    /// As it lies in the file.
    pub fn to_bytes(self) -> [u8; RECORD_HEAD_BYTES] {
        let mut bytes = [0; RECORD_HEAD_BYTES];
        bytes[0] = MAGIC;
        bytes[1] = self.stream as u8;
        bytes[4..8].copy_from_slice(&self.length.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.time.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    /// Reads a head; `None` for what is none, or has a payload beyond [`RECORD_BYTES_MAX`].
    pub fn parse(bytes: &[u8; RECORD_HEAD_BYTES]) -> Option<Self> {
        if bytes[0] != MAGIC {
            return None;
        }
        let stream = match bytes[1] {
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            3 => Stream::Pty,
            4 => Stream::Cut,
            5 => Stream::End,
            _ => return None,
        };
        let eight = |at: usize| -> [u8; 8] { bytes[at..at + 8].try_into().expect("8 bytes") };
        let length = u32::from_le_bytes(bytes[4..8].try_into().expect("4 bytes"));
        if length as usize > RECORD_BYTES_MAX {
            return None;
        }
        Some(Self { stream, length, time: i64::from_le_bytes(eight(8)), offset: u64::from_le_bytes(eight(16)) })
    }

    /// Length of head and payload in the file.
    pub fn record_bytes(self) -> u64 {
        RECORD_HEAD_BYTES as u64 + u64::from(self.length)
    }
}

/// The payload of the [`Stream::End`] record: `tag u8 · value i32 LE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndRecord {
    /// Returned this code.
    Exited(i32),
    /// Ended by this signal.
    Signaled(i32),
    /// Ran past its time.
    TimedOut,
    /// Not started; the code a shell would return. The words are the standard error before it.
    NotStarted(i32),
}

/// Length of the payload of an end record, in bytes.
pub const END_BYTES: usize = 5;

impl EndRecord {
    /// As it lies in the file.
    pub fn to_bytes(self) -> [u8; END_BYTES] {
        let (tag, value) = match self {
            Self::Exited(code) => (0, code),
            Self::Signaled(signal) => (1, signal),
            Self::TimedOut => (2, 0),
            Self::NotStarted(code) => (3, code),
        };
        let v = i32::to_le_bytes(value);
        [tag, v[0], v[1], v[2], v[3]]
    }

    /// Reads it; `None` for what is none.
    pub fn parse(bytes: &[u8; END_BYTES]) -> Option<Self> {
        let value = i32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
        Some(match bytes[0] {
            0 => Self::Exited(value),
            1 => Self::Signaled(value),
            2 => Self::TimedOut,
            3 => Self::NotStarted(value),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_reads_back() {
        let head = RecordHead { stream: Stream::Stderr, length: 77, time: -5, offset: u64::MAX };
        assert_eq!(RecordHead::parse(&head.to_bytes()), Some(head));
    }

    #[test]
    fn what_is_no_head_is_refused() {
        assert_eq!(RecordHead::parse(&[0; RECORD_HEAD_BYTES]), None);
        let mut long = RecordHead { stream: Stream::Pty, length: 1, time: 0, offset: 0 }.to_bytes();
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(RecordHead::parse(&long), None);
    }

    #[test]
    fn an_end_reads_back() {
        for end in [EndRecord::Exited(3), EndRecord::Signaled(9), EndRecord::TimedOut, EndRecord::NotStarted(127)] {
            assert_eq!(EndRecord::parse(&end.to_bytes()), Some(end));
        }
    }
}
