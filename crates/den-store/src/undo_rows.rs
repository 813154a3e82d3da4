//! What was done to computers and can be taken back. What exactly, and how, is text here: only `den-control`
//! reads it.
//!
//! ```text
//! rm · restore · merge · policy ──► the thing and its row: one transaction
//! undo ──► a row of its own (forth 0), and the one that it takes back is marked
//! gone for good ──► the row of the removal stays for a while, to say so
//! ```

use den_model::{ComputerId, Micros, Snapshot, Step};
use rusqlite::{Connection, Row, params};

use crate::{
    Durability, LIST_ROWS_MAX, Parts, Pending, Store, StoreError,
    computers::{blob, id_of},
    error::{Inside, Op},
    history, steps,
    steps::int,
};

/// Rows that are kept for one computer; the oldest go first.
pub const UNDO_KEPT_MAX: u32 = 100;
/// Rows that are kept of computers that are gone for good, of all together.
pub const UNDO_GONE_KEPT_MAX: u32 = 1000;

const SELECT: &str = "SELECT number, at, who, computer, name, what, takes_back, forth, undone_at, gone FROM undo";

/// Something that can be taken back, about to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUndo {
    /// When it was done.
    pub at: Micros,
    /// Who asked for it.
    pub who: String,
    /// What its computer is called.
    pub name: String,
    /// What was done, and what leads back, as JSON.
    pub what: String,
    /// The row that it takes back, where it does.
    pub takes_back: Option<u64>,
}

/// Something that can be taken back, or could.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UndoRow {
    /// Counts up over all computers; never given out twice.
    pub number: u64,
    /// When it was done.
    pub at: Micros,
    /// Who asked for it.
    pub who: String,
    /// To which computer.
    pub computer: ComputerId,
    /// What that was called then.
    pub name: String,
    /// What was done, and what leads back, as JSON.
    pub what: String,
    /// The row that it took back, where it did.
    pub takes_back: Option<u64>,
    /// Whether it did something, or did it again; else it took something back.
    pub forth: bool,
    /// When it was taken back.
    pub undone_at: Option<Micros>,
    /// Why it can never be taken back.
    pub gone: Option<String>,
}

/// Whose rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum UndoOf {
    /// Everyone's.
    #[default]
    All,
    /// Those of these computers, and those of what was called by a name and is gone for good.
    Some {
        /// The computers.
        computers: Vec<ComputerId>,
        /// The name.
        gone: Option<String>,
    },
}

impl Store {
    /// Records a kept state and how what is done next is taken back: both or neither. Returns the number of the
    /// latter.
    ///
    /// Errors: as [`Store::insert_snapshot`]; `nothing_to_undo` where what it takes back was taken back already.
    pub fn insert_snapshot_undo(
        &self,
        id: ComputerId,
        snapshot: &Snapshot,
        undo: NewUndo,
        durability: Durability,
    ) -> Pending<u64> {
        let inserting = history::inserting(id, snapshot);
        self.write(Op::InsertSnapshot, durability, Parts::Several, move |connection| {
            inserting(connection)?;
            insert(connection, id, &undo)
        })
    }

    /// As [`Store::insert_snapshot_undo`], of a step.
    ///
    /// Errors: as [`Store::insert_step`]; `nothing_to_undo`.
    pub fn insert_step_undo(&self, id: ComputerId, step: &Step, undo: NewUndo, durability: Durability) -> Pending<u64> {
        let inserting = steps::inserting(id, step);
        self.write(Op::InsertStep, durability, Parts::Several, move |connection| {
            inserting(connection)?;
            insert(connection, id, &undo)
        })
    }

    /// Forgets what did not come about after all, and that it took something back. None is no error.
    pub fn forget_undo(&self, number: u64, durability: Durability) -> Pending<()> {
        self.write(Op::InsertUndo, durability, Parts::Several, move |connection| forget(connection, number))
    }

    /// As [`Store::forget_undo`], of the row of `id` whose text has `value` at `path` (as `$.before`).
    pub fn forget_undo_of(
        &self,
        id: ComputerId,
        path: &'static str,
        value: u64,
        durability: Durability,
    ) -> Pending<()> {
        self.write(Op::InsertUndo, durability, Parts::Several, move |connection| {
            let found = connection
                .prepare_cached("SELECT number FROM undo WHERE computer = ?1 AND json_extract(what, ?2) = ?3")?
                .query_map(params![blob(id), path, int(value)], |row| row.get::<_, i64>(0))?
                .collect::<Result<Vec<_>, _>>()?;
            found.into_iter().try_for_each(|number| forget(connection, number as u64))
        })
    }

    /// Returns one row.
    pub async fn undo_row(&self, number: u64) -> Result<Option<UndoRow>, StoreError> {
        self.read_few(Op::ReadUndo, |connection| {
            let sql = format!("{SELECT} WHERE number = ?1");
            connection.prepare_cached(&sql)?.query([int(number)])?.next()?.map(fetch).transpose().map_err(Inside::from)
        })
    }

    /// Returns the newest `limit` rows (at most [`LIST_ROWS_MAX`]), the newest first.
    pub async fn undo_rows(&self, of: UndoOf, limit: usize) -> Result<Vec<UndoRow>, StoreError> {
        let limit = limit.min(LIST_ROWS_MAX);
        self.read_many(Op::ReadUndo, move |connection| {
            let most = int(limit as u64);
            let mut found = Vec::new();
            match of {
                UndoOf::All => {
                    let sql = format!("{SELECT} ORDER BY number DESC LIMIT ?1");
                    collect(&mut found, connection.prepare_cached(&sql)?.query([most])?)?;
                }
                UndoOf::Some { computers, gone } => {
                    let sql = format!("{SELECT} WHERE computer = ?1 ORDER BY number DESC LIMIT ?2");
                    let mut statement = connection.prepare_cached(&sql)?;
                    for id in computers {
                        collect(&mut found, statement.query(params![blob(id), most])?)?;
                    }
                    if let Some(name) = gone {
                        let sql = format!(
                            "{SELECT} WHERE gone IS NOT NULL AND name = ?1 AND computer NOT IN (SELECT id FROM computers)
                             ORDER BY number DESC LIMIT ?2"
                        );
                        collect(&mut found, connection.prepare_cached(&sql)?.query(params![name, most])?)?;
                    }
                    found.sort_by_key(|row| std::cmp::Reverse(row.number));
                    found.truncate(limit);
                }
            }
            Ok(found)
        })
        .await
    }
}

/// Writes a row; the oldest beyond [`UNDO_KEPT_MAX`] go.
pub(crate) fn insert(connection: &Connection, id: ComputerId, undo: &NewUndo) -> Result<u64, Inside> {
    if let Some(number) = undo.takes_back {
        mark_undone(connection, number, undo.at)?;
    }
    connection
        .prepare_cached(
            "INSERT INTO undo (at, who, computer, name, what, takes_back, forth)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, coalesce((SELECT 1 - forth FROM undo WHERE number = ?6), 1))",
        )?
        .execute(params![undo.at, undo.who, blob(id), undo.name, undo.what, undo.takes_back.map(int)])?;
    let number = connection.last_insert_rowid() as u64;
    connection
        .prepare_cached(
            "DELETE FROM undo WHERE computer = ?1 AND number <=
             (SELECT number FROM undo WHERE computer = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)",
        )?
        .execute(params![blob(id), UNDO_KEPT_MAX])?;
    Ok(number)
}

/// What was done is taken back: once.
pub(crate) fn mark_undone(connection: &Connection, number: u64, at: Micros) -> Result<(), Inside> {
    let changed = connection
        .prepare_cached("UPDATE undo SET undone_at = ?2 WHERE number = ?1 AND undone_at IS NULL AND gone IS NULL")?
        .execute(params![int(number), at])?;
    if changed == 0 { Err(StoreError::NothingToUndo { number }.into()) } else { Ok(()) }
}

/// Old rows of what is gone for good go.
pub(crate) fn prune_gone(connection: &Connection) -> Result<(), Inside> {
    connection
        .prepare_cached(
            "DELETE FROM undo WHERE gone IS NOT NULL AND number <=
             (SELECT number FROM undo WHERE gone IS NOT NULL ORDER BY number DESC LIMIT 1 OFFSET ?1)",
        )?
        .execute([UNDO_GONE_KEPT_MAX])?;
    Ok(())
}

fn forget(connection: &Connection, number: u64) -> Result<(), Inside> {
    connection
        .prepare_cached(
            "UPDATE undo SET undone_at = NULL WHERE number = (SELECT takes_back FROM undo WHERE number = ?1)",
        )?
        .execute([int(number)])?;
    connection.prepare_cached("DELETE FROM undo WHERE number = ?1")?.execute([int(number)])?;
    Ok(())
}

fn collect(found: &mut Vec<UndoRow>, mut rows: rusqlite::Rows<'_>) -> Result<(), Inside> {
    while let Some(row) = rows.next()? {
        found.push(fetch(row)?);
    }
    Ok(())
}

fn fetch(row: &Row<'_>) -> rusqlite::Result<UndoRow> {
    Ok(UndoRow {
        number: row.get::<_, i64>(0)? as u64,
        at: row.get(1)?,
        who: row.get(2)?,
        computer: id_of(row.get(3)?),
        name: row.get(4)?,
        what: row.get(5)?,
        takes_back: row.get::<_, Option<i64>>(6)?.map(|number| number as u64),
        forth: row.get(7)?,
        undone_at: row.get(8)?,
        gone: row.get(9)?,
    })
}
