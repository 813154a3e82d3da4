//! Pools. Who is in which is in the rows of computers.

use den_model::{Micros, Pool, PoolLimits, PoolName};
use rusqlite::params;

use crate::{
    Durability, Parts, Pending, Store, StoreError,
    computers::{is_constraint, json},
    error::{Inside, Op},
    steps::int,
};

impl Store {
    /// Records a new pool, and returns its number, which no other ever gets.
    ///
    /// Errors: `pool_exists`.
    pub fn insert_pool(
        &self,
        name: PoolName,
        limits: PoolLimits,
        created_at: Micros,
        durability: Durability,
    ) -> Pending<u64> {
        self.write(Op::WritePools, durability, Parts::One, move |connection| {
            let inserted = connection
                .prepare_cached("INSERT INTO pools (name, limits, created_at) VALUES (?1, ?2, ?3)")?
                .execute(params![name.as_str(), json(&limits), created_at]);
            match inserted {
                Ok(_) => Ok(connection.last_insert_rowid() as u64),
                Err(error) if is_constraint(&error) => Err(StoreError::PoolExists { pool: name }.into()),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Records other limits of a pool.
    ///
    /// Errors: `no_such_pool`.
    pub fn set_pool(&self, name: PoolName, limits: PoolLimits, durability: Durability) -> Pending<()> {
        self.write(Op::WritePools, durability, Parts::One, move |connection| {
            let changed = connection
                .prepare_cached("UPDATE pools SET limits = ?2 WHERE name = ?1")?
                .execute(params![name.as_str(), json(&limits)])?;
            match changed {
                0 => Err(StoreError::NoSuchPool { pool: name.to_string() }.into()),
                _ => Ok(()),
            }
        })
    }

    /// Forgets a pool.
    ///
    /// Errors: `no_such_pool`.
    pub fn delete_pool(&self, number: u64, durability: Durability) -> Pending<()> {
        self.write(Op::WritePools, durability, Parts::One, move |connection| {
            let deleted = connection.prepare_cached("DELETE FROM pools WHERE number = ?1")?.execute([int(number)])?;
            match deleted {
                0 => Err(StoreError::NoSuchPool { pool: number.to_string() }.into()),
                _ => Ok(()),
            }
        })
    }

    /// Returns all pools, the oldest first.
    pub async fn pools(&self) -> Result<Vec<Pool>, StoreError> {
        self.read_few(Op::ReadPools, |connection| {
            let mut statement =
                connection.prepare_cached("SELECT number, name, limits, created_at FROM pools ORDER BY number")?;
            let mut rows = statement.query([])?;
            let mut pools = Vec::new();
            while let Some(row) = rows.next()? {
                let (name, limits): (String, String) = (row.get(1)?, row.get(2)?);
                let bad = |what: &str, error: &dyn std::fmt::Display| Inside::Row(format!("{what} of a pool: {error}"));
                pools.push(Pool {
                    number: row.get::<_, i64>(0)? as u64,
                    name: name.parse().map_err(|error| bad("the name", &error))?,
                    limits: serde_json::from_str(&limits).map_err(|error| bad("the limits", &error))?,
                    created_at: row.get(3)?,
                });
            }
            Ok(pools)
        })
    }
}
