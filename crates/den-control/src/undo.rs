//! Taking back what was done last: a removal, a restore, a merge, a change of what a computer may reach or
//! of its size.
//!
//! ```text
//! the thing ──one transaction──► row: what leads back
//! undo ──► newest row that does something and was not taken back ─► done the other way, as a thing of its own
//! ```
//!
//! Invariants:
//! - A thing and its row are there both or neither, and a row is taken back once.
//! - Taking back loses nothing: a restore keeps the state that it leaves, and is taken back itself by its number.
//! - The last thing is never passed over for an older one because it cannot be taken back: that is said.
//!
//! What the kinds mean is here alone; the store keeps them as text.

use den_api::{ComputerView, SnapshotView, UndoList, UndoRequest, UndoView, Undone};
use den_gate::policy::Policy;
use den_model::{ComputerName, EventKind, Limits, Micros, State, StateName};
use den_store::{NewUndo, UndoOf, UndoRow};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    Error, Who,
    control::{Control, page_limit},
    handle::{Ask, Handle},
    limits::UNDO_SHOWN_MAX,
    resize::{self, Size},
    trash::Undelete,
};

/// Where a row says to which kept state it leads back.
pub(crate) const UNDO_BEFORE: &str = "$.before";

/// What was done, and what leads back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum What {
    /// It was removed.
    Rm {
        /// Where it stood.
        before: State,
    },
    /// Its disk was taken back.
    Restore {
        /// To which state, as it was called.
        to: String,
        /// The number of the state before.
        before: u64,
    },
    /// Changes of a fork came in.
    Merge {
        /// Of which.
        from: String,
        /// The number of the state before.
        before: u64,
    },
    /// What it may reach was changed.
    Net {
        /// What it might before.
        before: Box<Policy>,
        /// What it may since.
        after: Box<Policy>,
    },
    /// It got another size.
    Resize {
        /// What it had before.
        before: Limits,
        /// What it has since.
        after: Limits,
    },
}

impl What {
    /// As it is recorded; `takes_back` is the row that it undoes.
    pub(crate) fn record(&self, handle: &Handle, who: &str, at: Micros, takes_back: Option<u64>) -> NewUndo {
        NewUndo {
            at,
            who: who.to_owned(),
            name: handle.name().to_string(),
            what: serde_json::to_string(self).expect("plain data"),
            takes_back,
        }
    }

    fn read(row: &UndoRow) -> Result<Self, Error> {
        serde_json::from_str(&row.what)
            .map_err(|error| Error::internal(format!("what number {} takes back", row.number)).because(error))
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Rm { .. } => "rm",
            Self::Restore { .. } => "restore",
            Self::Merge { .. } => "merge",
            Self::Net { .. } => "net",
            Self::Resize { .. } => "resize",
        }
    }

    /// In words.
    fn text(&self, name: &str) -> String {
        match self {
            Self::Rm { .. } => format!("removal of {name}"),
            Self::Restore { to, .. } => format!("restore of {name} to {to}"),
            Self::Merge { from, .. } => format!("merge of {from} into {name}"),
            Self::Net { before, after } => format!("network of {name}: {}, was {}", short(after), short(before)),
            Self::Resize { before, after } => {
                format!("size of {name}: {}, was {}", sizes(after, before), sizes(before, after))
            }
        }
    }
}

/// A policy in few words.
fn short(policy: &Policy) -> String {
    match policy.allow.len() + policy.deny.len() {
        0 => policy.posture.to_string(),
        1 => format!("{} with 1 rule", policy.posture),
        rules => format!("{} with {rules} rules", policy.posture),
    }
}

/// Those of `limits` that are not as in `other`.
fn sizes(limits: &Limits, other: &Limits) -> String {
    let named = [
        (limits.cpus != other.cpus, format!("cpus {}", limits.cpus)),
        (limits.memory != other.memory, format!("memory {}", limits.memory)),
        (limits.disk != other.disk, format!("disk {}", limits.disk)),
        (limits.pids != other.pids, format!("pids {}", limits.pids)),
    ];
    let named: Vec<_> = named.into_iter().filter_map(|(differs, text)| differs.then_some(text)).collect();
    named.join(" ")
}

impl Control {
    /// Takes back the last thing that was done, to `computer` or to any, or the one of a number.
    ///
    /// Errors: `nothing_to_undo`; `undo_gone` where it can never be taken back; `changed_since`; `name_taken`;
    /// `computer_not_found`, `computer_trashed`; `bad_name`, `bad_request`; and what a restore meets.
    pub async fn undo(&self, request: UndoRequest, who: &Who) -> Result<Undone, Error> {
        self.0.open_for_work()?;
        let UndoRequest { computer, number, name } = request;
        let row = self.undoable(computer.as_deref(), number).await?;
        let what = What::read(&row)?;
        if let Some(obstacle) = self.obstacle(&row, &what) {
            return Err(obstacle);
        }
        let handle = self.0.registry.get(row.computer).ok_or_else(|| gone(&row, &what, "nothing of it is left"))?;
        let name = name.map(|name| name.parse::<ComputerName>().map_err(|error| Error::bad_name("as", &error)));
        let name = name.transpose()?;
        if name.is_some() && !matches!(what, What::Rm { .. }) {
            return Err(Error::bad_request(format!(
                "`as`: the {} is taken back under no other name",
                what.text(&row.name)
            ))
            .hint("only what was removed comes back under another name"));
        }
        tracing::debug!(computer = %handle.id, number = row.number, kind = what.kind(), who = who.0, "an undo is asked for");
        let (computer, before) = match &what {
            What::Rm { before } => {
                let undelete = Undelete { number: row.number, before: *before, name, who: who.0.clone() };
                (handle.ask(|reply| Ask::Undelete { undelete, reply }).await?, None)
            }
            What::Restore { before, .. } | What::Merge { before, .. } => {
                let view = self.restore_for(&handle, StateName::Snapshot(*before), who, Some(row.number)).await?;
                (view.computer, Some(view.before))
            }
            What::Net { before, after } => {
                let (before, after) = (before.clone(), after.clone());
                self.put_net(&handle, who, Some(row.number), move |now| match *now == *after {
                    true => Ok(*before),
                    false => Err(changed_since()),
                })
                .await?;
                (handle.view(), None)
            }
            What::Resize { before, after } => {
                let (size, who) = (Size::Back { number: row.number, before: *before, after: *after }, who.0.clone());
                handle.ask(|reply| Ask::Resize { size, who, reply }).await?;
                (handle.view(), None)
            }
        };
        let detail = json!({ "number": row.number, "kind": what.kind(), "what": what.text(&row.name) });
        let shown = self.0.registry.get(row.computer);
        self.0.events.tell(EventKind::Undone, shown.as_deref(), Some(&who.0), detail);
        self.undone(row, computer, before).await
    }

    async fn undone(
        &self,
        row: UndoRow,
        computer: ComputerView,
        before: Option<SnapshotView>,
    ) -> Result<Undone, Error> {
        let of = UndoOf::Some { computers: vec![row.computer], gone: None };
        let rows = self.0.store.undo_rows(of, UNDO_SHOWN_MAX).await?;
        let redo = rows.iter().find(|other| other.takes_back == Some(row.number)).map(|other| other.number);
        let row = self.0.store.undo_row(row.number).await?.unwrap_or(row);
        Ok(Undone { undone: self.view(row)?, computer, before, redo })
    }

    /// What was done, the newest first, and whether it can be taken back.
    ///
    /// Errors: `computer_not_found`; `bad_request` for a limit that makes no sense.
    pub async fn undo_list(&self, computer: Option<&str>, limit: Option<usize>) -> Result<UndoList, Error> {
        let rows = self.rows(computer, page_limit(limit)?).await?;
        Ok(UndoList { items: rows.into_iter().map(|row| self.view(row)).collect::<Result<_, _>>()? })
    }

    async fn rows(&self, computer: Option<&str>, limit: usize) -> Result<Vec<UndoRow>, Error> {
        let Some(text) = computer else { return Ok(self.0.store.undo_rows(UndoOf::All, limit).await?) };
        let mut computers = self.0.registry.called(text)?;
        let is_known = !computers.is_empty();
        computers.extend(text.parse().ok().filter(|id| !computers.contains(id)));
        let rows = self.0.store.undo_rows(UndoOf::Some { computers, gone: Some(text.to_owned()) }, limit).await?;
        match is_known || !rows.is_empty() {
            true => Ok(rows),
            false => {
                Err(Error::computer_not_found(text).hint("`den ls` lists those there are, `den trash` those removed"))
            }
        }
    }

    /// The row that is meant.
    async fn undoable(&self, computer: Option<&str>, number: Option<u64>) -> Result<UndoRow, Error> {
        let none = |message: String| {
            Error::new("nothing_to_undo", 409, message)
                .hint("`den undo --list` shows what was done and can be taken back")
        };
        let Some(number) = number else {
            let rows = self.rows(computer, UNDO_SHOWN_MAX).await?;
            return rows.into_iter().find(|row| row.forth && row.undone_at.is_none()).ok_or_else(|| {
                none(match computer {
                    Some(name) => format!("nothing was done to `{name}` that could be taken back"),
                    None => "nothing was done that could be taken back".to_owned(),
                })
            });
        };
        let row = self.0.store.undo_row(number).await?;
        let row = row.ok_or_else(|| none(format!("there is no number {number} among what was done")))?;
        if let Some(name) = computer
            && !self.0.registry.called(name)?.contains(&row.computer)
        {
            return Err(none(format!("number {number} was done to `{}`, not to `{name}`", row.name)));
        }
        Ok(row)
    }

    /// Why it cannot be taken back.
    fn obstacle(&self, row: &UndoRow, what: &What) -> Option<Error> {
        let (number, name) = (row.number, &row.name);
        if row.undone_at.is_some() {
            let message = format!("number {number}, the {}, was taken back already", what.text(name));
            return Some(Error::new("nothing_to_undo", 409, message).hint("`den undo --list` shows what can be"));
        }
        if let Some(why) = &row.gone {
            return Some(gone(row, what, why));
        }
        let Some(handle) = self.0.registry.get(row.computer) else {
            return Some(gone(row, what, "nothing of it is left"));
        };
        let trashed = handle.state() == State::Trashed;
        match what {
            What::Rm { .. } => (!trashed).then(|| {
                let message = format!("`{name}` is not in the trash any more");
                Error::new("nothing_to_undo", 409, message).hint("`den trash` lists what is")
            }),
            _ if trashed => Some(Error::trashed(handle.name())),
            What::Restore { before, .. } | What::Merge { before, .. } => {
                handle.history.kept(*before).is_none().then(|| {
                    gone(row, what, "the state before it was let go").hint(format!(
                        "`den snaps {0}` lists the states that are kept; `den restore {0}@STATE` goes back to one",
                        handle.name()
                    ))
                })
            }
            What::Net { after, .. } => (handle.net.get().policy != **after).then(changed_since),
            What::Resize { after, .. } => (handle.limits() != *after).then(resize::changed_since),
        }
    }

    fn view(&self, row: UndoRow) -> Result<UndoView, Error> {
        let what = What::read(&row)?;
        let obstacle = self.obstacle(&row, &what);
        Ok(UndoView {
            number: row.number,
            at: row.at,
            computer: row.computer,
            kind: what.kind().to_owned(),
            text: what.text(&row.name),
            takes_back: row.takes_back,
            undone_at: row.undone_at,
            possible: obstacle.is_none(),
            why_not: obstacle.map(|error| error.message),
            who: row.who,
            name: row.name,
        })
    }
}

/// It can never be taken back.
fn gone(row: &UndoRow, what: &What, why: &str) -> Error {
    Error::new("undo_gone", 410, format!("the {} cannot be taken back: {why}", what.text(&row.name)))
        .hint("`den undo --list` and `den trash` show what can: `den undo --number N`, or `den undo ID`")
}

fn changed_since() -> Error {
    Error::new("changed_since", 409, "what the computer may reach was changed again since")
        .hint("take the later change back first, or change it with `den net`")
}

#[cfg(test)]
mod tests {
    use den_model::{Bytes, Cpus};

    use super::*;

    #[test]
    fn what_was_done_reads_back_and_is_told_in_words() {
        let policy = |posture: &str| Box::new(Policy { posture: posture.parse().unwrap(), ..Policy::default() });
        let check = |what: What, kind: &str, words: &str| {
            let text = serde_json::to_string(&what).unwrap();
            assert!(text.starts_with(&format!("{{\"kind\":\"{kind}\"")), "{text}");
            assert_eq!(serde_json::from_str::<What>(&text).unwrap(), what);
            assert_eq!((what.kind(), what.text("web").as_str()), (kind, words));
        };
        check(What::Rm { before: State::Running }, "rm", "removal of web");
        check(What::Restore { to: "12".into(), before: 4 }, "restore", "restore of web to 12");
        check(What::Merge { from: "try@now".into(), before: 4 }, "merge", "merge of try@now into web");
        let mut after = policy("guarded");
        after.allow.push("example.com".parse().unwrap());
        check(What::Net { before: policy("open"), after }, "net", "network of web: guarded with 1 rule, was open");
        let before = Limits { cpus: Cpus(2000), memory: Bytes::gib(4), disk: Bytes::gib(20), pids: 4096 };
        let after = Limits { cpus: Cpus(500), memory: Bytes::gib(8), ..before };
        let words = "size of web: cpus 0.5 memory 8 GiB, was cpus 2 memory 4 GiB";
        check(What::Resize { before, after }, "resize", words);
    }
}
