//! Every form that an image comes in.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, process::Command};

use super::{Tar, assert_clean, digest, gzip, oci, store, write_layout, zstd};
use crate::{Image, ImageError, ImageStore, Quiet};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

fn import(store: &ImageStore, source: &Path) -> Result<std::sync::Arc<Image>, ImageError> {
    let image = store.import(source, &"x".parse().unwrap(), &Quiet);
    assert_clean(store);
    image
}

fn tars() -> [Vec<u8>; 2] {
    [Tar::new().file("etc/a", b"1").end(), Tar::new().file("etc/b", b"2").end()]
}

#[test]
fn a_root_filesystem_as_a_file() {
    let (guard, store) = store();
    let tar = Tar::new().file("etc/a", b"1").end();
    for bytes in [tar.clone(), gzip(&tar), zstd(&tar)] {
        let file = guard.path().join("rootfs");
        fs::write(&file, bytes).unwrap();
        let image = import(&store, &file).unwrap();
        assert_eq!(fs::read(image.layers[0].join("etc/a")).unwrap(), b"1");
        assert_eq!(image.size.0, 1);
        assert!(image.source.ends_with("rootfs"));
    }
}

#[test]
fn a_folder_with_all_that_a_folder_can_hold() {
    let (guard, store) = store();
    let root = guard.path().join("root");
    let script = "mkdir -p usr/bin etc d; echo x > usr/bin/su; chown 5:6 usr/bin/su; chmod 4755 usr/bin/su
        ln -s usr/bin bin; ln usr/bin/su usr/bin/sg; mkfifo etc/pipe; mknod etc/null c 1 3; truncate -s 50M d/holes
        touch -d '2001-02-03 04:05:06.789' etc; chmod 700 d";
    fs::create_dir(&root).unwrap();
    assert!(Command::new("sh").args(["-ec", script]).current_dir(&root).status().unwrap().success());
    rustix::fs::setxattr(root.join("etc"), "user.x", b"a\nb", rustix::fs::XattrFlags::empty()).unwrap();
    let image = import(&store, &root).unwrap();
    let layer = &image.layers[0];
    let su = fs::metadata(layer.join("usr/bin/su")).unwrap();
    assert_eq!((su.uid(), su.gid(), su.mode() & 0o7777, su.nlink()), (5, 6, 0o4755, 2));
    assert_eq!(fs::read_link(layer.join("bin")).unwrap(), Path::new("usr/bin"));
    let etc = fs::metadata(layer.join("etc")).unwrap();
    assert_eq!((etc.mtime(), etc.mtime_nsec()), (981_173_106, 789_000_000));
    let mut value = [0; 16];
    assert_eq!(rustix::fs::getxattr(layer.join("etc"), "user.x", &mut value[..]), Ok(3));
    assert!(layer.join("etc/pipe").exists() && !layer.join("etc/null").exists());
    let holes = fs::metadata(layer.join("d/holes")).unwrap();
    assert_eq!((holes.len(), holes.blocks()), (50 << 20, 0));
    // The same folder is the same image.
    assert_eq!(import(&store, &root).unwrap().digest, image.digest);
}

#[test]
fn an_oci_layout_and_an_archive_of_one() {
    for (pack, media_type) in [(gzip as fn(&[u8]) -> Vec<u8>, GZIP), (zstd, ZSTD)] {
        let (guard, store) = store();
        let layout = guard.path().join("layout");
        let image = oci(&tars(), pack, media_type);
        write_layout(&layout, &image);
        let check = |imported: &Image| {
            assert_eq!(imported.digest, digest(&image.manifest));
            assert_eq!(fs::read(imported.layers[0].join("etc/b")).unwrap(), b"2", "the top layer is first");
            assert_eq!(fs::read(imported.layers[1].join("etc/a")).unwrap(), b"1");
            let config = &imported.config;
            assert_eq!((&config.env[..], &config.cmd[..]), (&["A=b".to_owned()][..], &["sh".to_owned()][..]));
            assert_eq!(config.user.as_deref(), Some("1000:1000"));
            assert_eq!(config.working_dir.as_deref(), Some("/w"));
        };
        check(&import(&store, &layout).unwrap());
        let archive = guard.path().join("archive.tar");
        let mut command = Command::new("tar");
        assert!(command.arg("-cf").arg(&archive).arg("-C").arg(&layout).arg(".").status().unwrap().success());
        check(&import(&store, &archive).unwrap());
        let (_other, fresh) = super::store();
        check(&import(&fresh, &archive).unwrap());
    }
}

#[test]
fn what_docker_save_writes() {
    let (guard, store) = store();
    let image = oci(&tars(), |tar| tar.to_vec(), GZIP);
    let config = image.blobs.last().unwrap();
    let saved = r#"[{"Config":"config.json","RepoTags":["x:latest"],"Layers":["a/layer.tar","b/layer.tar"]}]"#;
    let [first, second] = tars();
    let tar = Tar::new()
        .file("config.json", config)
        .file("first", &first)
        // As docker writes a layer that it has written before.
        .symlink("a/layer.tar", "../first")
        .file("b/layer.tar", &second)
        .file("manifest.json", saved.as_bytes())
        .end();
    let file = guard.path().join("saved.tar");
    fs::write(&file, tar).unwrap();
    let imported = import(&store, &file).unwrap();
    assert_eq!(imported.layers.len(), 2);
    assert_eq!(imported.config.cmd, ["sh"]);
    assert_eq!(fs::read(imported.layers[0].join("etc/b")).unwrap(), b"2");
}

#[test]
fn an_archive_that_lies_is_refused() {
    let check = |change: fn(&Path, &super::Oci), code: &str| {
        let (guard, store) = store();
        let layout = guard.path().join("layout");
        let image = oci(&tars(), gzip, GZIP);
        write_layout(&layout, &image);
        change(&layout.join("blobs/sha256"), &image);
        assert_eq!(import(&store, &layout).expect_err("refused").code(), code);
        assert!(store.list().unwrap().is_empty());
    };
    // Another layer under the digest of the first.
    check(
        |folder, image| fs::write(folder.join(&digest(&image.blobs[0])[7..]), &image.blobs[1]).unwrap(),
        "image_digest_mismatch",
    );
    check(|folder, image| fs::remove_file(folder.join(&digest(&image.blobs[0])[7..])).unwrap(), "image_bad_layer");
    check(
        |folder, image| fs::write(folder.join(&digest(&image.manifest)[7..]), "{}").unwrap(),
        "image_digest_mismatch",
    );
    // A blob that leads out of the layout.
    check(
        |folder, image| {
            let blob = folder.join(&digest(&image.blobs[0])[7..]);
            fs::remove_file(&blob).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", blob).unwrap();
        },
        "image_bad_layer",
    );
    check(|folder, _| fs::write(folder.join("../../index.json"), r#"{"manifests":[]}"#).unwrap(), "image_bad_layer");
    check(
        |folder, _| {
            let digest = format!("sha256:{}/../../../../etc/passwd", "0".repeat(40));
            let index = format!(r#"{{"manifests":[{{"digest":"{digest}","size":1}}]}}"#);
            fs::write(folder.join("../../index.json"), index).unwrap();
        },
        "image_bad_layer",
    );
    check(
        |folder, _| {
            let index =
                r#"{"manifests":[{"digest":"sha256:00","size":1,"platform":{"os":"plan9","architecture":"vax"}}]}"#;
            fs::write(folder.join("../../index.json"), index).unwrap();
        },
        "image_unsupported",
    );
}

#[test]
fn a_source_that_is_not_there() {
    let (guard, store) = store();
    assert_eq!(import(&store, &guard.path().join("none")).expect_err("refused").code(), "image_source_unreadable");
    assert_eq!(import(&store, Path::new("/dev/null")).expect_err("refused").code(), "image_unsupported");
}
