//! The embedded store does what every store must do, and keeps its word over SIGKILL.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use bytes::Bytes;
use drover_ports::{
    Key, Revision, Store as _, StoreError, Txn, Watch as _, Write,
    conformance::{self, StoreFixture},
};
use drover_store_embedded::{EmbeddedStore, OpenError, Options};
use tempfile::TempDir;

struct Fixture {
    directory: TempDir,
    opened: u32,
    options: Options,
}

impl Fixture {
    fn path(&self) -> PathBuf {
        self.directory.path().join(format!("store-{}.redb", self.opened))
    }
}

impl StoreFixture for Fixture {
    type Store = EmbeddedStore;

    async fn open(&mut self, history_limit: usize) -> EmbeddedStore {
        self.opened += 1;
        self.options.history_transactions = history_limit as u64;
        EmbeddedStore::open(&self.path(), self.options).expect("the directory is writable")
    }

    async fn reopen(&mut self, store: EmbeddedStore) -> EmbeddedStore {
        drop(store);
        EmbeddedStore::open(&self.path(), self.options).expect("it was closed")
    }
}

#[tokio::test]
async fn the_embedded_store_conforms() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    conformance::run(&mut Fixture { directory, opened: 0, options: Options::default() }).await;
}

fn put(key: &str, value: Vec<u8>) -> Txn {
    let key = Key::new(key).expect("test keys are valid");
    Txn { guards: vec![], writes: vec![Write::Put(key, Bytes::from(value))] }
}

#[tokio::test]
async fn a_second_opener_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("store.redb");
    let store = EmbeddedStore::open(&path, Options::default()).expect("nobody has it");
    let error = EmbeddedStore::open(&path, Options::default()).map(drop).expect_err("it is in use");
    assert!(matches!(error, OpenError::InUse { .. }), "{error:?}");
    drop(store);
    EmbeddedStore::open(&path, Options::default()).expect("it was closed");
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("store.redb");
    let garbage = vec![0x5a; 16 << 10];
    std::fs::write(&path, &garbage).expect("writable");
    let error = EmbeddedStore::open(&path, Options::default()).map(drop).expect_err("it is garbage");
    assert!(matches!(error, OpenError::Unreadable { .. }), "{error:?}");
    assert_eq!(std::fs::read(&path).expect("still there"), garbage);
}

#[tokio::test]
async fn history_is_bounded_in_bytes() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = Options { history_transactions: 1000, history_bytes: 100_000 };
    let store = EmbeddedStore::open(&directory.path().join("store.redb"), options).expect("it is new");
    for n in 0..10_u8 {
        store.commit(put("large", vec![n; 40_000])).await.expect("it is valid");
    }
    let error = store.watch("", Revision::new(7)).await.map(drop).expect_err("three do not fit");
    let StoreError::Compacted { oldest, .. } = error else { panic!("{error:?}") };
    assert_eq!(oldest, Revision::new(8), "two fit into 100,000 bytes");
    store.commit(put("huge", vec![1; 200_000])).await.expect("it is valid");
    let mut watch = store.watch("", Revision::new(10)).await.expect("the newest is kept whatever its size");
    assert_eq!(watch.next().await.expect("within history").revision, Revision::new(11));
}

#[tokio::test]
async fn a_watch_learns_that_the_store_was_closed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let store =
        EmbeddedStore::open(&directory.path().join("store.redb"), Options::default()).expect("it is new");
    let mut watch = store.watch("", Revision::ZERO).await.expect("within history");
    drop(store);
    let error = watch.next().await.expect_err("nothing can come any more");
    assert!(matches!(error, StoreError::Closed), "{error:?}");
}

/// Set for the process that is to be killed: where its store is.
const VICTIM: &str = "DROVER_TEST_STORE_VICTIM";

/// Commits for ever, several at a time, and prints each number after its acknowledgement.
async fn write_until_killed(path: &Path) {
    let store = EmbeddedStore::open(path, Options::default()).expect("nobody has it");
    let start = store.revision().await.expect("reading works").get();
    for n in (start..).step_by(3) {
        let [a, b, c] =
            [n, n + 1, n + 2].map(|n| store.commit(put(&format!("k/{n}"), n.to_string().into_bytes())));
        let (a, b, c) = tokio::join!(a, b, c);
        for (n, outcome) in [(n, a), (n + 1, b), (n + 2, c)] {
            outcome.expect("the disk works");
            writeln!(std::io::stdout(), "acknowledged {n}").expect("the test reads it");
        }
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_sigkill() {
    if let Some(path) = std::env::var_os(VICTIM) {
        return write_until_killed(Path::new(&path)).await;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("store.redb");
    for round in 0..5_usize {
        let mut victim = Command::new(std::env::current_exe().expect("a test has a file"))
            .args(["--exact", "what_was_acknowledged_survives_sigkill", "--nocapture"])
            .env(VICTIM, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("this test starts again");
        let mut lines = BufReader::new(victim.stdout.take().expect("it is piped")).lines();
        let mut acknowledged = Vec::new();
        let number = |line: std::io::Result<String>| -> Option<u64> {
            line.ok()?.strip_prefix("acknowledged ")?.parse().ok()
        };
        while acknowledged.len() < 5 + 7 * round {
            acknowledged.extend(number(lines.next().expect("it writes until it is killed")));
        }
        victim.kill().expect("it runs");
        victim.wait().expect("it was killed");
        // What it said before it died counts as well.
        acknowledged.extend(lines.filter_map(number));

        let store = EmbeddedStore::open(&path, Options::default()).expect("it is repaired");
        for n in &acknowledged {
            let key = Key::new(format!("k/{n}")).expect("valid");
            let entry = store.get(&key).await.expect("reading works");
            let entry = entry.unwrap_or_else(|| panic!("{n} was acknowledged and is lost"));
            assert_eq!(entry.value, n.to_string().as_bytes());
        }
        let revision = store.revision().await.expect("reading works");
        let listed = count(&store).await;
        assert_eq!(listed, revision.get(), "each transaction wrote one key: none may be there in part");
    }
}

async fn count(store: &EmbeddedStore) -> u64 {
    let (mut total, mut after) = (0, None);
    loop {
        let page = store.list("k/", after.as_ref(), 100).await.expect("reading works");
        total += page.entries.len() as u64;
        match page.entries.last() {
            Some(last) if page.more => after = Some(last.key.clone()),
            _ => return total,
        }
    }
}

#[tokio::test]
async fn a_read_that_was_given_up_is_waited_for() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("store.redb");
    for _ in 0..50 {
        let store = EmbeddedStore::open(&path, Options::default()).expect("it was closed");
        let closed = store.closed();
        let reading = tokio::spawn(async move { store.list("", None, 1).await });
        tokio::task::yield_now().await;
        reading.abort();
        closed.wait().await;
    }
}
