//! EG21: rules that are wider than they look. `*`, a top-level domain and names that anyone may
//! register under need `--force`; blocks under the floor are refused with or without.

use crate::world::{World, answered, blocked};

#[test]
fn a_rule_that_is_too_wide_needs_force() {
    let world = World::guarded(&["good.test"]);
    for rule in
        ["*", "*.com", "*.test", "*.co.uk", "*.github.io", "*.s3.amazonaws.com", "*.vercel.app", "tcp://*:22", "*:443"]
    {
        let ran = world.house.den(&["net", "c", "allow", rule]).refused(1, "too wide");
        code(&world, rule, false, "wide_rule");
        assert!(ran.stderr.contains("--force"), "the error says what to do: {}", ran.stderr);
        let ran = world.house.den(&["new", "x", "--net", "guarded", "--allow", rule]);
        assert!(ran.code != 0 && ran.stderr.contains("too wide"), "{ran:?}");
    }
    for rule in ["10.0.0.0/8", "169.254.169.254", "127.0.0.1:80", "0.0.0.0/0", "198.18.0.0/16", "100.64.0.1:443"] {
        for force in [&[][..], &["--force"]] {
            let mut words = vec!["net", "c", "allow", rule];
            words.extend(force);
            world.house.den(&words).refused(1, "");
            code(&world, rule, !force.is_empty(), "floor_rule");
        }
    }
    // Narrow ones need none; what was refused has changed nothing.
    for rule in ["*.good.test", "*.bucket.s3.amazonaws.com", "*.someone.github.io", "192.0.2.0/24:443"] {
        world.house.den(&["net", "c", "allow", rule]).ok();
    }
    let view = world.house.json(&["net", "c"]);
    assert_eq!(view["allow"].as_array().map(Vec::len), Some(5), "{view}");
    blocked(&world.run("c", "say(**dns('anything.test'))")[0]);
    assert_eq!(world.house.den(&["info", "x"]).code, 1, "no computer came of a refused rule");
    // With force it holds, and to deny widely needs none.
    world.house.den(&["net", "c", "allow", "*.test", "--force"]).ok();
    answered(&world.run("c", "say(**get(address('echo.test'), 'echo.test'))")[0]);
    world.house.den(&["net", "c", "deny", "*.test"]).ok();
    blocked(&world.run("c", "say(**dns('echo.test'))")[0]);
}

/// The stable code of the refusal, from the API.
fn code(world: &World, rule: &str, force: bool, expected: &str) {
    let body = serde_json::json!({"allow_add": [rule], "force": force}).to_string();
    let headers = [("content-type", "application/json")];
    let reply = world.house.api().request("PATCH", "/v1/computers/c/net", &headers, body.as_bytes());
    assert!((400..500).contains(&reply.status), "{}", reply.text());
    assert_eq!(reply.json()["error"]["code"], expected, "{rule}: {}", reply.text());
}
