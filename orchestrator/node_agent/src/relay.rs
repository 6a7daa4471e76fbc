//! Commands that are vmmd's to carry out.

use std::io;

use drover_ids::VmId;
use drover_node_supervisor::{Lease, Run, Verb};
use drover_wire::{
    node::v1::VmStatus,
    vm::v1::{CancelMigrationRequest, MigrateInRequest, VmInfo},
};
use tokio::sync::mpsc;
use tonic::Status;

use crate::{
    handover::{self, Parcel},
    message::{Asked, Body, Message, Reply},
    state_dir::RunDir,
    vmmd::{Vmmd, io_status, wire_lease},
};

/// One command for one vmmd.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) vm: VmId,
    pub(crate) run: Run,
    pub(crate) vmmd: Vmmd,
    pub(crate) dir: RunDir,
    pub(crate) asked: Asked,
    /// Where to listen for a migration.
    pub(crate) listen: String,
    pub(crate) lease: Option<Lease>,
}

impl Relay {
    /// Sends the command once `recorded` is done, and tells the agent what came of it.
    pub(crate) async fn carry_out(
        self,
        recorded: Option<impl Future<Output = io::Result<()>>>,
        inbox: &mpsc::Sender<Message>,
    ) -> Result<Reply, Status> {
        if let Some(recorded) = recorded {
            recorded.await.map_err(|error| io_status("cannot record the new epoch", &error))?;
        }
        let (vm, run) = (self.vm, self.run);
        let command = self.asked.command;
        let info = match (self.asked.verb, self.asked.body) {
            (Verb::Pause, _) => self.vmmd.pause(command).await?,
            // A grant is a resume with a newer epoch.
            (Verb::Resume | Verb::GrantEpoch, _) => self.vmmd.resume(command).await?,
            (Verb::MigrateOut, Body::MigrateOut(request)) => {
                let target = request.target_address.clone();
                let connect = move || {
                    let mut parcel = Parcel::default();
                    parcel.add_connection(&target)?;
                    Ok(parcel)
                };
                handover::deliver(&self.dir, connect).await?;
                self.vmmd.migrate_out(request).await?
            }
            (Verb::CancelMigration, Body::CancelMigration { migration_id }) => {
                let request = CancelMigrationRequest { command: Some(command), migration_id };
                self.vmmd.cancel_migration(request).await?
            }
            (Verb::PrepareIncoming { migration }, Body::Machine(machine)) => {
                // vmmd waits already, for an agent that has forgotten the address: the repeated command gives it.
                let request = MigrateInRequest {
                    command: Some(command),
                    migration_id: migration.to_string(),
                    config: Some((*machine)?.config),
                    listen_address: self.listen,
                    lease: self.lease.map(wire_lease),
                };
                let address = self.vmmd.migrate_in(request).await?.address;
                inbox.send(Message::Address { vm, run, address: address.clone() }).await.ok();
                return Ok(Reply::Incoming { address });
            }
            (verb, _) => return Err(Status::internal(format!("{verb:?} is not a command for vmmd"))),
        };
        inbox.send(Message::Info { vm, run, info: info.clone() }).await.ok();
        Ok(Reply::Status(Box::new(status(info))))
    }
}

const fn status(info: VmInfo) -> VmStatus {
    VmStatus { info: Some(info), process_ended: false, exit: String::new() }
}
