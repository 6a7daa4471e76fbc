//! The VM's balloon, as clients see it.

use std::time::Duration;

use drover_machine::devices::{Balloon, GuestStatistic};
use drover_wire::vm::v1 as wire;

use crate::order::InvalidField;

/// Longest wait for statistics: a guest that is alive answers within milliseconds.
const WAIT_MS_MAX: u32 = 5_000;
/// Longest time that a guest may take to name its free pages: the VM's thread waits for it, and must answer a lease that
/// runs out.
const RECLAIM_MS_MAX: u32 = 1_000;
/// Between two looks at whether statistics have come.
const LOOK: Duration = Duration::from_millis(5);

pub(crate) fn wait(ms: u32) -> Result<Duration, InvalidField> {
    match ms {
        0..=WAIT_MS_MAX => Ok(Duration::from_millis(ms.into())),
        _ => Err(InvalidField::new(format!("wait_ms is {ms}: expected at most {WAIT_MS_MAX}"))),
    }
}

pub(crate) fn reclaim_limit(ms: u32) -> Result<Duration, InvalidField> {
    match ms {
        1..=RECLAIM_MS_MAX => Ok(Duration::from_millis(ms.into())),
        _ => Err(InvalidField::new(format!("limit_ms is {ms}: expected 1 to {RECLAIM_MS_MAX}"))),
    }
}

/// Asks for new statistics and waits for them as long as that.
pub(crate) async fn refresh(balloon: &Balloon, limit: Duration) {
    if limit.is_zero() {
        return;
    }
    let before = balloon.status().statistics_received;
    balloon.refresh_statistics();
    let come = async {
        while balloon.status().statistics_received == before {
            tokio::time::sleep(LOOK).await;
        }
    };
    // Without an answer the old ones stand.
    let _ = tokio::time::timeout(limit, come).await;
}

pub(crate) fn status(balloon: &Balloon) -> wire::BalloonStatus {
    let status = balloon.status();
    wire::BalloonStatus {
        driver: status.driver,
        target_bytes: status.target.get(),
        actual_bytes: status.actual.get(),
        inflated_bytes: status.inflated.get(),
        reported_bytes: status.reported.get(),
        statistics: status
            .statistics
            .iter()
            .map(|(statistic, value)| (name(statistic).to_owned(), value))
            .collect(),
    }
}

fn name(statistic: GuestStatistic) -> &'static str {
    match statistic {
        GuestStatistic::SwapInBytes => "swap_in_bytes",
        GuestStatistic::SwapOutBytes => "swap_out_bytes",
        GuestStatistic::MajorFaults => "major_faults",
        GuestStatistic::MinorFaults => "minor_faults",
        GuestStatistic::FreeBytes => "free_bytes",
        GuestStatistic::TotalBytes => "total_bytes",
        GuestStatistic::AvailableBytes => "available_bytes",
        GuestStatistic::CacheBytes => "cache_bytes",
        GuestStatistic::HugePageAllocations => "huge_page_allocations",
        GuestStatistic::HugePageFailures => "huge_page_failures",
        GuestStatistic::OomKills => "oom_kills",
        GuestStatistic::AllocationStalls => "allocation_stalls",
        GuestStatistic::AsyncScans => "async_scans",
        GuestStatistic::DirectScans => "direct_scans",
        GuestStatistic::AsyncReclaims => "async_reclaims",
        GuestStatistic::DirectReclaims => "direct_reclaims",
    }
}
