//! A host path as a tar stream.
//!
//! GNU heads; pax records for what they have no room for: names over 100 bytes, fractions of a
//! second, attributes. Hard links within the tree stay links; sparse files stay sparse; sockets are
//! left out, as tar does.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{File, FileType, Metadata, OpenOptions},
    io::{self, Read, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use tar::{Builder, EntryType, Header};

use super::transfer::CHUNK_BYTES;

/// A tar block.
const BLOCK_BYTES: u64 = 512;
/// A file whose blocks are this much fewer than its size is read by its holes.
const HOLES_BYTES_MIN: u64 = 64 << 10;

/// Whether a file has holes worth keeping.
pub fn is_sparse(metadata: &Metadata) -> bool {
    metadata.is_file() && metadata.blocks() * 512 + HOLES_BYTES_MIN < metadata.len()
}

/// Packs `source` under the name `top` (`.`: what the directory holds) into `out`.
///
/// Errors: with the path that could not be read; and those of `out`.
pub fn pack(source: &Path, top: &[u8], follow: bool, out: impl Write) -> io::Result<()> {
    let mut packer = Packer { builder: Builder::new(out), linked: HashMap::new() };
    let metadata = if follow { source.metadata() } else { source.symlink_metadata() };
    // The children of each directory on the way, the next one last.
    let mut open = vec![(source.to_owned(), top.to_owned(), metadata.map_err(|error| at(source, error))?)];
    while let Some((path, name, metadata)) = open.pop() {
        packer.entry(&path, &name, &metadata).map_err(|error| at(&path, error))?;
        if metadata.is_dir() {
            let mut names = list(&path).map_err(|error| at(&path, error))?;
            names.sort_unstable_by(|a, b| b.cmp(a));
            for child in names {
                let path = path.join(&child);
                let mut name = name.clone();
                name.push(b'/');
                name.extend_from_slice(child.as_bytes());
                match path.symlink_metadata() {
                    Ok(metadata) => open.push((path, name, metadata)),
                    // Gone since it was listed.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(at(&path, error)),
                }
            }
        }
    }
    packer.builder.into_inner()?.flush()
}

fn list(path: &Path) -> io::Result<Vec<OsString>> {
    path.read_dir()?.map(|entry| Ok(entry?.file_name())).collect()
}

fn at(path: &Path, error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return error;
    }
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

struct Packer<W: Write> {
    builder: Builder<W>,
    /// Names of the files that have more than one, by device and inode.
    linked: HashMap<(u64, u64), Vec<u8>>,
}

fn kind(file_type: FileType) -> Option<EntryType> {
    Some(match file_type {
        t if t.is_file() => EntryType::Regular,
        t if t.is_dir() => EntryType::Directory,
        t if t.is_symlink() => EntryType::Symlink,
        t if t.is_fifo() => EntryType::Fifo,
        t if t.is_char_device() => EntryType::Char,
        t if t.is_block_device() => EntryType::Block,
        _ => return None,
    })
}

impl<W: Write> Packer<W> {
    fn entry(&mut self, path: &Path, name: &[u8], metadata: &Metadata) -> io::Result<()> {
        let Some(kind) = kind(metadata.file_type()) else {
            eprintln!("den: {} is a socket and stays behind", path.display());
            return Ok(());
        };
        if !metadata.is_dir() && metadata.nlink() > 1 {
            let key = (metadata.dev(), metadata.ino());
            if let Some(first) = self.linked.get(&key) {
                let first = first.clone();
                return self.head(path, name, metadata, EntryType::Link, 0, &first);
            }
            self.linked.insert(key, name.to_owned());
        }
        match kind {
            EntryType::Regular => self.file(path, name),
            EntryType::Symlink => {
                let target = path.read_link()?.into_os_string().into_vec();
                self.head(path, name, metadata, kind, 0, &target)
            }
            _ => self.head(path, name, metadata, kind, 0, b""),
        }
    }

    fn file(&mut self, path: &Path, name: &[u8]) -> io::Result<()> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut file = match OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path) {
            Ok(file) => file,
            // The source itself may be a link that is followed.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => File::open(path)?,
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if is_sparse(&metadata) {
            self.records(path, name, &metadata, b"", true)?;
            return self.builder.append_file(PathBuf::from(OsString::from_vec(name.to_owned())), &mut file);
        }
        let size = metadata.len();
        self.head(path, name, &metadata, EntryType::Regular, size, b"")?;
        let mut left = size;
        let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(size).unwrap_or(CHUNK_BYTES).max(1))];
        while left > 0 {
            let most = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match file.read(&mut chunk[..most]) {
                // It shrank while it was read; the head has promised more.
                Ok(0) => {
                    chunk.fill(0);
                    let most = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    self.builder.get_mut().write_all(&chunk[..most])?;
                    left -= most as u64;
                }
                Ok(count) => {
                    self.builder.get_mut().write_all(&chunk[..count])?;
                    left -= count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let padding = (BLOCK_BYTES - size % BLOCK_BYTES) % BLOCK_BYTES;
        self.builder.get_mut().write_all(&[0; BLOCK_BYTES as usize][..padding as usize])
    }

    fn head(
        &mut self,
        path: &Path,
        name: &[u8],
        metadata: &Metadata,
        kind: EntryType,
        size: u64,
        link: &[u8],
    ) -> io::Result<()> {
        self.records(path, name, metadata, link, kind != EntryType::Link)?;
        let mut header = Header::new_gnu();
        header.set_metadata(metadata);
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(metadata.mode() & 0o7777);
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(rustix::fs::major(metadata.rdev()))?;
            header.set_device_minor(rustix::fs::minor(metadata.rdev()))?;
        }
        let old = header.as_old_mut();
        // Directories end with a slash, as everyone writes them.
        let slash: &[u8] = if kind == EntryType::Directory { b"/" } else { b"" };
        for (byte, from) in old.name.iter_mut().zip(name.iter().chain(slash)) {
            *byte = *from;
        }
        for (byte, from) in old.linkname.iter_mut().zip(link) {
            *byte = *from;
        }
        header.set_cksum();
        self.builder.get_mut().write_all(header.as_bytes())
    }

    /// The pax records in front of a head.
    fn records(
        &mut self,
        path: &Path,
        name: &[u8],
        metadata: &Metadata,
        link: &[u8],
        attributes: bool,
    ) -> io::Result<()> {
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        if name.len() > 99 {
            records.push(("path".to_owned(), name.to_owned()));
        }
        if link.len() > 99 {
            records.push(("linkpath".to_owned(), link.to_owned()));
        }
        if attributes {
            let (seconds, nanos) = (metadata.mtime(), metadata.mtime_nsec());
            if nanos != 0 && seconds >= 0 {
                records.push(("mtime".to_owned(), format!("{seconds}.{nanos:09}").into_bytes()));
            }
            if metadata.is_file() || metadata.is_dir() {
                for key in attribute_names(path) {
                    let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
                    // Gone, or not for us to read: then it does not travel.
                    if let Ok(length) = rustix::fs::lgetxattr(path, key.as_str(), &mut value[..]) {
                        value.truncate(length);
                        records.push((format!("SCHILY.xattr.{key}"), value));
                    }
                }
            }
        }
        self.builder.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_slice())))
    }
}

/// The longest value of an extended attribute: xattr(7).
const ATTRIBUTE_BYTES_MAX: usize = 64 << 10;

/// Attributes that mean the same elsewhere.
fn attribute_names(path: &Path) -> Vec<String> {
    // Most files have none; a list that does not fit here is fetched again with room for the longest.
    let mut few = [0; 1024];
    let mut many = Vec::new();
    let names = match rustix::fs::llistxattr(path, &mut few[..]) {
        Ok(length) => &few[..length],
        Err(rustix::io::Errno::RANGE) => {
            many.resize(ATTRIBUTE_BYTES_MAX, 0);
            let length = rustix::fs::llistxattr(path, &mut many[..]).unwrap_or(0);
            &many[..length]
        }
        Err(_) => &[],
    };
    names
        .split(|&byte| byte == 0)
        .filter_map(|name| std::str::from_utf8(name).ok())
        .filter(|name| name.starts_with("user.") || *name == "security.capability")
        .map(str::to_owned)
        .collect()
}
