//! A copy of the database, made while it is in use, and what a backup and a restore change in such a copy.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use den_model::{ComputerId, Micros, Volume, VolumeId};
use rusqlite::{Connection, OpenFlags, backup::Backup, params};

use crate::{
    Store, StoreError, VFS,
    computers::{blob, id_of},
    error::{Inside, Op},
    schema, volumes,
};

/// Pages that are copied at a time: all, so that no write in between has it begin again.
const ALL: i32 = i32::MAX;
/// How long a copy waits where somebody has the file locked.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The first schema that has shared volumes.
const SCHEMA_OF_VOLUMES: i64 = 7;

/// The schema that this program writes and knows.
pub fn schema_known() -> i64 {
    schema::known()
}

impl Store {
    /// Copies the database as it is at one moment to `path`, which must not be there. Blocks; writers go on.
    pub fn copy_to(&self, path: &Path) -> Result<StoreCopy, StoreError> {
        let copy = || -> Result<(), Inside> {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let source = Connection::open_with_flags_and_vfs(&self.0.path, flags, VFS)?;
            source.busy_timeout(BUSY_TIMEOUT)?;
            let mut target = Connection::open(path)?;
            {
                let backup = Backup::new(&source, &mut target)?;
                backup.run_to_completion(ALL, Duration::ZERO, None)?;
            }
            Ok(())
        };
        copy().map_err(|inside| inside.during(Op::Open, path))?;
        StoreCopy::open(path)
    }
}

/// A row of a copy.
#[derive(Debug, Clone)]
pub struct CopyRow {
    /// The computer.
    pub id: ComputerId,
    /// Its name.
    pub name: String,
    /// Its state, as it is stored.
    pub state: String,
    /// Its spec, JSON.
    pub spec: String,
    /// Where it comes from, JSON.
    pub parent: Option<String>,
}

/// A copy of a database that nobody else uses: one file.
#[derive(Debug)]
pub struct StoreCopy {
    connection: Connection,
    path: PathBuf,
}

impl StoreCopy {
    /// Opens a copy. It is not migrated.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let open = || -> Result<Connection, Inside> {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(path, flags)?;
            schema::judge(&connection, path, schema::known())?;
            connection.pragma_update_and_check(None, "journal_mode", "delete", |_| Ok(()))?;
            connection.pragma_update(None, "foreign_keys", true)?;
            Ok(connection)
        };
        let connection = open().map_err(|inside| inside.during(Op::Open, path))?;
        Ok(Self { connection, path: path.to_owned() })
    }

    fn run<T>(&self, work: impl FnOnce(&Connection) -> Result<T, Inside>) -> Result<T, StoreError> {
        work(&self.connection).map_err(|inside| inside.during(Op::Open, &self.path))
    }

    /// Its schema.
    pub fn schema(&self) -> Result<i64, StoreError> {
        self.run(|connection| Ok(connection.pragma_query_value(None, "user_version", |row| row.get(0))?))
    }

    /// All computers, the oldest first.
    pub fn computers(&self) -> Result<Vec<CopyRow>, StoreError> {
        self.run(|connection| {
            let mut query = connection.prepare("SELECT id, name, state, spec, parent FROM computers ORDER BY id")?;
            let rows = query.query_map([], |row| {
                Ok(CopyRow {
                    id: id_of(row.get(0)?),
                    name: row.get(1)?,
                    state: row.get(2)?,
                    spec: row.get(3)?,
                    parent: row.get(4)?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// All shared volumes, the oldest first.
    pub fn volumes(&self) -> Result<Vec<Volume>, StoreError> {
        match self.schema()? {
            ..SCHEMA_OF_VOLUMES => Ok(Vec::new()),
            _ => self.run(volumes::all),
        }
    }

    /// Leaves a shared volume out.
    pub fn leave_out_volume(&self, id: VolumeId) -> Result<(), StoreError> {
        self.run(|connection| {
            connection.execute("DELETE FROM volumes WHERE id = ?1", params![id.uuid().as_bytes().as_slice()])?;
            Ok(())
        })
    }

    /// The states of a computer that are kept, in order, each with its generation.
    pub fn states(&self, id: ComputerId) -> Result<Vec<(u64, u64)>, StoreError> {
        self.run(|connection| {
            let mut query = connection.prepare(
                "SELECT number, generation FROM snapshots WHERE computer = ?1 AND dropped = 0 ORDER BY number",
            )?;
            let rows = query
                .query_map(params![blob(id)], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Of these states only the rows are left.
    pub fn drop_state(&self, id: ComputerId, number: u64) -> Result<(), StoreError> {
        self.run(|connection| {
            connection.execute(
                "UPDATE snapshots SET dropped = 1, label = NULL WHERE computer = ?1 AND number = ?2",
                params![blob(id), number as i64],
            )?;
            Ok(())
        })
    }

    /// The state has this generation where it is now.
    pub fn set_generation(&self, id: ComputerId, number: u64, generation: u64) -> Result<(), StoreError> {
        self.run(|connection| {
            connection.execute(
                "UPDATE snapshots SET generation = ?3 WHERE computer = ?1 AND number = ?2",
                params![blob(id), number as i64, generation as i64],
            )?;
            Ok(())
        })
    }

    /// Leaves a computer out, with all that is known of it.
    pub fn leave_out(&self, id: ComputerId) -> Result<(), StoreError> {
        self.run(|connection| {
            connection.execute("DELETE FROM computers WHERE id = ?1", params![blob(id)])?;
            Ok(())
        })
    }

    /// These fields of facts, by their kind, get random values in place of what they had; where they had none they
    /// get none, for that may mean that nobody need show one. What they had is nowhere in the file any more.
    pub fn redraw(&self, secrets: &[(&str, &[&str])]) -> Result<(), StoreError> {
        self.run(|connection| {
            for (kind, fields) in secrets {
                for field in *fields {
                    connection.execute(
                        "UPDATE facts SET fact = json_set(fact, '$.' || ?2, lower(hex(randomblob(32))))
                         WHERE kind = ?1 AND json_extract(fact, '$.' || ?2) IS NOT NULL",
                        params![kind, field],
                    )?;
                }
            }
            // Free pages have what was removed.
            connection.execute_batch("VACUUM")?;
            Ok(())
        })
    }

    /// Nothing runs where this copy is taken to: what ran is stopped.
    pub fn all_stopped(&self, reason: &str, at: Micros) -> Result<(), StoreError> {
        self.run(|connection| {
            connection.execute(
                "UPDATE computers SET state = 'stopped', reason = ?1, changed_at = ?2
                 WHERE state NOT IN ('stopped', 'failed', 'trashed', 'unplugged')",
                params![reason, at],
            )?;
            Ok(())
        })
    }

    /// Closes it: one file, on the disk.
    pub fn close(self) -> Result<(), StoreError> {
        let Self { connection, path } = self;
        let closed = connection.close().map_err(|(_, error)| Inside::from(error));
        closed.map_err(|inside| inside.during(Op::Open, &path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn secrets_are_drawn_anew_and_nowhere_in_the_copy() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let fact = |token: &str| format!(r#"{{"token":{token},"name":"kept"}}"#);
        let put = |kind, id: &str, fact| store.put_fact(kind, id.to_owned(), fact, crate::Durability::Process);
        put("e2b.sandbox", "one", fact("\"the-secret\"")).await.unwrap();
        put("e2b.sandbox", "two", fact("null")).await.unwrap();
        put("other", "one", fact("\"the-secret-of-another\"")).await.unwrap();
        let path = folder.path().join("copy");
        let copy = store.copy_to(&path).unwrap();
        copy.redraw(&[("e2b.sandbox", &["token", "traffic_token"])]).unwrap();
        let facts = |kind: &str| -> Vec<String> {
            let query = copy.connection.prepare("SELECT fact FROM facts WHERE kind = ?1 ORDER BY id");
            query.unwrap().query_map(params![kind], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        };
        let sandboxes = facts("e2b.sandbox");
        assert!(sandboxes[0].contains("kept") && sandboxes[0].len() > fact("\"\"").len() + 60, "{sandboxes:?}");
        assert_eq!(sandboxes[1], fact("null"));
        assert_eq!(facts("other"), [fact("\"the-secret-of-another\"")]);
        copy.close().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(11).any(|part| part == b"the-secret\""));
    }
}
