//! A cluster, clients of it, and a worker that drives a disk.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use drover_block::{
    Access, Backend, BackendQueue, BlockError, Completion, Owner, QueueConfig, Request, RequestBatch, Tag,
    Token,
};
use drover_block_rbd::{RbdBackend, RbdDisk};
use drover_guest_memory::GuestMemory;
use drover_ids::{NodeId, OwnerEpoch, VmId};
use drover_rbd::{Cluster, ConnectConfig, CreateOptions, Library, Pool, Source};
use drover_test_ceph_cluster::{CephCluster, CephOptions};
use drover_units::{Bytes, Gpa, Sectors};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Longer than a cluster on a busy machine takes for anything here.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A cluster, and its administrator.
pub(crate) struct Ceph {
    pub(crate) cluster: CephCluster,
    pub(crate) admin: Pool,
    images: AtomicU32,
}

impl Ceph {
    /// Nothing where Ceph is not installed: the test is then counted as skipped.
    pub(crate) fn start(options: &CephOptions) -> Option<Self> {
        if !drover_test_prerequisites::ceph() {
            return None;
        }
        let cluster = CephCluster::start(options).unwrap();
        let admin = connect(&cluster);
        Some(Self { cluster, admin, images: AtomicU32::new(0) })
    }

    /// A new image of zeros.
    pub(crate) fn image(&self, size: Bytes) -> String {
        let name = format!("disk-{}", self.images.fetch_add(1, Ordering::Relaxed));
        self.admin.create_image(&name, size.get(), &CreateOptions::default()).unwrap();
        name
    }

    /// Opens a disk as another process would: as a client of its own.
    pub(crate) fn open(&self, image: &str, access: Access) -> RbdBackend {
        let pool = connect(&self.cluster);
        RbdBackend::open(&RbdDisk { pool: &pool, image, access, encryption: None }).unwrap()
    }
}

impl Drop for Ceph {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for image in self.admin.images().unwrap() {
            // Waits for nobody: whoever still has it open is a leak.
            self.admin.remove_image(&image, &mut |_, _| true).unwrap();
        }
        let leaks = self.cluster.leaks().unwrap();
        assert!(leaks.is_empty(), "{leaks}");
    }
}

fn connect(cluster: &CephCluster) -> Pool {
    let source = Source::ConfFile { path: cluster.conf_path(), user: "admin".to_owned() };
    let client = Cluster::connect(Library::load().unwrap(), &ConnectConfig::new(source)).unwrap();
    Pool::open(&client, cluster.pool(), "").unwrap()
}

pub(crate) fn owner(node: u128, epoch: u64) -> Owner {
    Owner {
        vm: VmId::from_u128(1),
        node: NodeId::from_u128(node),
        epoch: OwnerEpoch::new(epoch),
        pid: std::process::id(),
    }
}

/// A queue of a disk, with guest RAM.
pub(crate) struct Worker {
    pub(crate) queue: Box<dyn BackendQueue>,
    pub(crate) memory: GuestMemory,
    next: u64,
}

impl Worker {
    pub(crate) fn new(disk: &RbdBackend, depth: u16) -> Self {
        let queue = disk.queue(QueueConfig { depth }).unwrap();
        Self { queue, memory: GuestMemory::anonymous(Bytes::mib(4)), next: 0 }
    }

    /// A write of 4 KiB of `value` to block `block`, from a page of guest RAM of its own.
    pub(crate) fn write(&mut self, block: u64, value: u64) -> Request {
        self.next += 1;
        let page = Gpa::new(self.next % 512 * 4096);
        self.memory.write(page, &content(value)).unwrap();
        let segments = [self.memory.segment(page, 4096).unwrap()].into_iter().collect();
        Request::write(Sectors::new(block * 8), segments, Token::new(Tag(self.next)))
    }

    pub(crate) fn submit(&mut self, requests: impl IntoIterator<Item = Request>) {
        let mut batch = RequestBatch::default();
        for request in requests {
            batch.push(request);
        }
        self.queue.submit(&mut batch);
        assert!(batch.is_empty(), "more requests than the queue is deep");
    }

    /// Waits until something has been answered.
    pub(crate) fn reap(&mut self) -> Vec<Completion> {
        let started = Instant::now();
        let mut answers = Vec::new();
        loop {
            self.queue.reap(&mut answers);
            if !answers.is_empty() {
                return answers;
            }
            let left = DEADLINE.checked_sub(started.elapsed()).expect("an answer within the deadline");
            let timeout = PollTimeout::try_from(left).unwrap();
            poll(&mut [PollFd::new(self.queue.completion_event(), PollFlags::POLLIN)], timeout).unwrap();
        }
    }

    /// Waits for every answer.
    pub(crate) fn drain(&mut self) -> BTreeMap<Tag, Result<(), BlockError>> {
        let mut answers = BTreeMap::new();
        while self.queue.in_flight() > 0 {
            for completion in self.reap() {
                answers.insert(completion.tag(), completion.into_result());
            }
        }
        answers
    }

    /// Carries one request out.
    pub(crate) fn run(&mut self, request: Request) -> Result<(), BlockError> {
        let tag = request.tag();
        self.submit([request]);
        self.drain().remove(&tag).expect("an answer to the request")
    }

    pub(crate) fn read(&mut self, block: u64) -> Vec<u8> {
        self.next += 1;
        let segments = [self.memory.segment(Gpa::ZERO, 4096).unwrap()].into_iter().collect();
        self.run(Request::read(Sectors::new(block * 8), segments, Token::new(Tag(self.next)))).unwrap();
        let mut bytes = vec![0; 4096];
        self.memory.read(Gpa::ZERO, &mut bytes).unwrap();
        bytes
    }
}

/// 4 KiB that differ by value.
pub(crate) fn content(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(512)
}

/// Waits until `holds`.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < DEADLINE, "never: {what}");
        std::thread::yield_now();
    }
}

/// The disk as the device sees it.
pub(crate) fn dynamic(disk: RbdBackend) -> Arc<dyn Backend> {
    Arc::new(disk)
}
