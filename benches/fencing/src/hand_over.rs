//! What the lock's change of hands adds to a migration's blackout.

use std::time::Duration;

use drover_bench_report::{Better, Row, median};
use drover_bench_vmms::{Launcher, command};
use drover_ids::{MigrationId, VmId};
use drover_units::Bytes;
use drover_wire::vm::v1 as wire;

use crate::{guest::guest, log::took_in_all, storage::Storage};

const VM: VmId = VmId::from_u128(0xb0);
/// Writes between two moves.
const AT_WORK: u64 = 30;
const GOAL_MS: f64 = 10.0;

/// One move.
pub(crate) struct Hop {
    released: Duration,
    acquired: Duration,
    blackout: Duration,
}

/// Moves a VM that writes from process to process.
pub(crate) async fn measure(storage: &Storage, launcher: &Launcher, hops: usize) -> anyhow::Result<Vec<Hop>> {
    let volume = storage.create(Bytes::mib(64))?;
    let config = guest(VM, vec![storage.disk(volume)]);
    let mut here = launcher.spawn().await?;
    here.create(1, config.clone()).await?;
    here.start(1).await?;
    let mut measured = Vec::new();
    for epoch in 1..=hops as u64 {
        here.writes(AT_WORK).await?;
        let mut there = launcher.spawn().await?;
        let migration_id = MigrationId::from_u128(epoch.into()).to_string();
        let incoming = wire::MigrateInRequest {
            command: command(epoch + 1),
            migration_id: migration_id.clone(),
            config: Some(config.clone()),
            listen_address: "127.0.0.1:0".to_owned(),
            lease: None,
        };
        let target_address = there.migrate_in(incoming).await?;
        let outgoing = wire::MigrateOutRequest {
            command: command(epoch),
            migration_id,
            target_address,
            target_epoch: epoch + 1,
            downtime_target_ms: 0,
        };
        here.migrate_out(outgoing).await?;
        let moved = here.reaches(wire::VmState::Migrated).await?;
        there.reaches(wire::VmState::Running).await?;
        measured.push(Hop {
            released: took_in_all(&here.log(), "volumes released"),
            acquired: took_in_all(&there.log(), "volumes acquired"),
            blackout: Duration::from_micros(moved.migration.map_or(0, |migration| migration.downtime_us)),
        });
        here.stop(epoch).await?;
        here = there;
    }
    here.stop(hops as u64 + 1).await?;
    storage.delete(volume)?;
    Ok(measured)
}

pub(crate) fn rows(hops: &[Hop]) -> Vec<Row> {
    let of = |part: fn(&Hop) -> Duration| {
        let values: Vec<f64> = hops.iter().map(|hop| part(hop).as_secs_f64() * 1e3).collect();
        median(&values).unwrap_or(f64::NAN)
    };
    let row = |metric: &str| Row::new("migration", metric, "ms", Better::Lower);
    vec![
        row("lock hand-over").value("drover", of(|hop| hop.released + hop.acquired)).value("goal", GOAL_MS),
        row("  of it: flushed and released by the source").value("drover", of(|hop| hop.released)),
        row("  of it: acquired by the target").value("drover", of(|hop| hop.acquired)),
        row("blackout by the source").value("drover", of(|hop| hop.blackout)),
    ]
}
