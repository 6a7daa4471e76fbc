//! A VM's console and its log, handed through from the agent of the node that runs it.

use std::time::Duration;

use drover_cluster_state::ClusterState;
use drover_ids::{NodeId, VmId};
use drover_ports::Store;
use drover_wire::{
    control::v1::{ConsoleRequest, LogsRequest},
    node::v1 as node,
    vm::v1::ConsoleOutput,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Api, vms::find};
use crate::status::{describe, gone, invalid};

/// Keystrokes that wait for a slow agent.
const INPUT_AHEAD: usize = 64;
/// Time for an agent to accept a stream.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(5);

/// What the guest prints. The agent bounds what it keeps for a slow reader, and so does flow control on the way.
pub(crate) type ConsoleStream = Streaming<ConsoleOutput>;

/// Where a VM's console is.
struct Place {
    vm: VmId,
    address: String,
    node_name: String,
}

/// On the node that owns it; without an owner, on the last that reported it, which still has its log.
fn place(state: &ClusterState, text: &str) -> Result<Place, Status> {
    let vm = find(state, text)?;
    let reporter = || -> Option<NodeId> {
        let reports =
            state.sessions.iter().filter_map(|(node, session)| Some((session.vms.get(&vm.id)?.epoch, *node)));
        reports.max().map(|(_, node)| node)
    };
    let node =
        vm.ownership.node().or_else(reporter).and_then(|node| state.nodes.get(&node)).ok_or_else(|| {
            Status::failed_precondition(format!(
                "vm: VM '{}' is on no node; valid: a VM that runs",
                vm.spec.name
            ))
        })?;
    Ok(Place { vm: vm.id, address: node.address.clone(), node_name: node.name.to_string() })
}

/// Attaches to a console. The first message names the VM.
pub(super) async fn attach<S: Store>(
    api: &Api<S>,
    mut requests: Streaming<ConsoleRequest>,
) -> Result<ConsoleStream, Status> {
    let first = requests.message().await?;
    let first =
        first.ok_or_else(|| invalid("vm", "the stream is empty", "a first message that names a VM"))?;
    let text = first.vm;
    let place = api.cluster.read(move |view| place(view.state, &text)).await.map_err(gone)??;
    let mut agent = api.agents.client(&place.address)?;
    let (sender, input) = mpsc::channel(INPUT_AHEAD);
    let vm_id = place.vm.to_string();
    let first = node::ConsoleRequest { vm_id: vm_id.clone(), data: first.data };
    sender.try_send(first).expect("a fresh channel has room");
    tokio::spawn(async move {
        // Ends with the client's side, the agent's side, or an error on either: the output tells the client which.
        while let Ok(Some(request)) = requests.message().await {
            let request = node::ConsoleRequest { vm_id: vm_id.clone(), data: request.data };
            if sender.send(request).await.is_err() {
                return;
            }
        }
    });
    within(&place.node_name, agent.console(ReceiverStream::new(input))).await
}

/// Reads a console's log.
pub(super) async fn logs<S: Store>(api: &Api<S>, request: LogsRequest) -> Result<ConsoleStream, Status> {
    let LogsRequest { vm: text, follow, tail_bytes } = request;
    let place = api.cluster.read(move |view| place(view.state, &text)).await.map_err(gone)??;
    let mut agent = api.agents.client(&place.address)?;
    let request = node::LogsRequest { vm_id: place.vm.to_string(), follow, tail_bytes };
    within(&place.node_name, agent.logs(request)).await
}

/// Waits for the agent to accept a stream.
async fn within(
    node: &str,
    call: impl Future<Output = Result<tonic::Response<ConsoleStream>, Status>>,
) -> Result<ConsoleStream, Status> {
    use std::error::Error as _;
    match tokio::time::timeout(ATTACH_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        // The transport's own errors would tell the client about our connections, not its own.
        Ok(Err(status)) if status.source().is_some() => {
            let reason = status.source().map(describe).unwrap_or_default();
            Err(Status::failed_precondition(format!(
                "the agent of node '{node}' cannot be reached: {reason}"
            )))
        }
        Ok(Err(status)) => Err(Status::new(status.code(), status.message())),
        Err(_) => Err(Status::deadline_exceeded(format!("the agent of node '{node}' does not answer"))),
    }
}
