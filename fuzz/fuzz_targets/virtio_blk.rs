//! What a guest may put into the queues and registers of this device.
#![no_main]

use drover_fuzz::{
    bounded,
    hostile_guest::{Transport, run},
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| bounded(|| run("blk", Transport::Mmio, data)));
