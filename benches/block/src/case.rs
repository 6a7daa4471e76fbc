//! What is measured.

use std::time::Duration;

use drover_probe_record::bench::{BenchWork, Pattern, Wait};

/// One kind of load.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub name: String,
    pub pattern: Pattern,
    pub request_bytes: u64,
    pub queue_depth: u64,
    /// Queues of the disk that the guest spreads them over.
    pub queues: u32,
    /// How the guest waits. One request at a time measures latency, and where the host emulates the guest's kernel mode an
    /// interrupt costs a third of it: the guest looks by itself, as a polling kernel does. With many in flight it sleeps, and
    /// the CPUs are free for the VMM and the cluster.
    pub wait: Wait,
}

const KIB4: u64 = 4 << 10;
const MIB: u64 = 1 << 20;

/// On a cluster: small requests one at a time and many at a time, and large ones as a file copy makes them, four in flight, as
/// read-ahead does.
pub(crate) fn on_rbd() -> Vec<Case> {
    vec![
        case(Pattern::RandomRead, KIB4, 1, 1),
        case(Pattern::RandomRead, KIB4, 32, 1),
        case(Pattern::RandomWrite, KIB4, 1, 1),
        case(Pattern::RandomWrite, KIB4, 32, 1),
        case(Pattern::SequentialRead, MIB, 4, 1),
        case(Pattern::SequentialWrite, MIB, 4, 1),
    ]
}

/// On a file: small and large requests, one at a time and many, and many through two queues.
pub(crate) fn on_a_file() -> Vec<Case> {
    let mut cases = Vec::new();
    for (small, large) in
        [(Pattern::RandomRead, Pattern::SequentialRead), (Pattern::RandomWrite, Pattern::SequentialWrite)]
    {
        for (pattern, request_bytes) in [(small, KIB4), (large, MIB)] {
            for (queue_depth, queues) in [(1, 1), (32, 1), (32, 2)] {
                cases.push(case(pattern, request_bytes, queue_depth, queues));
            }
        }
    }
    cases
}

fn case(pattern: Pattern, request_bytes: u64, queue_depth: u64, queues: u32) -> Case {
    let size = if request_bytes >= MIB { "1M" } else { "4K" };
    let spread = if queues > 1 { format!(" {queues}Q") } else { String::new() };
    Case {
        name: format!("{size} {} QD{queue_depth}{spread}", pattern.word()),
        pattern,
        request_bytes,
        queue_depth,
        queues,
        wait: if queue_depth == 1 { Wait::Poll } else { Wait::Sleep },
    }
}

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
            queues: self.queues.into(),
        }
    }

    /// Whether a request is so large that bandwidth says more than a number of requests.
    pub(crate) fn is_large(&self) -> bool {
        self.request_bytes >= MIB
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_told_by_their_names() {
        let names = |cases: Vec<Case>| cases.into_iter().map(|case| case.name).collect::<Vec<_>>();
        assert_eq!(
            names(on_rbd()),
            [
                "4K randread QD1",
                "4K randread QD32",
                "4K randwrite QD1",
                "4K randwrite QD32",
                "1M read QD4",
                "1M write QD4"
            ]
        );
        let on_a_file = names(on_a_file());
        assert_eq!(on_a_file.len(), 12);
        assert_eq!(on_a_file[..3], ["4K randread QD1", "4K randread QD32", "4K randread QD32 2Q"]);
    }
}
