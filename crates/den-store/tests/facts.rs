//! What is written is read back, and what is refused says why.

mod common;

use common::{code, computer, id, new_undo, step, store};
use den_model::{ChangeCount, Computer, Parent, Snapshot, SnapshotKind, State, Step, StepEnd};
use den_store::{
    Durability::{Power, Process},
    Filter, Idempotency, NetChange, Order, QUEUE_MAX, Store, StoreError,
};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writes_of_one_caller_keep_their_order_beside_those_of_others() {
    let (_dir, store) = store();
    let callers: Vec<_> = (1..=8)
        .map(|caller| {
            let store = store.clone();
            tokio::spawn(async move {
                let name = format!("web-{caller}");
                // Queued behind a flush, in place, or behind others: as it happens.
                let made = store.insert_computer(&computer(caller, &name), None, Power);
                let mut all = Vec::new();
                for number in 1..=200 {
                    all.push(store.insert_step(id(caller), &step(number), Process));
                    all.push(store.end_step(id(caller), number, 9, &StepEnd::Lost, number, Process));
                    if number % 50 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                made.await.unwrap();
                for written in all {
                    written.await.unwrap();
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    for caller in 1..=8 {
        assert_eq!(store.running_steps(id(caller)).await.unwrap(), vec![]);
        assert_eq!(store.last_step_number(id(caller)).await.unwrap(), 200);
    }
    store.check().await.unwrap();
}

#[tokio::test]
async fn a_write_that_meets_no_other_is_done_when_it_is_submitted() {
    let (_dir, store) = store();
    store.insert_computer(&computer(1, "web"), None, Process).await.unwrap();
    // A slow disk makes the thread take over for a while; it is not slow each time.
    for number in 1..=20 {
        let mut written = std::pin::pin!(store.insert_step(id(1), &step(number), Process));
        let mut nobody = std::task::Context::from_waker(std::task::Waker::noop());
        if let std::task::Poll::Ready(written) = written.as_mut().poll(&mut nobody) {
            return written.unwrap();
        }
        written.await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    panic!("each was handed to the thread");
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
        store.set_net(old.id, change(at), new_undo("{}", at), Power).await.unwrap();
    }
    assert_eq!(store.get_computer(old.id).await.unwrap().unwrap().net, Some(change(3).net));
    assert_eq!(store.net_changes(old.id, 2).await.unwrap(), vec![change(3), change(2)]);
    assert_eq!(code(store.set_net(id(9), change(1), new_undo("{}", 1), Process).await), "no_such_computer");

    store.delete_computer(old.id, Process).await.unwrap();
    assert_eq!(store.net_changes(old.id, 10).await.unwrap(), vec![]);
}

fn kept(number: u64) -> Snapshot {
    Snapshot {
        number,
        step: number * 10,
        label: None,
        kind: SnapshotKind::Auto,
        created_at: 1_000 + number as i64,
        frozen_us: 2_500,
        torn: false,
        generation: 100 + number,
        parent: number.checked_sub(1),
        went_to: None,
        dropped: false,
    }
}

#[tokio::test]
async fn kept_states_are_read_back_as_they_were_written() {
    let (_dir, store) = store();
    store.insert_computer(&computer(1, "web"), None, Process).await.unwrap();
    store.insert_computer(&computer(2, "db"), None, Process).await.unwrap();
    let named = Snapshot {
        label: Some("clean".parse().unwrap()),
        kind: SnapshotKind::Named,
        torn: true,
        went_to: Some(1),
        ..kept(2)
    };
    for snapshot in [&kept(0), &kept(1), &named] {
        store.insert_snapshot(id(1), snapshot, Power).await.unwrap();
    }
    store.insert_snapshot(id(2), &kept(0), Process).await.unwrap();
    assert_eq!(store.snapshots(id(1)).await.unwrap(), [kept(0), kept(1), named.clone()]);
    assert_eq!(store.all_snapshots().await.unwrap().last(), Some(&(id(2), kept(0))));
    store.set_snapshot_taken(id(1), 1, 777, 5, true, Process).await.unwrap();
    let known = Snapshot { generation: 777, frozen_us: 5, torn: true, ..kept(1) };
    assert_eq!(store.snapshots(id(1)).await.unwrap()[1], known);

    assert_eq!(code(store.insert_snapshot(id(1), &kept(1), Process).await), "snapshot_exists");
    let again = Snapshot { number: 3, ..named.clone() };
    assert_eq!(code(store.insert_snapshot(id(1), &again, Process).await), "label_taken");
    assert_eq!(code(store.insert_snapshot(id(9), &kept(1), Process).await), "no_such_computer");
    assert_eq!(code(store.set_snapshot_taken(id(1), 9, 0, 0, false, Process).await), "no_such_snapshot");
    // A label is of one computer, and moves.
    store.insert_snapshot(id(2), &named, Process).await.unwrap();
    assert_eq!(code(store.set_label(id(1), 1, named.label.clone(), SnapshotKind::Named, Process).await), "label_taken");
    store.set_label(id(1), 2, None, SnapshotKind::Named, Process).await.unwrap();
    store.set_label(id(1), 1, named.label.clone(), SnapshotKind::Named, Process).await.unwrap();
    assert_eq!(code(store.set_label(id(1), 9, None, SnapshotKind::Named, Process).await), "no_such_snapshot");

    store.delete_computer(id(1), Process).await.unwrap();
    assert_eq!(store.snapshots(id(1)).await.unwrap(), []);
    assert_eq!(store.snapshots(id(2)).await.unwrap().len(), 2);
    store.check().await.unwrap();
}

#[tokio::test]
async fn what_came_of_a_forgotten_state_comes_of_the_one_before_it() {
    let (_dir, store) = store();
    store.insert_computer(&computer(1, "web"), None, Process).await.unwrap();
    for number in 0..6 {
        store.insert_snapshot(id(1), &kept(number), Process).await.unwrap();
    }
    let label = Some("here".parse().unwrap());
    store.set_label(id(1), 4, label, SnapshotKind::Named, Process).await.unwrap();
    store.delete_snapshots(id(1), vec![1, 2, 4, 99], vec![4], Power).await.unwrap();
    let left = store.snapshots(id(1)).await.unwrap();
    let left: Vec<_> = left.iter().map(|row| (row.number, row.parent, row.dropped, row.label.is_some())).collect();
    let expected =
        [(0, None, false, false), (3, Some(0), false, false), (4, Some(3), true, false), (5, Some(4), false, false)];
    assert_eq!(left, expected);
    let label = Some("here".parse().unwrap());
    assert_eq!(code(store.set_label(id(1), 4, label, SnapshotKind::Named, Process).await), "no_such_snapshot");
}

#[tokio::test]
async fn a_step_says_which_state_follows_it_and_what_it_changed() {
    let (_dir, store) = store();
    store.insert_computer(&computer(1, "web"), None, Process).await.unwrap();
    assert_eq!(store.unkept_step(id(1)).await.unwrap(), None);
    for number in 1..=4 {
        store.insert_step(id(1), &step(number), Process).await.unwrap();
    }
    assert_eq!(store.unkept_step(id(1)).await.unwrap(), None, "none has ended");
    for number in 1..=3 {
        store.end_step(id(1), number, 9, &StepEnd::Lost, 0, Process).await.unwrap();
    }
    assert_eq!(store.unkept_step(id(1)).await.unwrap(), Some(3));
    let count = ChangeCount { added: 1, changed: 2, removed: 3 };
    store.set_step_snapshot(id(1), vec![1, 2, 3], 7, None, Process).await.unwrap();
    store.set_step_snapshot(id(1), vec![3], 7, Some(count), Process).await.unwrap();
    // What is known already is not taken back.
    store.set_step_snapshot(id(1), vec![3, 99], 7, None, Process).await.unwrap();
    assert_eq!(store.unkept_step(id(1)).await.unwrap(), None);
    let found = store.steps(id(1), None, 9, Order::OldestFirst).await.unwrap();
    let found: Vec<_> = found.iter().map(|step| (step.snapshot, step.changes)).collect();
    assert_eq!(found, [(Some(7), None), (Some(7), None), (Some(7), Some(count)), (None, None)]);
}

#[tokio::test]
async fn steps_are_found_by_what_is_in_their_command() {
    let (_dir, store) = store();
    store.insert_computer(&computer(1, "web"), None, Process).await.unwrap();
    for (number, argv) in (1..).zip([
        &["apt-get", "install", "nginx"][..],
        &["ls"],
        &["sh", "-c", "rm \"/etc/nginx\""],
        &["nginx", "100%"],
    ]) {
        let argv = argv.iter().map(|&text| text.to_owned()).collect();
        store.insert_step(id(1), &Step { argv, ..step(number) }, Process).await.unwrap();
    }
    let found = async |text: &str, after, limit, order| {
        let steps = store.steps_grep(id(1), text.to_owned(), after, limit, order).await.unwrap();
        steps.iter().map(|step| step.number).collect::<Vec<_>>()
    };
    assert_eq!(found("nginx", None, 9, Order::OldestFirst).await, [1, 3, 4]);
    assert_eq!(found("nginx", Some(4), 1, Order::NewestFirst).await, [3]);
    assert_eq!(found("install nginx", None, 9, Order::OldestFirst).await, [1], "across words");
    assert_eq!(found("\"/etc", None, 9, Order::OldestFirst).await, [3], "as it reads");
    assert_eq!(found("%", None, 9, Order::OldestFirst).await, [4], "no pattern");
    assert_eq!(found("zzz", None, 9, Order::OldestFirst).await, [0; 0]);
}

#[tokio::test]
async fn a_fork_remembers_where_it_comes_from() {
    let (_dir, store) = store();
    let parent = Parent { id: id(1), name: "web".into(), snapshot: 4, step: 12 };
    let fork = Computer { parent: Some(parent), ..computer(2, "try") };
    store.insert_computer(&fork, None, Process).await.unwrap();
    assert_eq!(store.get_computer(id(2)).await.unwrap(), Some(fork));
}

/// Waits until another connection can write: that of the store that was dropped may be closing.
fn undo(dir: &tempfile::TempDir, sql: &str) {
    let path = dir.path().join(den_store::FILE);
    let mut undone = Err("locked".to_owned());
    for _ in 0..100 {
        let connection = rusqlite::Connection::open(&path).unwrap();
        undone = connection.execute_batch(sql).map_err(|error| error.to_string());
        if undone.is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    undone.unwrap();
}

/// Takes a file back to schema 2, as it was before there were states, and before anything slept or lay in the trash.
const WITHOUT_STATES: &str = "DROP TABLE volumes; DROP TABLE pools; DROP TABLE facts; DROP TRIGGER undo_of_computer; DROP TABLE undo; DROP TABLE events; DROP TABLE services;
    DROP INDEX computers_name; ALTER TABLE computers DROP COLUMN idle; ALTER TABLE computers DROP COLUMN asleep;
    ALTER TABLE computers DROP COLUMN before; ALTER TABLE computers DROP COLUMN unwritten;
    CREATE UNIQUE INDEX computers_name ON computers (name) WHERE state <> 'removing';
    DROP TABLE snapshots; ALTER TABLE computers DROP COLUMN parent;
    ALTER TABLE steps DROP COLUMN snapshot; ALTER TABLE steps DROP COLUMN added;
    ALTER TABLE steps DROP COLUMN changed; ALTER TABLE steps DROP COLUMN removed; PRAGMA user_version = 2;";

#[tokio::test]
async fn a_store_from_before_states_were_kept_is_migrated() {
    let (dir, store) = store();
    let web = computer(1, "web");
    store.insert_computer(&web, None, Power).await.unwrap();
    store.insert_step(id(1), &step(1), Power).await.unwrap();
    store.end_step(id(1), 1, 9, &StepEnd::Exited { code: 0 }, 4, Power).await.unwrap();
    drop(store);
    undo(&dir, WITHOUT_STATES);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.get_computer(web.id).await.unwrap(), Some(web));
    let found = store.get_step(id(1), 1).await.unwrap().unwrap();
    assert_eq!((found.end, found.snapshot, found.changes), (Some(StepEnd::Exited { code: 0 }), None, None));
    assert_eq!(store.snapshots(id(1)).await.unwrap(), []);
    assert_eq!(store.unkept_step(id(1)).await.unwrap(), Some(1));
    store.insert_snapshot(id(1), &kept(1), Power).await.unwrap();
    store.check().await.unwrap();
}

#[tokio::test]
async fn a_store_from_before_the_gate_is_migrated() {
    let (dir, store) = store();
    let web = computer(1, "web");
    store.insert_computer(&web, None, Power).await.unwrap();
    drop(store);
    // Back to the first schema, as the first version wrote it.
    let first = "ALTER TABLE computers DROP COLUMN net; DROP TABLE net_changes; PRAGMA user_version = 1;";
    undo(&dir, &format!("{WITHOUT_STATES} {first}"));
    let store = Store::open(dir.path()).unwrap();
    let found = store.get_computer(web.id).await.unwrap().unwrap();
    assert_eq!((found.net.as_ref(), found.spec), (None, web.spec));
    store.check().await.unwrap();
}
