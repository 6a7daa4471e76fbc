//! Headers of kernels.
#![no_main]

use std::path::Path;

use drover_fuzz::bounded;
use drover_machine::KernelImage;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bounded(|| {
    let mut file = drover_fuzz::file_with(data);
    std::io::Seek::rewind(&mut file).expect("a file");
    if let Ok(image) = KernelImage::of_file(file, Path::new("fuzz")) {
        let _ = image.memory_needed();
    }
}));
