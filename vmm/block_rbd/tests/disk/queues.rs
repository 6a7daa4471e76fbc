//! Several workers on one image, and several requests in one operation.

use std::sync::Barrier;

use drover_block::{Access, Backend, BlockError, Request, Tag, Token};
use drover_test_ceph_cluster::CephOptions;
use drover_units::{Bytes, Gpa, Sectors};

use crate::support::{Ceph, Worker, content, owner};

/// librbd announces what finishes for the image, not for the queue: every answer has to find its own worker, whoever
/// takes it off librbd's list.
#[test]
fn every_worker_gets_its_own_answers() {
    const WORKERS: u64 = 4;
    const DEPTH: u16 = 8;
    const ROUNDS: u64 = 20;
    let Some(ceph) = Ceph::start(&CephOptions::default()) else { return };
    let name = ceph.image(Bytes::mib(16));
    let disk = ceph.open(&name, Access::ReadWrite);
    disk.acquire(&owner(1, 1)).unwrap();
    let together = Barrier::new(WORKERS as usize);
    std::thread::scope(|scope| {
        for number in 0..WORKERS {
            let mut worker = Worker::new(&disk, DEPTH);
            let together = &together;
            scope.spawn(move || {
                let first = number * u64::from(DEPTH);
                for round in 1..=ROUNDS {
                    together.wait();
                    let requests: Vec<_> = (0..u64::from(DEPTH))
                        .map(|n| worker.write(first + n, round * 1000 + first + n))
                        .collect();
                    let mut expected: Vec<_> = requests.iter().map(Request::tag).collect();
                    worker.submit(requests);
                    let answers = worker.drain();
                    expected.sort();
                    assert_eq!(answers.keys().copied().collect::<Vec<_>>(), expected);
                    assert!(answers.values().all(Result::is_ok), "{answers:?}");
                }
                for n in 0..u64::from(DEPTH) {
                    let block = first + n;
                    assert_eq!(worker.read(block), content(ROUNDS * 1000 + block), "block {block}");
                }
            });
        }
    });
    disk.release().unwrap();
}

/// Requests that go on where the last one ended are one for the cluster, and as many as before for whoever sent them.
#[test]
fn joined_requests_are_answered_one_by_one() {
    const BLOCKS: u64 = (16 << 20) / 4096;
    let Some(ceph) = Ceph::start(&CephOptions::default()) else { return };
    let name = ceph.image(Bytes::mib(16));
    let disk = ceph.open(&name, Access::ReadWrite);
    disk.acquire(&owner(1, 1)).unwrap();
    let mut worker = Worker::new(&disk, 16);
    // The last of them is behind the disk's end.
    let requests: Vec<_> = (BLOCKS - 5..=BLOCKS).map(|block| worker.write(block, 7000 + block)).collect();
    let tags: Vec<_> = requests.iter().map(Request::tag).collect();
    worker.submit(requests);
    assert_eq!(worker.queue.in_flight(), tags.len());
    let answers = worker.drain();
    let (behind, inside) = tags.split_last().unwrap();
    assert!(inside.iter().all(|tag| answers[tag].is_ok()), "{answers:?}");
    assert!(matches!(answers[behind], Err(BlockError::OutOfRange { .. })), "{answers:?}");
    // Each read gets its own part, wherever it is to go.
    let page = |nth: u64| Gpa::new((5 - nth) * 8192);
    let reads: Vec<_> = (0..5)
        .map(|nth| {
            let segments = [worker.memory.segment(page(nth), 4096).unwrap()].into_iter().collect();
            let token = Token::new(Tag(100 + nth));
            Request::read(Sectors::new((BLOCKS - 5 + nth) * 8), segments, token)
        })
        .collect();
    worker.submit(reads);
    assert!(worker.drain().values().all(Result::is_ok));
    for nth in 0..5 {
        let mut bytes = vec![0; 4096];
        worker.memory.read(page(nth), &mut bytes).unwrap();
        assert_eq!(bytes, content(7000 + BLOCKS - 5 + nth), "block {nth} from the end's fifth");
    }
    disk.release().unwrap();
}
