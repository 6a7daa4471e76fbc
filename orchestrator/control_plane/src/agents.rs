//! The node agents over gRPC.

use std::{
    collections::BTreeMap,
    error::Error as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use drover_ports::NodeAgents;
use drover_reconcile::{AgentAnswer, AgentCall, AgentCommand, CallError};
use drover_wire::{
    MAX_MESSAGE_BYTES,
    node::v1::{
        CancelMigrationRequest, EnsureVmRequest, GrantEpochRequest, MigrateOutRequest,
        PrepareIncomingRequest, PressPowerButtonRequest, StopVmRequest, VmStatus,
        node_agent_client::NodeAgentClient,
    },
    vm::v1::Command,
};
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};

use crate::{convert, status::describe};

/// Time to open a connection. On a network that works it takes milliseconds; an agent that is not there must not use
/// up a call's whole deadline.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often an idle connection with calls under way is asked whether it is alive, and how long it may take to answer:
/// a host that has lost its power sends no reset.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Connections that are kept. Far more than a cluster has nodes; agents that restart come with new ports.
const CHANNELS_MAX: usize = 1024;
/// Longest error text of an agent that is passed on, characters.
const REASON_MAX: usize = 512;

/// A connection to each agent, opened when it is first used and again when it is lost. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct AgentConnections {
    channels: Arc<Mutex<BTreeMap<String, Channel>>>,
}

impl AgentConnections {
    /// A client of the agent at `address` (host:port). Does not wait: the connection is opened by the first call.
    pub(crate) fn client(&self, address: &str) -> Result<NodeAgentClient<Channel>, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = match channels.get(address) {
            Some(channel) => channel.clone(),
            None => {
                let channel = connect(address)?;
                if channels.len() >= CHANNELS_MAX {
                    // Calls that are under way keep theirs.
                    channels.clear();
                }
                channels.insert(address.to_owned(), channel.clone());
                channel
            }
        };
        Ok(NodeAgentClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }
}

fn connect(address: &str) -> Result<Channel, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Status::unavailable(format!("'{address}' is not an address: {error}")))?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .tcp_nodelay(true)
        .connect_lazy())
}

impl NodeAgents for AgentConnections {
    async fn call(&self, call: AgentCall) -> Result<AgentAnswer, CallError> {
        let mut agent = self.client(&call.address).map_err(|status| failed(&status))?;
        let command =
            Some(Command { operation_id: call.operation.to_string(), owner_epoch: call.epoch.get() });
        let vm_id = call.vm.to_string();
        let answered = match call.command {
            AgentCommand::EnsureVm { spec, resume } => {
                let spec = Some(convert::vm_spec(call.vm, &spec, &call.pools));
                agent.ensure_vm(EnsureVmRequest { command, spec, resume }).await.and_then(report)
            }
            AgentCommand::StopVm => {
                agent.stop_vm(StopVmRequest { command, vm_id }).await.map(|_| AgentAnswer::Stopped)
            }
            AgentCommand::PressPowerButton => {
                let request = PressPowerButtonRequest { command, vm_id };
                agent.press_power_button(request).await.map(|_| AgentAnswer::Pressed)
            }
            AgentCommand::PrepareIncoming { migration, spec } => {
                let spec = Some(convert::vm_spec(call.vm, &spec, &call.pools));
                let request = PrepareIncomingRequest { command, migration_id: migration.to_string(), spec };
                let answer = agent.prepare_incoming(request).await;
                answer.map(|answer| AgentAnswer::Incoming { address: answer.into_inner().address })
            }
            AgentCommand::MigrateOut { migration, target_address, target_epoch, downtime_target_ms } => {
                let request = MigrateOutRequest {
                    command,
                    vm_id,
                    migration_id: migration.to_string(),
                    target_address,
                    target_epoch: target_epoch.get(),
                    downtime_target_ms: downtime_target_ms.unwrap_or(0),
                };
                agent.migrate_out(request).await.and_then(report)
            }
            AgentCommand::CancelMigration { migration } => {
                let migration_id = migration.to_string();
                let request = CancelMigrationRequest { command, vm_id, migration_id };
                agent.cancel_migration(request).await.and_then(report)
            }
            AgentCommand::GrantEpoch => {
                agent.grant_epoch(GrantEpochRequest { command, vm_id }).await.and_then(report)
            }
        };
        answered.map_err(|status| failed(&status))
    }
}

fn report(answer: Response<VmStatus>) -> Result<AgentAnswer, Status> {
    match convert::vm_report(answer.into_inner()) {
        Ok((_, report)) => Ok(AgentAnswer::Status(report)),
        // It may have done what was asked; its next heartbeat tells.
        Err(error) => Err(Status::unknown(format!("the agent's answer makes no sense: {error}"))),
    }
}

/// Only a status that the agent itself has sent says that nothing was done; the transport makes up its own, which have
/// a source.
fn failed(status: &Status) -> CallError {
    let text = if status.message().is_empty() { status.code().description() } else { status.message() };
    let said: String = text.chars().take(REASON_MAX).collect();
    let unanswered =
        matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled);
    match status.source() {
        None if !unanswered => CallError::Refused(said),
        None => CallError::Unanswered(said),
        Some(cause) => CallError::Unanswered(format!("{said}: {}", describe(cause))),
    }
}

#[cfg(test)]
mod tests {
    use drover_ids::{NodeId, OperationId, OwnerEpoch, VmId};
    use drover_reconcile::CallId;

    use super::*;

    #[test]
    fn only_the_agents_own_no_is_a_refusal() {
        let refused = |status: &Status| matches!(failed(status), CallError::Refused(_));
        assert!(refused(&Status::failed_precondition("a newer epoch is known")));
        assert!(refused(&Status::internal("no memory")));
        assert!(!refused(&Status::unavailable("")));
        assert!(!refused(&Status::deadline_exceeded("")));
        assert!(!refused(&Status::unknown("")));
        let torn = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert!(!refused(&Status::from_error(Box::new(torn))));
    }

    #[tokio::test]
    async fn an_agent_that_is_not_there_is_unanswered() {
        // A port that was free a moment ago.
        let address = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap();
        for address in [address.to_string(), "not an address".to_owned()] {
            let call = AgentCall {
                id: CallId::default(),
                node: NodeId::from_u128(1),
                address,
                operation: OperationId::from_u128(2),
                vm: VmId::from_u128(3),
                epoch: OwnerEpoch::new(1),
                timeout: Duration::from_secs(1),
                pools: BTreeMap::new(),
                command: AgentCommand::StopVm,
            };
            let error = AgentConnections::default().call(call).await.unwrap_err();
            assert!(matches!(error, CallError::Unanswered(_)), "{error:?}");
        }
    }
}
