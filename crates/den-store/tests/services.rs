//! Services and their starts, as they are written and read back.

mod common;

use common::{computer, id, step};
use den_model::{Restart, Service, ServiceName, ServiceSpec, State, StepKind};
use den_store::{Durability, Store, StoreError};

const WEB: u128 = 1;

fn named(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn service(name: &str) -> Service {
    let spec = ServiceSpec {
        run: vec!["sleep".to_owned(), "9".to_owned()],
        restart: Restart::OnFailure,
        ready: Some("exec:test -f /x".parse().unwrap()),
        ready_within_ms: 60_000,
        user: None,
        cwd: Some("/srv".to_owned()),
        env: [("A".to_owned(), "b".to_owned())].into(),
        keep_bytes: 64 << 20,
    };
    Service::new(named(name), spec, 7)
}

async fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.insert_computer(&computer(WEB, "web"), None, Durability::Process).await.unwrap();
    (dir, store)
}

async fn one(store: &Store, name: &str) -> Service {
    let all = store.services(id(WEB)).await.unwrap();
    all.into_iter().find(|service| service.name.as_str() == name).unwrap()
}

async fn start(store: &Store, name: &str, number: u64) -> Result<(), StoreError> {
    let step = den_model::Step { kind: StepKind::Service, ..step(number) };
    store.begin_service(id(WEB), named(name), &step, Durability::Process).await
}

#[tokio::test]
async fn services_read_back_as_they_were_written() {
    let (_dir, store) = store().await;
    store.insert_services(id(WEB), vec![service("db"), service("app")], Durability::Power).await.unwrap();
    assert_eq!(store.services(id(WEB)).await.unwrap(), [service("app"), service("db")]);
    let again = vec![service("new"), service("app")];
    let refused = store.insert_services(id(WEB), again, Durability::Process).await;
    assert!(matches!(refused, Err(StoreError::ServiceExists { service, .. }) if service.as_str() == "app"));
    assert_eq!(store.services(id(WEB)).await.unwrap().len(), 2, "all or none");
    let refused = store.insert_service(id(9), service("app"), Durability::Process).await;
    assert!(matches!(refused, Err(StoreError::NoSuchComputer { .. })));
    store.delete_service(id(WEB), named("app"), Durability::Process).await.unwrap();
    let refused = store.delete_service(id(WEB), named("app"), Durability::Process).await;
    assert!(matches!(refused, Err(StoreError::NoSuchService { .. })));
    store.delete_computer(id(WEB), Durability::Process).await.unwrap();
    assert_eq!(store.services(id(WEB)).await.unwrap(), [], "they go with their computer");
}

#[tokio::test]
async fn a_start_is_counted_with_its_step() {
    let (_dir, store) = store().await;
    store.insert_service(id(WEB), service("app"), Durability::Process).await.unwrap();
    let seen = async || {
        let Service { step, begun, ready, restarts, wanted, .. } = one(&store, "app").await;
        (step, begun, ready, restarts, wanted)
    };
    start(&store, "app", 1).await.unwrap();
    store.service_ready(id(WEB), named("app"), 1, Durability::Process).await.unwrap();
    assert_eq!(seen().await, (1, true, true, 0, true));
    start(&store, "app", 2).await.unwrap();
    store.service_ready(id(WEB), named("app"), 1, Durability::Process).await.unwrap();
    assert_eq!(seen().await, (2, true, false, 1, true), "that was said of another start");
    // Neither half of a start without the other.
    assert!(matches!(start(&store, "app", 2).await, Err(StoreError::StepExists { .. })));
    assert_eq!(seen().await.3, 1);
    assert!(matches!(start(&store, "gone", 3).await, Err(StoreError::NoSuchService { .. })));
    assert_eq!(store.get_step(id(WEB), 3).await.unwrap(), None);
    // What is asked for, and a start of the computer, begin anew.
    store.want_service(id(WEB), named("app"), false, Durability::Process).await.unwrap();
    assert_eq!(seen().await, (2, true, false, 1, false));
    store.want_service(id(WEB), named("app"), true, Durability::Process).await.unwrap();
    assert_eq!(seen().await, (2, false, false, 0, true));
    start(&store, "app", 3).await.unwrap();
    start(&store, "app", 4).await.unwrap();
    assert_eq!(seen().await, (4, true, false, 1, true));
    for (state, expected) in
        [(State::Running, (4, true, false, 1, true)), (State::Starting, (4, false, false, 0, true))]
    {
        store.set_state(id(WEB), state, None, 9, None, Durability::Process).await.unwrap();
        assert_eq!(seen().await, expected, "{state}");
    }
}
