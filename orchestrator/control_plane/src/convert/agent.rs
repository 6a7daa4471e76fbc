//! The agents' conversation.

use super::devices;
use std::collections::BTreeMap;

use drover_cluster_state::{CpuBaseline, Incarnation, Name, PoolAccess, VmSpec};
use drover_ids::{VmId, VolumeId};
use drover_placement_messages::facts_from;
use drover_reconcile::{Heartbeat, admission::Registration};
use drover_wire::{node::v1 as wire, vm::v1 as vm};

use super::{WireError, required, vm_report};

/// Most VMs that one node reports, ended ones included. A heartbeat of that many is about 1.2 MiB.
const VMS_MAX: usize = 4096;

/// A VM for an agent.
pub(crate) fn vm_spec(vm: VmId, spec: &VmSpec, pools: &BTreeMap<Name, PoolAccess>) -> wire::VmSpec {
    let volume = |attachment: &drover_cluster_state::VolumeAttachment| wire::VolumeAttachment {
        volume_id: attachment.volume.to_string(),
        pool: attachment.pool.to_string(),
        read_only: attachment.read_only,
        access: pools.get(&attachment.pool).map(|access| rbd_access(access, attachment.volume)),
        limits: spec
            .devices
            .disk_limits
            .get(&attachment.volume)
            .and_then(|limits| devices::limits_message(*limits)),
        queues: spec.devices.hardware.disk_queues.into(),
        place: spec.devices.disk_places.get(&attachment.volume).copied().unwrap_or_default().into(),
    };
    // The first volume's pool that says anything.
    let of_pool = || spec.volumes.iter().find_map(|attachment| pools.get(&attachment.pool)?.stall);
    wire::VmSpec {
        vm_id: vm.to_string(),
        name: spec.name.to_string(),
        vcpus: spec.vcpus.get(),
        memory_bytes: spec.memory.get(),
        image: spec.image.to_string(),
        image_pool: spec.image_pool.to_string(),
        cmdline: spec.cmdline.clone(),
        volumes: spec.volumes.iter().map(volume).collect(),
        initrd: spec.devices.hardware.initrd.as_ref().map(ToString::to_string).unwrap_or_default(),
        platform: Some(platform(spec)),
        seed_place: spec.devices.seed_place.into(),
        devices: devices::extras_message(&spec.devices.hardware),
        nics: spec.devices.nics.iter().enumerate().map(|nic| devices::for_agent(vm, nic)).collect(),
        seed: spec
            .cloud_init
            .as_deref()
            .map(|seed| wire::SeedDisk { image: seed.image(&vm.to_string(), spec.name.as_str()) }),
        stall: spec.stall.or_else(of_pool).map(super::stall),
    }
}

/// A VM that demands a baseline of its hosts sees that baseline and no more, so that it can move between all of them. One
/// that demands none sees what its host has.
fn platform(spec: &VmSpec) -> vm::Platform {
    let cpu_baseline = match spec.constraints.cpu_baseline {
        CpuBaseline::V1 => String::new(),
        baseline => baseline.name().to_owned(),
    };
    let hardware = &spec.devices.hardware;
    vm::Platform {
        cpu_baseline,
        bus: devices::bus(hardware).into(),
        on_reset: devices::on_reset(hardware).into(),
    }
}

fn rbd_access(access: &PoolAccess, volume: VolumeId) -> wire::PoolAccess {
    let cluster = vm::RbdAccess {
        mon_hosts: access.mon_hosts.clone(),
        ceph_pool: access.ceph_pool.clone(),
        namespace: access.namespace.clone(),
        user: access.user.clone(),
        key: access.key.expose().to_owned(),
        fsid: String::new(),
    };
    let rbd = wire::RbdAccess { cluster: Some(cluster), image: format!("volume-{volume}") };
    wire::PoolAccess { kind: Some(wire::pool_access::Kind::Rbd(rbd)) }
}

/// Checks a heartbeat.
pub(crate) fn heartbeat(request: wire::HeartbeatRequest) -> Result<Heartbeat, WireError> {
    if request.vms.len() > VMS_MAX {
        return Err(WireError::new(
            "vms",
            format!("there are {}, at most {VMS_MAX} are taken", request.vms.len()),
        ));
    }
    let mut vms = BTreeMap::new();
    for (place, status) in request.vms.into_iter().enumerate() {
        let place = format!("vms[{place}]");
        let (vm, report) = vm_report(status).map_err(|error| error.within(&place))?;
        if vms.insert(vm, report).is_some() {
            return Err(WireError::new(&place, format!("VM {vm} is reported twice")));
        }
    }
    Ok(Heartbeat {
        node: request.node_id.parse().map_err(|error| WireError::new("node_id", error))?,
        incarnation: Incarnation(request.incarnation),
        sequence: request.sequence,
        vms,
    })
}

/// Checks a registration, as far as a message can be checked by itself.
pub(crate) fn registration(request: wire::RegisterRequest) -> Result<Registration, WireError> {
    let capacity = required("capacity", request.capacity)?;
    Ok(Registration {
        node: request.node_id.parse().map_err(|error| WireError::new("node_id", error))?,
        name: request.name,
        address: request.address,
        vcpus: capacity.vcpus,
        memory_bytes: capacity.memory_bytes,
        incarnation: request.incarnation,
        pools: request.pools,
        version: request.version.chars().take(64).collect(),
        facts: facts_from(request.facts.unwrap_or_default())
            .map_err(|error| WireError::new("facts", error))?,
        librbd: request.librbd.chars().take(64).collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use drover_cluster_state::{Constraints, Secret, StallAction, StallPolicy, VolumeAttachment};
    use drover_units::{Bytes, VcpuCount};

    use super::*;

    #[test]
    fn a_vm_says_itself_what_becomes_of_it_when_storage_stalls_or_its_pool_does() {
        let name = |text: &str| Name::new(text).unwrap();
        let policy = |seconds, action| StallPolicy { deadline: Some(Duration::from_secs(seconds)), action };
        let access = |stall| PoolAccess {
            mon_hosts: String::new(),
            ceph_pool: "vms".to_owned(),
            namespace: String::new(),
            user: String::new(),
            key: Secret::new(""),
            stall,
        };
        let attach =
            |n, pool| VolumeAttachment { volume: VolumeId::from_u128(n), pool: name(pool), read_only: false };
        let spec = VmSpec {
            name: name("web"),
            vcpus: VcpuCount::new(1),
            memory: Bytes::mib(64),
            image: name("probe"),
            image_pool: name("local"),
            cmdline: String::new(),
            volumes: vec![attach(1, "local"), attach(2, "silent"), attach(3, "fast")],
            anti_affinity_group: None,
            priority: 0,
            constraints: Constraints::default(),
            stall: None,
            cloud_init: None,
            devices: Default::default(),
        };
        let pools = BTreeMap::from([
            (name("silent"), access(None)),
            (name("fast"), access(Some(policy(7, StallAction::Pause)))),
        ]);
        let check = |stall, pools: &BTreeMap<_, _>, expect: Option<(u32, vm::StallAction)>| {
            let sent = vm_spec(VmId::from_u128(1), &VmSpec { stall, ..spec.clone() }, pools).stall;
            assert_eq!(sent.map(|stall| (stall.deadline_ms, stall.action())), expect);
        };
        check(None, &BTreeMap::new(), None);
        check(None, &pools, Some((7000, vm::StallAction::Pause)));
        check(Some(policy(9, StallAction::Stop)), &pools, Some((9000, vm::StallAction::Stop)));
        check(Some(StallPolicy::default()), &pools, Some((0, vm::StallAction::Unspecified)));
    }

    #[test]
    fn a_vm_reported_twice_is_refused() {
        let info = vm::VmInfo {
            vm_id: VmId::from_u128(1).to_string(),
            state: vm::VmState::Running.into(),
            ..vm::VmInfo::default()
        };
        let status = wire::VmStatus { info: Some(info), ..wire::VmStatus::default() };
        let node_id = VmId::from_u128(2).to_string();
        let request = |vms| wire::HeartbeatRequest { node_id: node_id.clone(), vms, ..Default::default() };
        assert_eq!(heartbeat(request(vec![status.clone()])).unwrap().vms.len(), 1);
        let error = heartbeat(request(vec![status.clone(), status])).unwrap_err();
        assert!(error.to_string().starts_with("vms[1]: VM"), "{error}");
        let error = heartbeat(request(vec![wire::VmStatus::default()])).unwrap_err();
        assert_eq!(error.to_string(), "vms[0].info: it is missing");
    }
}
