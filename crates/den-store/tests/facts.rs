//! What is written is read back, and what is refused says why.

mod common;

use common::{computer, id, step};
use den_model::{Computer, State, StepEnd};
use den_store::{
    Durability::{Power, Process},
    Filter, Idempotency, NetChange, Order, QUEUE_MAX, Store, StoreError,
};

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn code<T: std::fmt::Debug>(result: Result<T, StoreError>) -> &'static str {
    result.unwrap_err().code()
}

#[tokio::test]
async fn a_computer_is_read_back_as_it_was_written() {
    let (_dir, store) = store();
    let mut web = computer(1, "web");
    store.insert_computer(&web, None, Power).await.unwrap();
    assert_eq!(store.get_computer(web.id).await.unwrap(), Some(web.clone()));
    assert_eq!(store.find_computer(&web.spec.name).await.unwrap(), Some(web.clone()));
    assert_eq!(store.get_computer(id(2)).await.unwrap(), None);

    let why = Some("the agent did not answer".to_owned());
    store.set_state(web.id, State::Failed, why.clone(), 9, None, Process).await.unwrap();
    (web.state, web.reason, web.changed_at) = (State::Failed, why, 9);
    assert_eq!(store.get_computer(web.id).await.unwrap(), Some(web.clone()));
    store.set_state(web.id, State::Starting, None, 10, Some("boot-2".into()), Process).await.unwrap();
    let now = store.get_computer(web.id).await.unwrap().unwrap();
    assert_eq!((now.boot_id.as_str(), now.reason), ("boot-2", None));

    store.delete_computer(web.id, Power).await.unwrap();
    assert_eq!(store.all_computers().await.unwrap(), vec![]);
    assert_eq!(code(store.delete_computer(web.id, Process).await), "no_such_computer");
    assert_eq!(code(store.set_state(web.id, State::Running, None, 0, None, Process).await), "no_such_computer");
    store.check().await.unwrap();
}

#[tokio::test]
async fn a_name_is_taken_until_its_computer_is_being_removed() {
    let (_dir, store) = store();
    store.insert_computer(&computer(1, "web"), None, Process).await.unwrap();
    match store.insert_computer(&computer(2, "web"), None, Process).await {
        Err(StoreError::NameTaken { name, holder }) => assert_eq!((name.as_str(), holder), ("web", id(1))),
        other => panic!("{other:?}"),
    }
    assert_eq!(code(store.insert_computer(&computer(1, "other"), None, Process).await), "computer_exists");
    assert_eq!(code(store.insert_computer(&computer(1, "web"), None, Process).await), "computer_exists");
    store.set_state(id(1), State::Removing, None, 5, None, Process).await.unwrap();
    store.insert_computer(&computer(2, "web"), None, Process).await.unwrap();
    assert_eq!(store.find_computer(&"web".parse().unwrap()).await.unwrap().unwrap().id, id(2));
}

#[tokio::test]
async fn a_repeated_create_makes_nothing_and_says_what_the_first_made() {
    let (_dir, store) = store();
    let asked = |request_hash| Some(Idempotency { key: "k", request_hash });
    // A create that fails has not used its key.
    store.insert_computer(&computer(9, "web"), None, Process).await.unwrap();
    assert_eq!(code(store.insert_computer(&computer(1, "web"), asked("a"), Power).await), "name_taken");
    store.insert_computer(&computer(1, "one"), asked("a"), Power).await.unwrap();
    match store.insert_computer(&computer(2, "one"), asked("a"), Power).await {
        Err(StoreError::IdempotencyReplay { computer }) => assert_eq!(computer, id(1)),
        other => panic!("{other:?}"),
    }
    assert_eq!(code(store.insert_computer(&computer(3, "three"), asked("b"), Power).await), "idempotency_mismatch");
    assert_eq!(store.all_computers().await.unwrap().len(), 2);

    store.delete_computer(id(1), Process).await.unwrap();
    assert_eq!(code(store.insert_computer(&computer(4, "one"), asked("a"), Power).await), "idempotency_replay");
    assert_eq!(store.prune_idempotency(2, Process).await.unwrap(), 1);
    store.insert_computer(&computer(4, "one"), asked("a"), Power).await.unwrap();
}

#[tokio::test]
async fn a_list_goes_on_where_the_last_one_ended() {
    let (_dir, store) = store();
    for number in (1..=10).rev() {
        store.insert_computer(&computer(number, &format!("c{number}")), None, Process).await.unwrap();
    }
    store.set_state(id(4), State::Running, None, 0, None, Process).await.unwrap();
    let ids = |list: Vec<Computer>| list.iter().map(|c| c.id.uuid().as_u128()).collect::<Vec<_>>();
    let all = Filter::default();
    assert_eq!(ids(store.list_computers(None, 3, all.clone()).await.unwrap()), [1, 2, 3]);
    assert_eq!(ids(store.list_computers(Some(id(3)), 100, all).await.unwrap()), [4, 5, 6, 7, 8, 9, 10]);
    let mut even = Filter { labels: [("parity".into(), "even".into())].into(), ..Filter::default() };
    assert_eq!(ids(store.list_computers(Some(id(2)), 2, even.clone()).await.unwrap()), [4, 6]);
    even.state = Some(State::Running);
    assert_eq!(ids(store.list_computers(None, 100, even).await.unwrap()), [4]);
}

#[tokio::test]
async fn steps_are_counted_for_ever_and_end_once() {
    let (_dir, store) = store();
    store.insert_computer(&computer(1, "web"), None, Process).await.unwrap();
    assert_eq!(store.last_step_number(id(1)).await.unwrap(), 0);
    for number in 1..=5 {
        store.insert_step(id(1), &step(number), Process).await.unwrap();
    }
    assert_eq!(code(store.insert_step(id(1), &step(5), Process).await), "step_exists");
    assert_eq!(code(store.insert_step(id(2), &step(1), Process).await), "no_such_computer");

    let ends = [
        StepEnd::Exited { code: 3 },
        StepEnd::Signaled { signal: 9 },
        StepEnd::NotStarted { code: 127, message: "sh: x: not found".into() },
        StepEnd::Lost,
    ];
    for (number, end) in (1..).zip(&ends) {
        store.end_step(id(1), number, 77, end, 12, Process).await.unwrap();
        let ended = store.get_step(id(1), number).await.unwrap().unwrap();
        assert_eq!((ended.end.as_ref(), ended.ended_at, ended.output_bytes), (Some(end), Some(77), 12));
    }
    assert_eq!(code(store.end_step(id(1), 1, 78, &ends[3], 0, Process).await), "no_such_step");
    assert_eq!(store.running_steps(id(1)).await.unwrap(), vec![step(5)]);

    let numbers = async |after, limit, order| {
        store.steps(id(1), after, limit, order).await.unwrap().iter().map(|s| s.number).collect::<Vec<_>>()
    };
    assert_eq!(numbers(None, 2, Order::OldestFirst).await, [1, 2]);
    assert_eq!(numbers(Some(2), 9, Order::OldestFirst).await, [3, 4, 5]);
    assert_eq!(numbers(None, 2, Order::NewestFirst).await, [5, 4]);
    assert_eq!(numbers(Some(4), 9, Order::NewestFirst).await, [3, 2, 1]);

    store.end_step(id(1), 5, 79, &ends[0], 0, Process).await.unwrap();
    assert_eq!(store.prune_steps(id(1), 100, Process).await.unwrap(), 5);
    assert_eq!(store.last_step_number(id(1)).await.unwrap(), 5);
    store.insert_step(id(1), &step(6), Process).await.unwrap();
    store.delete_computer(id(1), Process).await.unwrap();
    assert_eq!(store.get_step(id(1), 6).await.unwrap(), None);
}

#[tokio::test]
async fn a_batch_goes_on_past_what_fails_in_it() {
    let (_dir, store) = store();
    let asked = Some(Idempotency { key: "k", request_hash: "h" });
    // All queued before the first is awaited, so they share batches.
    let writes: Vec<_> = (1..=200)
        .map(|number| {
            let name = if number % 3 == 0 { "same".to_owned() } else { format!("c{number}") };
            store.insert_computer(&computer(number, &name), asked.filter(|_| number % 5 == 0), Power)
        })
        .collect();
    let mut made = 0;
    for write in writes {
        made += usize::from(write.await.is_ok());
    }
    // 1 `same`; of the 26 others that share the key, 1.
    assert_eq!(made, 1 + 1 + (1..=200).filter(|n| n % 3 != 0 && n % 5 != 0).count());
    assert_eq!(store.all_computers().await.unwrap().len(), made);
    store.check().await.unwrap();
}

#[tokio::test]
async fn a_full_queue_makes_callers_wait_and_loses_nothing() {
    let (_dir, store) = store();
    store.insert_computer(&computer(1, "web"), None, Process).await.unwrap();
    let count = 3 * QUEUE_MAX as u64;
    let writes: Vec<_> = (1..=count).map(|number| store.insert_step(id(1), &step(number), Process)).collect();
    for write in writes {
        write.await.unwrap();
    }
    assert_eq!(store.last_step_number(id(1)).await.unwrap(), count);
    assert_eq!(store.running_steps(id(1)).await.unwrap().len() as u64, count);
}

#[tokio::test]
async fn a_write_happens_though_nobody_awaits_it() {
    let (dir, store) = store();
    drop(store.insert_computer(&computer(1, "web"), None, Process));
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.all_computers().await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_a_computer_may_reach_is_kept_with_who_changed_it() {
    let (_dir, store) = store();
    let mut old = computer(1, "old");
    old.net = None; // As in a row from before there was a gate.
    store.insert_computer(&old, None, Process).await.unwrap();
    assert_eq!(store.get_computer(old.id).await.unwrap().unwrap().net, None);
    assert_eq!(store.net_changes(old.id, 10).await.unwrap(), vec![]);

    let change = |at: i64| NetChange { at, who: "api".into(), net: format!("{{\"posture\":\"open\",\"n\":{at}}}") };
    for at in 1..=3 {
        store.set_net(old.id, change(at), Power).await.unwrap();
    }
    assert_eq!(store.get_computer(old.id).await.unwrap().unwrap().net, Some(change(3).net));
    assert_eq!(store.net_changes(old.id, 2).await.unwrap(), vec![change(3), change(2)]);
    assert_eq!(code(store.set_net(id(9), change(1), Process).await), "no_such_computer");

    store.delete_computer(old.id, Process).await.unwrap();
    assert_eq!(store.net_changes(old.id, 10).await.unwrap(), vec![]);
}

#[tokio::test]
async fn a_store_from_before_the_gate_is_migrated() {
    let (dir, store) = store();
    let web = computer(1, "web");
    store.insert_computer(&web, None, Power).await.unwrap();
    drop(store);
    // Back to the first schema, as the first version wrote it.
    let path = dir.path().join(den_store::FILE);
    let mut undone = Err("locked".to_owned());
    for _ in 0..100 {
        let connection = rusqlite::Connection::open(&path).unwrap();
        undone = connection
            .execute_batch("ALTER TABLE computers DROP COLUMN net; DROP TABLE net_changes; PRAGMA user_version = 1")
            .map_err(|error| error.to_string());
        if undone.is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    undone.unwrap();
    let store = Store::open(dir.path()).unwrap();
    let found = store.get_computer(web.id).await.unwrap().unwrap();
    assert_eq!((found.net.as_ref(), found.spec), (None, web.spec));
    store.check().await.unwrap();
}
