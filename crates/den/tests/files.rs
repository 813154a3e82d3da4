//! Files: copies in and out, changes, watches, tars; over the API and with `den cp`.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use den_testkit::{House, eventually};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");
const FILES: &str = "/v1/computers/web/files";

fn house() -> House {
    let house = House::open(DEN);
    house.new_computer("web");
    house
}

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
    std::fs::write(path, text).expect("a file");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("a mode");
}

fn change(house: &House, body: &Value) -> den_testkit::Reply {
    house.api().post(FILES, body)
}

/// Bytes in which no block is like another.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length.div_ceil(8))
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .take(length)
        .collect()
}

#[test]
fn a_file_goes_in_and_comes_out_with_mode_owner_and_time() {
    let house = house();
    let file = house.scratch().join("tool");
    write(&file, "#!/bin/sh\necho ran\n", 0o750);
    let cp = |from: &str, to: &str| house.den(&["cp", from, to]);
    let path = file.to_str().expect("text");
    cp(path, "web:/root/").ok();
    assert_eq!(
        house.sh("web", "stat -c '%a %u:%g %Y' /root/tool; /root/tool").ok(),
        format!("750 0:0 {}\nran", file.metadata().expect("it is there").mtime())
    );
    cp(path, "web:/root/renamed").ok();
    house.sh("web", "cmp /root/tool /root/renamed").ok();
    house.den(&["cp", "--owner", "user:user", path, "web:/home/user/mine"]).ok();
    assert_eq!(house.sh("web", "stat -c %U:%G /home/user/mine").ok(), "user:user");
    house.sh("web", "chmod 604 /root/tool; touch -d @1000000000 /root/tool").ok();
    let back = house.scratch().join("back");
    cp("web:/root/tool", back.to_str().expect("text")).ok();
    let meta = back.metadata().expect("it is there");
    assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o604, 1_000_000_000));
    assert_eq!(std::fs::read_to_string(&back).expect("text"), "#!/bin/sh\necho ran\n");
    // Streams.
    assert_eq!(cp("web:/root/tool", "-").ok(), "#!/bin/sh\necho ran");
    house.den_with(&["cp", "-", "web:/root/stream"], &noise(3_000_000)).ok();
    assert_eq!(house.sh("web", "stat -c %s /root/stream").ok(), "3000000");
    // From computer to computer.
    house.new_computer("db");
    cp("web:/root/stream", "db:/root/stream").ok();
    assert_eq!(house.sh("db", "sha256sum < /root/stream").ok(), house.sh("web", "sha256sum < /root/stream").ok());
}

#[test]
fn a_copy_that_cannot_be_says_why_and_leaves_nothing() {
    let house = house();
    let file = house.scratch().join("file");
    write(&file, "text", 0o644);
    let path = file.to_str().expect("text");
    let missing = house.scratch().join("missing");
    house.den(&["cp", missing.to_str().expect("text"), "web:/root/"]).refused(1, "missing");
    house.den(&["cp", "web:/no/such", path]).refused(1, "/no/such");
    house.den(&["cp", path, "web:/no/such/folder/file"]).refused(1, "/no/such");
    house.den(&["cp", path, "nobody:/root/"]).refused(1, "nobody");
    house.den(&["cp", path, "web:/etc/hosts/file"]).refused(1, "/etc/hosts");
    assert_eq!(std::fs::read_to_string(&file).expect("text"), "text", "the target of a refused copy is as it was");
    let both = house.den(&["cp", path, path]);
    assert!(both.code != 0 && both.stderr.contains("error:"), "{both:?}");
}

#[test]
fn a_tree_goes_in_and_comes_out_as_it_was() {
    let house = house();
    let tree = house.scratch().join("tree");
    write(&tree.join("a"), "a\n", 0o600);
    write(&tree.join("sub/dir/b"), "b\n", 0o755);
    write(&tree.join("sub/with space and ünïcode"), "c\n", 0o644);
    write(&tree.join(format!("long/{}", "n".repeat(200))), "long name\n", 0o644);
    std::fs::create_dir_all(tree.join("empty")).expect("a folder");
    std::fs::set_permissions(tree.join("empty"), std::fs::Permissions::from_mode(0o711)).expect("a mode");
    symlink("sub/dir/b", tree.join("link")).expect("a link");
    symlink("/nowhere", tree.join("dangling")).expect("a link");
    std::fs::hard_link(tree.join("a"), tree.join("hard")).expect("a hard link");
    for (path, uid) in [("a", 33), ("sub/dir/b", 1000)] {
        std::os::unix::fs::chown(tree.join(path), Some(uid), Some(uid)).expect("an owner");
    }
    let text = tree.to_str().expect("text");
    house.den(&["cp", text, "web:/root/"]).ok();
    assert_eq!(
        house.sh("web", "cd /root/tree; stat -c '%n %a %u %F' a sub/dir/b empty; readlink link dangling; [ a -ef hard ] && echo hard").ok(),
        "a 600 33 regular file\nsub/dir/b 755 1000 regular file\nempty 711 0 directory\nsub/dir/b\n/nowhere\nhard"
    );
    // Into a folder that is there: beneath it. To a name that is not: renamed. SRC/.: what it holds.
    house.den(&["cp", text, "web:/root/tree"]).ok();
    house.sh("web", "test -f /root/tree/tree/a").ok();
    house.den(&["cp", text, "web:/root/other"]).ok();
    house.sh("web", "test -f /root/other/a").ok();
    house.sh("web", "mkdir /root/flat").ok();
    house.den(&["cp", &format!("{text}/."), "web:/root/flat"]).ok();
    house.sh("web", "test -f /root/flat/a").ok();
    let back = house.scratch().join("back");
    house.den(&["cp", "web:/root/other", back.to_str().expect("text")]).ok();
    let same = Command::new("diff").args(["-r", "--no-dereference"]).args([&tree, &back]).output().expect("diff");
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
    let (a, hard) = (back.join("a").metadata().expect("a"), back.join("hard").metadata().expect("hard"));
    assert_eq!((a.mode() & 0o7777, a.uid(), a.ino()), (0o600, 33, hard.ino()));
    assert_eq!(back.join("empty").metadata().expect("empty").mode() & 0o7777, 0o711);
}

#[test]
fn a_hostile_tree_does_not_leave_the_target() {
    let house = house();
    let scratch = house.scratch();
    let outside = scratch.join("outside");
    write(&outside.join("victim"), "safe\n", 0o644);
    let target = scratch.join("target");
    std::fs::create_dir_all(&target).expect("a folder");
    // A link that leads out, then a file through it: tar would follow it if one let it.
    let script = format!(
        "mkdir -p /root/evil && cd /root/evil && ln -s {} out && cd /root && tar cf /tmp/a.tar evil && rm evil/out && mkdir evil/out && \
         echo stolen > evil/out/victim && tar rf /tmp/a.tar evil/out/victim && rm -r evil",
        outside.display()
    );
    house.sh("web", &script).ok();
    let tar = scratch.join("a.tar");
    house.den(&["cp", "web:/tmp/a.tar", tar.to_str().expect("text")]).ok();
    let bytes = std::fs::read(&tar).expect("the tar");
    // Into the computer it goes by the same rule: never out of the folder that was named.
    house.sh("web", &format!("mkdir -p {} /root/in; echo safe > {}/victim", outside.display(), outside.display())).ok();
    let reply = house.api().put("/v1/computers/web/tar?path=/root/in", &bytes);
    assert!([204, 400, 409].contains(&reply.status), "{}", reply.text());
    assert_eq!(house.sh("web", &format!("cat {}/victim", outside.display())).ok(), "safe");
    let climbing = scratch.join("climb.tar");
    let python = format!(
        "import tarfile,io\nt=tarfile.open({:?},'w')\nfor n in ('ok','../up','/abs/x','a/../../up2'):\n i=tarfile.TarInfo(n);i.size=2;t.addfile(i,io.BytesIO(b'x\\n'))\nt.close()",
        climbing.to_str().expect("text")
    );
    assert!(Command::new("python3").args(["-c", &python]).status().expect("python3").success());
    house
        .api()
        .put("/v1/computers/web/tar?path=/root/in", &std::fs::read(&climbing).expect("the tar"))
        .refusal(400, "bad_request");
    house.sh("web", "ls /root/up /up /root/up2 2>/dev/null").refused(2, "");
    assert_eq!(std::fs::read_to_string(outside.join("victim")).expect("text"), "safe\n");
}

#[test]
fn sparse_files_stay_sparse_up_to_four_gib() {
    let house = house();
    let sparse = house.scratch().join("sparse");
    {
        let file = std::fs::File::create(&sparse).expect("a file");
        use std::os::unix::fs::FileExt as _;
        file.write_all_at(b"begin", 0).expect("bytes");
        file.write_all_at(b"end", (4 << 30) + 5).expect("bytes");
    }
    house.den(&["cp", sparse.to_str().expect("text"), "web:/root/sparse"]).ok();
    let stat = house.api().get(&format!("{FILES}/stat?path=/root/sparse")).expect(200).json();
    assert_eq!(stat["size"].as_u64(), Some((4 << 30) + 8));
    assert!(stat["allocated"].as_u64().expect("bytes") < 8 << 20, "{stat}");
    assert_eq!(house.sh("web", "head -c 5 /root/sparse; tail -c 3 /root/sparse").ok(), "beginend");
    let back = house.scratch().join("back");
    house.den(&["cp", "web:/root/sparse", back.to_str().expect("text")]).ok();
    let meta = back.metadata().expect("it is there");
    assert_eq!(meta.size(), (4 << 30) + 8);
    assert!(meta.blocks() * 512 < 8 << 20, "{} blocks", meta.blocks());
    use std::os::unix::fs::FileExt as _;
    let (mut begin, mut end) = ([0; 5], [0; 3]);
    let file = std::fs::File::open(&back).expect("a file");
    file.read_exact_at(&mut begin, 0).expect("bytes");
    file.read_exact_at(&mut end, (4 << 30) + 5).expect("bytes");
    assert_eq!((&begin, &end), (b"begin", b"end"));
}

#[test]
fn the_api_reads_and_writes_bytes_and_ranges() {
    let house = house();
    let api = house.api();
    let bytes = noise(5_000_011);
    let put = format!("{FILES}?path=/root/x/y/data&mode=0640&owner=user&parents=true&mtime=1000000000000000");
    let stat = api.put(&put, &bytes).expect(200).json();
    assert_eq!((&stat["size"], &stat["mode"], &stat["user"]), (&json!(bytes.len()), &json!("0640"), &json!("user")));
    let get = format!("{FILES}?path=/root/x/y/data");
    let reply = api.get(&get).expect(200);
    assert!(reply.body == bytes);
    for (name, value) in
        [("x-den-mode", "0640"), ("x-den-uid", "1000"), ("x-den-size", "5000011"), ("x-den-mtime", "1000000000000000")]
    {
        let got = reply.header(name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(got.trim_start_matches('0'), value.trim_start_matches('0'), "{name}");
    }
    let range = |range: &str| api.request("GET", &get, &[("range", range)], b"");
    assert!(range("bytes=0-0").expect(206).body == bytes[..1]);
    assert!(range("bytes=1000-1999").expect(206).body == bytes[1000..2000]);
    let tail = range("bytes=5000000-").expect(206);
    assert!(tail.body == bytes[5_000_000..]);
    assert_eq!(tail.header("content-range"), Some("bytes 5000000-5000010/5000011"));
    assert!(range("bytes=-11").expect(206).body == bytes[5_000_000..]);
    assert_eq!(range("bytes=5000011-").status, 416);
    // In place: mode and owner of what is there stay.
    api.put(&get, b"short").expect(200);
    assert_eq!(house.sh("web", "stat -c '%a %U %s' /root/x/y/data").ok(), "640 user 5");
    api.put(&format!("{get}&append=true"), b" and long").expect(200);
    assert_eq!(api.get(&get).expect(200).text(), "short and long");
    assert_eq!(api.put(&format!("{FILES}?path=/root/empty"), b"").expect(200).json()["size"], 0);
    assert_eq!(api.get(&format!("{FILES}?path=/root/empty")).expect(200).body, b"");
    // Through a link to what it leads to.
    house.sh("web", "ln -s /root/empty /root/link").ok();
    api.put(&format!("{FILES}?path=/root/link"), b"through").expect(200);
    assert_eq!(house.sh("web", "cat /root/empty; readlink /root/link").ok(), "through/root/empty");
}

#[test]
fn a_write_that_breaks_off_changes_nothing() {
    let house = house();
    let api = house.api();
    let path = format!("{FILES}?path=/root/file");
    api.put(&path, b"old").expect(200);
    let mut tcp = TcpStream::connect(api.addr).expect("a connection");
    let head = format!(
        "PUT {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-length: 1000000\r\n\r\n",
        api.addr, api.token
    );
    tcp.write_all(head.as_bytes()).expect("the head");
    tcp.write_all(&noise(300_000)).expect("a part");
    std::thread::sleep(Duration::from_millis(300));
    drop(tcp);
    eventually(Duration::from_secs(30), "nothing half written is left", || {
        house.sh("web", "ls -A /root | grep -v -e '^file$' -e '^\\.bashrc$' -e '^\\.profile$' | wc -l").stdout == "0\n"
    });
    assert_eq!(api.get(&path).expect(200).text(), "old");
}

#[test]
fn changes_are_made_and_refused_with_their_codes() {
    let house = house();
    let api = house.api();
    let ok = |body: Value| drop(change(&house, &body).expect(204));
    let refused = |body: Value, status: u16, code: &str| drop(change(&house, &body).refusal(status, code));
    ok(json!({"op": "mkdir", "path": "/root/a/b/c", "parents": true, "mode": "0750", "owner": "user:games"}));
    assert_eq!(house.sh("web", "stat -c '%a %U:%G' /root/a/b/c").ok(), "750 user:games");
    refused(json!({"op": "mkdir", "path": "/root/a"}), 409, "file_exists");
    ok(json!({"op": "mkdir", "path": "/root/a", "parents": true}));
    refused(json!({"op": "mkdir", "path": "/root/none/x"}), 404, "file_not_found");
    refused(json!({"op": "mkdir", "path": "/etc/hosts/x"}), 400, "not_a_directory");
    ok(json!({"op": "symlink", "path": "/root/link", "target": "../etc/hostname"}));
    assert_eq!(house.sh("web", "readlink /root/link; cat /root/link").ok(), "../etc/hostname\nweb");
    refused(json!({"op": "symlink", "path": "/root/link", "target": "x"}), 409, "file_exists");
    house.sh("web", "echo x > /root/a/file; ln -s /etc/shadow /root/a/b/trap; mkfifo /root/fifo").ok();
    ok(json!({"op": "chmod", "path": "/root/a", "mode": "0700", "recursive": true}));
    assert_eq!(house.sh("web", "stat -c %a /root/a/b/c /root/a/file; stat -c %a /etc/shadow").ok(), "700\n700\n640");
    ok(json!({"op": "chown", "path": "/root/a", "owner": "user", "recursive": true}));
    assert_eq!(house.sh("web", "stat -c %U /root/a/b/c; stat -c %U /etc/shadow").ok(), "user\nroot");
    ok(json!({"op": "chown", "path": "/root/a", "owner": ":games"}));
    assert_eq!(house.sh("web", "stat -c %U:%G /root/a").ok(), "user:games");
    refused(json!({"op": "chown", "path": "/root/a", "owner": "nobody-here"}), 400, "no_such_user");
    refused(json!({"op": "chmod", "path": "/root/a", "mode": "9999"}), 400, "bad_request");
    ok(json!({"op": "move", "from": "/root/a/file", "to": "/root/moved"}));
    house.sh("web", "test -e /root/moved && ! test -e /root/a/file").ok();
    ok(json!({"op": "move", "from": "/root/moved", "to": "/dev/shm/moved"}));
    house.sh("web", "test -e /dev/shm/moved && ! test -e /root/moved").ok();
    refused(json!({"op": "move", "from": "/root/none", "to": "/root/x"}), 404, "file_not_found");
    refused(json!({"op": "remove", "path": "/root/a"}), 409, "not_empty");
    ok(json!({"op": "remove", "path": "/root/a", "recursive": true}));
    house.sh("web", "test -e /root/a || test -s /etc/shadow").ok();
    refused(json!({"op": "remove", "path": "/root/a"}), 404, "file_not_found");
    refused(json!({"op": "explode", "path": "/root/a"}), 400, "bad_request");
    api.get(&format!("{FILES}?path=/root/none")).refusal(404, "file_not_found");
    api.get(&format!("{FILES}?path=/root")).refusal(400, "is_a_directory");
    api.get(&format!("{FILES}?path=/etc/hosts/x")).refusal(400, "not_a_directory");
    api.get(&format!("{FILES}?path=/root/fifo")).refusal(400, "not_a_file");
    api.get(&format!("{FILES}?path=/dev/zero")).refusal(400, "not_a_file");
    api.get(FILES).refusal(400, "bad_request");
    api.put(&format!("{FILES}?path=/root"), b"x").refusal(400, "is_a_directory");
    api.put(&format!("{FILES}?path=/none/x"), b"x").refusal(404, "file_not_found");
    api.get(&format!("{FILES}/list?path=/etc/hosts")).refusal(400, "not_a_directory");
    // Each change is a step, and says what it was.
    let log = house.den(&["log", "web", "-n", "100"]).ok();
    for words in ["mkdir", "symlink", "chmod", "chown", "move", "remove"] {
        assert!(log.contains(words), "`{words}` in {log}");
    }
}

#[test]
fn what_is_there_is_listed_and_described() {
    let house = house();
    let api = house.api();
    house.sh("web", "mkdir -p /root/d/e/f; cd /root/d; echo 12345 > file; ln -s file link; mkfifo fifo; touch e/g; python3 -c \"import socket;s=socket.socket(socket.AF_UNIX);s.bind('sock')\"; touch -d @1234567890.5 file; chmod 4711 file").ok();
    let list = |depth: u32| -> Vec<(String, String)> {
        let reply = api.get(&format!("{FILES}/list?path=/root/d&depth={depth}")).expect(200).json();
        let items = reply["items"].as_array().expect("items").clone();
        items
            .iter()
            .map(|item| {
                (item["path"].as_str().expect("a path").to_owned(), item["kind"].as_str().expect("a kind").to_owned())
            })
            .collect()
    };
    let own =
        |entries: &[(&str, &str)]| entries.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<Vec<_>>();
    assert_eq!(
        list(1),
        own(&[("e", "directory"), ("fifo", "fifo"), ("file", "file"), ("link", "symlink"), ("sock", "socket")])
    );
    let mut two = list(2);
    two.sort();
    assert_eq!(
        two,
        own(&[
            ("e", "directory"),
            ("e/f", "directory"),
            ("e/g", "file"),
            ("fifo", "fifo"),
            ("file", "file"),
            ("link", "symlink"),
            ("sock", "socket")
        ])
    );
    let stat = api.get(&format!("{FILES}/stat?path=/root/d/file")).expect(200).json();
    assert_eq!(
        (&stat["mode"], &stat["size"], &stat["mtime"], &stat["user"]),
        (&json!("4711"), &json!(6), &json!(1_234_567_890_500_000_i64), &json!("root"))
    );
    let stat = api.get(&format!("{FILES}/stat?path=/root/d/link&follow=false")).expect(200).json();
    assert_eq!((&stat["kind"], &stat["target"]), (&json!("symlink"), &json!("file")));
    assert_eq!(api.get(&format!("{FILES}/stat?path=/root/d/link&follow=true")).expect(200).json()["kind"], "file");
    assert_eq!(api.get(&format!("{FILES}/stat?path=/dev/null")).expect(200).json()["kind"], "char_device");
    // A large folder comes whole.
    house.sh("web", "mkdir /root/many; cd /root/many; seq -f 'f%05g' 1 5000 | xargs touch").ok();
    let many = api.get(&format!("{FILES}/list?path=/root/many")).expect(200).json();
    assert_eq!(many["items"].as_array().expect("items").len(), 5000);
}

#[test]
fn names_that_are_no_text_have_their_own_spelling() {
    let house = house();
    let api = house.api();
    house.sh("web", "printf data > \"$(printf '/root/a\\377b')\"").ok();
    // base64 of `/root/a\xffb`, with the characters that a query must escape.
    let path = "path_base64=L3Jvb3QvYf9i";
    assert_eq!(api.get(&format!("{FILES}?{path}")).expect(200).text(), "data");
    api.put(&format!("{FILES}?{path}"), b"other").expect(200);
    assert_eq!(house.sh("web", "cat /root/a*b").ok(), "other");
    let list = api.get(&format!("{FILES}/list?path=/root")).expect(200).json();
    let entry = list["items"]
        .as_array()
        .expect("items")
        .iter()
        .find(|item| item["path_base64"].is_string())
        .expect("the entry")
        .clone();
    assert_eq!((&entry["path"], &entry["path_base64"]), (&json!("a\u{fffd}b"), &json!("Yf9i")));
}

#[test]
fn a_watch_tells_of_changes_beneath() {
    let house = house();
    house.sh("web", "mkdir -p /root/w/sub; echo x > /root/w/old").ok();
    let stream = house
        .api()
        .open("GET", &format!("{FILES}/watch?path=/root/w&recursive=true"), &[("accept", "text/event-stream")], b"")
        .expect("a stream");
    assert_eq!(stream.status, 200);
    let events = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut seen = Vec::new();
            let events = stream.events(|_| {
                seen.push(());
                false
            });
            drop(seen);
            events
        });
        // The answer's head is there, so the watch is set: what is done now is told.
        house
            .sh("web", "cd /root/w; echo 1 > new; echo 2 > sub/deep; mv old moved; rm new; mkdir later; sleep 0.3; echo 3 > later/in; chmod 600 moved; sleep 0.5")
            .ok();
        // The computer's end is the stream's end.
        house.den(&["stop", "web", "--grace", "1s"]).ok();
        reading.join().expect("events")
    });
    let changes: Vec<Value> = events.iter().filter_map(|(_, _, data)| serde_json::from_str(data).ok()).collect();
    let has = |kind: &str, path: &str| changes.iter().any(|change| change["kind"] == kind && change["path"] == path);
    for (kind, path) in [
        ("created", "new"),
        ("written", "new"),
        ("written", "sub/deep"),
        ("moved", "moved"),
        ("removed", "new"),
        ("created", "later"),
        ("written", "later/in"),
        ("attributes", "moved"),
    ] {
        assert!(has(kind, path), "no `{kind}` of `{path}` in {changes:#?}");
    }
    let moved = changes.iter().find(|change| change["kind"] == "moved").expect("the move");
    assert_eq!(moved["from"], "old");
}

#[test]
fn a_tar_goes_both_ways_over_the_api() {
    let house = house();
    let api = house.api();
    house.sh("web", "mkdir -p /root/t/d; cd /root/t; echo one > d/one; ln -s d/one link; ln d/one hard; chown -R user d; setfattr -n user.k -v v d/one 2>/dev/null; mkfifo pipe; truncate -s 3M holes").ok();
    let tar = api.get("/v1/computers/web/tar?path=/root/t").expect(200).body;
    let file = house.scratch().join("t.tar");
    std::fs::write(&file, &tar).expect("a file");
    let list = Command::new("tar").args(["tvf"]).arg(&file).output().expect("tar");
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(list.contains("t/d/one") && list.contains("link -> d/one") && list.contains("t/pipe"), "{list}");
    house.sh("web", "mkdir /root/u").ok();
    api.put("/v1/computers/web/tar?path=/root/u", &tar).expect(204);
    assert_eq!(
        house.sh("web", "cd /root/u/t; cat d/one; readlink link; [ d/one -ef hard ] && echo hard; stat -c '%U %F' d/one pipe; stat -c %s holes").ok(),
        "one\nd/one\nhard\nuser regular file\nroot fifo\n3145728"
    );
    api.put("/v1/computers/web/tar?path=/root/u&rename=renamed&owner=games", &tar).expect(204);
    assert_eq!(house.sh("web", "stat -c %U /root/u/renamed/d/one").ok(), "games");
    api.put(
        "/v1/computers/web/tar?path=/root/u",
        b"this is no tar, but long enough to look like one at first sight".repeat(20).as_slice(),
    )
    .refusal(400, "bad_request");
    // A folder that is missing is made; what is no folder is none.
    api.put("/v1/computers/web/tar?path=/root/none", &tar).expect(204);
    house.sh("web", "test -p /root/none/t/pipe").ok();
    api.put("/v1/computers/web/tar?path=/etc/hosts", &tar).refusal(400, "not_a_directory");
    api.get("/v1/computers/web/tar?path=/root/nowhere").refusal(404, "file_not_found");
}

#[test]
fn a_full_disk_is_said_and_harms_nobody() {
    let house = House::open(DEN);
    house.den(&["new", "web", "--disk", "64MiB", "--memory", "1GiB"]).ok();
    house.den(&["new", "db", "--memory", "1GiB"]).ok();
    let api = house.api();
    api.put(&format!("{FILES}?path=/root/file"), b"old").expect(200);
    api.put(&format!("{FILES}?path=/root/file"), &noise(100 << 20)).refusal(507, "disk_full");
    assert_eq!(api.get(&format!("{FILES}?path=/root/file")).expect(200).text(), "old");
    // The same from a file, which is refused before all of it was sent.
    let large = house.scratch().join("large");
    std::fs::write(&large, noise(100 << 20)).expect("a file");
    let large = large.to_str().expect("text");
    house.den(&["cp", large, "web:/root/file"]).refused(1, "no room is left");
    house.den(&["cp", large, "db:/no/such/folder/file"]).refused(1, "/no/such/folder");
    assert_eq!(api.get(&format!("{FILES}?path=/root/file")).expect(200).text(), "old");
    let ran = house.sh("web", "head -c 200M /dev/urandom > /root/big; sync; true");
    assert!(ran.stderr.contains("Disk quota exceeded") || ran.stderr.contains("No space left"), "{ran:?}");
    // The neighbour and the computer itself are well, and space comes back.
    house.sh("db", "head -c 50M /dev/urandom > /root/file").ok();
    house.sh("web", "rm /root/big; sync").ok();
    eventually(Duration::from_secs(60), "space is back", || {
        house.sh("web", "head -c 8M /dev/urandom > /root/small && rm /root/small").code == 0
    });
    assert_eq!(house.sh("web", "echo well").ok(), "well");
}

#[test]
fn a_large_file_arrives_whole() {
    let house = house();
    let file = house.scratch().join("large");
    let block = noise(1 << 20);
    {
        let mut out = std::io::BufWriter::new(std::fs::File::create(&file).expect("a file"));
        for number in 0..300_u32 {
            out.write_all(&number.to_le_bytes()).expect("bytes");
            out.write_all(&block).expect("bytes");
        }
    }
    house.den(&["cp", file.to_str().expect("text"), "web:/root/large"]).ok();
    let back = house.scratch().join("back");
    house.den(&["cp", "web:/root/large", back.to_str().expect("text")]).ok();
    let same = Command::new("cmp").args([&file, &back]).status().expect("cmp");
    assert!(same.success());
    let mut sum = Command::new("sha256sum")
        .stdin(std::fs::File::open(&file).expect("a file"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("sha256sum");
    let mut text = String::new();
    sum.stdout.take().expect("its output").read_to_string(&mut text).expect("text");
    sum.wait().expect("its end");
    assert_eq!(house.sh("web", "sha256sum < /root/large").ok(), text.trim_end());
}
