//! What is measured.

use std::time::Duration;

use drover_probe_record::bench::{BenchWork, Pattern, Wait};

/// One kind of load.
#[derive(Debug)]
pub(crate) struct Case {
    pub name: &'static str,
    pub pattern: Pattern,
    pub request_bytes: u64,
    pub queue_depth: u64,
    /// How the guest waits. One request at a time measures latency, and where the host emulates the guest's kernel mode an
    /// interrupt costs a third of it: the guest looks by itself, as a polling kernel does. With many in flight it sleeps, and
    /// the CPUs are free for the VMM and the cluster.
    pub wait: Wait,
}

const KIB4: u64 = 4 << 10;
const MIB: u64 = 1 << 20;

/// Small requests one at a time and many at a time, and large ones as a file copy makes them: four in flight, as read-ahead does.
pub(crate) const CASES: [Case; 6] = [
    Case {
        name: "4K randread QD1",
        pattern: Pattern::RandomRead,
        request_bytes: KIB4,
        queue_depth: 1,
        wait: Wait::Poll,
    },
    Case {
        name: "4K randread QD32",
        pattern: Pattern::RandomRead,
        request_bytes: KIB4,
        queue_depth: 32,
        wait: Wait::Sleep,
    },
    Case {
        name: "4K randwrite QD1",
        pattern: Pattern::RandomWrite,
        request_bytes: KIB4,
        queue_depth: 1,
        wait: Wait::Poll,
    },
    Case {
        name: "4K randwrite QD32",
        pattern: Pattern::RandomWrite,
        request_bytes: KIB4,
        queue_depth: 32,
        wait: Wait::Sleep,
    },
    Case {
        name: "1M read QD4",
        pattern: Pattern::SequentialRead,
        request_bytes: MIB,
        queue_depth: 4,
        wait: Wait::Sleep,
    },
    Case {
        name: "1M write QD4",
        pattern: Pattern::SequentialWrite,
        request_bytes: MIB,
        queue_depth: 4,
        wait: Wait::Sleep,
    },
];

impl Case {
    /// As a probe is told.
    pub(crate) fn work(&self, length: Duration, wait: Option<Wait>) -> BenchWork {
        BenchWork {
            pattern: self.pattern,
            request_bytes: self.request_bytes,
            queue_depth: self.queue_depth,
            ms: u64::try_from(length.as_millis()).unwrap_or(u64::MAX),
            span_bytes: 0,
            wait: wait.unwrap_or(self.wait),
        }
    }

    /// Whether a request is so large that bandwidth says more than a number of requests.
    pub(crate) fn is_large(&self) -> bool {
        self.request_bytes >= MIB
    }
}
