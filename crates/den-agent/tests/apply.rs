//! What applying many changes at once promises, against the real agent, with plans of real merges.

mod common;
#[path = "../../den-history/tests/common/trees.rs"]
mod trees;
#[path = "../../den-history/tests/common/world.rs"]
mod world;

use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use common::{Inside, bytes, data, end, reply};
use den_history::merge::{Content, MergeOptions, Plan};
use den_wire::agent::{Apply, ApplyAction, ApplyOp, Dress, DressXattr, Expected, FailureKind, Reply, Request};
use den_wire::frame::blocking::write_message;
use minicbor::bytes::ByteVec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use world::World;

const STEP: u64 = 7;

/// Ours is also the root that is changed.
impl World {
    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("ours/data")
    }

    /// Everything that a tree holds, with owners, modes and times of all but the root.
    fn listing(&self, side: &str) -> String {
        let list = "find . -mindepth 1 -printf '%P %y %m %U:%G %s %T@ %l %n\\n' | sed -E 's/^([^ ]+ d .*) [0-9]+ ([0-9.]+)/\\1 \\2/' | sort
                    find . -type f -print0 | sort -z | xargs -0 -r md5sum";
        self.sh(&format!("{side}/data"), list)
    }

    fn apply(&self, inside: &Inside, plan: &Plan) -> Reply {
        let (ours, theirs) = (self.state("ours"), self.state("theirs"));
        let ops: Vec<_> = plan.ops.iter().map(|op| op.op.clone()).collect();
        send(inside, &self.root(), &ops, |index| match plan.ops[index].source.open(&ours, &theirs).expect("content") {
            Content::Bytes(bytes) => bytes,
            Content::File(mut file) => {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).expect("read");
                bytes
            }
        })
    }

    /// The names in the root: nothing is left beside what belongs there.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.root())
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

fn send(inside: &Inside, root: &Path, ops: &[ApplyOp], mut content: impl FnMut(usize) -> Vec<u8>) -> Reply {
    let mut stream = inside.connect();
    let request = Request::Apply(Apply { step: STEP, ops: ops.len() as u64, root: Some(bytes(root)) });
    write_message(&mut stream, &request).expect("sent");
    for (index, op) in ops.iter().enumerate() {
        if write_message(&mut stream, op).is_err() {
            return reply(&mut stream);
        }
        if matches!(op.action, ApplyAction::File(_)) {
            for chunk in content(index).chunks(256 << 10) {
                if data(&mut stream, chunk).is_err() {
                    return reply(&mut stream);
                }
            }
            end(&mut stream);
        }
    }
    end(&mut stream);
    reply(&mut stream)
}

fn op(path: &str, expect: Option<Expected>, action: ApplyAction) -> ApplyOp {
    ApplyOp { path: ByteVec::from(path.as_bytes().to_vec()), expect, action }
}

fn failed(reply: Reply) -> (FailureKind, String) {
    match reply {
        Reply::Failed(failure) => (failure.kind, failure.subject),
        other => panic!("not refused: {other:?}"),
    }
}

/// What is there, as it is to be expected.
fn there(path: &Path) -> Expected {
    let meta = std::fs::symlink_metadata(path).expect("there");
    let timed = !meta.is_dir();
    Expected {
        mode: meta.mode(),
        uid: meta.uid(),
        gid: meta.gid(),
        size: timed.then_some(meta.size()),
        mtime_ns: timed.then_some(meta.mtime() * 1_000_000_000 + meta.mtime_nsec()),
        ctime_ns: timed.then_some(meta.ctime() * 1_000_000_000 + meta.ctime_nsec()),
    }
}

fn changes(most: usize) -> impl Strategy<Value = Vec<trees::Change>> {
    proptest::collection::vec((0..trees::CHANGES, any::<u8>(), any::<u8>()), 0..most)
}

#[test]
fn a_plan_applied_to_ours_gives_the_tree_of_the_model() {
    let inside = Inside::start();
    // The same cases each time; with DEN_CASES so many others.
    let (cases, rng_seed) = match std::env::var("DEN_CASES").ok().and_then(|cases| cases.parse().ok()) {
        Some(cases) => (cases, RngSeed::Random),
        None => (128, RngSeed::Fixed(4)),
    };
    let mut runner = TestRunner::new(Config { cases, rng_seed, failure_persistence: None, ..Config::default() });
    let applied = std::cell::Cell::new(0);
    let done = runner.run(&(changes(60), changes(10), changes(10)), |(grow, a, b)| {
        let base = trees::grown(&trees::Tree::new(), &grow);
        let (ours, theirs) = (trees::grown(&base, &a), trees::grown(&base, &b));
        let world = World::new();
        for (name, tree) in [("base", &base), ("ours", &ours), ("theirs", &theirs)] {
            trees::write(&world.dir.path().join(name).join("data"), tree);
        }
        let plan = world.plan(&MergeOptions::default());
        let merged = match trees::merge(&base, &ours, &theirs) {
            Ok(merged) => merged,
            Err(conflicts) => {
                let found: Vec<_> = plan.conflicts.iter().map(|c| (c.path.clone(), c.why.clone())).collect();
                let expected: Vec<_> =
                    conflicts.iter().map(|(path, why)| (path.display().to_string(), (*why).to_owned())).collect();
                prop_assert_eq!(found, expected);
                return Ok(());
            }
        };
        prop_assert!(plan.conflicts.is_empty(), "{:?}", plan.conflicts);
        prop_assert_eq!(world.apply(&inside, &plan), Reply::Done, "{:?}", plan.ops);
        prop_assert_eq!(trees::read(&world.root()), merged);
        applied.set(applied.get() + 1);
        Ok(())
    });
    done.expect("as the model has it");
    assert!(applied.get() > cases / 8, "only {} of {cases} merged", applied.get());
}

#[test]
fn what_only_theirs_changed_makes_ours_the_same_to_the_nanosecond() {
    let inside = Inside::start();
    let world = World::scripted(
        "mkdir -p d/e gone/x; seq 9 > d/f; seq 9 > d/e/g; ln d/f hard; ln -s a l; mkfifo p; echo 1 > gone/x/y; mkdir swap
         echo 1 > d/only-mode; echo file > turns; truncate -s 10M sparse; cp -a /bin/ls tool",
        "true",
        "seq 20 > d/f; rm -r gone; ln -sfn b l; mkdir -p new/deep; seq 3 > new/deep/f; chown 5:6 new/deep/f; chmod 6755 new/deep/f
         ln new/deep/f new/again; rm -r swap; echo now-a-file > swap; rm turns; mkdir turns; echo 1 > turns/in
         chmod 600 d/only-mode; chown -h 3:4 l; chmod 1777 new; mv d/e d/moved; printf x >> sparse; mkfifo -m 640 q
         touch -d '2001-02-03 04:05:06.123456789' new/deep/f new; rm p; chown 9:9 tool; chmod 4755 tool",
    );
    // A capability, as it is on the disk: version 2, cap_net_raw.
    let capability: Vec<u8> = [0x0200_0001_u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    let tool = world.dir.path().join("theirs/data/tool");
    rustix::fs::setxattr(&tool, "security.capability", &capability, rustix::fs::XattrFlags::empty()).expect("set");
    let plan = world.plan(&MergeOptions::default());
    assert!(plan.conflicts.is_empty(), "{:?}", plan.conflicts);
    assert_eq!(world.apply(&inside, &plan), Reply::Done);
    assert_eq!(world.listing("ours"), world.listing("theirs"));
    let mut back = [0; 64];
    let length = rustix::fs::getxattr(world.root().join("tool"), "security.capability", &mut back[..]).expect("kept");
    assert_eq!(&back[..length], capability);
    let ino = |name: &str| std::fs::metadata(world.root().join(name)).expect("there").ino();
    assert_eq!(ino("d/f"), ino("hard"));
    assert_eq!(ino("new/deep/f"), ino("new/again"));
    let blocks = std::fs::metadata(world.root().join("sparse")).expect("there").blocks();
    assert!(blocks < 1000, "{blocks} blocks");
}

/// As in a computer: a layer below, and what each state has of its own above it, with whiteouts,
/// opaque and renamed directories.
#[test]
fn it_works_over_layers_as_in_a_computer() {
    let world = World::new();
    let over = |side: &str, script: &str| {
        world.sh(
            ".",
            &format!(
                "unshare -m bash -euc 'mkdir {side}/work {side}/root
                 mount -t overlay x -o lowerdir=layer,upperdir={side}/data,workdir={side}/work,redirect_dir=on,metacopy=off,index=off {side}/root
                 cd {side}/root; {script}'; rm -rf {side}/work {side}/root"
            ),
        );
    };
    world.sh(
        "layer",
        "mkdir -p d/e etc ren/sub; seq 9 > d/f; seq 9 > d/e/g; seq 9 > etc/conf; echo 1 > d/gone; seq 5 > ren/sub/x
         echo big > mode; ln d/f d/hard; echo 1 > etc/x; echo 1 > untouched",
    );
    over("base", "echo base > d/base; sed -i 1s/1/one/ etc/conf; rm etc/x");
    for side in ["ours", "theirs"] {
        world.sh(".", &format!("cp -a base/data/. {side}/data/"));
    }
    over("ours", "sed -i 2s/2/two/ etc/conf; echo ours > d/e/ours; sed -i 1s/1/one/ ren/sub/x");
    over(
        "theirs",
        "sed -i 9s/9/nine/ etc/conf; rm d/gone; mv ren named; chmod 600 mode; rm d/base; mkdir d/base; echo 1 > d/base/in
         echo 1 > etc/x; echo 10 >> d/f",
    );
    let plan = world.plan(&MergeOptions::default());
    assert!(plan.conflicts.is_empty(), "{:?}", plan.conflicts);
    let dir = world.dir.path().display();
    let inside = Inside::start_under(&format!(
        "mkdir {dir}/ours/work {dir}/ours/root
         exec unshare --pid --mount --fork --kill-child=KILL --mount-proc /bin/sh -c '
            mount -t overlay x -o lowerdir={dir}/layer,upperdir={dir}/ours/data,workdir={dir}/ours/work,redirect_dir=on,metacopy=off,index=off {dir}/ours/root
            exec \"$0\" init' \"$0\""
    ));
    let (ours, theirs) = (world.state("ours"), world.state("theirs"));
    let ops: Vec<_> = plan.ops.iter().map(|op| op.op.clone()).collect();
    let done = send(&inside, &world.dir.path().join("ours/root"), &ops, |index| {
        match plan.ops[index].source.open(&ours, &theirs).expect("content") {
            Content::Bytes(bytes) => bytes,
            Content::File(mut file) => {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).expect("read");
                bytes
            }
        }
    });
    assert_eq!(done, Reply::Done, "{:?}", plan.ops);
    drop(inside);
    let merged = world.state("ours");
    let text = |path: &str| {
        String::from_utf8(merged.view.read_limited(Path::new(path), 1 << 20).expect("there")).expect("text")
    };
    let is_there = |path: &str| merged.view.lstat(Path::new(path)).expect("looked at").is_some();
    assert_eq!(text("/etc/conf"), "one\ntwo\n3\n4\n5\n6\n7\n8\nnine\n");
    assert_eq!(text("/named/sub/x"), "one\n2\n3\n4\n5\n");
    assert_eq!((text("/d/base/in"), text("/etc/x"), text("/d/e/ours")), ("1\n".into(), "1\n".into(), "ours\n".into()));
    assert!(text("/d/f").ends_with("10\n"));
    for gone in ["/ren", "/d/gone", "/.den-merge-7"] {
        assert!(!is_there(gone), "{gone}");
    }
    assert_eq!(merged.view.stat(Path::new("/mode")).expect("there").mode, 0o600);
    assert_eq!(text("/mode"), "big\n");
}

#[test]
fn what_changed_meanwhile_stops_it_and_nothing_is_done() {
    let inside = Inside::start();
    let make = || {
        World::scripted(
            "mkdir d e; echo 1 > a; echo 1 > d/f; echo 1 > z; ln -s a l; echo 1 > m",
            "true",
            "echo 2 > a; rm -r d; ln -sfn b l; chmod 600 m; echo new > n; echo 3 > e/n",
        )
    };
    let check = |meanwhile: &str, subject: &str| {
        let world = make();
        let plan = world.plan(&MergeOptions::default());
        world.sh("ours/data", meanwhile);
        let before = world.listing("ours");
        assert_eq!(
            failed(world.apply(&inside, &plan)),
            (FailureKind::ChangedMeanwhile, subject.to_owned()),
            "{meanwhile}"
        );
        assert_eq!(world.listing("ours"), before, "{meanwhile}");
    };
    check("echo 22 > a", "/a");
    check("touch -d 2001-01-01 a", "/a");
    check("chmod 755 a", "/a");
    check("rm a", "/a");
    check("rm a; mkdir a", "/a");
    check("echo x > d/new", "/d/new");
    check("ln -sfn c l", "/l");
    check("chown 5 m", "/m");
    check("touch n", "/n");
    check("rm -r e", "/e/n");
    check("rm -r e; mkdir elsewhere; ln -s elsewhere e", "/e/n");

    // The time of change tells what size and time of writing do not.
    let world = make();
    let plan = world.plan(&MergeOptions::default());
    let mut ops: Vec<_> = plan.ops.iter().map(|op| op.op.clone()).collect();
    let a = ops.iter_mut().find(|op| &op.path[..] == b"/a").expect("an operation");
    a.expect = Some(there(&world.root().join("a")));
    world.sh("ours/data", "cp -p a b; echo 9 > a; touch -r b a; rm b");
    assert_eq!(failed(send(&inside, &world.root(), &ops, |_| b"x".to_vec())).0, FailureKind::ChangedMeanwhile);
    // And what did not change stops nothing.
    let a = ops.iter_mut().find(|op| &op.path[..] == b"/a").expect("an operation");
    a.expect = Some(there(&world.root().join("a")));
    assert_eq!(send(&inside, &world.root(), &ops, |_| b"x".to_vec()), Reply::Done);
    assert_eq!(world.names(), ["a", "e", "l", "m", "n", "z"]);
}

#[test]
fn a_host_that_goes_away_leaves_everything_as_it_was() {
    let inside = Inside::start();
    let world = World::scripted("echo 1 > a", "true", "true");
    let before = world.listing("ours");
    let expect = there(&world.root().join("a"));
    let mut stream = inside.connect();
    let request = Request::Apply(Apply { step: STEP, ops: 2, root: Some(bytes(world.root())) });
    write_message(&mut stream, &request).expect("sent");
    write_message(&mut stream, &op("/a", Some(expect), ApplyAction::Remove)).expect("sent");
    write_message(&mut stream, &op("/b", None, ApplyAction::File(Dress::default()))).expect("sent");
    data(&mut stream, &[1; 100_000]).expect("sent");
    common::until("it is put aside", || world.names().contains(&format!(".den-merge-{STEP}")));
    drop(stream);
    common::until("it is gone", || world.names() == ["a"]);
    assert_eq!(world.listing("ours"), before);
}

#[test]
fn a_full_disk_leaves_everything_as_it_was() {
    let inside = Inside::start();
    let world = World::new();
    let root = world.root();
    world.sh(".", "mount -t tmpfs -o size=4m,nr_inodes=100 den-apply ours/data");
    struct Unmount<'a>(&'a Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(self.0).status();
        }
    }
    let _unmount = Unmount(&root);
    // The agent has a mount namespace of its own, made before.
    let inside_root = {
        let other = Inside::start();
        drop(inside);
        other
    };
    world.sh("ours/data", "echo 1 > a; mkdir d; echo 1 > d/b");
    let before = world.listing("ours");
    let mut ops = vec![
        op("/d/b", Some(there(&root.join("d/b"))), ApplyAction::Remove),
        op("/a", Some(there(&root.join("a"))), ApplyAction::File(Dress::default())),
        op("/big", None, ApplyAction::File(Dress::default())),
    ];
    let contents = |index: usize| vec![7_u8; if index == 2 { 5 << 20 } else { 10 }];
    assert_eq!(failed(send(&inside_root, &root, &ops, contents)), (FailureKind::NoSpace, "/big".to_owned()));
    assert_eq!(world.listing("ours"), before);
    // Many small ones: no inode is left.
    ops.truncate(2);
    ops.extend((0..200).map(|n| op(&format!("/n{n}"), None, ApplyAction::File(Dress::default()))));
    assert_eq!(failed(send(&inside_root, &root, &ops, |_| Vec::new())).0, FailureKind::NoSpace);
    assert_eq!(world.listing("ours"), before);
    // And with room it is done.
    ops.truncate(2);
    assert_eq!(send(&inside_root, &root, &ops, |_| b"x".to_vec()), Reply::Done);
    assert_eq!(world.names(), ["a", "d"]);
    drop(inside_root);
}

#[test]
fn bad_requests_are_refused_and_nothing_is_left() {
    let inside = Inside::start();
    let world = World::scripted("echo 1 > a; mkdir d", "true", "true");
    let root = world.root();
    let before = world.listing("ours");
    let refused = |ops: &[ApplyOp]| {
        let said = failed(send(&inside, &root, ops, |_| b"x".to_vec())).0;
        assert_eq!(world.listing("ours"), before);
        said
    };
    let file = || ApplyAction::File(Dress::default());
    assert_eq!(refused(&[op("/../b", None, file())]), FailureKind::BadRequest);
    assert_eq!(refused(&[op("b", None, file())]), FailureKind::BadRequest);
    assert_eq!(refused(&[op("/a/b", None, file())]), FailureKind::ChangedMeanwhile);
    assert_eq!(refused(&[op("/none/b", None, file())]), FailureKind::ChangedMeanwhile);
    assert_eq!(refused(&[op("/none", None, ApplyAction::Remove)]), FailureKind::ChangedMeanwhile);
    let expect = there(&root.join("d"));
    assert_eq!(refused(&[op("/d", Some(expect.clone()), file())]), FailureKind::ChangedMeanwhile);
    let link = ApplyAction::Link { to: ByteVec::from(b"/none".to_vec()) };
    assert_eq!(refused(&[op("/l", None, link)]), FailureKind::NotFound);
    let xattr = DressXattr { name: ByteVec::from(b"nonsense".to_vec()), value: Some(ByteVec::from(vec![1])) };
    let dress = Dress { xattrs: vec![xattr], ..Dress::default() };
    refused(&[op("/d", Some(expect), ApplyAction::Dress(dress))]);

    let mut stream = inside.connect();
    let request = Request::Apply(Apply { step: STEP, ops: u64::MAX, root: Some(bytes(&root)) });
    write_message(&mut stream, &request).expect("sent");
    assert_eq!(failed(reply(&mut stream)).0, FailureKind::BadRequest);
}

#[test]
fn a_failure_halfway_says_so() {
    let inside = Inside::start();
    let world = World::scripted("echo 1 > a; echo 1 > b", "true", "true");
    let root = world.root();
    // An immutable file passes every check.
    world.sh("ours/data", "chattr +i b 2>/dev/null || true; lsattr b > ../attributes 2>/dev/null || true");
    if !std::fs::read_to_string(world.dir.path().join("ours/attributes")).is_ok_and(|text| text.contains('i')) {
        eprintln!("skipped: no immutable files here");
        return;
    }
    let ops = [
        op("/a", Some(there(&root.join("a"))), ApplyAction::Remove),
        op("/b", Some(there(&root.join("b"))), ApplyAction::Remove),
    ];
    let said = send(&inside, &root, &ops, |_| Vec::new());
    world.sh("ours/data", "chattr -i b");
    assert_eq!(failed(said), (FailureKind::HalfDone, "/b".to_owned()));
    assert_eq!(world.names(), ["b"]);
}

#[test]
fn a_thousand_files_take_less_than_a_second() {
    let inside = Inside::start();
    let world = World::scripted(
        "for d in $(seq 20); do mkdir $d; for f in $(seq 50); do echo $f > $d/$f; done; done",
        "true",
        "for d in $(seq 20); do for f in $(seq 50); do echo new $f > $d/$f; done; done",
    );
    let start = std::time::Instant::now();
    let plan = world.plan(&MergeOptions::default());
    let planned = start.elapsed();
    assert_eq!(plan.count.changed, 1000);
    assert_eq!(world.apply(&inside, &plan), Reply::Done);
    eprintln!("planned in {planned:?}, applied in {:?}", start.elapsed() - planned);
    assert_eq!(world.listing("ours"), world.listing("theirs"));
    let mode = std::fs::metadata(world.root()).expect("there").permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
}
