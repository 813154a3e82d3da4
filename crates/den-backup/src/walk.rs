//! From a tree on a disk to its listing.
//!
//! ```text
//! folder on the disk, by name ─┐
//!                              ├─ side by side ─► same inode, same transaction or times: its chunks as they were
//! listing of the base ─────────┘                  else: read, cut, put
//! ```
//!
//! Invariants:
//! - Every step is taken from an open directory and no link is followed: the tree was written by someone else's
//!   root.
//! - A file counts as unchanged where btrfs says that no transaction changed it. Elsewhere its times say so, and
//!   those that are too young to tell are read.
//! - What cannot be read, or nests too deep, is left out and told of; it holds up nothing else.
//! - The names that are remembered have a limit, whatever is in the tree: beyond that, another name of a file is a
//!   file of its own, and the rest of a folder is left out.

use std::{
    cell::Cell,
    collections::HashMap,
    ffi::{CStr, CString},
    fs::File,
    io::{BufReader, BufWriter, Read, Seek, SeekFrom as FileSeek, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat},
    io::Errno,
};

use crate::{
    BackupError, Writer,
    chunk::{DATA_MIN, Kind},
    tree::{self, ATTRIBUTES_BYTES_MAX, Content, INLINE_MAX, Item, Node, PIECES_MAX, Piece, Reader, Stamp, Time},
};

/// The deepest tree that is read. A directory is open per level.
const DEPTH_MAX: usize = 400;
/// The kernel's limits on names of attributes and on one of them.
const XATTR_BYTES_MAX: usize = 64 << 10;
/// A file that was changed so shortly before it was read may have been changed after, with the same times.
const YOUNG_S: i64 = 3;
/// The longest first name of a file that has several: a path as the kernel takes one, for whoever makes the others.
const LINK_BYTES_MAX: usize = 4095;
/// All first names together, with what it takes to remember them.
const LINKS_BYTES_MAX: usize = 64 << 20;
/// All names together of the folders that are being read, with what it takes to sort them.
const NAMES_BYTES_MAX: usize = 512 << 20;
/// What a name takes beside its bytes, about.
const NAME_COST: usize = 64;
/// Paths that are told of when they are left out.
const LEFT_OUT_MAX: usize = 100;
/// What one level of folders takes of the stack is a few hundred bytes; the deepest tree fits by far.
const STACK_BYTES: usize = 8 << 20;

/// A tree to be read.
pub struct Source<'a> {
    /// Where it is.
    pub root: &'a Path,
    /// The transaction that changed each inode last, in their order, where the file system tells.
    pub transactions: Option<Vec<(u64, u64)>>,
    /// What of the root folder is passed over.
    pub skip: &'a (dyn Fn(&[u8]) -> bool + Sync),
}

/// A listing whose unchanged files are not read again.
pub struct Base {
    pub(crate) listing: File,
    /// When it was begun to be read.
    pub(crate) read_at_s: i64,
}

pub(crate) struct Walked {
    pub entries: u64,
    pub bytes: u64,
    pub left_out: Vec<String>,
}

type Former = Reader<BufReader<File>>;

pub(crate) struct Walk<'w, 'p, 's> {
    writer: &'w mut Writer<'p>,
    source: &'s Source<'s>,
    base: Option<Former>,
    base_read_at_s: i64,
    out: BufWriter<&'s mut File>,
    /// The first name of each file that has several.
    links: HashMap<u64, Vec<u8>>,
    /// Bytes of these.
    links_bytes: usize,
    /// Bytes of the names of folders that are being read.
    names_bytes: usize,
    path: PathBuf,
    walked: Walked,
    buffer: Vec<u8>,
    item: Vec<u8>,
}

impl<'w, 'p, 's> Walk<'w, 'p, 's> {
    /// Reads a tree into `out`. On a thread with a stack that the deepest one fits on.
    pub(crate) fn run(
        writer: &'w mut Writer<'p>,
        source: &'s Source<'s>,
        base: Option<Base>,
        out: &'s mut File,
    ) -> Result<Walked, BackupError>
    where
        'p: 's,
    {
        let base_read_at_s = base.as_ref().map_or(0, |base| base.read_at_s);
        let base = match base {
            Some(Base { mut listing, .. }) => {
                listing.seek(FileSeek::Start(0)).map_err(|error| BackupError::io("read", "a listing", error))?;
                let mut reader = Reader::new(BufReader::new(listing), "a former listing");
                reader.next()?; // Its root.
                Some(reader)
            }
            None => None,
        };
        let mut walk = Walk {
            writer,
            source,
            base,
            base_read_at_s,
            out: BufWriter::with_capacity(1 << 20, out),
            links: HashMap::new(),
            links_bytes: 0,
            names_bytes: 0,
            path: PathBuf::new(),
            walked: Walked { entries: 0, bytes: 0, left_out: Vec::new() },
            buffer: Vec::new(),
            item: Vec::new(),
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("den-backup".into()).stack_size(STACK_BYTES);
            let walked = thread.spawn_scoped(scope, move || walk.all().map(|()| walk.walked));
            match walked {
                Ok(walked) => walked.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(error) => Err(BackupError::io("start", "a thread", error)),
            }
        })
    }

    fn all(&mut self) -> Result<(), BackupError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = match rustix::fs::open(self.source.root, flags, Mode::empty()) {
            Ok(root) => root,
            Err(Errno::NOENT) => return Err(BackupError::Vanished(self.source.root.display().to_string())),
            Err(errno) => return Err(self.error("open", errno)),
        };
        let stat = rustix::fs::fstat(&root).map_err(|errno| self.error("stat", errno))?;
        let has_base = self.base.is_some();
        self.folder(root.as_fd(), &stat, CString::default().as_c_str(), has_base, 0)?;
        self.out.flush().map_err(|error| BackupError::io("write", "a listing", error))
    }

    fn error(&self, call: &'static str, errno: Errno) -> BackupError {
        BackupError::io(call, self.source.root.join(&self.path), errno)
    }

    /// One that is not in the listing, or a part of it, and why.
    fn leave_out(&mut self, why: &str) {
        let path = self.path.display().to_string();
        tracing::warn!(root = %self.source.root.display(), path, why, "something is not in the backup");
        if self.walked.left_out.len() < LEFT_OUT_MAX {
            self.walked.left_out.push(format!("{path}: {why}"));
        }
    }

    /// Remembers the first name of a file that has several, where there is room.
    fn remember(&mut self, inode: u64) {
        let path = self.path.as_os_str().as_bytes();
        let cost = path.len() + NAME_COST;
        if path.len() <= LINK_BYTES_MAX && self.links_bytes + cost <= LINKS_BYTES_MAX {
            self.links_bytes += cost;
            self.links.insert(inode, path.to_vec());
        }
    }

    /// The file that was remembered is not in the listing.
    fn forget(&mut self, inode: u64) {
        if let Some(path) = self.links.remove(&inode) {
            self.links_bytes -= path.len() + NAME_COST;
        }
    }

    /// Leaves a file out that was remembered; `why` where that is to be told, none of one that is gone.
    fn pass_over(&mut self, inode: u64, why: Option<&str>) -> Result<(), BackupError> {
        self.forget(inode);
        if let Some(why) = why {
            self.leave_out(why);
        }
        Ok(())
    }

    fn put(&mut self, item: &Item) -> Result<(), BackupError> {
        self.item.clear();
        tree::encode(item, &mut self.item)?;
        self.out.write_all(&self.item).map_err(|error| BackupError::io("write", "a listing", error))
    }

    /// Lists a folder, and what is in it.
    fn folder(
        &mut self,
        folder: BorrowedFd<'_>,
        stat: &Stat,
        name: &CStr,
        has_base: bool,
        depth: usize,
    ) -> Result<(), BackupError> {
        let node = self.node(&in_proc(folder, None), stat, name)?;
        self.walked.entries += 1;
        self.put(&Item::Enter(node))?;
        let before = self.names_bytes;
        let mut names: Vec<CString> = Vec::new();
        let listed = Dir::read_from(folder).and_then(|entries| {
            for entry in entries {
                let name = entry?.file_name().to_owned();
                if name.as_c_str() != c"." && name.as_c_str() != c".." {
                    self.names_bytes += name.count_bytes() + NAME_COST;
                    if self.names_bytes > NAMES_BYTES_MAX {
                        return Ok(false);
                    }
                    names.push(name);
                }
            }
            Ok(true)
        });
        match listed {
            Ok(true) => {}
            Ok(false) => self.leave_out("the rest of the folder: it has too many names"),
            Err(errno) if is_damage(errno) => self.leave_out("the folder cannot be read"),
            Err(errno) => return Err(self.error("list", errno)),
        }
        if depth == 0 {
            names.retain(|name| !(self.source.skip)(name.to_bytes()));
        }
        names.sort_unstable();
        // Some file systems list one twice while it is renamed.
        names.dedup();
        for name in names {
            self.path.push(as_path(&name));
            let former = self.former(name.to_bytes(), has_base)?;
            self.entry(folder, &name, former, depth)?;
            self.path.pop();
        }
        self.names_bytes = before;
        if has_base && let Some(base) = &mut self.base {
            while base.sibling()?.is_some() {
                base.skip()?;
            }
            base.next()?;
        }
        self.put(&Item::Leave)
    }

    /// What the base has of this name; a folder is entered.
    fn former(&mut self, name: &[u8], has_base: bool) -> Result<Option<Item>, BackupError> {
        let Some(base) = self.base.as_mut().filter(|_| has_base) else { return Ok(None) };
        while let Some(node) = base.sibling()? {
            match (*node.name).cmp(name) {
                std::cmp::Ordering::Less => base.skip()?,
                std::cmp::Ordering::Equal => return base.next(),
                std::cmp::Ordering::Greater => break,
            }
        }
        Ok(None)
    }

    /// Passes over what the base has in a folder that it was entered into.
    fn pass(&mut self, former: &Option<Item>) -> Result<(), BackupError> {
        if let (Some(Item::Enter(_)), Some(base)) = (former, &mut self.base) {
            while base.sibling()?.is_some() {
                base.skip()?;
            }
            base.next()?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &CStr,
        former: Option<Item>,
        depth: usize,
    ) -> Result<(), BackupError> {
        self.writer.go_on()?;
        let stat = match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return self.pass(&former),
            Err(errno) if is_damage(errno) => {
                self.leave_out("it cannot be read");
                return self.pass(&former);
            }
            Err(errno) => return Err(self.error("stat", errno)),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let beneath = OFlags::CLOEXEC | OFlags::NOFOLLOW;
        if kind == FileType::Directory {
            if depth == DEPTH_MAX {
                self.leave_out("folders nest too deep");
                return self.pass(&former);
            }
            let flags = beneath | OFlags::RDONLY | OFlags::DIRECTORY;
            return match rustix::fs::openat(folder, name, flags, Mode::empty()) {
                Ok(inner) => {
                    let has_base = matches!(former, Some(Item::Enter(_)));
                    self.folder(inner.as_fd(), &stat, name, has_base, depth + 1)
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.pass(&former),
                Err(errno) if is_damage(errno) => {
                    self.leave_out("the folder cannot be read");
                    self.pass(&former)
                }
                Err(errno) => Err(self.error("open", errno)),
            };
        }
        self.pass(&former)?;
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino) {
                let name = name.to_bytes().to_vec();
                let node = Node { name, mode: stat.st_mode, same_as: Some(first.clone().into()), ..Node::default() };
                self.walked.entries += 1;
                return self.put(&Item::Node(node));
            }
            self.remember(stat.st_ino);
        }
        let mut node = self.node(&in_proc(folder, Some(name)), &stat, name)?;
        match kind {
            FileType::Symlink => match rustix::fs::readlinkat(folder, name, Vec::new()) {
                Ok(target) => node.target = Some(target.into_bytes().into()),
                Err(Errno::NOENT | Errno::INVAL) => return self.pass_over(stat.st_ino, None),
                Err(errno) if is_damage(errno) => return self.pass_over(stat.st_ino, Some("it cannot be read")),
                Err(errno) => return Err(self.error("readlink", errno)),
            },
            FileType::RegularFile => {
                node.size = stat.st_size.max(0) as u64;
                let former = match former {
                    Some(Item::Node(former)) if self.is_unchanged(&former, &node) => Some(former),
                    _ => None,
                };
                match former {
                    Some(former) => {
                        self.writer.count(true);
                        node.content = former.content;
                    }
                    None if node.size == 0 => {}
                    None => {
                        let flags = beneath | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOATIME;
                        let file = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
                            Ok(file) => file,
                            // Gone, or something else has its name by now: a link, a pipe, a device.
                            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::NODEV) => {
                                return self.pass_over(stat.st_ino, None);
                            }
                            Err(errno) if is_damage(errno) => {
                                return self.pass_over(stat.st_ino, Some("it cannot be read"));
                            }
                            Err(errno) => return Err(self.error("open", errno)),
                        };
                        // Of the place's errors, which end the backup, the file's own are told apart here.
                        let failed = Cell::new(None);
                        match self.content(&file, node.size, &failed) {
                            Ok(Some(content)) => node.content = content,
                            Ok(None) => {
                                return self.pass_over(stat.st_ino, Some("it has more pieces than a listing takes"));
                            }
                            Err(_) if failed.get().is_some_and(is_damage) => {
                                return self.pass_over(stat.st_ino, Some("it cannot be read"));
                            }
                            Err(error) => return Err(error),
                        }
                        self.writer.count(false);
                    }
                }
                self.walked.bytes += node.size;
            }
            FileType::CharacterDevice | FileType::BlockDevice => node.device = stat.st_rdev,
            _ => {}
        }
        self.walked.entries += 1;
        self.put(&Item::Node(node))
    }

    /// Whether the file is as the base has it, whose chunks are all there then.
    fn is_unchanged(&mut self, former: &Node, now: &Node) -> bool {
        let (then, stamp) = (&former.stamp, &now.stamp);
        let known = FileType::from_raw_mode(former.mode) == FileType::RegularFile
            && former.same_as.is_none()
            && then == stamp
            && former.size == now.size
            && former.modified == now.modified;
        let old_enough = stamp.transaction != 0 || stamp.changed.s < self.base_read_at_s - YOUNG_S;
        known && old_enough && former.content.pieces().iter().all(|piece| self.writer.need(piece.hash))
    }

    /// What is to be said of anything.
    fn node(&mut self, path: &Path, stat: &Stat, name: &CStr) -> Result<Node, BackupError> {
        let transactions = self.source.transactions.as_deref().unwrap_or_default();
        let at = transactions.binary_search_by_key(&stat.st_ino, |(inode, _)| *inode);
        Ok(Node {
            name: name.to_bytes().to_vec(),
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            modified: Time { s: stat.st_mtime, ns: stat.st_mtime_nsec as u32 },
            attributes: self.attributes(path)?,
            stamp: Stamp {
                inode: stat.st_ino,
                transaction: at.map_or(0, |at| transactions[at].1),
                changed: Time { s: stat.st_ctime, ns: stat.st_ctime_nsec as u32 },
            },
            ..Node::default()
        })
    }

    /// The path ends in a name that is not followed. Those that cannot be had are left out, all of the file's.
    fn attributes(
        &mut self,
        path: &Path,
    ) -> Result<Vec<(minicbor::bytes::ByteVec, minicbor::bytes::ByteVec)>, BackupError> {
        self.buffer.resize(2 * XATTR_BYTES_MAX, 0);
        let (list, value) = self.buffer.split_at_mut(XATTR_BYTES_MAX);
        let length = match rustix::fs::llistxattr(path, &mut *list) {
            Ok(length) => length,
            Err(Errno::NOTSUP | Errno::NOENT) => return Ok(Vec::new()),
            Err(errno) if is_odd(errno) => return Ok(self.without_attributes()),
            Err(errno) => return Err(BackupError::io("listxattr", self.source.root.join(&self.path), errno)),
        };
        let mut attributes = Vec::new();
        let mut bytes = 0;
        for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let c_name = CString::new(name).expect("split at NUL");
            match rustix::fs::lgetxattr(path, &c_name, &mut *value) {
                Ok(length) => {
                    bytes += name.len() + length;
                    if bytes > ATTRIBUTES_BYTES_MAX {
                        return Ok(self.without_attributes());
                    }
                    attributes.push((name.to_vec().into(), value[..length].to_vec().into()));
                }
                Err(Errno::NODATA | Errno::NOENT) => {}
                Err(errno) if is_odd(errno) => return Ok(self.without_attributes()),
                Err(errno) => return Err(BackupError::io("getxattr", self.source.root.join(&self.path), errno)),
            }
        }
        attributes.sort_unstable_by_key(|(name, _): &(minicbor::bytes::ByteVec, _)| name.to_vec());
        Ok(attributes)
    }

    fn without_attributes(&mut self) -> Vec<(minicbor::bytes::ByteVec, minicbor::bytes::ByteVec)> {
        self.leave_out("its attributes cannot be read");
        Vec::new()
    }

    /// Reads a file, without its holes. None where it has too many pieces; `failed` where it could not be read.
    fn content(
        &mut self,
        file: &OwnedFd,
        size: u64,
        failed: &Cell<Option<Errno>>,
    ) -> Result<Option<Content>, BackupError> {
        let wrong = |errno: Errno| {
            failed.set(Some(errno));
            BackupError::io("read", self.source.root.join(&self.path), errno)
        };
        if size <= INLINE_MAX {
            let mut bytes = vec![0; size as usize];
            let mut done = 0;
            while done < bytes.len() {
                match rustix::io::pread(file, &mut bytes[done..], done as u64).map_err(wrong)? {
                    0 => break,
                    read => done += read,
                }
            }
            return Ok(Some(Content::Inline(bytes.into())));
        }
        let what = self.source.root.join(&self.path).display().to_string();
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < size {
            // A file system that knows no holes has data up to the end.
            let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(data) => data.min(size),
                Err(Errno::NXIO) => break,
                Err(_) => at,
            };
            let hole = rustix::fs::seek(file, SeekFrom::Hole(data)).unwrap_or(size).min(size);
            if hole <= data {
                break;
            }
            let mut range = Range { file: file.as_fd(), at: data, end: hole, failed };
            let length = (hole - data) as usize;
            if length <= DATA_MIN {
                self.buffer.clear();
                range.read_to_end(&mut self.buffer).map_err(|error| BackupError::io("read", &what, error))?;
                let bytes = std::mem::take(&mut self.buffer);
                if !bytes.is_empty() {
                    let hash = self.writer.put(Kind::Data, &bytes)?;
                    pieces.push(Piece { at: data, bytes: bytes.len() as u32, hash });
                }
                self.buffer = bytes;
            } else {
                let mut from = data;
                for (hash, bytes) in self.writer.cut(Kind::Data, range, &what)? {
                    pieces.push(Piece { at: from, bytes: bytes as u32, hash });
                    from += bytes as u64;
                }
            }
            if pieces.len() > PIECES_MAX {
                return Ok(None);
            }
            at = hole;
        }
        Ok(Some(Content::Pieces(pieces)))
    }
}

/// A part of a file.
struct Range<'a> {
    file: BorrowedFd<'a>,
    at: u64,
    end: u64,
    /// Why it could not be read.
    failed: &'a Cell<Option<Errno>>,
}

impl Read for Range<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let want = buffer.len().min((self.end - self.at) as usize);
        let read = rustix::io::pread(self.file, &mut buffer[..want], self.at)
            .inspect_err(|errno| self.failed.set(Some(*errno)))?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Whether a disk cannot read what it was given.
fn is_damage(errno: Errno) -> bool {
    matches!(errno, Errno::IO | Errno::UCLEAN)
}

/// Whether attributes are damaged, or longer than the kernel gives them out.
fn is_odd(errno: Errno) -> bool {
    is_damage(errno) || matches!(errno, Errno::TOOBIG | Errno::RANGE)
}

/// A path by which an open folder, or what has a name in it, is reached.
pub(crate) fn in_proc(folder: BorrowedFd<'_>, name: Option<&CStr>) -> PathBuf {
    let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    match name {
        Some(name) => path.join(as_path(name)),
        // Past the link that /proc shows.
        None => path.join("."),
    }
}

fn as_path(name: &CStr) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()))
}
