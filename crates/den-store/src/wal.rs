//! The write-ahead log before SQLite looks at it: SQLite takes one that is gone or has a broken head for an empty
//! one, and what was committed to it would be forgotten without a word.
//!
//! A tail that is torn is no damage: what was not synced went with the power.

use std::{
    fs::File,
    io::{self, ErrorKind, Read},
    path::Path,
    sync::Arc,
};

use crate::StoreError;

/// What every log begins with, but for the last bit: the order of bytes in its sums.
const MAGIC: u32 = 0x377f_0682;
/// Bytes of a log's head; the last eight are its sum.
const HEAD: usize = 32;

/// Whether the database at `path` has a log with something in it.
///
/// Errors: `store_corrupt` for one that is none.
pub(crate) fn check(path: &Path) -> Result<bool, StoreError> {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    let wal = Path::new(&wal);
    let head = match head(wal) {
        Ok(head) => head,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(source) => {
            return Err(StoreError::File { doing: "read", path: wal.to_owned(), source: Arc::new(source) });
        }
    };
    match head {
        Some(head) if !is_head(&head) => {
            let found = "it begins as no write-ahead log does".to_owned();
            Err(StoreError::Corrupt { path: wal.to_owned(), found })
        }
        head => Ok(head.is_some()),
    }
}

/// The head, where there is one. Before the first commit there is none, or zeros where the power went.
fn head(wal: &Path) -> io::Result<Option<[u8; HEAD]>> {
    let mut head = [0; HEAD];
    match File::open(wal)?.read_exact(&mut head) {
        Ok(()) => Ok((head != [0; HEAD]).then_some(head)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// fileformat2.html, "The Write-Ahead Log": the magic number, and the sum over what comes before it.
fn is_head(head: &[u8; HEAD]) -> bool {
    let big = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes"));
    let magic = big(0);
    if magic & !1 != MAGIC {
        return false;
    }
    let word = |at: usize| if magic & 1 == 1 { big(at) } else { big(at).swap_bytes() };
    let (mut first, mut second) = (0_u32, 0_u32);
    for at in (0..HEAD - 8).step_by(8) {
        first = first.wrapping_add(word(at)).wrapping_add(second);
        second = second.wrapping_add(word(at + 4)).wrapping_add(first);
    }
    (first, second) == (big(24), big(28))
}
