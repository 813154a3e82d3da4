//! The listing of a tree: everything that a disk can hold, in one order.
//!
//! ```text
//! Enter root · Enter etc · Node hosts · Leave · Node link · Leave        names of a folder: by their bytes
//! ```
//!
//! Each item is its length (4 bytes) and CBOR. Files up to [`INLINE_MAX`] lie in the listing itself.

use std::io::Read;

use minicbor::{Decode, Encode, bytes::ByteVec};

use crate::{BackupError, chunk::Hash};

/// Files up to this lie in the listing.
pub(crate) const INLINE_MAX: u64 = 512;
/// No item is longer: a file of a terabyte in chunks of the mean size has half of that.
const ITEM_MAX: usize = 128 << 20;
/// No file has more pieces: one takes about 50 bytes of an item.
pub(crate) const PIECES_MAX: usize = 2_000_000;
/// No attributes of one file are longer together.
pub(crate) const ATTRIBUTES_BYTES_MAX: usize = 16 << 20;

/// One of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Item {
    /// A folder; what is in it follows, and [`Item::Leave`].
    #[n(0)]
    Enter(#[n(0)] Node),
    /// The folder's end.
    #[n(1)]
    Leave,
    /// Anything else.
    #[n(2)]
    Node(#[n(0)] Node),
}

/// A time of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub(crate) struct Time {
    #[n(0)]
    pub s: i64,
    #[n(1)]
    pub ns: u32,
}

/// What tells whether a file is still the same, on the host that it was read on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Stamp {
    #[n(0)]
    pub inode: u64,
    /// The transaction that changed it last; 0 where the file system has none.
    #[n(1)]
    pub transaction: u64,
    #[n(2)]
    pub changed: Time,
}

/// Something with a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Node {
    #[cbor(n(0), with = "minicbor::bytes")]
    pub name: Vec<u8>,
    /// As in `st_mode`: type and permissions.
    #[n(1)]
    pub mode: u32,
    #[n(2)]
    pub uid: u32,
    #[n(3)]
    pub gid: u32,
    #[n(4)]
    pub modified: Time,
    #[n(5)]
    pub attributes: Vec<(ByteVec, ByteVec)>,
    /// Of a device.
    #[n(6)]
    pub device: u64,
    /// Where a symbolic link leads.
    #[n(7)]
    pub target: Option<ByteVec>,
    /// Another name, as a path from the root, of a file that was listed before: all else but `name` is empty.
    #[n(8)]
    pub same_as: Option<ByteVec>,
    /// Of a file.
    #[n(9)]
    pub size: u64,
    #[n(10)]
    pub content: Content,
    #[n(11)]
    pub stamp: Stamp,
}

/// The bytes of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Content {
    /// It has none, or is no file.
    #[n(0)]
    #[default]
    None,
    /// Themselves.
    #[n(1)]
    Inline(#[n(0)] ByteVec),
    /// In chunks; what lies between them are holes.
    #[n(2)]
    Pieces(#[n(0)] Vec<Piece>),
}

/// A chunk's place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Piece {
    #[n(0)]
    pub at: u64,
    #[n(1)]
    pub bytes: u32,
    #[n(2)]
    pub hash: Hash,
}

impl Content {
    pub(crate) fn pieces(&self) -> &[Piece] {
        match self {
            Self::Pieces(pieces) => pieces,
            _ => &[],
        }
    }
}

/// The item as it is written.
pub(crate) fn encode(item: &Item, into: &mut Vec<u8>) -> Result<(), BackupError> {
    let begin = into.len();
    into.extend_from_slice(&[0; 4]);
    minicbor::encode(item, &mut *into)
        .map_err(|error| BackupError::io("encode", "an item", std::io::Error::other(error.to_string())))?;
    let length = into.len() - begin - 4;
    if length > ITEM_MAX {
        let too_long = std::io::Error::other("a file has more pieces than a listing takes");
        return Err(BackupError::io("list", "a file", too_long));
    }
    into[begin..begin + 4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(())
}

/// Reads a listing, item by item. What it says of names is checked.
pub(crate) struct Reader<R> {
    source: R,
    /// As errors call it.
    what: String,
    next: Option<Item>,
    depth: usize,
    ended: bool,
    buffer: Vec<u8>,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(source: R, what: impl Into<String>) -> Self {
        Self { source, what: what.into(), next: None, depth: 0, ended: false, buffer: Vec::new() }
    }

    /// The next item, which stays the next one. None at the listing's end.
    pub(crate) fn peek(&mut self) -> Result<Option<&Item>, BackupError> {
        if self.next.is_none() && !self.ended {
            self.next = Some(self.read()?);
        }
        Ok(self.next.as_ref())
    }

    /// The next item.
    pub(crate) fn next(&mut self) -> Result<Option<Item>, BackupError> {
        self.peek()?;
        let item = self.next.take();
        match item {
            Some(Item::Enter(_)) => self.depth += 1,
            Some(Item::Leave) => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.ended |= item.is_some() && self.depth == 0;
        Ok(item)
    }

    /// The node that comes next in this folder; none at the folder's end.
    pub(crate) fn sibling(&mut self) -> Result<Option<&Node>, BackupError> {
        Ok(match self.peek()? {
            Some(Item::Enter(node) | Item::Node(node)) => Some(node),
            Some(Item::Leave) | None => None,
        })
    }

    /// Passes over the next item, and what is in it where it is a folder.
    pub(crate) fn skip(&mut self) -> Result<(), BackupError> {
        let depth = self.depth;
        self.next()?;
        while self.depth > depth {
            self.next()?;
        }
        Ok(())
    }

    fn broken(&self, why: &str) -> BackupError {
        BackupError::Broken { what: self.what.clone(), why: why.to_owned() }
    }

    fn read(&mut self) -> Result<Item, BackupError> {
        let mut length = [0; 4];
        self.source.read_exact(&mut length).map_err(|error| crate::repository::inner(error, &self.what))?;
        let length = u32::from_le_bytes(length) as usize;
        if length > ITEM_MAX {
            return Err(self.broken("an item of its listing is too long"));
        }
        self.buffer.resize(length, 0);
        self.source.read_exact(&mut self.buffer).map_err(|error| crate::repository::inner(error, &self.what))?;
        let item: Item = minicbor::decode(&self.buffer).map_err(|error| self.broken(&error.to_string()))?;
        if let Item::Enter(node) | Item::Node(node) = &item {
            let name: &[u8] = &node.name;
            let is_root = self.depth == 0;
            if is_root != name.is_empty() || name.contains(&b'/') || name.contains(&0) || name == b"." || name == b".."
            {
                return Err(self.broken("its listing has a name that is none"));
            }
            let texts = node.target.iter().chain(node.attributes.iter().map(|(name, _)| name));
            if texts.into_iter().any(|text| text.contains(&0))
                || node.attributes.iter().any(|(name, _)| name.is_empty())
            {
                return Err(self.broken("its listing has a text that is none"));
            }
            if node.same_as.as_ref().is_some_and(|path| !is_beneath(path)) {
                return Err(self.broken("its listing has a path that leads out of it"));
            }
        }
        Ok(item)
    }
}

/// Whether a path has nothing but names in it.
fn is_beneath(path: &[u8]) -> bool {
    !path.contains(&0) && path.split(|byte| *byte == b'/').all(|part| !matches!(part, b"" | b"." | b".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &[u8]) -> Node {
        Node { name: name.to_vec(), ..Node::default() }
    }

    fn listing(items: &[Item]) -> Vec<u8> {
        let mut bytes = Vec::new();
        items.iter().for_each(|item| encode(item, &mut bytes).unwrap());
        bytes
    }

    #[test]
    fn a_listing_reads_back_and_folders_are_passed_over() {
        let items = [
            Item::Enter(node(b"")),
            Item::Enter(node(b"a")),
            Item::Node(node(b"x\xff")),
            Item::Leave,
            Item::Node(node(b"b")),
            Item::Leave,
        ];
        let bytes = listing(&items);
        let mut reader = Reader::new(&bytes[..], "it");
        let mut read = Vec::new();
        while let Some(item) = reader.next().unwrap() {
            read.push(item);
        }
        assert_eq!(read, items);
        let mut reader = Reader::new(&bytes[..], "it");
        reader.next().unwrap();
        assert_eq!(&*reader.sibling().unwrap().unwrap().name, b"a");
        reader.skip().unwrap();
        assert_eq!(&*reader.sibling().unwrap().unwrap().name, b"b");
        reader.skip().unwrap();
        assert!(reader.sibling().unwrap().is_none());
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused_and_a_cut_listing_too() {
        for name in [&b".."[..], b"a/b", b"", b".", b"a\0"] {
            let bytes = listing(&[Item::Enter(node(b"")), Item::Node(node(name)), Item::Leave]);
            let mut reader = Reader::new(&bytes[..], "it");
            reader.next().unwrap();
            assert_eq!(reader.next().unwrap_err().code(), "backup_broken", "{name:?}");
        }
        for path in [&b""[..], b"/a", b"a/../b", b"a//b", b"./a", b"a/", b"a\0"] {
            let same_as = Some(path.to_vec().into());
            let bytes = listing(&[Item::Enter(node(b"")), Item::Node(Node { same_as, ..node(b"b") }), Item::Leave]);
            let mut reader = Reader::new(&bytes[..], "it");
            reader.next().unwrap();
            assert_eq!(reader.next().unwrap_err().code(), "backup_broken", "{path:?}");
        }
        let with_target = Node { target: Some(b"a\0b".to_vec().into()), ..node(b"b") };
        let attributes = vec![(b"user.\0".to_vec().into(), Vec::new().into())];
        for odd in [with_target, Node { attributes, ..node(b"b") }] {
            let bytes = listing(&[Item::Enter(node(b"")), Item::Node(odd), Item::Leave]);
            let mut reader = Reader::new(&bytes[..], "it");
            reader.next().unwrap();
            assert_eq!(reader.next().unwrap_err().code(), "backup_broken");
        }
        let bytes = listing(&[Item::Enter(node(b"")), Item::Leave]);
        let mut reader = Reader::new(&bytes[..bytes.len() - 1], "it");
        reader.next().unwrap();
        assert!(reader.next().is_err());
    }
}
