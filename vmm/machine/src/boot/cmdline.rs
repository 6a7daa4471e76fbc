//! The kernel's command line: what was given, and what only the machine knows.

use drover_units::{Bytes, Gpa};
use linux_loader::cmdline::{Cmdline, Error};
use vm_memory::GuestAddress;

use crate::{
    BuildError, Slot,
    address_map::{MMIO_WINDOW_LEN, mmio_place},
};

/// Longest command line, its terminating zero included: what Linux on x86 takes (COMMAND_LINE_SIZE).
pub(crate) const CMDLINE_MAX: usize = 2048;

/// Checks what was given, before anything is built.
pub(crate) fn check_given(given: &str) -> Result<(), BuildError> {
    with_given(given).map(|_| ())
}

/// The whole command line.
///
/// Devices are announced as Linux's virtio_mmio driver wants it (`virtio_mmio.device=4K@0xd0000000:5`).
pub(crate) fn build(given: &str, slots: &[Slot], tsc_khz: Option<u32>) -> Result<Cmdline, BuildError> {
    let mut cmdline = with_given(given)?;
    for slot in slots {
        let (window, gsi) = mmio_place(*slot);
        cmdline
            .add_virtio_mmio_device(MMIO_WINDOW_LEN, GuestAddress(window.get()), gsi.0, None)
            .map_err(|error| explain(given, &error))?;
    }
    if let Some(khz) = tsc_khz {
        cmdline.insert("tsc_khz", &khz.to_string()).map_err(|error| explain(given, &error))?;
    }
    Ok(cmdline)
}

/// Puts it where the guest is told to look.
pub(crate) fn write(
    cmdline: &Cmdline,
    memory: &drover_guest_memory::GuestMemory,
    at: Gpa,
) -> Result<(), BuildError> {
    linux_loader::loader::load_cmdline(memory.as_vm_memory(), GuestAddress(at.get()), cmdline)
        .map_err(|error| BuildError::BootStructures { what: "command line", reason: error.to_string() })
}

fn with_given(given: &str) -> Result<Cmdline, BuildError> {
    let mut cmdline = Cmdline::new(CMDLINE_MAX).expect("the limit is a usable capacity");
    if !given.trim().is_empty() {
        cmdline.insert_str(given.trim()).map_err(|error| explain(given, &error))?;
    }
    Ok(cmdline)
}

fn explain(given: &str, error: &Error) -> BuildError {
    match error {
        Error::TooLarge => BuildError::CmdlineTooLong {
            given: Bytes::new(given.len() as u64),
            max: Bytes::new(CMDLINE_MAX as u64 - 1),
        },
        other => BuildError::InvalidCmdline { reason: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: &str, slots: &[u8], tsc_khz: Option<u32>, expect: &str) {
        let slots: Vec<_> = slots.iter().copied().map(Slot::new).collect();
        let cmdline = build(given, &slots, tsc_khz).unwrap();
        assert_eq!(cmdline.as_cstring().unwrap().to_str().unwrap(), expect);
    }

    #[test]
    fn the_machine_adds_what_it_alone_knows() {
        check("", &[], None, "");
        check(" probe.seed=7 ", &[], None, "probe.seed=7");
        check(
            "quiet",
            &[0, 17],
            Some(2_400_000),
            "quiet virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0011000:22 tsc_khz=2400000",
        );
    }

    #[test]
    fn a_line_that_grows_too_long_says_so() {
        let given = "x".repeat(CMDLINE_MAX - 10);
        assert!(build(&given, &[], None).is_ok());
        let error = build(&given, &[Slot::new(0)], None).unwrap_err();
        assert!(matches!(error, BuildError::CmdlineTooLong { .. }), "{error}");
        assert!(error.to_string().starts_with("cmdline: "), "{error}");
    }
}
