//! What computers may reach, and who changed it when. The policy is text here: only the gate's crate
//! reads it.

use den_model::{ComputerId, Micros};
use rusqlite::params;

use crate::{
    Durability, LIST_ROWS_MAX, NewUndo, Parts, Pending, Store, StoreError,
    computers::{blob, one},
    error::Op,
    undo_rows,
};

/// Changes that are kept for one computer; the oldest go first.
pub const NET_CHANGES_KEPT_MAX: u32 = 1000;

/// One change of what a computer may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetChange {
    /// When.
    pub at: Micros,
    /// Who asked for it.
    pub who: String,
    /// The policy from then on.
    pub net: String,
}

impl Store {
    /// Records another policy for a computer, who asked for it, and how it is taken back: all or nothing. Returns
    /// the number of the latter.
    ///
    /// Errors: `no_such_computer`; `nothing_to_undo` where what it takes back was taken back already.
    pub fn set_net(&self, id: ComputerId, change: NetChange, undo: NewUndo, durability: Durability) -> Pending<u64> {
        self.write(Op::SetNet, durability, Parts::Several, move |connection| {
            let NetChange { at, who, net } = change;
            let changed = connection
                .prepare_cached("UPDATE computers SET net = ?2 WHERE id = ?1")?
                .execute(params![blob(id), net])?;
            one(changed, id)?;
            connection
                .prepare_cached(
                    "INSERT INTO net_changes (computer, number, at, who, net)
                     SELECT ?1, coalesce(max(number), 0) + 1, ?2, ?3, ?4 FROM net_changes WHERE computer = ?1",
                )?
                .execute(params![blob(id), at, who, net])?;
            connection
                .prepare_cached(
                    "DELETE FROM net_changes WHERE computer = ?1 AND number <=
                     (SELECT max(number) FROM net_changes WHERE computer = ?1) - ?2",
                )?
                .execute(params![blob(id), NET_CHANGES_KEPT_MAX])?;
            undo_rows::insert(connection, id, &undo)
        })
    }

    /// Returns the latest `limit` changes (at most [`LIST_ROWS_MAX`]), the newest first.
    pub async fn net_changes(&self, id: ComputerId, limit: usize) -> Result<Vec<NetChange>, StoreError> {
        let limit = limit.min(LIST_ROWS_MAX) as i64;
        self.read_few(Op::ReadComputers, |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT at, who, net FROM net_changes WHERE computer = ?1 ORDER BY number DESC LIMIT ?2",
            )?;
            let rows = statement.query_map(params![blob(id), limit], |row| {
                Ok(NetChange { at: row.get(0)?, who: row.get(1)?, net: row.get(2)? })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}
