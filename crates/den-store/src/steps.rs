//! The steps of computers: what was run, by whom, and how it ended.

use den_model::{ChangeCount, ComputerId, Micros, Step, StepEnd, StepKind, StepNumber};
use rusqlite::{Connection, Row, ffi, params};

use crate::{
    Durability, LIST_ROWS_MAX, Parts, Pending, Store, StoreError,
    computers::{blob, is_constraint, json},
    error::{Inside, Op},
};

const SELECT: &str = "SELECT number, kind, argv, user, cwd, pty, who, started_at, ended_at, end, output_bytes,
                             snapshot, added, changed, removed
                      FROM steps";

/// From which end steps are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By rising number.
    OldestFirst,
    /// By falling number.
    NewestFirst,
}

impl Order {
    /// What `number` must be to lie beyond `after`, with `?2` for the second value.
    pub(crate) fn beyond(self, after: Option<StepNumber>) -> (&'static str, i64) {
        match self {
            Self::OldestFirst => ("> ?2", after.map_or(0, int)),
            Self::NewestFirst => ("< ?2", after.map_or(i64::MAX, int)),
        }
    }

    pub(crate) fn direction(self) -> &'static str {
        match self {
            Self::OldestFirst => "ASC",
            Self::NewestFirst => "DESC",
        }
    }
}

pub(crate) fn select_sql(rest: &str) -> String {
    format!("{SELECT} {rest}")
}

impl Store {
    /// Records a step.
    ///
    /// Errors: `no_such_computer`; `step_exists`.
    pub fn insert_step(&self, id: ComputerId, step: &Step, durability: Durability) -> Pending<()> {
        self.write(Op::InsertStep, durability, Parts::One, inserting(id, step))
    }

    /// Records how a step ended. A step ends once.
    ///
    /// Errors: `no_such_step` where there is none that runs.
    pub fn end_step(
        &self,
        id: ComputerId,
        number: StepNumber,
        ended_at: Micros,
        end: &StepEnd,
        output_bytes: u64,
        durability: Durability,
    ) -> Pending<()> {
        let end = json(end);
        self.write(Op::EndStep, durability, Parts::One, move |connection| {
            let changed = connection
                .prepare_cached(
                    "UPDATE steps SET ended_at = ?3, end = ?4, output_bytes = ?5
                     WHERE computer = ?1 AND number = ?2 AND end IS NULL",
                )?
                .execute(params![blob(id), int(number), ended_at, end, int(output_bytes)])?;
            if changed == 0 { Err(StoreError::NoSuchStep { computer: id, number }.into()) } else { Ok(()) }
        })
    }

    /// Returns one step.
    pub async fn get_step(&self, id: ComputerId, number: StepNumber) -> Result<Option<Step>, StoreError> {
        self.read_few(Op::ReadSteps, |connection| {
            let mut statement = connection.prepare_cached(&format!("{SELECT} WHERE computer = ?1 AND number = ?2"))?;
            statement.query(params![blob(id), int(number)])?.next()?.map(fetch).transpose()
        })
    }

    /// Returns up to `limit` steps (at most [`LIST_ROWS_MAX`]) beyond the number `after` in the given order.
    pub async fn steps(
        &self,
        id: ComputerId,
        after: Option<StepNumber>,
        limit: usize,
        order: Order,
    ) -> Result<Vec<Step>, StoreError> {
        let limit = int(limit.min(LIST_ROWS_MAX) as u64);
        self.read_many(Op::ReadSteps, move |connection| {
            let (beyond, from) = order.beyond(after);
            let direction = order.direction();
            let sql = format!("{SELECT} WHERE computer = ?1 AND number {beyond} ORDER BY number {direction} LIMIT ?3");
            select(connection, &sql, params![blob(id), from, limit])
        })
        .await
    }

    /// Returns the steps of a computer that have not ended, oldest first.
    pub async fn running_steps(&self, id: ComputerId) -> Result<Vec<Step>, StoreError> {
        self.read_few(Op::ReadSteps, |connection| {
            let sql = format!("{SELECT} WHERE computer = ?1 AND end IS NULL ORDER BY number");
            select(connection, &sql, params![blob(id)])
        })
    }

    /// Returns the highest number ever used, pruned ones included; 0 before the first.
    pub async fn last_step_number(&self, id: ComputerId) -> Result<StepNumber, StoreError> {
        self.read_few(Op::ReadSteps, |connection| {
            let last: i64 = connection
                .prepare_cached(
                    "SELECT max(coalesce((SELECT max(number) FROM steps WHERE computer = ?1), 0),
                                coalesce((SELECT steps_pruned FROM computers WHERE id = ?1), 0))",
                )?
                .query_row([blob(id)], |row| row.get(0))?;
            Ok(last as u64)
        })
    }

    /// Forgets the ended steps with numbers below `below`, and returns how many. Their numbers stay used.
    pub fn prune_steps(&self, id: ComputerId, below: StepNumber, durability: Durability) -> Pending<usize> {
        self.write(Op::Prune, durability, Parts::Several, move |connection| {
            connection
                .prepare_cached(
                    "UPDATE computers SET steps_pruned = max(steps_pruned, coalesce(
                         (SELECT max(number) FROM steps WHERE computer = ?1 AND number < ?2 AND end IS NOT NULL), 0))
                     WHERE id = ?1",
                )?
                .execute(params![blob(id), int(below)])?;
            Ok(connection
                .prepare_cached("DELETE FROM steps WHERE computer = ?1 AND number < ?2 AND end IS NOT NULL")?
                .execute(params![blob(id), int(below)])?)
        })
    }
}

/// Writes the row of a step.
pub(crate) fn inserting(
    id: ComputerId,
    step: &Step,
) -> impl FnOnce(&Connection) -> Result<(), Inside> + Send + 'static + use<> {
    let Step { number, kind, pty, started_at, ended_at, output_bytes, .. } = *step;
    let (argv, end) = (json(&step.argv), step.end.as_ref().map(json));
    let (user, cwd, who) = (step.user.clone(), step.cwd.clone(), step.who.clone());
    move |connection| {
        let inserted = connection
            .prepare_cached(
                "INSERT INTO steps (computer, number, kind, argv, user, cwd, pty, who, started_at, ended_at, end,
                                    output_bytes)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            )?
            .execute(params![
                blob(id),
                int(number),
                kind.as_str(),
                argv,
                user,
                cwd,
                pty,
                who,
                started_at,
                ended_at,
                end,
                int(output_bytes)
            ]);
        match inserted {
            Ok(_) => Ok(()),
            Err(error) if extended(&error) == Some(ffi::SQLITE_CONSTRAINT_FOREIGNKEY) => {
                Err(StoreError::NoSuchComputer { computer: id }.into())
            }
            Err(error) if is_constraint(&error) => Err(StoreError::StepExists { computer: id, number }.into()),
            Err(error) => Err(error.into()),
        }
    }
}

pub(crate) fn select(connection: &Connection, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<Step>, Inside> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(values)?;
    let mut steps = Vec::new();
    while let Some(row) = rows.next()? {
        steps.push(fetch(row)?);
    }
    Ok(steps)
}

fn fetch(row: &Row<'_>) -> Result<Step, Inside> {
    let number = row.get::<_, i64>(0)? as u64;
    let wrong = |what: &str, why: String| Inside::Row(format!("the {what} of a step {number} cannot be read: {why}"));
    let kind: String = row.get(1)?;
    let argv: String = row.get(2)?;
    let end: Option<String> = row.get(9)?;
    Ok(Step {
        number,
        kind: StepKind::parse(&kind).ok_or_else(|| wrong("kind", format!("`{kind}` is none")))?,
        argv: serde_json::from_str(&argv).map_err(|error| wrong("command", error.to_string()))?,
        user: row.get(3)?,
        cwd: row.get(4)?,
        pty: row.get(5)?,
        who: row.get(6)?,
        started_at: row.get(7)?,
        ended_at: row.get(8)?,
        end: end.map(|end| serde_json::from_str(&end).map_err(|error| wrong("end", error.to_string()))).transpose()?,
        output_bytes: row.get::<_, i64>(10)? as u64,
        snapshot: row.get::<_, Option<i64>>(11)?.map(|number| number as u64),
        changes: match (row.get::<_, Option<i64>>(12)?, row.get::<_, Option<i64>>(13)?, row.get::<_, Option<i64>>(14)?)
        {
            (Some(added), Some(changed), Some(removed)) => {
                Some(ChangeCount { added: added as u64, changed: changed as u64, removed: removed as u64 })
            }
            _ => None,
        },
    })
}

/// SQLite's integers end at 2^63; no count of ours gets there.
pub(crate) fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) fn extended(error: &rusqlite::Error) -> Option<i32> {
    error.sqlite_error().map(|error| error.extended_code)
}
