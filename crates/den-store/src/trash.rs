//! Computers on their way out: into the trash and back, or for good.
//!
//! ```text
//! any state ──trash──► 'trashed' ──undelete──► where it stood
//!     │                    │
//!     └──────removing──────┴──► 'removing' ──delete_computer──► no row
//! ```
//!
//! The name is free in both. What is said of how the removal is taken back goes into the same transaction.

use den_model::{ComputerId, ComputerName, ComputerSpec, Micros, State};
use rusqlite::params;

use crate::{
    Durability, NewUndo, Parts, Pending, Store, StoreError,
    computers::{blob, holder, is_constraint, json, one},
    error::Op,
    steps::int,
    undo_rows,
};

impl Store {
    /// Puts a computer into the trash, with how it is taken back: both or neither. Its reason stays. Returns the
    /// number of the latter.
    ///
    /// Errors: `no_such_computer`.
    pub fn trash(&self, id: ComputerId, undo: NewUndo, durability: Durability) -> Pending<u64> {
        self.write(Op::SetState, durability, Parts::Several, move |connection| {
            let changed = connection
                .prepare_cached("UPDATE computers SET state = ?2, changed_at = ?3 WHERE id = ?1")?
                .execute(params![blob(id), State::Trashed.as_str(), undo.at])?;
            one(changed, id)?;
            undo_rows::insert(connection, id, &undo)
        })
    }

    /// Takes a computer out of the trash, as `state` and as `spec` calls it, and marks what put it there, the row
    /// `number`, as taken back.
    ///
    /// Errors: `no_such_computer`; `name_taken` with the holder; `nothing_to_undo`.
    pub fn undelete(
        &self,
        id: ComputerId,
        spec: &ComputerSpec,
        state: State,
        number: u64,
        at: Micros,
        durability: Durability,
    ) -> Pending<()> {
        let (name, spec): (ComputerName, _) = (spec.name.clone(), json(spec));
        self.write(Op::SetState, durability, Parts::Several, move |connection| {
            undo_rows::mark_undone(connection, number, at)?;
            let changed = connection
                .prepare_cached(
                    "UPDATE computers SET state = ?2, changed_at = ?3, name = ?4, spec = ?5
                     WHERE id = ?1 AND state = 'trashed'",
                )?
                .execute(params![blob(id), state.as_str(), at, name.as_str(), spec]);
            match changed {
                Ok(changed) => one(changed, id),
                Err(error) if is_constraint(&error) => match holder(connection, &name)? {
                    Some(holder) => Err(StoreError::NameTaken { name, holder }.into()),
                    None => Err(error.into()),
                },
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Begins to remove a computer for good, and leaves word of it: why it cannot be taken back.
    ///
    /// Errors: `no_such_computer`.
    pub fn removing(&self, id: ComputerId, undo: NewUndo, why: &'static str, durability: Durability) -> Pending<()> {
        self.write(Op::SetState, durability, Parts::Several, move |connection| {
            let trashed = connection
                .prepare_cached(
                    "UPDATE undo SET gone = ?2 WHERE undone_at IS NULL AND number = (SELECT max(number) FROM undo
                     WHERE computer = ?1 AND EXISTS (SELECT 1 FROM computers WHERE id = ?1 AND state = 'trashed'))",
                )?
                .execute(params![blob(id), why])?;
            if trashed == 0 {
                let number = undo_rows::insert(connection, id, &undo)?;
                connection
                    .prepare_cached("UPDATE undo SET gone = ?2 WHERE number = ?1")?
                    .execute(params![int(number), why])?;
            }
            undo_rows::prune_gone(connection)?;
            let changed = connection
                .prepare_cached("UPDATE computers SET state = ?2, reason = NULL, changed_at = ?3 WHERE id = ?1")?
                .execute(params![blob(id), State::Removing.as_str(), undo.at])?;
            one(changed, id)
        })
    }

    /// Takes back a removal, for good or into the trash, that did not come about: the computer is `state` again.
    ///
    /// Errors: `no_such_computer`.
    pub fn not_removed(
        &self,
        id: ComputerId,
        state: State,
        reason: Option<String>,
        at: Micros,
        durability: Durability,
    ) -> Pending<()> {
        self.write(Op::SetState, durability, Parts::Several, move |connection| {
            // The last that was recorded of it is its removal.
            connection
                .prepare_cached(
                    "DELETE FROM undo WHERE undone_at IS NULL
                     AND number = (SELECT max(number) FROM undo WHERE computer = ?1)",
                )?
                .execute([blob(id)])?;
            let changed = connection
                .prepare_cached("UPDATE computers SET state = ?2, reason = ?3, changed_at = ?4 WHERE id = ?1")?
                .execute(params![blob(id), state.as_str(), reason, at])?;
            one(changed, id)
        })
    }

    /// Returns once all that was written before is safe from the end of power.
    pub fn flush(&self) -> Pending<()> {
        self.write(Op::Commit, Durability::Power, Parts::One, |_| Ok(()))
    }
}
