//! Taking back a create that nobody was told of.

use den_model::ComputerId;

use crate::{Durability, Parts, Pending, Store, computers::blob, error::Op};

impl Store {
    /// Forgets a computer that was not made after all, with its steps and, unlike
    /// [`Store::delete_computer`], the idempotency key of its create, so that a repeat may make it. One that
    /// has no row is no error.
    pub fn undo_create(&self, id: ComputerId, durability: Durability) -> Pending<()> {
        self.write(Op::DeleteComputer, durability, Parts::Several, move |connection| {
            connection.prepare_cached("DELETE FROM idempotency WHERE computer = ?1")?.execute([blob(id)])?;
            connection.prepare_cached("DELETE FROM computers WHERE id = ?1")?.execute([blob(id)])?;
            Ok(())
        })
    }
}
