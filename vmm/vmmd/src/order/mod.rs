//! What clients ask for, once it has been understood: wire messages become [`Order`]s here and nowhere else, and what
//! cannot become one is refused with the field's name and what would be valid.

mod devices;
mod fields;
mod hotplug;
mod limits;
mod nic;
mod storage;
mod vm_config;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use drover_ids::{MigrationId, OwnerEpoch, VolumeId};
use drover_lifecycle::{BootTime, Command, Lease, Request};
use drover_machine::devices::{MacAddress, limits::Limits};
use drover_wire::vm::v1 as wire;

use self::fields::{invalid, parsed};
#[cfg(test)]
pub(crate) use self::vm_config::Platform;
use self::vm_config::absolute;
pub(crate) use self::{
    fields::InvalidField,
    hotplug::{AttachOrder, Change, DetachOrder, NewPart},
    nic::NicConfig,
    storage::{DiskPlace, RbdAccess, RbdImage, StallAction, StallPolicy},
    vm_config::{DiskConfig, VmConfig},
};

/// Longest downtime that may be asked for: beyond this a migration is a stop and a start.
const DOWNTIME_MS_MAX: u32 = 10_000;

/// One command, with everything that is needed to carry it out.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) command: Command,
    pub(crate) task: Task,
}

#[derive(Clone, Debug)]
pub(crate) enum Task {
    Create { config: VmConfig, lease: Option<Lease>, resume: Option<PathBuf> },
    Start,
    Pause,
    Resume,
    Suspend { path: PathBuf },
    Stop,
    MigrateOut(Outgoing),
    CancelMigration { migration: MigrationId },
    MigrateIn(Incoming),
}

/// Where to send the VM, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing {
    pub(crate) migration: MigrationId,
    pub(crate) target: SocketAddr,
    pub(crate) target_epoch: OwnerEpoch,
    /// `None`: drover-migration's default.
    pub(crate) downtime_target: Option<Duration>,
}

/// What to wait for, and where.
#[derive(Clone, Debug)]
pub(crate) struct Incoming {
    pub(crate) migration: MigrationId,
    pub(crate) config: VmConfig,
    pub(crate) listen: SocketAddr,
    pub(crate) lease: Option<Lease>,
}

impl Task {
    /// What the lifecycle has to know of this.
    pub(crate) fn request(&self) -> Request {
        match self {
            Self::Create { lease, .. } => Request::Create { lease: *lease },
            Self::Start => Request::Start,
            Self::Pause => Request::Pause,
            Self::Resume => Request::Resume,
            Self::Suspend { .. } => Request::Suspend,
            Self::Stop => Request::Stop,
            Self::MigrateOut(outgoing) => {
                Request::MigrateOut { migration: outgoing.migration, target_epoch: outgoing.target_epoch }
            }
            Self::CancelMigration { migration } => Request::CancelMigration { migration: *migration },
            Self::MigrateIn(incoming) => {
                Request::MigrateIn { migration: incoming.migration, lease: incoming.lease }
            }
        }
    }
}

impl TryFrom<wire::CreateRequest> for Order {
    type Error = InvalidField;

    fn try_from(message: wire::CreateRequest) -> Result<Self, InvalidField> {
        let command = command(message.command)?;
        let config = message.config.ok_or_else(|| invalid("config", "is missing", "a VmConfig"))?;
        let resume = match message.resume_path {
            path if path.is_empty() => None,
            path => Some(absolute("resume_path", path)?),
        };
        let lease = optional_lease(message.lease)?;
        let task = Task::Create { config: config.try_into()?, lease, resume };
        Ok(Self { command, task })
    }
}

impl TryFrom<wire::StartRequest> for Order {
    type Error = InvalidField;

    fn try_from(message: wire::StartRequest) -> Result<Self, InvalidField> {
        Ok(Self { command: command(message.command)?, task: Task::Start })
    }
}

impl TryFrom<wire::PauseRequest> for Order {
    type Error = InvalidField;

    fn try_from(message: wire::PauseRequest) -> Result<Self, InvalidField> {
        Ok(Self { command: command(message.command)?, task: Task::Pause })
    }
}

impl TryFrom<wire::ResumeRequest> for Order {
    type Error = InvalidField;

    fn try_from(message: wire::ResumeRequest) -> Result<Self, InvalidField> {
        Ok(Self { command: command(message.command)?, task: Task::Resume })
    }
}

impl TryFrom<wire::SuspendRequest> for Order {
    type Error = InvalidField;

    fn try_from(message: wire::SuspendRequest) -> Result<Self, InvalidField> {
        let path = absolute("path", message.path)?;
        Ok(Self { command: command(message.command)?, task: Task::Suspend { path } })
    }
}

impl TryFrom<wire::StopRequest> for Order {
    type Error = InvalidField;

    fn try_from(message: wire::StopRequest) -> Result<Self, InvalidField> {
        Ok(Self { command: command(message.command)?, task: Task::Stop })
    }
}

impl TryFrom<wire::MigrateOutRequest> for Order {
    type Error = InvalidField;

    fn try_from(message: wire::MigrateOutRequest) -> Result<Self, InvalidField> {
        if message.downtime_target_ms > DOWNTIME_MS_MAX {
            return Err(invalid(
                "downtime_target_ms",
                message.downtime_target_ms,
                &format!("1 to {DOWNTIME_MS_MAX}, or 0 for the default"),
            ));
        }
        let outgoing = Outgoing {
            migration: parsed("migration_id", &message.migration_id)?,
            target: address("target_address", &message.target_address)?,
            target_epoch: OwnerEpoch::new(message.target_epoch),
            downtime_target: (message.downtime_target_ms > 0)
                .then(|| Duration::from_millis(message.downtime_target_ms.into())),
        };
        Ok(Self { command: command(message.command)?, task: Task::MigrateOut(outgoing) })
    }
}

impl TryFrom<wire::CancelMigrationRequest> for Order {
    type Error = InvalidField;

    fn try_from(message: wire::CancelMigrationRequest) -> Result<Self, InvalidField> {
        let migration = parsed("migration_id", &message.migration_id)?;
        Ok(Self { command: command(message.command)?, task: Task::CancelMigration { migration } })
    }
}

impl TryFrom<wire::MigrateInRequest> for Order {
    type Error = InvalidField;

    fn try_from(message: wire::MigrateInRequest) -> Result<Self, InvalidField> {
        let config = message.config.ok_or_else(|| invalid("config", "is missing", "a VmConfig"))?;
        let incoming = Incoming {
            migration: parsed("migration_id", &message.migration_id)?,
            config: config.try_into()?,
            listen: address("listen_address", &message.listen_address)?,
            lease: optional_lease(message.lease)?,
        };
        Ok(Self { command: command(message.command)?, task: Task::MigrateIn(incoming) })
    }
}

/// A renewal of the lease.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Renewal {
    pub(crate) epoch: OwnerEpoch,
    pub(crate) lease: Lease,
}

impl TryFrom<wire::ExtendLeaseRequest> for Renewal {
    type Error = InvalidField;

    fn try_from(message: wire::ExtendLeaseRequest) -> Result<Self, InvalidField> {
        let lease = optional_lease(message.lease)?
            .ok_or_else(|| invalid("lease", "is missing", "a Lease with both deadlines"))?;
        Ok(Self { epoch: OwnerEpoch::new(message.owner_epoch), lease })
    }
}

/// New limits of a device.
#[derive(Clone, Debug)]
pub(crate) struct LimitsOrder {
    pub(crate) command: Command,
    pub(crate) device: LimitedDevice,
    pub(crate) limits: Limits,
}

/// What can be limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LimitedDevice {
    Disk(VolumeId),
    Nic(MacAddress),
}

impl TryFrom<wire::SetLimitsRequest> for LimitsOrder {
    type Error = InvalidField;

    fn try_from(message: wire::SetLimitsRequest) -> Result<Self, InvalidField> {
        use wire::set_limits_request::Device;
        let device = match message.device {
            Some(Device::VolumeId(id)) => LimitedDevice::Disk(parsed("volume_id", &id)?),
            Some(Device::Mac(mac)) => LimitedDevice::Nic(parsed("mac", &mac)?),
            None => return Err(invalid("device", "is missing", "a volume_id or a mac")),
        };
        let limits = limits::limits("limits", message.limits)?;
        Ok(Self { command: command(message.command)?, device, limits })
    }
}

/// A hold of the VM's disks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HoldOrder {
    pub(crate) command: Command,
    pub(crate) limit: Duration,
}

impl TryFrom<wire::HoldQueuesRequest> for HoldOrder {
    type Error = InvalidField;

    fn try_from(message: wire::HoldQueuesRequest) -> Result<Self, InvalidField> {
        let limit = Duration::from_millis(message.limit_ms.into());
        if limit.is_zero() || limit > crate::hold::LIMIT_MAX {
            let expected = format!("1 to {}", crate::hold::LIMIT_MAX.as_millis());
            return Err(invalid("limit_ms", message.limit_ms, &expected));
        }
        Ok(Self { command: command(message.command)?, limit })
    }
}

pub(crate) fn command(message: Option<wire::Command>) -> Result<Command, InvalidField> {
    let message = message
        .ok_or_else(|| invalid("command", "is missing", "a Command with operation_id and owner_epoch"))?;
    Ok(Command {
        operation: parsed("command.operation_id", &message.operation_id)?,
        epoch: OwnerEpoch::new(message.owner_epoch),
    })
}

fn optional_lease(message: Option<wire::Lease>) -> Result<Option<Lease>, InvalidField> {
    let Some(message) = message else { return Ok(None) };
    let at = BootTime::from_ns;
    match Lease::new(at(message.pause_at_boottime_ns), at(message.kill_at_boottime_ns)) {
        Ok(lease) => Ok(Some(lease)),
        Err(error) => Err(InvalidField::new(error)),
    }
}

/// Addresses are numeric: agents exchange the ones they listen on, and a resolver in this process could block it.
fn address(field: &'static str, text: &str) -> Result<SocketAddr, InvalidField> {
    text.parse().map_err(|_| invalid(field, text, "an IP address with a port, such as 192.0.2.7:7410"))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn wire_command() -> wire::Command {
        wire::Command { operation_id: "00000000-0000-0000-0000-000000000001".to_owned(), owner_epoch: 1 }
    }

    fn migrate_out() -> wire::MigrateOutRequest {
        wire::MigrateOutRequest {
            command: Some(wire_command()),
            migration_id: "00000000-0000-0000-0000-000000000002".to_owned(),
            target_address: "127.0.0.1:7000".to_owned(),
            target_epoch: 2,
            downtime_target_ms: 0,
        }
    }

    #[test]
    fn a_migration_that_cannot_be_is_refused_by_field() {
        let check = |change: fn(&mut wire::MigrateOutRequest), field: &str| {
            let mut message = migrate_out();
            change(&mut message);
            let error = Order::try_from(message).expect_err(field).to_string();
            assert!(error.starts_with(field), "{error}");
        };
        assert!(Order::try_from(migrate_out()).is_ok());
        check(|message| message.command = None, "command ");
        check(|message| message.migration_id = "7".to_owned(), "migration_id");
        check(|message| message.target_address = "localhost:1".to_owned(), "target_address");
        check(|message| message.downtime_target_ms = DOWNTIME_MS_MAX + 1, "downtime_target_ms");
    }

    #[test]
    fn a_lease_without_deadlines_is_refused() {
        let lease = Some(wire::Lease { pause_at_boottime_ns: 5, kill_at_boottime_ns: 5 });
        let error =
            Renewal::try_from(wire::ExtendLeaseRequest { owner_epoch: 1, lease }).expect_err("refused");
        assert!(error.to_string().contains("must be later"), "{error}");
        let error =
            Renewal::try_from(wire::ExtendLeaseRequest { owner_epoch: 1, lease: None }).expect_err("refused");
        assert!(error.to_string().starts_with("lease"), "{error}");
    }
}
