//! Computers, and the creates that asked for them.

use std::collections::BTreeMap;

use den_model::{Computer, ComputerId, ComputerName, Micros, State};
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use crate::{
    Durability, LIST_ROWS_MAX, Parts, Pending, Store, StoreError,
    error::{Inside, Op},
    services,
};

const COLUMNS: &str = "id, spec, state, reason, created_at, changed_at, boot_id, net, parent";

/// Tells a repeated create from a new one.
#[derive(Debug, Clone, Copy)]
pub struct Idempotency<'a> {
    /// What the client chose for this create.
    pub key: &'a str,
    /// A digest of what the create says, to find out keys used twice by mistake.
    pub request_hash: &'a str,
}

/// Which computers a list shows: those for which all of it holds.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// In this state.
    pub state: Option<State>,
    /// With all of these labels, at these values.
    pub labels: BTreeMap<String, String>,
}

impl Filter {
    fn admits(&self, computer: &Computer) -> bool {
        self.state.is_none_or(|state| state == computer.state)
            && self.labels.iter().all(|(key, value)| computer.spec.labels.get(key) == Some(value))
    }
}

impl Store {
    /// Records a new computer, and the create that asked for it where `idempotency` is given. The disk of one that
    /// is no fork is not written out yet.
    ///
    /// Errors: `idempotency_replay` with the computer that the same create made before;
    /// `idempotency_mismatch`; `name_taken` with the holder; `computer_exists`.
    pub fn insert_computer(
        &self,
        computer: &Computer,
        idempotency: Option<Idempotency<'_>>,
        durability: Durability,
    ) -> Pending<()> {
        let spec = json(&computer.spec);
        let Computer { id, state, created_at, changed_at, .. } = *computer;
        let (name, reason, boot_id) = (computer.spec.name.clone(), computer.reason.clone(), computer.boot_id.clone());
        let (net, parent) = (computer.net.clone(), computer.parent.as_ref().map(json));
        let asked = idempotency.map(|asked| (asked.key.to_owned(), asked.request_hash.to_owned()));
        let parts = if asked.is_some() { Parts::Several } else { Parts::One };
        self.write(Op::InsertComputer, durability, parts, move |connection| {
            if let Some((key, request_hash)) = asked {
                claim(connection, key, &request_hash, id, created_at)?;
            }
            let state = state.as_str();
            let row =
                params![blob(id), name.as_str(), spec, state, reason, created_at, changed_at, boot_id, net, parent];
            let inserted = connection
                .prepare_cached(
                    "INSERT INTO computers (id, name, spec, state, reason, created_at, changed_at, boot_id, net,
                                            parent, unwritten)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?10 IS NULL)",
                )?
                .execute(row);
            match inserted {
                Ok(_) => Ok(()),
                Err(error) if is_constraint(&error) => Err(match holder(connection, &name)? {
                    Some(holder) if holder != id => StoreError::NameTaken { name, holder },
                    _ => StoreError::ComputerExists { computer: id },
                }
                .into()),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Records where a computer stands. Without a `boot_id` the one recorded stays.
    ///
    /// Errors: `no_such_computer`.
    pub fn set_state(
        &self,
        id: ComputerId,
        state: State,
        reason: Option<String>,
        changed_at: Micros,
        boot_id: Option<String>,
        durability: Durability,
    ) -> Pending<()> {
        let starts = state == State::Starting;
        self.write(Op::SetState, durability, if starts { Parts::Several } else { Parts::One }, move |connection| {
            let changed = connection
                .prepare_cached(
                    "UPDATE computers SET state = ?2, reason = ?3, changed_at = ?4, boot_id = coalesce(?5, boot_id)
                     WHERE id = ?1",
                )?
                .execute(params![blob(id), state.as_str(), reason, changed_at, boot_id])?;
            one(changed, id)?;
            if starts { services::begin_anew(connection, id) } else { Ok(()) }
        })
    }

    /// Forgets a computer and its steps. The idempotency key of its create stays.
    ///
    /// Errors: `no_such_computer`.
    pub fn delete_computer(&self, id: ComputerId, durability: Durability) -> Pending<()> {
        self.write(Op::DeleteComputer, durability, Parts::One, move |connection| {
            let deleted = connection.prepare_cached("DELETE FROM computers WHERE id = ?1")?.execute([blob(id)])?;
            one(deleted, id)
        })
    }

    /// Returns the computer of this id.
    pub async fn get_computer(&self, id: ComputerId) -> Result<Option<Computer>, StoreError> {
        self.read_few(Op::ReadComputers, |connection| {
            let sql = select_sql("WHERE id = ?1");
            fetch(connection.prepare_cached(&sql)?.query([blob(id)])?.next()?)
        })
    }

    /// Returns the computer that a create with this key made.
    ///
    /// Errors: `idempotency_mismatch` where it said something else.
    pub async fn made_by(&self, key: &str, request_hash: &str) -> Result<Option<ComputerId>, StoreError> {
        self.read_few(Op::ReadComputers, |connection| match claimed(connection, key)? {
            Some((hash, made)) if hash == request_hash => Ok(Some(made)),
            Some(_) => Err(StoreError::IdempotencyMismatch { key: key.to_owned() }.into()),
            None => Ok(None),
        })
    }

    /// Returns the computer that has this name; one that is being removed or lies in the trash has
    /// none.
    pub async fn find_computer(&self, name: &ComputerName) -> Result<Option<Computer>, StoreError> {
        self.read_few(Op::ReadComputers, |connection| {
            let sql = select_sql("WHERE name = ?1 AND state NOT IN ('removing', 'trashed')");
            fetch(connection.prepare_cached(&sql)?.query([name.as_str()])?.next()?)
        })
    }

    /// Returns up to `limit` computers (at most [`LIST_ROWS_MAX`]) after `after`, oldest first.
    pub async fn list_computers(
        &self,
        after: Option<ComputerId>,
        limit: usize,
        filter: Filter,
    ) -> Result<Vec<Computer>, StoreError> {
        let limit = limit.min(LIST_ROWS_MAX);
        self.read_many(Op::ReadComputers, move |connection| select(connection, after, limit, &filter)).await
    }

    /// Returns every computer, oldest first: what a start looks through.
    pub async fn all_computers(&self) -> Result<Vec<Computer>, StoreError> {
        let everything = Filter::default();
        self.read_many(Op::ReadComputers, move |connection| select(connection, None, usize::MAX, &everything)).await
    }

    /// Forgets creates from before `before`; their keys may be used anew.
    pub fn prune_idempotency(&self, before: Micros, durability: Durability) -> Pending<usize> {
        self.write(Op::Prune, durability, Parts::One, move |connection| {
            Ok(connection.prepare_cached("DELETE FROM idempotency WHERE created_at < ?1")?.execute([before])?)
        })
    }
}

/// What a key was used for: the hash of the request, and what it made.
fn claimed(connection: &Connection, key: &str) -> rusqlite::Result<Option<(String, ComputerId)>> {
    connection
        .prepare_cached("SELECT request_hash, computer FROM idempotency WHERE key = ?1")?
        .query_row([key], |row| Ok((row.get(0)?, id_of(row.get(1)?))))
        .optional()
}

/// Records the key for `computer`, or says what it was used for before.
fn claim(
    connection: &Connection,
    key: String,
    request_hash: &str,
    computer: ComputerId,
    created_at: Micros,
) -> Result<(), Inside> {
    match claimed(connection, &key)? {
        Some((hash, made)) if hash == request_hash => Err(StoreError::IdempotencyReplay { computer: made }.into()),
        Some(_) => Err(StoreError::IdempotencyMismatch { key }.into()),
        None => {
            connection
                .prepare_cached(
                    "INSERT INTO idempotency (key, request_hash, computer, created_at) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![key, request_hash, blob(computer), created_at])?;
            Ok(())
        }
    }
}

pub(crate) fn holder(connection: &Connection, name: &ComputerName) -> rusqlite::Result<Option<ComputerId>> {
    connection
        .prepare_cached("SELECT id FROM computers WHERE name = ?1 AND state NOT IN ('removing', 'trashed')")?
        .query_row([name.as_str()], |row| row.get(0).map(id_of))
        .optional()
}

fn select(
    connection: &Connection,
    after: Option<ComputerId>,
    limit: usize,
    filter: &Filter,
) -> Result<Vec<Computer>, Inside> {
    let sql = select_sql("WHERE id > ?1 ORDER BY id");
    let mut statement = connection.prepare_cached(&sql)?;
    // No id is below the empty blob.
    let mut rows = statement.query([after.map_or(Vec::new(), |id| blob(id).to_vec())])?;
    let mut found = Vec::new();
    while found.len() < limit
        && let Some(computer) = fetch(rows.next()?)?
    {
        if filter.admits(&computer) {
            found.push(computer);
        }
    }
    Ok(found)
}

fn select_sql(rest: &str) -> String {
    format!("SELECT {COLUMNS} FROM computers {rest}")
}

fn fetch(row: Option<&Row<'_>>) -> Result<Option<Computer>, Inside> {
    let Some(row) = row else { return Ok(None) };
    let id = id_of(row.get(0)?);
    let wrong = |what: &str, why: String| Inside::Row(format!("the {what} of {id} cannot be read: {why}"));
    let state = row.get_ref(2)?.as_str().map_err(|error| wrong("state", error.to_string()))?;
    Ok(Some(Computer {
        id,
        spec: row
            .get_ref(1)?
            .as_str()
            .map_err(|error| error.to_string())
            .and_then(|text| serde_json::from_str(text).map_err(|error| error.to_string()))
            .map_err(|why| wrong("spec", why))?,
        state: State::parse(state).ok_or_else(|| wrong("state", format!("`{state}` is none")))?,
        reason: row.get(3)?,
        created_at: row.get(4)?,
        changed_at: row.get(5)?,
        boot_id: row.get(6)?,
        net: row.get(7)?,
        parent: match row.get::<_, Option<String>>(8)? {
            Some(text) => Some(serde_json::from_str(&text).map_err(|error| wrong("parent", error.to_string()))?),
            None => None,
        },
    }))
}

pub(crate) fn one(changed: usize, computer: ComputerId) -> Result<(), Inside> {
    if changed == 0 { Err(StoreError::NoSuchComputer { computer }.into()) } else { Ok(()) }
}

/// As an id is stored: the 16 bytes, whose order is the order of time.
pub(crate) fn blob(id: ComputerId) -> [u8; 16] {
    id.uuid().into_bytes()
}

pub(crate) fn id_of(bytes: [u8; 16]) -> ComputerId {
    ComputerId::from_uuid(Uuid::from_bytes(bytes))
}

pub(crate) fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("the model's types have text keys only")
}

pub(crate) fn is_constraint(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation)
}
