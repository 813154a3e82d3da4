//! Putting a backup into a place.
//!
//! ```text
//! bytes ─cut─► chunk ─known?─► passed over
//!                └─ new ─zstd─► pack being filled ─full─► sealed ─► on its way ─► there ─► in an index
//!                                                                                      manifest: last ◄┘
//! ```
//!
//! Invariants:
//! - An index names a pack only once it is there, a manifest only what an index names: cut off anywhere, what
//!   is in the place is whole, and what was put is found by the next backup.
//! - Nothing of a former backup is written over or removed, but for what is marked as broken.
//! - Only what can be read counts as there: what is gone, or marked as broken, is stored again.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use chrono::DateTime;
use den_sys::failpoint;
use fastcdc::v2020::StreamCDC;

use crate::{
    BackupError, Blob, Found, Manifest, Of, Progress, Repository, Took, Tree,
    chunk::{self, Hash, Kind},
    index::{self, At, Entry, INDEXES, Index, Listing, Marks, mark_name, pack_name},
    lease::{Lease, host_name},
    manifest::FORMAT,
    place::Place,
    walk::{Base, Source, Walk},
};

/// A pack is sealed once it has so much: few objects, and none that takes long to send again.
const PACK_BYTES: usize = 16 << 20;
/// After so many packs an index is written, so that a backup that is cut off has not sent them for nothing.
const INDEX_EVERY: usize = 32;

/// What a backup says of itself.
#[derive(Debug, Clone)]
pub struct About {
    /// The version of Den.
    pub den: String,
    /// The schema of the database.
    pub schema: i64,
    /// Which file system stamps speak of.
    pub filesystem: String,
    /// Whether secrets are in it.
    pub secrets: bool,
}

/// A pack that is being filled.
struct Filling {
    number: u32,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

/// A backup that is being made.
pub struct Writer<'a> {
    repository: Repository,
    lease: Option<Lease>,
    about: About,
    id: String,
    at: i64,
    began: Instant,
    /// The newest backup before this one.
    last: Option<Manifest>,
    data: Option<Filling>,
    listings: Option<Filling>,
    /// Packs that are on their way and in no index.
    sent: Vec<Listing>,
    trees: Vec<Tree>,
    /// Packs, by their number here, that the tree at hand needs.
    needed: BTreeSet<u32>,
    /// Numbers here of packs of the last backup.
    numbers: HashMap<Hash, u32>,
    spool: PathBuf,
    took: Took,
    progress: &'a dyn Progress,
    stop: &'a AtomicBool,
}

impl<'a> Writer<'a> {
    /// Begins a backup in `place`. Listings are gathered in files without names in `spool`.
    ///
    /// Errors: `Locked`; what the place says.
    pub fn begin(
        place: Place,
        spool: &Path,
        about: About,
        progress: &'a dyn Progress,
        stop: &'a AtomicBool,
    ) -> Result<Self, BackupError> {
        Repository::prepare(&place)?;
        let mut lease = Lease::take(&place)?;
        failpoint::hit("backup.lease");
        let opened = place.sweep().and_then(|()| {
            let last = match Found::all(&place)?.pop() {
                // One that cannot be read makes this one a first one.
                Some(found) => match found.read(&place) {
                    Ok(manifest) => Some(manifest),
                    Err(error @ (BackupError::Broken { .. } | BackupError::NoBackup { .. })) => {
                        tracing::warn!(%place, %error, "the last backup is of no use to this one");
                        None
                    }
                    Err(error) => return Err(error),
                },
                None => None,
            };
            let index = Index::load_of(&place, Marks::read(&place)?, |_| true, &mut || lease.renew(&place))?;
            Ok((last, index))
        });
        let (last, mut index) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                lease.give_back(&place);
                return Err(error);
            }
        };
        index.forget_doubtful();
        let repository = Repository::with(place, index);
        let numbers = repository.index.packs.iter().enumerate();
        let numbers = numbers.filter_map(|(number, pack)| Some(((*pack)?, number as u32))).collect();
        let at = std::time::SystemTime::now()
            .duration_since(std::time::SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_micros() as i64);
        // Ids sort as backups follow each other, whatever the clock does.
        let at = at.max(last.as_ref().map_or(0, |last| last.at + 1));
        let random = uuid::Uuid::now_v7().simple().to_string();
        Ok(Self {
            repository,
            lease: Some(lease),
            about,
            id: format!("{}-{}", stamp_of(at), &random[26..]),
            at,
            began: Instant::now(),
            last,
            data: None,
            listings: None,
            sent: Vec::new(),
            trees: Vec::new(),
            needed: BTreeSet::new(),
            numbers,
            spool: spool.to_owned(),
            took: Took::default(),
            progress,
            stop,
        })
    }

    /// The newest backup before this one.
    pub fn last(&self) -> Option<&Manifest> {
        self.last.as_ref()
    }

    /// Whether the last backup's tree of this can be taken over as it is, for it was read on this file system and
    /// had this stamp; takes it over then.
    pub fn unchanged(&mut self, of: &Of, stamp: &str) -> bool {
        let Some(tree) = self.same_system().and_then(|last| last.tree(of)) else { return false };
        if tree.stamp.as_deref() != Some(stamp) {
            return false;
        }
        let Some(last) = &self.last else { return false };
        // All that it needs has to be there still, and whole as far as that is known.
        let number = |pack: u32| {
            let number = *self.numbers.get(last.packs.get(pack as usize)?)?;
            (!self.repository.index.unsound.contains(&number)).then_some(number)
        };
        let packs: Option<Vec<u32>> = tree.packs.iter().map(|&pack| number(pack)).collect();
        let Some(packs) =
            packs.filter(|_| tree.chunks.iter().all(|hash| self.repository.index.chunks.contains_key(hash)))
        else {
            return false;
        };
        let tree = Tree { packs, ..tree.clone() };
        self.took.trees_unchanged += 1;
        self.trees.push(tree);
        true
    }

    fn same_system(&self) -> Option<&Manifest> {
        self.last.as_ref().filter(|last| last.filesystem == self.about.filesystem && !last.filesystem.is_empty())
    }

    /// Lets go of a tree again that was put in: what it is of is gone.
    pub fn forget(&mut self, gone: impl Fn(&Of) -> bool) {
        self.trees.retain(|tree| !gone(&tree.of));
    }

    /// Puts a tree in. Files that `base` has unchanged are not read. Returns the tree as the base of the next one.
    ///
    /// Errors: `Vanished` where the tree went away.
    pub fn tree(
        &mut self,
        of: Of,
        stamp: Option<String>,
        source: &Source<'_>,
        base: Option<Base>,
    ) -> Result<Base, BackupError> {
        self.needed.clear();
        let read_at = std::time::SystemTime::now();
        let read_at_s = read_at
            .duration_since(std::time::SystemTime::UNIX_EPOCH)
            .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        let what = of.to_string();
        self.progress.begins(&what);
        let base = match base {
            Some(base) => Some(base),
            None => self.last_base(&of)?,
        };
        let mut spool = self.spool_file()?;
        let walked = Walk::run(self, source, base, &mut spool)?;
        let chunks = self.cut(Kind::Tree, BufReader::new(rewound(&mut spool)?), &what)?;
        let chunks = chunks.into_iter().map(|(hash, _)| hash).collect();
        self.trees.push(Tree {
            of,
            stamp,
            chunks,
            packs: self.needed.iter().copied().collect(),
            entries: walked.entries,
            bytes: walked.bytes,
            read_at_s,
            left_out: walked.left_out,
        });
        failpoint::hit("backup.tree");
        Ok(Base { listing: spool, read_at_s })
    }

    /// The tree of this in the last backup.
    fn last_base(&self, of: &Of) -> Result<Option<Base>, BackupError> {
        let Some(tree) = self.same_system().and_then(|last| last.tree(of)) else { return Ok(None) };
        self.base_of(tree)
    }

    /// The tree of this in this backup, as a base: one that was taken over from the last.
    pub fn base(&self, of: &Of) -> Result<Option<Base>, BackupError> {
        match self.trees.iter().find(|tree| tree.of == *of) {
            Some(tree) => self.base_of(tree),
            None => Ok(None),
        }
    }

    fn base_of(&self, tree: &Tree) -> Result<Option<Base>, BackupError> {
        let mut listing = self.spool_file()?;
        match std::io::copy(&mut self.repository.read(&tree.chunks), &mut listing) {
            Ok(_) => Ok(Some(Base { listing, read_at_s: tree.read_at_s })),
            Err(error) => match crate::repository::inner(error, "a listing") {
                // Then all is read.
                BackupError::Broken { what, why } => {
                    tracing::warn!(what, why, "a former backup is broken");
                    Ok(None)
                }
                error => Err(error),
            },
        }
    }

    /// A file that has no name any more.
    fn spool_file(&self) -> Result<File, BackupError> {
        let path = self.spool.join(format!(".listing-{}", uuid::Uuid::now_v7().simple()));
        let made = File::options().read(true).write(true).create_new(true).open(&path);
        let file = made.map_err(|error| BackupError::io("create", &path, error))?;
        std::fs::remove_file(&path).map_err(|error| BackupError::io("remove", &path, error))?;
        Ok(file)
    }

    /// Puts a file in.
    pub fn blob(&mut self, path: &Path) -> Result<Blob, BackupError> {
        self.needed.clear();
        let file = File::open(path).map_err(|error| BackupError::io("open", path, error))?;
        let cut = self.cut(Kind::Data, file, &path.display().to_string())?;
        let bytes = cut.iter().map(|(_, bytes)| *bytes as u64).sum();
        let chunks = cut.into_iter().map(|(hash, _)| hash).collect();
        Ok(Blob { chunks, packs: self.needed.iter().copied().collect(), bytes })
    }

    /// Cuts what a reader has and puts it in: the chunks and their lengths.
    pub(crate) fn cut(&mut self, kind: Kind, source: impl Read, what: &str) -> Result<Vec<(Hash, usize)>, BackupError> {
        let (min, mean, max) = kind.sizes();
        let mut chunks = Vec::new();
        for cut in StreamCDC::new(source, min, mean, max) {
            let cut = cut.map_err(|error| BackupError::io("read", what, std::io::Error::from(error)))?;
            chunks.push((self.put(kind, &cut.data)?, cut.data.len()));
        }
        Ok(chunks)
    }

    /// Looks whether it shall go on, and says now and then that it does.
    ///
    /// Errors: `Stopped`, `Lost`.
    pub(crate) fn go_on(&mut self) -> Result<(), BackupError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(BackupError::Stopped);
        }
        match &mut self.lease {
            Some(lease) => lease.renew(&self.repository.place),
            None => Ok(()),
        }
    }

    /// Puts a chunk in, unless it is there.
    pub(crate) fn put(&mut self, kind: Kind, raw: &[u8]) -> Result<Hash, BackupError> {
        self.go_on()?;
        let hash = Hash::of(raw);
        if kind == Kind::Data {
            self.took.read_bytes += raw.len() as u64;
            self.progress.read(raw.len() as u64);
        }
        if let Some(at) = self.repository.index.chunks.get(&hash) {
            self.needed.insert(at.pack);
            return Ok(hash);
        }
        self.took.new_bytes += raw.len() as u64;
        let stored = chunk::pack(raw)?;
        let packs = &mut self.repository.index.packs;
        let slot = match kind {
            Kind::Data => &mut self.data,
            Kind::Tree => &mut self.listings,
        };
        let filling = slot.get_or_insert_with(|| {
            packs.push(None);
            Filling { number: (packs.len() - 1) as u32, bytes: Vec::new(), entries: Vec::new() }
        });
        let at = At {
            pack: filling.number,
            at: filling.bytes.len() as u32,
            stored: stored.len() as u32,
            raw: raw.len() as u32,
        };
        filling.bytes.extend_from_slice(&stored);
        filling.entries.push(Entry { hash, at: at.at, stored: at.stored, raw: at.raw });
        self.repository.index.chunks.insert(hash, at);
        self.needed.insert(at.pack);
        if filling.bytes.len() >= PACK_BYTES {
            let full = slot.take();
            self.send(full)?;
        }
        Ok(hash)
    }

    /// The tree at hand needs a chunk that an earlier one has; says whether it is there.
    pub(crate) fn need(&mut self, hash: Hash) -> bool {
        match self.repository.index.chunks.get(&hash) {
            Some(at) => {
                self.needed.insert(at.pack);
                true
            }
            None => false,
        }
    }

    /// A file was found unchanged, or read.
    pub(crate) fn count(&mut self, unchanged: bool) {
        match unchanged {
            true => self.took.files_unchanged += 1,
            false => self.took.files_read += 1,
        }
    }

    fn send(&mut self, full: Option<Filling>) -> Result<(), BackupError> {
        let Some(Filling { number, bytes, entries }) = full else { return Ok(()) };
        let bytes = index::seal(bytes, &entries)?;
        let pack = Hash::of(&bytes);
        self.took.stored_bytes += bytes.len() as u64;
        self.progress.stored(bytes.len() as u64);
        let place = &self.repository.place;
        place.put_later(&pack_name(pack), bytes.into())?;
        failpoint::hit("backup.pack");
        self.repository.index.packs[number as usize] = Some(pack);
        self.sent.push(Listing { pack, entries });
        if self.sent.len() >= INDEX_EVERY { self.write_index() } else { Ok(()) }
    }

    fn write_index(&mut self) -> Result<(), BackupError> {
        let place = &self.repository.place;
        place.settle()?;
        failpoint::hit("backup.settled");
        if !self.sent.is_empty() {
            let bytes = index::write(&self.sent)?;
            self.took.stored_bytes += bytes.len() as u64;
            place.put(&format!("{INDEXES}/{}", Hash::of(&bytes)), bytes.into())?;
            // The same bytes as before, in the place of broken ones.
            let marks = &self.repository.index.marks;
            for listing in self.sent.drain(..).filter(|listing| marks.has(listing.pack)) {
                place.delete(&mark_name(listing.pack))?;
            }
        }
        failpoint::hit("backup.index");
        Ok(())
    }

    /// Ends the backup: from now on it is one.
    pub fn finish(mut self, database: Blob, computers: Vec<crate::Computer>) -> Result<Manifest, BackupError> {
        let (data, listings) = (self.data.take(), self.listings.take());
        self.send(data)?;
        self.send(listings)?;
        self.write_index()?;
        // Numbers become places in the manifest's own list.
        let mut packs = Vec::new();
        let mut places: HashMap<u32, u32> = HashMap::new();
        let all = &self.repository.index.packs;
        let mut place_of = |numbers: &[u32]| -> Vec<u32> {
            let mut own: Vec<u32> = numbers
                .iter()
                .map(|number| {
                    *places.entry(*number).or_insert_with(|| {
                        packs.push(all[*number as usize].expect("all packs are sealed"));
                        (packs.len() - 1) as u32
                    })
                })
                .collect();
            own.sort_unstable();
            own.dedup();
            own
        };
        let database = Blob { packs: place_of(&database.packs), ..database };
        let mut trees = std::mem::take(&mut self.trees);
        for tree in &mut trees {
            tree.packs = place_of(&tree.packs);
        }
        self.took.time_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let manifest = Manifest {
            format: FORMAT,
            id: self.id.clone(),
            at: self.at,
            den: self.about.den.clone(),
            schema: self.about.schema,
            host: host_name(),
            filesystem: self.about.filesystem.clone(),
            secrets: self.about.secrets,
            computers,
            database,
            trees,
            packs,
            took: self.took,
        };
        let place = &self.repository.place;
        if let Some(lease) = &self.lease {
            lease.check(place)?;
        }
        manifest.write(place)?;
        failpoint::hit("backup.manifest");
        Ok(manifest)
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        // What is on its way is waited for, so that nobody else begins before.
        let _ = self.repository.place.settle();
        if let Some(lease) = self.lease.take() {
            lease.give_back(&self.repository.place);
        }
    }
}

fn rewound(file: &mut File) -> Result<&mut File, BackupError> {
    file.flush()
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .map_err(|error| BackupError::io("read", "a listing", error))?;
    Ok(file)
}

/// `20261122T155840-123456`: sorts as time passes.
fn stamp_of(at: i64) -> String {
    DateTime::from_timestamp_micros(at).unwrap_or_default().format("%Y%m%dT%H%M%S-%6f").to_string()
}

#[cfg(test)]
mod tests {
    use super::stamp_of;

    #[test]
    fn ids_say_when() {
        assert_eq!(stamp_of(0), "19700101T000000-000000");
        assert_eq!(stamp_of(1_792_339_120_999_999), "20261018T155840-999999");
        assert_eq!(stamp_of(951_782_400_000_000), "20000229T000000-000000");
    }
}
