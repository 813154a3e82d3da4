//! A folder: each object a file, written beside its place, flushed, and renamed.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::Object;
use crate::BackupError;

/// Where objects are written.
const MAKING: &str = "tmp";
/// How deep objects lie.
const DEPTH_MAX: usize = 3;

pub(super) struct Folder {
    root: PathBuf,
    made: AtomicU64,
}

impl Folder {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, made: AtomicU64::new(0) }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn put(&self, place: &str, name: &str, bytes: &[u8]) -> Result<(), BackupError> {
        self.write(place, name, bytes, RenameFlags::empty()).map(drop)
    }

    pub(super) fn put_new(&self, place: &str, name: &str, bytes: &[u8]) -> Result<bool, BackupError> {
        self.write(place, name, bytes, RenameFlags::NOREPLACE)
    }

    fn write(&self, place: &str, name: &str, bytes: &[u8], flags: RenameFlags) -> Result<bool, BackupError> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let making = self.root.join(MAKING).join(format!("{}.{number}", std::process::id()));
        let path = self.root.join(name);
        let written = || -> io::Result<bool> {
            for folder in [making.parent(), path.parent()].into_iter().flatten() {
                make_folder(folder)?;
            }
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&making)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            match renameat_with(CWD, &making, CWD, &path, flags) {
                Ok(()) => {}
                Err(rustix::io::Errno::EXIST) => {
                    fs::remove_file(&making)?;
                    return Ok(false);
                }
                // As NFS and some FUSE file systems: a link refuses what is there too.
                Err(rustix::io::Errno::INVAL) => match fs::hard_link(&making, &path) {
                    Ok(()) => fs::remove_file(&making)?,
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                        fs::remove_file(&making)?;
                        return Ok(false);
                    }
                    Err(error) => return Err(error),
                },
                Err(errno) => return Err(errno.into()),
            }
            if let Some(folder) = path.parent() {
                File::open(folder)?.sync_all()?;
            }
            Ok(true)
        };
        written().map_err(|error| {
            let _ = fs::remove_file(&making);
            match error.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                    BackupError::NoRoom { place: place.to_owned(), name: name.to_owned() }
                }
                _ => BackupError::io("write", &path, error),
            }
        })
    }

    pub(super) fn get(&self, name: &str) -> Result<Option<Bytes>, BackupError> {
        let path = self.root.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(BackupError::io("read", path, error)),
        }
    }

    pub(super) fn get_part(&self, name: &str, at: u64, bytes: usize) -> Result<Option<Bytes>, BackupError> {
        let path = self.root.join(name);
        let mut buffer = vec![0; bytes];
        match File::open(&path).and_then(|file| file.read_exact_at(&mut buffer, at)) {
            Ok(()) => Ok(Some(buffer.into())),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => Ok(None),
            Err(error) => Err(BackupError::io("read", path, error)),
        }
    }

    pub(super) fn list(&self, folder: &str) -> Result<Vec<Object>, BackupError> {
        let mut found = Vec::new();
        self.list_below(folder, DEPTH_MAX, &mut found)?;
        Ok(found)
    }

    fn list_below(&self, folder: &str, depth: usize, found: &mut Vec<Object>) -> Result<(), BackupError> {
        let path = self.root.join(folder);
        let wrong = |error| BackupError::io("list", &path, error);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(wrong(error)),
        };
        for entry in entries {
            let entry = entry.map_err(wrong)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let name = format!("{folder}/{name}");
            let facts = entry.metadata().map_err(wrong)?;
            if facts.is_dir() && depth > 0 {
                self.list_below(&name, depth - 1, found)?;
            } else if facts.is_file() {
                found.push(Object { name, bytes: facts.len() });
            }
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> Result<bool, BackupError> {
        match fs::read_dir(&self.root) {
            // A disk of its own has this one.
            Ok(mut entries) => Ok(!entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != "lost+found"))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
            Err(error) => Err(BackupError::io("list", &self.root, error)),
        }
    }

    pub(super) fn delete(&self, name: &str) -> Result<(), BackupError> {
        let path = self.root.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(BackupError::io("remove", path, error)),
            _ => Ok(()),
        }
    }

    pub(super) fn sweep(&self) -> Result<(), BackupError> {
        let path = self.root.join(MAKING);
        for object in self.list(MAKING)? {
            let path = self.root.join(object.name);
            fs::remove_file(&path).map_err(|error| BackupError::io("remove", &path, error))?;
        }
        make_folder(&path).map_err(|error| BackupError::io("make", &path, error))
    }
}

/// Makes a folder and those above it, the owner's alone, so that they are there after a power cut too.
fn make_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent() {
        make_folder(above)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    match path.parent() {
        Some(above) => File::open(above)?.sync_all(),
        None => Ok(()),
    }
}
