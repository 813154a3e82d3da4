//! What a layer may do, and what it may not.

use std::{
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use den_model::Bytes;

use super::{Tar, assert_clean, gzip, import, store, zstd};
use crate::{ImageError, ImageStore, UnpackLimits};

/// Unpacks and gives the layer's folder. The folder lives as long as the guard.
fn unpacked(tar: Tar) -> (tempfile::TempDir, PathBuf) {
    let (guard, store) = store();
    let image = import(&store, "x", &tar.end()).unwrap();
    assert_clean(&store);
    let layer = image.layers[0].clone();
    (guard, layer)
}

/// The code with which a layer is refused. Nothing may be left of it, inside or outside.
fn refused(tar: &[u8]) -> &'static str {
    let (guard, store) = store();
    let bait = guard.path().join("bait");
    fs::write(&bait, "untouched").unwrap();
    let error = import(&store, "x", tar).expect_err("refused");
    assert_clean(&store);
    assert_eq!(fs::read_dir(store.root().join("layers")).unwrap().count(), 0);
    assert!(store.list().unwrap().is_empty());
    assert_eq!(fs::read_to_string(bait).unwrap(), "untouched");
    error.code()
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

#[test]
fn files_keep_owner_mode_time_and_data() {
    let mut header = tar::Header::new_gnu();
    header.set_path("bin/su").unwrap();
    header.set_mode(0o4755);
    header.set_uid(1000);
    header.set_gid(5);
    header.set_mtime(1_234_567_890);
    header.set_size(3);
    let tar = Tar::new().member(b"./", b'5', 0o711, b"", b"").header(header, b"abc").folder("bin/");
    let (_guard, layer) = unpacked(tar);
    let meta = fs::metadata(layer.join("bin/su")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777, meta.mtime()), (1000, 5, 0o4755, 1_234_567_890));
    assert_eq!(fs::read(layer.join("bin/su")).unwrap(), b"abc");
    assert_eq!(fs::metadata(&layer).unwrap().mode() & 0o7777, 0o711);
    // The folder's own time, though a file was made in it.
    assert_eq!(fs::metadata(layer.join("bin")).unwrap().mtime(), 1_600_000_000);
}

#[test]
fn pax_values_are_binary_and_times_are_exact() {
    // A capability with a line's end in it, which a reader of lines would cut.
    let capability = [1, 0, 0, 2, 0x0a, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tar = Tar::new()
        .pax(&[
            ("mtime", b"1500000000.123456789"),
            ("uid", b"70000"),
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.note", b"a=b\nc"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"evil"),
        ])
        .file("ping", b"x");
    let (_guard, layer) = unpacked(tar);
    let path = layer.join("ping");
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec(), meta.uid()), (1_500_000_000, 123_456_789, 70000));
    assert_eq!(xattr(&path, "security.capability").unwrap(), capability);
    assert_eq!(xattr(&path, "user.note").unwrap(), b"a=b\nc");
    for name in ["trusted.overlay.redirect", "user.overlay.opaque", "security.selinux"] {
        assert_eq!(xattr(&path, name), None, "{name}");
    }
}

#[test]
fn long_names_and_names_of_any_bytes() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let deep = vec!["p"; 2000].join("/");
    let tar = Tar::new()
        .file(&long, b"1")
        .member(b"\xff\xfe\n name", b'0', 0o644, b"", b"2")
        .pax(&[("path", deep.as_bytes())])
        .file("short", b"3")
        .symlink("link", &"t/".repeat(1000));
    let (_guard, layer) = unpacked(tar);
    assert_eq!(fs::read(layer.join(long)).unwrap(), b"1");
    assert_eq!(fs::read(layer.join(std::ffi::OsStr::from_bytes(b"\xff\xfe\n name"))).unwrap(), b"2");
    assert_eq!(fs::read_link(layer.join("link")).unwrap().as_os_str().len(), 2000);
    let mut folder = layer.join("p");
    for _ in 0..100 {
        folder.push("p");
    }
    assert!(folder.is_dir());
}

#[test]
fn whiteouts_become_overlayfs_own() {
    let tar = Tar::new()
        .folder("a/")
        .file("a/.wh.gone", b"")
        .file("a/.wh..wh..opq", b"")
        .file("kept", b"k")
        .file(".wh.kept", b"")
        .file(".wh..wh.plnk", b"")
        .file(".wh.back", b"")
        .folder("back/");
    let (_guard, layer) = unpacked(tar);
    let gone = fs::symlink_metadata(layer.join("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(xattr(&layer.join("a"), "trusted.overlay.opaque").unwrap(), b"y");
    // A whiteout says nothing of its own layer.
    assert_eq!(fs::read(layer.join("kept")).unwrap(), b"k");
    // What is hidden below and made anew is opaque.
    assert_eq!(xattr(&layer.join("back"), "trusted.overlay.opaque").unwrap(), b"y");
    assert_eq!(fs::read_dir(&layer).unwrap().count(), 3);
}

#[test]
fn overlayfs_takes_the_layers_as_they_are() {
    let (_guard, store) = store();
    let lower = Tar::new().file("a/gone", b"1").file("a/kept", b"2").file("b/old", b"3").end();
    let upper = Tar::new().file("a/.wh.gone", b"").folder("b/").file("b/.wh..wh..opq", b"").file("b/new", b"4").end();
    let folder = tempfile::tempdir().unwrap();
    super::write_layout(
        folder.path(),
        &super::oci(&[lower, upper], gzip, "application/vnd.oci.image.layer.v1.tar+gzip"),
    );
    let image = store.import(folder.path(), &"x".parse().unwrap(), &crate::Quiet).unwrap();
    let target = tempfile::tempdir().unwrap();
    let lowers: Vec<_> = image.layers.iter().map(|layer| layer.to_str().unwrap()).collect();
    let options = std::ffi::CString::new(format!("lowerdir={}", lowers.join(":"))).unwrap();
    rustix::mount::mount("den-test", target.path(), "overlay", rustix::mount::MountFlags::RDONLY, options.as_c_str())
        .unwrap();
    let names = |path: &str| {
        let entries = fs::read_dir(target.path().join(path)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let seen = (names("a"), names("b"));
    rustix::mount::unmount(target.path(), rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(seen, (vec!["kept".to_owned()], vec!["new".to_owned()]));
}

#[test]
fn a_merged_usr_is_followed_inside_the_layer() {
    let tar = Tar::new()
        .folder("usr/lib/")
        .symlink("lib", "usr/lib")
        .symlink("absolute", "/usr")
        .symlink("climbs", "../../../../usr")
        .file("lib/a", b"1")
        .file("absolute/b", b"2")
        .file("climbs/c", b"3")
        .hard_link("d", "lib/a");
    let (_guard, layer) = unpacked(tar);
    assert_eq!(fs::read(layer.join("usr/lib/a")).unwrap(), b"1");
    assert_eq!(fs::read(layer.join("usr/b")).unwrap(), b"2");
    assert_eq!(fs::read(layer.join("usr/c")).unwrap(), b"3");
    assert_eq!(fs::metadata(layer.join("d")).unwrap().nlink(), 2);
}

#[test]
fn a_link_in_the_last_part_is_replaced_and_never_followed() {
    let (guard, store) = store();
    let bait = guard.path().join("bait");
    fs::write(&bait, "untouched").unwrap();
    let tar = Tar::new()
        .symlink("out", bait.to_str().unwrap())
        .file("out", b"inside")
        .symlink("folder", guard.path().to_str().unwrap())
        .folder("folder/")
        .file("folder/bait", b"inside too")
        .end();
    let image = import(&store, "x", &tar).unwrap();
    assert_eq!(fs::read_to_string(bait).unwrap(), "untouched");
    assert_eq!(fs::read(image.layers[0].join("out")).unwrap(), b"inside");
    assert_eq!(fs::read(image.layers[0].join("folder/bait")).unwrap(), b"inside too");
}

#[test]
fn what_climbs_out_is_refused() {
    let check = |tar: Tar| assert_eq!(refused(&tar.end()), "image_bad_layer");
    check(Tar::new().file("../bait", b"x"));
    check(Tar::new().file("a/../../bait", b"x"));
    check(Tar::new().file("..", b"x"));
    check(Tar::new().pax(&[("path", b"../bait")]).file("ok", b"x"));
    check(Tar::new().pax(&[("path", b"a\0b")]).file("ok", b"x"));
    check(Tar::new().hard_link("x", "../bait"));
    check(Tar::new().hard_link("x", "/etc/passwd"));
    check(Tar::new().symlink("s", "/etc").hard_link("x", "s/passwd"));
    check(Tar::new().symlink("s", "/etc/passwd").file("s/x", b""));
    check(Tar::new().file("f", b"").file("f/x", b""));
    check(Tar::new().symlink("s", "s").file("s/x", b""));
    check(Tar::new().file("a/.wh...", b""));
    check(Tar::new().file("a/.wh.", b""));
    check(Tar::new().folder("d/").hard_link("x", "d"));
    check(Tar::new().member(b"x", b'Q', 0o644, b"", b""));
    check(Tar::new().symlink("s", ""));
}

#[test]
fn an_absolute_path_means_the_layer() {
    let (_guard, layer) = unpacked(Tar::new().file("/etc/den-test", b"x"));
    assert!(layer.join("etc/den-test").is_file());
    assert!(!Path::new("/etc/den-test").exists());
}

#[test]
fn device_nodes_are_left_out_and_fifos_kept() {
    let mut device = tar::Header::new_gnu();
    device.set_path("dev/null").unwrap();
    device.set_entry_type(tar::EntryType::Char);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    device.set_mode(0o666);
    device.set_uid(0);
    device.set_gid(0);
    device.set_size(0);
    let mut whiteout = device.clone();
    whiteout.set_path("etc").unwrap();
    whiteout.set_device_major(0).unwrap();
    whiteout.set_device_minor(0).unwrap();
    let tar =
        Tar::new().folder("dev/").header(device, b"").header(whiteout, b"").member(b"pipe", b'6', 0o600, b"", b"");
    let (_guard, layer) = unpacked(tar);
    assert_eq!(fs::read_dir(layer.join("dev")).unwrap().count(), 0);
    assert!(!layer.join("etc").exists());
    assert!(fs::symlink_metadata(layer.join("pipe")).unwrap().file_type().is_fifo());
}

#[test]
fn a_later_member_replaces_an_earlier_one() {
    let tar = Tar::new()
        .file("f", b"1")
        .file("f", b"22")
        .file("d/x/y", b"")
        .file("d", b"now a file")
        .file("g", b"")
        .folder("g/")
        .file("h", b"h")
        .hard_link("h", "h");
    let (_guard, layer) = unpacked(tar);
    assert_eq!(fs::read(layer.join("f")).unwrap(), b"22");
    assert_eq!(fs::read(layer.join("d")).unwrap(), b"now a file");
    assert!(layer.join("g").is_dir());
    assert_eq!(fs::read(layer.join("h")).unwrap(), b"h");
}

#[test]
fn zeros_become_holes() {
    let mut data = vec![0_u8; 8 << 20];
    data[5 << 20] = 7;
    let (_guard, layer) = unpacked(Tar::new().file("f", &data).file("zeros", &[0; 100_000]));
    let meta = fs::metadata(layer.join("f")).unwrap();
    assert_eq!(meta.len(), 8 << 20);
    assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    assert_eq!(fs::read(layer.join("f")).unwrap(), data);
    assert_eq!(fs::metadata(layer.join("zeros")).unwrap().len(), 100_000);
}

/// GNU tar itself writes the sparse formats, so that we do not test our reading against our writing.
#[test]
fn sparse_files_of_gnu_tar_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = fs::File::create(folder.path().join("sparse")).unwrap();
    use std::os::unix::fs::FileExt as _;
    for piece in 0..40_u64 {
        file.write_all_at(&[piece as u8 + 1; 5000], piece << 20).unwrap();
    }
    file.set_len(100 << 20).unwrap();
    let expected = fs::read(folder.path().join("sparse")).unwrap();
    for format in [&["--format=gnu"][..], &["--format=posix"], &["--format=posix", "--sparse-version=0.1"]] {
        let mut command = std::process::Command::new("tar");
        let output = command.args(format).args(["-S", "-c", "-C"]).arg(folder.path()).arg("sparse").output().unwrap();
        assert!(output.status.success() && output.stdout.len() < 2 << 20, "{format:?}");
        let (_guard, store) = store();
        let image = import(&store, "x", &output.stdout).unwrap();
        let path = image.layers[0].join("sparse");
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < 2 << 20, "{format:?}");
        assert!(fs::read(path).unwrap() == expected, "{format:?}");
    }
}

#[test]
fn the_digest_does_not_depend_on_the_compression() {
    let (_guard, store) = store();
    let tar = Tar::new().file("f", b"x").end();
    let digests: Vec<_> = [tar.clone(), gzip(&tar), zstd(&tar), [gzip(&tar[..512]), gzip(&tar[512..])].concat()]
        .iter()
        .map(|bytes| import(&store, "x", bytes).unwrap().digest.clone())
        .collect();
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    assert_eq!(fs::read_dir(store.root().join("layers")).unwrap().count(), 1);
}

#[test]
fn broken_bytes_are_a_bad_layer() {
    let tar = Tar::new().file("f", &[b'x'; 5000]).end();
    for bytes in [
        b"".to_vec(),
        b"no tar at all".to_vec(),
        vec![b'x'; 5000],
        tar[..700].to_vec(),
        gzip(&tar)[..40].to_vec(),
        zstd(&tar)[..20].to_vec(),
        [&gzip(&tar)[..], b"rubbish"].concat(),
        Tar::new().member(b"p", b'x', 0o644, b"", b"99 path=x\n").file("f", b"").end(),
        Tar::new().pax(&[("path", b"only a header")]).end(),
        Tar::new().pax(&[("size", b"9223372036854775808")]).file("f", b"").end(),
        Tar::new().pax(&[("GNU.sparse.map", b"0,5,3,5"), ("GNU.sparse.size", b"20")]).file("f", &[1; 10]).end(),
        Tar::new().pax(&[("GNU.sparse.map", b"0,5"), ("GNU.sparse.size", b"20")]).file("f", &[1; 10]).end(),
    ] {
        assert_eq!(refused(&bytes), "image_bad_layer", "{:?}", &bytes[..bytes.len().min(20)]);
    }
    let xz = [&[0xfd][..], b"7zXZ\0", &[0; 100]].concat();
    assert_eq!(refused(&xz), "image_unsupported");
}

#[test]
fn limits_hold() {
    let check = |limits: UnpackLimits, bytes: &[u8]| {
        let guard = tempfile::tempdir().unwrap();
        let store = ImageStore::open_with(guard.path(), limits).unwrap();
        let error = import(&store, "x", bytes).expect_err("refused");
        assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
        assert_clean(&store);
    };
    let normal = UnpackLimits::default();
    let bomb = gzip(&Tar::new().file("zeros", &vec![0; 32 << 20]).end());
    check(UnpackLimits { ratio_free_bytes: Bytes::mib(1), ..normal }, &bomb);
    let bomb = zstd(&Tar::new().file("zeros", &vec![0; 32 << 20]).end());
    check(UnpackLimits { ratio_free_bytes: Bytes::mib(1), ..normal }, &bomb);
    let many = (0..50).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), b"")).end();
    check(UnpackLimits { entries_max: 49, ..normal }, &many);
    let large = Tar::new().file("a", &[1; 4000]).file("b", &[1; 4000]).end();
    check(UnpackLimits { unpacked_bytes_max: Bytes(7999), ..normal }, &large);
    // A hole counts as well: reading it takes as long as reading bytes.
    let hole = Tar::new().pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"9000000000000")]).file("f", b"x");
    check(normal, &hole.end());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::XHeader);
    header.set_size(2 << 20);
    header.set_mode(0o644);
    check(normal, &Tar::new().header(header, &vec![b'x'; 2 << 20]).end());
}

#[test]
fn the_hosts_users_reach_no_set_user_id_program_of_an_image() {
    let (_guard, layer) = unpacked(Tar::new().file("f", b""));
    let layers = layer.ancestors().nth(2).unwrap();
    assert_eq!(fs::metadata(layers).unwrap().permissions().mode() & 0o077, 0);
}
