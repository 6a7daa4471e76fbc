//! The guest whose disks change owners.

use drover_bench_vmms::Vmmd;
use drover_ids::{NodeId, VmId};
use drover_probe_record::{DiskWork, Workload};
use drover_rbd::ClientAddress;
use drover_test_prerequisites::probe_image;
use drover_wire::vm::v1 as wire;

const NODE: u128 = 0x0d;
const SEED: u64 = 7;

/// A guest with one vCPU and these disks, that writes the first one all the time.
pub(crate) fn guest(vm: VmId, disks: Vec<wire::Disk>) -> wire::VmConfig {
    // It reads these blocks before it writes: a handful, so that what is measured is the disk's way and not its size.
    let disk = DiskWork { slots: 64, iops: 400, queue_depth: 4 };
    let workload = Workload {
        seed: SEED,
        heartbeat_ms: Some(10),
        disk: (!disks.is_empty()).then_some(disk),
        vcpus: Some(1),
        ..Workload::default()
    };
    wire::VmConfig {
        vm_id: vm.to_string(),
        name: "bench".to_owned(),
        vcpus: 1,
        memory_bytes: 64 << 20,
        kernel_path: probe_image().to_string_lossy().into_owned(),
        cmdline: workload.to_string(),
        disks,
        node_id: NodeId::from_u128(NODE).to_string(),
        ..wire::VmConfig::default()
    }
}

/// Under which addresses its process writes.
pub(crate) async fn addresses(vmmd: &mut Vmmd) -> anyhow::Result<Vec<ClientAddress>> {
    let info = vmmd.info().await?;
    let texts = info.storage_clients.iter().flat_map(|client| &client.addresses);
    Ok(texts.map(|text| text.parse()).collect::<Result<_, _>>()?)
}
