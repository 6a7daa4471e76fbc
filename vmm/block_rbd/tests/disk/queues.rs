//! Several workers on one image.

use std::sync::Barrier;

use drover_block::{Access, Backend};
use drover_test_ceph_cluster::CephOptions;
use drover_units::Bytes;

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
                    let mut expected: Vec<_> = requests.iter().map(drover_block::Request::tag).collect();
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
