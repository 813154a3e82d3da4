//! Which chunk is in which pack.
//!
//! ```text
//! pack    chunk · chunk · … · footer (which chunks these are, zstd) · its length, 4 bytes · "DENPACK1"
//! index   the footers of many packs, so that a start reads few objects
//! broken  chunks of a pack that were not what they were when all was read (`verify`)
//! ```
//!
//! An index only saves work: the footers of packs that are in none are read. A pack that is not there has nothing,
//! whatever an index says. A chunk that is marked as broken is looked for elsewhere first.

use std::collections::{HashMap, HashSet, hash_map::Entry::Vacant};

use minicbor::{Decode, Encode};

use crate::{
    BackupError,
    chunk::{Hash, RAW_MAX},
    place::Place,
};

/// How packs end.
const MAGIC: &[u8; 8] = b"DENPACK1";
/// The end of a pack after its footer.
const TAIL: usize = 12;
/// No index or footer unpacks to more.
const LISTING_MAX: usize = 256 << 20;

pub(crate) const PACKS: &str = "packs";
pub(crate) const INDEXES: &str = "index";
pub(crate) const BROKEN: &str = "broken";

/// A chunk in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub(crate) struct Entry {
    #[n(0)]
    pub hash: Hash,
    /// Where it begins.
    #[n(1)]
    pub at: u32,
    /// Its bytes there.
    #[n(2)]
    pub stored: u32,
    /// Its bytes unpacked.
    #[n(3)]
    pub raw: u32,
}

/// What a pack has in it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Listing {
    #[n(0)]
    pub pack: Hash,
    #[n(1)]
    pub entries: Vec<Entry>,
}

/// Where a chunk is: the pack, by its place in [`Index::packs`], and where in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At {
    pub pack: u32,
    pub at: u32,
    pub stored: u32,
    pub raw: u32,
}

/// Where all chunks are.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// None while one is being filled.
    pub packs: Vec<Option<Hash>>,
    pub chunks: HashMap<Hash, At>,
    /// Those of them that are marked as broken wherever they are.
    pub doubtful: HashSet<Hash>,
    /// Packs, by their place in `packs`, that have one of these.
    pub unsound: HashSet<u32>,
    /// What is marked.
    pub marks: Marks,
}

/// The broken chunks of packs, as they are marked in a place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Marks(HashMap<Hash, Mark>);

/// What is broken of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mark {
    /// These.
    Some(HashSet<Hash>),
    /// Which it is cannot be read.
    Any,
}

impl Marks {
    /// Reads them.
    pub(crate) fn read(place: &Place) -> Result<Self, BackupError> {
        let mut marks = Self::default();
        for object in place.list(BROKEN)? {
            let Some(pack) = hash_in(&object.name) else { continue };
            let bytes = readable(place.get(&object.name))?.unwrap_or_default();
            let mark = read::<Vec<Hash>>(&bytes).map_or(Mark::Any, |chunks| Mark::Some(chunks.into_iter().collect()));
            marks.0.insert(pack, mark);
        }
        Ok(marks)
    }

    /// These chunks of a pack are broken.
    pub(crate) fn set(&mut self, pack: Hash, chunks: HashSet<Hash>) {
        match chunks.is_empty() {
            true => drop(self.0.remove(&pack)),
            false => drop(self.0.insert(pack, Mark::Some(chunks))),
        }
    }

    /// Whether anything of this pack is marked.
    pub(crate) fn has(&self, pack: Hash) -> bool {
        self.0.contains_key(&pack)
    }

    /// The packs of which something is.
    pub(crate) fn packs(&self) -> impl Iterator<Item = Hash> {
        self.0.keys().copied()
    }

    /// What is marked of a pack; none where that cannot be read.
    pub(crate) fn chunks(&self, pack: Hash) -> Option<Vec<Hash>> {
        match self.0.get(&pack) {
            None => Some(Vec::new()),
            Some(Mark::Some(chunks)) => Some(chunks.iter().copied().collect()),
            Some(Mark::Any) => None,
        }
    }

    /// Writes down what differs from `old`.
    pub(crate) fn write(&self, place: &Place, old: &Self) -> Result<(), BackupError> {
        for (&pack, mark) in &self.0 {
            if let Mark::Some(chunks) = mark
                && old.0.get(&pack) != Some(mark)
            {
                let mut chunks: Vec<Hash> = chunks.iter().copied().collect();
                chunks.sort_unstable();
                place.put(&mark_name(pack), write(&chunks)?.into())?;
            }
        }
        for pack in old.packs().filter(|pack| !self.has(*pack)) {
            place.delete(&mark_name(pack))?;
        }
        Ok(())
    }

    fn is_broken(&self, pack: Hash, chunk: Hash) -> bool {
        match self.0.get(&pack) {
            None => false,
            Some(Mark::Any) => true,
            Some(Mark::Some(chunks)) => chunks.contains(&chunk),
        }
    }
}

/// What an index is made of, while it is.
struct Loading {
    index: Index,
    known: HashMap<Hash, u32>,
    doubtful: Vec<(u32, Entry)>,
}

impl Index {
    /// Reads the indexes of a place.
    pub(crate) fn load(place: &Place) -> Result<Self, BackupError> {
        Self::load_of(place, Marks::read(place)?, |_| true, &mut || Ok(()))
    }

    /// Where chunks are in those packs that are wanted, with these of them broken. `each` is asked now and then
    /// whether it shall go on.
    pub(crate) fn load_of(
        place: &Place,
        marks: Marks,
        is_wanted: impl Fn(Hash) -> bool,
        each: &mut dyn FnMut() -> Result<(), BackupError>,
    ) -> Result<Self, BackupError> {
        let mut there = HashMap::new();
        for object in place.list(PACKS)? {
            if let Some(pack) = hash_in(&object.name).filter(|pack| is_wanted(*pack)) {
                there.insert(pack, object);
            }
        }
        let index = Self { marks, ..Self::default() };
        let mut loading = Loading { index, known: HashMap::new(), doubtful: Vec::new() };
        for object in place.list(INDEXES)? {
            each()?;
            let bytes = readable(place.get(&object.name))?.unwrap_or_default();
            match (hash_in(&object.name) == Some(Hash::of(&bytes))).then(|| read::<Vec<Listing>>(&bytes)).flatten() {
                Some(listings) => {
                    let listings = listings.into_iter().filter(|listing| there.contains_key(&listing.pack));
                    listings.for_each(|listing| loading.add(listing));
                }
                None => {
                    tracing::warn!(%place, name = object.name, "an index of a place of backups is broken; its packs are asked");
                }
            }
        }
        // Those that are in no index: it is lost, or was never written.
        for (&pack, object) in &there {
            each()?;
            if !loading.known.contains_key(&pack)
                && let Some(entries) = readable(footer(place, &object.name, object.bytes))?
            {
                loading.add(Listing { pack, entries });
            }
        }
        Ok(loading.done())
    }

    /// Forgets chunks that are marked as broken, so that they are stored again.
    pub(crate) fn forget_doubtful(&mut self) {
        for hash in &self.doubtful {
            self.chunks.remove(hash);
        }
    }

    /// What each pack has in it. A chunk that is in several is told of once.
    pub(crate) fn listings(&self) -> Vec<Listing> {
        let mut entries = vec![Vec::new(); self.packs.len()];
        for (&hash, &At { pack, at, stored, raw }) in &self.chunks {
            entries[pack as usize].push(Entry { hash, at, stored, raw });
        }
        let mut listings: Vec<Listing> = self
            .packs
            .iter()
            .zip(entries)
            .filter_map(|(pack, entries)| Some(Listing { pack: (*pack)?, entries }))
            .collect();
        for listing in &mut listings {
            listing.entries.sort_unstable_by_key(|entry| entry.at);
        }
        listings
    }
}

impl Loading {
    fn add(&mut self, listing: Listing) {
        let packs = &mut self.index.packs;
        let pack = *self.known.entry(listing.pack).or_insert_with(|| {
            packs.push(Some(listing.pack));
            (packs.len() - 1) as u32
        });
        for entry in listing.entries {
            match self.index.marks.is_broken(listing.pack, entry.hash) {
                true => self.doubtful.push((pack, entry)),
                false => drop(self.index.chunks.entry(entry.hash).or_insert(entry.in_pack(pack))),
            }
        }
    }

    /// What is doubtful is taken where there is nothing else.
    fn done(mut self) -> Index {
        for (pack, entry) in self.doubtful {
            let index = &mut self.index;
            if index.doubtful.contains(&entry.hash) {
                index.unsound.insert(pack);
            } else if let Vacant(vacant) = index.chunks.entry(entry.hash) {
                vacant.insert(entry.in_pack(pack));
                index.doubtful.insert(entry.hash);
                index.unsound.insert(pack);
            }
        }
        self.index
    }
}

impl Entry {
    fn in_pack(&self, pack: u32) -> At {
        At { pack, at: self.at, stored: self.stored, raw: self.raw }
    }
}

/// What a place gave; none where its disk cannot read that any more.
pub(crate) fn readable<T>(got: Result<Option<T>, BackupError>) -> Result<Option<T>, BackupError> {
    match got {
        Err(error) if error.is_damage() => {
            tracing::warn!(%error, "the disk of a place of backups is damaged");
            Ok(None)
        }
        other => other,
    }
}

/// The hash that an object is named by.
pub(crate) fn hash_in(name: &str) -> Option<Hash> {
    name.rsplit('/').next()?.parse().ok()
}

/// The name of what marks chunks of a pack as broken.
pub(crate) fn mark_name(pack: Hash) -> String {
    format!("{BROKEN}/{pack}")
}

/// The name of a pack's object.
pub(crate) fn pack_name(pack: Hash) -> String {
    let hex = pack.to_string();
    format!("{PACKS}/{}/{hex}", &hex[..2])
}

/// Closes a pack: its chunks get their footer.
pub(crate) fn seal(mut bytes: Vec<u8>, entries: &Vec<Entry>) -> Result<Vec<u8>, BackupError> {
    let footer = write(entries)?;
    bytes.extend_from_slice(&footer);
    bytes.extend_from_slice(&(footer.len() as u32).to_le_bytes());
    bytes.extend_from_slice(MAGIC);
    Ok(bytes)
}

/// The chunks that a pack says it has, from its whole bytes.
pub(crate) fn entries_of(pack: &[u8]) -> Option<Vec<Entry>> {
    let rest = pack.strip_suffix(MAGIC)?;
    let (rest, length) = rest.split_last_chunk::<4>()?;
    let at = rest.len().checked_sub(u32::from_le_bytes(*length) as usize)?;
    checked(read(&rest[at..])?, at)
}

/// The same from its end alone.
fn footer(place: &Place, name: &str, bytes: u64) -> Result<Option<Vec<Entry>>, BackupError> {
    let Some(at) = bytes.checked_sub(TAIL as u64) else { return Ok(None) };
    let Some(tail) = place.get_part(name, at, TAIL)? else { return Ok(None) };
    let Some(Ok(length)) = tail.strip_suffix(MAGIC).map(<[u8; 4]>::try_from) else { return Ok(None) };
    let length = u32::from_le_bytes(length) as usize;
    let Some(begin) = at.checked_sub(length as u64) else { return Ok(None) };
    let Some(footer) = place.get_part(name, begin, length)? else { return Ok(None) };
    Ok(read(&footer).and_then(|entries| checked(entries, begin as usize)))
}

/// The entries, if each lies within the pack.
fn checked(entries: Vec<Entry>, end: usize) -> Option<Vec<Entry>> {
    let fits = |entry: &Entry| entry.at as usize + entry.stored as usize <= end && entry.raw as usize <= RAW_MAX;
    entries.iter().all(fits).then_some(entries)
}

/// CBOR, made smaller.
pub(crate) fn write<T: Encode<()>>(value: &T) -> Result<Vec<u8>, BackupError> {
    let bytes = minicbor::to_vec(value).map_err(|error| BackupError::io("encode", "a listing", io(error)))?;
    zstd::bulk::compress(&bytes, 3).map_err(|error| BackupError::io("compress", "a listing", error))
}

/// The reverse; none where it is something else.
pub(crate) fn read<T: for<'b> Decode<'b, ()>>(bytes: &[u8]) -> Option<T> {
    use std::io::Read;
    let mut raw = Vec::new();
    zstd::Decoder::new(bytes).ok()?.take(LISTING_MAX as u64).read_to_end(&mut raw).ok()?;
    minicbor::decode(&raw).ok()
}

fn io(error: impl std::error::Error + Send + Sync + 'static) -> std::io::Error {
    std::io::Error::other(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pack_says_what_it_has_and_a_cut_one_says_nothing() {
        let entries = vec![Entry { hash: Hash::of(b"a"), at: 0, stored: 3, raw: 2 }];
        let pack = seal(vec![1, 2, 3], &entries).unwrap();
        assert_eq!(entries_of(&pack).unwrap(), entries);
        for length in 0..pack.len() {
            assert_eq!(entries_of(&pack[..length]), None);
        }
        let beyond = vec![Entry { hash: Hash::of(b"a"), at: 1, stored: 3, raw: 2 }];
        assert_eq!(entries_of(&seal(vec![1, 2, 3], &beyond).unwrap()), None);
    }
}
