//! States of computers: looked into, compared, merged; over the API, with a real daemon.

use std::time::Duration;

use den_testkit::{House, Reply, eventually};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");

fn house() -> House {
    let house = House::open(DEN);
    house.new_computer("web");
    house
}

fn get(house: &House, path: &str) -> Reply {
    house.api().get(path)
}

/// The answer of a GET that works.
fn json(house: &House, path: &str) -> Value {
    let reply = get(house, path);
    assert_eq!(reply.status, 200, "{path}: {}", reply.text());
    reply.json()
}

fn fork(house: &House, from: &str, name: &str) {
    let reply = house.api().post(&format!("/v1/computers/{from}/fork"), &json!({ "name": name }));
    assert_eq!(reply.status, 201, "{}", reply.text());
}

fn merge(house: &House, into: &str, body: Value) -> Reply {
    house.api().post(&format!("/v1/computers/{into}/merge"), &body)
}

/// A merge that comes about.
fn merged(house: &House, into: &str, body: Value) -> Value {
    let reply = merge(house, into, body);
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

/// The status and code of a refusal that has a hint.
fn refused(reply: &Reply) -> (u16, String) {
    let body = reply.json();
    assert!(body["error"]["hint"].is_string(), "{body}");
    (reply.status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
}

fn texts<'a>(items: &'a Value, field: &str) -> Vec<&'a str> {
    items.as_array().expect("a list").iter().filter_map(|item| item[field].as_str()).collect()
}

/// `path kind` of each change, in their order.
fn kinds(files: &Value) -> Vec<String> {
    let files = files.as_array().expect("a list").iter();
    files.map(|file| format!("{} {}", file["path"].as_str().unwrap(), file["kind"].as_str().unwrap())).collect()
}

#[test]
fn a_state_is_read_without_its_computer() {
    let house = house();
    house.sh("web", "mkdir -p /srv/app/sub && printf 'one\\ntwo\\n' > /srv/app/a && printf 'x\\0two' > /srv/app/bin && ln -s a /srv/app/link && echo deep > /srv/app/sub/b && chmod 640 /srv/app/a").ok();
    house.sh("web", "printf 'three\\n' > /srv/app/a; rm -r /srv/app/sub").ok();
    let old = |rest: &str| format!("/v1/computers/web/states/1/{rest}");
    let look = || {
        assert_eq!(get(&house, &old("file?path=/srv/app/a")).text(), "one\ntwo\n");
        assert_eq!(get(&house, "/v1/computers/web/states/now/file?path=/srv/app/link").text(), "three\n");
        let list = json(&house, &old("list?path=/srv/app&depth=2"));
        let paths = ["/srv/app/a", "/srv/app/bin", "/srv/app/link", "/srv/app/sub", "/srv/app/sub/b"];
        assert_eq!(texts(&list["items"], "path"), paths);
        assert_eq!(json(&house, &old("list?path=/srv/app&depth=2&limit=2"))["truncated"], true);
        let stat = json(&house, &old("stat?path=/srv/app/link"));
        assert_eq!((stat["kind"].as_str(), stat["target"].as_str()), (Some("symlink"), Some("a")));
        assert_eq!(json(&house, &old("stat?path=/srv/app/a"))["mode"], 0o640);
        let hits = json(&house, &old("grep?path=/srv&pattern=T%5BWX%5DO&ignore_case=true"));
        assert_eq!(texts(&hits["items"], "path"), ["/srv/app/a", "/srv/app/bin"]);
        assert_eq!((&hits["items"][0]["line"], &hits["items"][0]["text"]), (&json!(2), &json!("two")));
        assert_eq!(hits["items"][1]["line"], 0);
        assert_eq!(json(&house, &old("grep?path=/srv&pattern=t.o&fixed=true"))["items"], json!([]));
    };
    look();
    house.den(&["stop", "web"]).ok();
    look();

    let tar = get(&house, &old("tar?path=/srv/app"));
    let mut archive = tar::Archive::new(&tar.body[..]);
    let mut names: Vec<String> =
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
    names.sort();
    let names: Vec<&str> = names.iter().map(|name| name.trim_end_matches('/')).collect();
    assert_eq!(names, ["app", "app/a", "app/bin", "app/link", "app/sub", "app/sub/b"]);

    let error = |path: &str| refused(&get(&house, path));
    let is = |status: u16, code: &str| (status, code.to_owned());
    assert_eq!(error("/v1/computers/web/states/9/file?path=/etc/passwd"), is(404, "state_not_found"));
    assert_eq!(error("/v1/computers/web/states/A_B/file?path=/etc/passwd"), is(400, "bad_state"));
    assert_eq!(error(&old("file?path=/nothing")), is(404, "no_such_path"));
    assert_eq!(error(&old("file?path=/srv/app")), is(400, "not_a_file"));
    assert_eq!(error(&old("grep?path=/srv&pattern=%28")), is(400, "bad_pattern"));
    assert_eq!(error(&old("file")), is(400, "bad_request"));
    assert_eq!(error(&old("file?path=/srv/../../etc/shadow")).1, "bad_request");
    assert_eq!(get(&house, &old("list?path=/&depth=0")).status, 400);
}

#[test]
fn hostile_links_lead_nowhere() {
    let house = house();
    let secret = house.scratch().join("secret");
    std::fs::write(&secret, "the host's").unwrap();
    let secret = secret.to_str().unwrap();
    let deep = "../".repeat(40);
    let script = format!(
        "mkdir /h && ln -s {secret} /h/abs && ln -s {deep}{secret} /h/up && ln -s / /h/root && ln -s loop /h/loop && \
         ln -s /proc/self/root{secret} /h/magic && mkfifo /h/pipe && ln -s /etc/hostname /h/name && ln -s /h/pipe /h/to-pipe"
    );
    house.sh("web", &script).ok();
    let read = |path: &str| get(&house, &format!("/v1/computers/web/states/now/file?path={path}"));
    for path in
        ["/h/abs", "/h/up", "/h/magic", "/h/root/h/abs", "/h/loop", "/h/pipe", "/h/to-pipe", "/proc/self/environ"]
    {
        let reply = read(path);
        assert!((400..500).contains(&reply.status), "{path}: {} {}", reply.status, reply.text());
        assert!(!reply.text().contains("the host's"), "{path}");
    }
    assert_eq!(read("/h/name").text(), "web\n");
    assert_eq!(read("/h/root/etc/hostname").text(), "web\n");
    // A walk does not follow links, and so ends.
    let list = json(&house, "/v1/computers/web/states/now/list?path=/h&depth=64");
    assert_eq!(list["items"].as_array().unwrap().len(), 8);
    let hits = json(&house, "/v1/computers/web/states/now/grep?path=/h&pattern=host");
    assert_eq!(hits["items"], json!([]));
    assert_eq!(get(&house, "/v1/computers/web/states/now/tar?path=/h").status, 200);
}

#[test]
fn a_diff_says_what_changed_by_path_and_by_meaning() {
    let house = house();
    house.sh("web", "mkdir /srv/d && printf 'a\\nb\\nc\\n' > /srv/d/text && head -c 3000 /dev/urandom > /srv/d/bin && echo gone > /srv/d/gone && echo moved-here > /srv/d/old && touch /srv/d/mode").ok();
    let script = "printf 'a\\nx\\nc\\n' > /srv/d/text; head -c 4000 /dev/urandom > /srv/d/bin; rm /srv/d/gone; \
                  mv /srv/d/old /srv/d/new; chmod 600 /srv/d/mode; echo hi > /srv/d/added; touch -d @1 /etc/hostname";
    house.sh("web", script).ok();
    let diff = json(&house, "/v1/diff?a=web@1&b=web@2&text=true");
    let expected = [
        "/srv/d/added added",
        "/srv/d/bin changed",
        "/srv/d/gone removed",
        "/srv/d/mode changed",
        "/srv/d/new renamed",
        "/srv/d/text changed",
    ];
    assert_eq!(kinds(&diff["files"]), expected);
    assert_eq!(diff["count"], json!({ "added": 1, "changed": 4, "removed": 1 }));
    let file = |path: &str| diff["files"].as_array().unwrap().iter().find(|file| file["path"] == path).unwrap().clone();
    let text = file("/srv/d/text");
    assert_eq!((&text["lines_added"], &text["lines_removed"]), (&json!(1), &json!(1)));
    assert!(text["text"].as_str().unwrap().contains("-b\n+x\n"), "{text}");
    assert!(file("/srv/d/bin")["hash_after"].is_string());
    assert_eq!(file("/srv/d/mode")["parts"], json!(["mode"]));
    assert_eq!(file("/srv/d/new")["from"], "/srv/d/old");
    assert_eq!((diff["a"].as_str(), diff["b"].as_str()), (Some("web@1"), Some("web@2")));

    let chosen = json(&house, "/v1/diff?a=web@1&path=/srv/d/bin&path=/srv/d/gone");
    assert_eq!(kinds(&chosen["files"]), ["/srv/d/bin changed", "/srv/d/gone removed"]);
    let short = json(&house, "/v1/diff?a=web@1&limit=2");
    assert_eq!((short["files"].as_array().unwrap().len(), &short["truncated"]), (2, &json!(true)));
    assert_eq!(short["count"]["changed"], 4);

    // By meaning: a package that is made here, a user, a service that listens.
    let deb = "mkdir -p /tmp/p/DEBIAN /tmp/p/usr/share/hello-den && \
               printf 'Package: hello-den\\nVersion: 1.2\\nArchitecture: all\\nMaintainer: T <t@example.com>\\nDescription: test\\n' > /tmp/p/DEBIAN/control && \
               echo hello > /tmp/p/usr/share/hello-den/file && dpkg-deb -b /tmp/p /tmp/p.deb && dpkg -i /tmp/p.deb && rm -r /tmp/p /tmp/p.deb";
    house.sh("web", deb).ok();
    house.sh("web", "useradd -m ann && echo 'A=1' >> /etc/environment").ok();
    let diff = json(&house, "/v1/diff?a=web@2&b=web");
    let fact = |area: &str, name: &str| {
        diff["facts"].as_array().unwrap().iter().find(|fact| fact["area"] == area && fact["name"] == name).cloned()
    };
    let package = fact("dpkg", "hello-den").unwrap_or_else(|| panic!("{}", diff["facts"]));
    assert_eq!((package["kind"].as_str(), package["after"].as_str()), (Some("added"), Some("1.2")));
    assert_eq!(fact("user", "ann").unwrap_or_else(|| panic!("{}", diff["facts"]))["kind"], "added");
    assert!(diff["facts"].as_array().unwrap().iter().any(|fact| fact["area"] == "environment"), "{}", diff["facts"]);

    // A computer alone is compared with how it was made.
    let whole = json(&house, "/v1/diff?a=web");
    assert_eq!(whole["a"], "web@0");
    assert!(kinds(&whole["files"]).iter().any(|line| line == "/srv/d added" || line == "/srv/d/added added"));
    assert_eq!(json(&house, "/v1/diff?a=web@4&b=web@4")["files"], json!([]));
    assert_eq!(refused(&get(&house, "/v1/diff?a=web@77")), (404, "state_not_found".to_owned()));
    assert_eq!(refused(&get(&house, "/v1/diff?b=web")), (400, "bad_request".to_owned()));
    assert_eq!(refused(&get(&house, "/v1/diff?a=nobody")), (404, "computer_not_found".to_owned()));
}

#[test]
fn a_fork_is_merged_and_the_merge_is_taken_back() {
    let house = house();
    house.sh("web", "mkdir /srv/app && seq 1 20 > /srv/app/list && echo kept > /srv/app/keep && echo 1 > /srv/app/drop && ln -s keep /srv/app/link").ok();
    fork(&house, "web", "try");
    let change = "cd /srv/app && sed -i 's/^3$/three/' list && rm drop && mkdir -p new/deep && echo n > new/deep/file && chown 1:2 new/deep/file && \
                  chmod 4750 new/deep/file && ln new/deep/file new/twin && ln -sf list link && mv keep kept && touch -d @1000000000 new/deep/file";
    house.sh("try", change).ok();
    house.sh("web", "sed -i 's/^18$/eighteen/' /srv/app/list; echo more > /srv/app/own").ok();

    let dry = merged(&house, "web", json!({ "from": "try", "dry_run": true }));
    assert_eq!((&dry["conflicts"], &dry["step"]), (&json!([]), &Value::Null));
    assert_eq!(house.sh("web", "cat /srv/app/drop").ok(), "1");
    let view = merged(&house, "web", json!({ "from": "try" }));
    assert_eq!(view["conflicts"], json!([]), "{view}");
    assert_eq!(view["files"], dry["files"]);
    let step = view["step"].as_u64().expect("a step");
    let seen = "cd /srv/app; sed -n '3p;18p' list; ls; readlink link; stat -c '%a %u:%g %h %Y' new/deep/file; cat own kept; ls -d /.den-merge* 2>/dev/null";
    let expected = "three\neighteen\nkept\nlink\nlist\nnew\nown\nlist\n4750 1:2 2 1000000000\nmore\nkept";
    assert_eq!(house.sh("web", seen).stdout.trim_end(), expected);
    let name = house.sh("web", "cat /etc/hostname").ok();
    assert_eq!(name, "web");

    let log = house.api().get(&format!("/v1/computers/web/steps/{step}")).json();
    assert_eq!((log["kind"].as_str(), &log["end"]["exit_code"]), (Some("merge"), &json!(0)));
    let argv = texts_of(&log["argv"]);
    assert!(argv[0] == "merge" && argv[1].starts_with("try@"), "{argv:?}");
    let changes = json(&house, &format!("/v1/computers/web/steps/{step}/changes"));
    assert!(kinds(&changes["files"]).contains(&"/srv/app/drop removed".to_owned()), "{changes}");
    let blame = json(&house, "/v1/computers/web/blame?path=/srv/app/list&lines=true");
    assert_eq!(
        (&blame["step"], &blame["lines"][2]["step"], &blame["lines"][0]["step"]),
        (&json!(step), &json!(step), &json!(1))
    );

    // Again: there is nothing left to do.
    let again = merged(&house, "web", json!({ "from": "try" }));
    assert_eq!((&again["step"], &again["conflicts"]), (&Value::Null, &json!([])), "{again}");

    let before = format!(".{}", view["before"]["number"]);
    let restored = house.api().post("/v1/computers/web/restore", &json!({ "state": before }));
    assert_eq!(restored.status, 200, "{}", restored.text());
    assert_eq!(
        house.sh("web", "cd /srv/app; ls; sed -n '3p;18p' list; readlink link").ok(),
        "drop\nkeep\nlink\nlist\nown\n3\neighteen\nkeep"
    );
}

fn texts_of(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().filter_map(Value::as_str).collect()
}

#[test]
fn a_conflict_leaves_the_target_as_it_was() {
    let house = house();
    house
        .sh("web", "mkdir /srv/c && printf 'a\\nb\\nc\\n' > /srv/c/text && echo 1 > /srv/c/gone && echo 1 > /srv/c/one")
        .ok();
    fork(&house, "web", "try");
    house
        .sh("try", "printf 'a\\ntheirs\\nc\\n' > /srv/c/text; echo theirs > /srv/c/gone; echo theirs > /srv/c/only")
        .ok();
    house.sh("web", "printf 'a\\nours\\nc\\n' > /srv/c/text; rm /srv/c/gone").ok();
    let seen = || house.sh("web", "cd /srv/c; tail -n +1 *").ok();
    let before = seen();
    let view = merged(&house, "web", json!({ "from": "try" }));
    assert_eq!(texts(&view["conflicts"], "path"), ["/srv/c/gone", "/srv/c/text"]);
    assert_eq!(texts(&view["conflicts"], "why"), ["delete", "content"]);
    let text = &view["conflicts"][1];
    assert!(text["base"].is_object() && text["ours"].is_object() && text["theirs"].is_object());
    let marked = text["text"].as_str().unwrap();
    assert!(marked.contains("<<<<<<<") && marked.contains("ours") && marked.contains("theirs"), "{marked}");
    assert_eq!((seen(), &view["step"]), (before, &Value::Null));

    let view = merged(&house, "web", json!({ "from": "try", "paths": ["/srv/c/only"] }));
    assert_eq!((kinds(&view["files"]), view["step"].is_u64()), (vec!["/srv/c/only added".to_owned()], true));
    let view = merged(&house, "web", json!({ "from": "try", "ours": ["/srv/c/text"], "theirs": ["/srv/c/gone"] }));
    assert!(view["step"].is_u64(), "{view}");
    assert_eq!(house.sh("web", "cd /srv/c; cat text gone only").ok(), "a\nours\nc\ntheirs\ntheirs");
}

#[test]
fn a_fork_of_a_fork_is_merged_into_the_first() {
    let house = house();
    house.sh("web", "echo base > /srv/base").ok();
    fork(&house, "web", "one");
    house.sh("one", "echo one > /srv/one").ok();
    fork(&house, "one", "two");
    house.sh("two", "echo two > /srv/two; echo two >> /srv/base").ok();
    house.sh("web", "echo own > /srv/own").ok();
    let view = merged(&house, "web", json!({ "from": "two" }));
    assert_eq!(kinds(&view["files"]), ["/srv/base changed", "/srv/one added", "/srv/two added"], "{view}");
    assert_eq!(house.sh("web", "cd /srv; tail -n +1 base one own two | grep -v '^$'").ok().lines().count(), 9);
    // Brothers share what both were forked from.
    let view = merged(&house, "one", json!({ "from": "two", "paths": ["/srv/two"] }));
    assert_eq!(kinds(&view["files"]), ["/srv/two added"]);
}

#[test]
fn what_cannot_be_merged_says_so() {
    let house = house();
    house.new_computer("other");
    fork(&house, "web", "try");
    house.sh("try", "echo 1 > /srv/new").ok();
    let code = |into: &str, body: Value| refused(&merge(&house, into, body));
    assert_eq!(code("web", json!({ "from": "other" })), (409, "no_common_state".to_owned()));
    assert_eq!(code("web", json!({ "from": "web@0" })).1, "bad_request");
    assert_eq!(code("web", json!({ "from": "try@99" })), (404, "state_not_found".to_owned()));
    assert_eq!(code("web", json!({ "from": "nobody" })), (404, "computer_not_found".to_owned()));
    assert_eq!(code("web", json!({ "from": "try", "paths": ["srv"] })).1, "bad_request");
    house.den(&["stop", "web"]).ok();
    assert_eq!(code("web", json!({ "from": "try" })), (409, "computer_stopped".to_owned()));
    // What it would do can be said nevertheless.
    let view = merged(&house, "web", json!({ "from": "try", "dry_run": true }));
    assert_eq!(kinds(&view["files"]), ["/srv/new added"]);
}

#[test]
fn a_merge_without_room_leaves_the_target_as_it_was() {
    let house = House::open(DEN);
    house.den(&["new", "web", "--memory", "512MiB", "--disk", "300MiB"]).ok();
    house.sh("web", "mkdir /srv/f && echo 1 > /srv/f/a && echo 1 > /srv/f/b").ok();
    fork(&house, "web", "try");
    house.sh("try", "head -c 60000000 /dev/urandom > /srv/f/c; echo 2 > /srv/f/a; rm /srv/f/b").ok();
    house.sh("web", "head -c 400000000 /dev/zero | tr '\\0' x > /root/fill; sync");
    let seen = || house.sh("web", "cd /srv/f && ls && cat a b; ls -A / | grep den-merge").stdout;
    let before = seen();
    let (status, code) = refused(&merge(&house, "web", json!({ "from": "try" })));
    assert!(status == 507 && (code == "disk_full" || code == "host_full"), "{status} {code}");
    assert_eq!((seen(), before.as_str()), (before.clone(), "a\nb\n1\n1\n"));
}

#[test]
fn steps_are_found_by_word_and_by_path() {
    let house = house();
    house.sh("web", "mkdir /srv/log; echo 1 > /srv/log/a").ok();
    house.sh("web", "true").ok();
    house.sh("web", "echo 2 > /srv/log/b").ok();
    house.sh("web", "echo 3 > /srv/log/a").ok();
    let steps = |query: &str| {
        let page = json(&house, &format!("/v1/computers/web/steps?{query}"));
        page["items"].as_array().unwrap().iter().map(|step| step["number"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    eventually(Duration::from_secs(10), "the changes are counted", || steps("path=/srv/log/a") == [1, 4]);
    assert_eq!(steps("path=/srv/log"), [1, 3, 4]);
    assert_eq!(steps("path=/srv/log&order=desc&limit=1"), [4]);
    assert_eq!(steps("grep=echo%203"), [4]);
    assert_eq!(steps("grep=echo&path=/srv/log/b"), [3]);
    assert_eq!(steps("path=/srv/lo"), Vec::<u64>::new());
    let changes = json(&house, "/v1/computers/web/steps/4/changes");
    assert_eq!(
        (kinds(&changes["files"]), &changes["count"]["changed"]),
        (vec!["/srv/log/a changed".to_owned()], &json!(1))
    );
    assert_eq!(json(&house, "/v1/computers/web/steps/2/changes")["files"], json!([]));
    assert_eq!(get(&house, "/v1/computers/web/steps/9/changes").status, 404);

    let blame = |path: &str| json(&house, &format!("/v1/computers/web/blame?path={path}"))["step"].clone();
    assert_eq!((blame("/srv/log/a"), blame("/srv/log/b"), blame("/srv/log")), (json!(4), json!(3), json!(4)));
    assert_eq!(blame("/bin/sh"), Value::Null);
    house.sh("web", "rm /srv/log/b; printf '3\\nnew\\n' > /srv/log/a").ok();
    assert_eq!(blame("/srv/log/b"), json!(5));
    let lines = json(&house, "/v1/computers/web/blame?path=/srv/log/a&lines=true");
    assert_eq!(texts(&lines["lines"], "text"), ["3", "new"]);
    assert_eq!((&lines["lines"][0]["step"], &lines["lines"][1]["step"]), (&json!(4), &json!(5)));
    assert_eq!(refused(&get(&house, "/v1/computers/web/blame?path=/nowhere")), (404, "no_such_path".to_owned()));
}

#[test]
fn a_daemon_that_dies_in_a_merge_leaves_the_old_or_the_new() {
    for (point, is_new) in [("merge.kept", false), ("merge.step", false), ("merge.applied", true)] {
        let mut house = house();
        house.sh("web", "mkdir /srv/k && echo 1 > /srv/k/a && echo 1 > /srv/k/b").ok();
        fork(&house, "web", "try");
        house.sh("try", "cd /srv/k && echo 2 > a && rm b && echo 2 > c").ok();
        house.kill_serve();
        house.set_env(&[("DEN_FAILPOINT", point)]);
        house.start();
        let (listen, token) = (house.api().addr, house.api().token);
        let asked = std::thread::spawn(move || {
            let api = den_testkit::Api { addr: listen, token };
            // The daemon goes in the middle: there is no answer.
            let _ = api.open("POST", "/v1/computers/web/merge", &[], br#"{"from":"try"}"#);
        });
        house.wait_serve_dead();
        asked.join().expect("the asker");
        house.set_env(&[]);
        house.start();
        let seen = house.sh("web", "cd /srv/k; tail -n +1 *; ls -A / | grep den-merge").stdout;
        let expected = if is_new { "==> a <==\n2\n\n==> c <==\n2\n" } else { "==> a <==\n1\n\n==> b <==\n1\n" };
        assert_eq!(seen, expected, "{point}");
        let steps = json(&house, "/v1/computers/web/steps?limit=1000");
        let open = steps["items"].as_array().unwrap().iter().filter(|step| step["status"] == "running").count();
        assert_eq!(open, 0, "{point}: {steps}");
        // It can be merged again, whichever it was.
        let view = merged(&house, "web", json!({ "from": "try" }));
        assert_eq!((view["step"].is_u64(), &view["conflicts"]), (!is_new, &json!([])), "{point}: {view}");
    }
}

#[test]
fn what_listens_is_part_of_a_diff() {
    let house = house();
    fork(&house, "web", "try");
    house.sh("try", "setsid python3 -m http.server 8123 >/dev/null 2>&1 & sleep 0.1").ok();
    eventually(Duration::from_secs(10), "it listens", || {
        !json(&house, "/v1/computers/try/ports")["items"].as_array().unwrap().is_empty()
    });
    let diff = json(&house, "/v1/diff?a=web&b=try");
    let ports: Vec<&Value> = diff["facts"].as_array().unwrap().iter().filter(|fact| fact["area"] == "port").collect();
    assert_eq!(ports.len(), 1, "{diff}");
    assert!(ports[0]["name"].as_str().unwrap().starts_with("tcp/8123") && ports[0]["kind"] == "added", "{}", ports[0]);
}

#[test]
fn a_computer_that_ends_in_a_merge_has_the_old_or_the_new() {
    let house = house();
    house.sh("web", "mkdir /srv/k && echo 1 > /srv/k/a && echo 1 > /srv/k/b").ok();
    fork(&house, "web", "try");
    let many = "cd /srv/k && echo 2 > a && rm b && head -c 80000000 /dev/urandom > c && for i in $(seq 2000); do echo $i > f$i; done";
    house.sh("try", many).ok();
    let api = house.api();
    let asked = std::thread::spawn(move || api.post("/v1/computers/web/merge", &json!({ "from": "try" })));
    std::thread::sleep(Duration::from_millis(400));
    house.den(&["stop", "web", "--grace", "1ms"]).ok();
    let reply = asked.join().expect("the asker");
    assert!(
        reply.status == 200 || ["merge_failed", "computer_stopped"].contains(&refused(&reply).1.as_str()),
        "{}",
        reply.text()
    );
    assert!(!reply.text().contains("could not be taken back"), "{}", reply.text());
    let list = json(&house, "/v1/computers/web/states/now/list?path=/srv/k&limit=5000");
    let paths = texts(&list["items"], "path");
    let expected: Vec<&str> = if reply.status == 200 { paths.clone() } else { vec!["/srv/k/a", "/srv/k/b"] };
    assert_eq!((paths.len() == 2002 || paths.len() == 2, paths), (true, expected));
    let root = json(&house, "/v1/computers/web/states/now/list?path=/");
    assert!(!texts(&root["items"], "path").iter().any(|path| path.starts_with("/.den")), "{root}");
    house.den(&["start", "web"]).ok();
    house.sh("web", "cat /srv/k/a").ok();
}

#[test]
fn blame_follows_the_line_of_states() {
    let house = house();
    house.sh("web", "printf 'a\\nb\\n' > /srv/t").ok();
    house.sh("web", "printf 'a\\nx\\n' > /srv/t").ok();
    let restored = house.api().post("/v1/computers/web/restore", &json!({ "state": "1" }));
    assert_eq!(restored.status, 200, "{}", restored.text());
    house.sh("web", "echo c >> /srv/t").ok();
    let blame = json(&house, "/v1/computers/web/blame?path=/srv/t&lines=true");
    let steps: Vec<Option<u64>> = blame["lines"].as_array().unwrap().iter().map(|line| line["step"].as_u64()).collect();
    assert_eq!(steps, [Some(1), Some(1), Some(4)], "{blame}");
    assert_eq!(kinds(&json(&house, "/v1/computers/web/steps/3/changes")["files"]), ["/srv/t changed"]);
    // A fork begins anew: what its parent did was there when it was made.
    fork(&house, "web", "try");
    let blame = json(&house, "/v1/computers/try/blame?path=/srv/t");
    assert_eq!((&blame["step"], &blame["truncated"]), (&Value::Null, &json!(false)));
}

#[test]
fn a_merge_counts_lines_and_says_what_stays_behind() {
    let house = house();
    house.sh("web", "printf '1\\n2\\n3\\n' > /srv/text; echo gone > /srv/gone").ok();
    fork(&house, "web", "try");
    let script = "printf '1\\nb\\n3\\n4\\n' > /srv/text; rm /srv/gone; echo new > /srv/new; \
                  chmod 600 /etc/hosts; chown 7:8 /etc/hostname; echo layer > /var/lib/docker/overlay2/x";
    house.sh("try", script).ok();
    let diff = json(&house, "/v1/diff?a=web&b=try");
    assert_eq!(diff["volumes"], json!(["/var/lib/docker"]), "{diff}");
    let view = merged(&house, "web", json!({ "from": "try" }));
    assert_eq!(kinds(&view["files"]), ["/srv/gone removed", "/srv/new added", "/srv/text changed"], "{view}");
    let lines = |file: &Value| [file["lines_added"].as_u64(), file["lines_removed"].as_u64()];
    let counted: Vec<_> = view["files"].as_array().unwrap().iter().map(lines).collect();
    assert_eq!(counted, [[Some(0), Some(1)], [Some(1), Some(0)], [Some(2), Some(1)]], "{view}");
    assert_eq!(kinds(&view["skipped"]), ["/etc/hostname changed", "/etc/hosts changed"], "{view}");
    assert_eq!(view["volumes"], json!(["/var/lib/docker"]), "{view}");
    assert_eq!(
        house.sh("web", "stat -c %a:%u /etc/hosts /etc/hostname; ls /var/lib/docker/overlay2").ok(),
        "644:0\n644:0\nl"
    );
    // What was made anew for the fork alone is no word worth.
    fork(&house, "web", "quiet");
    house.sh("quiet", "echo 1 > /srv/one").ok();
    let said = house.den(&["merge", "quiet"]).ok();
    assert!(!said.contains("not merged") && !said.contains("volumes"), "{said}");
    house.sh("quiet", "echo 1.2.3.4 other >> /etc/hosts").ok();
    let said = house.den(&["merge", "quiet"]).ok();
    assert!(said.contains("not merged: /etc/hosts"), "{said}");
}

#[test]
fn long_ones_tell_how_far_they_are() {
    let house = house();
    fork(&house, "web", "try");
    house.sh("try", "mkdir /srv/m; for i in $(seq 300); do echo $i > /srv/m/$i; done").ok();
    let events = [("content-type", "application/json"), ("accept", "text/event-stream")];
    let end = |method: &str, path: &str, body: &[u8]| {
        let told = house.api().open(method, path, &events, body).expect("a stream").events(|_| false);
        let (last, before) = told.split_last().expect("events");
        assert!(before.iter().all(|(name, ..)| name == "progress"), "{before:?}");
        (last.0.clone(), serde_json::from_str::<Value>(&last.2).expect("JSON"))
    };
    let (name, diff) = end("GET", "/v1/diff?a=web&b=try", b"");
    assert_eq!((name.as_str(), &diff["count"]["added"]), ("end", &json!(301)), "{diff}");
    let (name, view) = end("POST", "/v1/computers/web/merge", br#"{"from":"try"}"#);
    assert_eq!((name.as_str(), view["step"].is_u64()), ("end", true), "{view}");
    let (name, refused) = end("GET", "/v1/diff?a=web&b=nobody", b"");
    assert_eq!((name.as_str(), &refused["error"]["code"]), ("error", &json!("computer_not_found")));
}

/// Kills what runs in computers, and says how many processes that were.
fn kill_all(house: &House) -> usize {
    let hierarchies = den_sys::cgroup::Hierarchies::find().expect("hierarchies");
    let unified = hierarchies.unified.expect("a unified hierarchy").join(den_sys::cgroup::instance_of(house.run_dir()));
    let mut count = 0;
    for entry in std::fs::read_dir(unified).into_iter().flatten().flatten() {
        let procs = std::fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default();
        let cell = entry.file_name().to_string_lossy().starts_with('c') && entry.path().is_dir();
        for pid in procs.lines().filter(|_| cell).filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            count += 1;
        }
    }
    count
}

#[test]
fn half_a_merge_of_a_computer_that_is_gone_is_taken_back_at_the_next_start() {
    let mut house = house();
    house.sh("web", "mkdir /srv/k && echo 1 > /srv/k/a && echo 1 > /srv/k/b").ok();
    fork(&house, "web", "try");
    house.sh("try", "echo 2 > /srv/k/a; rm /srv/k/b").ok();
    let info = house.json(&["info", "web"]);
    let (id, last) = (info["id"].as_str().expect("an id").to_owned(), info["last_step"].as_u64().expect("a step"));
    house.kill_serve();
    house.set_env(&[("DEN_FAILPOINT", "merge.step")]);
    house.start();
    let json_type = [("content-type", "application/json")];
    let _ = house.api().open("POST", "/v1/computers/web/merge", &json_type, br#"{"from":"try"}"#);
    house.wait_serve_dead();
    // As the agent leaves it when it is ended in the middle: some of it done, the rest put aside.
    eventually(Duration::from_secs(20), "nothing runs any more", || kill_all(&house) == 0);
    let live = house.data().join("computers").join(&id).join("live/data");
    std::fs::create_dir(live.join(format!(".den-merge-{}", last + 1))).expect("a folder");
    std::fs::write(live.join("srv/k/a"), "2\n").expect("half of it");
    house.set_env(&[]);
    house.start();
    assert!(house.log().contains("half a merge was taken back"), "{}", house.log());
    if house.json(&["info", "web"])["state"] != "running" {
        house.den(&["start", "web"]).ok();
    }
    assert_eq!(
        house.sh("web", "cd /srv/k; tail -n +1 *; ls -A / | grep den-merge").stdout,
        "==> a <==\n1\n\n==> b <==\n1\n"
    );
    let view = merged(&house, "web", json!({ "from": "try" }));
    assert_eq!((view["step"].is_u64(), &view["conflicts"]), (true, &json!([])), "{view}");
    assert_eq!(house.sh("web", "cat /srv/k/*").ok(), "2");
}

#[test]
fn a_restore_is_found_by_what_it_changed() {
    let house = house();
    house.sh("web", "echo 1 > /srv/a").ok();
    house.sh("web", "echo 2 > /srv/a").ok();
    house.den(&["restore", "web@1"]).ok();
    eventually(Duration::from_secs(60), "it is known what the restore changed", || {
        let steps = json(&house, "/v1/computers/web/steps?path=/srv/a&order=desc");
        steps["items"].as_array().unwrap().iter().any(|step| step["kind"] == "restore")
    });
    let none = json(&house, "/v1/computers/web/steps?path=/srv/b");
    assert_eq!(none["items"], json!([]));
}
