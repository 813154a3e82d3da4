//! Who may write to a place: one at a time.
//!
//! ```text
//! take: put lease.json unless it is there ─► ours ─ renewed every minute ─► given back
//!              └ there: its holder is gone ─► removed, and once more
//! ```
//!
//! A holder of this host and boot is gone when its process is, however long it is silent, and one of this process
//! when nobody here has its lease any more; another one when it was silent for ten minutes.
//!
//! Two that take over from the same dead holder at once both look again after a moment; one finds the other's.
//! What a writer puts is named by its content, so two writers would at worst store a chunk twice: the lease
//! keeps writers and those apart who remove what nobody needs.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{BackupError, place::Place};

const NAME: &str = "lease.json";
/// A holder elsewhere that was silent for so long is gone.
const SILENT_MAX: Duration = Duration::from_secs(600);
const RENEW_EVERY: Duration = Duration::from_secs(60);
/// After taking over from somebody: who else did so meanwhile has written by then.
const SETTLE: Duration = Duration::from_millis(1500);
/// How often it is tried to take what somebody let go of at that moment.
const TRIES_MAX: u32 = 3;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    /// Drawn for each lease.
    lease: String,
    host: String,
    /// Of the kernel: with the process it tells whether the holder is still there.
    boot: String,
    pid: u32,
    /// When the process began, in ticks since the boot.
    begun: u64,
    /// When it was last renewed: seconds since the epoch.
    at_s: u64,
}

/// The leases that this process has.
static HELD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The right to write to a place. It has to be given back; one that is only dropped is passed over by this process
/// at once, by others once it is gone.
pub(crate) struct Lease {
    holder: Holder,
    renewed: Instant,
}

impl Lease {
    /// Takes it.
    ///
    /// Errors: `Locked` while somebody else has it.
    pub(crate) fn take(place: &Place) -> Result<Self, BackupError> {
        let holder = Holder {
            lease: uuid::Uuid::now_v7().to_string(),
            host: host_name(),
            boot: boot_id(),
            pid: std::process::id(),
            begun: begun(std::process::id()).unwrap_or(0),
            at_s: now_s(),
        };
        let mut lease = Self { holder, renewed: Instant::now() };
        held().insert(lease.holder.lease.clone());
        for _ in 0..TRIES_MAX {
            lease.holder.at_s = now_s();
            if place.put_new(NAME, bytes(&lease.holder))? {
                lease.renewed = Instant::now();
                return Ok(lease);
            }
            let Some(other) = read(place)? else { continue };
            if !other.is_gone() {
                return Err(BackupError::Locked { place: place.to_string(), holder: other.to_string() });
            }
            tracing::warn!(%place, holder = %other, "a place of backups is taken over from somebody who is gone");
            place.delete(NAME)?;
            if place.put_new(NAME, bytes(&lease.holder))? {
                std::thread::sleep(SETTLE);
                if read(place)?.is_some_and(|now| now.lease == lease.holder.lease) {
                    lease.renewed = Instant::now();
                    return Ok(lease);
                }
            }
        }
        let holder = read(place)?.map_or_else(|| "somebody".to_owned(), |holder| holder.to_string());
        Err(BackupError::Locked { place: place.to_string(), holder })
    }

    /// Says from time to time that it is still in use.
    ///
    /// Errors: `Lost` where somebody took it over.
    pub(crate) fn renew(&mut self, place: &Place) -> Result<(), BackupError> {
        if self.renewed.elapsed() < RENEW_EVERY {
            return Ok(());
        }
        self.check(place)?;
        self.holder.at_s = now_s();
        place.put(NAME, bytes(&self.holder))?;
        self.renewed = Instant::now();
        Ok(())
    }

    /// Makes sure that it is still ours.
    pub(crate) fn check(&self, place: &Place) -> Result<(), BackupError> {
        match read(place)? {
            Some(now) if now.lease == self.holder.lease => Ok(()),
            other => Err(BackupError::Lost {
                place: place.to_string(),
                holder: other.map_or_else(|| "somebody".to_owned(), |holder| holder.to_string()),
            }),
        }
    }

    /// Gives it back.
    pub(crate) fn give_back(self, place: &Place) {
        let given = self.check(place).and_then(|()| place.delete(NAME));
        if let Err(error) = given {
            tracing::warn!(%place, %error, "the lease on a place of backups runs out by itself");
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        held().remove(&self.holder.lease);
    }
}

fn held() -> std::sync::MutexGuard<'static, BTreeSet<String>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} of {}", self.pid, self.host)
    }
}

impl Holder {
    fn is_gone(&self) -> bool {
        if self.host == host_name() && self.boot == boot_id() {
            let is_there = begun(self.pid) == Some(self.begun);
            return !is_there || (self.pid == std::process::id() && !held().contains(&self.lease));
        }
        // A clock that was put back makes it younger than now: it is waited for.
        now_s().saturating_sub(self.at_s) > SILENT_MAX.as_secs()
    }
}

fn read(place: &Place) -> Result<Option<Holder>, BackupError> {
    let Some(bytes) = place.get(NAME)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|_| BackupError::Foreign { place: place.to_string() })
}

fn bytes(holder: &Holder) -> bytes::Bytes {
    serde_json::to_vec(holder).expect("plain data").into()
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The host's name.
pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// When a process began, in ticks since the boot: proc_pid_stat(5).
fn begun(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may have anything in it.
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::Credentials;

    #[test]
    fn one_at_a_time_and_the_dead_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::new(folder.path().to_str().unwrap(), &Credentials::default()).unwrap();
        let mut lease = Lease::take(&place).unwrap();
        assert_eq!(Lease::take(&place).err().unwrap().code(), "backup_locked");
        lease.renewed -= RENEW_EVERY;
        lease.renew(&place).unwrap();
        lease.give_back(&place);
        let held = Lease::take(&place).unwrap();
        // As a process that died left it: another one has its number.
        let dead = Holder { begun: held.holder.begun + 1, ..held.holder.clone() };
        place.put(NAME, bytes(&dead)).unwrap();
        let taken = Lease::take(&place).unwrap();
        // One that stood still for long, and is there.
        let slow = Holder { at_s: 0, ..taken.holder.clone() };
        place.put(NAME, bytes(&slow)).unwrap();
        assert_eq!(Lease::take(&place).err().unwrap().code(), "backup_locked");
        assert_eq!(held.check(&place).err().unwrap().code(), "backup_taken_over");
        // As another host did that was silent for too long, and one that was not.
        let elsewhere = Holder { host: "elsewhere".to_owned(), lease: "x".to_owned(), ..taken.holder.clone() };
        place.put(NAME, bytes(&elsewhere)).unwrap();
        assert_eq!(Lease::take(&place).err().unwrap().code(), "backup_locked");
        let silent = Holder { at_s: elsewhere.at_s - SILENT_MAX.as_secs() - 1, ..elsewhere };
        place.put(NAME, bytes(&silent)).unwrap();
        Lease::take(&place).unwrap().give_back(&place);
        assert!(read(&place).unwrap().is_none());
        // As where the place did not answer when it was given back.
        drop(Lease::take(&place).unwrap());
        assert!(read(&place).unwrap().is_some());
        Lease::take(&place).unwrap().give_back(&place);
    }
}
