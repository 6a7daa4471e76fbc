//! What every [`Store`] must do, as a test suite: [`run`] panics at the first thing that an implementation gets wrong.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;

use crate::store::{
    Change, Guard, Key, Listing, MAX_LIST_ENTRIES, MAX_VALUE_BYTES, Revision, Store, StoreError, Txn, Watch,
    Write,
};

/// Makes stores for the suite.
pub trait StoreFixture {
    /// The implementation under test.
    type Store: Store + Clone;

    /// A fresh, empty store that keeps the changes of the last `history_limit` transactions.
    fn open(&mut self, history_limit: usize) -> impl Future<Output = Self::Store> + Send;

    /// The same store again, after everything that was in memory has been dropped. A store without a disk returns
    /// what it was given.
    fn reopen(&mut self, store: Self::Store) -> impl Future<Output = Self::Store> + Send;
}

/// A watch that says nothing for this long hangs. Far above any commit, so that a slow machine does not fail.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the whole suite.
///
/// # Panics
/// If the store does not conform.
pub async fn run<F: StoreFixture>(fixture: &mut F) {
    writes_are_read_back(fixture.open(100).await).await;
    a_failed_guard_changes_nothing(fixture.open(100).await).await;
    limits_are_refused(fixture.open(100).await).await;
    listing_walks_a_prefix_in_order(fixture.open(100).await).await;
    a_page_is_bounded(fixture.open(100).await).await;
    of_racing_transactions_one_wins(fixture.open(1000).await).await;
    a_watch_sees_each_change_once(fixture.open(100).await).await;
    a_watch_resumes_where_it_left_off(fixture.open(100).await).await;
    a_waiting_watch_wakes(fixture.open(100).await).await;
    a_dropped_wait_loses_nothing(fixture.open(100).await).await;
    history_is_bounded(fixture.open(5).await).await;
    nothing_is_lost_over_a_reopen(fixture).await;
    random_transactions_match_a_model(fixture).await;
}

fn key(text: &str) -> Key {
    Key::new(text).expect("the suite's keys are valid")
}

fn put(text: &str, value: &str) -> Write {
    Write::Put(key(text), Bytes::copy_from_slice(value.as_bytes()))
}

fn writes(writes: impl IntoIterator<Item = Write>) -> Txn {
    Txn { guards: Vec::new(), writes: writes.into_iter().collect() }
}

async fn commit(store: &impl Store, txn: Txn) -> Revision {
    store.commit(txn).await.expect("the transaction is valid and unguarded")
}

async fn value(store: &impl Store, text: &str) -> Option<String> {
    let entry = store.get(&key(text)).await.expect("reading works");
    entry.map(|entry| String::from_utf8(entry.value.to_vec()).expect("the suite writes text"))
}

async fn next(watch: &mut impl Watch) -> Vec<Change> {
    let batch = tokio::time::timeout(PATIENCE, watch.next()).await.expect("the watch hangs");
    let batch = batch.expect("the watch is within history");
    assert!(!batch.changes.is_empty(), "an empty batch was delivered");
    assert!(batch.changes.is_sorted_by_key(|change| change.revision), "changes are out of order");
    batch.changes
}

fn change(revision: Revision, text: &str, value: Option<&'static str>) -> Change {
    Change { revision, key: key(text), value: value.map(|value| Bytes::from_static(value.as_bytes())) }
}

async fn writes_are_read_back<S: Store>(store: S) {
    assert_eq!(store.revision().await.expect("reading works"), Revision::ZERO);
    assert_eq!(store.get(&key("a")).await.expect("reading works"), None);
    let first = commit(&store, writes([put("a", "1"), put("b", "")])).await;
    assert_eq!(first, Revision::new(1), "a transaction is one revision");
    let second = commit(&store, writes([put("a", "2")])).await;
    assert_eq!(second, first.next());
    let entry = store.get(&key("a")).await.expect("reading works").expect("a was written");
    assert_eq!((&entry.value[..], entry.revision), (&b"2"[..], second));
    let other = store.get(&key("b")).await.expect("reading works").expect("b was written");
    assert_eq!((&other.value[..], other.revision), (&b""[..], first), "b has not been touched since");
    let third = commit(&store, writes([Write::Delete(key("a")), Write::Delete(key("never-there"))])).await;
    assert_eq!(value(&store, "a").await, None);
    assert_eq!(store.revision().await.expect("reading works"), third);
}

async fn a_failed_guard_changes_nothing<S: Store>(store: S) {
    let first = commit(&store, writes([put("a", "1")])).await;
    let second = commit(&store, writes([put("a", "2")])).await;
    let guarded = |guard| Txn { guards: vec![guard], writes: vec![put("b", "x"), put("a", "3")] };
    for (guard, current) in [
        (Guard::Unchanged(key("a"), first), Some(second)),
        (Guard::Absent(key("a")), Some(second)),
        (Guard::Unchanged(key("missing"), first), None),
    ] {
        let error = store.commit(guarded(guard.clone())).await.expect_err("the guard does not hold");
        assert!(
            matches!(&error, StoreError::Conflict { key, current: at, .. } if key == guard.key() && *at == current),
            "{guard:?}: {error:?}"
        );
    }
    assert_eq!(value(&store, "a").await.as_deref(), Some("2"));
    assert_eq!(value(&store, "b").await, None, "half a transaction was applied");
    assert_eq!(
        store.revision().await.expect("reading works"),
        second,
        "a refused transaction took a revision"
    );
    let both = vec![Guard::Unchanged(key("a"), second), Guard::Absent(key("b"))];
    store.commit(Txn { guards: both, writes: vec![put("b", "x")] }).await.expect("both guards hold");
}

async fn limits_are_refused<S: Store>(store: S) {
    let large = Bytes::from(vec![7; MAX_VALUE_BYTES + 1]);
    for txn in [Txn::default(), writes([put("a", "1"), put("a", "2")]), writes([Write::Put(key("a"), large)])]
    {
        let error = store.commit(txn).await.expect_err("the transaction breaks a limit");
        assert!(matches!(error, StoreError::InvalidTxn { .. }), "{error:?}");
    }
    let largest = Bytes::from(vec![7; MAX_VALUE_BYTES]);
    commit(&store, writes([Write::Put(key("a"), largest.clone())])).await;
    let entry = store.get(&key("a")).await.expect("reading works").expect("a was written");
    assert_eq!(entry.value, largest);
}

async fn listing_walks_a_prefix_in_order<S: Store>(store: S) {
    let names = ["vm/3", "vm/1", "vm/2", "vm0", "vm", "node/1", "vma/1"];
    let last = commit(&store, writes(names.iter().map(|name| put(name, name)))).await;
    let shown = |listing: &Listing| -> Vec<String> {
        listing.entries.iter().map(|entry| entry.key.to_string()).collect()
    };
    let all = store.list("vm/", None, 10).await.expect("reading works");
    assert_eq!(
        (shown(&all), all.more, all.revision),
        (vec!["vm/1".into(), "vm/2".into(), "vm/3".into()], false, last)
    );
    let page = store.list("vm/", None, 2).await.expect("reading works");
    assert_eq!((shown(&page), page.more), (vec!["vm/1".into(), "vm/2".into()], true));
    let rest = store.list("vm/", Some(&key("vm/2")), 2).await.expect("reading works");
    assert_eq!((shown(&rest), rest.more), (vec!["vm/3".into()], false));
    let before = store.list("vm/", Some(&key("a")), 2).await.expect("reading works");
    assert_eq!((shown(&before), before.more), (vec!["vm/1".into(), "vm/2".into()], true));
    let none = store.list("vm/", Some(&key("vm/3")), 2).await.expect("reading works");
    assert_eq!((shown(&none), none.more), (vec![], false));
    assert_eq!(store.list("", None, 10).await.expect("reading works").entries.len(), names.len());
    assert_eq!(store.list("zz", None, 10).await.expect("reading works").entries.len(), 0);
}

async fn a_page_is_bounded<S: Store>(store: S) {
    let total = MAX_LIST_ENTRIES + 10;
    for chunk in (0..total).collect::<Vec<_>>().chunks(500) {
        commit(&store, writes(chunk.iter().map(|n| put(&format!("n/{n:08}"), "")))).await;
    }
    let page = store.list("n/", None, usize::MAX).await.expect("reading works");
    assert_eq!((page.entries.len(), page.more), (MAX_LIST_ENTRIES, true));
}

async fn of_racing_transactions_one_wins<S: Store + Clone>(store: S) {
    const WRITERS: usize = 4;
    const ROUNDS: u64 = 10;
    commit(&store, writes([put("counter", "0")])).await;
    let increment = async |store: S| {
        for _ in 0..ROUNDS {
            loop {
                let entry = store.get(&key("counter")).await.expect("reading works").expect("it is there");
                let count: u64 = std::str::from_utf8(&entry.value).expect("text").parse().expect("a number");
                let write = put("counter", &(count + 1).to_string());
                let guards = vec![Guard::Unchanged(key("counter"), entry.revision)];
                match store.commit(Txn { guards, writes: vec![write] }).await {
                    Ok(_) => break,
                    Err(StoreError::Conflict { .. }) => {}
                    Err(error) => panic!("committing failed: {error:?}"),
                }
            }
        }
    };
    let (a, b, c, d) = (store.clone(), store.clone(), store.clone(), store.clone());
    tokio::join!(increment(a), increment(b), increment(c), increment(d));
    assert_eq!(
        value(&store, "counter").await,
        Some((WRITERS as u64 * ROUNDS).to_string()),
        "an update was lost"
    );
}

async fn a_watch_sees_each_change_once<S: Store>(store: S) {
    let r1 = commit(&store, writes([put("vm/1", "a"), put("node/1", "x"), put("vm/2", "b")])).await;
    let r2 = commit(&store, writes([put("node/1", "y")])).await;
    let r3 = commit(&store, writes([Write::Delete(key("vm/1")), Write::Delete(key("vm/9"))])).await;
    let mut watch = store.watch("vm/", Revision::ZERO).await.expect("within history");
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.extend(next(&mut watch).await);
    }
    assert_eq!(
        seen,
        [change(r1, "vm/1", Some("a")), change(r1, "vm/2", Some("b")), change(r3, "vm/1", None)],
        "deleting an absent key must not show"
    );
    let mut late = store.watch("node/", r1).await.expect("within history");
    assert_eq!(next(&mut late).await, [change(r2, "node/1", Some("y"))]);
}

async fn a_watch_resumes_where_it_left_off<S: Store>(store: S) {
    let mut watch = store.watch("", Revision::ZERO).await.expect("within history");
    commit(&store, writes([put("a", "1")])).await;
    let batch =
        tokio::time::timeout(PATIENCE, watch.next()).await.expect("the watch hangs").expect("within history");
    drop(watch);
    let r2 = commit(&store, writes([put("a", "2")])).await;
    let mut resumed = store.watch("", batch.revision).await.expect("within history");
    assert_eq!(next(&mut resumed).await, [change(r2, "a", Some("2"))]);
    let error = store.watch("", r2.next()).await.map(drop).expect_err("the store has never been there");
    assert!(matches!(error, StoreError::FutureRevision { .. }), "{error:?}");
}

async fn a_waiting_watch_wakes<S: Store>(store: S) {
    let mut watch = store.watch("b", Revision::ZERO).await.expect("within history");
    let (changes, revision) = tokio::join!(next(&mut watch), async {
        commit(&store, writes([put("a", "does not match")])).await;
        commit(&store, writes([put("b", "1")])).await
    });
    assert_eq!(changes, [change(revision, "b", Some("1"))]);
}

async fn a_dropped_wait_loses_nothing<S: Store>(store: S) {
    let mut watch = store.watch("", Revision::ZERO).await.expect("within history");
    for _ in 0..3 {
        let given_up = tokio::time::timeout(Duration::from_millis(1), watch.next()).await;
        assert!(given_up.is_err(), "nothing has been written");
    }
    let revision = commit(&store, writes([put("a", "1")])).await;
    assert_eq!(next(&mut watch).await, [change(revision, "a", Some("1"))]);
}

/// The store keeps five transactions.
async fn history_is_bounded<S: Store>(store: S) {
    let mut slow = store.watch("", Revision::ZERO).await.expect("within history");
    for n in 0..20 {
        commit(&store, writes([put("a", &n.to_string())])).await;
    }
    let error = slow.next().await.expect_err("the reader fell out of history");
    let StoreError::Compacted { oldest, .. } = error else { panic!("{error:?}") };
    let error = store.watch("", Revision::ZERO).await.map(drop).expect_err("history is gone");
    assert!(matches!(error, StoreError::Compacted { .. }), "{error:?}");
    let mut resumed = store.watch("", oldest).await.expect("the oldest revision named is still there");
    assert_eq!(next(&mut resumed).await.first().map(|change| change.revision), Some(oldest.next()));
    assert!(
        store.revision().await.expect("reading works").get() - oldest.get() >= 5,
        "less history than promised"
    );
}

async fn nothing_is_lost_over_a_reopen<F: StoreFixture>(fixture: &mut F) {
    let store = fixture.open(5).await;
    for n in 0..20 {
        commit(&store, writes([put(&format!("k/{n}"), &n.to_string())])).await;
    }
    let last = commit(&store, writes([Write::Delete(key("k/0"))])).await;
    let store = fixture.reopen(store).await;
    assert_eq!(store.revision().await.expect("reading works"), last);
    assert_eq!(value(&store, "k/0").await, None);
    assert_eq!(store.list("k/", None, 100).await.expect("reading works").entries.len(), 19);
    let before = Revision::new(last.get() - 1);
    let mut watch = store.watch("", before).await.expect("history survives");
    assert_eq!(next(&mut watch).await, [change(last, "k/0", None)]);
    let error = store.watch("", Revision::ZERO).await.map(drop).expect_err("history was bounded before");
    assert!(matches!(error, StoreError::Compacted { .. }), "{error:?}");
    assert_eq!(commit(&store, writes([put("a", "")])).await, last.next(), "revisions go on");
}

/// Few keys and many transactions, so that guards hold about as often as not. Deterministic.
async fn random_transactions_match_a_model<F: StoreFixture>(fixture: &mut F) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut store = fixture.open(1000).await;
    let mut model: BTreeMap<Key, (Bytes, Revision)> = BTreeMap::new();
    let mut revision = Revision::ZERO;
    for step in 0..200_u64 {
        let name = |random: &mut Random| key(&format!("k/{}", random.below(6)));
        let guard_key = name(&mut random);
        let at = model.get(&guard_key).map(|(_, revision)| *revision);
        let guard = match (random.below(3), at) {
            (0, _) | (1, None) => Guard::Absent(guard_key),
            (1, Some(at)) => Guard::Unchanged(guard_key, at),
            _ => Guard::Unchanged(guard_key, Revision::new(random.below(step + 1))),
        };
        let target = name(&mut random);
        let write = if random.below(3) == 0 {
            Write::Delete(target.clone())
        } else {
            Write::Put(target.clone(), Bytes::from(step.to_string()))
        };
        let holds = guard.expected() == model.get(guard.key()).map(|(_, revision)| *revision);
        let outcome = store.commit(Txn { guards: vec![guard.clone()], writes: vec![write.clone()] }).await;
        assert_eq!(outcome.is_ok(), holds, "step {step}: {guard:?}: {outcome:?}");
        if holds {
            revision = revision.next();
            match write {
                Write::Put(key, value) => drop(model.insert(key, (value, revision))),
                Write::Delete(key) => drop(model.remove(&key)),
            }
        }
        if step % 50 == 49 {
            store = fixture.reopen(store).await;
        }
        let listing = store.list("", None, 100).await.expect("reading works");
        let found: BTreeMap<Key, (Bytes, Revision)> =
            listing.entries.into_iter().map(|entry| (entry.key, (entry.value, entry.revision))).collect();
        assert_eq!((&found, listing.revision), (&model, revision), "step {step}");
    }
}

/// Marsaglia's xorshift64: enough to pick among six keys.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
