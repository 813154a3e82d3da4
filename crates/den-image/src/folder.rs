//! A folder as a tar stream, so that there is one way in for layers.
//!
//! Names are in order, so the same folder gives the same bytes and thereby the same digest. Sockets
//! and devices are left out, other filesystems are not entered.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, File, Metadata},
    io::{self, BufWriter, Read, Write, pipe},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    thread,
};

use tar::{EntryType, Header};

use crate::ImageError;

/// Writes the tar of `folder` on a thread of its own and gives what comes out to `take`.
pub(crate) fn as_tar<T>(
    folder: &Path,
    take: impl FnOnce(&mut dyn Read) -> Result<T, ImageError>,
) -> Result<T, ImageError> {
    let unreadable = |source| ImageError::Source { path: folder.to_owned(), source };
    let (mut reader, writer) = pipe().map_err(unreadable)?;
    thread::scope(|scope| {
        let packing = scope.spawn(move || {
            let mut pack = Pack { out: BufWriter::with_capacity(256 << 10, writer), links: HashMap::new(), device: 0 };
            pack.run(folder).and_then(|()| pack.out.flush())
        });
        let taken = take(&mut reader);
        drop(reader);
        match packing.join() {
            // Its reader went away first, and says why.
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => taken,
            Ok(Err(error)) => Err(unreadable(error)),
            Ok(Ok(())) => taken,
            Err(_) => Err(unreadable(io::Error::other("packing it panicked"))),
        }
    })
}

struct Pack<W: Write> {
    out: W,
    /// Files with several names, by inode, and the name each got first.
    links: HashMap<u64, Vec<u8>>,
    device: u64,
}

impl<W: Write> Pack<W> {
    fn run(&mut self, root: &Path) -> io::Result<()> {
        let meta = fs::metadata(root)?;
        self.device = meta.dev();
        // A stack of our own, since a tree may be deeper than a thread's stack.
        let mut stack = vec![PathBuf::new()];
        while let Some(relative) = stack.pop() {
            let full = root.join(&relative);
            let meta = if relative.as_os_str().is_empty() { meta.clone() } else { fs::symlink_metadata(&full)? };
            if meta.is_dir() {
                if meta.dev() == self.device {
                    let mut names: Vec<OsString> =
                        fs::read_dir(&full)?.map(|entry| entry.map(|e| e.file_name())).collect::<Result<_, _>>()?;
                    names.sort();
                    stack.extend(names.into_iter().rev().map(|name| relative.join(name)));
                }
                self.member(&full, &relative, &meta, EntryType::Directory, &[])?;
            } else if meta.is_symlink() {
                let target = fs::read_link(&full)?.into_os_string().into_vec();
                self.member(&full, &relative, &meta, EntryType::Symlink, &target)?;
            } else if meta.is_file() {
                let first = (meta.nlink() > 1).then(|| self.links.get(&meta.ino()).cloned()).flatten();
                if let Some(first) = first {
                    self.member(&full, &relative, &meta, EntryType::Link, &first)?;
                } else {
                    if meta.nlink() > 1 {
                        self.links.insert(meta.ino(), relative.as_os_str().as_bytes().to_vec());
                    }
                    self.member(&full, &relative, &meta, EntryType::Regular, &[])?;
                    self.data(&full, meta.len())?;
                }
            } else if meta.file_type().is_fifo() {
                self.member(&full, &relative, &meta, EntryType::Fifo, &[])?;
            }
        }
        self.out.write_all(&[0; 1024])
    }

    fn member(
        &mut self,
        full: &Path,
        relative: &Path,
        meta: &Metadata,
        kind: EntryType,
        link: &[u8],
    ) -> io::Result<()> {
        let mut path = relative.as_os_str().as_bytes().to_vec();
        if kind == EntryType::Directory {
            path = [b"./".as_slice(), &path, b"/"].concat();
        }
        let mut records = Vec::new();
        record(&mut records, b"path", &path);
        if !link.is_empty() {
            record(&mut records, b"linkpath", link);
        }
        record(&mut records, b"uid", meta.uid().to_string().as_bytes());
        record(&mut records, b"gid", meta.gid().to_string().as_bytes());
        let mut mtime = meta.mtime().to_string();
        // A fraction counts away from zero, so one before 1970 is left out.
        if meta.mtime_nsec() != 0 && meta.mtime() >= 0 {
            mtime.push_str(&format!(".{:09}", meta.mtime_nsec()));
        }
        record(&mut records, b"mtime", mtime.as_bytes());
        let size = if kind == EntryType::Regular { meta.len() } else { 0 };
        record(&mut records, b"size", size.to_string().as_bytes());
        if matches!(kind, EntryType::Regular | EntryType::Directory) {
            for (name, value) in xattrs(full)? {
                record(&mut records, &[b"SCHILY.xattr.".as_slice(), &name].concat(), &value);
            }
        }
        let mut extension = Header::new_ustar();
        extension.set_entry_type(EntryType::XHeader);
        extension.set_size(records.len() as u64);
        extension.set_mode(0o644);
        extension.set_cksum();
        self.out.write_all(extension.as_bytes())?;
        self.out.write_all(&records)?;
        self.pad(records.len() as u64)?;
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        // The extension has the size; here it must fit in eleven octal digits.
        header.set_size(if size < 8 << 30 { size } else { 0 });
        header.set_mode(meta.mode() & 0o7777);
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    fn data(&mut self, full: &Path, size: u64) -> io::Result<()> {
        let mut file = File::open(full)?.take(size);
        let copied = io::copy(&mut file, &mut self.out)?;
        if copied != size {
            return Err(io::Error::other(format!("{} changed while it was read", full.display())));
        }
        self.pad(size)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let count = (512 - size % 512) % 512;
        self.out.write_all(&[0; 512][..count as usize])
    }
}

/// `LENGTH KEY=VALUE\n`, where LENGTH counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = 3 + key.len() + value.len();
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// A file's attributes. A filesystem without any has none.
fn xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut list = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut list[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let mut found = Vec::new();
    for name in list[..length].split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(length);
        found.push((name.to_vec(), value));
    }
    found.sort();
    Ok(found)
}
