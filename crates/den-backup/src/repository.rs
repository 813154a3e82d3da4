//! A place as backups see it: chunks by their names, and the list of backups.

use std::{
    collections::VecDeque,
    io::{self, Read},
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    BackupError,
    chunk::{self, Hash},
    index::{Index, pack_name, readable},
    manifest::{FORMAT, Found, Manifest},
    place::Place,
};

const HEAD: &str = "den-backup.json";
/// Packs that were read last, kept where reading a part costs as much as reading the whole.
const CACHED_PACKS: usize = 4;

/// `den-backup.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    format: u32,
    id: String,
}

/// Backups in a place, to be read.
pub struct Repository {
    pub(crate) place: Place,
    pub(crate) index: Index,
    cache: Mutex<VecDeque<(u32, Bytes)>>,
}

impl Repository {
    /// Opens a place that has backups.
    ///
    /// Errors: `Empty`, `Foreign`, `Newer`; what the place says.
    pub fn open(place: Place) -> Result<Self, BackupError> {
        check_head(&place)?;
        let index = Index::load(&place)?;
        Ok(Self::with(place, index))
    }

    /// A place whose index was read.
    pub(crate) fn with(place: Place, index: Index) -> Self {
        Self { place, index, cache: Mutex::default() }
    }

    /// Makes sure that a place is for backups, and makes an empty one so.
    pub(crate) fn prepare(place: &Place) -> Result<(), BackupError> {
        match check_head(place) {
            Err(BackupError::Empty { .. }) => {
                let head = Head { format: FORMAT, id: uuid::Uuid::now_v7().to_string() };
                place.put_new(HEAD, serde_json::to_vec(&head).expect("plain data").into()).map(drop)
            }
            other => other,
        }
    }

    /// Where it lies.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The backups there, the oldest first.
    pub fn backups(place: &Place) -> Result<Vec<Found>, BackupError> {
        check_head(place)?;
        Found::all(place)
    }

    /// Reads what one is made of.
    pub fn manifest(place: &Place, found: &Found) -> Result<Manifest, BackupError> {
        found.read(place)
    }

    /// The backup of this id, or the beginning of an id; the newest without.
    pub fn find(place: &Place, id: Option<&str>) -> Result<Found, BackupError> {
        let mut all = Self::backups(place)?;
        let none = |id: &str| BackupError::NoBackup { place: place.to_string(), id: id.to_owned() };
        let Some(id) = id else { return all.pop().ok_or_else(|| BackupError::Empty { place: place.to_string() }) };
        let mut matching = all.into_iter().filter(|found| found.id.starts_with(id));
        match (matching.next(), matching.next()) {
            (Some(found), None) => Ok(found),
            (Some(found), Some(_)) if found.id == id => Ok(found),
            _ => Err(none(id)),
        }
    }

    /// The bytes of a chunk, checked.
    ///
    /// Errors: `Broken`.
    pub(crate) fn chunk(&self, hash: Hash) -> Result<Vec<u8>, BackupError> {
        let lost = |why: &str| BackupError::Broken { what: format!("the chunk {hash}"), why: why.to_owned() };
        let at = *self.index.chunks.get(&hash).ok_or_else(|| lost("no pack has it"))?;
        let pack = self.index.packs[at.pack as usize].ok_or_else(|| lost("its pack was never written"))?;
        let (from, bytes) = (at.at as usize, at.stored as usize);
        let stored = if self.place.folder().is_some() {
            readable(self.place.get_part(&pack_name(pack), u64::from(at.at), bytes))?
        } else {
            self.pack(at.pack, pack)?
                .filter(|pack| from + bytes <= pack.len())
                .map(|pack| pack.slice(from..from + bytes))
        };
        let stored = stored.ok_or_else(|| lost("its pack is gone, cut off, or cannot be read"))?;
        chunk::unpack(hash, &stored, at.raw as usize)
    }

    fn pack(&self, number: u32, pack: Hash) -> Result<Option<Bytes>, BackupError> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = cache.iter().find(|(of, _)| *of == number) {
            return Ok(Some(bytes.clone()));
        }
        let Some(bytes) = self.place.get(&pack_name(pack))? else { return Ok(None) };
        if cache.len() == CACHED_PACKS {
            cache.pop_front();
        }
        cache.push_back((number, bytes.clone()));
        Ok(Some(bytes))
    }

    /// The bytes of some chunks, one after the other.
    pub fn read<'a>(&'a self, chunks: &'a [Hash]) -> Chunks<'a> {
        Chunks { repository: self, left: chunks, now: Vec::new(), at: 0 }
    }
}

fn check_head(place: &Place) -> Result<(), BackupError> {
    let text = place.to_string();
    let Some(bytes) = place.get(HEAD)? else {
        return Err(match place.is_empty()? {
            true => BackupError::Empty { place: text },
            false => BackupError::Foreign { place: text },
        });
    };
    match serde_json::from_slice::<Head>(&bytes) {
        Ok(head) if head.format > FORMAT => Err(BackupError::Newer { place: text, found: head.format, known: FORMAT }),
        Ok(_) => Ok(()),
        Err(_) => Err(BackupError::Foreign { place: text }),
    }
}

/// Reads chunks, one after the other. An error of the place or a broken chunk is the source of the error.
pub struct Chunks<'a> {
    repository: &'a Repository,
    left: &'a [Hash],
    now: Vec<u8>,
    at: usize,
}

impl Read for Chunks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.now.len() {
            let Some((first, left)) = self.left.split_first() else { return Ok(0) };
            self.now = self.repository.chunk(*first).map_err(io::Error::other)?;
            (self.left, self.at) = (left, 0);
        }
        let bytes = buffer.len().min(self.now.len() - self.at);
        buffer[..bytes].copy_from_slice(&self.now[self.at..self.at + bytes]);
        self.at += bytes;
        Ok(bytes)
    }
}

/// The error that [`Chunks`] put into one of I/O.
pub(crate) fn inner(error: io::Error, what: &str) -> BackupError {
    match error.get_ref().is_some_and(|source| source.is::<BackupError>()) {
        true => match error.into_inner().expect("it was there").downcast::<BackupError>() {
            Ok(error) => *error,
            Err(_) => unreachable!("it was asked for"),
        },
        false => BackupError::Broken { what: what.to_owned(), why: error.to_string() },
    }
}
