//! Kept states of computers, and which step each follows.

use den_model::{ChangeCount, ComputerId, Snapshot, SnapshotKind, StateLabel, Step, StepNumber};
use rusqlite::{Connection, Row, ffi, params};

use crate::{
    Durability, LIST_ROWS_MAX, Order, Parts, Pending, Store, StoreError,
    computers::{blob, id_of, is_constraint, one},
    error::{Inside, Op},
    steps::{extended, int, select as select_steps, select_sql as select_steps_sql},
};

const SELECT: &str = "SELECT number, step, label, kind, created_at, frozen_us, torn, generation, parent, went_to, dropped FROM snapshots";

impl Store {
    /// Records a state that is kept.
    ///
    /// Errors: `no_such_computer`; `label_taken`; `snapshot_exists`.
    pub fn insert_snapshot(&self, id: ComputerId, snapshot: &Snapshot, durability: Durability) -> Pending<()> {
        self.write(Op::InsertSnapshot, durability, Parts::One, inserting(id, snapshot))
    }

    /// Records what is known of a state only after it was taken.
    ///
    /// Errors: `no_such_snapshot`.
    pub fn set_snapshot_taken(
        &self,
        id: ComputerId,
        number: u64,
        generation: u64,
        frozen_us: u64,
        torn: bool,
        durability: Durability,
    ) -> Pending<()> {
        self.write(Op::InsertSnapshot, durability, Parts::One, move |connection| {
            let changed = connection
                .prepare_cached(
                    "UPDATE snapshots SET generation = ?3, frozen_us = ?4, torn = ?5 WHERE computer = ?1 AND number = ?2",
                )?
                .execute(params![blob(id), int(number), int(generation), int(frozen_us), torn])?;
            found(changed, id, number)
        })
    }

    /// Records that a state follows these steps, and how many paths the last of them changed, where that is known.
    /// Steps that have no row any more are no error.
    pub fn set_step_snapshot(
        &self,
        id: ComputerId,
        steps: Vec<StepNumber>,
        snapshot: u64,
        count: Option<ChangeCount>,
        durability: Durability,
    ) -> Pending<()> {
        let parts = if steps.len() == 1 { Parts::One } else { Parts::Several };
        self.write(Op::EndStep, durability, parts, move |connection| {
            let mut update = connection.prepare_cached(
                "UPDATE steps SET snapshot = ?3, added = coalesce(?4, added), changed = coalesce(?5, changed),
                        removed = coalesce(?6, removed)
                 WHERE computer = ?1 AND number = ?2",
            )?;
            for (index, &step) in steps.iter().enumerate() {
                let count = count.filter(|_| index + 1 == steps.len());
                let part = |part: fn(&ChangeCount) -> u64| count.as_ref().map(part).map(int);
                let (added, changed, removed) = (part(|c| c.added), part(|c| c.changed), part(|c| c.removed));
                update.execute(params![blob(id), int(step), int(snapshot), added, changed, removed])?;
            }
            Ok(())
        })
    }

    /// Gives a kept state a name, or takes it away; a state that gets one is `named` from then on.
    ///
    /// Errors: `no_such_snapshot`; `label_taken`.
    pub fn set_label(
        &self,
        id: ComputerId,
        number: u64,
        label: Option<StateLabel>,
        kind: SnapshotKind,
        durability: Durability,
    ) -> Pending<()> {
        self.write(Op::InsertSnapshot, durability, Parts::One, move |connection| {
            let changed = connection
                .prepare_cached(
                    "UPDATE snapshots SET label = ?3, kind = ?4 WHERE computer = ?1 AND number = ?2 AND dropped = 0",
                )?
                .execute(params![blob(id), int(number), label.as_ref().map(StateLabel::as_str), kind.as_str()]);
            match (changed, label) {
                (Ok(changed), _) => found(changed, id, number),
                (Err(error), Some(label)) if is_constraint(&error) => {
                    Err(StoreError::LabelTaken { computer: id, label }.into())
                }
                (Err(error), _) => Err(error.into()),
            }
        })
    }

    /// Returns the kept states of a computer by rising number, those whose bytes are gone too.
    pub async fn snapshots(&self, id: ComputerId) -> Result<Vec<Snapshot>, StoreError> {
        self.read_few(Op::ReadSnapshots, |connection| {
            let sql = format!("{SELECT} WHERE computer = ?1 ORDER BY number");
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([blob(id)])?;
            let mut snapshots = Vec::new();
            while let Some(row) = rows.next()? {
                snapshots.push(fetch(row)?);
            }
            Ok(snapshots)
        })
    }

    /// Returns the kept states of all computers: what a start looks through.
    pub async fn all_snapshots(&self) -> Result<Vec<(ComputerId, Snapshot)>, StoreError> {
        self.read_many(Op::ReadSnapshots, |connection| {
            let sql = format!("{} ORDER BY computer, number", SELECT.replace("dropped FROM", "dropped, computer FROM"));
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([])?;
            let mut snapshots = Vec::new();
            while let Some(row) = rows.next()? {
                snapshots.push((id_of(row.get(11)?), fetch(row)?));
            }
            Ok(snapshots)
        })
        .await
    }

    /// Forgets states. What was made from one of them is from then on made from what that one was made from.
    /// One that `keep` names stays as a row without a label, marked as dropped. Those without a row are no error.
    pub fn delete_snapshots(
        &self,
        id: ComputerId,
        numbers: Vec<u64>,
        keep: Vec<u64>,
        durability: Durability,
    ) -> Pending<()> {
        self.write(Op::DeleteSnapshots, durability, Parts::Several, move |connection| {
            for number in numbers {
                let key = params![blob(id), int(number)];
                if keep.contains(&number) {
                    connection
                        .prepare_cached(
                            "UPDATE snapshots SET dropped = 1, label = NULL WHERE computer = ?1 AND number = ?2",
                        )?
                        .execute(key)?;
                    continue;
                }
                connection
                    .prepare_cached(
                        "UPDATE snapshots SET parent = (SELECT parent FROM snapshots WHERE computer = ?1 AND number = ?2)
                         WHERE computer = ?1 AND parent = ?2
                           AND EXISTS (SELECT 1 FROM snapshots WHERE computer = ?1 AND number = ?2)",
                    )?
                    .execute(key)?;
                connection
                    .prepare_cached("DELETE FROM snapshots WHERE computer = ?1 AND number = ?2")?
                    .execute(key)?;
            }
            Ok(())
        })
    }

    /// Returns the newest step that has ended and follows no kept state yet, if it is newer than all that do.
    pub async fn unkept_step(&self, id: ComputerId) -> Result<Option<StepNumber>, StoreError> {
        self.read_few(Op::ReadSteps, |connection| {
            let newest: Option<i64> = connection
                .prepare_cached("SELECT max(number) FROM steps WHERE computer = ?1 AND end IS NOT NULL")?
                .query_row([blob(id)], |row| row.get(0))?;
            let Some(newest) = newest else { return Ok(None) };
            let kept: Option<i64> = connection
                .prepare_cached("SELECT snapshot FROM steps WHERE computer = ?1 AND number = ?2")?
                .query_row(params![blob(id), newest], |row| row.get(0))?;
            Ok(kept.is_none().then_some(newest as u64))
        })
    }

    /// Returns up to `limit` steps as [`Store::steps`] does, of those whose command has `text` in it.
    pub async fn steps_grep(
        &self,
        id: ComputerId,
        text: String,
        after: Option<StepNumber>,
        limit: usize,
        order: Order,
    ) -> Result<Vec<Step>, StoreError> {
        let limit = limit.min(LIST_ROWS_MAX);
        self.read_many(Op::ReadSteps, move |connection| {
            let (beyond, from) = order.beyond(after);
            // The command is looked at as it reads, not as it is stored.
            let sql = select_steps_sql(&format!(
                "WHERE computer = ?1 AND number {beyond} AND instr(
                     (SELECT group_concat(value, ' ') FROM json_each(argv)), ?3) > 0 ORDER BY number {} LIMIT ?4",
                order.direction()
            ));
            select_steps(connection, &sql, params![blob(id), from, text, int(limit as u64)])
        })
        .await
    }
}

/// Writes the row of a state.
pub(crate) fn inserting(
    id: ComputerId,
    snapshot: &Snapshot,
) -> impl FnOnce(&Connection) -> Result<(), Inside> + Send + 'static + use<> {
    let Snapshot { number, step, kind, created_at, frozen_us, torn, generation, parent, went_to, dropped, .. } =
        *snapshot;
    let label = snapshot.label.clone();
    move |connection| {
        let inserted = connection
            .prepare_cached(
                "INSERT INTO snapshots (computer, number, step, label, kind, created_at, frozen_us, torn, generation,
                                        parent, went_to, dropped)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            )?
            .execute(params![
                blob(id),
                int(number),
                int(step),
                label.as_ref().map(StateLabel::as_str),
                kind.as_str(),
                created_at,
                int(frozen_us),
                torn,
                int(generation),
                parent.map(int),
                went_to.map(int),
                dropped
            ]);
        match inserted {
            Ok(_) => Ok(()),
            Err(error) if extended(&error) == Some(ffi::SQLITE_CONSTRAINT_FOREIGNKEY) => {
                Err(StoreError::NoSuchComputer { computer: id }.into())
            }
            Err(error) if is_constraint(&error) => Err(match (label, has(connection, id, number)?) {
                (Some(label), false) => StoreError::LabelTaken { computer: id, label },
                _ => StoreError::SnapshotExists { computer: id, number },
            }
            .into()),
            Err(error) => Err(error.into()),
        }
    }
}

fn has(connection: &Connection, id: ComputerId, number: u64) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT 1 FROM snapshots WHERE computer = ?1 AND number = ?2")?
        .exists(params![blob(id), int(number)])
}

fn found(changed: usize, computer: ComputerId, number: u64) -> Result<(), Inside> {
    one(changed, computer).map_err(|_| StoreError::NoSuchSnapshot { computer, number }.into())
}

fn fetch(row: &Row<'_>) -> Result<Snapshot, Inside> {
    let unsigned = |index| row.get::<_, i64>(index).map(|number| number as u64);
    let optional = |index| row.get::<_, Option<i64>>(index).map(|number| number.map(|number| number as u64));
    let number = unsigned(0)?;
    let wrong = |what: &str, text: &str| Inside::Row(format!("the {what} of a snapshot {number} is `{text}`"));
    let label: Option<String> = row.get(2)?;
    let kind: String = row.get(3)?;
    Ok(Snapshot {
        number,
        step: unsigned(1)?,
        label: label.map(|text| text.parse().map_err(|_| wrong("label", &text))).transpose()?,
        kind: SnapshotKind::parse(&kind).ok_or_else(|| wrong("kind", &kind))?,
        created_at: row.get(4)?,
        frozen_us: unsigned(5)?,
        torn: row.get(6)?,
        generation: unsigned(7)?,
        parent: optional(8)?,
        went_to: optional(9)?,
        dropped: row.get(10)?,
    })
}
