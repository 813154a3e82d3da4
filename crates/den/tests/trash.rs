//! The trash, and taking back what was done: through the CLI and the API, with a real daemon.

use std::time::Duration;

use den_testkit::{House, Options, Reply, at_each_point_with, eventually};
use serde_json::{Value, json};

const DEN: &str = env!("CARGO_BIN_EXE_den");
/// What is seen by then has happened.
const LONG: Duration = Duration::from_secs(60);

const TRASH: [&str; 3] = ["trash.state", "trash.killed", "trash.done"];
const UNDELETE: [&str; 5] = ["undelete.ready", "undelete.row", "undelete.shown", "start.booted", "start.done"];
const EMPTY: [&str; 4] = ["remove.state", "remove.killed", "remove.disk", "remove.row"];

fn keeping(time: &str) -> Options {
    Options { trash_for: Some(time.to_owned()), ..Options::default() }
}

fn house() -> House {
    House::with(DEN, keeping("24h"))
}

fn undo(house: &House, body: &Value) -> Reply {
    house.api().post("/v1/undo", body)
}

/// The names of what lies in the trash, the first that was removed first.
fn trash(house: &House) -> Vec<String> {
    names(&house.json(&["trash"]))
}

fn names(list: &Value) -> Vec<String> {
    let items = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    items.iter().map(|item| item["name"].as_str().expect("a name").to_owned()).collect()
}

fn id(house: &House, name: &str) -> String {
    house.json(&["info", name])["id"].as_str().expect("an id").to_owned()
}

/// What was done, the newest first: its number, its kind, and whether it can be taken back.
fn done(house: &House, name: &str) -> Vec<(u64, String, bool)> {
    let list = house.json(&["undo", name, "--list"]);
    let items = list.as_array().expect("a list").iter();
    let number = |item: &Value| item["number"].as_u64().expect("a number");
    items
        .map(|item| (number(item), item["kind"].as_str().expect("a kind").to_owned(), item["possible"] == true))
        .collect()
}

fn kinds(house: &House, kind: &str) -> usize {
    house.den(&["events", "--kind", kind, "--json"]).ok().lines().filter(|line| !line.is_empty()).count()
}

#[test]
fn what_is_removed_lies_in_the_trash_is_read_there_and_comes_back_as_it_was() {
    let mut house = house();
    house.new_computer("web");
    house.sh("web", "mkdir /srv/app; echo one > /srv/app/file").ok();
    house.den(&["snap", "web", "first"]).ok();
    house.sh("web", "echo two > /srv/app/file").ok();
    house.den(&["net", "web", "guarded"]).ok();
    let beat = "while :; do date +%s%N > /srv/app/beat; sleep 0.1; done";
    house.den(&["service", "add", "web", "beat", "--run", beat]).ok();
    eventually(LONG, "the service runs", || house.sh("web", "test -s /srv/app/beat").code == 0);
    let id = id(&house, "web");
    let steps = house.json(&["info", "web"])["last_step"].as_u64().expect("a number");

    assert_eq!(house.den(&["rm", "web"]).ok(), "");
    assert_eq!(house.json(&["ls"]), json!([]));
    assert_eq!((trash(&house), names(&house.json(&["ls", "--trash"]))), (vec!["web".into()], vec!["web".into()]));
    let lies = &house.json(&["trash"])[0];
    assert_eq!((&lies["state"], &lies["id"]), (&json!("trashed"), &json!(id)));
    assert!(lies["kept_until"].as_i64() > lies["removed_at"].as_i64(), "{lies}");
    for word in ["web", id.as_str()] {
        house.den(&["exec", word, "--", "true"]).refused(1, "den undo web");
        let path = format!("/v1/computers/{word}");
        house.api().post(&format!("{path}/start"), &json!({})).refusal(404, "computer_trashed");
        house.api().post(&format!("{path}/snapshots"), &json!({})).refusal(404, "computer_trashed");
        house.api().delete(&format!("{path}/snapshots/first")).refusal(404, "computer_trashed");
        house.api().delete(&path).refusal(404, "computer_trashed");
        // What only reads goes on.
        assert_eq!(house.json(&["info", word])["state"], "trashed");
        assert_eq!(house.den(&["cat", &format!("{word}@first"), "/srv/app/file"]).ok(), "one");
        assert_eq!(house.den(&["cat", word, "/srv/app/file"]).ok(), "two");
        assert!(house.den(&["log", word]).ok().contains("/srv/app/file"));
        assert!(house.den(&["snaps", word]).ok().contains("first"));
        assert!(house.den(&["diff", &format!("{word}@first"), &format!("{word}@2")]).ok().contains("/srv/app/file"));
        assert_eq!(house.json(&["net", word])["posture"], "guarded");
    }
    house.den(&["fork", "web@first", "copy"]).ok();
    assert_eq!(house.sh("copy", "cat /srv/app/file").ok(), "one");
    house.den(&["rm", "copy", "--now"]).ok();
    assert_eq!(trash(&house), ["web"], "what goes for good does not lie there");

    // It lies there over a restart too, and nothing of it runs.
    house.restart();
    assert_eq!((trash(&house), house.json(&["ls"])), (vec!["web".into()], json!([])));
    let told = house.den(&["undo", "web"]).ok();
    assert!(told.contains("removal of web") && told.contains("running"), "{told}");
    let info = house.json(&["info", "web"]);
    assert_eq!((&info["id"], &info["state"], &info["net"]), (&json!(id), &json!("running"), &json!("guarded")));
    assert!(info["last_step"].as_u64() >= Some(steps), "{info}");
    assert_eq!(house.sh("web", "cat /srv/app/file; hostname").ok(), "two\nweb");
    // Its service writes again.
    let beat = house.sh("web", "cat /srv/app/beat").ok();
    eventually(LONG, "the service runs again", || house.sh("web", "cat /srv/app/beat").ok() != beat);
    assert_eq!(house.den(&["cat", "web@first", "/srv/app/file"]).ok(), "one");
    assert!(trash(&house).is_empty());
    assert_eq!(house.den(&["trash"]).ok(), "the trash is empty");
    assert!(kinds(&house, "trashed") == 1 && kinds(&house, "undeleted") == 1 && kinds(&house, "undone") == 1);

    // What did not run does not run then.
    house.den(&["stop", "web"]).ok();
    house.den(&["rm", "web"]).ok();
    house.den(&["undo"]).ok();
    assert_eq!(house.json(&["info", "web"])["state"], "stopped");
}

#[test]
fn a_name_that_was_taken_meanwhile_is_said_and_another_one_is_taken() {
    let mut house = house();
    house.new_computer("web");
    house.sh("web", "echo first > /root/file; echo '192.0.2.9 db' >> /etc/hosts").ok();
    let first = id(&house, "web");
    house.den(&["rm", "web"]).ok();
    house.new_computer("web");
    house.sh("web", "echo second > /root/file").ok();
    house.den(&["undo", "web"]).refused(1, "--as");
    undo(&house, &json!({"computer": "web"})).refusal(409, "name_taken");
    undo(&house, &json!({"computer": first, "as": "No Name"})).refusal(400, "bad_name");
    undo(&house, &json!({"computer": first, "as": "web"})).refusal(409, "name_taken");
    assert_eq!(trash(&house), ["web"], "it lies there still");

    let view = house.json(&["undo", "web", "--as", "old"]);
    assert_eq!((&view["computer"]["id"], &view["computer"]["name"]), (&json!(first), &json!("old")), "{view}");
    let look =
        "cat /root/file /etc/hostname; hostname; grep -c '127.0.1.1.old' /etc/hosts; grep -c 192.0.2.9 /etc/hosts";
    assert_eq!(house.sh("old", look).ok(), "first\nold\nold\n1\n1");
    assert_eq!(house.sh("web", "cat /root/file").ok(), "second");
    // It is one like any other, and so after a restart.
    house.sh("old", "echo more >> /root/file").ok();
    house.restart();
    assert_eq!(house.sh("old", "cat /root/file").ok(), "first\nmore");
    let mut all = names(&house.json(&["ls"]));
    all.sort();
    assert_eq!(all, ["old", "web"]);

    // Of several that had one name, a reader says which; the last to go is the first to come back.
    house.den(&["rm", "web"]).ok();
    house.new_computer("web");
    let third = id(&house, "web");
    house.den(&["rm", "web"]).ok();
    house.api().get("/v1/computers/web").refusal(409, "ambiguous_name");
    assert_eq!(house.json(&["info", &third])["state"], "trashed");
    assert_eq!(house.json(&["undo", "web"])["computer"]["id"], json!(third));
}

#[test]
fn a_restore_a_merge_and_a_policy_are_taken_back_the_last_first() {
    let house = house();
    house.new_computer("web");
    house.sh("web", "echo one > /root/file").ok();
    house.den(&["fork", "web", "try"]).ok();
    house.sh("try", "echo merged > /root/new").ok();
    let seen = || house.sh("web", "cat /root/file; ls /root/new 2>/dev/null").stdout;
    undo(&house, &json!({"computer": "web"})).refusal(409, "nothing_to_undo");

    house.den(&["net", "web", "guarded"]).ok();
    house.den(&["net", "web", "allow", "example.com"]).ok();
    house.den(&["merge", "try"]).ok();
    house.sh("web", "echo two > /root/file").ok();
    house.den(&["restore", "web@1"]).ok();
    assert_eq!(seen(), "one\n");
    let all = done(&house, "web");
    let shown: Vec<_> = all.iter().map(|(_, kind, possible)| (kind.as_str(), *possible)).collect();
    assert_eq!(shown, [("restore", true), ("merge", true), ("net", true), ("net", false)], "{all:?}");

    let view = house.json(&["undo", "web"]);
    assert_eq!(view["undone"]["kind"], "restore", "{view}");
    assert_eq!(seen(), "two\n/root/new\n");
    // An undo is taken back by its number, and the restore is the last thing again.
    let redo = view["redo"].as_u64().expect("a number").to_string();
    house.den(&["undo", "--number", &redo]).ok();
    assert_eq!(seen(), "one\n");
    house.den(&["undo", "--number", &redo]).refused(1, "taken back already");
    assert_eq!(house.json(&["undo", "web"])["undone"]["kind"], "restore");
    assert_eq!(seen(), "two\n/root/new\n");

    let view = house.json(&["undo", "web"]);
    assert_eq!(view["undone"]["kind"], "merge", "{view}");
    assert_eq!(seen(), "one\n", "what came after the merge went with it");
    let before = view["before"]["number"].as_u64().expect("a state");
    assert_eq!(house.den(&["cat", &format!("web@.{before}"), "/root/file"]).ok(), "two", "and is kept");

    let net = || house.json(&["net", "web"]);
    assert_eq!(house.json(&["undo", "web"])["undone"]["kind"], "net");
    assert_eq!((&net()["posture"], &net()["allow"]), (&json!("guarded"), &json!([])));
    house.den(&["undo"]).ok();
    assert_eq!(net()["posture"], "open");
    undo(&house, &json!({"computer": "web"})).refusal(409, "nothing_to_undo");
    house.den(&["undo", "web", "--as", "x"]).refused(1, "taken back");

    // Who comes in between is not overwritten.
    house.den(&["net", "web", "guarded"]).ok();
    let number = done(&house, "web")[0].0;
    house.den(&["net", "web", "sealed"]).ok();
    undo(&house, &json!({"number": number})).refusal(409, "changed_since");
    assert_eq!(net()["posture"], "sealed");
    undo(&house, &json!({"number": number, "computer": "try"})).refusal(409, "nothing_to_undo");
    undo(&house, &json!({"number": 999_999})).refusal(409, "nothing_to_undo");
    house.api().get("/v1/undo?computer=nobody").refusal(404, "computer_not_found");
}

#[test]
fn what_can_no_longer_be_taken_back_says_so_and_nothing_older_is_taken_for_it() {
    let house = house();
    house.new_computer("web");
    house.new_computer("db");
    house.den(&["net", "db", "sealed"]).ok();
    // The state before a restore is let go.
    house.sh("web", "echo one > /root/file").ok();
    house.sh("web", "echo two > /root/file").ok();
    house.den(&["restore", "web@1"]).ok();
    let states = house.json(&["snaps", "web"]);
    let before = states.as_array().expect("states").iter().rfind(|state| state["kind"] == "restore").expect("a state");
    house.den(&["snaps", "rm", &format!("web@.{}", before["number"])]).ok();
    house.den(&["undo"]).refused(1, "let go");
    undo(&house, &json!({"computer": "web"})).refusal(410, "undo_gone");
    assert_eq!(house.sh("web", "cat /root/file").ok(), "one");

    // For good at once, and out of the trash.
    let first = id(&house, "web");
    house.den(&["rm", "web", "--now"]).ok();
    for body in [json!({}), json!({"computer": "web"}), json!({"computer": first})] {
        undo(&house, &body).refusal(410, "undo_gone");
    }
    house.new_computer("web");
    let second = id(&house, "web");
    house.den(&["rm", "web"]).ok();
    house.den(&["rm", "web"]).refused(1, "in the trash");
    house.den(&["rm", "web", "--force"]).ok();
    assert_eq!(trash(&house), ["web"], "twice is not for good");
    house.den(&["trash", "empty", "db"]).refused(1, "is not in the trash");
    house.api().delete("/v1/trash/nobody").refusal(404, "computer_not_found");
    house.api().delete("/v1/computers/web?now=perhaps").refusal(400, "bad_request");
    assert_eq!(house.json(&["trash", "empty", "web"])["id"], json!(second));
    house.den(&["undo"]).refused(1, "emptied");
    assert_eq!(house.json(&["net", "db"])["posture"], "sealed", "nothing older was taken back");
    house.den(&["undo", "db"]).ok();
    assert_eq!(house.json(&["net", "db"])["posture"], "open");

    // All at once; nothing is left of any.
    for name in ["a", "b"] {
        house.new_computer(name);
    }
    house.den(&["rm", "a", "b"]).ok();
    assert_eq!(trash(&house), ["a", "b"]);
    house.den(&["rm", "b", "--now"]).ok();
    assert_eq!(trash(&house), ["a"]);
    house.den(&["trash", "empty"]).ok();
    assert!(trash(&house).is_empty());
    house.api().get("/v1/computers/a").refusal(404, "computer_not_found");
    let left = [id(&house, "db")];
    eventually(LONG, "no disk is left", || house.disks() == left);
}

#[test]
fn the_trash_is_emptied_by_age() {
    let mut house = House::with(DEN, keeping("24h"));
    house.new_computer("old");
    house.new_computer("web");
    house.den(&["rm", "old"]).ok();
    house.kill_serve();
    house.set_trash_for("1s");
    house.start();
    let gone = |name: &str| {
        house.api().get(&format!("/v1/computers/{name}")).status == 404 && !trash(&house).contains(&name.to_owned())
    };
    eventually(LONG, "what lay there before is gone", || gone("old"));
    house.den(&["rm", "web"]).ok();
    eventually(LONG, "what is removed goes after a while", || gone("web"));
    eventually(LONG, "no disk is left", || house.disks().is_empty());
    house.den(&["undo", "web"]).refused(1, "as long as `--trash-for` says");
    assert!(house.log().contains("it lay in the trash for as long as"), "the log says so");
    assert_eq!(kinds(&house, "removed"), 2);
}

#[test]
fn a_disk_short_of_room_loses_the_oldest_of_the_trash() {
    let mut options = keeping("24h");
    options.args = ["--disk-size", "1GiB"].map(str::to_owned).to_vec();
    let house = House::with(DEN, options);
    house.new_computer("first");
    let mut rounds = 0;
    // More than there is room for, whatever the file system takes for itself.
    while !house.log().contains("short of room") {
        rounds += 1;
        assert!(rounds <= 20, "the trash took more than there is");
        let name = format!("c{rounds}");
        house.new_computer(&name);
        house.sh(&name, "head -c 120M /dev/urandom > /root/large; sync");
        house.den(&["rm", &name]).ok();
        // What that makes go is gone, or nothing is.
        house.json(&["trash"]);
        std::thread::sleep(Duration::from_millis(200));
    }
    eventually(LONG, "the oldest is gone", || !trash(&house).contains(&"c1".to_owned()));
    assert!(trash(&house).contains(&format!("c{rounds}")), "the newest lies there: {:?}", trash(&house));
    house.den(&["undo", "c1"]).refused(1, "short of room");
    assert_eq!(house.json(&["info", "first"])["state"], "running", "what is not in the trash stays");
}

/// A daemon dies at each of `points` while `act` goes on; then what is left is emptied, and nothing stays.
fn each_point(points: &[&str], prepare: impl Fn(&House), act: impl Fn(&House), check: impl Fn(&House, &str)) {
    at_each_point_with(
        DEN,
        &keeping("24h"),
        points,
        |_| {},
        prepare,
        act,
        |house, when, _| {
            check(house, when);
            house.den(&["rm", "--all"]).ok();
            house.den(&["trash", "empty"]).ok();
            eventually(LONG, &format!("{when}: no disk is left"), || house.disks().is_empty());
        },
    );
}

fn ask(house: &House, method: &str, path: &str, body: &Value) {
    let json = [("content-type", "application/json")];
    let reply = house.api().open(method, path, &json, body.to_string().as_bytes());
    assert!(reply.is_err(), "{method} {path} was answered");
}

fn one_with_a_file(house: &House) {
    house.new_computer("web");
    house.sh("web", "echo here > /root/file").ok();
    house.den(&["exec", "web", "-d", "--", "sleep", "3000"]).ok();
}

#[test]
fn a_kill_at_each_point_of_removing_leaves_it_in_the_trash() {
    each_point(
        &TRASH,
        one_with_a_file,
        |house| ask(house, "DELETE", "/v1/computers/web", &Value::Null),
        |house, when| {
            assert_eq!((trash(house), house.json(&["ls"])), (vec!["web".into()], json!([])), "{when}");
            let id = id(house, "web");
            house.new_computer("web");
            house.den(&["rm", "web", "--now"]).ok();
            let view = undo(house, &json!({"computer": id, "as": "back"})).expect(200).json();
            assert_eq!(view["computer"]["name"], "back", "{when}");
            if house.json(&["info", "back"])["state"] != "running" {
                house.den(&["start", "back"]).ok();
            }
            assert_eq!(house.sh("back", "cat /root/file; pgrep -cfx 'sleep 3000'").stdout, "here\n0\n", "{when}");
        },
    );
}

#[test]
fn a_kill_at_each_point_of_taking_out_leaves_it_in_the_trash_or_out() {
    for name in [None, Some("other")] {
        let called = name.unwrap_or("web");
        each_point(
            &UNDELETE,
            |house| {
                one_with_a_file(house);
                house.den(&["rm", "web"]).ok();
            },
            |house| ask(house, "POST", "/v1/undo", &json!({"computer": "web", "as": name})),
            |house, when| {
                let (lies, there) = (trash(house), names(&house.json(&["ls"])));
                match there.is_empty() {
                    true => {
                        assert_eq!(lies, ["web"], "{when}");
                        let body = json!({"computer": "web", "as": name});
                        undo(house, &body).expect(200);
                    }
                    false => {
                        assert_eq!((there, lies), (vec![called.to_owned()], vec![]), "{when}");
                        let id = id(house, called);
                        undo(house, &json!({"computer": id})).refusal(409, "nothing_to_undo");
                    }
                }
                if house.json(&["info", called])["state"] != "running" {
                    house.den(&["start", called]).ok();
                }
                let seen = house.sh(called, "cat /root/file /etc/hostname; hostname").ok();
                assert_eq!(seen, format!("here\n{called}\n{called}"), "{when}");
            },
        );
    }
}

#[test]
fn a_kill_at_each_point_of_emptying_leaves_nothing() {
    each_point(
        &EMPTY,
        |house| {
            one_with_a_file(house);
            house.den(&["rm", "web"]).ok();
        },
        |house| ask(house, "DELETE", "/v1/trash", &Value::Null),
        |house, when| {
            eventually(LONG, &format!("{when}: it is gone"), || trash(house).is_empty());
            eventually(LONG, &format!("{when}: its disk is gone"), || house.disks().is_empty());
            undo(house, &json!({"computer": "web"})).refusal(410, "undo_gone");
            house.new_computer("web");
        },
    );
}

#[test]
fn a_kill_while_a_restore_is_taken_back_leaves_it_taken_back_or_not() {
    each_point(
        &["restore.row", "restore.prepared", "restore.killed", "restore.away", "restore.swapped", "restore.booted"],
        |house| {
            house.new_computer("web");
            house.sh("web", "echo one > /root/file").ok();
            house.sh("web", "echo two > /root/file").ok();
            house.den(&["restore", "web@1"]).ok();
        },
        |house| ask(house, "POST", "/v1/undo", &json!({"computer": "web"})),
        |house, when| {
            if house.json(&["info", "web"])["state"] != "running" {
                house.den(&["start", "web"]).ok();
            }
            let seen = house.sh("web", "cat /root/file").ok();
            let id = id(house, "web");
            let done = done(house, &id);
            let last = done.last().expect("the restore");
            assert_eq!(seen == "two", !last.2, "{when}: what is and what is recorded agree: {seen} {done:?}");
            if seen == "one" {
                house.den(&["undo", "web"]).ok();
            }
            assert_eq!(house.sh("web", "cat /root/file").ok(), "two", "{when}");
            undo(house, &json!({"computer": id})).refusal(409, "nothing_to_undo");
        },
    );
}
