//! Reading a step's log: records in, pieces of output out.
//!
//! ```text
//! file    │ head … │ data … │ Cut ──────────────► │ data … │ End │
//!                             hole: zeros
//! cursor  ──► pos, within a payload or at a head; `offset` of the output there; `from` still owed
//! ```
//!
//! Invariants:
//! - Every byte of output from the wanted one on is given out once or told as cut once.
//! - The agent writes a Cut record before it punches the hole behind it. So bytes that were read
//!   from a log that still grows are believed only after a look at that record.
//! - The agent may have been replaced by someone hostile: positions only ever rise, a chunk is
//!   [`READ_BYTES`] at most, and what is no record is [`Trouble::Damaged`].
//!
//! Not here: waiting for the log to grow (`output`).

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IoSliceMut},
    ops::Range,
    os::unix::fs::FileExt,
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use den_wire::log::{END_BYTES, EndRecord, HEAD_KEEP_BYTES, RECORD_BYTES_MAX, RECORD_HEAD_BYTES, RecordHead, Stream};
use rustix::io::{Errno, ReadWriteFlags};

use crate::limits::{READ_BYTES, SCAN_BYTES};

const HEAD: u64 = RECORD_HEAD_BYTES as u64;
/// Length of a Cut record's payload.
const CUT_BYTES: usize = 8;
/// A read that gave less may have missed the end of a record's head.
const SHORT_BYTES: usize = 64;
/// From here on a Cut record may stand.
const CUT_FROM: u64 = HEAD_KEEP_BYTES.saturating_sub(RECORD_BYTES_MAX as u64 + HEAD);
/// Beyond this no Cut record begins.
const CUT_TO: u64 = HEAD_KEEP_BYTES + RECORD_BYTES_MAX as u64 + HEAD;

/// A piece of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    Data { stream: Stream, offset: u64, bytes: Bytes },
    Cut { offset: u64, bytes: u64 },
}

/// Why a log could not be read on.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// What stands at this byte of the file is no record.
    Damaged(u64),
    Io(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Whether there may be more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    /// Something was read or passed over: go on.
    Some,
    /// Nothing is left up to the limit.
    Nothing,
}

/// Whether the log may still change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Growth {
    Growing,
    Final,
}

/// A place in a log.
pub(crate) struct Cursor {
    file: Arc<File>,
    pos: u64,
    within: Option<(Stream, u64)>,
    offset: u64,
    from: u64,
    /// The last boundary of records before [`HEAD_KEEP_BYTES`] and the first one from there on: the
    /// places where the agent may come to put its Cut record.
    edges: [Option<u64>; 2],
    /// Where the Cut record stands that was met.
    cut_at: Option<u64>,
    ended: bool,
    buffer: BytesMut,
}

impl Cursor {
    /// Stands at the byte of output `from` of the log `file`.
    pub(crate) fn new(file: Arc<File>, from: u64) -> Self {
        Self {
            file,
            pos: 0,
            within: None,
            offset: 0,
            from,
            edges: [None; 2],
            cut_at: None,
            ended: false,
            buffer: BytesMut::new(),
        }
    }

    /// Whether the End record was met.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Tells as cut what lies between here and `total`.
    pub(crate) fn cut_to(&mut self, total: u64) -> Option<Piece> {
        let piece = (total > self.from).then(|| Piece::Cut { offset: self.from, bytes: total - self.from });
        self.from = self.from.max(total);
        piece
    }

    /// Reads one chunk below `limit` and adds what it holds to `pieces`. May be dropped at any await.
    pub(crate) async fn fill(
        &mut self,
        limit: u64,
        growth: Growth,
        pieces: &mut VecDeque<Piece>,
    ) -> Result<Filled, Trouble> {
        if self.ended || self.pos >= limit {
            return Ok(Filled::Nothing);
        }
        // A payload that nobody wants is passed over unread.
        if let Some((stream, left)) = self.within
            && self.offset + left <= self.from
        {
            let over = left.min(limit - self.pos);
            self.pos += over;
            self.offset += over;
            self.within = (left > over).then_some((stream, left - over));
            return Ok(Filled::Some);
        }
        let most = if self.within.is_none() && self.offset < self.from { SCAN_BYTES } else { READ_BYTES };
        let length = (limit - self.pos).min(most as u64) as usize;
        let mut chunk = self.read(self.pos, length).await?;
        if growth == Growth::Growing
            && let Some(cut) = self.cut_record()?
            && cut.start < self.pos + chunk.len() as u64
            && self.pos < cut.end
        {
            if self.pos > cut.start {
                self.jump(cut.end); // Overtaken: what was read may be zeros.
                return Ok(Filled::Some);
            }
            // The Cut record itself is the last thing to be believed.
            chunk.truncate((cut.start - self.pos) as usize + RECORD_HEAD_BYTES + CUT_BYTES);
        }
        self.parse(chunk, limit, growth, pieces)
    }

    fn jump(&mut self, to: u64) {
        self.pos = to;
        self.within = None;
    }

    fn parse(
        &mut self,
        mut chunk: BytesMut,
        limit: u64,
        growth: Growth,
        pieces: &mut VecDeque<Piece>,
    ) -> Result<Filled, Trouble> {
        let start = self.pos;
        let mut gathered = Gathered::default();
        let mut at = 0;
        let mut trouble = None;
        while at < chunk.len() {
            if let Some((stream, left)) = self.within {
                let take = left.min((chunk.len() - at) as u64);
                let unwanted = self.from.saturating_sub(self.offset).min(take);
                let range = at + unwanted as usize..at + take as usize;
                gathered.data(stream, self.offset + unwanted, range, &mut chunk);
                self.offset += take;
                self.from = self.from.max(self.offset);
                at += take as usize;
                self.within = (left > take).then_some((stream, left - take));
                continue;
            }
            let Some(head) = chunk[at..].first_chunk::<RECORD_HEAD_BYTES>() else { break };
            let here = start + at as u64;
            let Some(head) = RecordHead::parse(head).filter(|head| head.offset >= self.offset || is_cut(head)) else {
                trouble = Some(Trouble::Damaged(here));
                break;
            };
            let payload = &chunk[at + RECORD_HEAD_BYTES..];
            match head.stream {
                Stream::Cut => {
                    let Some(target) = payload.first_chunk::<CUT_BYTES>() else { break };
                    let target = u64::from_le_bytes(*target);
                    // Records go on behind the Cut record, and not beyond what there is.
                    if head.length as usize != CUT_BYTES || target < here + HEAD + CUT_BYTES as u64 {
                        trouble = Some(Trouble::Damaged(here));
                        break;
                    }
                    if growth == Growth::Final && target > limit {
                        trouble = Some(Trouble::Damaged(here));
                        break;
                    }
                    gathered.flush_into(pieces, chunk);
                    self.cut_at = Some(here);
                    self.jump(target);
                    return Ok(Filled::Some);
                }
                Stream::End => {
                    self.gap(head.offset, &mut gathered);
                    self.ended = true;
                    at = chunk.len();
                }
                stream => {
                    if head.offset.checked_add(u64::from(head.length)).is_none() {
                        trouble = Some(Trouble::Damaged(here));
                        break;
                    }
                    if here < HEAD_KEEP_BYTES {
                        self.edges[0] = Some(here);
                    } else if self.edges[1].is_none() {
                        self.edges[1] = Some(here);
                    }
                    self.gap(head.offset, &mut gathered);
                    self.within = (head.length > 0).then_some((stream, u64::from(head.length)));
                    at += RECORD_HEAD_BYTES;
                    // A record that reaches beyond the chunk and is not wanted is passed over by `fill`.
                    if self.offset + u64::from(head.length) <= self.from && head.length as usize > chunk.len() - at {
                        break;
                    }
                }
            }
        }
        gathered.flush_into(pieces, chunk);
        self.pos = start + at as u64;
        match trouble {
            None if at > 0 => Ok(Filled::Some),
            // The beginning of a record, and no more of it.
            None if growth == Growth::Final || self.pos >= limit => Ok(Filled::Nothing),
            None => Ok(Filled::Nothing),
            // A hole reads as zeros: the Cut record at its start says where to go on.
            Some(Trouble::Damaged(here)) => match self.find_cut(limit)? {
                Some(cut) if cut.start < here && here < cut.end => {
                    self.jump(cut.end);
                    Ok(Filled::Some)
                }
                // What came before the damage is given out first; the next call comes here again.
                _ if at > 0 && !pieces.is_empty() => Ok(Filled::Some),
                _ => Err(Trouble::Damaged(here)),
            },
            Some(other) => Err(other),
        }
    }

    /// Output between here and the byte `to` is gone.
    fn gap(&mut self, to: u64, gathered: &mut Gathered) {
        self.offset = self.offset.max(to);
        if to > self.from && to > 0 {
            gathered.cut(self.from, to - self.from);
            self.from = to;
        }
    }

    /// The hole, where a Cut record stands at one of the places that the agent may have taken.
    fn cut_record(&self) -> io::Result<Option<Range<u64>>> {
        if self.pos + (READ_BYTES as u64) < CUT_FROM {
            return Ok(None);
        }
        for place in self.edges.into_iter().chain([self.cut_at]).flatten() {
            if let Some((RecordHead { stream: Stream::Cut, .. }, target)) = read_cut(&self.file, place)?
                && target > place
            {
                return Ok(Some(place..target));
            }
        }
        Ok(None)
    }

    /// Looks for the Cut record from the beginning of the file, heads only.
    fn find_cut(&self, limit: u64) -> io::Result<Option<Range<u64>>> {
        let mut place = 0;
        while place < limit.min(CUT_TO) {
            match read_cut(&self.file, place)? {
                Some((RecordHead { stream: Stream::Cut, .. }, target)) => {
                    return Ok((target > place).then_some(place..target));
                }
                Some((RecordHead { stream: Stream::End, .. }, _)) | None => return Ok(None),
                Some((head, _)) => place += head.record_bytes(),
            }
        }
        Ok(None)
    }

    /// Reads up to `length` bytes at `pos`: at once where the page cache has them, as it has what
    /// was written a moment ago; on a thread that may block where it has not.
    async fn read(&mut self, pos: u64, length: usize) -> io::Result<BytesMut> {
        self.buffer.clear();
        self.buffer.reserve(length); // Takes the old allocation where all its pieces are gone.
        self.buffer.resize(length, 0);
        let slice = &mut [IoSliceMut::new(&mut self.buffer)];
        match rustix::io::preadv2(&*self.file, slice, pos, ReadWriteFlags::NOWAIT) {
            Ok(count) if count == length || count >= SHORT_BYTES => {
                let mut chunk = self.buffer.split();
                chunk.truncate(count);
                Ok(chunk)
            }
            // The end of the file, or little of it at hand.
            Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                let (file, mut chunk) = (Arc::clone(&self.file), self.buffer.split());
                tokio::task::spawn_blocking(move || {
                    let count = file.read_at(&mut chunk, pos)?;
                    chunk.truncate(count);
                    Ok(chunk)
                })
                .await
                .map_err(io::Error::other)?
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

fn is_cut(head: &RecordHead) -> bool {
    head.stream == Stream::Cut
}

/// The record's head at `place`, and its first 8 bytes as a number; `None` where none is.
fn read_cut(file: &File, place: u64) -> io::Result<Option<(RecordHead, u64)>> {
    let mut bytes = [0; RECORD_HEAD_BYTES + CUT_BYTES];
    let mut have = 0;
    while have < bytes.len() {
        match file.read_at(&mut bytes[have..], place + have as u64) {
            Ok(0) => break,
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if have < RECORD_HEAD_BYTES {
        return Ok(None);
    }
    let head = bytes.first_chunk().and_then(RecordHead::parse);
    let target = bytes.last_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    Ok(head.map(|head| (head, target)))
}

/// Pieces of one chunk before it is frozen; neighbours of one stream are moved together.
#[derive(Default)]
struct Gathered(Vec<Part>);

enum Part {
    Data { stream: Stream, offset: u64, range: Range<usize> },
    Cut { offset: u64, bytes: u64 },
}

impl Gathered {
    fn data(&mut self, stream: Stream, offset: u64, range: Range<usize>, chunk: &mut BytesMut) {
        if range.is_empty() {
            return;
        }
        if let Some(Part::Data { stream: last, offset: first, range: so_far }) = self.0.last_mut()
            && *last == stream
            && *first + so_far.len() as u64 == offset
        {
            let length = range.len();
            chunk.copy_within(range, so_far.end);
            so_far.end += length;
            return;
        }
        self.0.push(Part::Data { stream, offset, range });
    }

    fn cut(&mut self, offset: u64, bytes: u64) {
        self.0.push(Part::Cut { offset, bytes });
    }

    fn flush_into(self, pieces: &mut VecDeque<Piece>, chunk: BytesMut) {
        if self.0.is_empty() {
            return;
        }
        let whole = chunk.freeze();
        pieces.extend(self.0.into_iter().map(|part| match part {
            Part::Data { stream, offset, range } => Piece::Data { stream, offset, bytes: whole.slice(range) },
            Part::Cut { offset, bytes } => Piece::Cut { offset, bytes },
        }));
    }
}

/// The last record of a complete log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LastRecord {
    /// How its step ended.
    pub end: EndRecord,
    /// The bytes of output it had.
    pub output_bytes: u64,
    /// When, in microseconds since the epoch.
    pub time: i64,
}

/// How a complete log says that its step ended.
pub(crate) fn end_of(file: &File) -> io::Result<Option<LastRecord>> {
    let length = file.metadata()?.len();
    let mut bytes = [0; RECORD_HEAD_BYTES + END_BYTES];
    let Some(place) = length.checked_sub(bytes.len() as u64) else { return Ok(None) };
    file.read_exact_at(&mut bytes, place)?;
    let head = bytes.first_chunk().and_then(RecordHead::parse);
    let head = head.filter(|head| head.stream == Stream::End && head.length as usize == END_BYTES);
    let end = bytes.last_chunk().and_then(EndRecord::parse);
    Ok(head.zip(end).map(|(head, end)| LastRecord { end, output_bytes: head.offset, time: head.time }))
}

/// The words at the beginning of a log, for a step that was not started.
pub(crate) fn first_words(file: &File) -> String {
    let mut bytes = [0; 1024 + RECORD_HEAD_BYTES];
    let count = file.read_at(&mut bytes, 0).unwrap_or(0);
    let head = bytes.first_chunk().and_then(RecordHead::parse).filter(|head| head.stream == Stream::Stderr);
    let length = head.map_or(0, |head| head.length as usize);
    let end = (RECORD_HEAD_BYTES + length).min(count).max(RECORD_HEAD_BYTES);
    String::from_utf8_lossy(&bytes[RECORD_HEAD_BYTES..end]).trim_end().to_owned()
}

#[cfg(test)]
mod tests;
