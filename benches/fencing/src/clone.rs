//! A clone of a disk image and its first boot, beside a boot from a volume that exists.

use std::time::{Duration, Instant};

use drover_bench_report::{Better, Row, median};
use drover_bench_vmms::Launcher;
use drover_ids::{ImageDigest, VmId, VolumeId};
use drover_storage_pools::{Source, StoragePool as _, Target, Unobserved};
use drover_units::Bytes;

use crate::{guest::guest, storage::Storage};

const SIZE: Bytes = Bytes::gib(10);
/// What the image holds: enough that its objects exist where guests read and write. The rest of its 10 GiB is empty, as most of
/// any image is.
const DATA: Bytes = Bytes::mib(32);
const GOAL_MS: f64 = 1000.0;

/// One round.
pub(crate) struct Round {
    cloned: Duration,
    from_clone: Duration,
    from_volume: Duration,
}

pub(crate) async fn measure(
    storage: &Storage,
    launcher: &Launcher,
    rounds: usize,
) -> anyhow::Result<Vec<Round>> {
    let digest: ImageDigest = "c1".repeat(32).parse()?;
    import(storage, digest)?;
    let image = Source::Image(digest);
    // It has been written before, as a volume has that has been booted from.
    let existing = storage.create(SIZE)?;
    boot(storage, launcher, existing, 1).await?;
    let mut measured = Vec::new();
    for round in 0..rounds {
        let volume = VolumeId::from_u128((0xc1 << 64) | round as u128);
        let began = Instant::now();
        storage.pool.clone_volume(volume, image, SIZE, &Unobserved)?;
        let cloned = began.elapsed();
        let from_clone = boot(storage, launcher, volume, 1).await?;
        let from_volume = boot(storage, launcher, existing, round as u64 + 2).await?;
        measured.push(Round { cloned, from_clone, from_volume });
        storage.delete(volume)?;
    }
    storage.delete(existing)?;
    storage.pool.delete_image(digest, &Unobserved)?;
    Ok(measured)
}

fn import(storage: &Storage, digest: ImageDigest) -> anyhow::Result<()> {
    let mut writer = storage.pool.begin(Target::Image(digest), SIZE)?;
    let piece = vec![0xa5_u8; 4 << 20];
    // Not where the probe looks for what it has written: it would report damage.
    let first = Bytes::mib(1).get();
    let mut offset = first;
    while offset < first + DATA.get() {
        writer.write_at(offset, &piece)?;
        offset += piece.len() as u64;
    }
    writer.finish()?;
    Ok(())
}

/// From the spawn of a process to its guest's first completed write.
async fn boot(
    storage: &Storage,
    launcher: &Launcher,
    volume: VolumeId,
    epoch: u64,
) -> anyhow::Result<Duration> {
    let config = guest(VmId::from_u128(volume.as_u128()), vec![storage.disk(volume)]);
    let began = Instant::now();
    let mut vmmd = launcher.spawn().await?;
    vmmd.create(epoch, config).await?;
    vmmd.start(epoch).await?;
    vmmd.writes(1).await?;
    let took = began.elapsed();
    vmmd.stop(epoch).await?;
    Ok(took)
}

pub(crate) fn rows(rounds: &[Round]) -> Vec<Row> {
    let of = |part: fn(&Round) -> f64| {
        let values: Vec<f64> = rounds.iter().map(part).collect();
        median(&values).unwrap_or(f64::NAN)
    };
    let row = |metric: &str| Row::new("clone of 10 GiB", metric, "ms", Better::Lower);
    vec![
        row("clone and first boot, beyond a volume's")
            .value(
                "drover",
                of(|round| millis(round.cloned) + millis(round.from_clone) - millis(round.from_volume)),
            )
            .value("goal", GOAL_MS),
        row("clone").value("drover", of(|round| millis(round.cloned))),
        row("spawn to first write, clone").value("drover", of(|round| millis(round.from_clone))),
        row("spawn to first write, volume").value("drover", of(|round| millis(round.from_volume))),
    ]
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
