//! The virtual addresses of names, and the names behind real addresses: one table per computer.
//!
//! ```text
//! name ──blake3(key, name)──► 198.18.0.0/15 ──taken? the next one──► line in `names`
//! ```
//!
//! Invariants:
//! - One address stands for one name at a time, and a name keeps its address for as long as it is
//!   remembered, over a restart of the gate too: what sits in a computer's caches stays right.
//! - Where nothing collides the address follows from the key and the name alone, so a name that was
//!   forgotten gets the same one again.
//! - The file holds whole lines. What a crash has torn off its end is cut away at the next opening.
//!
//! Not here: who may ask for a name ([`crate::policy`]).

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::host::Host;

/// Names of one computer that have a virtual address, at most. Then those that were not used for
/// the longest time go.
pub const NAMES_MAX: usize = 16384;
/// How many go at once: the file is written anew each time.
const EVICTED: usize = NAMES_MAX / 16;
/// Longest file that is read: twice what [`NAMES_MAX`] of the longest names take.
const FILE_BYTES_MAX: u64 = 10 << 20;
/// First address of the block: 198.18.0.0/15 (RFC 2544), which is never on the internet.
const BASE: u32 = 0xC612_0000;
/// Addresses in the block.
const SPACE: u32 = 1 << 17;

/// Real addresses that are remembered with the names they were given out for, at most.
const PINS_MAX: usize = 4096;
/// Names of one address, at most: many names of one host share an address.
const PINS_PER_ADDRESS: usize = 8;
/// A pin lives at least this long: programs keep addresses for longer than they should.
const PIN_MIN: Duration = Duration::from_secs(3600);

/// Which name has which virtual address in one computer, and which real addresses it was told.
#[derive(Debug)]
pub struct Names {
    key: [u8; 32],
    path: PathBuf,
    table: Mutex<Table>,
    pins: Mutex<HashMap<Ipv4Addr, Vec<Pin>>>,
}

#[derive(Debug)]
struct Table {
    file: File,
    by_name: HashMap<Host, Slot>,
    by_offset: HashMap<u32, Host>,
    /// Counts uses: the order in which names go.
    clock: u64,
}

#[derive(Debug)]
struct Slot {
    offset: u32,
    used: u64,
}

#[derive(Debug)]
struct Pin {
    name: Host,
    until: Instant,
}

/// Is this an address of the block from which virtual addresses are given?
pub fn is_virtual(address: Ipv4Addr) -> bool {
    u32::from(address) & !(SPACE - 1) == BASE
}

impl Names {
    /// Opens the table in `folder`/names, and makes it where there is none.
    ///
    /// # Errors
    /// Where the file cannot be opened, read or repaired; a symbolic link is not followed.
    pub fn open(folder: &Path, key: [u8; 32]) -> io::Result<Self> {
        let path = folder.join("names");
        let mut file = open_file(&path)?;
        let mut length = file.metadata()?.len();
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(length.saturating_sub(FILE_BYTES_MAX)))?;
        Read::by_ref(&mut file).take(FILE_BYTES_MAX).read_to_end(&mut text)?;
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        if whole < text.len() {
            length -= (text.len() - whole) as u64;
            file.set_len(length)?;
        }

        let mut table = Table { file, by_name: HashMap::new(), by_offset: HashMap::new(), clock: 0 };
        let mut lines = 0_usize;
        for line in text[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            lines += 1;
            if let Some((offset, name)) = parse_line(line) {
                table.put(offset, name);
            }
        }
        let names = Self { key, path, table: Mutex::new(table), pins: Mutex::new(HashMap::new()) };
        {
            let mut table = names.table();
            let over = table.by_name.len().saturating_sub(NAMES_MAX);
            if over > 0 || lines > 2 * table.by_name.len() + 1024 {
                table.forget(over);
                table.rewrite(&names.path)?;
            }
        }
        Ok(names)
    }

    /// Returns the virtual address of a name; gives it one where it has none yet.
    ///
    /// # Errors
    /// Where a new address cannot be written down; then it was not given.
    pub fn address_of(&self, name: &Host) -> io::Result<Ipv4Addr> {
        let mut table = self.table();
        let table = &mut *table;
        table.clock += 1;
        if let Some(slot) = table.by_name.get_mut(name) {
            slot.used = table.clock;
            return Ok(address(slot.offset));
        }
        if table.by_name.len() >= NAMES_MAX {
            table.forget(EVICTED);
            table.rewrite(&self.path)?;
        }
        let mut offset = self.first_choice(name);
        while is_reserved(offset) || table.by_offset.contains_key(&offset) {
            offset = (offset + 1) % SPACE;
        }
        let line = format!("{} {}\n", address(offset), name.as_str());
        let before = table.file.metadata()?.len();
        if let Err(error) = table.file.write_all(line.as_bytes()) {
            // Half a line would spoil the next one.
            let _ = table.file.set_len(before);
            return Err(error);
        }
        table.put(offset, name.clone());
        Ok(address(offset))
    }

    /// Returns the name that a virtual address stands for.
    pub fn name_of(&self, address: Ipv4Addr) -> Option<Host> {
        if !is_virtual(address) {
            return None;
        }
        let mut table = self.table();
        let table = &mut *table;
        let name = table.by_offset.get(&(u32::from(address) - BASE))?;
        table.clock += 1;
        if let Some(slot) = table.by_name.get_mut(name) {
            slot.used = table.clock;
        }
        Some(name.clone())
    }

    /// Remembers the real addresses that this computer was told for a name.
    pub fn pin(&self, name: &Host, addresses: &[Ipv4Addr], ttl: Duration) {
        let now = Instant::now();
        let until = now + ttl.max(PIN_MIN);
        let mut pins = lock(&self.pins);
        if pins.len() + addresses.len() > PINS_MAX {
            pins.retain(|_, names| {
                names.retain(|pin| pin.until > now);
                !names.is_empty()
            });
        }
        for address in addresses {
            if pins.len() >= PINS_MAX && !pins.contains_key(address) {
                let oldest = pins.iter().min_by_key(|(_, names)| names.iter().map(|pin| pin.until).max());
                if let Some(oldest) = oldest.map(|(address, _)| *address) {
                    pins.remove(&oldest);
                }
            }
            let names = pins.entry(*address).or_default();
            names.retain(|pin| pin.name != *name);
            if names.len() >= PINS_PER_ADDRESS {
                names.remove(0);
            }
            names.push(Pin { name: name.clone(), until });
        }
    }

    /// Returns the name for which this computer was told a real address last.
    pub fn pinned(&self, address: Ipv4Addr) -> Option<Host> {
        let now = Instant::now();
        let pins = lock(&self.pins);
        pins.get(&address)?.iter().rev().find(|pin| pin.until > now).map(|pin| pin.name.clone())
    }

    /// Was this computer told this address for this name? Many names may share an address, so what
    /// was spoken decides which of them is meant.
    pub fn is_pinned(&self, address: Ipv4Addr, name: &Host) -> bool {
        let now = Instant::now();
        let pins = lock(&self.pins);
        pins.get(&address).is_some_and(|names| names.iter().any(|pin| pin.name == *name && pin.until > now))
    }

    /// Where the search for a free address begins.
    fn first_choice(&self, name: &Host) -> u32 {
        let digest = blake3::keyed_hash(&self.key, name.as_str().as_bytes());
        let [a, b, c, d, ..] = *digest.as_bytes();
        u32::from_le_bytes([a, b, c, d]) % SPACE
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }
}

impl Table {
    /// Enters a name; what was there for the name or the address before is forgotten.
    fn put(&mut self, offset: u32, name: Host) {
        self.clock += 1;
        if let Some(before) = self.by_offset.insert(offset, name.clone()) {
            self.by_name.remove(&before);
        }
        if let Some(before) = self.by_name.insert(name, Slot { offset, used: self.clock })
            && before.offset != offset
        {
            self.by_offset.remove(&before.offset);
        }
    }

    /// Forgets as many names, those first that were used longest ago.
    fn forget(&mut self, count: usize) {
        for (_, offset) in self.by_use().into_iter().take(count) {
            if let Some(name) = self.by_offset.remove(&offset) {
                self.by_name.remove(&name);
            }
        }
    }

    /// Last use and address of all names, those first that were used longest ago.
    fn by_use(&self) -> Vec<(u64, u32)> {
        let mut all: Vec<_> = self.by_name.values().map(|slot| (slot.used, slot.offset)).collect();
        all.sort_unstable();
        all
    }

    /// Writes the file anew, in the order of use, and puts it in the place of the old one.
    fn rewrite(&mut self, path: &Path) -> io::Result<()> {
        let mut text = String::with_capacity(self.by_name.len() * 40);
        for (_, offset) in self.by_use() {
            if let Some(name) = self.by_offset.get(&offset) {
                text.push_str(&address(offset).to_string());
                text.push(' ');
                text.push_str(name.as_str());
                text.push('\n');
            }
        }
        let new = path.with_extension("new");
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = open_file(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        std::fs::rename(&new, path)?;
        self.file = file;
        Ok(())
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// `198.18.x.y name`; what is not this is passed over.
fn parse_line(line: &[u8]) -> Option<(u32, Host)> {
    let (address, name) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    let address: Ipv4Addr = address.parse().ok()?;
    let name: Host = name.parse().ok()?;
    let offset = u32::from(address).wrapping_sub(BASE);
    (is_virtual(address) && !is_reserved(offset)).then_some((offset, name))
}

/// The ends of each /16: some programs take them for a network and for broadcast.
fn is_reserved(offset: u32) -> bool {
    matches!(offset & 0xffff, 0 | 0xffff)
}

fn address(offset: u32) -> Ipv4Addr {
    Ipv4Addr::from(BASE + offset)
}

/// The tables are whole between any two statements, so a panic elsewhere does not spoil them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn host(text: &str) -> Host {
        text.parse().expect("a host")
    }

    fn lines(folder: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(folder.join("names")).expect("names");
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_name_keeps_its_address_over_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let names = Names::open(folder.path(), KEY).expect("open");
        let first = names.address_of(&host("api.example.com")).expect("address");
        let other = names.address_of(&host("example.org")).expect("address");
        assert!(is_virtual(first) && first != other);
        assert_eq!(names.address_of(&host("API.example.com.")).expect("address"), first);
        assert_eq!(names.name_of(first), Some(host("api.example.com")));
        assert_eq!(names.name_of(Ipv4Addr::new(198, 17, 0, 1)), None);
        assert_eq!(lines(folder.path()).len(), 2);

        drop(names);
        let names = Names::open(folder.path(), KEY).expect("open again");
        assert_eq!(names.name_of(first), Some(host("api.example.com")));
        assert_eq!(names.address_of(&host("example.org")).expect("address"), other);
        assert_eq!(lines(folder.path()).len(), 2);
    }

    #[test]
    fn the_address_follows_from_the_key() {
        let (one, two) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let same = Names::open(one.path(), KEY).expect("open").address_of(&host("example.com")).expect("address");
        let names = Names::open(two.path(), KEY).expect("open");
        assert_eq!(names.address_of(&host("example.com")).expect("address"), same);
        let three = tempfile::tempdir().expect("a folder");
        let names = Names::open(three.path(), [8; 32]).expect("open");
        assert_ne!(names.address_of(&host("example.com")).expect("address"), same);
    }

    #[test]
    fn names_that_collide_get_addresses_of_their_own() {
        let folder = tempfile::tempdir().expect("a folder");
        let names = Names::open(folder.path(), KEY).expect("open");
        let mut seen = HashMap::new();
        let (one, two) = (0..)
            .find_map(|n| {
                let name = host(&format!("host-{n}.example.com"));
                seen.insert(names.first_choice(&name), name.clone()).map(|before| (before, name))
            })
            .expect("a collision");
        let first = names.address_of(&one).expect("address");
        let second = names.address_of(&two).expect("address");
        assert_ne!(first, second);
        // Asked for in the other order after a restart, they keep what they had.
        drop(names);
        let names = Names::open(folder.path(), KEY).expect("open again");
        assert_eq!(names.address_of(&two).expect("address"), second);
        assert_eq!(names.address_of(&one).expect("address"), first);
        assert_eq!(names.name_of(second), Some(two));
    }

    #[test]
    fn a_torn_last_line_is_cut_away() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("names"), "198.18.0.9 whole.example\nrubbish\n198.18.3.4 torn.exam")
            .expect("write");
        let names = Names::open(folder.path(), KEY).expect("open");
        assert_eq!(names.name_of(Ipv4Addr::new(198, 18, 0, 9)), Some(host("whole.example")));
        assert_eq!(names.name_of(Ipv4Addr::new(198, 18, 3, 4)), None);
        let address = names.address_of(&host("new.example")).expect("address");
        assert_eq!(lines(folder.path())[2], format!("{address} new.example"));
        drop(names);
        assert_eq!(Names::open(folder.path(), KEY).expect("open").name_of(address), Some(host("new.example")));
    }

    #[test]
    fn a_link_is_not_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink("/dev/null", folder.path().join("names")).expect("link");
        assert!(Names::open(folder.path(), KEY).is_err());
    }

    #[test]
    fn names_that_were_not_used_go_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let names = Names::open(folder.path(), KEY).expect("open");
        let name = |n: usize| host(&format!("h{n}.example.com"));
        for n in 0..NAMES_MAX {
            names.address_of(&name(n)).expect("address");
        }
        assert_eq!(lines(folder.path()).len(), NAMES_MAX);
        let kept = names.address_of(&name(0)).expect("address");
        let gone = names.address_of(&name(2)).expect("address");
        names.address_of(&name(1)).expect("address");
        for n in 3..NAMES_MAX {
            names.address_of(&name(n)).expect("address");
        }
        names.name_of(kept).expect("in use");
        // The order of use is now 2, 1, 3, 4 … 0.
        names.address_of(&host("one.more.example")).expect("address");
        assert_eq!(lines(folder.path()).len(), NAMES_MAX - EVICTED + 1);
        assert_eq!(names.name_of(kept), Some(name(0)));
        assert_eq!(names.name_of(gone), None);
        drop(names);
        let names = Names::open(folder.path(), KEY).expect("open again");
        assert_eq!(names.name_of(kept), Some(name(0)));
        assert_eq!(names.name_of(gone), None);
    }

    #[test]
    fn real_addresses_are_remembered_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let names = Names::open(folder.path(), KEY).expect("open");
        let address = Ipv4Addr::new(192, 0, 2, 7);
        assert_eq!(names.pinned(address), None);
        names.pin(&host("a.example"), &[address], Duration::from_secs(30));
        names.pin(&host("b.example"), &[address, Ipv4Addr::new(192, 0, 2, 8)], Duration::from_secs(30));
        assert_eq!(names.pinned(address), Some(host("b.example")));
        assert!(names.is_pinned(address, &host("a.example")));
        assert!(!names.is_pinned(Ipv4Addr::new(192, 0, 2, 8), &host("a.example")));
        for n in 0..(PINS_MAX as u32 + 10) {
            names.pin(&host("c.example"), &[Ipv4Addr::from(0xC000_0300 + n)], Duration::ZERO);
        }
        assert_eq!(lock(&names.pins).len(), PINS_MAX);
    }
}
