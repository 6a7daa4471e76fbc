//! Commands on VMs.

use drover_client::{
    LogRange,
    api::{
        AttachNicRequest, AttachVolumeRequest, DetachNicRequest, DetachVolumeRequest, MigrateVmRequest,
        Operation, SetLimitsRequest, VmSpec, set_limits_request::Device,
    },
    vm_api::{
        BalloonDevice, DeviceBus, GuestReset, Limit, Limits, Rate, StallAction, StallPolicy, VirtioDevices,
        VsockDevice,
    },
};
use drover_units::Bytes;

use crate::{
    Session,
    arguments::{self, AttachArgs, CreateVm, DetachArgs, LimitArgs, Stall, VmCommand},
    output::{BalloonRow, OperationRow, VmRow, print_details, print_note, print_row, print_rows},
    terminal::{self, Ended},
};

use super::{constraints::constraints, placement::explained, rows, settle, storage};

pub(super) async fn run(session: &Session, command: VmCommand) -> anyhow::Result<()> {
    let client = &session.client;
    match command {
        VmCommand::Create { vm, count: None } => {
            let operation = client.create_vm(spec(vm)?).await?;
            settle_and_show(session, operation).await
        }
        VmCommand::Create { vm, count: Some(count) } => {
            let operation = client.create_vm_group(spec(vm)?, count).await?;
            match settle(session, operation).await? {
                Some(ended) => print_details(session.format, &OperationRow::from(ended)),
                None => Ok(()),
            }
        }
        VmCommand::Explain { vm } => explained(session, client.explain_vm(&vm).await?),
        VmCommand::List => print_rows(session.format, &rows::<_, VmRow>(client.list_vms().await?)),
        VmCommand::Show { vm } => print_details(session.format, &VmRow::from(client.get_vm(&vm).await?)),
        VmCommand::Attach(arguments) => {
            let AttachArgs { vm, volume, read_only, nic } = arguments;
            let attached = match volume {
                Some(volume) => client.attach_volume(AttachVolumeRequest { vm, volume, read_only }).await?,
                None => client.attach_nic(AttachNicRequest { vm, nic }).await?,
            };
            print_row(session.format, &VmRow::from(attached))
        }
        VmCommand::Detach(arguments) => {
            let DetachArgs { vm, volume, nic, force, wait } = arguments;
            let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
            let detached = match volume {
                Some(volume) => {
                    client.detach_volume(DetachVolumeRequest { vm, volume, force, wait_ms }).await?
                }
                // One of the two is required.
                None => {
                    let mac = nic.unwrap_or_default();
                    client.detach_nic(DetachNicRequest { vm, mac, force, wait_ms }).await?
                }
            };
            print_row(session.format, &VmRow::from(detached))
        }
        VmCommand::Limit(arguments) => {
            print_row(session.format, &VmRow::from(client.set_limits(limits(arguments)).await?))
        }
        VmCommand::Start { vm } => settle_and_show(session, client.start_vm(&vm).await?).await,
        VmCommand::Stop { vm, graceful: false, .. } => {
            settle_and_show(session, client.stop_vm(&vm).await?).await
        }
        VmCommand::Stop { vm, graceful: true, within } => {
            settle_and_show(session, client.stop_vm_gracefully(&vm, within).await?).await
        }
        VmCommand::Suspend { vm } => print_row(session.format, &VmRow::from(client.suspend_vm(&vm).await?)),
        VmCommand::Resume { vm } => settle_and_show(session, client.start_vm(&vm).await?).await,
        VmCommand::Balloon { vm, target, reclaim } => {
            if reclaim {
                let reclaimed = client.reclaim_free_memory(&vm).await?;
                let bytes = Bytes::new(reclaimed.reclaimed_bytes);
                print_note(session.format, &format!("{bytes} of {vm} are the host's again"))?;
            }
            let status = match target {
                Some(target) => client.set_balloon(&vm, target.get()).await?,
                None => client.balloon(&vm).await?,
            };
            print_details(session.format, &BalloonRow::from(status))
        }
        VmCommand::Migrate { vm, to, downtime } => {
            let request = MigrateVmRequest {
                vm,
                target_node: to.unwrap_or_default(),
                downtime_target_ms: downtime.unwrap_or_default(),
                ..MigrateVmRequest::default()
            };
            let operation = client.migrate_vm(request).await?;
            match settle(session, operation).await? {
                Some(ended) => print_details(session.format, &OperationRow::from(ended)),
                None => Ok(()),
            }
        }
        VmCommand::Snapshot(command) => storage::vm_snapshot(session, command).await,
        VmCommand::Delete { vm } => match settle(session, client.delete_vm(&vm).await?).await? {
            Some(ended) => print_note(session.format, &format!("{} is deleted", ended.subject_name)),
            None => Ok(()),
        },
        VmCommand::Console { vm } => {
            let console = client.console(&vm).await?;
            match terminal::attach(client, console).await? {
                Ended::Detached => eprintln!("\ndetached from {vm}"),
                Ended::ByTheVm => eprintln!("\nthe console of {vm} has ended"),
                Ended::BySignal => {}
            }
            Ok(())
        }
        VmCommand::Logs { vm, follow, tail } => {
            let mut log = client.logs(&vm, LogRange { tail, follow }).await?;
            while let Some(part) = terminal::next(client, &mut log).await? {
                terminal::show(&part.data, part.lost)?;
            }
            Ok(())
        }
    }
}

/// Shows the VM as it is once the operation has ended.
async fn settle_and_show(session: &Session, operation: Operation) -> anyhow::Result<()> {
    match settle(session, operation).await? {
        Some(ended) => {
            print_row(session.format, &VmRow::from(session.client.get_vm(&ended.subject_id).await?))
        }
        None => Ok(()),
    }
}

pub(super) fn spec(arguments: CreateVm) -> anyhow::Result<VmSpec> {
    let devices = extras(&arguments.hardware);
    Ok(VmSpec {
        constraints: constraints(&arguments.place)?,
        name: arguments.name,
        vcpus: arguments.vcpus,
        memory_bytes: arguments.memory.get(),
        image: arguments.image,
        cmdline: arguments.cmdline,
        volumes: arguments.volumes,
        nics: arguments.nics,
        volume_limits: Vec::new(),
        disk_queues: arguments.hardware.disk_queues,
        initrd: arguments.hardware.initrd,
        bus: match arguments.hardware.bus {
            None => DeviceBus::Unspecified,
            Some(arguments::Bus::Mmio) => DeviceBus::VirtioMmio,
            Some(arguments::Bus::Pci) => DeviceBus::VirtioPci,
        }
        .into(),
        on_reset: match arguments.hardware.on_reset {
            arguments::Reset::Restart => GuestReset::Unspecified,
            arguments::Reset::End => GuestReset::End,
        }
        .into(),
        anti_affinity_group: arguments.anti_affinity,
        priority: arguments.priority,
        cloud_init: super::guest::cloud_init(&arguments.guest)?,
        stall: stall(arguments.stall),
        devices,
    })
}

/// Nothing is said where there are none.
fn extras(arguments: &arguments::HardwareArgs) -> Option<VirtioDevices> {
    let devices = VirtioDevices {
        rng: arguments.rng,
        console: arguments.console,
        balloon: arguments.balloon.then(BalloonDevice::default),
        vsock: arguments.vsock_cid.map(|cid| VsockDevice { cid: cid.into(), socket_path: String::new() }),
    };
    (devices != VirtioDevices::default()).then_some(devices)
}

/// Nothing is said unless one of the two is.
pub(super) fn stall(arguments: Stall) -> Option<StallPolicy> {
    let Stall { stall_action, stall_after } = arguments;
    if stall_action.is_none() && stall_after.is_none() {
        return None;
    }
    let action = match stall_action {
        None | Some(arguments::StallAction::Wait) => StallAction::Unspecified,
        Some(arguments::StallAction::Pause) => StallAction::Pause,
        Some(arguments::StallAction::Stop) => StallAction::Stop,
    };
    let deadline_ms = stall_after.map_or(0, |after| u32::try_from(after.as_millis()).unwrap_or(u32::MAX));
    // Zero would be the default; what is shorter than a millisecond is refused like anything too short.
    let deadline_ms = if stall_after.is_some() { deadline_ms.max(1) } else { 0 };
    Some(StallPolicy { deadline_ms, action: action.into() })
}

fn limits(arguments: LimitArgs) -> SetLimitsRequest {
    let limit = |iops: Option<(u64, u64)>, bandwidth: Option<(u64, u64)>| {
        let rate = |(per_second, burst)| Rate { per_second, burst };
        (iops.is_some() || bandwidth.is_some())
            .then(|| Limit { requests: iops.map(rate), bytes: bandwidth.map(rate) })
    };
    let LimitArgs { vm, volume, nic, .. } = arguments;
    let count = |count: Option<crate::arguments::Count>| count.map(|count| (count.0, count.1));
    let bytes = |bytes: Option<crate::arguments::ByteRate>| bytes.map(|bytes| (bytes.0, bytes.1));
    SetLimitsRequest {
        vm,
        // One of the two is required.
        device: volume.map(Device::Volume).or(nic.map(Device::Mac)),
        limits: Some(Limits {
            total: limit(count(arguments.iops), bytes(arguments.bandwidth)),
            inbound: limit(count(arguments.read_iops), bytes(arguments.read_bandwidth)),
            outbound: limit(count(arguments.write_iops), bytes(arguments.write_bandwidth)),
        }),
    }
}
