//! Keeps up what fences have had refused, for as long as their processes may come back.
//!
//! An entry of a blocklist expires, and its client might write again then: a process that was stopped and goes on after a
//! day must find itself still refused. So the entries are stored with the release that they allowed, renewed by whoever
//! is the control plane, and removed only when the nodes of those processes have rejoined and reaped. Nothing waits for
//! this: it tries again by itself.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use drover_cluster_state::{Blocklisting, ClusterState, Key, Name, Txn, WallTime};
use drover_driver::Cluster;
use drover_ids::{OwnerEpoch, VmId};
use drover_ports::Store;

use crate::{
    pools::{Pools, blocking},
    rbd_fence,
    status::describe,
};

/// How often it looks. Nothing is urgent: an entry too many harms nobody.
const LOOK: Duration = Duration::from_secs(1);
/// An entry stays at least this long. What a process had sent before it ended may still be on its way to an OSD.
const AGE_MIN: Duration = Duration::from_secs(3);
/// How often entries are renewed: far more often than they expire, so that a control plane may be away for most of a day.
const RENEWAL: Duration = Duration::from_secs(3600);

/// What is to be done about one fence.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Due {
    Renew,
    Lift,
}

/// Runs until the driver has gone.
pub(crate) async fn keep<S: Store>(cluster: Cluster<S>, pools: Pools) {
    let mut renewed: BTreeMap<(VmId, OwnerEpoch), Instant> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let due =
            |key: &(VmId, OwnerEpoch)| renewed.get(key).is_none_or(|renewed| renewed.elapsed() >= RENEWAL);
        let Ok(found) = cluster.read(|view| look(view.state, view.now.wall)).await else { return };
        let work: Vec<_> =
            found.into_iter().filter(|(entry, what)| *what == Due::Lift || due(&key(entry))).collect();
        for (entry, what) in work {
            let place = key(&entry);
            match carry_out(&cluster, &pools, entry, what.clone()).await {
                Ok(()) if what == Due::Lift => _ = renewed.remove(&place),
                Ok(()) => _ = renewed.insert(place, Instant::now()),
                Err(reason) => tracing::warn!(vm = %place.0, reason, "a blocklist could not be kept up"),
            }
        }
    }
}

fn key(entry: &Blocklisting) -> (VmId, OwnerEpoch) {
    (entry.vm, entry.floor)
}

fn look(state: &ClusterState, now: WallTime) -> Vec<(Blocklisting, Due)> {
    let due = |entry: &Blocklisting| {
        let age = now.as_unix_millis().saturating_sub(entry.created_at.as_unix_millis());
        let old = u128::from(age) >= AGE_MIN.as_millis();
        if old && entry.is_over(state) { Due::Lift } else { Due::Renew }
    };
    state.blocklistings.values().map(|entry| (entry.value.clone(), due(entry))).collect()
}

async fn carry_out<S: Store>(
    cluster: &Cluster<S>,
    pools: &Pools,
    entry: Blocklisting,
    what: Due,
) -> Result<(), String> {
    let mut by_pool: BTreeMap<Name, Vec<String>> = BTreeMap::new();
    for (pool, address) in &entry.entries {
        by_pool.entry(pool.clone()).or_default().push(address.clone());
    }
    for (pool, addresses) in by_pool {
        let (pools, lift) = (pools.clone(), what == Due::Lift);
        blocking(move || {
            // A pool that has been deleted had no volume left, and its cluster may be gone with it.
            let Some(ceph) = pools.ceph_of(&pool) else { return Ok(()) };
            let ceph = ceph.map_err(|error| describe(&error))?;
            let done =
                if lift { rbd_fence::lift(&ceph, &addresses) } else { rbd_fence::renew(&ceph, &addresses) };
            done.map_err(|error| describe(&error))
        })
        .await?;
    }
    if what == Due::Renew {
        return Ok(());
    }
    let (vm, floor) = key(&entry);
    let removed = cluster.submit(move |view| {
        let txn = view.state.blocklistings.get(&(vm, floor)).map(|stored| {
            let mut txn = Txn::new();
            txn.delete(Key::Blocklisting(vm, floor), stored);
            txn
        });
        Ok::<_, std::convert::Infallible>(((), txn))
    });
    removed.await.map_err(|error| describe(&error))?;
    tracing::info!(%vm, %floor, "the processes behind a fence are gone: their clients are let in again");
    Ok(())
}
