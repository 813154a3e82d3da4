//! Why a backup was not made, read or laid out; each with a stable code and what to try next.

use std::{io, path::Path};

/// Why something with backups did not go.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The name of a place makes no sense.
    #[error("`{place}` is no place for backups: {why}")]
    BadPlace {
        /// As it was given.
        place: String,
        /// Why.
        why: String,
    },
    /// A file operation failed.
    #[error("{what}")]
    Io {
        /// The call and what it was about.
        what: String,
        /// What stood in the way.
        source: io::Error,
    },
    /// The place is full.
    #[error("{place} has no room for `{name}`")]
    NoRoom {
        /// The place.
        place: String,
        /// What did not fit.
        name: String,
    },
    /// The place does not let us.
    #[error("{place} refuses these credentials for `{name}`")]
    Refused {
        /// The place.
        place: String,
        /// What was asked for.
        name: String,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The place does not answer as it should.
    #[error("{place} does not take or give `{name}`")]
    Unreachable {
        /// The place.
        place: String,
        /// What was asked for.
        name: String,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing of Den's is there.
    #[error("there are no backups in {place}")]
    Empty {
        /// The place.
        place: String,
    },
    /// Something is there, and not Den's.
    #[error("{place} has things in it that are no backups of Den's")]
    Foreign {
        /// The place.
        place: String,
    },
    /// A later Den wrote it.
    #[error("{place} has the format {found}, and this den knows {known}")]
    Newer {
        /// The place.
        place: String,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// No backup has this id.
    #[error("there is no backup `{id}` in {place}")]
    NoBackup {
        /// The place.
        place: String,
        /// As it was given.
        id: String,
    },
    /// Somebody else writes there.
    #[error("{place} is being written by {holder}")]
    Locked {
        /// The place.
        place: String,
        /// Who.
        holder: String,
    },
    /// Somebody else took the place over while we wrote.
    #[error("{place} was taken over by {holder} while it was written")]
    Lost {
        /// The place.
        place: String,
        /// Who.
        holder: String,
    },
    /// Bytes are not what they were.
    #[error("{what} is lost: {why}")]
    Broken {
        /// What cannot be had any more.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// What was read went away meanwhile.
    #[error("`{0}` went away while it was read")]
    Vanished(String),
    /// It was told to end.
    #[error("the backup was ended before it was done")]
    Stopped,
}

impl BackupError {
    /// A contract, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadPlace { .. } => "bad_backup_place",
            Self::Io { .. } => "backup_io",
            Self::NoRoom { .. } => "backup_no_room",
            Self::Refused { .. } => "backup_refused",
            Self::Unreachable { .. } => "backup_unreachable",
            Self::Empty { .. } => "backup_empty",
            Self::Foreign { .. } => "backup_foreign",
            Self::Newer { .. } => "backup_newer",
            Self::NoBackup { .. } => "backup_not_found",
            Self::Locked { .. } => "backup_locked",
            Self::Lost { .. } => "backup_taken_over",
            Self::Broken { .. } => "backup_broken",
            Self::Vanished(_) => "backup_vanished",
            Self::Stopped => "backup_stopped",
        }
    }

    /// What to try next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::BadPlace { .. } => "a place is a folder, as /mnt/backup, or s3://BUCKET/PREFIX",
            Self::Io { .. } => "look at the disk and its permissions, then try again: what is done already is kept",
            Self::NoRoom { .. } => "make room there, or let go of old backups: den backup rm; former backups are whole",
            Self::Refused { .. } => {
                "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, or name a file with --credentials"
            }
            Self::Unreachable { .. } => {
                "look at AWS_ENDPOINT_URL and the bucket's name, then try again: what is done already is kept"
            }
            Self::Empty { .. } => "den backup TO makes one",
            Self::Foreign { .. } => "take an empty folder or another prefix",
            Self::Newer { .. } => "take a newer den",
            Self::NoBackup { .. } => "den backup ls TO lists those there are",
            Self::Locked { .. } => {
                "wait until that one is done; one that died is passed over, on another host after ten minutes"
            }
            Self::Lost { .. } => "have one daemon alone write to a place",
            Self::Broken { .. } => {
                "den backup verify TO names all that is lost, and the next backup stores again what is still there; \
                 den restore-backup --skip-broken does without it"
            }
            Self::Vanished(_) | Self::Stopped => "try again: what is done already is kept",
        }
    }

    /// Whether the same may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Locked { .. } | Self::NoRoom { .. } | Self::Vanished(_) | Self::Stopped
        )
    }

    /// Whether a disk cannot read what it was given.
    pub(crate) fn is_damage(&self) -> bool {
        use rustix::io::Errno;
        let damage = [Errno::IO.raw_os_error(), Errno::UCLEAN.raw_os_error()];
        matches!(self, Self::Io { source, .. } if source.raw_os_error().is_some_and(|errno| damage.contains(&errno)))
    }

    pub(crate) fn io(call: &str, what: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Self::Io { what: format!("{call} {}", what.as_ref().display()), source: source.into() }
    }
}
