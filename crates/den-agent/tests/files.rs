//! What file operations promise, against the real agent.

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Inside, bytes, collect, data, end, reply, stat, until};
use den_wire::agent::{Change, ChangeKind, Failure, FailureKind, Reply, Request, WriteFile};
use den_wire::frame::blocking::write_message;
use minicbor::bytes::ByteVec;

fn write_file(path: ByteVec) -> WriteFile {
    WriteFile {
        path,
        mode: None,
        owner: None,
        mtime: None,
        parents: false,
        append: false,
        in_place: false,
        attributes: None,
    }
}

fn send(inside: &Inside, request: &Request) -> UnixStream {
    let mut stream = inside.connect();
    write_message(&mut stream, request).expect("sent");
    stream
}

fn write(inside: &Inside, request: WriteFile, contents: &[u8]) -> Reply {
    let mut stream = send(inside, &Request::Write(request));
    for chunk in contents.chunks(200_001) {
        if data(&mut stream, chunk).is_err() {
            return reply(&mut stream);
        }
    }
    end(&mut stream);
    reply(&mut stream)
}

fn read(inside: &Inside, path: ByteVec, offset: u64, length: Option<u64>) -> Result<Vec<u8>, Failure> {
    let mut stream = send(inside, &Request::Read { path, offset, length });
    match reply(&mut stream) {
        Reply::Stat(_) => collect(&mut stream),
        Reply::Failed(failure) => Err(failure),
        other => panic!("{other:?}"),
    }
}

fn tar_out(inside: &Inside, path: ByteVec, follow: bool) -> Result<Vec<u8>, Failure> {
    collect(&mut send(inside, &Request::TarOut { path, follow }))
}

fn tar_in(inside: &Inside, path: ByteVec, owner: Option<&str>, rename: Option<&str>, archive: &[u8]) -> Reply {
    let rename = rename.map(|name| ByteVec::from(name.as_bytes().to_vec()));
    let mut stream = send(inside, &Request::TarIn { path, owner: owner.map(str::to_owned), rename });
    for chunk in archive.chunks(100_000) {
        if data(&mut stream, chunk).is_err() {
            return reply(&mut stream);
        }
    }
    end(&mut stream);
    reply(&mut stream)
}

fn kind(reply: Reply) -> FailureKind {
    match reply {
        Reply::Failed(failure) => failure.kind,
        other => panic!("not refused: {other:?}"),
    }
}

fn shell(dir: &Path, script: &str) -> String {
    let out = Command::new("bash").args(["-euc", script]).current_dir(dir).output().expect("bash");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_is_written_whole_or_not_at_all() {
    let inside = Inside::start();
    let dir = inside.path("d");
    std::fs::create_dir(&dir).expect("made");
    let file = inside.bytes("d/file");
    let contents: Vec<u8> = (0..1_000_003_u32).flat_map(u32::to_le_bytes).collect();
    let made = stat(write(&inside, write_file(file.clone()), &contents));
    assert_eq!((made.mode & 0o7777, made.size, made.user.as_deref()), (0o644, contents.len() as u64, Some("root")));
    assert!(read(&inside, file.clone(), 0, None).expect("read") == contents);
    assert_eq!(read(&inside, file.clone(), 999_999, Some(5)).expect("read"), contents[999_999..1_000_004]);
    assert_eq!(read(&inside, file.clone(), 1 << 40, None).expect("read"), b"");
    assert_eq!(read(&inside, file.clone(), u64::MAX, Some(u64::MAX)).expect("read"), b"");

    // What was there keeps its mode and owner; what is asked is set.
    std::fs::set_permissions(dir.join("file"), std::fs::Permissions::from_mode(0o4750)).expect("a mode");
    std::os::unix::fs::chown(dir.join("file"), Some(7), Some(8)).expect("an owner");
    std::fs::set_permissions(dir.join("file"), std::fs::Permissions::from_mode(0o4750)).expect("a mode");
    let kept = stat(write(&inside, write_file(file.clone()), b"new"));
    assert_eq!((kept.mode & 0o7777, kept.uid, kept.gid), (0o4750, 7, 8));
    let asked =
        WriteFile { mode: Some(0o600), owner: Some("1:2".into()), mtime: Some(-1_500_000), ..write_file(file.clone()) };
    let asked = stat(write(&inside, asked, b"newer"));
    assert_eq!((asked.mode & 0o7777, asked.uid, asked.gid, asked.mtime), (0o600, 1, 2, -1_500_000));
    let added = WriteFile { append: true, ..write_file(file.clone()) };
    assert_eq!(stat(write(&inside, added, b"est")).size, 8);
    assert_eq!(std::fs::read(dir.join("file")).expect("read"), b"newerest");

    // Half a file: the old one stays, and nothing is left beside it.
    let mut stream = send(&inside, &Request::Write(write_file(file.clone())));
    data(&mut stream, &contents[..500_000]).expect("sent");
    until("a temporary file", || names(&dir).len() == 2);
    drop(stream);
    until("it is gone", || names(&dir) == ["file"]);
    assert_eq!(std::fs::read(dir.join("file")).expect("read"), b"newerest");

    // Links are followed to what they replace.
    shell(&dir, "ln -s file one; ln -s one two; ln -s made dangling; ln -s loop loop; mkfifo fifo; mkdir sub");
    assert_eq!(stat(write(&inside, write_file(inside.bytes("d/two")), b"by link")).size, 7);
    assert_eq!(std::fs::read(dir.join("file")).expect("read"), b"by link");
    assert!(std::fs::symlink_metadata(dir.join("two")).expect("there").is_symlink());
    stat(write(&inside, write_file(inside.bytes("d/dangling")), b"x"));
    assert_eq!(std::fs::read(dir.join("made")).expect("read"), b"x");
    let refused = |name: &str| kind(write(&inside, write_file(inside.bytes(name)), b"x"));
    assert_eq!(refused("d/loop"), FailureKind::LinkLoop);
    assert_eq!(refused("d/fifo"), FailureKind::NotAFile);
    assert_eq!(refused("d/sub"), FailureKind::IsADirectory);
    assert_eq!(refused("d/none/x"), FailureKind::NotFound);
    assert_eq!(refused("d/file/x"), FailureKind::NotADirectory);
    let parents = WriteFile { parents: true, ..write_file(inside.bytes("d/a/b/c")) };
    stat(write(&inside, parents, b""));
    assert_eq!(
        kind(write(&inside, WriteFile { owner: Some("no-such".into()), ..write_file(file.clone()) }, b"")),
        FailureKind::NoSuchUser
    );
    for (name, wanted) in [
        ("d/fifo", FailureKind::NotAFile),
        ("d/sub", FailureKind::IsADirectory),
        ("d/none", FailureKind::NotFound),
        ("agent.sock", FailureKind::NotAFile),
    ] {
        assert_eq!(read(&inside, inside.bytes(name), 0, None).expect_err(name).kind, wanted);
    }
    assert_eq!(read(&inside, bytes("/dev/zero"), 0, None).expect_err("a device").kind, FailureKind::NotAFile);
}

#[test]
fn large_files_keep_their_holes() {
    let inside = Inside::start();
    let file = std::fs::File::create(inside.path("sparse")).expect("made");
    file.set_len((4 << 30) + 10).expect("a length");
    file.write_all_at(b"middle", 2 << 30).expect("written");
    let mut from = send(&inside, &Request::Read { path: inside.bytes("sparse"), offset: 0, length: None });
    let size = stat(reply(&mut from)).size;
    assert_eq!(size, (4 << 30) + 10);
    let mut to = send(&inside, &Request::Write(write_file(inside.bytes("copy"))));
    loop {
        let frame = den_wire::frame::blocking::read_frame(&mut from).expect("a frame");
        match frame.kind {
            den_wire::FrameKind::Data => data(&mut to, &frame.payload).expect("sent"),
            _ => break,
        }
    }
    end(&mut to);
    let made = stat(reply(&mut to));
    assert_eq!(made.size, size);
    assert!(made.blocks * 512 < 1 << 20, "{} blocks", made.blocks);
    let mut middle = [0; 8];
    std::fs::File::open(inside.path("copy")).expect("there").read_exact_at(&mut middle, (2 << 30) - 1).expect("read");
    assert_eq!(&middle, b"\0middle\0");
}

#[test]
fn a_full_disk_is_said() {
    let inside = Inside::start();
    std::fs::create_dir(inside.path("small")).expect("made");
    // Mounted inside only: the agent has a mount namespace of its own.
    assert_eq!(inside.sh(1, &format!("mount -t tmpfs -o size=1m x {}", inside.path("small").display())).stderr(), "");
    assert_eq!(kind(write(&inside, write_file(inside.bytes("small/x")), &vec![1; 4 << 20])), FailureKind::NoSpace);
    assert_eq!(inside.sh(2, &format!("ls -A {}", inside.path("small").display())).stdout(), "");
}

#[test]
fn a_tree_is_listed_and_changed() {
    let inside = Inside::start();
    let dir = inside.path("t");
    std::fs::create_dir(&dir).expect("made");
    shell(
        &dir,
        "mkdir -p a/b/c; touch a/f a/b/g z; ln -s ../t link; ln -s /no/such dead; for i in $(seq 2500); do : >many$i; done",
    );
    let list = |path: ByteVec, depth| -> Result<Vec<(String, Option<String>)>, Failure> {
        let mut stream = send(&inside, &Request::List { path, depth });
        let mut all = Vec::new();
        loop {
            match reply(&mut stream) {
                Reply::Entries(entries) => {
                    assert!(entries.len() <= 1000);
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    all.extend(
                        entries
                            .iter()
                            .map(|entry| (text(&entry.path), entry.target.as_ref().map(|target| text(target)))),
                    );
                }
                Reply::Done => return Ok(all),
                Reply::Failed(failure) => return Err(failure),
                other => panic!("{other:?}"),
            }
        }
    };
    assert_eq!(list(inside.bytes("t"), 1).expect("a list").len(), 2504);
    let deep = list(inside.bytes("t"), 9).expect("a list");
    let few: Vec<&str> = deep.iter().map(|(path, _)| path.as_str()).filter(|path| !path.starts_with("many")).collect();
    assert_eq!(few, ["a", "a/b", "a/b/c", "a/b/g", "a/f", "dead", "link", "z"]);
    assert!(deep.contains(&("link".into(), Some("../t".into()))));
    assert_eq!(list(inside.bytes("t/z"), 1).expect_err("a file").kind, FailureKind::NotADirectory);
    assert_eq!(list(inside.bytes("t/none"), 1).expect_err("nothing").kind, FailureKind::NotFound);
    assert_eq!(list(inside.bytes("t"), 0).expect_err("no depth").kind, FailureKind::BadRequest);
    let link = stat(inside.ask(&Request::Stat { path: inside.bytes("t/link"), follow: false }));
    assert_eq!((link.mode & 0o170_000, link.target.map(Vec::from)), (0o120_000, Some(b"../t".to_vec())));
    assert_eq!(
        stat(inside.ask(&Request::Stat { path: inside.bytes("t/link"), follow: true })).mode & 0o170_000,
        0o040_000
    );

    let make = |name: &str, mode, parents| Request::MakeDir {
        path: inside.bytes(name),
        mode,
        parents,
        owner: Some("3:4".into()),
    };
    assert_eq!(inside.ask(&make("t/new/er", Some(0o2770), true)), Reply::Done);
    let made = std::fs::metadata(dir.join("new/er")).expect("there");
    assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (0o2770, 3, 4));
    assert_eq!(std::fs::metadata(dir.join("new")).expect("there").mode() & 0o7777, 0o755);
    assert_eq!(inside.ask(&make("t/new/er", None, true)), Reply::Done);
    assert_eq!(inside.failure(&make("t/new/er", None, false)).kind, FailureKind::Exists);
    assert_eq!(inside.failure(&make("t/x/y", None, false)).kind, FailureKind::NotFound);
    assert_eq!(inside.failure(&make("t/z", None, true)).kind, FailureKind::NotADirectory);
    assert_eq!(inside.failure(&make("t/z/y", None, true)).kind, FailureKind::NotADirectory);

    let chmod = |mode, recursive| Request::Chmod { path: inside.bytes("t/a"), mode, recursive };
    assert_eq!(inside.ask(&chmod(0o4711, true)), Reply::Done);
    assert_eq!(std::fs::metadata(dir.join("a/b/g")).expect("there").mode() & 0o7777, 0o4711);
    assert_eq!(inside.failure(&chmod(0o10_000, false)).kind, FailureKind::BadRequest);
    let chown = |owner: &str, recursive| Request::Chown { path: inside.bytes("t"), owner: owner.into(), recursive };
    assert_eq!(inside.ask(&chown("5:6", true)), Reply::Done);
    assert_eq!(inside.ask(&chown(":7", false)), Reply::Done);
    let owner =
        |path: &str| std::fs::symlink_metadata(dir.join(path)).map(|there| (there.uid(), there.gid())).expect("there");
    assert_eq!((owner(""), owner("dead"), owner("a/b/g")), ((5, 7), (5, 6), (5, 6)));
    assert_eq!(inside.failure(&chown("no-such", false)).kind, FailureKind::NoSuchUser);
    let symlink = Request::Symlink { path: inside.bytes("t/sym"), target: b"any \xff thing".to_vec().into() };
    assert_eq!(inside.ask(&symlink), Reply::Done);
    assert_eq!(inside.failure(&symlink).kind, FailureKind::Exists);

    let rename = |from: &str, to: &str| Request::Move { from: inside.bytes(from), to: inside.bytes(to) };
    assert_eq!(inside.ask(&rename("t/a/f", "t/z")), Reply::Done);
    assert_eq!(inside.failure(&rename("t/none", "t/x")).kind, FailureKind::NotFound);
    assert_eq!(inside.failure(&rename("t/z", "t/new")).kind, FailureKind::IsADirectory);
    assert_eq!(inside.failure(&rename("t/new", "t/a")).kind, FailureKind::NotEmpty);

    let remove = |path: ByteVec, recursive| Request::Remove { path, recursive };
    assert_eq!(inside.failure(&remove(inside.bytes("t/a"), false)).kind, FailureKind::NotEmpty);
    // Deeper than any stack, and longer than PATH_MAX.
    shell(
        &dir,
        "mkdir deep; cd deep; for i in $(seq 1200); do mkdir some_long_name_$i; cd some_long_name_$i; done; touch end",
    );
    assert_eq!(inside.ask(&remove(inside.bytes("t/link"), true)), Reply::Done);
    assert!(dir.join("z").exists());
    assert_eq!(inside.ask(&remove(inside.bytes("t"), true)), Reply::Done);
    assert!(!dir.exists());
    assert_eq!(inside.failure(&remove(inside.bytes("t"), true)).kind, FailureKind::NotFound);
    for path in ["/", "/tmp/..", "/tmp/."] {
        assert_eq!(inside.failure(&remove(bytes(path), true)).kind, FailureKind::BadRequest);
    }
}

/// Everything that a copy keeps, as text.
fn portrait(dir: &Path) -> String {
    shell(
        dir,
        "find . -printf '%p %y %m %U %G %s %l %n ' -exec stat -c '%y %t,%T' {} \\; | sort
         find . -type f ! -name huge -exec sha256sum {} + | sort
         python3 -c 'import os; [print(p, os.getxattr(p, a)) for p in (\"random\", \"hard\", \"deep\") for a in os.listxattr(p)]'",
    )
}

const TREE: &str = "mkdir -p src/deep; cd src
    head -c 3000000 /dev/urandom >random; : >empty; printf x >$'odd \\377\\n name'; echo run >tool
    ln random hard; ln random deep/harder; ln -s /etc/passwd absolute; ln -s ../up relative; mkfifo fifo
    n=$(printf 'long%.0s' $(seq 50)); mkdir -p deep/$n/$n; echo long >deep/$n/$n/$n; ln -s /$n/$n/$n deep/longlink
    truncate -s 9G huge; echo end >>huge; truncate -s 1M zeros
    chown 1234:70000 tool; chmod 6755 tool; chown -h 3000000:5 relative; chmod 0500 deep; touch -d '1999-01-02 03:04:05.678' deep/$n empty
    touch -hd '2001-01-01' absolute; touch -d '1969-12-31 23:59:58.5 UTC' zeros
    python3 -c 'import os; os.setxattr(\"random\", \"user.den\", b\"a\\n\\0b\"); os.setxattr(\"deep\", \"user.dir\", b\"d\")'; touch -d '2020-02-02 02:02:02.25' deep .";

#[test]
fn an_archive_holds_everything() {
    let inside = Inside::start();
    shell(inside.dir.path(), TREE);
    let want = portrait(&inside.path("src"));
    // Through the agent both ways, streamed: the tree is larger than memory should hold.
    let round = |to: &str, rename: Option<&str>| {
        let mut from = send(&inside, &Request::TarOut { path: inside.bytes("src"), follow: false });
        let rename = rename.map(|name| ByteVec::from(name.as_bytes().to_vec()));
        let mut into = send(&inside, &Request::TarIn { path: inside.bytes(to), owner: None, rename });
        loop {
            let frame = den_wire::frame::blocking::read_frame(&mut from).expect("a frame");
            match frame.kind {
                den_wire::FrameKind::Data => {
                    if data(&mut into, &frame.payload).is_err() {
                        panic!("{:?}", reply(&mut into));
                    }
                }
                den_wire::FrameKind::End => break,
                den_wire::FrameKind::Message => panic!("{:?}", frame.message::<Reply>()),
            }
        }
        end(&mut into);
        assert_eq!(reply(&mut into), Reply::Done);
    };
    round("new/place", Some("renamed"));
    assert_eq!(portrait(&inside.path("new/place/renamed")), want);
    let huge = std::fs::metadata(inside.path("new/place/renamed/huge")).expect("there");
    assert!(huge.blocks() * 512 < 1 << 20);
    // Over itself.
    std::fs::remove_file(inside.path("src/huge")).expect("removed");
    std::fs::remove_file(inside.path("new/place/renamed/huge")).expect("removed");
    shell(&inside.path("src"), "touch -d '2020-02-02 02:02:02.25' .");
    let archive = tar_out(&inside, inside.bytes("src"), false).expect("packed");
    assert_eq!(tar_in(&inside, inside.bytes("new/place"), None, Some("renamed"), &archive), Reply::Done);
    assert_eq!(portrait(&inside.path("new/place/renamed")), portrait(&inside.path("src")));
    // GNU tar and we understand each other.
    std::fs::write(inside.path("ours.tar"), &archive).expect("written");
    shell(inside.dir.path(), "mkdir gnu; tar --xattrs -C gnu -xpf ours.tar");
    assert_eq!(portrait(&inside.path("gnu/src")), portrait(&inside.path("src")));
    for format in ["posix", "gnu"] {
        shell(
            inside.dir.path(),
            &format!(
                "tar --xattrs --format={format} -cf {format}.tar src 2>/dev/null || tar --format={format} -cf {format}.tar src"
            ),
        );
        let theirs = std::fs::read(inside.path(&format!("{format}.tar"))).expect("read");
        assert_eq!(tar_in(&inside, inside.bytes(format), None, None, &theirs), Reply::Done);
        if format == "posix" {
            assert_eq!(portrait(&inside.path("posix/src")), portrait(&inside.path("src")));
        }
    }
    // Old GNU's sparse files, with more holes than its first head has room for.
    shell(
        inside.dir.path(),
        "mkdir holes; for i in $(seq 60); do printf $i | dd of=holes/f bs=1 seek=$((i * 200000)) conv=notrunc status=none; done
         truncate -s 50M holes/f; tar --format=gnu -Scf holes.tar holes",
    );
    let holes = std::fs::read(inside.path("holes.tar")).expect("read");
    assert_eq!(tar_in(&inside, inside.bytes("sparse"), None, None, &holes), Reply::Done);
    shell(inside.dir.path(), "cmp holes/f sparse/holes/f");
    shell(inside.dir.path(), "tar --format=posix -Scf holes.tar holes");
    let holes = std::fs::read(inside.path("holes.tar")).expect("read");
    assert_eq!(kind(tar_in(&inside, inside.bytes("sparse"), None, None, &holes)), FailureKind::Unsupported);
    // One file, a link followed or not, another owner, the names.
    let listed = |archive: &[u8]| {
        std::fs::write(inside.path("list.tar"), archive).expect("written");
        shell(inside.dir.path(), "tar tf list.tar")
    };
    shell(inside.dir.path(), "ln -s src/tool link; ln -s src/deep dirlink");
    assert_eq!(listed(&tar_out(&inside, inside.bytes("link"), false).expect("packed")), "link\n");
    let followed = tar_out(&inside, inside.bytes("link"), true).expect("packed");
    assert_eq!(tar_in(&inside, inside.bytes("own"), Some("11:12"), None, &followed), Reply::Done);
    let owned = std::fs::symlink_metadata(inside.path("own/link")).expect("there");
    assert_eq!((owned.is_file(), owned.uid(), owned.gid(), owned.mode() & 0o7777), (true, 11, 12, 0o6755));
    assert!(
        listed(&tar_out(&inside, inside.bytes("dirlink"), true).expect("packed")).starts_with("dirlink/\ndirlink/")
    );
    assert!(listed(&tar_out(&inside, inside.bytes("src/."), false).expect("packed")).starts_with("./\n./"));
    assert_eq!(tar_out(&inside, inside.bytes("none"), false).expect_err("nothing").kind, FailureKind::NotFound);
    // A socket alone gives an empty archive, not a hang.
    assert_eq!(tar_out(&inside, inside.bytes("agent.sock"), false).expect("packed").len(), 1024);
}

#[test]
fn an_archive_stays_in_its_directory() {
    let inside = Inside::start();
    let head = |name: &[u8], flag: u8, link: &[u8], contents: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.set_entry_type(tar::EntryType::new(flag));
        header.set_mode(0o644);
        header.set_size(contents.len() as u64);
        for (set, value) in [
            (tar::Header::set_uid as fn(&mut tar::Header, u64), 0),
            (tar::Header::set_gid, 0),
            (tar::Header::set_mtime, 1),
        ] {
            set(&mut header, value);
        }
        header.set_cksum();
        let mut bytes = [&header.as_bytes()[..], contents].concat();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    };
    let outside = inside.path("outside");
    std::fs::create_dir(&outside).expect("made");
    let target = outside.to_str().expect("UTF-8").as_bytes().to_vec();
    let unpack = |archive: &[u8]| tar_in(&inside, inside.bytes("in"), None, None, archive);
    assert_eq!(kind(unpack(&head(b"../outside/x", b'0', b"", b"evil"))), FailureKind::BadRequest);
    assert_eq!(kind(unpack(&head(b"a/../../outside/x", b'0', b"", b"evil"))), FailureKind::BadRequest);
    // Through links, absolute and relative, for files, directories and hard links.
    for link in [&target[..], b"../outside"] {
        let archive = [head(b"l", b'2', link, b""), head(b"l/x", b'0', b"", b"evil")].concat();
        let _ = unpack(&archive);
        let archive = [head(b"l", b'2', link, b""), head(b"l/d/", b'5', b"", b"")].concat();
        let _ = unpack(&archive);
        std::fs::write(outside.join("secret"), "s").expect("written");
        let archive = [head(b"l", b'2', link, b""), head(b"h", b'1', b"l/secret", b"")].concat();
        assert!(matches!(unpack(&archive), Reply::Failed(_)));
        let archive = [head(b"l", b'2', &[link, b"/secret"].concat(), b""), head(b"l", b'0', b"", b"new")].concat();
        assert_eq!(unpack(&archive), Reply::Done);
        assert_eq!(names(&outside), ["secret"]);
        assert_eq!(std::fs::read(outside.join("secret")).expect("read"), b"s");
        std::fs::remove_file(outside.join("secret")).expect("removed");
    }
    assert_eq!(unpack(&head(b"/absolute", b'0', b"", b"here")), Reply::Done);
    assert_eq!(std::fs::read(inside.path("in/absolute")).expect("read"), b"here");
    // Broken ones are refused, and what was half made is gone.
    let cut = head(b"cut", b'0', b"", &[7; 5000]);
    assert_eq!(kind(unpack(&cut[..2000])), FailureKind::BadRequest);
    assert_eq!(kind(unpack(&[0x55; 4096])), FailureKind::BadRequest);
    assert_eq!(kind(unpack(&head(b"strange", b'Z', b"", b""))), FailureKind::Unsupported);
    assert_eq!(
        kind(unpack(&[head(b"d/", b'5', b"", b""), head(b"d", b'0', b"", b"x")].concat())),
        FailureKind::IsADirectory
    );
    assert!(!inside.path("in/cut").exists());
    let mut stream = send(&inside, &Request::TarIn { path: inside.bytes("in"), owner: None, rename: None });
    data(&mut stream, &cut[..2000]).expect("sent");
    until("it is begun", || inside.path("in/cut").exists());
    drop(stream);
    until("it is gone", || !inside.path("in/cut").exists());
}

#[test]
fn a_file_that_changes_while_it_is_packed_spoils_nothing() {
    let inside = Inside::start();
    std::fs::create_dir(inside.path("s")).expect("made");
    let file = std::fs::File::create(inside.path("s/a")).expect("made");
    file.write_all_at(&vec![5; 20 << 20], 0).expect("written");
    std::fs::write(inside.path("s/b"), "after").expect("written");
    let mut stream = send(&inside, &Request::TarOut { path: inside.bytes("s"), follow: false });
    let first = den_wire::frame::blocking::read_frame(&mut stream).expect("a frame").payload;
    file.set_len(1 << 20).expect("shrunk");
    let rest = collect(&mut stream).expect("packed");
    std::fs::write(inside.path("s.tar"), [first, rest].concat()).expect("written");
    assert_eq!(shell(inside.dir.path(), "mkdir u; tar -C u -xf s.tar; stat -c %s u/s/a; cat u/s/b"), "20971520\nafter");
}

#[test]
fn a_move_between_file_systems_keeps_everything() {
    let inside = Inside::start();
    shell(inside.dir.path(), TREE);
    std::fs::create_dir(inside.path("other")).expect("made");
    // Mounted inside only: the agent has a mount namespace of its own.
    assert_eq!(inside.sh(1, &format!("mount -t tmpfs x {}", inside.path("other").display())).stderr(), "");
    let want = portrait(&inside.path("src"));
    let rename = |from: &str, to: &str| Request::Move { from: inside.bytes(from), to: inside.bytes(to) };
    assert_eq!(inside.ask(&rename("src", "other/dst")), Reply::Done);
    assert!(!inside.path("src").exists());
    assert_eq!(inside.ask(&rename("other/dst", "back")), Reply::Done);
    assert_eq!(portrait(&inside.path("back")), want);
    assert!(std::fs::metadata(inside.path("back/huge")).expect("there").blocks() * 512 < 1 << 20);
    shell(inside.dir.path(), "mkdir full; touch full/x; echo f >one");
    assert_eq!(inside.ask(&rename("one", "other/one")), Reply::Done);
    assert_eq!(inside.failure(&rename("other/one", "full")).kind, FailureKind::IsADirectory);
    assert_eq!(names(&inside.path("full")), ["x"]);
    assert!(names(inside.dir.path()).iter().all(|name| !name.starts_with(".den-")));
}

#[test]
fn a_watch_sees_all_below() {
    let inside = Inside::start();
    let dir = inside.path("w");
    std::fs::create_dir_all(dir.join("old/sub")).expect("made");
    let mut stream = send(&inside, &Request::Watch { path: inside.bytes("w"), recursive: true, plain: false });
    assert_eq!(reply(&mut stream), Reply::Done);
    let next = |stream: &mut UnixStream| match reply(stream) {
        Reply::Changed(change) => change,
        other => panic!("{other:?}"),
    };
    let change = |kind, path: &str, from: Option<&str>| Change {
        kind,
        path: ByteVec::from(path.as_bytes().to_vec()),
        from: from.map(|from| ByteVec::from(from.as_bytes().to_vec())),
    };
    std::fs::write(dir.join("old/sub/f"), "x").expect("written");
    assert_eq!(next(&mut stream), change(ChangeKind::Created, "old/sub/f", None));
    assert_eq!(next(&mut stream), change(ChangeKind::Written, "old/sub/f", None));
    std::fs::rename(dir.join("old/sub/f"), dir.join("g")).expect("moved");
    until("the move", || next(&mut stream) == change(ChangeKind::Moved, "g", Some("old/sub/f")));
    std::fs::rename(dir.join("old"), dir.join("new")).expect("moved");
    assert_eq!(next(&mut stream), change(ChangeKind::Moved, "new", Some("old")));
    std::fs::write(dir.join("new/sub/h"), "").expect("written");
    assert_eq!(next(&mut stream), change(ChangeKind::Created, "new/sub/h", None));
    std::fs::set_permissions(dir.join("g"), std::fs::Permissions::from_mode(0o600)).expect("a mode");
    until("the mode", || next(&mut stream) == change(ChangeKind::Attributes, "g", None));
    std::fs::rename(dir.join("new"), inside.path("out")).expect("moved");
    assert_eq!(next(&mut stream), change(ChangeKind::Removed, "new", None));
    std::fs::write(inside.path("out/sub/unseen"), "").expect("written");
    std::fs::remove_file(dir.join("g")).expect("removed");
    assert_eq!(next(&mut stream), change(ChangeKind::Removed, "g", None));

    // Trees made at once: each entry is told once, however the watch and the making race.
    shell(&dir, "for i in $(seq 100); do mkdir -p t$i/a/b; echo x >t$i/a/b/f; done; touch last");
    let mut seen = BTreeMap::new();
    loop {
        let change = next(&mut stream);
        if change.kind == ChangeKind::Created {
            let path = String::from_utf8(change.path.to_vec()).expect("UTF-8");
            *seen.entry(path.clone()).or_insert(0) += 1;
            if path == "last" {
                break;
            }
        }
    }
    assert_eq!(seen.len(), 401);
    assert!(seen.values().all(|&times| times == 1), "{seen:?}");

    // A host that does not read loses events, and is told.
    let mut slow = send(&inside, &Request::Watch { path: inside.bytes("w"), recursive: false, plain: false });
    assert_eq!(reply(&mut slow), Reply::Done);
    shell(&dir, "for j in 1 2 3 4; do for i in $(seq 9000); do : >n$i; done; rm n*; done");
    while next(&mut slow).kind != ChangeKind::Overflow {}
    drop(stream);

    let mut gone = send(&inside, &Request::Watch { path: inside.bytes("w"), recursive: true, plain: false });
    assert_eq!(reply(&mut gone), Reply::Done);
    std::fs::rename(&dir, inside.path("elsewhere")).expect("moved");
    assert_eq!(next(&mut gone), change(ChangeKind::Removed, "", None));
    let mut rest = Vec::new();
    gone.read_to_end(&mut rest).expect("closed");
    assert!(rest.is_empty());
    let watch = Request::Watch { path: inside.bytes("none"), recursive: true, plain: false };
    assert_eq!(inside.failure(&watch).kind, FailureKind::NotFound);
}

/// See `figures` in `steps`.
#[test]
#[ignore = "prints figures"]
fn figures() {
    let inside = Inside::start();
    let chunk = vec![0x5a; den_wire::DATA_CHUNK_BYTES];
    let chunks = (1 << 30) / chunk.len();
    let rate = |name: &str, start: Instant| {
        println!("{name}: {:.0} MB/s", (1u64 << 30) as f64 / 1e6 / start.elapsed().as_secs_f64());
    };
    let start = Instant::now();
    let mut stream = send(&inside, &Request::Write(write_file(inside.bytes("file"))));
    for _ in 0..chunks {
        data(&mut stream, &chunk).expect("sent");
    }
    end(&mut stream);
    assert_eq!(stat(reply(&mut stream)).size, 1 << 30);
    rate("write", start);
    let drain = |request: &Request| {
        let mut stream = send(&inside, request);
        let mut payload = Vec::new();
        while den_wire::frame::blocking::read_frame_into(&mut stream, &mut payload).expect("a frame")
            != den_wire::FrameKind::End
        {}
    };
    let start = Instant::now();
    drain(&Request::Read { path: inside.bytes("file"), offset: 0, length: None });
    rate("read", start);
    let start = Instant::now();
    drain(&Request::TarOut { path: inside.bytes("file"), follow: false });
    rate("tar out", start);
    let mut header = tar::Header::new_ustar();
    header.set_path("file2").expect("a name");
    header.set_size(1 << 30);
    header.set_mode(0o644);
    for set in [tar::Header::set_uid as fn(&mut tar::Header, u64), tar::Header::set_gid, tar::Header::set_mtime] {
        set(&mut header, 0);
    }
    header.set_cksum();
    let start = Instant::now();
    let mut stream = send(&inside, &Request::TarIn { path: inside.bytes("in"), owner: None, rename: None });
    data(&mut stream, header.as_bytes()).expect("sent");
    for _ in 0..chunks {
        data(&mut stream, &chunk).expect("sent");
    }
    data(&mut stream, &[0; 1024]).expect("sent");
    end(&mut stream);
    assert_eq!(reply(&mut stream), Reply::Done);
    rate("tar in", start);
    let mut stat_micros: Vec<u128> = (0..500)
        .map(|_| {
            let start = Instant::now();
            stat(inside.ask(&Request::Stat { path: bytes("/etc/passwd"), follow: true }));
            start.elapsed().as_micros()
        })
        .collect();
    stat_micros.sort_unstable();
    println!("stat: p50 {} us", stat_micros[250]);
    std::thread::sleep(Duration::from_millis(200));
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", inside.pid())).expect("smaps");
    for line in rollup.lines().filter(|line| ["Rss", "Private", "Anonymous"].iter().any(|name| line.starts_with(name)))
    {
        println!("{line}");
    }
    let _ = std::io::stdout().flush();
}
