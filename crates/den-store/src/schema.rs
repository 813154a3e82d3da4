//! Opening the file: is it ours, is it whole, is it of a schema we know; then the migrations.
//!
//! Invariant: nothing is written to a file that is refused.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, config::DbConfig};

use crate::{
    StoreError, VFS,
    error::{Inside, Op},
};

/// Marks the file as Den's: `DEN1` in ASCII, in the header's `application_id`.
const APPLICATION: i64 = 0x4445_4e31;
/// How long a write waits for someone else's, such as a person with the `sqlite3` shell.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The WAL file is cut back to this when it begins anew.
const WAL_BYTES_KEPT: i64 = 64 << 20;
/// A database up to this size is read whole before it is used: about a millisecond a megabyte.
const CHECKED_BYTES_MAX: u64 = 256 << 20;
/// In `meta`: which opening wrote to the log last.
const MARK: &str = "opened";
/// Statements kept prepared; there are about twenty.
const STATEMENTS_KEPT: usize = 64;

/// The n-th takes a file from schema n to n + 1. Never changed once released, only added to.
const MIGRATIONS: &[&str] = &[
    // 0 → 1. Ids are the 16 bytes of the UUID, times microseconds since the Unix epoch.
    "CREATE TABLE computers (
        id           BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
        name         TEXT    NOT NULL,
        spec         TEXT    NOT NULL,            -- ComputerSpec as JSON
        state        TEXT    NOT NULL,
        reason       TEXT,
        created_at   INTEGER NOT NULL,
        changed_at   INTEGER NOT NULL,
        boot_id      TEXT    NOT NULL,
        steps_pruned INTEGER NOT NULL DEFAULT 0   -- the highest step number ever pruned
    ) STRICT, WITHOUT ROWID;
    -- A computer that is being removed has given its name back.
    CREATE UNIQUE INDEX computers_name ON computers (name) WHERE state <> 'removing';

    CREATE TABLE steps (
        computer     BLOB    NOT NULL REFERENCES computers (id) ON DELETE CASCADE,
        number       INTEGER NOT NULL CHECK (number > 0),
        kind         TEXT    NOT NULL,
        argv         TEXT    NOT NULL,            -- JSON array of strings
        user         TEXT,
        cwd          TEXT,
        pty          INTEGER NOT NULL,
        who          TEXT    NOT NULL,
        started_at   INTEGER NOT NULL,
        ended_at     INTEGER,
        end          TEXT,                        -- StepEnd as JSON; NULL while it runs
        output_bytes INTEGER NOT NULL,
        PRIMARY KEY (computer, number)
    ) STRICT, WITHOUT ROWID;
    -- What a start looks for: few rows, whatever the history.
    CREATE INDEX steps_running ON steps (computer, number) WHERE end IS NULL;

    -- Outlives its computer, so that a late repeat does not make a second one.
    CREATE TABLE idempotency (
        key          TEXT    NOT NULL PRIMARY KEY,
        request_hash TEXT    NOT NULL,
        computer     BLOB    NOT NULL,
        created_at   INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX idempotency_age ON idempotency (created_at);

    CREATE TABLE meta (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;",
    // 1 → 2. What a computer may reach, and who changed that when.
    "ALTER TABLE computers ADD COLUMN net TEXT;       -- the gate's policy as JSON

    CREATE TABLE net_changes (
        computer     BLOB    NOT NULL REFERENCES computers (id) ON DELETE CASCADE,
        number       INTEGER NOT NULL,
        at           INTEGER NOT NULL,
        who          TEXT    NOT NULL,
        net          TEXT    NOT NULL,            -- the policy from then on
        PRIMARY KEY (computer, number)
    ) STRICT, WITHOUT ROWID;",
    // 2 → 3. States that are kept, what each step changed, and where a fork comes from.
    "ALTER TABLE computers ADD COLUMN parent TEXT;    -- Parent as JSON; NULL where it was made from an image
    ALTER TABLE steps ADD COLUMN snapshot INTEGER;    -- the state after it
    ALTER TABLE steps ADD COLUMN added    INTEGER;
    ALTER TABLE steps ADD COLUMN changed  INTEGER;
    ALTER TABLE steps ADD COLUMN removed  INTEGER;

    CREATE TABLE snapshots (
        computer     BLOB    NOT NULL REFERENCES computers (id) ON DELETE CASCADE,
        number       INTEGER NOT NULL,
        step         INTEGER NOT NULL,            -- the last that had ended
        label        TEXT,
        kind         TEXT    NOT NULL,
        created_at   INTEGER NOT NULL,
        frozen_us    INTEGER NOT NULL,
        torn         INTEGER NOT NULL,
        generation   INTEGER NOT NULL,
        parent       INTEGER,                     -- the state before
        went_to      INTEGER,                     -- the state the computer was taken back to after this one
        dropped      INTEGER NOT NULL,            -- 1: only the row is left
        PRIMARY KEY (computer, number)
    ) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX snapshots_label ON snapshots (computer, label) WHERE label IS NOT NULL;",
    // 3 → 4. Computers that sleep, are cut off or lie in the trash; what they serve, and what happened to them.
    "ALTER TABLE computers ADD COLUMN idle   TEXT;    -- Idle as JSON; NULL where it never sleeps by itself
    ALTER TABLE computers ADD COLUMN asleep INTEGER NOT NULL DEFAULT 0; -- 1: stopped because it was idle
    ALTER TABLE computers ADD COLUMN before TEXT;     -- the state that it comes back to
    DROP INDEX computers_name;
    -- One that is being removed or lies in the trash has given its name back.
    CREATE UNIQUE INDEX computers_name ON computers (name) WHERE state NOT IN ('removing', 'trashed');

    CREATE TABLE services (
        computer     BLOB    NOT NULL REFERENCES computers (id) ON DELETE CASCADE,
        name         TEXT    NOT NULL,
        spec         TEXT    NOT NULL,            -- ServiceSpec as JSON
        wanted       INTEGER NOT NULL,            -- 1: runs while its computer runs
        created_at   INTEGER NOT NULL,
        step         INTEGER NOT NULL,            -- its newest start; 0 before the first
        begun        INTEGER NOT NULL,            -- 1: that start is of this run of its computer
        ready        INTEGER NOT NULL,            -- 1: its check has held since
        restarts     INTEGER NOT NULL,
        PRIMARY KEY (computer, name)
    ) STRICT, WITHOUT ROWID;

    -- Outlive their computers.
    CREATE TABLE events (
        number       INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        at           INTEGER NOT NULL,
        kind         TEXT    NOT NULL,
        computer     BLOB,
        name         TEXT,                        -- as the computer was called then
        who          TEXT,
        detail       TEXT    NOT NULL             -- JSON object
    ) STRICT;
    CREATE INDEX events_computer ON events (computer, number) WHERE computer IS NOT NULL;

    -- A row whose thing is gone for good outlives its computer.
    CREATE TABLE undo (
        number       INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
        at           INTEGER NOT NULL,
        who          TEXT    NOT NULL,
        computer     BLOB    NOT NULL,
        name         TEXT    NOT NULL,            -- as the computer was called then
        what         TEXT    NOT NULL,            -- what is taken back, and to what, as JSON
        takes_back   INTEGER,                     -- the row that this took back
        forth        INTEGER NOT NULL,            -- 0: it took something back; 1: it did something
        undone_at    INTEGER,
        gone         TEXT                         -- why it can never be taken back
    ) STRICT;
    CREATE INDEX undo_gone ON undo (number) WHERE gone IS NOT NULL;
    CREATE TRIGGER undo_of_computer AFTER DELETE ON computers BEGIN
        DELETE FROM undo WHERE computer = OLD.id AND gone IS NULL;
    END;
    CREATE INDEX undo_computer ON undo (computer, number);",
    // 4 → 5. What computers share. Who is in which pool is in their specs.
    "CREATE TABLE pools (
        number       INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, -- names its cgroup
        name         TEXT    NOT NULL UNIQUE,
        limits       TEXT    NOT NULL,            -- PoolLimits as JSON
        created_at   INTEGER NOT NULL
    ) STRICT;
    INSERT INTO pools VALUES (0, 'default', '{}', unixepoch() * 1000000);

    -- What translations of other interfaces know of what they made.
    CREATE TABLE facts (
        kind         TEXT    NOT NULL,            -- whose they are: `e2b.sandbox`
        id           TEXT    NOT NULL,
        fact         TEXT    NOT NULL,            -- JSON
        PRIMARY KEY (kind, id)
    ) STRICT, WITHOUT ROWID;",
    // 5 → 6. Whose disk the end of power may take.
    "ALTER TABLE computers ADD COLUMN unwritten INTEGER NOT NULL DEFAULT 0; -- 1: its disk may not be written out yet",
    // 6 → 7. Shared volumes. Who mounts which is in the specs of computers.
    "CREATE TABLE volumes (
        id           BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
        name         TEXT    NOT NULL UNIQUE,
        bytes_max    INTEGER NOT NULL,
        created_at   INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;",
];

/// The schema that is written.
pub(crate) fn known() -> i64 {
    MIGRATIONS.len() as i64
}

/// Opens the database for the writer, migrated to the newest schema, with its WAL there.
/// `again`: it is not made where there is none.
///
/// `copied` is the mark that the database has where a log which is not there any more was copied into it. Returns
/// the mark that is in the log from now on.
pub(crate) fn open(path: &Path, again: bool, copied: Option<&str>) -> Result<(Connection, String), StoreError> {
    try_open(path, again, copied).map_err(|inside| inside.during(Op::Open, path))
}

fn try_open(path: &Path, again: bool, copied: Option<&str>) -> Result<(Connection, String), Inside> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags_and_vfs(path, flags, VFS)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // Else closing a refused file would copy its WAL into it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    let known = MIGRATIONS.len() as i64;
    let found = judge(&connection, path, known)?;
    if let Some(mark) = copied {
        let mut there: Option<String> = None;
        if found > 0 {
            let read = connection.query_row("SELECT value FROM meta WHERE key = ?1", [MARK], |row| row.get(0));
            there = read.optional()?;
        }
        if there.as_deref() != Some(mark) {
            return Err(Inside::Row("its write-ahead log is gone, and what was written last with it".to_owned()));
        }
    }
    if found == 0 && again {
        return Err(StoreError::Missing { path: path.to_owned() }.into());
    }
    if std::fs::metadata(path).is_ok_and(|facts| facts.len() <= CHECKED_BYTES_MAX) {
        whole(&connection)?;
    }
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;

    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if mode != "wal" {
        return Err(Inside::Row(format!("its journal is `{mode}` and will not become `wal`")));
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    migrate(&mut connection, found, known)?;
    let mark = mark(&connection)?;
    tune(&connection)?;
    Ok((connection, mark))
}

/// The schema found in a file that is ours or empty.
pub(crate) fn judge(connection: &Connection, path: &Path, known: i64) -> Result<i64, Inside> {
    let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let found = number("user_version")?;
    let application = number("application_id")?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != APPLICATION && (application != 0 || found != 0 || tables != 0) {
        return Err(StoreError::Foreign { path: path.to_owned() }.into());
    }
    if found > known {
        return Err(StoreError::Newer { path: path.to_owned(), found, known }.into());
    }
    if found < 0 || (found == 0) != (tables == 0) {
        return Err(Inside::Row(format!("it says schema {found} and has {tables} tables and indexes")));
    }
    Ok(found)
}

/// Whether all pages are what they should be. Rows that cannot be read look like rows that are not there, and
/// what has no row is removed.
fn whole(connection: &Connection) -> Result<(), Inside> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found == "ok" { Ok(()) } else { Err(Inside::Row(found)) }
}

/// All missing migrations in one transaction, which is synced.
fn migrate(connection: &mut Connection, found: i64, known: i64) -> Result<(), Inside> {
    if found == known {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    for migration in &MIGRATIONS[found as usize..] {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", known)?;
    transaction.commit()?;
    tracing::info!(from = found, to = known, "store migrated");
    Ok(())
}

/// Writes a mark that no other opening has, and syncs it.
fn mark(connection: &Connection) -> Result<String, Inside> {
    let since = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros());
    let mark = format!("{since:x}-{:x}", std::process::id());
    let written = connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)", [MARK, &mark]);
    match written {
        // On a full disk the log cannot be told from another one: no reason to refuse a start.
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) => Ok(String::new()),
        written => Ok(written.map(|_| mark)?),
    }
}

/// What every write runs under; see the crate's page for why NORMAL is enough.
fn tune(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_size_limit", WAL_BYTES_KEPT, |_| Ok(()))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    Ok(())
}
