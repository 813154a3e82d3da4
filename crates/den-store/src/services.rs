//! The services of computers: what they are, whether they are wanted, and which step is their newest start.

use den_model::{ComputerId, Service, ServiceName, Step};
use rusqlite::{Connection, ffi, params};

use crate::{
    Durability, Parts, Pending, Store, StoreError,
    computers::{blob, is_constraint, json},
    error::{Inside, Op},
    steps::{extended, inserting, int},
};

impl Store {
    /// Records a new service.
    ///
    /// Errors: `no_such_computer`; `service_exists`.
    pub fn insert_service(&self, id: ComputerId, service: Service, durability: Durability) -> Pending<()> {
        self.insert_services(id, vec![service], durability)
    }

    /// Records new services, all or none.
    ///
    /// Errors: `no_such_computer`; `service_exists`.
    pub fn insert_services(&self, id: ComputerId, services: Vec<Service>, durability: Durability) -> Pending<()> {
        let parts = if services.len() == 1 { Parts::One } else { Parts::Several };
        self.write(Op::WriteServices, durability, parts, move |connection| {
            let mut insert = connection.prepare_cached(
                "INSERT INTO services (computer, name, spec, wanted, created_at, step, begun, ready, restarts)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?;
            for service in services {
                let Service { name, spec, wanted, created_at, step, begun, ready, restarts } = service;
                let row = params![
                    blob(id),
                    name.as_str(),
                    json(&spec),
                    wanted,
                    created_at,
                    int(step),
                    begun,
                    ready,
                    int(restarts)
                ];
                match insert.execute(row) {
                    Ok(_) => {}
                    Err(error) if extended(&error) == Some(ffi::SQLITE_CONSTRAINT_FOREIGNKEY) => {
                        return Err(StoreError::NoSuchComputer { computer: id }.into());
                    }
                    Err(error) if is_constraint(&error) => {
                        return Err(StoreError::ServiceExists { computer: id, service: name }.into());
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        })
    }

    /// Records whether a service is wanted. One that is begins anew: its newest start is of before.
    ///
    /// Errors: `no_such_service`.
    pub fn want_service(&self, id: ComputerId, name: ServiceName, wanted: bool, durability: Durability) -> Pending<()> {
        self.write(Op::WriteServices, durability, Parts::One, move |connection| {
            let changed = connection
                .prepare_cached(
                    "UPDATE services SET wanted = ?3, begun = begun AND NOT ?3, ready = ready AND NOT ?3,
                                         restarts = iif(?3, 0, restarts)
                     WHERE computer = ?1 AND name = ?2",
                )?
                .execute(params![blob(id), name.as_str(), wanted])?;
            one(changed, id, &name)
        })
    }

    /// Records a step and that it is the newest start of a service: both or neither.
    ///
    /// Errors: `no_such_service`; `step_exists`.
    pub fn begin_service(&self, id: ComputerId, name: ServiceName, step: &Step, durability: Durability) -> Pending<()> {
        let (number, insert) = (step.number, inserting(id, step));
        self.write(Op::InsertStep, durability, Parts::Several, move |connection| {
            let changed = connection
                .prepare_cached(
                    "UPDATE services SET step = ?3, restarts = iif(begun, restarts + 1, 0), begun = 1, ready = 0
                     WHERE computer = ?1 AND name = ?2",
                )?
                .execute(params![blob(id), name.as_str(), int(number)])?;
            one(changed, id, &name)?;
            insert(connection)
        })
    }

    /// Records that the check of a service has held since the start that is this step; of another one nothing.
    pub fn service_ready(&self, id: ComputerId, name: ServiceName, step: u64, durability: Durability) -> Pending<()> {
        self.write(Op::WriteServices, durability, Parts::One, move |connection| {
            connection
                .prepare_cached("UPDATE services SET ready = 1 WHERE computer = ?1 AND name = ?2 AND step = ?3")?
                .execute(params![blob(id), name.as_str(), int(step)])?;
            Ok(())
        })
    }

    /// Forgets a service. Its steps stay.
    ///
    /// Errors: `no_such_service`.
    pub fn delete_service(&self, id: ComputerId, name: ServiceName, durability: Durability) -> Pending<()> {
        self.write(Op::WriteServices, durability, Parts::One, move |connection| {
            let deleted = connection
                .prepare_cached("DELETE FROM services WHERE computer = ?1 AND name = ?2")?
                .execute(params![blob(id), name.as_str()])?;
            one(deleted, id, &name)
        })
    }

    /// Returns the services of a computer by name.
    pub async fn services(&self, id: ComputerId) -> Result<Vec<Service>, StoreError> {
        self.read_few(Op::ReadServices, |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT name, spec, wanted, created_at, step, begun, ready, restarts
                 FROM services WHERE computer = ?1 ORDER BY name",
            )?;
            let mut rows = statement.query([blob(id)])?;
            let mut services = Vec::new();
            while let Some(row) = rows.next()? {
                let (name, spec): (String, String) = (row.get(0)?, row.get(1)?);
                let wrong = |why: String| Inside::Row(format!("a service `{name}` cannot be read: {why}"));
                services.push(Service {
                    name: name.parse().map_err(|error: den_model::NameError| wrong(error.to_string()))?,
                    spec: serde_json::from_str(&spec).map_err(|error| wrong(error.to_string()))?,
                    wanted: row.get(2)?,
                    created_at: row.get(3)?,
                    step: row.get::<_, i64>(4)? as u64,
                    begun: row.get(5)?,
                    ready: row.get(6)?,
                    restarts: row.get::<_, i64>(7)? as u64,
                });
            }
            Ok(services)
        })
    }
}

/// The computer starts: no service of it has begun yet.
pub(crate) fn begin_anew(connection: &Connection, id: ComputerId) -> Result<(), Inside> {
    connection
        .prepare_cached("UPDATE services SET begun = 0, ready = 0, restarts = 0 WHERE computer = ?1")?
        .execute([blob(id)])?;
    Ok(())
}

fn one(changed: usize, id: ComputerId, name: &ServiceName) -> Result<(), Inside> {
    if changed == 0 {
        return Err(StoreError::NoSuchService { computer: id, service: name.clone() }.into());
    }
    Ok(())
}
