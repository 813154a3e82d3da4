//! A backup: which trees and files it holds. Written last; what has none is no backup.

use serde::{Deserialize, Serialize};

use crate::{BackupError, chunk::Hash, place::Place};

/// The format of all that lies in a place.
pub const FORMAT: u32 = 1;
pub(crate) const BACKUPS: &str = "backups";
/// No manifest is larger.
const MANIFEST_MAX: u64 = 1 << 30;

/// What a tree is a copy of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Of {
    /// The disk of a computer, as it was when the backup began.
    Live {
        /// The computer's id.
        computer: String,
    },
    /// A state of it that is kept.
    State {
        /// The computer's id.
        computer: String,
        /// The state's number.
        number: u64,
    },
    /// The output of its steps.
    Steps {
        /// The computer's id.
        computer: String,
    },
    /// What else is kept of it: records of its network, paths that steps changed.
    Home {
        /// The computer's id.
        computer: String,
    },
    /// A shared volume, as it was when the backup began.
    Volume {
        /// Its id.
        volume: String,
    },
    /// A layer of an image.
    Layer {
        /// Its digest.
        digest: String,
    },
    /// Names and manifests of images.
    Images,
    /// What lies in the data folder itself.
    House,
}

impl std::fmt::Display for Of {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Live { computer } => write!(f, "the disk of {computer}"),
            Self::State { computer, number } => write!(f, "state {number} of {computer}"),
            Self::Steps { computer } => write!(f, "the output of the steps of {computer}"),
            Self::Home { computer } => write!(f, "the records of {computer}"),
            Self::Volume { volume } => write!(f, "the shared volume {volume}"),
            Self::Layer { digest } => write!(f, "the layer {digest}"),
            Self::Images => f.write_str("the names of the images"),
            Self::House => f.write_str("the keys of the house"),
        }
    }
}

/// A tree, as a list of chunks that hold its listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// What it is a copy of.
    pub of: Of,
    /// What told then whether it has changed since; another one means to look again.
    pub stamp: Option<String>,
    /// Its listing.
    pub chunks: Vec<Hash>,
    /// The packs, by their place in the manifest's list, that hold its listing and its files.
    pub packs: Vec<u32>,
    /// Files, folders and the like in it.
    pub entries: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// When it was begun to be read: seconds since the epoch.
    pub read_at_s: i64,
    /// Paths that could not be read, and are not in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// A file of its own: the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Its chunks, in order.
    pub chunks: Vec<Hash>,
    /// The packs that hold them.
    pub packs: Vec<u32>,
    /// Its length.
    pub bytes: u64,
}

/// What it took to make a backup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Took {
    /// How long, in milliseconds.
    pub time_ms: u64,
    /// Bytes of files that were read.
    pub read_bytes: u64,
    /// Bytes that were new, as files have them.
    pub new_bytes: u64,
    /// Bytes that were written to the place.
    pub stored_bytes: u64,
    /// Trees that had not changed, and were not read.
    pub trees_unchanged: u64,
    /// Files that had not changed, and were not read.
    pub files_unchanged: u64,
    /// Files that were read.
    pub files_read: u64,
}

/// A computer, as `ls` tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Computer {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// How many states of it are there.
    pub states: usize,
    /// What its disk may hold.
    pub disk_bytes: u64,
}

/// One backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Its id: when it was begun, and some letters.
    pub id: String,
    /// When it was begun: microseconds since the epoch.
    pub at: i64,
    /// The version of Den that made it.
    pub den: String,
    /// The schema of the database in it.
    pub schema: i64,
    /// The host's name.
    pub host: String,
    /// Which file system the stamps of trees speak of.
    pub filesystem: String,
    /// Whether keys and tokens of the house are in it.
    pub secrets: bool,
    /// Who was there.
    pub computers: Vec<Computer>,
    /// The database.
    pub database: Blob,
    /// All else.
    pub trees: Vec<Tree>,
    /// Every pack that anything above needs.
    pub packs: Vec<Hash>,
    /// What it took.
    pub took: Took,
}

/// A backup that is there, as its name tells.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// Its id. Ids sort as the times at which they were made.
    pub id: String,
    pub(crate) hash: Hash,
}

impl Found {
    fn parse(name: &str) -> Option<Self> {
        let name = name.strip_prefix(BACKUPS)?.strip_prefix('/')?.strip_suffix(".json")?;
        let (id, hash) = name.rsplit_once('.')?;
        Some(Self { id: id.to_owned(), hash: hash.parse().ok()? })
    }

    pub(crate) fn object(&self) -> String {
        format!("{BACKUPS}/{}.{}.json", self.id, self.hash)
    }

    /// All there are, the oldest first.
    pub(crate) fn all(place: &Place) -> Result<Vec<Self>, BackupError> {
        let mut all: Vec<_> = place.list(BACKUPS)?.iter().filter_map(|object| Self::parse(&object.name)).collect();
        all.sort_unstable();
        Ok(all)
    }

    pub(crate) fn read(&self, place: &Place) -> Result<Manifest, BackupError> {
        let broken = |why: String| BackupError::Broken { what: format!("the backup {}", self.id), why };
        let Some(bytes) = place.get(&self.object())? else {
            return Err(BackupError::NoBackup { place: place.to_string(), id: self.id.clone() });
        };
        if bytes.len() as u64 > MANIFEST_MAX || Hash::of(&bytes) != self.hash {
            return Err(broken("its list has changed since it was written".to_owned()));
        }
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
        if manifest.format > FORMAT {
            return Err(BackupError::Newer { place: place.to_string(), found: manifest.format, known: FORMAT });
        }
        Ok(manifest)
    }
}

impl Manifest {
    /// Puts it there: from then on it is a backup.
    pub(crate) fn write(&self, place: &Place) -> Result<Found, BackupError> {
        let bytes = serde_json::to_vec(self).expect("plain data");
        let found = Found { id: self.id.clone(), hash: Hash::of(&bytes) };
        place.put(&found.object(), bytes.into())?;
        Ok(found)
    }

    /// The tree of this.
    pub fn tree(&self, of: &Of) -> Option<&Tree> {
        self.trees.iter().find(|tree| tree.of == *of)
    }
}
