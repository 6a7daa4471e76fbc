//! VMs.

use std::{sync::Arc, time::Duration};

use drover_cloud_init::{Seed, Unchecked};
use drover_cluster_state::{
    Constraints, Desired, Restarts, StallAction, StallPolicy, StopCause, Vm, VmSpec, VolumeAttachment,
    WallTime,
};
use drover_ids::{Generation, NodeId, OperationId, VmId, VolumeId};
use drover_placement_messages::{constraints_from, constraints_message};
use drover_units::{Bytes, VcpuCount};
use drover_wire::store::v1 as stored;
use stored::stop_cause::Cause;

use crate::{
    RecordError, StoredForm,
    fields::{id, id_bytes, invalid, name, optional_id, optional_name, placement, required},
    guest_devices,
};

impl StoredForm for Vm {
    type Message = stored::Vm;

    fn to_message(&self) -> stored::Vm {
        let desired = match self.desired {
            Desired::Running => stored::Desired::Running,
            Desired::Stopped => stored::Desired::Stopped,
            Desired::Deleted => stored::Desired::Deleted,
        };
        stored::Vm {
            id: id_bytes(self.id.as_u128()),
            spec: Some(self.spec.to_message()),
            generation: self.generation.get(),
            desired: desired.into(),
            stop_cause: self.stop_cause.as_ref().map(StoredForm::to_message),
            suspended_on: self.suspended_on.map(|id| id_bytes(id.as_u128())).unwrap_or_default(),
            ownership: Some(self.ownership.to_message()),
            restarts: Some(stored::Restarts {
                count: self.restarts.count,
                failures: self.restarts.failures,
                last_reason: self.restarts.last_reason.clone(),
            }),
            operation_id: self.operation.map(|id| id_bytes(id.as_u128())).unwrap_or_default(),
            created_at_ms: self.created_at.as_unix_millis(),
        }
    }

    fn from_message(message: stored::Vm) -> Result<Self, RecordError> {
        let desired = match message.desired() {
            stored::Desired::Running => Desired::Running,
            stored::Desired::Stopped => Desired::Stopped,
            stored::Desired::Deleted => Desired::Deleted,
            stored::Desired::Unspecified => return Err(invalid("vm.desired", message.desired)),
        };
        let restarts = required("vm.restarts", message.restarts)?;
        Ok(Self {
            id: id("vm.id", &message.id, VmId::from_u128)?,
            spec: StoredForm::from_message(required("vm.spec", message.spec)?)?,
            generation: Generation::new(message.generation),
            desired,
            stop_cause: message.stop_cause.map(StoredForm::from_message).transpose()?,
            suspended_on: optional_id("vm.suspended_on", &message.suspended_on, NodeId::from_u128)?,
            ownership: StoredForm::from_message(required("vm.ownership", message.ownership)?)?,
            restarts: Restarts {
                count: restarts.count,
                failures: restarts.failures,
                last_reason: restarts.last_reason,
            },
            operation: optional_id("vm.operation_id", &message.operation_id, OperationId::from_u128)?,
            created_at: WallTime::from_unix_millis(message.created_at_ms),
        })
    }
}

impl StoredForm for StopCause {
    type Message = stored::StopCause;

    fn to_message(&self) -> stored::StopCause {
        let cause = match self {
            Self::Requested => Cause::Requested(stored::Empty {}),
            Self::GuestShutdown => Cause::GuestShutdown(stored::Empty {}),
            Self::Suspended => Cause::Suspended(stored::Empty {}),
            Self::StartFailed(reason) => Cause::StartFailed(reason.clone()),
        };
        stored::StopCause { cause: Some(cause) }
    }

    fn from_message(message: stored::StopCause) -> Result<Self, RecordError> {
        Ok(match required("vm.stop_cause", message.cause)? {
            Cause::Requested(_) => Self::Requested,
            Cause::GuestShutdown(_) => Self::GuestShutdown,
            Cause::Suspended(_) => Self::Suspended,
            Cause::StartFailed(reason) => Self::StartFailed(reason),
        })
    }
}

impl StoredForm for VmSpec {
    type Message = stored::VmSpec;

    fn to_message(&self) -> stored::VmSpec {
        let (nics, disk_limits) = guest_devices::to_messages(&self.devices);
        let mut message = stored::VmSpec {
            name: self.name.to_string(),
            vcpus: self.vcpus.get(),
            memory_bytes: self.memory.get(),
            image: self.image.to_string(),
            image_pool: self.image_pool.to_string(),
            cmdline: self.cmdline.clone(),
            volumes: self.volumes.iter().map(StoredForm::to_message).collect(),
            anti_affinity_group: self
                .anti_affinity_group
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            priority: self.priority,
            cloud_init: self.cloud_init.as_deref().map(StoredForm::to_message),
            nics,
            disk_limits,
            constraints: (self.constraints != Constraints::default())
                .then(|| constraints_message(&self.constraints, |vm| vm.to_string())),
            stall: self.stall.as_ref().map(StoredForm::to_message),
            ..stored::VmSpec::default()
        };
        guest_devices::put_hardware(&self.devices.hardware, &mut message);
        guest_devices::put_places(&self.devices, &mut message);
        message
    }

    fn from_message(message: stored::VmSpec) -> Result<Self, RecordError> {
        let hardware = guest_devices::hardware(&message)?;
        let mut devices = guest_devices::from_messages(message.nics, message.disk_limits, hardware)?;
        guest_devices::take_places(&mut devices, (message.disk_places, message.seed_place))?;
        Ok(Self {
            name: name("vm.spec.name", &message.name)?,
            vcpus: VcpuCount::new(message.vcpus),
            memory: Bytes::new(message.memory_bytes),
            image: name("vm.spec.image", &message.image)?,
            image_pool: name("vm.spec.image_pool", &message.image_pool)?,
            cmdline: message.cmdline,
            volumes: message.volumes.into_iter().map(StoredForm::from_message).collect::<Result<_, _>>()?,
            anti_affinity_group: optional_name("vm.spec.anti_affinity_group", &message.anti_affinity_group)?,
            priority: message.priority,
            cloud_init: message.cloud_init.map(Seed::from_message).transpose()?.map(Arc::new),
            devices,
            constraints: constraints_from(message.constraints.unwrap_or_default(), |vm| vm.parse().ok())
                .map_err(placement("vm.spec.constraints"))?,
            stall: message.stall.map(StoredForm::from_message).transpose()?,
        })
    }
}

impl StoredForm for Seed {
    type Message = stored::CloudInit;

    fn to_message(&self) -> stored::CloudInit {
        let fields = self.fields().clone();
        stored::CloudInit {
            hostname: fields.hostname,
            ssh_keys: fields.ssh_keys,
            user_data: fields.user_data,
            network_config: fields.network_config,
        }
    }

    fn from_message(message: stored::CloudInit) -> Result<Self, RecordError> {
        let stored::CloudInit { hostname, ssh_keys, user_data, network_config } = message;
        let raw = Unchecked { hostname, ssh_keys, user_data, network_config };
        // The error says what is wrong and does not repeat it.
        Self::try_from(raw).map_err(|error| invalid("vm.spec.cloud_init", error))
    }
}

impl StoredForm for VolumeAttachment {
    type Message = stored::VolumeAttachment;

    fn to_message(&self) -> stored::VolumeAttachment {
        stored::VolumeAttachment {
            volume_id: id_bytes(self.volume.as_u128()),
            pool: self.pool.to_string(),
            read_only: self.read_only,
        }
    }

    fn from_message(message: stored::VolumeAttachment) -> Result<Self, RecordError> {
        Ok(Self {
            volume: id("volume_attachment.volume_id", &message.volume_id, VolumeId::from_u128)?,
            pool: name("volume_attachment.pool", &message.pool)?,
            read_only: message.read_only,
        })
    }
}

impl StoredForm for StallPolicy {
    type Message = stored::StallPolicy;

    fn to_message(&self) -> stored::StallPolicy {
        let action = match self.action {
            StallAction::Wait => stored::StallAction::Unspecified,
            StallAction::Pause => stored::StallAction::Pause,
            StallAction::Stop => stored::StallAction::Stop,
        };
        let deadline_ms = self.deadline.map_or(0, |deadline| deadline.as_millis());
        stored::StallPolicy {
            deadline_ms: u32::try_from(deadline_ms).unwrap_or(u32::MAX),
            action: action.into(),
        }
    }

    fn from_message(message: stored::StallPolicy) -> Result<Self, RecordError> {
        let action = match stored::StallAction::try_from(message.action) {
            Ok(stored::StallAction::Unspecified) => StallAction::Wait,
            Ok(stored::StallAction::Pause) => StallAction::Pause,
            Ok(stored::StallAction::Stop) => StallAction::Stop,
            Err(_) => return Err(invalid("stall.action", message.action)),
        };
        let deadline = u64::from(message.deadline_ms);
        Ok(Self { deadline: (deadline > 0).then(|| Duration::from_millis(deadline)), action })
    }
}
