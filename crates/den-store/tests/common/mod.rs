//! Computers and steps to write.
#![allow(dead_code, missing_docs)]

use std::collections::BTreeMap;

use den_model::{Bytes, Computer, ComputerId, ComputerSpec, Cpus, Limits, State, Step, StepKind, Tier};
use den_store::{NewUndo, Store, StoreError};
use uuid::Uuid;

pub fn id(number: u128) -> ComputerId {
    ComputerId::from_uuid(Uuid::from_u128(number))
}

pub fn computer(number: u128, name: &str) -> Computer {
    Computer {
        id: id(number),
        spec: ComputerSpec {
            name: name.parse().unwrap(),
            image: "base".parse().unwrap(),
            image_digest: format!("sha256:{}", "0".repeat(64)),
            tier: Tier::Container,
            limits: Limits { cpus: Cpus(2000), memory: Bytes::gib(1), disk: Bytes::gib(8), pids: 1024 },
            env: BTreeMap::from([("LANG".to_owned(), "C.UTF-8".to_owned())]),
            labels: BTreeMap::from([(
                "parity".to_owned(),
                if number.is_multiple_of(2) { "even" } else { "odd" }.to_owned(),
            )]),
            entrypoint: false,
            pool: Default::default(),
            volumes: Vec::new(),
        },
        state: State::Creating,
        reason: None,
        created_at: number as i64,
        changed_at: number as i64,
        boot_id: "boot-1".to_owned(),
        net: Some("{}".to_owned()),
        parent: None,
    }
}

pub fn step(number: u64) -> Step {
    Step {
        number,
        kind: StepKind::Exec,
        argv: ["sh", "-c", "echo hello; exit 3"].map(str::to_owned).to_vec(),
        user: Some("user".to_owned()),
        cwd: None,
        pty: false,
        who: "cli".to_owned(),
        started_at: 1_700_000_000_000_000 + number as i64,
        ended_at: None,
        end: None,
        output_bytes: 0,
        snapshot: None,
        changes: None,
    }
}

pub fn new_undo(what: &str, at: i64) -> NewUndo {
    NewUndo { at, who: "cli".to_owned(), name: "web".to_owned(), what: what.to_owned(), takes_back: None }
}

pub fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

pub fn code<T: std::fmt::Debug>(result: Result<T, StoreError>) -> &'static str {
    result.unwrap_err().code()
}
