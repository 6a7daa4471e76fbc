//! Images in qcow2, as users bring them: what lies in them is looked for and read, as for an import.
#![no_main]

use drover_fuzz::bounded;
use drover_storage_pools::{DiskReader, Qcow2};
use drover_units::Bytes;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bounded(|| {
    let file = drover_fuzz::file_with(data);
    let Ok(mut image) = Qcow2::open(file, Bytes::mib(64)) else { return };
    let (size, mut at) = (image.size().get(), 0);
    let mut buffer = vec![0; 64 << 10];
    for _ in 0..64 {
        // Wherever it fails it goes on elsewhere.
        if let Ok(Some(range)) = image.next_data(at) {
            assert!(range.start >= at && range.start < range.end, "data lies ahead");
            at = range.start;
        }
        if at >= size {
            return;
        }
        let len = buffer.len().min((size - at) as usize);
        let _ = image.read_at(at, &mut buffer[..len]);
        at += len as u64;
    }
}));
