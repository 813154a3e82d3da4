//! An archive of a part of a state, for copies out of it: pax heads where ustar cannot say it, as the
//! archives that agents pack.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use den_api::EntryKind;
use tar::{Builder, EntryType, Header};

use super::{Next, walk};
use crate::error::HistoryError;
use crate::view::{DEPTH_MAX, Meta, View};

/// Names of files with several that are remembered; of more, each name gets the bytes.
const LINKS_MAX: usize = 1_000_000;

/// Packs what is at `path`, with modes, owners, times, attributes, links and hard links; sockets are left
/// out. Names begin with the last component of `path` (`.` for the root and for `/a/.`). A link at `path` is followed.
pub fn tar(view: &View, path: &Path, out: &mut impl Write) -> Result<(), HistoryError> {
    let real = view.follow(path)?;
    let meta = view.stat(&real)?;
    // `Path` does not see the dot of `/a/.`, which asks for what the directory holds.
    let contents = path.as_os_str().as_bytes().ends_with(b"/.");
    let name = Path::new(path.file_name().filter(|_| !contents).unwrap_or(".".as_ref()));
    let mut pack = Pack { view, builder: Builder::new(out), links: HashMap::new() };
    pack.put(&real, name, &meta)?;
    if meta.kind == EntryKind::Directory {
        walk(view, &real, DEPTH_MAX, &mut |entry, _| {
            if let Some(meta) = view.lstat(entry)? {
                let below = entry.strip_prefix(&real).unwrap_or(entry);
                pack.put(entry, &name.join(below), &meta)?;
            }
            Ok(Next::On)
        })?;
    }
    let out = pack.builder.into_inner().map_err(HistoryError::io("packing", path))?;
    out.flush().map_err(HistoryError::io("packing", path))
}

struct Pack<'a, W: Write> {
    view: &'a View,
    builder: Builder<W>,
    /// The first name of each file that has several.
    links: HashMap<(u64, u64), Box<Path>>,
}

impl<W: Write> Pack<'_, W> {
    fn put(&mut self, real: &Path, name: &Path, meta: &Meta) -> Result<(), HistoryError> {
        let failed = |error| HistoryError::io("packing", real)(error);
        let Some(kind) = entry_type(meta) else { return Ok(()) };
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(meta.mode);
        header.set_size(0);
        header.set_mtime(meta.mtime.sec.clamp(0, 0o77_777_777_777) as u64);
        // What ustar cannot say stays 0 in the head.
        let fits = |number: u32| u64::from(if number <= 0o7_777_777 { number } else { 0 });
        header.set_uid(fits(meta.uid));
        header.set_gid(fits(meta.gid));
        if meta.kind == EntryKind::Special {
            header.set_device_major(rustix::fs::major(meta.rdev)).map_err(failed)?;
            header.set_device_minor(rustix::fs::minor(meta.rdev)).map_err(failed)?;
        }
        let mut pax: Vec<(String, Vec<u8>)> = Vec::new();
        for (key, number) in [("uid", meta.uid), ("gid", meta.gid)] {
            if number > 0o7_777_777 {
                pax.push((key.to_owned(), number.to_string().into_bytes()));
            }
        }
        if meta.mtime.nsec != 0 || meta.mtime.sec < 0 || meta.mtime.sec > 0o77_777_777_777 {
            pax.push(("mtime".to_owned(), decimal_time(meta.mtime.sec, meta.mtime.nsec).into_bytes()));
        }
        let first = (meta.nlink > 1 && meta.kind != EntryKind::Directory)
            .then(|| self.links.get(&(meta.dev, meta.ino)).cloned())
            .flatten();
        if let Some(first) = first {
            header.set_entry_type(EntryType::Link);
            return self.entry(header, pax, name, Some(first.as_os_str().as_bytes()), std::io::empty()).map_err(failed);
        }
        if meta.nlink > 1 && meta.kind != EntryKind::Directory && self.links.len() < LINKS_MAX {
            self.links.insert((meta.dev, meta.ino), name.into());
        }
        if matches!(meta.kind, EntryKind::File | EntryKind::Directory) {
            for (key, value) in self.view.xattrs(real)? {
                // A name that is no UTF-8 has no place in a pax record's key.
                if let Ok(key) = String::from_utf8(key) {
                    pax.push((format!("SCHILY.xattr.{key}"), value));
                }
            }
        }
        if meta.kind != EntryKind::File {
            return self.entry(header, pax, name, meta.target.as_deref(), std::io::empty()).map_err(failed);
        }
        let file = self.view.open_file(real)?;
        if meta.size <= 0o77_777_777_777 {
            header.set_size(meta.size);
        } else {
            pax.push(("size".to_owned(), meta.size.to_string().into_bytes()));
        }
        // The head says how many bytes come; a state does not change, so there are as many.
        self.entry(header, pax, name, None, file.take(meta.size)).map_err(failed)
    }

    fn entry(
        &mut self,
        mut header: Header,
        mut pax: Vec<(String, Vec<u8>)>,
        name: &Path,
        target: Option<&[u8]>,
        data: impl Read,
    ) -> std::io::Result<()> {
        let mut bytes = name.as_os_str().as_bytes().to_vec();
        if header.entry_type() == EntryType::Directory {
            bytes.push(b'/');
        }
        let fields = header.as_ustar_mut().map(|ustar| (&mut ustar.name, &mut ustar.linkname));
        let Some((name_field, link_field)) = fields else { return Err(std::io::ErrorKind::InvalidInput.into()) };
        text(name_field, &bytes, "path", &mut pax);
        text(link_field, target.unwrap_or_default(), "linkpath", &mut pax);
        header.set_cksum();
        if !pax.is_empty() {
            self.builder.append_pax_extensions(pax.iter().map(|(key, value)| (key.as_str(), value.as_slice())))?;
        }
        self.builder.append(&header, data)
    }
}

fn text(field: &mut [u8], value: &[u8], key: &str, pax: &mut Vec<(String, Vec<u8>)>) {
    let fits = value.len().min(field.len());
    field[..fits].copy_from_slice(&value[..fits]);
    if fits < value.len() {
        pax.push((key.to_owned(), value.to_vec()));
    }
}

fn entry_type(meta: &Meta) -> Option<EntryType> {
    match meta.kind {
        EntryKind::File => Some(EntryType::Regular),
        EntryKind::Directory => Some(EntryType::Directory),
        EntryKind::Symlink => Some(EntryType::Symlink),
        EntryKind::Special => match meta.file_type {
            0o010_000 => Some(EntryType::Fifo),
            0o020_000 => Some(EntryType::Char),
            0o060_000 => Some(EntryType::Block),
            _ => None,
        },
    }
}

/// Seconds before the epoch count down, their parts too: -1.5 is `sec` -2, `nsec` 5e8.
fn decimal_time(sec: i64, nsec: u32) -> String {
    match (sec, nsec) {
        (sec, nsec) if sec < 0 && nsec > 0 => format!("-{}.{:09}", -(sec + 1), 1_000_000_000 - nsec),
        (sec, nsec) => format!("{sec}.{nsec:09}"),
    }
}
