//! Changes of several computers that are there all or not at all.

use den_model::{ComputerId, Micros, State};
use rusqlite::params;

use crate::{
    Durability, Parts, Pending, Store,
    computers::{blob, one},
    error::Op,
};

impl Store {
    /// Records that all of these are in one state, for no reason. The boot id of each stays.
    ///
    /// Errors: `no_such_computer`, and none of them is changed.
    pub fn all_are(
        &self,
        ids: Vec<ComputerId>,
        state: State,
        changed_at: Micros,
        durability: Durability,
    ) -> Pending<()> {
        let parts = if ids.len() == 1 { Parts::One } else { Parts::Several };
        self.write(Op::SetState, durability, parts, move |connection| {
            let mut update = connection
                .prepare_cached("UPDATE computers SET state = ?2, reason = NULL, changed_at = ?3 WHERE id = ?1")?;
            for id in ids {
                one(update.execute(params![blob(id), state.as_str(), changed_at])?, id)?;
            }
            Ok(())
        })
    }
}
