//! Shared volumes in computers: what one writes the others read, and nothing of it leads anywhere else.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use den_testkit::{House, Options, at_each_point, eventually};
use serde_json::json;

const DEN: &str = env!("CARGO_BIN_EXE_den");
const CRIU: &str = "/var/cache/den/criu/criu";
const LONG: Duration = Duration::from_secs(60);
/// What a computer says of its mounts: where, and with which options.
const MOUNTED: &str = "awk '$5 == \"/mnt/data\" {print $6}' /proc/self/mountinfo";

fn house() -> House {
    with(Options::default())
}

/// A house with a volume `data`.
fn with(options: Options) -> House {
    let house = House::with(DEN, options);
    house.den(&["volume", "new", "data"]).ok();
    house
}

/// A computer that has `data` mounted at /mnt/data.
fn mounting(house: &House, name: &str) {
    house.den(&["new", name, "--memory", "1GiB", "--pids", "512", "--volume", "data:/mnt/data"]).ok();
}

/// The folder of the volume on the host.
fn folder(house: &House) -> PathBuf {
    let id = house.json(&["volume", "info", "data"])["id"].as_str().expect("an id").to_owned();
    let path = house.data().join("computers/.volumes").join(id);
    assert!(path.is_dir(), "{}", path.display());
    path
}

#[test]
fn what_one_writes_the_other_reads_at_once_and_for_as_long_as_they_run() {
    let mut house = house();
    mounting(&house, "a");
    let deep = ["new", "b", "--memory", "1GiB", "--volume", "data:/srv/deep/in/data/", "--volume", "data:/mnt/again"];
    house.den(&deep).ok();
    house.sh("a", "echo one > /mnt/data/file; mkdir -p /mnt/data/x/y; chown 1000:1000 /mnt/data/x").ok();
    let read = "cat /srv/deep/in/data/file /mnt/again/file; stat -c '%u %g' /mnt/again/file /mnt/again/x";
    assert_eq!(house.sh("b", read).ok(), "one\none\n0 0\n1000 1000");
    // A file that both have open is one file.
    house.den(&["exec", "a", "-d", "--", "sh", "-c", "tail -n +1 -F /mnt/data/said > /root/heard"]).ok();
    house.sh("b", "echo hello >> /mnt/again/said").ok();
    eventually(LONG, "it is heard", || house.sh("a", "cat /root/heard").stdout == "hello\n");

    let shown = house.json(&["info", "b"])["volumes"].clone();
    let id = house.json(&["volume", "info", "data"])["id"].clone();
    assert_eq!(
        shown,
        json!([
            { "volume": id, "name": "data", "path": "/srv/deep/in/data" },
            { "volume": id, "name": "data", "path": "/mnt/again" }
        ])
    );
    assert!(house.den(&["info", "b"]).ok().contains("data at /srv/deep/in/data, data at /mnt/again"));
    house.den(&["volume", "rm", "data"]).refused(1, "mounted by");

    // Over a start, a launcher and a daemon that are new.
    house.den(&["stop", "a"]).ok();
    house.kill_launcher();
    house.restart();
    house.den(&["start", "a"]).ok();
    house.sh("b", "echo two > /mnt/again/file").ok();
    assert_eq!(house.sh("a", "cat /mnt/data/file").ok(), "two");

    // Who goes takes nothing along.
    house.den(&["rm", "a", "b", "--now"]).ok();
    assert_eq!(fs::read_to_string(folder(&house).join("file")).expect("the file"), "two\n");
    house.den(&["volume", "rm", "data"]).ok();
}

#[test]
fn what_is_no_place_for_a_volume_is_refused_before_anything_is_made() {
    let house = house();
    let make = |volume: &str, path: &str| {
        house.api().post("/v1/computers", &json!({ "name": "web", "volumes": [{ "volume": volume, "path": path }] }))
    };
    let refused = |volume: &str, path: &str, status: u16, code: &str| {
        let reply = make(volume, path);
        assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (status, Some(code)), "{volume} {path}");
        assert!(reply.json()["error"]["hint"].is_string(), "{volume} {path}");
    };
    refused("other", "/mnt/data", 404, "volume_not_found");
    for path in ["mnt", "/", "/mnt/../etc", "/proc/1", "/run/x", "/var/lib/docker"] {
        refused("data", path, 400, "bad_request");
    }
    // What its image has there is seen when it is mounted.
    refused("data", "/etc/passwd", 409, "mount_refused");
    refused("data", "/bin/data", 409, "mount_refused");
    house.den(&["new", "web", "--volume", "data"]).refused(2, "VOLUME:PATH");
    assert_eq!(house.disks(), Vec::<String>::new());
    // By its id too.
    let id = house.json(&["volume", "info", "data"])["id"].as_str().expect("an id").to_owned();
    assert_eq!(make(&id, "/mnt/data").status, 201);
}

#[test]
fn states_forks_and_removals_leave_a_volume_as_it_is() {
    let house = with(Options { trash_for: Some("1h".to_owned()), ..Options::default() });
    mounting(&house, "web");
    house.sh("web", "echo first > /root/own; echo first > /mnt/data/shared").ok();
    house.sh("web", "echo second > /root/own; echo second > /mnt/data/shared").ok();
    let changed = house.den(&["diff", "web@1", "web"]).ok();
    assert!(changed.contains("root/own") && !changed.contains("shared"), "{changed}");
    // Seen in a state, the path is the empty folder that it is mounted over.
    assert_eq!(house.den(&["ls", "web@1", "/mnt/data"]).ok(), "nothing in it");

    house.den(&["fork", "web", "try"]).ok();
    house.sh("try", "echo forked > /mnt/data/shared; echo forked > /root/forked").ok();
    assert_eq!(house.sh("web", "cat /mnt/data/shared").ok(), "forked");
    assert_eq!(house.json(&["info", "try"])["volumes"], house.json(&["info", "web"])["volumes"]);
    house.den(&["merge", "try"]).ok();
    assert_eq!(house.sh("web", "cat /root/forked /mnt/data/shared").ok(), "forked\nforked");

    house.den(&["restore", "web@1"]).ok();
    assert_eq!(house.sh("web", "cat /root/own /mnt/data/shared").ok(), "first\nforked");
    house.den(&["rm", "web"]).ok();
    house.den(&["volume", "rm", "data"]).refused(1, "trash");
    house.sh("try", "echo meanwhile > /mnt/data/shared").ok();
    house.den(&["undo", "web", "--as", "back"]).ok();
    eventually(LONG, "it runs again", || house.sh("back", "cat /mnt/data/shared").stdout == "meanwhile\n");
    house.den(&["rm", "back", "try", "--now"]).ok();
    assert_eq!(fs::read_to_string(folder(&house).join("shared")).expect("the file"), "meanwhile\n");
}

#[test]
fn nothing_that_a_computer_puts_at_the_mount_point_leads_out_of_it() {
    let house = house();
    mounting(&house, "web");
    // A folder of the host that everybody may write to.
    let outside = house.scratch();
    fs::create_dir_all(&outside).expect("a folder");
    let open = fs::Permissions::from_mode(0o777);
    fs::set_permissions(&outside, open).expect("chmod");
    let entries = |path: &Path| fs::read_dir(path).expect("a folder").count();
    let here = entries(&outside);
    let there = outside.to_str().expect("text");
    house.sh("web", "echo kept > /mnt/data/file").ok();
    let attacks = [
        // Beneath the mount: it is unmounted first, which root inside may do.
        (format!("umount /mnt/data; rmdir /mnt/data; ln -s {there} /mnt/data"), "a link is in the way"),
        (format!("umount /mnt/data; rmdir /mnt/data /mnt; ln -s {there} /mnt"), "a link is in the way"),
        (
            "umount /mnt/data; rmdir /mnt/data; ln -s ../../../../proc/1/root /mnt/data".to_owned(),
            "a link is in the way",
        ),
        ("umount /mnt/data; rmdir /mnt/data; ln -s /nowhere /mnt/data".to_owned(), "a link is in the way"),
        ("umount /mnt/data; rmdir /mnt/data; echo x > /mnt/data".to_owned(), "a file is in the way"),
    ];
    for (attack, why) in attacks {
        house.sh("web", &attack).ok();
        house.den(&["stop", "web"]).ok();
        let refused = house.den(&["start", "web"]).refused(1, why);
        assert!(refused.stderr.contains("/mnt/data") && refused.stderr.contains("hint:"), "{}", refused.stderr);
        assert_eq!(entries(&outside), here, "{attack}");
        house.den(&["restore", "web@0"]).ok();
        house.den(&["start", "web"]);
        assert_eq!(house.sh("web", "cat /mnt/data/file").ok(), "kept", "{attack}");
    }
    // What is mounted in every computer follows links, as ever, and none of them out.
    house.sh("web", &format!("umount /var/lib/docker; mv /var/lib /var/was; ln -s {there} /var/lib")).ok();
    house.den(&["stop", "web"]).ok();
    house.den(&["start", "web"]);
    assert_eq!(entries(&outside), here);
}

#[test]
fn a_volume_is_no_way_to_more_than_its_files() {
    let house = house();
    mounting(&house, "a");
    mounting(&house, "b");
    let options = house.sh("a", MOUNTED).ok();
    assert!(options.contains("nosuid") && options.contains("nodev") && options.starts_with("rw"), "{options}");
    // What is a program of root's for its owner is anybody's program for others.
    house.sh("a", "cp /usr/bin/id /mnt/data/id; chmod 4755 /mnt/data/id").ok();
    assert_eq!(house.den(&["exec", "b", "--user", "nobody", "--", "/mnt/data/id", "-u"]).ok(), "65534");
    assert_ne!(house.sh("a", "mknod /mnt/data/disk b 8 0").code, 0);
    // BTRFS_IOC_SUBVOL_CREATE: a nested subvolume would escape the volume's limit.
    let nest = "import ctypes,os,errno\nl = ctypes.CDLL(None, use_errno=True)\nfd = os.open('/mnt/data', os.O_RDONLY)\n\
        b = ctypes.create_string_buffer(bytes(8) + b'nested', 4096)\nr = l.ioctl(fd, ctypes.c_ulong(0x5000940e), b)\n\
        print(errno.errorcode[ctypes.get_errno()] if r else 'made')";
    assert_eq!(house.den(&["exec", "a", "--", "python3", "-c", nest]).ok(), "ENOTTY");
    // Its root is the end of it.
    let above = "cd /mnt/data && ls -a .. | tr '\\n' ' '; cd /mnt/data/../.. && pwd";
    assert_eq!(house.sh("a", above).ok(), ". .. data /");
    // What is one's own mount may be looked at as one likes, what is everybody's may not be changed.
    assert_ne!(house.sh("a", "mount -o remount,ro,compress=zstd /mnt/data").code, 0);
    house.sh("a", "mount -o remount,bind,ro /mnt/data; umount /mnt/data").ok();
    house.sh("b", "echo still > /mnt/data/file; cat /mnt/data/file").ok();
}

#[test]
fn a_full_volume_says_so_and_harms_nobody() {
    let house = House::open(DEN);
    house.den(&["volume", "new", "data", "--size", "32MiB"]).ok();
    mounting(&house, "a");
    mounting(&house, "b");
    let full = house.sh("a", "head -c 100M /dev/urandom > /mnt/data/big && sync -f /mnt/data/big");
    assert_ne!(full.code, 0);
    assert!(full.stderr.contains("Disk quota exceeded") || full.stderr.contains("No space left"), "{}", full.stderr);
    for name in ["a", "b"] {
        house.sh(name, "head -c 1M /dev/urandom > /root/own; sync -f /root/own").ok();
        assert_ne!(house.sh(name, "head -c 8M /dev/urandom > /mnt/data/more && sync -f /mnt/data/more").code, 0);
    }
    // Whoever makes room makes it for all.
    house.sh("b", "rm -f /mnt/data/*; sync -f /mnt/data").ok();
    eventually(LONG, "there is room again", || {
        house.sh("a", "head -c 1M /dev/urandom > /mnt/data/new && sync -f /mnt/data/new").code == 0
    });
}

#[test]
fn memory_comes_back_with_its_volumes() {
    assert!(Path::new(CRIU).is_file(), "no {CRIU}: `cargo xtask test` fetches it");
    let house = with(Options { args: vec!["--criu".to_owned(), CRIU.to_owned()], ..Options::default() });
    mounting(&house, "web");
    mounting(&house, "other");
    // Has a file of the volume open, stands in it, and says into both what it does.
    let run = "import os,time\nos.chdir('/mnt/data')\nlog = open('log', 'a')\nkept = open('kept', 'w+')\n\
        kept.write('kept'); kept.flush()\nn = 0\nwhile True:\n    n += 1; log.write(f'{n}\\n'); log.flush()\n    \
        kept.seek(0); open('/run/new', 'w').write(f'{n} {kept.read()} {os.getcwd()}')\n    \
        os.rename('/run/new', '/run/talk'); time.sleep(0.02)";
    house.den(&["exec", "web", "-d", "--", "python3", "-c", run]).ok();
    let talk = |name: &str| house.sh(name, "cat /run/talk").stdout;
    let count = |text: &str| text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    eventually(LONG, "it counts", || count(&talk("web")) > 5);

    house.den(&["pause", "web", "--to-disk"]).ok();
    assert_eq!(house.json(&["info", "web"])["memory_state"]["on_disk"], true);
    // Who has it mounted meanwhile writes on.
    let stood: u64 = house
        .sh("other", "tail -n 1 /mnt/data/log; echo 0 >> /mnt/data/log; echo new > /mnt/data/new")
        .ok()
        .parse()
        .expect("a number");
    house.den(&["resume", "web"]).ok();
    eventually(LONG, "it counts on", || {
        let said = talk("web");
        count(&said) > stood + 5 && said.ends_with("kept /mnt/data")
    });
    assert_eq!(house.sh("web", "cat /mnt/data/new").ok(), "new");
    assert!(house.sh("web", MOUNTED).ok().contains("nosuid"));

    house.den(&["fork", "web", "try", "--memory"]).ok();
    let forked = count(&talk("try"));
    eventually(LONG, "the fork counts on", || count(&talk("try")) > forked + 5);
    house.sh("try", "echo forked > /mnt/data/new").ok();
    assert_eq!(house.sh("other", "cat /mnt/data/new").ok(), "forked");

    // A lock is one for all that have the volume: it would be another's when this is read back.
    let lock = "import fcntl,time\nf = open('/mnt/data/lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX)\n\
        open('/run/locked', 'w'); time.sleep(600)";
    house.den(&["exec", "web", "-d", "--", "python3", "-c", lock]).ok();
    eventually(LONG, "it is locked", || house.sh("web", "test -e /run/locked").code == 0);
    house.den(&["pause", "web", "--to-disk"]).refused(1, "shared volume");
    assert_eq!(house.json(&["info", "web"])["state"], "running");
}

#[test]
fn a_volume_is_made_shown_and_removed_once_nobody_mounts_it() {
    let house = with(Options { trash_for: Some("24h".to_owned()), ..Options::default() });
    house.den(&["volume", "new", "Small_1", "--size", "64MiB"]).ok();
    let names = |house: &House| {
        let list = house.json(&["volume", "ls"]);
        let names =
            list.as_array().expect("a list").iter().map(|volume| volume["name"].as_str().expect("a name").to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(&house), ["data", "Small_1"]);
    let small = house.json(&["volume", "info", "Small_1"]);
    assert_eq!((&small["size"], &small["computers"]), (&json!(64 << 20), &json!([])));
    let id = small["id"].as_str().expect("an id");
    assert_eq!(house.json(&["volume", "info", id])["name"], "Small_1");
    assert_eq!(house.json(&["volume", "info", "data"])["size"], json!(10_u64 << 30));
    for (words, code) in [
        (&["volume", "new", "data"][..], "there is a shared volume `data` already"),
        (&["volume", "new", "a b"], "has ` ` in it"),
        (&["volume", "new", id], "looks like an id"),
        (&["volume", "new", "tiny", "--size", "1MiB"], "below the least"),
        (&["volume", "new", "odd", "--size", "much"], "`size`"),
        (&["volume", "info", "none"], "there is no shared volume `none`"),
        (&["volume", "rm", "none"], "there is no shared volume `none`"),
    ] {
        house.den(words).refused(1, code);
    }
    mounting(&house, "web");
    assert_eq!(house.json(&["volume", "info", "data"])["computers"], json!(["web"]));
    house.den(&["volume", "rm", "data"]).refused(1, "mounted by `web`");
    house.den(&["fork", "web", "copy"]).ok();
    house.den(&["rm", "web", "--now"]).ok();
    house.den(&["volume", "rm", "data"]).refused(1, "mounted by `copy`");
    // It may come back from there, and wants it then.
    house.den(&["rm", "copy"]).ok();
    house.den(&["volume", "rm", "data"]).refused(1, "mounted by `copy`");
    house.den(&["undo", "copy"]).ok();
    house.sh("copy", "echo back > /mnt/data/file").ok();
    house.den(&["rm", "copy", "--now"]).ok();
    house.den(&["volume", "rm", "data", id]).ok();
    assert_eq!(names(&house), [""; 0]);
    let kinds = |kind: &str| house.den(&["events", "--kind", kind]).ok().lines().count();
    assert_eq!((kinds("volume_made"), kinds("volume_removed")), (2, 2));
}

#[test]
fn a_daemon_killed_at_each_point_leaves_a_volume_or_none() {
    let folders = |house: &House| {
        let entries = fs::read_dir(house.data().join("computers/.volumes")).expect("volumes");
        entries.count()
    };
    at_each_point(
        DEN,
        &["volume.folder", "volume.row", "volume.gone"],
        |_| {},
        |house| _ = house.den(&["volume", "new", "old"]),
        |house| {
            house.den(&["volume", "new", "fresh"]);
            house.den(&["volume", "rm", "old"]);
        },
        |house, when, _| {
            let there = |name: &str| house.den(&["volume", "info", name]).code == 0;
            assert_eq!(there("fresh"), !when.starts_with("volume.folder"), "{when}");
            assert_eq!(there("old"), !when.starts_with("volume.gone"), "{when}");
            // No folder without a row, and no row without a folder.
            let listed = house.json(&["volume", "ls"]).as_array().map_or(0, Vec::len);
            assert_eq!(folders(house), listed, "{when}");
            house.den(&["volume", "rm", "fresh"]);
        },
    );
}
