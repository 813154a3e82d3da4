//! Names, what shares layers, and what a crash leaves.

use std::{fs, sync::Arc, time::Instant};

use super::{Tar, assert_clean, gzip, import, oci, store, write_layout};
use crate::{Image, ImageError, ImageStore, Quiet};

fn layered(store: &ImageStore, name: &str, files: &[&str]) -> Arc<Image> {
    let tars: Vec<_> = files.iter().map(|file| Tar::new().file(file, &[b'x'; 1000]).end()).collect();
    let folder = tempfile::tempdir().unwrap();
    write_layout(folder.path(), &oci(&tars, gzip, "application/vnd.oci.image.layer.v1.tar+gzip"));
    store.import(folder.path(), &name.parse().unwrap(), &Quiet).unwrap()
}

fn layer_count(store: &ImageStore) -> usize {
    fs::read_dir(store.root().join("layers")).unwrap().count()
}

#[test]
fn a_name_is_found_by_every_store_on_the_folder_and_moves_for_all() {
    let (_guard, store) = store();
    let other = ImageStore::open(store.root()).unwrap();
    let name = "host:5000/a/b:tag".parse().unwrap();
    assert_eq!(store.resolve(&name).expect_err("not there").code(), "image_not_found");
    let first = import(&store, name.as_str(), &Tar::new().file("a", b"1").end()).unwrap();
    assert_eq!(*other.resolve(&name).unwrap(), *first);
    let second = import(&other, name.as_str(), &Tar::new().file("a", b"2").end()).unwrap();
    assert_eq!(store.resolve(&name).unwrap().digest, second.digest);
    assert_ne!(first.digest, second.digest);
    // A computer that stands on the first keeps it.
    assert_eq!(store.by_digest(&first.digest).unwrap().layers, first.layers);
    assert!(first.layers[0].join("a").exists());
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!(store.list().unwrap()[0].name, name);
    store.remove(&name, &|_| false).unwrap();
    assert!(other.resolve(&name).is_err() && store.resolve(&name).is_err());
}

#[test]
fn unknown_digests_are_not_found() {
    let (_guard, store) = store();
    for digest in ["", "sha256:00", "sha256:../../names/x", &format!("sha256:{}", "0".repeat(64))] {
        assert!(matches!(store.by_digest(digest), Err(ImageError::NotFoundDigest(_))), "{digest}");
    }
}

#[test]
fn removing_keeps_what_others_share() {
    let (_guard, store) = store();
    let one = layered(&store, "one", &["shared", "a"]);
    let two = layered(&store, "two", &["shared", "b"]);
    assert_eq!(layer_count(&store), 3);
    assert_eq!(one.layers[1], two.layers[1]);
    let removed = store.remove(&"one".parse().unwrap(), &|_| false).unwrap();
    assert_eq!((removed.layers_removed, removed.freed.0, removed.image_removed), (1, 1000, true));
    assert!(two.layers.iter().all(|layer| layer.is_dir()));
    assert!(store.by_digest(&one.digest).is_err());
    store.remove(&"two".parse().unwrap(), &|_| false).unwrap();
    assert_eq!(layer_count(&store), 0);
    assert_clean(&store);
}

#[test]
fn an_image_in_use_stays_and_a_second_name_may_go() {
    let (_guard, store) = store();
    let tar = Tar::new().file("a", b"1").end();
    let image = import(&store, "one", &tar).unwrap();
    import(&store, "two", &tar).unwrap();
    let in_use = |digest: &str| digest == image.digest;
    let removed = store.remove(&"one".parse().unwrap(), &in_use).unwrap();
    assert_eq!((removed.image_removed, removed.layers_removed), (false, 0));
    assert_eq!(store.remove(&"two".parse().unwrap(), &in_use).expect_err("in use").code(), "image_in_use");
    assert!(store.resolve(&"two".parse().unwrap()).is_ok());
    assert!(image.layers[0].is_dir());
}

#[test]
fn prune_takes_what_has_no_name_and_no_computer() {
    let (_guard, store) = store();
    let old = import(&store, "x", &Tar::new().file("a", b"1").end()).unwrap();
    let new = import(&store, "x", &Tar::new().file("a", b"2").end()).unwrap();
    assert_eq!(store.prune(&|digest| digest == old.digest).unwrap().0, 0);
    assert_eq!(store.prune(&|_| false).unwrap().0, 1);
    assert!(!old.layers[0].exists() && new.layers[0].exists());
}

#[test]
fn what_a_crash_left_is_swept_and_a_running_job_is_not() {
    let (_guard, store) = store();
    let image = layered(&store, "x", &["a"]);
    let running = store.job().unwrap();
    let (outer, _) = running.layer_folder("1").unwrap();
    let dead = store.root().join("tmp/dead/1/fs");
    fs::create_dir_all(&dead).unwrap();
    fs::write(dead.join("file"), "half").unwrap();
    fs::write(store.root().join("tmp/stray"), "half").unwrap();
    ImageStore::open(store.root()).unwrap();
    assert!(outer.exists() && !store.root().join("tmp/dead").exists() && !store.root().join("tmp/stray").exists());
    // A job keeps the layers that it counts on, though no image has them any more.
    let hex = image.layers[0].ancestors().nth(1).unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    assert!(running.want(&hex).unwrap());
    assert_eq!(store.remove(&"x".parse().unwrap(), &|_| false).unwrap().layers_removed, 0);
    assert!(image.layers[0].is_dir());
    drop(running);
    assert_eq!(store.prune(&|_| false).unwrap().0, 1);
    assert_clean(&store);
}

#[test]
fn many_imports_at_once_of_the_same_and_of_others() {
    let (_guard, store) = store();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let store = store.clone();
            scope.spawn(move || {
                let content = [b'0' + n % 2];
                import(&store, &format!("x{n}"), &Tar::new().file("a", &content).end()).unwrap();
            });
        }
    });
    assert_eq!((layer_count(&store), store.list().unwrap().len()), (2, 8));
    assert_clean(&store);
}

/// The create path: one stat(2) and a reference count.
#[test]
fn resolving_again_costs_a_stat() {
    let (_guard, store) = store();
    import(&store, "base", &Tar::new().file("a", b"1").end()).unwrap();
    let name = "base".parse().unwrap();
    store.resolve(&name).unwrap();
    let start = Instant::now();
    for _ in 0..10_000 {
        store.resolve(&name).unwrap();
    }
    let each = start.elapsed() / 10_000;
    println!("resolve: {each:?}");
    assert!(each.as_micros() < 50, "{each:?}");
}
