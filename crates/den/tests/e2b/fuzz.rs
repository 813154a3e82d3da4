//! What schemathesis makes of the interface's description, thrown at a real daemon.
//!
//! The description is `crates/den-e2b/openapi.json`. Names in it are put in place of free text where a request is to
//! reach something, and what makes or ends much is bounded; its answers stay as they are written there.

use std::path::PathBuf;
use std::process::Command;

use den_testkit::{Api, House};
use serde_json::{Value, json};

use super::{DEN, ask, create, key, ran};

/// The version that is installed.
const VERSION: &str = "4.32.5";

/// What answers are held against.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance,negative_data_rejection,\
                      missing_required_header,ignored_auth,unsupported_method,allow_header_conformance";

/// Paths of the data plane.
const DATA: &str = "^/(files|envs|metrics|filesystem|process)";

/// Examples of each operation, beside those at the borders of its values.
const EXAMPLES: &str = "5";

/// The program, installed if it is missing.
fn schemathesis() -> PathBuf {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/e2b");
    let place = root.join(format!("schemathesis-{VERSION}"));
    // The last that is put there, so that one that broke off is made again.
    let ready = place.join("ready");
    if !ready.exists() {
        std::fs::create_dir_all(&root).expect("a folder");
        let run = |command: &mut Command| assert!(command.status().expect("a program").success(), "{command:?}");
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&place));
        let package = format!("schemathesis=={VERSION}");
        run(Command::new(place.join("bin/pip")).args(["install", "--quiet", &package]));
        std::fs::write(&ready, VERSION).expect("a mark");
    }
    place.join("bin/schemathesis")
}

/// The description as it is.
fn contract() -> Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../den-e2b/openapi.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("openapi.json")).expect("it is JSON")
}

fn fuzz(house: &House, contract: &Value, words: &[&str]) {
    let scratch = house.scratch();
    let file = scratch.join("openapi.json");
    std::fs::write(&file, contract.to_string()).expect("a file");
    let mut command = Command::new(schemathesis());
    command.current_dir(&scratch).arg("run").arg(&file);
    command.args(["--url", &format!("http://{}", house.api().addr), "--checks", CHECKS]);
    // The seed is fixed: what fails here fails again.
    command.args(["--phases", "coverage,fuzzing", "--max-examples", EXAMPLES, "--seed", "1", "--no-shrink"]);
    command.args(["--no-color", "--warnings", "off", "--continue-on-failure"]).args(words);
    ran(&mut command);
}

#[test]
fn python_schemathesis_finds_nothing_in_the_control_plane() {
    let house = House::open(DEN);
    let (lasting, ends, killed) = (create(&house, 3600), create(&house, 3600), create(&house, 3600));
    let (status, made) = ask(&house, "POST", "/v3/templates", &json!({ "name": "fuzzed" }));
    assert_eq!(status, 202, "{made}");
    let (status, volume) = ask(&house, "POST", "/volumes", &json!({ "name": "fuzzed" }));
    assert_eq!(status, 201, "{volume}");
    let mut contract = contract();
    let parameters = &mut contract["components"]["parameters"];
    for (name, values) in [
        ("sandbox", json!([lasting, "inone", "x-y"])),
        ("template", json!([made["templateID"], "fuzzed", "base", "no:such", "no-such"])),
        ("build", json!([made["buildID"], "none"])),
        ("hash", json!(["0".repeat(64), "none"])),
        ("volume", json!([volume["volumeID"], "none"])),
    ] {
        parameters[name]["schema"] = json!({ "enum": values });
    }
    for (path, method, ids) in [
        ("/sandboxes/{id}", "delete", json!([killed, "inone"])),
        ("/sandboxes/{id}/timeout", "post", json!([ends, "inone"])),
        ("/volumes/{id}", "delete", json!(["none"])),
        // Forks of what runs are computers by the hundred.
        ("/sandboxes/{id}/fork", "post", json!(["inone"])),
    ] {
        let own = json!([{ "name": "id", "in": "path", "required": true, "schema": { "enum": ids } }]);
        contract["paths"][path][method]["parameters"] = own;
    }
    // No name that is asked for as one that is not there.
    for (path, kind) in [("/volumes", json!("string")), ("/sandboxes/{id}/snapshots", json!(["string", "null"]))] {
        let body = &mut contract["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"];
        body["properties"]["name"] = json!({ "type": kind, "pattern": "^fuzz-[a-z]{1,20}$" });
    }
    let new = &mut contract["components"]["schemas"]["NewSandbox"];
    new["properties"]["templateID"] = json!({ "enum": ["base", null, "no-such"] });
    new["properties"]["timeout"]["maximum"] = json!(60);
    let key = format!("X-API-Key: {}", key(&house));
    let token = format!("Authorization: Bearer {}", volume["token"].as_str().expect("a token"));
    fuzz(&house, &contract, &["--header", &key, "--header", &token, "--exclude-path-regex", DATA]);
    let (status, body) = ask(&house, "GET", &format!("/sandboxes/{lasting}"), &Value::Null);
    assert_eq!(status, 200, "{body}");
    house.close();
}

#[test]
fn python_schemathesis_finds_nothing_in_the_data_plane() {
    let house = House::open(DEN);
    let id = create(&house, 3600);
    let (_, view) = ask(&house, "GET", &format!("/sandboxes/{id}"), &Value::Null);
    let token = view["envdAccessToken"].as_str().expect("a token");
    let headers = [("E2b-Sandbox-Id", id.as_str()), ("E2b-Sandbox-Port", "49983"), ("X-Access-Token", token)];
    let headers = headers.map(|(name, value)| format!("{name}: {value}"));
    let mut words = vec!["--include-path-regex", DATA];
    words.extend(headers.iter().flat_map(|header| ["--header", header.as_str()]));
    fuzz(&house, &contract(), &words);
    house.close();
}

#[test]
fn every_described_method_is_taken_and_no_other() {
    let house = House::open(DEN);
    let (contract, key, api) = (contract(), key(&house), house.api());
    for (path, item) in contract["paths"].as_object().expect("paths") {
        if path.starts_with("/files") || ["/envs", "/metrics"].contains(&path.as_str()) || path.contains('.') {
            continue;
        }
        let place = path.replace("{id}", "none").replace(['{', '}'], "");
        let methods = item.as_object().expect("methods").keys().filter(|name| *name != "parameters");
        let mut described: Vec<String> = methods.map(|name| name.to_uppercase()).collect();
        if described.iter().any(|name| name == "GET") {
            described.push("HEAD".to_owned());
        }
        described.sort();
        assert_eq!(allowed(&api, &key, &place), described, "{path}");
    }
    house.close();
}

/// What a path says that it takes, to a method that it does not take.
fn allowed(api: &Api, key: &str, path: &str) -> Vec<String> {
    let reply = api.request("TRACE", path, &[("x-api-key", key)], b"");
    assert_eq!(reply.status, 405, "{path}: {}", reply.text());
    let mut all: Vec<String> =
        reply.header("allow").unwrap_or("").split(',').map(|name| name.trim().to_owned()).collect();
    all.sort();
    all
}
