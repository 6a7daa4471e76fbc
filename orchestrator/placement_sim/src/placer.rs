//! Who decides where a VM goes.

use drover_placement_trace::{Flavour, Moment, Priority, TraceVm};

use crate::{HostIndex, Room};

/// What a VM asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The VM.
    pub vm: TraceVm,
    /// Its size.
    pub flavour: Flavour,
    /// Whether it may be evicted.
    pub priority: Priority,
    /// Now.
    pub at: Moment,
    /// When it is expected to leave, if anyone knows.
    pub ends: Option<Moment>,
}

impl Ask {
    /// What it takes of a host.
    #[must_use]
    pub fn room(&self) -> Room {
        Room { vcpus: u64::from(self.flavour.vcpus.get()), memory: self.flavour.memory.get() }
    }
}

/// A live migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Who.
    pub vm: TraceVm,
    /// Where to.
    pub to: HostIndex,
}

/// Places VMs one after the other. It keeps its own account of what is where; the simulation keeps another one, and checks
/// each answer against it.
pub trait Placer {
    /// Chooses a host and takes the room there, or leaves everything as it is.
    fn place(&mut self, ask: &Ask) -> Option<HostIndex>;

    /// Gives back the room of a VM that has been placed. Called once for each VM at most, and never for another one.
    fn release(&mut self, vm: TraceVm);

    /// Moves VMs so that a request fits that has just been refused, and says which, in an order in which each fits at its
    /// time. Empty: it does not know how, or there is no way. Asked only where the simulation may migrate.
    fn make_room(&mut self, ask: &Ask) -> Vec<Move>;
}
