//! A console session: the control plane's stream joined to vmmd's.

use drover_wire::{
    node::v1::ConsoleRequest,
    vm::v1::{ConsoleInput, ConsoleOutput},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::vmmd::Vmmd;

/// Keystrokes under way before the typist is held up.
const INPUT_DEPTH: usize = 64;

/// Attaches to vmmd's console; `first` was typed with the attachment.
pub(crate) async fn attach(
    vmmd: &Vmmd,
    first: Vec<u8>,
    mut typed: Streaming<ConsoleRequest>,
) -> Result<Streaming<ConsoleOutput>, Status> {
    let (sender, receiver) = mpsc::channel(INPUT_DEPTH);
    if !first.is_empty() {
        // A fresh channel has room.
        sender.try_send(ConsoleInput { data: first }).ok();
    }
    let output = vmmd.client().console(ReceiverStream::new(receiver)).await?.into_inner();
    tokio::spawn(async move {
        // Ends with the caller's stream, or when vmmd has closed its side.
        while let Ok(Some(request)) = typed.message().await {
            if sender.send(ConsoleInput { data: request.data }).await.is_err() {
                return;
            }
        }
    });
    Ok(output)
}
