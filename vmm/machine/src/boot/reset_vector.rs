//! The one thing that guests find of a firmware: what a PC does when it jumps to where its processor starts.
//!
//! Linux resets a machine whose ACPI is hardware-reduced by EFI; where there is none, it goes back to real mode and jumps to
//! the firmware's first instruction, without asking the reset register or the keyboard controller before. Zeros there would
//! be instructions: the processor would run through them for ever.

use drover_bus::Port;
use drover_devices::Power;
use drover_guest_memory::GuestMemory;

use crate::{BuildError, address_map::RESET_VECTOR};

/// Writes the instructions.
pub(super) fn write(memory: &GuestMemory) -> Result<(), BuildError> {
    memory
        .write(RESET_VECTOR, &code())
        .map_err(|error| BuildError::BootStructures { what: "reset vector", reason: error.to_string() })
}

/// `mov dx, RESET; mov al, VALUE; out dx, al; hlt; jmp` back to the `hlt`, in 16-bit mode.
fn code() -> [u8; 9] {
    let Port(port) = Power::RESET;
    let [low, high] = port.to_le_bytes();
    [0xba, low, high, 0xb0, Power::RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
}

#[cfg(test)]
mod tests {
    use drover_units::Bytes;

    use super::*;

    #[test]
    fn the_instructions_end_before_the_first_mebibyte_does() {
        let memory = GuestMemory::anonymous(Bytes::mib(2));
        write(&memory).unwrap();
        let mut found = [0; 16];
        memory.read(RESET_VECTOR, &mut found).unwrap();
        assert_eq!(found[..9], [0xba, 0x02, 0x06, 0xb0, 0x01, 0xee, 0xf4, 0xeb, 0xfd]);
        assert_eq!(RESET_VECTOR.get() + 16, 1 << 20);
    }
}
