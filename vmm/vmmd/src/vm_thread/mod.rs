//! The thread that owns the machine.
//!
//! Everything that happens to the VM arrives here as an [`Input`] over one bounded channel, and is handled one after
//! the other: the [`Lifecycle`] says what it means, this thread does it. While a migration is under way the machine is
//! with the migration's thread, which hands it back as an input.
//!
//! ```text
//!  gRPC handlers ------Order----->  +-----------+  --machine-->  sending or receiving thread
//!  lease watchdog ------Tick----->  | VM thread |  <--SendEnded, ReceiveEnded-- (with the machine)
//!  machine's threads ----end----->  +-----------+  --VmInfo-->  Status
//! ```

mod handle;
mod lending;
mod migrating;
mod performing;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    thread,
};

use drover_lifecycle::{Admission, Lifecycle, Observation, Outcome, State};
use drover_suspend::LoadProgress;
use drover_thread_role::{Role, spawn};
use tokio::sync::oneshot;
use tracing::info;

use self::{
    handle::{Answer, Input},
    migrating::Sending,
    performing::Performed,
};
pub(crate) use self::{
    handle::{INPUTS_MAX, Reply, VmHandle},
    lending::within,
};
use crate::{
    ahead::RefusedAhead,
    boottime,
    console::Console,
    files::Files,
    hosted::Hypervisor,
    order::{Order, Renewal},
    refused::Refused,
    status::{Status, is_terminal},
    watchdog::Watchdog,
};

/// Where the machine is.
#[derive(Debug)]
enum Machine<M> {
    None,
    /// With this thread.
    Here(M),
    /// With the thread that sends it.
    Sending(Sending),
    /// With the thread that receives it.
    Receiving {
        control: drover_migration::MigrationControl,
        listening: SocketAddr,
    },
}

/// An order that has been admitted and waits for something to happen first.
struct Waiting {
    order: Order,
    answer: oneshot::Sender<Answer>,
}

struct VmThread<H: Hypervisor> {
    inputs: Receiver<Input<H::Machine>>,
    handle: VmHandle<H::Machine>,
    hypervisor: H,
    console: Arc<Console>,
    watchdog: Watchdog,
    files: Files,
    lifecycle: Lifecycle,
    machine: Machine<H::Machine>,
    /// The file that the machine's guest comes from, until it runs.
    resumed: Option<LoadProgress>,
    /// At most [`INPUTS_MAX`].
    waiting: Vec<Waiting>,
    refused_ahead: Option<RefusedAhead>,
}

/// Starts the thread of a VM that is empty, and has it carry out what came ahead. It ends when the process does.
pub(crate) fn start<H: Hypervisor>(
    hypervisor: H,
    status: Arc<Status>,
    console: Arc<Console>,
    (files, ahead): (Files, Vec<Order>),
) -> io::Result<VmHandle<H::Machine>> {
    let (sender, inputs) = mpsc::sync_channel(INPUTS_MAX);
    let watchdog = Watchdog::new()?;
    let handle = VmHandle::new(sender, status, watchdog.clone());
    let vm = VmThread {
        inputs,
        handle: handle.clone(),
        hypervisor,
        console,
        watchdog: watchdog.clone(),
        files,
        lifecycle: Lifecycle::new(),
        machine: Machine::None,
        resumed: None,
        waiting: Vec::new(),
        refused_ahead: None,
    };
    ahead.into_iter().for_each(|order| handle.send(Input::Ahead(Box::new(order))));
    // First of all: it may have a machine to build, which takes longest.
    spawn(Role::Vm, thread::Builder::new().name("vm".to_owned()), move || vm.run())?;
    watchdog.start(handle.clone())?;
    Ok(handle)
}

impl<H: Hypervisor> VmThread<H> {
    fn run(mut self) {
        // This thread holds a sender itself, so the channel never ends: the process does.
        while let Ok(input) = self.inputs.recv() {
            self.handle_input(input);
            self.settle();
        }
    }

    fn handle_input(&mut self, input: Input<H::Machine>) {
        // The migration's thread may have committed since: nothing must be decided on the state before that.
        self.follow_migration();
        self.follow_lease();
        if let Some((reason, detail)) = self.handle.ended() {
            self.lifecycle.observe(Observation::Ended { reason: *reason, detail: detail.clone() });
        }
        match input {
            Input::Order(order, answer) => self.order(*order, answer),
            Input::Ahead(order) => self.order_ahead(&order),
            Input::Change(epoch, change, answer) => _ = answer.send(self.change(epoch, &change)),
            Input::Reclaim(epoch, limit, answer) => _ = answer.send(self.reclaim(epoch, limit)),
            Input::SendEnded(ended) => self.send_ended(*ended),
            Input::ReceiveEnded(ended) => self.receive_ended(*ended),
            // Looked at above, and in what is due.
            Input::Tick => {}
        }
    }

    fn order(&mut self, order: Order, answer: oneshot::Sender<Answer>) {
        if let Some(why) = RefusedAhead::answer(&mut self.refused_ahead, &order) {
            let _ = answer.send(Err(why));
            return;
        }
        let verb = order.task.request().verb();
        match self.carry_out(&order) {
            None if self.waiting.len() < INPUTS_MAX => self.waiting.push(Waiting { order, answer }),
            None => _ = answer.send(Err(Refused::TooMany)),
            Some(result) => {
                match &result {
                    Ok(_) => info!(%verb, operation = %order.command.operation, "carried out"),
                    Err(error) => info!(%verb, operation = %order.command.operation, %error, "refused"),
                }
                let _ = answer.send(result);
            }
        }
    }

    /// Carries out what came ahead. What is refused is kept for its caller: the first, of which others are a consequence.
    fn order_ahead(&mut self, order: &Order) {
        let verb = order.task.request().verb();
        match self.carry_out(order) {
            None | Some(Ok(_)) => info!(%verb, operation = %order.command.operation, "carried out ahead"),
            Some(Err(why)) => {
                info!(%verb, operation = %order.command.operation, %why, "refused ahead");
                self.refused_ahead.get_or_insert_with(|| RefusedAhead::new(order, why));
            }
        }
    }

    /// Carries an order out as far as the lifecycle admits it. `None`: its answer has to wait.
    fn carry_out(&mut self, order: &Order) -> Option<Answer> {
        match self.lifecycle.request(boottime::now(), order.command, order.task.request()) {
            Err(refusal) => Some(Err(refusal.into())),
            // Whoever repeats a MigrateIn has lost the first answer and still needs the address.
            Ok(Admission::Done) => Some(Ok(self.reply(self.listening()))),
            Ok(Admission::Wait) => None,
            Ok(Admission::Perform(action)) => {
                let Performed { outcome, result } = self.perform(action, Some(&order.task));
                self.lifecycle.finish(outcome);
                Some(result.map(|listening| self.reply(listening)))
            }
            Ok(Admission::PerformAndWait(action)) => {
                let Performed { outcome, result } = self.perform(action, Some(&order.task));
                self.lifecycle.finish(outcome);
                result.err().map(Err)
            }
        }
    }

    /// Where this VM waits to be sent, while it does.
    fn listening(&self) -> Option<SocketAddr> {
        match &self.machine {
            Machine::Receiving { listening, .. } => Some(*listening),
            _ => None,
        }
    }

    /// What an order is answered with, when everything is as it says.
    fn reply(&mut self, listening: Option<SocketAddr>) -> Reply {
        self.publish();
        Reply { info: self.handle.status().info(), listening }
    }

    /// Learns of renewals that have come since.
    fn follow_lease(&mut self) {
        if let Some(Renewal { epoch, lease }) = self.watchdog.held()
            && self.lifecycle.lease() != Some(lease)
        {
            // Refused where the lifecycle knows of no such VM (any more), and then it needs no lease.
            let _ = self.lifecycle.renew(boottime::now(), epoch, lease);
        }
    }

    /// Does what is due, answers who no longer has to wait, until neither brings anything new.
    fn settle(&mut self) {
        loop {
            // What was just done may have taken longer than the lease it began with.
            self.follow_lease();
            while let Some(action) = self.lifecycle.due(boottime::now()) {
                let Performed { outcome, result } = self.perform(action, None);
                if let (Outcome::Broken { .. } | Outcome::NothingChanged, Err(error)) = (&outcome, result) {
                    tracing::error!(%error, "what was due could not be done");
                }
                self.lifecycle.finish(outcome);
            }
            self.publish();
            let before = self.lifecycle.clone();
            for Waiting { order, answer } in std::mem::take(&mut self.waiting) {
                match self.carry_out(&order) {
                    None => self.waiting.push(Waiting { order, answer }),
                    Some(result) => _ = answer.send(result),
                }
            }
            if self.lifecycle == before {
                return;
            }
        }
    }

    /// Fails everybody who waits for something that will not happen.
    fn fail_waiting(&mut self, still_waits: impl Fn(&Order) -> bool, why: impl Fn() -> Refused) {
        for Waiting { order, answer } in std::mem::take(&mut self.waiting) {
            if still_waits(&order) {
                self.waiting.push(Waiting { order, answer });
            } else {
                let _ = answer.send(Err(why()));
            }
        }
    }

    /// Lets everybody know where the VM is: readers of the status, and the watchdog.
    fn publish(&mut self) {
        let status = self.handle.status();
        status.publish(&self.lifecycle);
        if is_terminal(&status.info()) {
            // What has ended needs no lease, and its process stays only to be asked how it ended.
            self.watchdog.clear();
            self.console.close();
        } else if self.lifecycle.state() != State::Empty {
            self.watchdog.owned_by(self.lifecycle.epoch());
        }
    }
}

#[cfg(test)]
mod tests;
