//! Pools.

use drover_cluster_state::{Pool, PoolState, RbdCredentials, RbdPool, Secret, WallTime};
use drover_ids::OperationId;
use drover_wire::store::v1 as stored;
use stored::pool::Kind;

use crate::{
    RecordError, StoredForm,
    fields::{id_bytes, invalid, name, optional_id, required},
};

impl StoredForm for Pool {
    type Message = stored::Pool;

    fn to_message(&self) -> stored::Pool {
        let state = match self.state {
            PoolState::Creating => stored::PoolState::Creating,
            PoolState::Ready => stored::PoolState::Ready,
            PoolState::Deleting => stored::PoolState::Deleting,
        };
        stored::Pool {
            name: self.name.to_string(),
            kind: Some(Kind::Rbd(self.rbd.to_message())),
            state: state.into(),
            operation_id: self.operation.map(|id| id_bytes(id.as_u128())).unwrap_or_default(),
            created_at_ms: self.created_at.as_unix_millis(),
            stall: self.stall.as_ref().map(StoredForm::to_message),
        }
    }

    fn from_message(message: stored::Pool) -> Result<Self, RecordError> {
        let state = match message.state() {
            stored::PoolState::Creating => PoolState::Creating,
            stored::PoolState::Ready => PoolState::Ready,
            stored::PoolState::Deleting => PoolState::Deleting,
            stored::PoolState::Unspecified => return Err(invalid("pool.state", message.state)),
        };
        let Kind::Rbd(rbd) = required("pool.kind", message.kind)?;
        Ok(Self {
            name: name("pool.name", &message.name)?,
            rbd: StoredForm::from_message(rbd)?,
            state,
            operation: optional_id("pool.operation_id", &message.operation_id, OperationId::from_u128)?,
            created_at: WallTime::from_unix_millis(message.created_at_ms),
            stall: message.stall.map(StoredForm::from_message).transpose()?,
        })
    }
}

impl StoredForm for RbdPool {
    type Message = stored::RbdPool;

    fn to_message(&self) -> stored::RbdPool {
        stored::RbdPool {
            cluster: self.cluster.to_string(),
            ceph_pool: self.ceph_pool.clone(),
            namespace: self.namespace.clone(),
            user: self.user.clone(),
            credentials: self.credentials.as_ref().map(|credentials| stored::RbdCredentials {
                mon_hosts: credentials.mon_hosts.clone(),
                key: credentials.key.expose().to_owned(),
            }),
        }
    }

    fn from_message(message: stored::RbdPool) -> Result<Self, RecordError> {
        Ok(Self {
            cluster: name("pool.rbd.cluster", &message.cluster)?,
            ceph_pool: message.ceph_pool,
            namespace: message.namespace,
            user: message.user,
            credentials: message.credentials.map(|credentials| RbdCredentials {
                mon_hosts: credentials.mon_hosts,
                key: Secret::new(credentials.key),
            }),
        })
    }
}
