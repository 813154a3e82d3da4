//! What a fork has of its own, and what a hostile disk makes of it. Needs root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::common::{CHILD, IDENTITY, LIMIT, Place, id, listing, sh};
use den_disk::StorageChoice;

const CHILD_MACHINE: &str = "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd\n";

/// Runs `script` on a parent's disk and forks it; returns the fork's `live`.
fn forked(place: &Place, script: &str, layers: &[PathBuf]) -> PathBuf {
    place.create(id(1), LIMIT, &IDENTITY).unwrap();
    sh(&place.live(1), script);
    place.snapshot(id(1), 1).unwrap();
    place.fork_over(id(1), 1, id(2), LIMIT, &CHILD, layers).unwrap().live
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path.as_ref()).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

const KEYS: &str = "mkdir -p data/etc/ssh; ssh-keygen -q -t ed25519 -N '' -f data/etc/ssh/ssh_host_ed25519_key
    ssh-keygen -q -t ecdsa -N '' -f data/etc/ssh/ssh_host_ecdsa_key
    echo 'PEM' > data/etc/ssh/ssh_host_rsa_key; echo x > data/etc/ssh/ssh_host_ed25519_key-cert.pub; echo Port 22 > data/etc/ssh/sshd_config";

#[test]
fn a_fork_has_an_identity_of_its_own() {
    let place = Place::new(StorageChoice::Auto);
    let live = forked(
        &place,
        &format!(
            "{KEYS}
            mkdir -p data/var/lib/dbus data/var/lib/systemd data/var/lib/dhcp data/var/lib/NetworkManager data/etc/dropbear
            cp data/etc/machine-id data/var/lib/dbus/machine-id; echo 10.0.0.7 db >> data/etc/hosts
            head -c 512 /dev/zero > data/var/lib/systemd/random-seed; echo s > data/var/lib/systemd/credential.secret
            echo l > data/var/lib/dhcp/dhclient.leases; echo k > data/var/lib/NetworkManager/secret_key
            echo d > data/etc/dropbear/dropbear_rsa_host_key; echo e > vol/docker/engine-id"
        ),
        &[],
    );
    let data = live.join("data");
    assert_eq!(text(data.join("etc/hostname")), "kid\n");
    let hosts = text(data.join("etc/hosts"));
    assert!(hosts.contains("127.0.1.1\tkid\n") && hosts.contains("10.0.0.7 db") && !hosts.contains("web"), "{hosts}");
    assert_eq!(text(data.join("etc/machine-id")), CHILD_MACHINE);
    assert_eq!(text(data.join("var/lib/dbus/machine-id")), CHILD_MACHINE);
    let seed = fs::read(data.join("var/lib/systemd/random-seed")).unwrap();
    assert!(seed.len() == 512 && seed.iter().any(|byte| *byte != 0));
    for gone in [
        "data/var/lib/systemd/credential.secret",
        "data/var/lib/dhcp/dhclient.leases",
        "data/var/lib/NetworkManager/secret_key",
        "data/etc/dropbear/dropbear_rsa_host_key",
        "vol/docker/engine-id",
        "data/etc/ssh/ssh_host_ed25519_key-cert.pub",
        "data/etc/ssh/ssh_host_rsa_key",
    ] {
        assert!(!live.join(gone).exists(), "{gone} was inherited");
    }
    let ssh = data.join("etc/ssh");
    for kind in ["ed25519", "ecdsa"] {
        let name = format!("ssh_host_{kind}_key");
        let before = place.live(1).join("data/etc/ssh").join(&name);
        assert_ne!(fs::read(ssh.join(&name)).unwrap(), fs::read(&before).unwrap());
        assert_eq!(fs::metadata(ssh.join(&name)).unwrap().permissions().mode() & 0o777, 0o600);
        let public = sh(&ssh, &format!("ssh-keygen -y -f {name}"));
        assert_eq!(public, text(ssh.join(format!("{name}.pub"))));
        assert!(public.trim_end().ends_with("root@kid"));
    }
    assert_eq!(text(ssh.join("sshd_config")), "Port 22\n");
    // The parent's are what they were; state 0 has the fork's.
    assert_eq!(text(place.live(1).join("data/etc/hostname")), "web\n");
    let zero = place.snapshot_path(id(2), 0).join("data/etc");
    assert_eq!(
        fs::read(zero.join("ssh/ssh_host_ecdsa_key")).unwrap(),
        fs::read(ssh.join("ssh_host_ecdsa_key")).unwrap()
    );
    assert_eq!(text(zero.join("machine-id")), CHILD_MACHINE);
}

#[test]
fn a_server_that_has_only_an_rsa_key_gets_one() {
    let place = Place::new(StorageChoice::Auto);
    let live = forked(&place, "mkdir -p data/etc/ssh; echo x > data/etc/ssh/ssh_host_rsa_key", &[]);
    let public = sh(&live.join("data/etc/ssh"), "ssh-keygen -y -f ssh_host_rsa_key");
    assert!(public.starts_with("ssh-rsa "));
}

#[test]
fn a_fork_without_keys_gets_none() {
    let place = Place::new(StorageChoice::Auto);
    let live = forked(&place, "mkdir -p data/etc/ssh; echo c > data/etc/ssh/ssh_config", &[]);
    assert_eq!(fs::read_dir(live.join("data/etc/ssh")).unwrap().count(), 1);
    assert!(!live.join("data/var").exists());
}

#[test]
fn keys_of_an_image_are_not_shared() {
    let layers = tempfile::tempdir().unwrap();
    let (top, bottom) = (layers.path().join("top"), layers.path().join("bottom"));
    sh(
        layers.path(),
        "mkdir -p top/etc/ssh bottom/etc/ssh; cd bottom/etc/ssh
        for k in ed25519 ecdsa rsa dsa; do echo image > ssh_host_${k}_key; echo image > ssh_host_${k}_key.pub; done
        mknod ../../../top/etc/ssh/ssh_host_ecdsa_key c 0 0",
    );
    let all = [top, bottom];
    let place = Place::new(StorageChoice::Auto);
    // Of four kinds, one is covered by a layer; the disk has no folder for keys.
    let ssh = forked(&place, ":", &all).join("data/etc/ssh");
    assert!(text(ssh.join("ssh_host_ed25519_key")).contains("OPENSSH"));
    assert!(!ssh.join("ssh_host_ecdsa_key").exists(), "what was removed stays so");
    for covered in ["ssh_host_rsa_key", "ssh_host_dsa_key", "ssh_host_dsa_key.pub", "ssh_host_rsa_key.pub"] {
        assert_eq!(sh(&ssh, &format!("stat -c '%F %t:%T' {covered}")), "character special file 0:0\n", "{covered}");
    }
    drop(place);

    // One removed on the disk, one replaced.
    let place = Place::new(StorageChoice::Auto);
    let script = "mkdir -p data/etc/ssh; mknod data/etc/ssh/ssh_host_ed25519_key c 0 0; echo own > data/etc/ssh/ssh_host_rsa_key";
    let ssh = forked(&place, script, &all).join("data/etc/ssh");
    assert_eq!(sh(&ssh, "stat -c %F ssh_host_ed25519_key"), "character special file\n");
    assert!(text(ssh.join("ssh_host_rsa_key")).contains("OPENSSH"));
    drop(place);

    // An opaque folder shows none.
    let place = Place::new(StorageChoice::Auto);
    let live = forked(&place, "mkdir -p data/etc/ssh; attr trusted.overlay.opaque y data/etc/ssh", &all);
    assert_eq!(fs::read_dir(live.join("data/etc/ssh")).unwrap().count(), 0);
}

/// Nothing outside of the disk is written, read or removed, whatever links it holds.
#[test]
fn hostile_links_lead_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    let at = outside.path().display();
    sh(
        outside.path(),
        "mkdir ssh etc; for f in etc/hostname etc/hosts etc/machine-id ssh/ssh_host_ed25519_key random-seed engine-id; do echo host > $f; done",
    );
    let before = listing(outside.path());
    let scripts = [
        // A folder of its own that is a link: to the root, to outside, up and out, to itself.
        "rm -r data/etc; ln -s / data/etc".to_owned(),
        format!("rm -r data/etc; ln -s {at}/etc data/etc"),
        format!("rm -r data/etc; ln -s ../../../../../../../../../..{at}/etc data/etc"),
        "rm -r data/etc; ln -s etc data/etc".to_owned(),
        "rm -r data/etc; ln -s /proc/self/root/etc data/etc".to_owned(),
        "rm -r data/etc; echo file > data/etc".to_owned(),
        "rm -r data/etc; mknod data/etc c 0 0".to_owned(),
        format!("ln -s {at}/ssh data/etc/ssh; mkdir -p data/var; ln -s {at} data/var/lib"),
        format!("rm -r vol/docker; ln -s {at} vol/docker"),
        // The files.
        format!("cd data/etc; for f in hostname hosts machine-id; do ln -sf {at}/etc/$f $f; done"),
        format!("mkdir data/etc/ssh; ln -s {at}/ssh/ssh_host_ed25519_key data/etc/ssh/ssh_host_ed25519_key"),
        format!("mkdir -p data/var/lib/systemd; ln -s {at}/random-seed data/var/lib/systemd/random-seed"),
        format!("ln -s {at}/engine-id vol/docker/engine-id"),
        "cd data/etc; rm hostname hosts machine-id; mkdir hostname hosts machine-id; touch hosts/x".to_owned(),
        "cd data/etc; rm hostname hosts machine-id; mkfifo hostname hosts machine-id".to_owned(),
        "mkdir -p data/etc/ssh/ssh_host_rsa_key data/etc/ssh/ssh_host_ed25519_key.pub; mkfifo data/etc/ssh/ssh_host_ed25519_key".to_owned(),
        "truncate -s 1T data/etc/hosts; mkdir -p data/var/lib/systemd; truncate -s 1T data/var/lib/systemd/random-seed".to_owned(),
    ];
    for script in scripts {
        let place = Place::new(StorageChoice::Plain);
        place.create(id(1), LIMIT, &IDENTITY).unwrap();
        sh(&place.live(1), &script);
        place.snapshot(id(1), 1).unwrap();
        let made = place.fork(id(1), 1, id(2), LIMIT, &CHILD);
        assert!(made.is_ok(), "{script}: {made:?}");
        assert_eq!(listing(outside.path()), before, "{script}");
        let restored = place.restore_prepare(id(1), 1, LIMIT, &IDENTITY);
        assert!(restored.is_ok(), "{script}: {restored:?}");
        assert_eq!(listing(outside.path()), before, "{script}, restored");
    }
    // A link inside of the disk is followed: the identity lies where it points.
    let place = Place::new(StorageChoice::Plain);
    let live = forked(&place, "mkdir data/usr; mv data/etc data/usr/etc; ln -s /usr/etc data/etc", &[]);
    assert_eq!(text(live.join("data/usr/etc/machine-id")), CHILD_MACHINE);
}
