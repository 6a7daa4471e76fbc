//! Any access to configuration space, BARs and MSI-X of a function; the first byte chooses which device is behind it.
#![no_main]

use drover_fuzz::{
    bounded,
    hostile_guest::{KINDS, Transport, run},
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| bounded(|| {
    let Some((first, script)) = data.split_first() else { return };
    run(KINDS[usize::from(*first) % KINDS.len()], Transport::Pci, script);
}));
