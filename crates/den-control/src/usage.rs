//! What all computers use, at one moment.
//!
//! ```text
//! registry ─► state, limits, steps        from memory
//! cgroups  ─► CPU, memory, processes      a few small files of each computer that has processes
//! qgroups  ─► disk                        one small file of each
//! gate     ─► links                       one question for all
//! ```
//!
//! The launcher is not asked, so that nobody who boots a computer waits for whoever watches.

use std::{path::Path, sync::Arc};

use den_api::{ComputerUsage, HostUsage, LinkUsage, UsageList};
use den_gate::wire::{Status, Statuses};
use den_machine::Machine;
use den_model::{Bytes, ComputerId, State};
use den_sys::cgroup::{self, Cgroups};

use crate::{
    Error,
    control::{Control, Inner, blocking, now},
    errors::chain,
    handle::Handle,
    limits::{DISK_LOW_BYTES, DISK_LOW_PERCENT},
};

impl Control {
    /// What every computer uses, and the host. Computers that are being removed are left out.
    ///
    /// Errors: `internal`.
    pub async fn usage(&self) -> Result<UsageList, Error> {
        let inner = Arc::clone(&self.0);
        let (links, looked) = tokio::join!(self.0.gate.statuses(), blocking(move || look(&inner)));
        let mut list = looked?;
        if let Some(links) = &links {
            with_links(&mut list.items, links);
        }
        Ok(list)
    }
}

/// Sets what the gate knows, where the computers and the links have the same order: that of their ids.
pub(crate) fn with_links(items: &mut [ComputerUsage], links: &Statuses) {
    let of = |status: &Status| LinkUsage {
        up_bytes: status.up_bytes,
        down_bytes: status.down_bytes,
        flows: status.flows,
        denied: status.denied,
        limited: status.limited,
    };
    let by_id: std::collections::HashMap<ComputerId, LinkUsage> =
        links.links.iter().filter_map(|(id, status)| Some((id.parse().ok()?, of(status)))).collect();
    for item in items {
        item.net = by_id.get(&item.id).copied();
    }
}

/// All but the links. Blocks: tens of microseconds a computer.
pub(crate) fn look(inner: &Inner) -> UsageList {
    // None before the launcher has made it.
    let cgroups = Cgroups::look(&cgroup::instance_of(&inner.run));
    let cgroups = cgroups.inspect_err(|error| tracing::debug!(error = chain(error), "no cgroups are found")).ok();
    let mut handles = inner.registry.all();
    handles.retain(|handle| !matches!(handle.state(), State::Removing | State::Trashed));
    handles.sort_unstable_by_key(|handle| handle.id);
    let items = handles.iter().map(|handle| of(inner, cgroups.as_ref(), handle)).collect();
    UsageList { at: now(), host: host(inner), items }
}

/// The name of the cgroup of a computer that has processes.
pub(crate) fn cgroup_of(machine: &Machine) -> String {
    machine.cgroup()
}

fn of(inner: &Inner, cgroups: Option<&Cgroups>, handle: &Handle) -> ComputerUsage {
    let (state, machine) = {
        let status = handle.status.borrow();
        (status.state, status.machine.clone())
    };
    let cgroup = cgroups.zip(machine.as_ref().map(cgroup_of));
    let used = cgroup.as_ref().map(|(cgroups, name)| cgroups.usage(name)).unwrap_or_default();
    let limits = handle.limits();
    ComputerUsage {
        id: handle.id,
        name: handle.name().to_string(),
        state,
        cpu_us: used.cpu_us,
        cpus: limits.cpus,
        memory_bytes: used.memory_bytes,
        memory: limits.memory,
        disk_bytes: inner.disks().ok().and_then(|disks| disks.usage(handle.id)).map(|bytes| bytes.0),
        disk: limits.disk,
        pids: used.pids,
        pids_limit: limits.pids,
        oom_kills: used.oom_kills,
        forks_refused: cgroup.map_or(0, |(cgroups, name)| cgroups.forks_refused(&name)),
        steps: handle.steps.last(),
        steps_running: handle.steps.running() as u64,
        net: None,
    }
}

fn host(inner: &Inner) -> HostUsage {
    let (memory_total, memory_available) = memory();
    let (disk_total, disk_free) = room(&inner.data).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32);
    HostUsage { cpus, memory_total, memory_available, disk_total, disk_free }
}

/// Memory in all, and what may still be taken, in bytes.
fn memory() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    };
    let bytes = |key| kib(key).unwrap_or(0) * 1024;
    (bytes("MemTotal:"), bytes("MemAvailable:"))
}

/// The bytes of the filesystem at `path`, and those that are free.
pub(crate) fn room(path: &Path) -> std::io::Result<(u64, u64)> {
    let found = rustix::fs::statvfs(path)?;
    Ok((found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize))
}

/// Below so many free bytes a disk of `total` bytes is low.
pub(crate) fn low(total: u64) -> Bytes {
    Bytes((total / 100 * DISK_LOW_PERCENT).min(DISK_LOW_BYTES.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_disk_is_low_later() {
        assert_eq!(low(10 << 30).0, (10 << 30) / 100 * DISK_LOW_PERCENT);
        assert_eq!(low(10 << 40), DISK_LOW_BYTES);
    }

    #[test]
    fn the_host_has_memory_and_a_disk() {
        let (total, available) = memory();
        assert!(0 < available && available <= total, "{available} of {total}");
        let (total, free) = room(Path::new("/")).unwrap();
        assert!(0 < total && free <= total, "{free} of {total}");
    }
}
