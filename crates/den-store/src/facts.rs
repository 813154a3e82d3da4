//! What translations of other interfaces know of what they made: text under a kind and an id, which only they read.

use rusqlite::params;

use crate::{Durability, Parts, Pending, Store, StoreError, error::Op};

impl Store {
    /// Records what is known of `id`, in place of what was known of it.
    pub fn put_fact(&self, kind: &'static str, id: String, fact: String, durability: Durability) -> Pending<()> {
        self.write(Op::WriteFacts, durability, Parts::One, move |connection| {
            connection
                .prepare_cached(
                    "INSERT INTO facts (kind, id, fact) VALUES (?1, ?2, ?3)
                     ON CONFLICT (kind, id) DO UPDATE SET fact = excluded.fact",
                )?
                .execute(params![kind, id, fact])?;
            Ok(())
        })
    }

    /// Forgets what is known of `id`; returns whether anything was.
    pub fn delete_fact(&self, kind: &'static str, id: String, durability: Durability) -> Pending<bool> {
        self.write(Op::WriteFacts, durability, Parts::One, move |connection| {
            let deleted = connection
                .prepare_cached("DELETE FROM facts WHERE kind = ?1 AND id = ?2")?
                .execute(params![kind, id])?;
            Ok(deleted > 0)
        })
    }

    /// Returns all that is known of a kind, by id.
    pub async fn facts(&self, kind: &'static str) -> Result<Vec<(String, String)>, StoreError> {
        self.read_many(Op::ReadFacts, move |connection| {
            let mut statement = connection.prepare_cached("SELECT id, fact FROM facts WHERE kind = ?1 ORDER BY id")?;
            let rows = statement.query_map([kind], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }
}
