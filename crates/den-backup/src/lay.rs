//! From a listing to a tree on a disk.
//!
//! ```text
//! listing of what is there ─┐
//!                           ├─ side by side ─► the same: left · gone: removed · new: made · changed: its chunks
//! listing of what shall be ─┘
//! ```
//!
//! States of a disk are laid one on top of the other, so that they share on the new disk what they shared on the
//! old one. What is the same is not touched, what was changed in a file is changed in place.
//!
//! Invariants:
//! - Every name is taken from an open directory, and no link is followed.
//! - Each chunk is held against its hash before it is written.
//! - A file that is lost is not there; it is never there with other bytes.
//! - No path that a listing names leads out of the tree, whatever links are in it.

use std::{
    collections::HashSet,
    ffi::{CStr, CString},
    fs::File,
    io::{BufReader, Seek, SeekFrom},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    fs::{AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use crate::{
    BackupError, Progress, Repository, Tree,
    chunk::Hash,
    tree::{Content, Item, Node, Piece, Reader},
    walk::in_proc,
};

/// What a thread that lays has for a stack: the deepest tree that is backed up fits by far.
const STACK_BYTES: usize = 8 << 20;
/// Lost files that are named; the rest is counted with the last.
const LOST_MAX: usize = 10_000;

/// The listing of a tree, fetched and checked.
pub struct Listing {
    file: File,
    what: String,
}

impl Listing {
    /// Fetches the listing of a tree of a backup into a file without a name in `spool`.
    ///
    /// Errors: `Broken`; then nothing of the tree can be had.
    pub fn fetch(repository: &Repository, tree: &Tree, spool: &Path) -> Result<Self, BackupError> {
        let path = spool.join(format!(".listing-{}", uuid::Uuid::now_v7().simple()));
        let made = File::options().read(true).write(true).create_new(true).open(&path);
        let mut file = made.map_err(|error| BackupError::io("create", &path, error))?;
        std::fs::remove_file(&path).map_err(|error| BackupError::io("remove", &path, error))?;
        let what = tree.of.to_string();
        let copied = std::io::copy(&mut repository.read(&tree.chunks), &mut file);
        copied.map_err(|error| match crate::repository::inner(error, &what) {
            BackupError::Broken { why, .. } => BackupError::Broken { what: what.clone(), why },
            error => error,
        })?;
        Ok(Self { file, what })
    }

    fn reader(&self) -> Result<Reader<BufReader<&File>>, BackupError> {
        (&self.file).seek(SeekFrom::Start(0)).map_err(|error| BackupError::io("read", "a listing", error))?;
        Ok(Reader::new(BufReader::new(&self.file), self.what.clone()))
    }
}

/// Lays trees of backups out.
pub struct Layer<'a> {
    /// Where the chunks are.
    pub repository: &'a Repository,
    /// Whether what is lost is gone without; else the first that is ends it.
    pub skip_broken: bool,
    /// Who is told how far it is.
    pub progress: &'a dyn Progress,
    /// Set by whoever wants it ended.
    pub stop: &'a AtomicBool,
}

type Items<'l> = Reader<BufReader<&'l File>>;

struct Laying<'a, 'l> {
    layer: &'a Layer<'a>,
    old: Option<Items<'l>>,
    new: Items<'l>,
    /// Of the whole tree: other names of a file are made from it.
    root: OwnedFd,
    path: PathBuf,
    what: &'l str,
    /// Files that have another inode now than the old tree had, by the hash of their paths: their other names have
    /// to be made again.
    remade: HashSet<Hash>,
    lost: Vec<String>,
}

impl Layer<'_> {
    /// Makes the folder `root`, which has the tree `old` in it or nothing, into the tree `new`. Returns the paths
    /// that are lost.
    ///
    /// Errors: `Broken` naming what is lost, unless that is to be skipped.
    pub fn lay(&self, root: &Path, old: Option<&Listing>, new: &Listing) -> Result<Vec<String>, BackupError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let root_fd =
            rustix::fs::open(root, flags, Mode::empty()).map_err(|errno| BackupError::io("open", root, errno))?;
        let old = old.map(Listing::reader).transpose()?;
        let mut laying = Laying {
            layer: self,
            old,
            new: new.reader()?,
            root: root_fd,
            path: PathBuf::new(),
            what: &new.what,
            remade: HashSet::new(),
            lost: Vec::new(),
        };
        self.progress.begins(&new.what);
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("den-restore".into()).stack_size(STACK_BYTES);
            let laid = thread.spawn_scoped(scope, move || laying.all().map(|()| laying.lost));
            match laid {
                Ok(laid) => laid.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(error) => Err(BackupError::io("start", "a thread", error)),
            }
        })
    }
}

/// What an old entry is to the new one of its name.
enum Old {
    None,
    Same(Box<Node>),
}

impl Laying<'_, '_> {
    fn all(&mut self) -> Result<(), BackupError> {
        let Some(Item::Enter(root)) = self.new.next()? else {
            return Err(BackupError::Broken { what: self.what.to_owned(), why: "its listing has no root".to_owned() });
        };
        let had = match &mut self.old {
            Some(old) => old.next()?.is_some(),
            None => false,
        };
        let folder = self.root.try_clone().map_err(|error| BackupError::io("open", self.what, error))?;
        self.children(folder.as_fd(), had)?;
        self.describe(&in_proc(folder.as_fd(), None), &root, true)?;
        rustix::fs::syncfs(&self.root).map_err(|errno| self.error("syncfs", errno))
    }

    fn error(&self, call: &'static str, errno: Errno) -> BackupError {
        BackupError::io(call, Path::new(self.what).join(&self.path), errno)
    }

    /// Makes what is in a folder; says whether anything was done to the folder itself.
    fn children(&mut self, folder: BorrowedFd<'_>, had: bool) -> Result<bool, BackupError> {
        let mut touched = false;
        loop {
            if self.layer.stop.load(Ordering::Relaxed) {
                return Err(BackupError::Stopped);
            }
            let new = self.new.sibling()?.map(|node| node.name.to_vec());
            // What was there and comes before is no longer there.
            while had
                && let Some(old) = &mut self.old
                && let Some(gone) = old.sibling()?
                && new.as_ref().is_none_or(|name| *gone.name < **name)
            {
                let name = c_name(&gone.name);
                old.skip()?;
                self.remove(folder, &name)?;
                touched = true;
            }
            let Some(name) = new else { break };
            self.path.push(Path::new(std::ffi::OsStr::from_bytes(&name)));
            let made = self.child(folder, &c_name(&name), &name, had)?;
            self.path.pop();
            touched |= made;
        }
        self.new.next()?;
        if had && let Some(old) = &mut self.old {
            old.next()?;
        }
        Ok(touched)
    }

    /// Makes the next entry; says whether its folder was changed.
    fn child(&mut self, folder: BorrowedFd<'_>, c_name: &CStr, name: &[u8], had: bool) -> Result<bool, BackupError> {
        let was = match self.old.as_mut().filter(|_| had) {
            Some(old) => match old.sibling()?.is_some_and(|node| *node.name == *name) {
                true => old.peek()?.cloned(),
                false => None,
            },
            None => None,
        };
        let is_folder = matches!(self.new.peek()?, Some(Item::Enter(_)));
        if is_folder
            && let Some(Item::Enter(was)) = &was
            && self.is_there(folder, c_name)
        {
            if let Some(old) = &mut self.old {
                old.next()?;
            }
            return self.folder(folder, c_name, Some(was)).map(|()| false);
        }
        // A folder that becomes something else, or the reverse, is made anew.
        if was.is_some()
            && let Some(old) = &mut self.old
        {
            old.skip()?;
        }
        let was = match was {
            Some(Item::Node(was)) if !is_folder => Old::Same(Box::new(was)),
            Some(_) => {
                self.remove(folder, c_name)?;
                Old::None
            }
            None => Old::None,
        };
        if is_folder {
            let made = rustix::fs::mkdirat(folder, c_name, Mode::from_raw_mode(0o700));
            return match made.map_err(|errno| self.error("mkdir", errno)) {
                Ok(()) => self.folder(folder, c_name, None).map(|()| true),
                Err(error) if self.layer.skip_broken && is_own(&error) => {
                    self.new.skip()?;
                    self.lose(folder, c_name, &error.to_string())
                }
                Err(error) => Err(error),
            };
        }
        let Some(Item::Node(node)) = self.new.next()? else {
            return Err(BackupError::Broken { what: self.what.to_owned(), why: "its listing ends early".to_owned() });
        };
        match self.node(folder, c_name, &node, was) {
            Err(BackupError::Broken { why, .. }) if !self.layer.skip_broken => {
                let path = self.path.display();
                Err(BackupError::Broken { what: format!("{path} in {}", self.what), why })
            }
            Err(BackupError::Broken { why, .. }) => self.lose(folder, c_name, &why),
            Err(error) if self.layer.skip_broken && is_own(&error) => {
                let why = error.to_string();
                self.lose(folder, c_name, &why)
            }
            other => other,
        }
    }

    /// Whether what the old tree has is there: it may have been lost when that was laid.
    fn is_there(&self, folder: BorrowedFd<'_>, name: &CStr) -> bool {
        !self.layer.skip_broken || rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Goes on without an entry; its folder was changed.
    fn lose(&mut self, folder: BorrowedFd<'_>, name: &CStr, why: &str) -> Result<bool, BackupError> {
        let path = self.path.display().to_string();
        tracing::warn!(tree = self.what, path, why, "a file is lost");
        self.remove(folder, name)?;
        self.is_remade();
        if self.lost.len() < LOST_MAX {
            self.lost.push(path);
        }
        Ok(true)
    }

    fn is_remade(&mut self) {
        // Without an old tree nothing asks for it.
        if self.old.is_some() {
            self.remade.insert(Hash::of(self.path.as_os_str().as_bytes()));
        }
    }

    /// Another name of what lies at `first`. No link is followed on the way there.
    fn link(&self, first: &[u8], folder: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        let (parent, last) = match first.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&first[..at], &first[at + 1..]),
            None => return rustix::fs::linkat(&self.root, c_name(first), folder, name, AtFlags::empty()),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let parent = rustix::fs::openat2(&self.root, c_name(parent), flags, Mode::empty(), resolve)?;
        rustix::fs::linkat(&parent, c_name(last), folder, name, AtFlags::empty())
    }

    fn folder(&mut self, above: BorrowedFd<'_>, name: &CStr, was: Option<&Node>) -> Result<(), BackupError> {
        let Some(Item::Enter(node)) = self.new.next()? else {
            return Err(BackupError::Broken { what: self.what.to_owned(), why: "its listing ends early".to_owned() });
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let folder =
            rustix::fs::openat(above, name, flags, Mode::empty()).map_err(|errno| self.error("open", errno))?;
        let touched = self.children(folder.as_fd(), was.is_some())?;
        if touched || was.is_none_or(|was| !same_description(was, &node)) {
            self.describe(&in_proc(folder.as_fd(), None), &node, was.is_some())?;
        }
        Ok(())
    }

    /// Makes anything but a folder; says whether its folder was changed.
    fn node(&mut self, folder: BorrowedFd<'_>, name: &CStr, node: &Node, was: Old) -> Result<bool, BackupError> {
        if let Old::Same(was) = &was {
            let kept = match (&was.same_as, &node.same_as) {
                (Some(then), Some(now)) => then == now && !self.remade.contains(&Hash::of(now)),
                (None, None) => {
                    was.mode & KIND == node.mode & KIND
                        && was.device == node.device
                        && was.target == node.target
                        && self.change(folder, name, was, node)?
                }
                _ => false,
            };
            if kept {
                return Ok(false);
            }
            self.remove(folder, name)?;
        }
        self.is_remade();
        if let Some(first) = &node.same_as {
            return match self.link(first, folder, name) {
                Ok(()) => Ok(true),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Err(BackupError::Broken {
                    what: self.what.to_owned(),
                    why: "the file that it is another name of is lost".to_owned(),
                }),
                Err(errno) => Err(self.error("link", errno)),
            };
        }
        match FileType::from_raw_mode(node.mode) {
            FileType::RegularFile => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let file = rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o600))
                    .map_err(|errno| self.error("create", errno))?;
                self.fill(&file, &[], node)?;
            }
            FileType::Symlink => {
                let target = c_name(node.target.as_deref().map_or(&[][..], |target| &target[..]));
                rustix::fs::symlinkat(&target, folder, name).map_err(|errno| self.error("symlink", errno))?;
            }
            kind => {
                rustix::fs::mknodat(folder, name, kind, Mode::empty(), node.device)
                    .map_err(|errno| self.error("mknod", errno))?;
            }
        }
        self.describe(&in_proc(folder, Some(name)), node, false)?;
        Ok(true)
    }

    /// Changes what is there into what shall be; says whether it could.
    fn change(&mut self, folder: BorrowedFd<'_>, name: &CStr, was: &Node, node: &Node) -> Result<bool, BackupError> {
        let same_bytes = was.content == node.content && was.size == node.size;
        if same_bytes && same_description(was, node) {
            return Ok(self.is_there(folder, name));
        }
        if !same_bytes {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
                Ok(file) => file,
                Err(Errno::NOENT) => return Ok(false),
                Err(errno) => return Err(self.error("open", errno)),
            };
            let pieces = match (&was.content, &node.content) {
                (Content::Pieces(pieces), Content::Pieces(_)) => pieces.as_slice(),
                _ => {
                    rustix::fs::ftruncate(&file, 0).map_err(|errno| self.error("truncate", errno))?;
                    &[]
                }
            };
            self.fill(&file, pieces, node)?;
        }
        match self.describe(&in_proc(folder, Some(name)), node, true) {
            Err(BackupError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Writes a file that has the pieces `had`.
    fn fill(&mut self, file: &OwnedFd, had: &[Piece], node: &Node) -> Result<(), BackupError> {
        let wrong = |call: &'static str| {
            let path = Path::new(self.what).join(&self.path);
            move |errno: Errno| BackupError::io(call, path, errno)
        };
        rustix::fs::ftruncate(file, node.size).map_err(wrong("truncate"))?;
        let pieces = match &node.content {
            Content::None => return Ok(()),
            Content::Inline(bytes) => {
                write_at(file, bytes, 0).map_err(wrong("write"))?;
                self.layer.progress.read(bytes.len() as u64);
                return Ok(());
            }
            Content::Pieces(pieces) => pieces,
        };
        // Both are in order, so what is in both is found side by side.
        let kept: HashSet<u64> = {
            let mut kept = HashSet::new();
            let mut had = had.iter().peekable();
            for piece in pieces {
                while had.next_if(|old| old.at < piece.at).is_some() {}
                if had.peek() == Some(&piece) {
                    kept.insert(piece.at);
                }
            }
            kept
        };
        for old in had.iter().filter(|old| !kept.contains(&old.at) && old.at < node.size) {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let length = u64::from(old.bytes).min(node.size - old.at);
            match rustix::fs::fallocate(file, mode, old.at, length) {
                Ok(()) => {}
                // Then it is zeroes that are written.
                Err(Errno::OPNOTSUPP) => {
                    write_at(file, &vec![0; length as usize], old.at).map_err(wrong("write"))?;
                }
                Err(errno) => return Err(wrong("punch a hole into")(errno)),
            }
        }
        for piece in pieces.iter().filter(|piece| !kept.contains(&piece.at)) {
            let bytes = self.layer.repository.chunk(piece.hash)?;
            if bytes.len() != piece.bytes as usize {
                let why = "a chunk has another length than the listing says".to_owned();
                return Err(BackupError::Broken { what: self.what.to_owned(), why });
            }
            write_at(file, &bytes, piece.at).map_err(wrong("write"))?;
            self.layer.progress.read(bytes.len() as u64);
        }
        Ok(())
    }

    /// Sets all that is to be said of what the path names, whose last part is not followed.
    fn describe(&mut self, path: &Path, node: &Node, had: bool) -> Result<(), BackupError> {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let is_link = FileType::from_raw_mode(node.mode) == FileType::Symlink;
        let cwd = rustix::fs::CWD;
        let owner = (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)));
        rustix::fs::chownat(cwd, path, owner.0, owner.1, nofollow).map_err(|errno| self.error("chown", errno))?;
        if !is_link {
            let mode = Mode::from_raw_mode(node.mode & 0o7777);
            rustix::fs::chmodat(cwd, path, mode, AtFlags::empty()).map_err(|errno| self.error("chmod", errno))?;
        }
        if had {
            self.forget_attributes(path, node)?;
        }
        // After the owner: a change of it takes capabilities away.
        for (name, value) in &node.attributes {
            match rustix::fs::lsetxattr(path, c_name(name).as_c_str(), value, XattrFlags::empty()) {
                // Its own of another file system.
                Err(Errno::OPNOTSUPP | Errno::INVAL) if name.starts_with(b"btrfs.") => {}
                other => other.map_err(|errno| self.error("setxattr", errno))?,
            }
        }
        let time = Timespec { tv_sec: node.modified.s, tv_nsec: node.modified.ns as _ };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(cwd, path, &times, nofollow).map_err(|errno| self.error("utimens", errno))
    }

    /// Takes attributes away that shall not be there.
    fn forget_attributes(&self, path: &Path, node: &Node) -> Result<(), BackupError> {
        let mut list = vec![0_u8; 64 << 10];
        let length = match rustix::fs::llistxattr(path, &mut list[..]) {
            Ok(length) => length,
            Err(Errno::NOTSUP) => return Ok(()),
            Err(errno) => return Err(self.error("listxattr", errno)),
        };
        for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            if !node.attributes.iter().any(|(wanted, _)| **wanted == *name) {
                match rustix::fs::lremovexattr(path, c_name(name).as_c_str()) {
                    Ok(()) | Err(Errno::NODATA) => {}
                    Err(errno) => return Err(self.error("removexattr", errno)),
                }
            }
        }
        Ok(())
    }

    /// Removes a name, and what is in it. None is no error, nor one that cannot be.
    fn remove(&self, folder: BorrowedFd<'_>, name: &CStr) -> Result<(), BackupError> {
        match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {
                let path = in_proc(folder, Some(name));
                std::fs::remove_dir_all(&path)
                    .map_err(|error| BackupError::io("remove", Path::new(self.what).join(&self.path), error))
            }
            Err(errno) => Err(self.error("remove", errno)),
        }
    }
}

/// The part of `st_mode` that says what it is.
const KIND: u32 = 0o170_000;

/// Whether an error is of one entry alone, which this file system does not take: all others may go on.
fn is_own(error: &BackupError) -> bool {
    let own = [Errno::NAMETOOLONG, Errno::FBIG, Errno::MLINK, Errno::INVAL].map(Errno::raw_os_error);
    matches!(error, BackupError::Io { source, .. } if source.raw_os_error().is_some_and(|errno| own.contains(&errno)))
}

/// Whether two are the same but for their bytes.
fn same_description(a: &Node, b: &Node) -> bool {
    a.mode == b.mode && a.uid == b.uid && a.gid == b.gid && a.modified == b.modified && a.attributes == b.attributes
}

fn c_name(name: &[u8]) -> CString {
    CString::new(std::ffi::OsString::from_vec(name.to_vec()).into_vec()).expect("listings are checked for it")
}

fn write_at(file: &OwnedFd, bytes: &[u8], at: u64) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        done += rustix::io::pwrite(file, &bytes[done..], at + done as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::{Credentials, Place, tree};

    fn listing(spool: &Path, items: &[Item]) -> Listing {
        let mut bytes = Vec::new();
        items.iter().for_each(|item| tree::encode(item, &mut bytes).unwrap());
        let mut file = tempfile::tempfile_in(spool).unwrap();
        file.write_all(&bytes).unwrap();
        Listing { file, what: "it".to_owned() }
    }

    fn node(name: &str, kind: FileType) -> Node {
        let content = Content::Inline(b"x".to_vec().into());
        let mode = kind.as_raw_mode() | 0o700;
        let bytes = if kind == FileType::RegularFile { (1, content) } else { (0, Content::None) };
        Node { name: name.as_bytes().to_vec(), mode, size: bytes.0, content: bytes.1, ..Node::default() }
    }

    #[test]
    fn what_this_disk_does_not_take_is_lost_alone_and_states_are_laid_on_what_is_there() {
        let spool = tempfile::tempdir().unwrap();
        let out = spool.path().join("out");
        std::fs::create_dir(&out).unwrap();
        let place = Place::new(spool.path().join("to").to_str().unwrap(), &Credentials::default()).unwrap();
        Repository::prepare(&place).unwrap();
        let repository = Repository::open(place).unwrap();
        let long = "n".repeat(300);
        let items = [
            Item::Enter(node("", FileType::Directory)),
            Item::Enter(node(&format!("a{long}"), FileType::Directory)),
            Item::Node(node("in it", FileType::RegularFile)),
            Item::Leave,
            Item::Node(node(&format!("b{long}"), FileType::RegularFile)),
            Item::Node(node("c", FileType::RegularFile)),
            Item::Leave,
        ];
        let all = listing(spool.path(), &items);
        let stop = AtomicBool::new(false);
        let mut layer = Layer { repository: &repository, skip_broken: false, progress: &(), stop: &stop };
        assert_eq!(layer.lay(&out, None, &all).unwrap_err().code(), "backup_io");
        layer.skip_broken = true;
        let lost = [format!("a{long}"), format!("b{long}")];
        assert_eq!(layer.lay(&out, None, &all).unwrap(), lost);
        let again = listing(spool.path(), &items);
        assert_eq!(layer.lay(&out, Some(&all), &again).unwrap(), lost);
        assert_eq!(std::fs::read(out.join("c")).unwrap(), b"x");
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1);
        let less = listing(spool.path(), &[items[0].clone(), items[5].clone(), Item::Leave]);
        assert_eq!(layer.lay(&out, Some(&all), &less).unwrap(), [""; 0]);
    }
}
