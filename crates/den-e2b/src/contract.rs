//! `openapi.json` beside this crate's sources, held against the routes.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

/// Every path of the control plane that a router is given in the sources.
fn routed(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            routed(&path, found);
        } else if path.file_name().is_some_and(|name| name != "contract.rs") {
            let text = fs::read_to_string(&path).expect("a source");
            found.extend(text.split(".route(\"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
        }
    }
}

/// Whether a path is the data plane's: calls of Connect, and envd's own.
fn is_data(path: &str) -> bool {
    ["/files", "/files/compose", "/envs", "/metrics"].contains(&path)
        || path.contains(".Process/")
        || path.contains(".Filesystem/")
}

#[test]
fn the_contract_has_every_route_and_no_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("openapi.json")).expect("openapi.json");
    let contract: Value = serde_json::from_str(&text).expect("it is JSON");
    let paths = contract["paths"].as_object().expect("paths");
    let described: BTreeSet<String> = paths.keys().filter(|path| !is_data(path)).cloned().collect();
    let mut found = BTreeSet::new();
    routed(&root.join("src"), &mut found);
    assert_eq!(described, found, "described, and routed");
    assert!(paths.keys().any(|path| is_data(path)));
}
