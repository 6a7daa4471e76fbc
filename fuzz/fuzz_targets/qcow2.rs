//! Images in qcow2, as users bring them.
#![no_main]

use drover_storage_pools::{DiskReader, Qcow2};
use drover_units::Bytes;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let file = drover_fuzz::file_with(data);
    let Ok(mut image) = Qcow2::open(file, Bytes::mib(64)) else { return };
    let mut buffer = vec![0; 64 << 10];
    // Wherever it fails it goes on elsewhere.
    for at in (0..image.size().get()).step_by(buffer.len()).take(64) {
        let _ = image.read_at(at, &mut buffer);
    }
});
