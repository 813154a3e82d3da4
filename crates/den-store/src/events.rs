//! What happened, in the order in which it was written down. Rows outlive the computers they speak of.
//!
//! A number is given once, rising, by the one connection that writes: whoever has read up to a number
//! misses nothing by reading on from it.

use den_model::{ComputerId, Event, EventKind, Micros};
use rusqlite::{Row, ToSql, params, params_from_iter, types::Value};

use crate::{
    Durability, LIST_ROWS_MAX, Parts, Pending, Store, StoreError,
    computers::{blob, id_of},
    error::{Inside, Op},
};

/// Events that are kept; the oldest go first.
pub const EVENTS_KEPT_MAX: u64 = 100_000;

const COLUMNS: &str = "number, at, kind, computer, name, who, detail";

/// An event without its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// When it happened.
    pub at: Micros,
    /// What happened.
    pub kind: EventKind,
    /// To which computer.
    pub computer: Option<ComputerId>,
    /// As it was called then.
    pub name: Option<String>,
    /// Who asked for it.
    pub who: Option<String>,
    /// A JSON object.
    pub detail: String,
}

/// Whose events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventsOf {
    /// Those of one computer.
    Id(ComputerId),
    /// Those of every computer that was called so.
    Name(String),
}

/// Which events to read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Only beyond this number.
    pub after: u64,
    /// Only these kinds; every kind where there is none.
    pub kinds: Vec<EventKind>,
    /// Only those of one computer.
    pub of: Option<EventsOf>,
    /// The newest that fit, instead of the oldest.
    pub newest: bool,
}

/// Some events, by rising number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRows {
    /// The events.
    pub events: Vec<Event>,
    /// Up to where was looked: what is wanted next lies beyond this number.
    pub upto: u64,
    /// The oldest that is kept, of whatever kind; one beyond the newest where there is none.
    pub oldest: u64,
}

impl Store {
    /// Writes events down, all or none, and lets the oldest go. Returns the number of the last.
    pub fn insert_events(&self, events: Vec<NewEvent>, durability: Durability) -> Pending<u64> {
        self.write(Op::InsertEvents, durability, Parts::Several, move |connection| {
            let mut insert = connection.prepare_cached(
                "INSERT INTO events (at, kind, computer, name, who, detail) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            for NewEvent { at, kind, computer, name, who, detail } in events {
                insert.execute(params![at, kind.as_str(), computer.map(blob), name, who, detail])?;
            }
            let last = connection.last_insert_rowid();
            connection
                .prepare_cached("DELETE FROM events WHERE number <= ?1")?
                .execute([last - EVENTS_KEPT_MAX as i64])?;
            Ok(last as u64)
        })
    }

    /// Returns up to `limit` events (at most [`LIST_ROWS_MAX`]).
    pub async fn events(&self, filter: EventFilter, limit: usize) -> Result<EventRows, StoreError> {
        let limit = limit.min(LIST_ROWS_MAX);
        self.read_many(Op::ReadEvents, move |connection| {
            // What is added between the two looks lies beyond this, and is left for the next one.
            let (oldest, upto) = connection
                .prepare_cached("SELECT (SELECT min(number) FROM events), (SELECT seq FROM sqlite_sequence WHERE name = 'events')")?
                .query_row([], |row| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?.unwrap_or(0))))?;
            let mut values = vec![Value::from(filter.after as i64), upto.into(), (limit as i64).into()];
            let mut wanted = String::new();
            if !filter.kinds.is_empty() {
                let marks: Vec<_> = (0..filter.kinds.len()).map(|index| format!("?{}", values.len() + 1 + index)).collect();
                wanted += &format!(" AND kind IN ({})", marks.join(", "));
                values.extend(filter.kinds.iter().map(|kind| Value::from(kind.as_str().to_owned())));
            }
            match &filter.of {
                None => {}
                Some(EventsOf::Id(id)) => {
                    values.push(Value::from(blob(*id).to_vec()));
                    wanted += &format!(" AND computer = ?{}", values.len());
                }
                Some(EventsOf::Name(name)) => {
                    values.push(Value::from(name.clone()));
                    wanted += &format!(" AND name = ?{}", values.len());
                }
            }
            let direction = if filter.newest { "DESC" } else { "ASC" };
            let sql = format!(
                "SELECT {COLUMNS} FROM events WHERE number > ?1 AND number <= ?2{wanted} ORDER BY number {direction} LIMIT ?3"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query(params_from_iter(values.iter().map(|value| value as &dyn ToSql)))?;
            let mut events = Vec::new();
            while let Some(row) = rows.next()? {
                events.push(fetch(row)?);
            }
            let full = events.len() == limit;
            if filter.newest {
                events.reverse();
            }
            let upto = match events.last() {
                Some(last) if full && !filter.newest => last.number,
                _ => upto as u64,
            };
            Ok(EventRows { events, upto, oldest: oldest.map_or(upto + 1, |number| number as u64) })
        })
        .await
    }
}

fn fetch(row: &Row<'_>) -> Result<Event, Inside> {
    let number = row.get::<_, i64>(0)? as u64;
    let kind: String = row.get(2)?;
    Ok(Event {
        number,
        at: row.get(1)?,
        kind: EventKind::parse(&kind)
            .ok_or_else(|| Inside::Row(format!("the kind of the event {number} is `{kind}`")))?,
        computer: row.get::<_, Option<[u8; 16]>>(3)?.map(id_of),
        name: row.get(4)?,
        who: row.get(5)?,
        detail: row.get(6)?,
    })
}
