//! What is known of the states of one computer without asking anyone: the rows, who uses which, and the steps
//! that wait to be looked at.
//!
//! Locks are held for a look or a change and never across an await, but the turn.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use den_disk::{Dirt, Furnished, Mark};
use den_model::{Micros, Snapshot, SnapshotKind, StateLabel, StepNumber};
use tokio::sync::{Mutex as Queue, Notify, OwnedMutexGuard};

use crate::{
    Error,
    handle::Handle,
    limits::{KEEP_WAIT, ROOM_PAUSE, UNPIN_WAIT},
};

/// The right to change the states of one computer: one has it at a time.
pub(crate) struct Turn {
    _turn: OwnedMutexGuard<()>,
}

/// The states of one computer.
pub(crate) struct History {
    /// What has to be done before the next step may begin.
    pending: AtomicUsize,
    settled: Notify,
    /// The last step after which no state could be kept.
    unkept: AtomicU64,
    /// Merges whose daemon died: nobody knows yet whether they came about.
    unsure: Mutex<BTreeSet<StepNumber>>,
    /// A state is not looked at any more.
    unpinned: Notify,
    turn: Arc<Queue<()>>,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    rows: BTreeMap<u64, Snapshot>,
    /// Steps that have ended and were not looked at yet.
    queue: Vec<StepNumber>,
    /// Whether a task looks at them.
    keeping: bool,
    /// The last that has ended.
    last_ended: StepNumber,
    /// How the disk was when its state was kept last; none: it may have changed since.
    mark: Option<Mark>,
    dirt: Option<Arc<Dirt>>,
    /// The turn of who waits for a restore, for that restore.
    lent: Option<Turn>,
    /// Whether it has booted since: then the disk was written to, and perhaps by nobody else.
    booted: bool,
    /// What a disk that was made from an image held before the first step.
    furnished: Option<Furnished>,
    pins: HashMap<u64, usize>,
    /// When states were let go for want of room: the storage takes a while to give it back.
    room_made: Option<Instant>,
    closed: bool,
}

impl History {
    pub(crate) fn new() -> Self {
        Self {
            pending: AtomicUsize::new(0),
            settled: Notify::new(),
            unkept: AtomicU64::new(0),
            unsure: Mutex::default(),
            unpinned: Notify::new(),
            turn: Arc::default(),
            book: Mutex::default(),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the states after all ended steps are kept, or for so long that the next step goes first.
    pub(crate) async fn settled(&self) {
        if self.pending.load(Ordering::Acquire) == 0 {
            return;
        }
        let wait = async {
            loop {
                let mut told = std::pin::pin!(self.settled.notified());
                told.as_mut().enable();
                if self.pending.load(Ordering::Acquire) == 0 {
                    return;
                }
                told.await;
            }
        };
        if tokio::time::timeout(KEEP_WAIT, wait).await.is_err() {
            tracing::warn!("a state takes long to be kept, and the next step goes first");
        }
    }

    /// As [`History::settled`]; says whether the state after `step` is kept, or nothing changed since the one before.
    pub(crate) async fn settled_after(&self, step: StepNumber) -> bool {
        self.settled().await;
        self.pending.load(Ordering::Acquire) == 0 && self.unkept.load(Ordering::Acquire) < step
    }

    /// Whether the merge `step` came about is known once what it changed is.
    pub(crate) fn is_unsure(&self, step: StepNumber) {
        self.unsure.lock().unwrap_or_else(PoisonError::into_inner).insert(step);
    }

    /// Whether that was not known of `step` until now.
    pub(super) fn was_unsure(&self, step: StepNumber) -> bool {
        self.unsure.lock().unwrap_or_else(PoisonError::into_inner).remove(&step)
    }

    /// No state is kept after these.
    pub(super) fn not_kept(&self, steps: &[StepNumber]) {
        if let Some(&last) = steps.iter().max() {
            self.unkept.fetch_max(last, Ordering::AcqRel);
        }
    }

    /// Something has to be done before the next step.
    pub(super) fn expect(&self) {
        self.pending.fetch_add(1, Ordering::AcqRel);
    }

    /// `count` of that is done.
    pub(super) fn done(&self, count: usize) {
        if self.pending.fetch_sub(count, Ordering::AcqRel) == count {
            self.settled.notify_waiters();
        }
    }

    /// The right to change states.
    ///
    /// Errors: `computer_not_found` where it is being removed, `too_many` where it does not come.
    pub(crate) async fn turn(&self) -> Result<Turn, Error> {
        let turn = tokio::time::timeout(KEEP_WAIT, Arc::clone(&self.turn).lock_owned()).await.map_err(|_| {
            Error::new("busy", 503, "another state of this computer is being kept").hint("try again").retryable()
        })?;
        if self.book().closed {
            return Err(Error::new("computer_not_found", 404, "the computer is being removed"));
        }
        Ok(Turn { _turn: turn })
    }

    /// Gives a turn to the restore that comes next, so that nothing is kept until then.
    pub(super) fn lend(&self, turn: Turn) {
        self.book().lent = Some(turn);
    }

    /// Lets a turn go that no restore has taken.
    pub(super) fn unlend(&self) {
        let lent = self.book().lent.take();
        drop(lent);
    }

    /// The turn that was lent, or as [`History::turn`].
    pub(crate) async fn turn_of_restore(&self) -> Result<Turn, Error> {
        let lent = self.book().lent.take();
        match lent {
            Some(turn) => Ok(turn),
            None => self.turn().await,
        }
    }

    /// Refuses all turns from now on and waits for who has one, within a limit. What it holds open of the disk
    /// is let go.
    pub(crate) async fn close(&self) {
        self.book().closed = true;
        if tokio::time::timeout(KEEP_WAIT, self.turn.lock()).await.is_err() {
            tracing::warn!("a state is still being kept of what goes");
        }
        let mut book = self.book();
        book.dirt = None;
    }

    /// Queues a step that has ended; whether someone must begin to look.
    pub(super) fn queue(&self, step: StepNumber) {
        self.expect();
        let mut book = self.book();
        book.queue.push(step);
        book.last_ended = step;
    }

    /// Whether nobody looks at the queue; from now on the caller does.
    pub(super) fn begin_keeping(&self) -> bool {
        let mut book = self.book();
        !book.queue.is_empty() && !mem::replace(&mut book.keeping, true)
    }

    /// All that wait. None: nobody looks any more.
    pub(super) fn queued(&self) -> Vec<StepNumber> {
        let mut book = self.book();
        book.keeping = !book.queue.is_empty();
        mem::take(&mut book.queue)
    }

    /// The last step that has ended.
    pub(crate) fn last_ended(&self) -> StepNumber {
        self.book().last_ended
    }

    /// What the store has.
    pub(super) fn load(&self, rows: impl IntoIterator<Item = Snapshot>, last_ended: StepNumber) {
        let mut book = self.book();
        book.rows.extend(rows.into_iter().map(|row| (row.number, row)));
        book.last_ended = last_ended.max(book.last_ended);
    }

    /// Takes a row as recorded. The turn's.
    pub(crate) fn put(&self, row: Snapshot) {
        self.book().rows.insert(row.number, row);
    }

    /// Forgets rows as the store did: see `Store::delete_snapshots`. The turn's.
    pub(super) fn forget(&self, numbers: &[u64], keep: &[u64]) {
        let mut book = self.book();
        let head = head(&book.rows);
        for number in numbers {
            if *number == head {
                book.mark = None;
            }
            if keep.contains(number) {
                if let Some(row) = book.rows.get_mut(number) {
                    (row.dropped, row.label) = (true, None);
                }
            } else if let Some(gone) = book.rows.remove(number) {
                for row in book.rows.values_mut().filter(|row| row.parent == Some(*number)) {
                    row.parent = gone.parent;
                }
            }
        }
    }

    /// The number of the next state.
    pub(crate) fn next_number(&self) -> u64 {
        self.book().rows.last_key_value().map_or(0, |(number, _)| *number) + 1
    }

    /// The state that the disk comes from.
    pub(crate) fn head(&self) -> u64 {
        head(&self.book().rows)
    }

    /// The row of the state that the disk is left as when it is taken back to `to`; `step` is the last before.
    pub(super) fn leaving(&self, step: StepNumber, to: u64, at: Micros) -> Snapshot {
        Snapshot {
            number: self.next_number(),
            step,
            label: None,
            kind: SnapshotKind::Restore,
            created_at: at,
            frozen_us: 0,
            torn: false,
            generation: 0,
            parent: Some(self.head()),
            went_to: Some(to),
            dropped: false,
        }
    }

    /// A row, also of a state whose bytes are gone.
    pub(crate) fn row(&self, number: u64) -> Option<Snapshot> {
        self.book().rows.get(&number).cloned()
    }

    /// A state that is there.
    pub(crate) fn kept(&self, number: u64) -> Option<Snapshot> {
        self.row(number).filter(|row| !row.dropped)
    }

    /// All that are there, the oldest first.
    pub(crate) fn all_kept(&self) -> Vec<Snapshot> {
        self.book().rows.values().filter(|row| !row.dropped).cloned().collect()
    }

    /// How many are there.
    pub(crate) fn count_kept(&self) -> usize {
        self.book().rows.values().filter(|row| !row.dropped).count()
    }

    /// All rows, the oldest first.
    pub(crate) fn rows(&self) -> Vec<Snapshot> {
        self.book().rows.values().cloned().collect()
    }

    /// The state of this label.
    pub(crate) fn labelled(&self, label: &StateLabel) -> Option<u64> {
        self.book().rows.values().find(|row| row.label.as_ref() == Some(label)).map(|row| row.number)
    }

    /// The newest state that was kept after this step and before the next one had ended.
    pub(crate) fn newest_after(&self, step: StepNumber) -> Option<u64> {
        let book = self.book();
        let found = book.rows.values().rev().find(|row| row.step == step && row.number > 0 && !row.dropped);
        found.map(|row| row.number)
    }

    /// How text names a state: its label; its step where that is clear; else `.` and its number.
    pub(crate) fn name_of(&self, snapshot: &Snapshot) -> String {
        match &snapshot.label {
            Some(label) => label.to_string(),
            None if snapshot.number == 0 => "0".to_owned(),
            None if snapshot.step > 0 && self.newest_after(snapshot.step) == Some(snapshot.number) => {
                snapshot.step.to_string()
            }
            None => format!(".{}", snapshot.number),
        }
    }

    pub(super) fn mark(&self) -> Option<Mark> {
        self.book().mark
    }

    pub(super) fn set_mark(&self, mark: Option<Mark>) {
        self.book().mark = mark;
    }

    pub(super) fn dirt(&self) -> Option<Arc<Dirt>> {
        self.book().dirt.clone()
    }

    pub(super) fn set_dirt(&self, dirt: Arc<Dirt>) {
        let mut book = self.book();
        if !book.closed {
            book.dirt = Some(dirt);
        }
    }

    /// It boots: what that writes is no change.
    pub(crate) fn boots(&self) {
        self.book().booted = true;
    }

    /// What the disk held before the first step.
    pub(super) fn set_furnished(&self, furnished: Option<Furnished>) {
        self.book().furnished = furnished;
    }

    /// Whether it has booted since its state was kept last, and what is known of a disk of which none was.
    /// From now on it has not.
    pub(super) fn take_booted(&self) -> (bool, Option<Furnished>) {
        let mut book = self.book();
        (mem::take(&mut book.booted), book.furnished)
    }

    /// Another disk is in the place of the one that was looked at, and `before` is what that was. Returns the
    /// steps that had ended on it and were not looked at.
    pub(super) fn replaced(&self, before: Snapshot) -> Vec<StepNumber> {
        let mut book = self.book();
        (book.dirt, book.mark, book.furnished) = (None, None, None);
        // What replaced it is a step too.
        book.last_ended = before.step + 1;
        book.rows.insert(before.number, before);
        mem::take(&mut book.queue)
    }

    /// Whether room that is being made is worth waiting for: not again soon.
    pub(super) fn may_wait_for_room(&self) -> bool {
        let mut book = self.book();
        let may = book.room_made.is_none_or(|made| made.elapsed() >= ROOM_PAUSE);
        if may {
            book.room_made = Some(Instant::now());
        }
        may
    }

    /// Waits until nobody looks at a state; not for ever.
    pub(super) async fn unpinned(&self, number: u64) {
        let wait = async {
            loop {
                let mut told = std::pin::pin!(self.unpinned.notified());
                told.as_mut().enable();
                if !self.is_pinned(number) {
                    return;
                }
                told.await;
            }
        };
        let _ = tokio::time::timeout(UNPIN_WAIT, wait).await;
    }

    pub(crate) fn is_pinned(&self, number: u64) -> bool {
        self.book().pins.contains_key(&number)
    }
}

/// The newest row says it: it is what the disk was then, or what it was taken back to.
fn head(rows: &BTreeMap<u64, Snapshot>) -> u64 {
    rows.last_key_value().map_or(0, |(number, row)| row.went_to.unwrap_or(*number))
}

/// Holds a state against being let go.
pub(crate) struct Pin {
    handle: Arc<Handle>,
    number: u64,
}

impl Pin {
    pub(super) fn new(handle: &Arc<Handle>, number: u64) -> Self {
        *handle.history.book().pins.entry(number).or_default() += 1;
        Self { handle: Arc::clone(handle), number }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut book = self.handle.history.book();
        if let Some(count) = book.pins.get_mut(&self.number) {
            *count -= 1;
            if *count == 0 {
                book.pins.remove(&self.number);
                self.handle.history.unpinned.notify_waiters();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use den_model::SnapshotKind;

    use super::*;

    fn row(number: u64, step: StepNumber, parent: u64) -> Snapshot {
        Snapshot {
            number,
            step,
            label: None,
            kind: SnapshotKind::Auto,
            created_at: 0,
            frozen_us: 0,
            torn: false,
            generation: 1,
            parent: Some(parent),
            went_to: None,
            dropped: false,
        }
    }

    #[test]
    fn the_disk_comes_from_the_newest_state_or_from_where_it_was_taken_back_to() {
        let history = History::new();
        assert_eq!((history.head(), history.next_number()), (0, 1));
        history.load([row(1, 4, 0), row(2, 6, 1)], 6);
        assert_eq!((history.head(), history.next_number()), (2, 3));
        history.queue(7);
        let left = history.replaced(Snapshot { went_to: Some(1), ..row(3, 7, 2) });
        assert_eq!((left, history.head(), history.last_ended()), (vec![7], 1, 8));
        // The newest row stays where its bytes go, for it says so.
        history.forget(&[2, 3], &[3]);
        assert_eq!((history.head(), history.next_number(), history.rows().len()), (1, 4, 2));
        assert_eq!(history.row(3).map(|row| row.parent), Some(Some(1)), "it comes from what state 2 came from");
        assert_eq!(history.kept(3), None);
    }

    #[test]
    fn a_state_is_named_by_its_step_where_that_says_which() {
        let history = History::new();
        let named = Snapshot { label: Some("clean".parse().unwrap()), ..row(4, 9, 3) };
        history.load([row(0, 0, 0), row(1, 4, 0), row(2, 4, 1), row(3, 0, 2), named], 9);
        let names: Vec<_> = history.rows().iter().map(|row| history.name_of(row)).collect();
        assert_eq!(names, ["0", ".1", "4", ".3", "clean"]);
        assert_eq!(
            (history.newest_after(4), history.newest_after(9), history.newest_after(5)),
            (Some(2), Some(4), None)
        );
    }
}
