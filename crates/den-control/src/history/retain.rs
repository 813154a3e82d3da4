//! Which states go when there are many, or when the disk fills.
//!
//! ```text
//! newest ─────────────────────────────────────────────────────────────────────► oldest
//! all of the newest hundred │ then one an hour for a day │ then one a day for a year │ none
//! ```
//!
//! That is for those that nobody asked for. What has a name stays until it is removed by name, and so does
//! what a computer was made as. A state that is looked at stays while it is.

use std::{collections::HashSet, sync::Arc};

use den_model::{Bytes, EventKind, Micros, Snapshot};
use den_store::Durability;
use serde_json::json;

use super::Turn;
use crate::{
    Error,
    control::{Inner, blocking, now},
    handle::Handle,
    limits::{ROOM_WAIT, STATES_DAYS, STATES_DISK_PERCENT, STATES_DROPPED_AT_ONCE},
};

const HOUR: Micros = 3_600_000_000;
const DAY: Micros = 24 * HOUR;

/// Which of these rows are too many: the oldest first.
fn surplus(rows: &[Snapshot], newest: usize, at: Micros) -> Vec<u64> {
    let mut gone = Vec::new();
    let mut spans = HashSet::new();
    let old = rows.iter().rev().filter(|row| !row.dropped && row.is_automatic()).skip(newest);
    for row in old {
        let age = at.saturating_sub(row.created_at);
        let span = if age < DAY { (HOUR, row.created_at / HOUR) } else { (DAY, row.created_at / DAY) };
        if age > STATES_DAYS * DAY || !spans.insert(span) {
            gone.push(row.number);
        }
    }
    gone.reverse();
    gone
}

/// Thins, in the background.
pub(super) fn later(inner: &Arc<Inner>, handle: &Arc<Handle>) {
    let (inner, handle) = (Arc::clone(inner), Arc::clone(handle));
    inner.history.work.clone().spawn(async move {
        // One that is being removed needs none.
        let Ok(turn) = handle.history.turn().await else { return };
        if let Err(error) = thin(&inner, &handle, &turn).await {
            tracing::warn!(computer = %handle.id, error = error.chain(), "old states are not let go");
        }
    });
}

async fn thin(inner: &Arc<Inner>, handle: &Arc<Handle>, turn: &Turn) -> Result<(), Error> {
    let mut gone = surplus(&handle.history.rows(), inner.history.newest, now());
    gone.retain(|&number| may_go(handle, number));
    if !gone.is_empty() {
        tracing::info!(computer = %handle.id, name = %handle.name(), states = ?gone, "old states are let go: there are many");
        let_go(inner, handle, turn, gone).await?;
    }
    make_room(inner, handle, turn).await?;
    Ok(())
}

/// Where the disk fills, lets the oldest of those go that nobody asked for, and has their bytes freed, until it
/// does not. Returns how many. A disk that its own files fill is not waited for again and again.
pub(super) async fn make_room(inner: &Arc<Inner>, handle: &Arc<Handle>, turn: &Turn) -> Result<usize, Error> {
    let id = handle.id;
    let limit = Bytes(handle.limits().disk.0 / 100 * STATES_DISK_PERCENT);
    let mut count = 0;
    loop {
        let disks = inner.disks()?;
        if blocking(move || disks.usage(id)).await?.is_none_or(|used| used <= limit) {
            return Ok(count);
        }
        let rows = handle.history.rows();
        let oldest = rows.iter().filter(|row| !row.dropped && row.is_automatic() && may_go(handle, row.number));
        let gone: Vec<u64> = oldest.map(|row| row.number).take(STATES_DROPPED_AT_ONCE).collect();
        if gone.is_empty() {
            return Ok(count);
        }
        count += gone.len();
        tracing::info!(computer = %id, name = %handle.name(), states = ?gone, "the oldest states are let go: the disk fills");
        let detail = json!({ "states": gone, "why": "the disk fills" });
        inner.events.tell(EventKind::StateDropped, Some(handle), None, detail);
        let_go(inner, handle, turn, gone).await?;
        if !handle.history.may_wait_for_room() {
            return Ok(count);
        }
        let disks = inner.disks()?;
        // What nothing else holds is freed by the kernel's cleaner, which sleeps for half a minute if nobody asks.
        blocking(move || disks.reclaim(id, limit, ROOM_WAIT)).await??;
    }
}

/// Neither what the disk comes from nor what is looked at.
fn may_go(handle: &Handle, number: u64) -> bool {
    handle.history.head() != number && !handle.history.is_pinned(number)
}

/// Lets states go: their rows, then their bytes.
pub(super) async fn let_go(
    inner: &Arc<Inner>,
    handle: &Arc<Handle>,
    _turn: &Turn,
    gone: Vec<u64>,
) -> Result<(), Error> {
    let (history, id) = (&handle.history, handle.id);
    // The newest row says what the disk comes from and which number is next; others lead to what forks share.
    let newest = history.next_number() - 1;
    let keeps = |number: &u64| *number == newest || inner.history.is_forked(id, *number);
    let mut keep: Vec<u64> = gone.iter().copied().filter(keeps).collect();
    keep.sort_unstable();
    inner.store.delete_snapshots(id, gone.clone(), keep.clone(), Durability::Process).await?;
    history.forget(&gone, &keep);
    inner.metrics.states_dropped(gone.len());
    let disks = inner.disks()?;
    blocking(move || {
        for number in gone {
            if let Err(error) = disks.drop_snapshot(id, number) {
                tracing::warn!(computer = %id, number, error = crate::errors::chain(&error), "a state is left until the next start");
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use den_model::SnapshotKind;

    use super::*;

    fn row(number: u64, created_at: Micros) -> Snapshot {
        Snapshot {
            number,
            step: number,
            label: None,
            kind: SnapshotKind::Auto,
            created_at,
            frozen_us: 0,
            torn: false,
            generation: number,
            parent: number.checked_sub(1),
            went_to: None,
            dropped: false,
        }
    }

    #[test]
    fn the_newest_stay_and_the_others_are_thinned_with_age() {
        // One each ten minutes, for three days, the last one now.
        let count = 3 * 24 * 6;
        let at = 100 * DAY;
        let rows: Vec<_> = (1..=count).map(|n| row(n, at - (count - n) as i64 * HOUR / 6)).collect();
        let gone: HashSet<u64> = surplus(&rows, 100, at).into_iter().collect();
        let left: Vec<_> = rows.iter().filter(|row| !gone.contains(&row.number)).collect();
        assert!(left.iter().rev().take(100).map(|row| row.number).eq((count - 99..=count).rev()));
        let old = &left[..left.len() - 100];
        // What is left of a day after the newest hundred, which are nearly 17 hours: an hour each; then a day each.
        let hours = old.iter().filter(|row| at - row.created_at < DAY).count();
        assert!((7..=9).contains(&hours), "{hours}");
        let days = old.iter().filter(|row| at - row.created_at >= DAY).count();
        assert!((2..=3).contains(&days), "{days}");
        assert_eq!(
            surplus(&left.into_iter().cloned().collect::<Vec<_>>(), 100, at),
            Vec::<u64>::new(),
            "once is enough"
        );
    }

    #[test]
    fn what_somebody_named_or_made_stays() {
        let mut rows: Vec<_> = (0..10).map(|n| row(n, n as i64)).collect();
        rows[0].kind = SnapshotKind::Made;
        rows[3].label = Some("here".parse().unwrap());
        rows[4].kind = SnapshotKind::Named;
        rows[5].dropped = true;
        // All of one hour, so that of the older ones only the newest stays.
        assert_eq!(surplus(&rows, 2, HOUR - 1), [1, 2, 6]);
        assert_eq!(surplus(&rows, 2, 400 * DAY), [1, 2, 6, 7]);
        assert_eq!(surplus(&rows, 100, HOUR), Vec::<u64>::new());
    }
}
