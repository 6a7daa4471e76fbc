//! Operations.

use std::time::Duration;

use drover_cluster_state::{
    MigrationResult, Moves, MovesPurpose, NodeRejection, Operation, OperationKind, OperationState,
    PlannedMove, WallTime,
};
use drover_ids::{MigrationId, NodeId, OperationId, VmId};
use drover_placement_messages::{explanation_from, explanation_message};
use drover_wire::store::v1 as stored;
use stored::operation_kind::Kind;

use crate::{
    RecordError, StoredForm,
    fields::{id, id_bytes, invalid, micros, name, optional_id, placement, required},
    storage_work,
};

impl StoredForm for Operation {
    type Message = stored::Operation;

    fn to_message(&self) -> stored::Operation {
        let state = match self.state {
            OperationState::Running => stored::OperationState::Running,
            OperationState::Done => stored::OperationState::Done,
            OperationState::Failed => stored::OperationState::Failed,
            OperationState::Cancelled => stored::OperationState::Cancelled,
        };
        stored::Operation {
            id: id_bytes(self.id.as_u128()),
            kind: Some(self.kind.to_message()),
            subject: Some(self.subject.to_message()),
            subject_name: self.subject_name.to_string(),
            state: state.into(),
            step: self.step.clone(),
            percent: self.percent.into(),
            reason: self.reason.clone(),
            rejections: self.rejections.iter().map(StoredForm::to_message).collect(),
            migration: self.migration.as_ref().map(StoredForm::to_message),
            cancel_requested: self.cancel_requested,
            created_at_ms: self.created_at.as_unix_millis(),
            ended_at_ms: self.ended_at.map(WallTime::as_unix_millis),
            explanation: self.explanation.as_deref().map(explanation_message),
            parent_id: self.parent.map(|id| id_bytes(id.as_u128())).unwrap_or_default(),
            hold: self.hold.as_ref().map(StoredForm::to_message),
            placement_ns: self.placement.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
        }
    }

    fn from_message(message: stored::Operation) -> Result<Self, RecordError> {
        let state = match message.state() {
            stored::OperationState::Running => OperationState::Running,
            stored::OperationState::Done => OperationState::Done,
            stored::OperationState::Failed => OperationState::Failed,
            stored::OperationState::Cancelled => OperationState::Cancelled,
            stored::OperationState::Unspecified => return Err(invalid("operation.state", message.state)),
        };
        let percent = u8::try_from(message.percent).ok().filter(|percent| *percent <= 100);
        Ok(Self {
            id: id("operation.id", &message.id, OperationId::from_u128)?,
            kind: StoredForm::from_message(required("operation.kind", message.kind)?)?,
            subject: StoredForm::from_message(required("operation.subject", message.subject)?)?,
            subject_name: name("operation.subject_name", &message.subject_name)?,
            state,
            step: message.step,
            percent: percent.ok_or_else(|| invalid("operation.percent", message.percent))?,
            reason: message.reason,
            rejections: message
                .rejections
                .into_iter()
                .map(StoredForm::from_message)
                .collect::<Result<_, _>>()?,
            migration: message.migration.map(StoredForm::from_message).transpose()?,
            cancel_requested: message.cancel_requested,
            created_at: WallTime::from_unix_millis(message.created_at_ms),
            ended_at: message.ended_at_ms.map(WallTime::from_unix_millis),
            placement: message.placement_ns.map(Duration::from_nanos),
            explanation: message
                .explanation
                .map(explanation_from)
                .transpose()
                .map_err(placement("operation.explanation"))?
                .map(Box::new),
            parent: optional_id("operation.parent_id", &message.parent_id, OperationId::from_u128)?,
            hold: message.hold.map(StoredForm::from_message).transpose()?,
        })
    }
}

impl StoredForm for OperationKind {
    type Message = stored::OperationKind;

    fn to_message(&self) -> stored::OperationKind {
        let kind = match self {
            Self::VmCreate => Kind::VmCreate(stored::Empty {}),
            Self::VmStart => Kind::VmStart(stored::Empty {}),
            Self::VmStop { graceful_ms } => Kind::VmStop(stored::VmStop { graceful_ms: *graceful_ms }),
            Self::VmMigrate { target, downtime_target_ms, migration } => Kind::VmMigrate(stored::VmMigrate {
                target_id: target.map(|id| id_bytes(id.as_u128())).unwrap_or_default(),
                downtime_target_ms: *downtime_target_ms,
                migration_id: migration.map(|id| id_bytes(id.as_u128())).unwrap_or_default(),
            }),
            Self::VmDelete => Kind::VmDelete(stored::Empty {}),
            Self::VolumeImport => Kind::VolumeImport(stored::Empty {}),
            Self::ImageImport => Kind::ImageImport(stored::Empty {}),
            Self::Storage(work) => storage_work::to_kind(work),
            Self::VmSetCreate { count } => Kind::VmSetCreate(*count),
            Self::Moves(moves) => Kind::Moves(moves.to_message()),
        };
        stored::OperationKind { kind: Some(kind) }
    }

    fn from_message(message: stored::OperationKind) -> Result<Self, RecordError> {
        Ok(match required("operation.kind", message.kind)? {
            Kind::VmCreate(_) => Self::VmCreate,
            Kind::VmStart(_) => Self::VmStart,
            Kind::VmStop(stop) => Self::VmStop { graceful_ms: stop.graceful_ms },
            Kind::VmMigrate(migrate) => Self::VmMigrate {
                target: optional_id("vm_migrate.target_id", &migrate.target_id, NodeId::from_u128)?,
                downtime_target_ms: migrate.downtime_target_ms,
                migration: optional_id(
                    "vm_migrate.migration_id",
                    &migrate.migration_id,
                    MigrationId::from_u128,
                )?,
            },
            Kind::VmDelete(_) => Self::VmDelete,
            Kind::VolumeImport(_) => Self::VolumeImport,
            Kind::ImageImport(_) => Self::ImageImport,
            Kind::VmSetCreate(count) => Self::VmSetCreate { count },
            Kind::Moves(moves) => Self::Moves(StoredForm::from_message(moves)?),
            kind => Self::Storage(storage_work::from_kind(&kind)?),
        })
    }
}

impl StoredForm for Moves {
    type Message = stored::Moves;

    fn to_message(&self) -> stored::Moves {
        let purpose = match self.purpose {
            MovesPurpose::DrainNode => stored::MovesPurpose::DrainNode,
            MovesPurpose::DrainRack => stored::MovesPurpose::DrainRack,
            MovesPurpose::Rebalance => stored::MovesPurpose::Rebalance,
            MovesPurpose::Defragment => stored::MovesPurpose::Defragment,
        };
        let planned = |mv: &PlannedMove| stored::PlannedMove {
            vm_id: id_bytes(mv.vm.as_u128()),
            from_id: id_bytes(mv.from.as_u128()),
            to_id: id_bytes(mv.to.as_u128()),
        };
        stored::Moves {
            purpose: purpose.into(),
            parallel: self.parallel,
            total: self.total,
            planned: self.planned.iter().map(planned).collect(),
        }
    }

    fn from_message(message: stored::Moves) -> Result<Self, RecordError> {
        let purpose = match message.purpose() {
            stored::MovesPurpose::DrainNode => MovesPurpose::DrainNode,
            stored::MovesPurpose::DrainRack => MovesPurpose::DrainRack,
            stored::MovesPurpose::Rebalance => MovesPurpose::Rebalance,
            stored::MovesPurpose::Defragment => MovesPurpose::Defragment,
            stored::MovesPurpose::Unspecified => return Err(invalid("moves.purpose", message.purpose)),
        };
        let planned = |mv: stored::PlannedMove| -> Result<PlannedMove, RecordError> {
            Ok(PlannedMove {
                vm: id("planned_move.vm_id", &mv.vm_id, VmId::from_u128)?,
                from: id("planned_move.from_id", &mv.from_id, NodeId::from_u128)?,
                to: id("planned_move.to_id", &mv.to_id, NodeId::from_u128)?,
            })
        };
        Ok(Self {
            purpose,
            parallel: message.parallel,
            total: message.total,
            planned: message.planned.into_iter().map(planned).collect::<Result<_, _>>()?,
        })
    }
}

impl StoredForm for NodeRejection {
    type Message = stored::NodeRejection;

    fn to_message(&self) -> stored::NodeRejection {
        stored::NodeRejection {
            node_id: id_bytes(self.node.as_u128()),
            name: self.name.to_string(),
            reasons: self.reasons.clone(),
        }
    }

    fn from_message(message: stored::NodeRejection) -> Result<Self, RecordError> {
        Ok(Self {
            node: id("node_rejection.node_id", &message.node_id, NodeId::from_u128)?,
            name: name("node_rejection.name", &message.name)?,
            reasons: message.reasons,
        })
    }
}

impl StoredForm for MigrationResult {
    type Message = stored::MigrationResult;

    fn to_message(&self) -> stored::MigrationResult {
        stored::MigrationResult {
            rounds: self.rounds,
            bytes: self.bytes,
            total_us: micros(self.total),
            downtime_us: micros(self.downtime),
            source_id: id_bytes(self.source.as_u128()),
            target_id: id_bytes(self.target.as_u128()),
        }
    }

    fn from_message(message: stored::MigrationResult) -> Result<Self, RecordError> {
        Ok(Self {
            rounds: message.rounds,
            bytes: message.bytes,
            total: Duration::from_micros(message.total_us),
            downtime: Duration::from_micros(message.downtime_us),
            source: id("migration_result.source_id", &message.source_id, NodeId::from_u128)?,
            target: id("migration_result.target_id", &message.target_id, NodeId::from_u128)?,
        })
    }
}
