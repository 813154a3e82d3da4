//! PID 1 taken over by root inside: its code overwritten, so that it dies or answers nobody any more.

use std::time::Duration;

use den_testkit::eventually;

use crate::world::World;

/// Overwrites the code of PID 1 in its memory.
fn overwrite(with: &str) -> String {
    format!(
        "fill = bytes.fromhex('{with}')\n\
         with open('/proc/1/maps') as maps, open('/proc/1/mem', 'r+b', 0) as mem:\n\
         \x20for line in maps:\n\
         \x20\x20f = line.split()\n\
         \x20\x20if 'x' in f[1] and len(f) > 5 and not f[5].startswith('['):\n\
         \x20\x20\x20a, b = (int(x, 16) for x in f[0].split('-'))\n\
         \x20\x20\x20mem.seek(a); mem.write(fill * ((b - a) // len(fill)))"
    )
}

#[test]
fn an_agent_that_is_killed_ends_its_computer_alone() {
    let world = World::new();
    let script = overwrite(if cfg!(target_arch = "x86_64") { "cc" } else { "00" });
    world.withstand(&script);
    eventually(Duration::from_secs(30), "it is failed", || world.house.json(&["info", "c"])["state"] == "failed");
    assert!(world.house.json(&["info", "c"])["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
    // The program on the host is whole: another computer runs of it.
    world.house.den(&["start", "c"]).ok();
    world.attacker_goes_on();
}

#[test]
fn an_agent_that_answers_nobody_is_said_and_ended() {
    if !cfg!(target_arch = "x86_64") {
        return; // The bytes below are code of that machine.
    }
    let world = World::new();
    // Wherever it is just then, it slides to a jump to itself.
    let script = overwrite(&("90".repeat(4094) + "ebfe"));
    let reply = world
        .house
        .api()
        .post("/v1/computers/c/steps", &serde_json::json!({"argv": ["python3", "-c", script], "detach": true}));
    reply.expect(202);
    std::thread::sleep(Duration::from_secs(1));
    // A command and a file are refused after a while, and not kept waiting for ever.
    let asked = [
        ("GET", "/v1/computers/c/files/list?path=/root", ""),
        ("GET", "/v1/computers/c/files?path=/etc/hostname", ""),
        ("GET", "/v1/computers/c/files/stat?path=/etc", ""),
        ("PUT", "/v1/computers/c/files?path=/root/new", "text"),
        ("POST", "/v1/computers/c/files", r#"{"op":"mkdir","path":"/root/new"}"#),
        ("GET", "/v1/computers/c/tar?path=/etc", ""),
        ("GET", "/v1/computers/c/ports", ""),
    ];
    std::thread::scope(|scope| {
        let house = &world.house;
        for (method, path, body) in asked {
            scope.spawn(move || {
                let headers = [("content-type", "application/json")];
                let reply = house.api().request(method, path, &headers, body.as_bytes());
                reply.refusal(502, "agent_lost");
            });
        }
        let ran = house.sh("c", "echo never");
        assert!(ran.code != 0 && ran.stdout.is_empty(), "{ran:?}");
        assert!(ran.stderr.contains("does not answer"), "{ran:?}");
    });
    assert_eq!(world.house.sh("n", "cat /root/mine").ok(), "mine");
    world.house.den(&["stop", "c", "--grace", "100ms"]).ok();
    world.house.den(&["start", "c"]).ok();
    world.attacker_goes_on();
}
