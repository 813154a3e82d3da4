//! The sizes of computers, as they are changed while those are there.

use den_model::{ComputerId, Limits};
use rusqlite::params;

use crate::{
    Durability, NewUndo, Parts, Pending, Store,
    computers::{blob, json, one},
    error::Op,
    undo_rows,
};

impl Store {
    /// Records another size of a computer, and how it is taken back: both or neither. Returns the number of the
    /// latter.
    ///
    /// Errors: `no_such_computer`; `nothing_to_undo` where what it takes back was taken back already.
    pub fn set_limits(&self, id: ComputerId, limits: Limits, undo: NewUndo, durability: Durability) -> Pending<u64> {
        self.write(Op::SetState, durability, Parts::Several, move |connection| {
            let changed = connection
                .prepare_cached("UPDATE computers SET spec = json_set(spec, '$.limits', json(?2)) WHERE id = ?1")?
                .execute(params![blob(id), json(&limits)])?;
            one(changed, id)?;
            undo_rows::insert(connection, id, &undo)
        })
    }
}
