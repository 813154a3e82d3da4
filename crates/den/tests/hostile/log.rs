//! A flood of output: what is kept of it ends at the limit, and the host's disk does not fill.

use std::os::unix::fs::MetadataExt as _;

use crate::world::World;

#[test]
fn a_flood_of_output_is_cut() {
    let world = World::new();
    let reply = world.house.api().post(
        "/v1/computers/c/steps",
        &serde_json::json!({
            "argv": ["sh", "-c", "timeout 5 yes flood; echo end"], "detach": true, "keep_bytes": 4 << 20,
        }),
    );
    let step = reply.expect(202).json()["number"].as_u64().expect("a number").to_string();
    let attack = world.withstand("import time; time.sleep(5); print('over')");
    attack.says("over");
    den_testkit::eventually(std::time::Duration::from_secs(60), "the flood is over", || {
        world.house.json(&["log", "c", &step])["status"] != "running"
    });
    let id = world.house.json(&["info", "c"])["id"].as_str().expect("an id").to_owned();
    let log = world.house.data().join("computers").join(id).join("steps").join(format!("{step}.log"));
    // What was cut is a hole in the file.
    let bytes = std::fs::metadata(&log).expect("its log").blocks() * 512;
    assert!(bytes < 16 << 20, "{bytes} bytes are kept of a flood");
    world.attacker_goes_on();
}
