//! Shared volumes. Who mounts which is in the rows of computers.

use den_model::{Bytes, Volume, VolumeId};
use rusqlite::{Connection, params};
use uuid::Uuid;

use crate::{
    Durability, Parts, Pending, Store, StoreError,
    computers::is_constraint,
    error::{Inside, Op},
    steps::int,
};

impl Store {
    /// Records a new shared volume.
    ///
    /// Errors: `volume_exists`.
    pub fn insert_volume(&self, volume: Volume, durability: Durability) -> Pending<()> {
        self.write(Op::WriteVolumes, durability, Parts::One, move |connection| {
            let Volume { id, name, limit, created_at } = volume;
            let inserted = connection
                .prepare_cached("INSERT INTO volumes (id, name, bytes_max, created_at) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![id.uuid().as_bytes().as_slice(), name.as_str(), int(limit.0), created_at]);
            match inserted {
                Ok(_) => Ok(()),
                Err(error) if is_constraint(&error) => Err(StoreError::VolumeExists { volume: name }.into()),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Forgets a shared volume.
    ///
    /// Errors: `no_such_volume`.
    pub fn delete_volume(&self, id: VolumeId, durability: Durability) -> Pending<()> {
        self.write(Op::WriteVolumes, durability, Parts::One, move |connection| {
            let deleted = connection
                .prepare_cached("DELETE FROM volumes WHERE id = ?1")?
                .execute([id.uuid().as_bytes().as_slice()])?;
            match deleted {
                0 => Err(StoreError::NoSuchVolume { volume: id }.into()),
                _ => Ok(()),
            }
        })
    }

    /// Returns all shared volumes, the oldest first.
    pub async fn volumes(&self) -> Result<Vec<Volume>, StoreError> {
        self.read_many(Op::ReadVolumes, all).await
    }
}

/// All shared volumes, the oldest first.
pub(crate) fn all(connection: &Connection) -> Result<Vec<Volume>, Inside> {
    let mut statement = connection.prepare_cached("SELECT id, name, bytes_max, created_at FROM volumes ORDER BY id")?;
    let mut rows = statement.query([])?;
    let mut volumes = Vec::new();
    while let Some(row) = rows.next()? {
        let name: String = row.get(1)?;
        let name = name.parse().map_err(|error| Inside::Row(format!("the name of a shared volume: {error}")))?;
        volumes.push(Volume {
            id: VolumeId::from_uuid(Uuid::from_bytes(row.get(0)?)),
            name,
            limit: Bytes(row.get::<_, i64>(2)?.cast_unsigned()),
            created_at: row.get(3)?,
        });
    }
    Ok(volumes)
}
