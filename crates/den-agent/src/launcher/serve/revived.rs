//! Computers that are read back from a disk: the launcher gives them a place, and takes them up when they are there.
//!
//! ```text
//! Reserve ─► slot of ids, number ─► … another process makes cgroup, link and processes … ─► Taken ─► carried
//!                └─ the connection ends first ─► what is in the cgroup is killed, all of it unmade
//! ```

use std::path::Path;

use den_sys::{SysError, clone, failpoint};
use den_wire::launcher::Reply;

use super::super::builder::Order;
use super::super::cell::{self, Cell, Phase, Record};
use super::super::ids::ids;
use super::{Launcher, PROCESS, watch};

/// A place for one.
pub(super) struct Reserved {
    client: u64,
    sequence: u64,
    slot: u32,
    pool: u64,
}

impl Reserved {
    /// Whether it lies in this pool.
    pub(super) fn is_of(&self, pool: u64) -> bool {
        self.pool == pool
    }
}

impl Launcher {
    /// Gives a computer a place.
    pub(super) fn reserve(&mut self, client: u64, id: String, pool: u64) {
        use rustix::io::Errno;
        let refused = |about: &str, errno: Errno| SysError::new("reserve", about, errno.raw_os_error());
        if self.exit.is_some() || self.by_id.contains_key(&id) || self.reserved.contains_key(&id) {
            return self.refuse(client, &refused("it runs, or nothing does any more", Errno::EXIST));
        }
        let Some(slot) = self.slots.take() else {
            return self.refuse(client, &refused("all slots are in use", Errno::AGAIN));
        };
        let (sequence, base) = (self.sequences.take(), self.slots.base(slot));
        self.reserved.insert(id, Reserved { client, sequence, slot, pool });
        self.answer(client, &Reply::Reserved { link: sequence, base, ids: ids().per_slot }, None);
    }

    /// Takes up a computer that has come to be in its place.
    pub(super) fn take(&mut self, client: u64, id: &str, pid: i32, cpu_milli: u32) {
        let taken = self.take_up(client, id, pid, cpu_milli);
        match taken {
            Ok(sequence) => {
                failpoint::hit("launcher.revived");
                let cell = &self.cells[&sequence];
                let created = Reply::Created { pid: pid as u32, pooled: false, link: sequence, pool: cell.pool };
                self.answer(client, &created, Some(&cell.pidfd));
            }
            Err(error) => self.refuse(client, &error),
        }
    }

    fn take_up(&mut self, client: u64, id: &str, pid: i32, cpu_milli: u32) -> Result<u64, SysError> {
        let gone = || SysError::new("take", id, rustix::io::Errno::SRCH.raw_os_error());
        let reserved = self.reserved.get(id).filter(|reserved| reserved.client == client).ok_or_else(gone)?;
        let (sequence, slot, pool) = (reserved.sequence, reserved.slot, reserved.pool);
        let pidfd = clone::pidfd(pid)?;
        let started = cell::started(pid).ok_or_else(gone)?;
        let home = self.run.join("computers").join(id);
        self.pool_is_made(pool)?;
        watch(&self.epoll, &pidfd, PROCESS | sequence)?;
        Record { pid, started, sequence, slot, pool, cpu_milli: Some(cpu_milli) }.write(Path::new(&home))?;
        self.reserved.remove(id);
        self.by_id.insert(id.to_owned(), sequence);
        let phase = Phase::Running { id: id.to_owned(), waiting: Vec::new() };
        self.cells.insert(sequence, Cell { sequence, pool, cpu_milli, slot: Some(slot), pid, pidfd, phase });
        self.herds.of(pool).computers += 1;
        Ok(sequence)
    }

    /// Whoever was reading these back is gone.
    pub(super) fn abandon(&mut self, client: u64) {
        let left: Vec<_> = self.reserved.extract_if(|_, reserved| reserved.client == client).collect();
        for (id, Reserved { sequence, slot, pool, .. }) in left {
            self.tools.cgroups.kill(&cell::cgroup_name(pool, sequence));
            self.builder.order(Order::Unmake { sequence, slot: Some(slot), pool });
            cell::remove_home(&self.run.join("computers").join(id));
            self.let_go(pool);
        }
    }
}
