//! How computers sleep, where those that are cut off come back to, and whose disk the end of power may take.

use std::collections::HashMap;

use den_model::{ComputerId, Idle, Micros, State};
use rusqlite::params;

use crate::{
    Durability, Parts, Pending, Store, StoreError,
    computers::{blob, id_of, one},
    error::{Inside, Op},
};

/// What a row says of its computer's sleep and of its disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Life {
    /// When it sleeps by itself.
    pub idle: Option<Idle>,
    /// Whether it was sent to sleep for being idle, so that a request wakes it.
    pub asleep: bool,
    /// Where it stood when it was cut off or thrown away.
    pub before: Option<State>,
    /// Whether the end of power may take its disk: nobody has said yet that it is written out.
    pub unwritten: bool,
}

impl Store {
    /// Records when a computer sleeps by itself.
    ///
    /// Errors: `no_such_computer`.
    pub fn set_idle(&self, id: ComputerId, idle: Option<Idle>, durability: Durability) -> Pending<()> {
        let text = idle.map(|idle| crate::computers::json(&idle));
        self.write(Op::SetState, durability, Parts::One, move |connection| {
            let mut update = connection.prepare_cached("UPDATE computers SET idle = ?2 WHERE id = ?1")?;
            one(update.execute(params![blob(id), text])?, id)
        })
    }

    /// Records whether a computer sleeps for being idle.
    ///
    /// Errors: `no_such_computer`.
    pub fn set_asleep(&self, id: ComputerId, asleep: bool, durability: Durability) -> Pending<()> {
        self.write(Op::SetState, durability, Parts::One, move |connection| {
            let mut update = connection.prepare_cached("UPDATE computers SET asleep = ?2 WHERE id = ?1")?;
            one(update.execute(params![blob(id), asleep])?, id)
        })
    }

    /// As [`Store::set_state`], with the state that it comes back to, in one.
    ///
    /// Errors: `no_such_computer`.
    pub fn set_state_before(
        &self,
        id: ComputerId,
        state: State,
        before: State,
        changed_at: Micros,
        durability: Durability,
    ) -> Pending<()> {
        self.write(Op::SetState, durability, Parts::One, move |connection| {
            let changed = connection
                .prepare_cached("UPDATE computers SET state = ?2, before = ?3, changed_at = ?4 WHERE id = ?1")?
                .execute(params![blob(id), state.as_str(), before.as_str(), changed_at])?;
            one(changed, id)
        })
    }

    /// Records that the disks of these computers are written out. One that is gone is no error.
    pub fn disks_are_written(&self, ids: Vec<ComputerId>, durability: Durability) -> Pending<()> {
        self.write(Op::SetState, durability, Parts::Several, move |connection| {
            let mut update = connection.prepare_cached("UPDATE computers SET unwritten = 0 WHERE id = ?1")?;
            for id in ids {
                update.execute([blob(id)])?;
            }
            Ok(())
        })
    }

    /// What all rows say of sleep and of disks; computers of which nothing is said are left out.
    pub async fn lives(&self) -> Result<HashMap<ComputerId, Life>, StoreError> {
        self.read_many(Op::ReadComputers, |connection| {
            let sql = "SELECT id, idle, asleep, before, unwritten FROM computers
                       WHERE idle IS NOT NULL OR asleep <> 0 OR before IS NOT NULL OR unwritten <> 0";
            let mut statement = connection.prepare_cached(sql)?;
            let mut rows = statement.query([])?;
            let mut lives = HashMap::new();
            while let Some(row) = rows.next()? {
                let id = id_of(row.get(0)?);
                let wrong = |what: &str, why: String| Inside::Row(format!("the {what} of {id} cannot be read: {why}"));
                let idle = match row.get::<_, Option<String>>(1)? {
                    Some(text) => {
                        Some(serde_json::from_str(&text).map_err(|error| wrong("idle time", error.to_string()))?)
                    }
                    None => None,
                };
                let before = match row.get::<_, Option<String>>(3)? {
                    Some(text) => {
                        Some(State::parse(&text).ok_or_else(|| wrong("state before", format!("`{text}` is none")))?)
                    }
                    None => None,
                };
                lives.insert(id, Life { idle, asleep: row.get(2)?, before, unwritten: row.get(4)? });
            }
            Ok(lives)
        })
        .await
    }
}
