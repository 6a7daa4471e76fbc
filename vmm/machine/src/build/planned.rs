//! First step: a configuration that makes sense.

use drover_guest_memory::GuestMemory;

use crate::{BuildError, MachineConfig, MemoryReady};

/// A machine that could be built. Nothing has been taken from the host.
#[derive(Clone, Debug)]
pub struct Planned {
    config: MachineConfig,
}

impl Planned {
    /// Checks a configuration.
    ///
    /// # Errors
    /// [`BuildError`] names the field and what would be valid.
    pub fn new(config: MachineConfig) -> Result<Self, BuildError> {
        config.check()?;
        Ok(Self { config })
    }

    /// Sets up guest RAM: address space now, memory when the guest touches it.
    ///
    /// # Errors
    /// [`BuildError::Memory`] where the host refuses.
    pub fn allocate_memory(self) -> Result<MemoryReady, BuildError> {
        let memory = GuestMemory::allocate(self.config.memory)?;
        Ok(MemoryReady { config: self.config, memory })
    }
}
