//! Guests of a few instructions.

use std::io::Write as _;

use drover_machine::KernelImage;

/// A PVH kernel with this code at 1 MiB, which is also where it is entered.
pub(crate) fn kernel(code: &[u8]) -> (tempfile::NamedTempFile, KernelImage) {
    const CODE_AT: u32 = 0x10_0000;
    const HEADERS: u64 = 64 + 2 * 56;
    let program_header = |kind: u32, offset: u64, address: u64, len: u64| {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend_from_slice(&7_u32.to_le_bytes());
        [offset, address, address, len, len, 4]
            .iter()
            .for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        bytes
    };
    // Name length, descriptor length, type (XEN_ELFNOTE_PHYS32_ENTRY), name, descriptor.
    let mut note: Vec<u8> = [4_u32, 4, 18].iter().flat_map(|word| word.to_le_bytes()).collect();
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(&CODE_AT.to_le_bytes());

    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    [u64::from(CODE_AT), 64, 0].iter().for_each(|word| image.extend_from_slice(&word.to_le_bytes()));
    image.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    image.extend(program_header(1, HEADERS + note.len() as u64, CODE_AT.into(), code.len() as u64));
    image.extend(program_header(4, HEADERS, 0, note.len() as u64));
    image.extend(note);
    image.extend_from_slice(code);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&image).unwrap();
    let kernel = KernelImage::open(file.path()).unwrap();
    (file, kernel)
}
