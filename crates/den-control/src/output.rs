//! A step's output, from any byte, by any number of readers.
//!
//! ```text
//! agent ──writes──► log file ◄──reads── OutputReader ◄──pulls── a client, as slow as it likes
//!    └──progress──► follower ──watch──►────┘
//! ```
//!
//! A reader holds one chunk at most, and nobody waits for it.

use std::{collections::VecDeque, fs::File, sync::Arc};

use bytes::Bytes;
use den_api::StepView;
use den_model::{ComputerName, Step};
use den_wire::log::Stream;
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::{
    Error,
    log::{Cursor, Filled, Growth, Piece, Trouble},
};

/// Where output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The terminal.
    Terminal,
}

/// What a reader gives out.
#[derive(Debug, Clone, PartialEq)]
pub enum OutputItem {
    /// Output. `offset` counts the bytes of all streams before it.
    Data {
        /// From where.
        stream: OutputStream,
        /// Bytes of output before it.
        offset: u64,
        /// The output, at most 256 KiB.
        bytes: Bytes,
    },
    /// Output that is gone, of whichever stream.
    Cut {
        /// Bytes of output before it.
        offset: u64,
        /// How many are gone.
        bytes: u64,
    },
    /// The step has ended, and all of its output was given out. Nothing follows.
    End(Box<StepView>),
}

/// Whether a reader waits for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// Until the step has ended.
    ToTheEnd,
    /// What is there now, and no `End` where the step goes on.
    Present,
}

/// How far a step is.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    pub log_bytes: u64,
    pub output_bytes: u64,
    /// The row once it has ended: what is recorded, or will be and lies in the log.
    pub end: Option<Arc<Step>>,
}

/// Reads the output of one step.
pub struct OutputReader {
    name: ComputerName,
    number: u64,
    progress: watch::Receiver<Progress>,
    cursor: Option<Cursor>,
    /// The byte to begin at, for a step that has no log.
    from: u64,
    follow: Follow,
    only: Option<OutputStream>,
    pieces: VecDeque<Piece>,
    done: bool,
    _turn: OwnedSemaphorePermit,
}

/// What a reader reads, and how.
pub(crate) struct Reading {
    pub name: ComputerName,
    pub number: u64,
    pub progress: watch::Receiver<Progress>,
    /// None for a step that has none, or whose log is gone.
    pub log: Option<Arc<File>>,
    pub from: u64,
    pub follow: Follow,
    pub only: Option<OutputStream>,
    pub turn: OwnedSemaphorePermit,
}

impl OutputReader {
    pub(crate) fn new(reading: Reading) -> Self {
        let Reading { name, number, progress, log, from, follow, only, turn } = reading;
        let cursor = log.map(|file| Cursor::new(file, from));
        let pieces = VecDeque::new();
        Self { name, number, progress, cursor, from, follow, only, pieces, done: false, _turn: turn }
    }

    /// The number of the step.
    pub fn step(&self) -> u64 {
        self.number
    }

    /// The next item; `None` after the last. May be dropped while it waits, and nothing is lost.
    ///
    /// Errors: `log_damaged` where something inside wrote to the log.
    pub async fn next(&mut self) -> Result<Option<OutputItem>, Error> {
        loop {
            while let Some(piece) = self.pieces.pop_front() {
                if let Some(item) = self.item(piece) {
                    return Ok(Some(item));
                }
            }
            if self.done {
                return Ok(None);
            }
            tokio::task::consume_budget().await;
            let (log_bytes, end) = {
                let progress = self.progress.borrow_and_update();
                (progress.log_bytes, progress.end.clone())
            };
            // One that printed nothing has nothing to be read.
            let silent = end.as_ref().is_some_and(|step| step.output_bytes == 0);
            if let Some(cursor) = self.cursor.as_mut().filter(|_| !silent) {
                let growth = if end.is_some() { Growth::Final } else { Growth::Growing };
                let result = match growth {
                    Growth::Growing => cursor.fill(log_bytes, growth, &mut self.pieces).await,
                    Growth::Final => match cursor.file().metadata() {
                        Ok(metadata) => cursor.fill(metadata.len(), growth, &mut self.pieces).await,
                        Err(error) => Err(Trouble::Io(error)),
                    },
                };
                match result {
                    Ok(Filled::Some) => continue,
                    Ok(Filled::Nothing) => {}
                    Err(Trouble::Damaged(at)) => {
                        self.done = true;
                        return Err(Error::log_damaged(&self.name, self.number, at));
                    }
                    Err(Trouble::Io(error)) => {
                        self.done = true;
                        let message = format!("cannot read the log of step {} of `{}`", self.number, self.name);
                        return Err(Error::internal(message).because(error));
                    }
                }
            }
            match end {
                Some(step) => {
                    if let Some(piece) = self.rest(step.output_bytes) {
                        self.pieces.push_back(piece);
                        continue;
                    }
                    self.done = true;
                    return Ok(Some(OutputItem::End(Box::new(StepView::from(&*step)))));
                }
                None if self.follow == Follow::Present => self.done = true,
                None if self.progress.changed().await.is_err() => {
                    self.done = true;
                    return Err(Error::shutting_down());
                }
                None => {}
            }
        }
    }

    /// What an ended step had beyond what its log has, which is gone.
    fn rest(&mut self, total: u64) -> Option<Piece> {
        match &mut self.cursor {
            // A whole log has said itself what it lacks.
            Some(cursor) if cursor.ended() => None,
            Some(cursor) => cursor.cut_to(total),
            None => {
                let from = self.from;
                self.from = from.max(total);
                (total > from).then(|| Piece::Cut { offset: from, bytes: total - from })
            }
        }
    }

    fn item(&self, piece: Piece) -> Option<OutputItem> {
        Some(match piece {
            Piece::Cut { offset, bytes } => OutputItem::Cut { offset, bytes },
            Piece::Data { stream, offset, bytes } => {
                let stream = match stream {
                    Stream::Stdout => OutputStream::Stdout,
                    Stream::Stderr => OutputStream::Stderr,
                    Stream::Pty => OutputStream::Terminal,
                    Stream::Cut | Stream::End => return None,
                };
                if self.only.is_some_and(|only| only != stream) {
                    return None;
                }
                OutputItem::Data { stream, offset, bytes }
            }
        })
    }
}

#[cfg(test)]
mod tests;
