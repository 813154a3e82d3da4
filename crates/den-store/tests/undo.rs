//! What can be taken back: there with the thing itself, once, and not for ever.

mod common;

use common::{code, computer, id, new_undo as undo, step, store};
use den_model::{Snapshot, SnapshotKind, State};
use den_store::{
    Durability::{Power, Process},
    NetChange, Store, StoreError, UNDO_GONE_KEPT_MAX, UNDO_KEPT_MAX, UndoOf, UndoRow,
};

async fn of(store: &Store, number: u128) -> Vec<UndoRow> {
    store.undo_rows(UndoOf::Some { computers: vec![id(number)], gone: None }, 1000).await.unwrap()
}

fn change(at: i64) -> NetChange {
    NetChange { at, who: "cli".into(), net: "{}".into() }
}

#[tokio::test]
async fn a_computer_goes_into_the_trash_and_comes_back_under_a_name_that_is_free() {
    let (_dir, store) = store();
    let web = computer(1, "web");
    store.insert_computer(&web, None, Process).await.unwrap();
    store.set_state(web.id, State::Failed, Some("why".into()), 3, None, Process).await.unwrap();
    let number = store.trash(web.id, undo("{\"kind\":\"rm\"}", 4), Power).await.unwrap();
    let row = store.get_computer(web.id).await.unwrap().unwrap();
    assert_eq!((row.state, row.changed_at, row.reason.as_deref()), (State::Trashed, 4, Some("why")));
    assert_eq!(store.find_computer(&web.spec.name).await.unwrap(), None);

    store.insert_computer(&computer(2, "web"), None, Process).await.unwrap();
    match store.undelete(web.id, &web.spec, State::Failed, number, 5, Process).await {
        Err(StoreError::NameTaken { holder, .. }) => assert_eq!(holder, id(2)),
        other => panic!("{other:?}"),
    }
    assert_eq!(of(&store, 1).await[0].undone_at, None, "nothing of it was done");
    let mut other = web.spec.clone();
    other.name = "web-2".parse().unwrap();
    store.undelete(web.id, &other, State::Failed, number, 6, Power).await.unwrap();
    let row = store.find_computer(&other.name).await.unwrap().unwrap();
    assert_eq!((row.id, row.state, &row.spec), (web.id, State::Failed, &other));
    assert_eq!(of(&store, 1).await[0].undone_at, Some(6));
    assert_eq!(code(store.undelete(web.id, &other, State::Failed, number, 7, Process).await), "nothing_to_undo");
    assert_eq!(code(store.trash(id(9), undo("{}", 1), Process).await), "no_such_computer");
    assert_eq!(store.undo_rows(UndoOf::All, 9).await.unwrap().len(), 1, "what failed left nothing");
    store.flush().await.unwrap();
    store.check().await.unwrap();
}

#[tokio::test]
async fn what_is_gone_for_good_is_told_of_and_its_other_rows_go() {
    let (_dir, store) = store();
    for (number, name) in [(1, "one"), (2, "two"), (3, "three")] {
        store.insert_computer(&computer(number, name), None, Process).await.unwrap();
        store.set_net(id(number), change(1), undo("{\"kind\":\"net\"}", 1), Process).await.unwrap();
    }
    // From the trash, at once, and not after all.
    store.trash(id(1), undo("{\"kind\":\"rm\",\"of\":1}", 2), Process).await.unwrap();
    store.removing(id(1), undo("{\"kind\":\"rm\"}", 3), "emptied", Process).await.unwrap();
    store.removing(id(2), undo("{\"kind\":\"rm\",\"of\":2}", 4), "removed", Process).await.unwrap();
    store.removing(id(3), undo("{\"kind\":\"rm\",\"of\":3}", 5), "removed", Process).await.unwrap();
    store.not_removed(id(3), State::Failed, Some("it may still run".into()), 6, Process).await.unwrap();
    for number in [1, 2] {
        store.delete_computer(id(number), Process).await.unwrap();
    }
    let shown = |rows: Vec<UndoRow>| rows.into_iter().map(|row| (row.computer, row.what, row.gone)).collect::<Vec<_>>();
    let gone = |text: &str| Some(text.to_owned());
    assert_eq!(
        shown(store.undo_rows(UndoOf::All, 9).await.unwrap()),
        [
            (id(2), "{\"kind\":\"rm\",\"of\":2}".to_owned(), gone("removed")),
            (id(1), "{\"kind\":\"rm\",\"of\":1}".to_owned(), gone("emptied")),
            (id(3), "{\"kind\":\"net\"}".to_owned(), None),
        ]
    );
    assert_eq!(store.get_computer(id(3)).await.unwrap().unwrap().state, State::Failed);
    // By name, what is gone; those that are there are named by their ids.
    let web = UndoOf::Some { computers: vec![id(3)], gone: Some("web".to_owned()) };
    assert_eq!(store.undo_rows(web, 9).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_thing_is_taken_back_once_and_what_took_it_back_can_be_too() {
    let (_dir, store) = store();
    store.insert_computer(&computer(1, "web"), None, Process).await.unwrap();
    let back = |number, at| den_store::NewUndo { takes_back: Some(number), ..undo("{}", at) };
    let first = store.set_net(id(1), change(1), undo("{}", 1), Process).await.unwrap();
    let second = store.set_net(id(1), change(2), back(first, 2), Process).await.unwrap();
    assert_eq!(code(store.set_net(id(1), change(3), back(first, 3), Process).await), "nothing_to_undo");
    assert_eq!(store.net_changes(id(1), 9).await.unwrap().len(), 2, "neither of it is there");
    let third = store.set_net(id(1), change(3), back(second, 3), Process).await.unwrap();
    let rows: Vec<_> =
        of(&store, 1).await.into_iter().map(|row| (row.number, row.forth, row.undone_at, row.takes_back)).collect();
    let expected =
        [(third, true, None, Some(second)), (second, false, Some(3), Some(first)), (first, true, Some(2), None)];
    assert_eq!(rows, expected);

    store.forget_undo(third, Process).await.unwrap();
    assert_eq!(store.undo_row(third).await.unwrap(), None);
    assert_eq!(store.undo_row(second).await.unwrap().unwrap().undone_at, None, "it did not come about");
    store.forget_undo(third, Process).await.unwrap();
}

#[tokio::test]
async fn a_state_or_a_step_has_its_row_or_neither_is_there() {
    let (_dir, store) = store();
    store.insert_computer(&computer(1, "web"), None, Process).await.unwrap();
    let kept = Snapshot {
        number: 4,
        step: 1,
        label: None,
        kind: SnapshotKind::Restore,
        created_at: 1,
        frozen_us: 0,
        torn: false,
        generation: 0,
        parent: None,
        went_to: Some(2),
        dropped: false,
    };
    let what = "{\"kind\":\"restore\",\"before\":4}";
    store.insert_snapshot_undo(id(1), &kept, undo(what, 1), Power).await.unwrap();
    assert_eq!(code(store.insert_snapshot_undo(id(1), &kept, undo(what, 2), Process).await), "snapshot_exists");
    store.insert_step_undo(id(1), &step(1), undo("{\"before\":5}", 3), Process).await.unwrap();
    assert_eq!(code(store.insert_step_undo(id(1), &step(1), undo("{}", 4), Process).await), "step_exists");
    assert_eq!(of(&store, 1).await.len(), 2);
    store.forget_undo_of(id(1), "$.before", 4, Process).await.unwrap();
    let left: Vec<_> = of(&store, 1).await.into_iter().map(|row| row.at).collect();
    assert_eq!(left, [3]);
}

#[tokio::test]
async fn only_so_many_are_kept() {
    let (_dir, store) = store();
    for number in 1..=2 {
        store.insert_computer(&computer(number, &format!("c{number}")), None, Process).await.unwrap();
    }
    let many = i64::from(UNDO_KEPT_MAX) + 5;
    for at in 1..=many {
        store.set_net(id(1), change(at), undo("{}", at), Process).await.unwrap();
    }
    store.set_net(id(2), change(1), undo("{}", 1), Process).await.unwrap();
    let rows = of(&store, 1).await;
    assert_eq!((rows.len(), rows[0].at, rows[rows.len() - 1].at), (UNDO_KEPT_MAX as usize, many, 6));
    assert_eq!(of(&store, 2).await.len(), 1, "of each");
    let more = u128::from(UNDO_GONE_KEPT_MAX) + 3;
    for number in 10..10 + more {
        store.insert_computer(&computer(number, "gone"), None, Process).await.unwrap();
        store.removing(id(number), undo("{}", number as i64), "removed", Process).await.unwrap();
        store.delete_computer(id(number), Process).await.unwrap();
    }
    let gone = UndoOf::Some { computers: vec![], gone: Some("web".into()) };
    let rows = store.undo_rows(gone, 1000).await.unwrap();
    assert_eq!((rows.len(), rows[999].computer), (UNDO_GONE_KEPT_MAX as usize, id(13)));
}
