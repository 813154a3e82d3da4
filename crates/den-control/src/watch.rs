//! Looks every few seconds at what nobody is told of: limits that computers run into, and a disk that fills.
//!
//! Each is told once: counters when they have risen, a level when it is crossed, again only after it was
//! well left. What was counted before this daemon began is not news.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use den_api::{ComputerUsage, UsageList};
use den_model::{Bytes, ComputerId, EventKind, State};
use serde_json::{Value, json};

use crate::{
    control::{Inner, blocking},
    events::Events,
    handle::Handle,
    limits::{DISK_LEFT_PERCENT, DISK_REACHED_PERCENT, WATCH_EVERY},
    usage::{look, low, room, with_links},
};

/// What was seen of a computer last.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Seen {
    oom_kills: u64,
    forks_refused: u64,
    limited: u64,
    /// Its disk was full, and has not had room since.
    full: bool,
}

/// What is to be told.
type News = (EventKind, Option<ComputerId>, Value);

/// What was seen last.
#[derive(Debug, Default)]
struct Last {
    /// There was a look before.
    begun: bool,
    computers: HashMap<ComputerId, Seen>,
    /// Filesystems that were low.
    low: Vec<&'static str>,
}

/// Who watches.
#[derive(Debug, Default)]
pub(crate) struct Watch(Mutex<Last>);

impl Watch {
    fn last(&self) -> MutexGuard<'_, Last> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells at once of what is seen last of a computer that has ended by itself.
    pub(crate) fn died(&self, events: &Events, handle: &Handle, oom_kills: u64) {
        let mut last = self.last();
        let seen = last.computers.entry(handle.id).or_default();
        let kills = oom_kills.saturating_sub(seen.oom_kills);
        seen.oom_kills = oom_kills;
        if kills > 0 {
            let limit = handle.limits().memory.to_string();
            events.tell(EventKind::Oom, Some(handle), None, json!({ "processes": kills, "limit": limit }));
        }
    }
}

/// Looks until the house is dropped.
pub(crate) async fn run(inner: Weak<Inner>) {
    let mut every = tokio::time::interval(WATCH_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let Some(inner) = inner.upgrade() else { return };
        if inner.open_for_work().is_err() {
            return;
        }
        let links = inner.gate.statuses().await;
        let looking = Arc::clone(&inner);
        let looked = blocking(move || {
            looking.reserve.take();
            (look(&looking), places(&looking))
        })
        .await;
        let Ok((mut list, places)) = looked else { continue };
        if let Some(links) = &links {
            with_links(&mut list.items, links);
        }
        let news = {
            let mut last = inner.watch.last();
            [last.compare(&list), last.rooms(&places)].concat()
        };
        for (kind, computer, detail) in news {
            let handle = computer.and_then(|id| inner.registry.get(id));
            inner.events.tell(kind, handle.as_deref(), None, detail);
        }
    }
}

/// The filesystems that the house lies on: name, size, free.
fn places(inner: &Inner) -> Vec<(&'static str, u64, u64)> {
    let places = [("data", inner.data.clone()), ("computers", inner.data.join("computers"))];
    let found = places.into_iter().filter_map(|(name, path)| room(&path).ok().map(|(total, free)| (name, total, free)));
    found.collect()
}

impl Last {
    /// What has happened to computers since the last look.
    fn compare(&mut self, list: &UsageList) -> Vec<News> {
        let mut news = Vec::new();
        let mut next = HashMap::with_capacity(list.items.len());
        for item in &list.items {
            let before = self.computers.get(&item.id).cloned();
            // What is there at the first look has a past; what comes later has none.
            let before = before.unwrap_or_else(|| if self.begun { Seen::default() } else { seen(item) });
            let mut now = seen(item);
            now.full = full(item, before.full);
            if item.net.is_none() {
                now.limited = before.limited;
            }
            let mut tell = |kind, detail| news.push((kind, Some(item.id), detail));
            let rise = |now: u64, before: u64| if now < before { now } else { now - before };
            let kills = rise(now.oom_kills, before.oom_kills);
            if kills > 0 {
                tell(EventKind::Oom, json!({ "processes": kills, "limit": item.memory.to_string() }));
            }
            let refused = rise(now.forks_refused, before.forks_refused);
            if refused > 0 {
                tell(EventKind::LimitReached, json!({ "what": "pids", "limit": item.pids_limit, "times": refused }));
            }
            let limited = rise(now.limited, before.limited);
            if limited > 0 {
                let see = format!("den net log {} --kind limit", item.name);
                tell(EventKind::LimitReached, json!({ "what": "net", "times": limited, "see": see }));
            }
            if now.full && !before.full {
                let used = item.disk_bytes.map(|bytes| Bytes(bytes).to_string());
                tell(EventKind::LimitReached, json!({ "what": "disk", "limit": item.disk.to_string(), "used": used }));
            }
            next.insert(item.id, now);
        }
        (self.begun, self.computers) = (true, next);
        news
    }

    /// Which filesystems have become low.
    fn rooms(&mut self, places: &[(&'static str, u64, u64)]) -> Vec<News> {
        let mut news = Vec::new();
        for &(name, total, free) in places {
            let line = low(total).0;
            let was = self.low.contains(&name);
            if free < line && !was {
                self.low.push(name);
                let (free, total) = (Bytes(free).to_string(), Bytes(total).to_string());
                news.push((EventKind::DiskLow, None, json!({ "place": name, "free": free, "size": total })));
            } else if free > line.saturating_mul(2) && was {
                self.low.retain(|other| *other != name);
            }
        }
        news
    }
}

/// A computer that does not run has no counters: they begin anew.
fn seen(item: &ComputerUsage) -> Seen {
    if matches!(item.state, State::Stopped | State::Failed) {
        return Seen::default();
    }
    Seen {
        oom_kills: item.oom_kills,
        forks_refused: item.forks_refused,
        limited: item.net.map_or(0, |net| net.limited),
        full: false,
    }
}

/// Whether a disk is full; one that was stays so until there is some room again.
fn full(item: &ComputerUsage, was: bool) -> bool {
    let Some(used) = item.disk_bytes else { return false };
    let percent = if was { DISK_LEFT_PERCENT } else { DISK_REACHED_PERCENT };
    used >= item.disk.0 / 100 * percent
}

#[cfg(test)]
mod tests {
    use den_api::{HostUsage, LinkUsage};
    use den_model::Cpus;
    use uuid::Uuid;

    use super::*;

    fn item(oom_kills: u64, disk_bytes: u64, limited: Option<u64>) -> ComputerUsage {
        ComputerUsage {
            id: ComputerId::from_uuid(Uuid::from_u128(1)),
            name: "a".to_owned(),
            state: State::Running,
            cpu_us: 0,
            cpus: Cpus(1000),
            memory_bytes: 0,
            memory: Bytes::gib(1),
            disk_bytes: Some(disk_bytes),
            disk: Bytes(1000),
            pids: 1,
            pids_limit: 10,
            oom_kills,
            forks_refused: 0,
            steps: 0,
            steps_running: 0,
            net: limited.map(|limited| LinkUsage { up_bytes: 0, down_bytes: 0, flows: 0, denied: 0, limited }),
        }
    }

    fn told(last: &mut Last, item: ComputerUsage) -> Vec<String> {
        let host = HostUsage { cpus: 1, memory_total: 0, memory_available: 0, disk_total: 0, disk_free: 0 };
        let news = last.compare(&UsageList { at: 0, host, items: vec![item] });
        news.into_iter().map(|(kind, _, detail)| format!("{kind} {}", detail["what"].as_str().unwrap_or(""))).collect()
    }

    #[test]
    fn the_first_look_is_no_news_and_a_rise_is() {
        let mut last = Last::default();
        assert!(told(&mut last, item(5, 0, Some(3))).is_empty());
        assert_eq!(told(&mut last, item(6, 0, Some(4))), ["oom ", "limit_reached net"]);
        assert!(told(&mut last, item(6, 0, None)).is_empty());
        // The gate was away, and what it counts is the same.
        assert!(told(&mut last, item(6, 0, Some(4))).is_empty());
        // Booted anew: it counts from 0.
        assert_eq!(told(&mut last, item(1, 0, Some(4))), ["oom "]);
    }

    #[test]
    fn what_was_made_since_has_no_past() {
        let mut last = Last { begun: true, ..Last::default() };
        assert_eq!(told(&mut last, item(1, 0, None)), ["oom "]);
    }

    #[test]
    fn a_full_disk_is_told_once_until_it_has_room() {
        let mut last = Last::default();
        let seen: Vec<bool> =
            [500, 990, 1000, 960, 995, 900, 990].map(|used| !told(&mut last, item(0, used, None)).is_empty()).to_vec();
        assert_eq!(seen, [false, true, false, false, false, false, true]);
    }

    #[test]
    fn a_low_filesystem_is_told_once() {
        let mut last = Last::default();
        let seen = [50, 4, 3, 8, 4, 50, 4].map(|free| !last.rooms(&[("data", 100, free)]).is_empty());
        assert_eq!(seen, [false, true, false, false, false, false, true]);
    }
}
