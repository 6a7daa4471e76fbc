//! What a guest may put into the queues and registers of this device.
#![no_main]

use drover_fuzz::hostile_guest::{Transport, run};

libfuzzer_sys::fuzz_target!(|data: &[u8]| run("balloon", Transport::Mmio, data));
