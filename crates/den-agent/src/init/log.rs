//! Writing a step's log (`den_wire::log`).
//!
//! ```text
//! │ first HEAD_KEEP │Cut→P│ hole ................ │P: newest records │position
//! ```
//!
//! Invariants:
//! - What lies before `position` is whole records, a hole with its `Cut` record apart.
//! - The `Cut` record points beyond the hole before the hole is made. A reader that followed an
//!   older one finds zeros, which are no head, and reads the `Cut` record again.
//! - A write that fails loses that record only: its bytes count as cut, the next one takes its place.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::SystemTime;

use den_wire::log::{
    EndRecord, HEAD_KEEP_BYTES, KEEP_BYTES_DEFAULT, KEEP_BYTES_MIN, RECORD_HEAD_BYTES, RecordHead, Stream,
};
use rustix::fs::FallocateFlags;

/// The largest piece that is cut at once, in bytes; a quarter of a smaller limit.
const PIECE_BYTES_MAX: u64 = 4 << 20;

/// Length of a `Cut` record, in bytes.
const CUT_BYTES: u64 = RECORD_HEAD_BYTES as u64 + 8;

/// The writer of one log.
pub struct LogWriter {
    /// Absent while the agent rests: nothing may be written then.
    file: Option<OwnedFd>,
    /// Where the next record goes.
    position: u64,
    /// Bytes of output so far, lost ones included.
    offset: u64,
    keep: u64,
    piece: u64,
    middle: Option<Middle>,
}

/// What may be cut.
struct Middle {
    /// Where the hole begins.
    start: u64,
    /// Bytes of output before it.
    offset: u64,
    /// Where records go on after the hole; `start` while there is none.
    kept_from: u64,
    /// Starts of later records, a piece or more apart.
    boundaries: VecDeque<u64>,
    last_boundary: u64,
}

impl LogWriter {
    /// Writes `file` from its start.
    pub fn new(file: OwnedFd, keep: Option<u64>) -> Self {
        let keep = keep.unwrap_or(KEEP_BYTES_DEFAULT).max(KEEP_BYTES_MIN);
        Self { file: Some(file), position: 0, offset: 0, keep, piece: PIECE_BYTES_MAX.min(keep / 4), middle: None }
    }

    /// Lets go of the file. What was written stays; records wait until there is one again.
    pub fn let_go(&mut self) {
        self.file = None;
    }

    /// Goes on in `file`, which holds what was written before.
    pub fn go_on(&mut self, file: OwnedFd) {
        self.file = Some(file);
    }

    /// Length of the log, in bytes.
    pub fn log_bytes(&self) -> u64 {
        self.position
    }

    /// Bytes of output so far.
    pub fn output_bytes(&self) -> u64 {
        self.offset
    }

    /// Writes a record: `record` has room for the head, and then the payload.
    pub fn record(&mut self, stream: Stream, record: &mut [u8]) {
        let length = record.len() - RECORD_HEAD_BYTES;
        self.remember_boundary();
        self.put(stream, record);
        self.offset += length as u64;
        self.cut();
    }

    /// Writes the last record.
    pub fn end(&mut self, end: EndRecord) {
        let mut record = [&[0; RECORD_HEAD_BYTES][..], &end.to_bytes()].concat();
        self.put(Stream::End, &mut record);
    }

    fn put(&mut self, stream: Stream, record: &mut [u8]) {
        let length = (record.len() - RECORD_HEAD_BYTES) as u32;
        let head = RecordHead { stream, length, time: now(), offset: self.offset };
        record[..RECORD_HEAD_BYTES].copy_from_slice(&head.to_bytes());
        match self.write_at(record, self.position) {
            Ok(()) => self.position += record.len() as u64,
            // Half a record must not be taken for one.
            Err(_) => {
                if let Some(file) = &self.file {
                    let _ = rustix::fs::ftruncate(file, self.position);
                }
            }
        }
    }

    fn write_at(&self, mut bytes: &[u8], mut position: u64) -> rustix::io::Result<()> {
        let file = self.file.as_ref().ok_or(rustix::io::Errno::BADF)?;
        while !bytes.is_empty() {
            match rustix::io::pwrite(file, bytes, position) {
                Ok(0) => return Err(rustix::io::Errno::NOSPC),
                Ok(written) => {
                    bytes = &bytes[written..];
                    position += written as u64;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn remember_boundary(&mut self) {
        match &mut self.middle {
            None if self.position >= HEAD_KEEP_BYTES => {
                self.middle = Some(Middle {
                    start: self.position,
                    offset: self.offset,
                    kept_from: self.position,
                    boundaries: VecDeque::new(),
                    last_boundary: self.position,
                });
            }
            Some(middle) if self.position >= middle.last_boundary + self.piece => {
                middle.boundaries.push_back(self.position);
                middle.last_boundary = self.position;
            }
            _ => {}
        }
    }

    fn cut(&mut self) {
        let Some(middle) = &mut self.middle else { return };
        let from = middle.kept_from;
        while middle.start + (self.position - middle.kept_from) > self.keep
            && let Some(next) = middle.boundaries.pop_front()
        {
            middle.kept_from = next;
        }
        let (start, kept_from, offset) = (middle.start, middle.kept_from, middle.offset);
        if kept_from == from {
            return;
        }
        let head = RecordHead { stream: Stream::Cut, length: 8, time: now(), offset };
        let record = [&head.to_bytes()[..], &kept_from.to_le_bytes()].concat();
        if self.write_at(&record, start).is_err() {
            // In place, so this takes no room where files are overwritten; where it does, nothing is cut yet.
            if let Some(middle) = &mut self.middle {
                middle.boundaries.push_front(kept_from);
                middle.kept_from = from;
            }
            return;
        }
        let hole = from.max(start + CUT_BYTES);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if let Some(file) = &self.file {
            let _ = rustix::fs::fallocate(file, flags, hole, kept_from - hole);
        }
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_full_log_keeps_its_beginning_and_its_end() {
        let file = tempfile::tempfile().expect("a file");
        let mut log = LogWriter::new(file.try_clone().expect("a descriptor").into(), Some(KEEP_BYTES_MIN));
        let mut record = vec![7; RECORD_HEAD_BYTES + 50_000];
        for _ in 0..1000 {
            log.record(Stream::Stdout, &mut record);
        }
        log.end(EndRecord::Exited(0));
        assert_eq!(log.output_bytes(), 50_000_000);
        let size = file.metadata().expect("attributes");
        assert_eq!(size.len(), log.log_bytes());
        assert!(size.blocks() * 512 <= KEEP_BYTES_MIN + (64 << 10), "{} blocks", size.blocks());

        let (mut position, mut offset, mut cuts) = (0, 0, 0);
        loop {
            let mut head = [0; RECORD_HEAD_BYTES];
            file.read_exact_at(&mut head, position).expect("a head");
            let head = RecordHead::parse(&head).expect("a head");
            match head.stream {
                Stream::Cut => {
                    let mut to = [0; 8];
                    file.read_exact_at(&mut to, position + RECORD_HEAD_BYTES as u64).expect("a place");
                    assert_eq!(head.offset, offset);
                    position = u64::from_le_bytes(to);
                    cuts += 1;
                }
                Stream::End => break,
                _ => {
                    assert!(cuts > 0 || head.offset == offset);
                    offset = head.offset + u64::from(head.length);
                    position += head.record_bytes();
                }
            }
        }
        assert_eq!((offset, cuts), (50_000_000, 1));
    }
}
