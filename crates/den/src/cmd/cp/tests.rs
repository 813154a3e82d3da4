//! Trees through tar and back, and streams that mean harm.

use std::{
    fs::{self, File},
    io::{Cursor, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use tar::{Builder, EntryType, Header};

use super::{
    pack::pack,
    unpack::{HostOwner, unpack},
};

fn packed(source: &Path, top: &str) -> Vec<u8> {
    let mut out = Vec::new();
    pack(source, top.as_bytes(), false, &mut out).unwrap();
    out
}

fn unpacked(stream: Vec<u8>, directory: &Path, top: Option<&str>) -> Result<(), String> {
    let owner = if rustix::process::geteuid().is_root() { HostOwner::Kept } else { HostOwner::Mine };
    unpack(&mut Cursor::new(stream), directory, top.map(Path::new), owner).map_err(|trouble| trouble.shown())
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let from = tempfile::tempdir().unwrap();
    let tree = from.path().join("tree");
    let long = "n".repeat(180);
    fs::create_dir_all(tree.join("a").join(&long)).unwrap();
    fs::write(tree.join("a").join(&long).join("deep"), b"deep").unwrap();
    fs::write(tree.join("empty"), b"").unwrap();
    fs::write(tree.join("program"), b"#!/bin/sh\n").unwrap();
    fs::set_permissions(tree.join("program"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(tree.join("program"), tree.join("same")).unwrap();
    symlink("../elsewhere", tree.join("link")).unwrap();
    symlink(format!("/{long}"), tree.join("long-link")).unwrap();
    let sparse = File::create(tree.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"middle", 20 << 20).unwrap();
    fs::write(tree.join("zeros"), vec![0; 1 << 20]).unwrap();
    fs::write(tree.join("large"), (0..3_000_001_u32).map(|n| n as u8).collect::<Vec<_>>()).unwrap();
    fs::set_permissions(tree.join("a"), fs::Permissions::from_mode(0o555)).unwrap();

    let to = tempfile::tempdir().unwrap();
    unpacked(packed(&tree, "tree"), to.path(), Some("copy")).unwrap();
    let copy = to.path().join("copy");
    assert_eq!(fs::read(copy.join("a").join(&long).join("deep")).unwrap(), b"deep");
    assert_eq!(fs::read(copy.join("empty")).unwrap(), b"");
    assert_eq!(fs::read(copy.join("large")).unwrap(), fs::read(tree.join("large")).unwrap());
    assert_eq!(fs::metadata(copy.join("program")).unwrap().ino(), fs::metadata(copy.join("same")).unwrap().ino());
    assert_eq!(fs::metadata(copy.join("program")).unwrap().mode() & 0o7777, 0o755, "setuid stays behind");
    assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new("../elsewhere"));
    assert_eq!(fs::read_link(copy.join("long-link")).unwrap(), Path::new(&format!("/{long}")));
    assert_eq!(fs::metadata(copy.join("a")).unwrap().mode() & 0o777, 0o555);
    let (before, after) = (fs::metadata(tree.join("large")).unwrap(), fs::metadata(copy.join("large")).unwrap());
    assert_eq!((before.mtime(), before.mtime_nsec()), (after.mtime(), after.mtime_nsec()));
    let sparse = fs::metadata(copy.join("sparse")).unwrap();
    assert_eq!(sparse.len(), 64 << 20);
    assert!(sparse.blocks() * 512 < 1 << 20, "{} blocks", sparse.blocks());
    assert_eq!(&fs::read(copy.join("sparse")).unwrap()[20 << 20..][..6], b"middle");
    let zeros = fs::metadata(copy.join("zeros")).unwrap();
    assert_eq!((zeros.len(), zeros.blocks()), (1 << 20, 0));

    // Again over what is there.
    fs::set_permissions(copy.join("a"), fs::Permissions::from_mode(0o755)).unwrap();
    unpacked(packed(&tree, "tree"), to.path(), Some("copy")).unwrap();
    for directory in [tree.join("a"), copy.join("a")] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn what_a_directory_holds_goes_into_the_other() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(from.path().join("d")).unwrap();
    fs::write(from.path().join("d/f"), b"x").unwrap();
    unpacked(packed(from.path(), "."), to.path(), None).unwrap();
    assert_eq!(fs::read(to.path().join("d/f")).unwrap(), b"x");
}

/// An archive of one entry, with a name and a link that no honest packer writes.
fn entry(kind: EntryType, name: &str, link: &str, content: &[u8], builder: &mut Builder<Vec<u8>>) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o6777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(content.len() as u64);
    let old = header.as_old_mut();
    old.name[..name.len()].copy_from_slice(name.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    builder.append(&header, content).unwrap();
}

fn archive(entries: &[(EntryType, &str, &str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, name, link, content) in entries {
        entry(*kind, name, link, content, &mut builder);
    }
    builder.into_inner().unwrap()
}

#[test]
fn nothing_gets_out_of_the_directory() {
    use EntryType as E;
    let outer = tempfile::tempdir().unwrap();
    let check = |entries: &[(EntryType, &str, &str, &[u8])], expected: &str| {
        let inner = tempfile::tempdir_in(outer.path()).unwrap();
        let refused = unpacked(archive(entries), inner.path(), None).expect_err("refused");
        assert!(refused.contains(expected), "{refused}");
        assert!(!outer.path().join("out").exists() && !Path::new("/tmp/den-out").exists());
    };
    check(&[(E::Regular, "../out", "", b"x")], "`..`");
    check(&[(E::Regular, "a/../../out", "", b"x")], "`..`");
    check(&[(E::Regular, "/tmp/den-out", "", b"x")], "absolute");
    check(&[(E::Symlink, "l", "..", b""), (E::Regular, "l/out", "", b"x")], "link");
    check(&[(E::Symlink, "l", "/tmp", b""), (E::Regular, "l/den-out", "", b"x")], "link");
    check(&[(E::Symlink, "l", "/tmp", b""), (E::Directory, "l", "", b"")], "no directory");
    check(&[(E::Link, "h", "../out", b"")], "`..`");
    check(&[(E::Link, "h", "/etc/passwd", b"")], "absolute");
    check(&[(E::Symlink, "l", "/etc", b""), (E::Link, "h", "l/passwd", b"")], "");
    check(&[(E::Link, "h", "h", b"")], "itself");
    check(&[(E::Directory, "d", "", b""), (E::Regular, "d", "", b"x")], "in the way");
}

#[test]
fn a_link_is_replaced_and_not_written_through() {
    let outer = tempfile::tempdir().unwrap();
    let inner = outer.path().join("inner");
    fs::create_dir(&inner).unwrap();
    fs::write(outer.path().join("kept"), b"kept").unwrap();
    symlink("../kept", inner.join("f")).unwrap();
    unpacked(archive(&[(EntryType::Regular, "f", "", b"new")]), &inner, None).unwrap();
    assert_eq!(fs::read(outer.path().join("kept")).unwrap(), b"kept");
    assert_eq!(fs::read(inner.join("f")).unwrap(), b"new");
}

#[test]
fn devices_and_setuid_stay_behind() {
    let to = tempfile::tempdir().unwrap();
    let entries: &[(EntryType, &str, &str, &[u8])] =
        &[(EntryType::Char, "null", "", b""), (EntryType::Block, "sda", "", b""), (EntryType::Regular, "su", "", b"x")];
    unpacked(archive(entries), to.path(), None).unwrap();
    assert!(!to.path().join("null").exists() && !to.path().join("sda").exists());
    assert_eq!(fs::metadata(to.path().join("su")).unwrap().mode() & 0o7777, 0o777);
}

#[test]
fn a_broken_stream_is_an_error() {
    let to = tempfile::tempdir().unwrap();
    let mut stream = archive(&[(EntryType::Regular, "f", "", &[7; 2000])]);
    stream.truncate(1500);
    let refused = unpacked(stream, to.path(), None).expect_err("refused");
    assert!(refused.contains("error"), "{refused}");
    assert!(!to.path().join("f").exists(), "half a file is taken away");
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"no tar").unwrap();
    assert!(unpacked(vec![b'x'; 2048], to.path(), None).is_err());
}
