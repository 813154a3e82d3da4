//! A disk whose power can be cut: what it holds then is what a real one would hold.
//!
//! ```text
//! DATA ── ext4 or btrfs ── loop device ── one file, by FUSE ── RecordingDisk
//!                              │ FLUSH = fsync                   sure      as of the last flush
//!                              └ sectors of 4 KiB                 unsure    writes since, in order
//! cut ─► sure + some of what is unsure, in any order, a write torn between its sectors ─► another disk
//! ```
//!
//! Invariants:
//! - What was written before a flush that was answered is in every later cut.
//! - A sector is as before or as after a write, never both: the device says that its sectors have 4 KiB.
//! - The disk that is cut goes on: one run under load gives any number of cuts.

mod fuse;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use den_sys::loopdev::LoopDevice;
use fs_err as fs;
use rustix::mount::{MountFlags, UnmountFlags};

/// Bytes of a sector.
const SECTOR: usize = 4096;
/// How long something that is let go of may keep the file system busy.
const UNMOUNT_WAIT: std::time::Duration = std::time::Duration::from_secs(10);

/// What is made on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4, with its usual journal.
    Ext4,
    /// btrfs.
    Btrfs,
}

impl FileSystem {
    fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Btrfs => "btrfs",
        }
    }
}

/// Sectors that were written. What is not there is zeros.
type Sectors = HashMap<u64, Arc<[u8]>>;

/// What a disk holds after its power was cut.
#[derive(Clone)]
pub struct Cut {
    size: u64,
    file_system: FileSystem,
    sectors: Sectors,
    /// Of those writes that no flush had confirmed: how many sectors are there, and how many not.
    pub kept: usize,
    /// See `kept`.
    pub lost: usize,
}

/// A disk that records what is written to it, with a file system on it that is mounted.
pub struct RecordingDisk {
    folder: tempfile::TempDir,
    file_system: FileSystem,
    recorded: Arc<Mutex<Recorded>>,
    device: Option<LoopDevice>,
    mount: Option<fuse::Mount>,
}

struct Recorded {
    size: u64,
    /// What a read gives.
    now: Sectors,
    sure: Sectors,
    /// Sectors of writes since, each with the number of its write.
    unsure: Vec<(u64, u64, Arc<[u8]>)>,
    writes: u64,
    flushes: u64,
}

impl RecordingDisk {
    /// An empty disk of this size with a file system on it, mounted.
    pub fn new(bytes: u64, file_system: FileSystem) -> Self {
        let disk = Self::over(bytes, file_system, Sectors::new());
        let mut make = match file_system {
            FileSystem::Ext4 => {
                let mut make = Command::new("mkfs.ext4");
                make.args(["-q", "-F", "-E", "nodiscard,lazy_itable_init=0", "-m", "0"]);
                make
            }
            FileSystem::Btrfs => {
                let mut make = Command::new("mkfs.btrfs");
                make.args(["--quiet", "--nodiscard", "--force"]);
                make
            }
        };
        let made = make.arg(disk.device()).output().expect("mkfs starts");
        assert!(made.status.success(), "mkfs: {}", String::from_utf8_lossy(&made.stderr));
        disk.mount_it();
        disk
    }

    /// The disk as it is after the power came back, mounted: the file system has mended itself.
    pub fn after(cut: Cut) -> Self {
        // An unmounted btrfs that is newer is remembered, and this one would be taken for an old part of it.
        let _ = Command::new("btrfs").args(["device", "scan", "--forget"]).output();
        let disk = Self::over(cut.size, cut.file_system, cut.sectors);
        disk.mount_it();
        disk
    }

    fn over(size: u64, file_system: FileSystem, sectors: Sectors) -> Self {
        sweep_dead();
        let folder = tempfile::Builder::new().prefix("den-disk-").tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("on")).expect("a mount point");
        let file = folder.path().join("disk");
        fs::write(&file, "").expect("a mount point");
        let sure = sectors.clone();
        let recorded = Recorded { size, now: sectors, sure, unsure: Vec::new(), writes: 0, flushes: 0 };
        let recorded = Arc::new(Mutex::new(recorded));
        let mount = fuse::Mount::new(&file, Spindle(Arc::clone(&recorded)));
        let device = LoopDevice::over(&file).expect("a loop device");
        Self { folder, file_system, recorded, device: Some(device), mount: Some(mount) }
    }

    fn device(&self) -> &Path {
        &self.device.as_ref().expect("there until dropped").path
    }

    /// Where its file system is.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("on")
    }

    fn mount_it(&self) {
        let kind = self.file_system.name();
        rustix::mount::mount(self.device(), self.path(), kind, MountFlags::empty(), None)
            .unwrap_or_else(|errno| panic!("{kind} does not mount: {errno}"));
    }

    /// What the disk would hold if its power went now. `seed` says which of the writes that no flush had
    /// confirmed are there.
    pub fn cut(&self, seed: u64) -> Cut {
        let mut dice = Dice(seed);
        let recorded = lock(&self.recorded);
        let mut sectors = recorded.sure.clone();
        // From none over a few to nearly all of them.
        let odds = [0, 10, 50, 90, 100][dice.below(5)];
        let (mut kept, mut lost) = (0, 0);
        let mut of_write = None;
        let mut fate = Fate::Lost;
        for (write, number, bytes) in &recorded.unsure {
            if of_write != Some(*write) {
                of_write = Some(*write);
                fate = match dice.below(100) {
                    roll if roll < odds => Fate::Kept,
                    roll if roll % 4 == 0 => Fate::Torn,
                    _ => Fate::Lost,
                };
            }
            let there = match fate {
                Fate::Kept => true,
                Fate::Torn => dice.below(2) == 0,
                Fate::Lost => false,
            };
            if there {
                kept += 1;
                sectors.insert(*number, Arc::clone(bytes));
            } else {
                lost += 1;
            }
        }
        Cut { size: recorded.size, file_system: self.file_system, sectors, kept, lost }
    }

    /// How often what was written was confirmed.
    pub fn flushes(&self) -> u64 {
        lock(&self.recorded).flushes
    }
}

impl Drop for RecordingDisk {
    fn drop(&mut self) {
        let since = std::time::Instant::now();
        // What was stopped lets go of it a moment later.
        while rustix::mount::unmount(self.path(), UnmountFlags::empty()) == Err(rustix::io::Errno::BUSY) {
            if since.elapsed() > UNMOUNT_WAIT {
                let _ = rustix::mount::unmount(self.path(), UnmountFlags::DETACH);
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        self.device = None;
        self.mount = None;
    }
}

/// Takes away what a test that was killed has left: a mount that nobody answers, on which `mkfs` elsewhere fails.
fn sweep_dead() {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = || table.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    let dead =
        table.lines().filter(|line| line.contains(" - fuse den-disk ")).filter_map(|line| line.split(' ').nth(4));
    for file in dead.map(Path::new) {
        let gone = file.metadata().err().and_then(|error| error.raw_os_error());
        let Some(folder) = file.parent().filter(|_| gone == Some(rustix::io::Errno::NOTCONN.raw_os_error())) else {
            continue;
        };
        // The innermost first. The loop devices go with what is mounted from them.
        for point in points().filter(|point| point.starts_with(folder)).collect::<Vec<_>>().into_iter().rev() {
            let _ = rustix::mount::unmount(point, UnmountFlags::DETACH);
        }
    }
}

/// What becomes of a write that no flush confirmed.
#[derive(Clone, Copy)]
enum Fate {
    Kept,
    Torn,
    Lost,
}

/// The device that the kernel sees.
struct Spindle(Arc<Mutex<Recorded>>);

impl fuse::Device for Spindle {
    fn size(&self) -> u64 {
        lock(&self.0).size
    }

    fn read(&mut self, offset: u64, length: usize) -> Vec<u8> {
        let recorded = lock(&self.0);
        let length = length.min(recorded.size.saturating_sub(offset) as usize);
        let mut bytes = vec![0; length];
        for (number, at, within, part) in parts(offset, length) {
            if let Some(sector) = recorded.now.get(&number) {
                bytes[at..at + part].copy_from_slice(&sector[within..within + part]);
            }
        }
        bytes
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut recorded = lock(&self.0);
        recorded.writes += 1;
        let write = recorded.writes;
        for (number, at, within, part) in parts(offset, bytes.len()) {
            let mut sector = match recorded.now.get(&number) {
                Some(sector) if part < SECTOR => sector.to_vec(),
                _ => vec![0; SECTOR],
            };
            sector[within..within + part].copy_from_slice(&bytes[at..at + part]);
            let sector: Arc<[u8]> = sector.into();
            recorded.now.insert(number, Arc::clone(&sector));
            recorded.unsure.push((write, number, sector));
        }
    }

    fn flush(&mut self) {
        let mut recorded = lock(&self.0);
        recorded.flushes += 1;
        let unsure = std::mem::take(&mut recorded.unsure);
        recorded.sure.extend(unsure.into_iter().map(|(_, number, bytes)| (number, bytes)));
    }
}

/// The sectors of a piece: number, place in the piece, place in the sector, length.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let place = offset + at as u64;
        let within = (place % SECTOR as u64) as usize;
        let part = (SECTOR - within).min(length - at);
        let piece = (part > 0).then_some((place / SECTOR as u64, at, within, part));
        at += part;
        piece
    })
}

fn lock(recorded: &Mutex<Recorded>) -> MutexGuard<'_, Recorded> {
    recorded.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Numbers that a seed gives: SplitMix64.
#[derive(Debug, Clone)]
pub struct Dice(
    /// The seed.
    pub u64,
);

impl Dice {
    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.roll() % limit as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file system's promise of fsync is kept by each cut, and without the flush it would not be.
    #[test]
    fn what_was_synced_is_in_every_cut_and_the_rest_may_be() {
        for file_system in [FileSystem::Ext4, FileSystem::Btrfs] {
            let disk = RecordingDisk::new(256 << 20, file_system);
            let path = disk.path();
            fs::write(path.join("synced"), "yes").expect("a file");
            fs::File::open(path.join("synced")).and_then(|file| file.sync_all()).expect("fsync");
            fs::File::open(&path).and_then(|folder| folder.sync_all()).expect("fsync");
            assert!(disk.flushes() > 0, "{file_system:?}: fsync reaches the disk");
            let flushes = disk.flushes();
            fs::write(path.join("late"), "perhaps").expect("a file");
            let cuts: Vec<Cut> = (0..4).map(|seed| disk.cut(seed)).collect();
            let flushed = disk.flushes() > flushes;
            drop(disk);
            for cut in cuts {
                let disk = RecordingDisk::after(cut);
                assert_eq!(fs::read_to_string(disk.path().join("synced")).expect("it is there"), "yes");
                let late = fs::read_to_string(disk.path().join("late")).unwrap_or_default();
                assert!(late.is_empty() || flushed, "{file_system:?}: nothing was flushed since");
            }
        }
    }

    #[test]
    fn a_write_after_the_flush_is_there_or_not_or_torn() {
        let disk = RecordingDisk::over(1 << 20, FileSystem::Ext4, Sectors::new());
        let mut spindle = Spindle(Arc::clone(&disk.recorded));
        use fuse::Device as _;
        spindle.write(0, &[1; 4 * SECTOR]);
        spindle.flush();
        spindle.write(100, &[2; 3 * SECTOR]);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let cut = disk.cut(seed);
            assert_eq!(cut.kept + cut.lost, 4);
            seen.insert(cut.kept);
            for sector in cut.sectors.values() {
                let (first, last) = (sector[0], sector[SECTOR - 1]);
                assert!([(1, 1), (1, 2), (2, 2), (2, 1)].contains(&(first, last)), "{first} {last}");
            }
        }
        assert!(seen.contains(&0) && seen.contains(&4) && seen.len() > 2, "{seen:?}");
        assert_eq!(spindle.read(99, 2), [1, 2]);
    }
}
