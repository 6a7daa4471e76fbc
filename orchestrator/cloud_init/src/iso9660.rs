//! An ISO 9660 image of a few files in one folder, with Rock Ridge names.
//!
//! The layout is ECMA-119 (ISO 9660); the names with lower case and hyphens are the NM entries of the Rock Ridge
//! Interchange Protocol (IEEE P1282), announced by the entries SP and ER of the System Use Sharing Protocol (IEEE P1281).
//!
//! ```text
//! sector 0..16   system area, empty      18, 19  path table, little- and big-endian
//!        16      volume descriptor       20      the folder
//!        17      end of descriptors      21..    the files, each from a sector's start
//! ```

const SECTOR: usize = 2048;
const VOLUME_DESCRIPTOR: u32 = 16;
const PATH_TABLE_LITTLE: u32 = 18;
const PATH_TABLE_BIG: u32 = 19;
const FOLDER: u32 = 20;
const FIRST_FILE: u32 = 21;
/// One entry: length 1, extent, parent 1, the name of the root.
const PATH_TABLE_BYTES: u32 = 10;
/// 2000-01-01 00:00:00 UTC, as directory records have it: the same seed is the same bytes, whenever it is made.
const DATE: [u8; 7] = [100, 1, 1, 0, 0, 0, 0];
/// The same moment, as volume descriptors have it; the last byte is the offset from UTC.
const LONG_DATE: &[u8; 17] = b"2000010100000000\0";
/// No moment.
const NO_DATE: &[u8; 17] = b"0000000000000000\0";
/// Only root reads it: user data is often secret.
const FILE_MODE: u32 = 0o100_400;
const FOLDER_MODE: u32 = 0o040_500;

/// Names the extension whose entries the records carry (IEEE P1282, section 4.3).
const ROCK_RIDGE: &[u8] = b"RRIP_1991A";

/// A file system with `label` that holds `files`, in the order of their names.
///
/// # Panics
/// If the files do not fit one sector's directory or are together larger than 4 GiB: the caller bounds both.
pub(crate) fn image(label: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    assert!(files.is_sorted_by_key(|(name, _)| *name), "records are sorted by name (ECMA-119, 9.3)");
    let mut extents = Vec::with_capacity(files.len());
    let mut next = FIRST_FILE;
    for (_, content) in files {
        extents.push(next);
        next += sectors(content.len());
    }
    let mut image = vec![0; sector(next)];
    put(&mut image, VOLUME_DESCRIPTOR, &volume_descriptor(label, next));
    put(&mut image, VOLUME_DESCRIPTOR + 1, b"\xffCD001\x01");
    put(&mut image, PATH_TABLE_LITTLE, &path_table(FOLDER.to_le_bytes(), 1_u16.to_le_bytes()));
    put(&mut image, PATH_TABLE_BIG, &path_table(FOLDER.to_be_bytes(), 1_u16.to_be_bytes()));
    put(&mut image, FOLDER, &folder(files, &extents));
    for ((_, content), extent) in files.iter().zip(extents) {
        put(&mut image, extent, content);
    }
    image
}

/// ECMA-119, section 8.4.
fn volume_descriptor(label: &str, sectors: u32) -> Vec<u8> {
    let mut descriptor = vec![1];
    descriptor.extend(b"CD001\x01\0");
    descriptor.extend(padded("LINUX", 32));
    descriptor.extend(padded(label, 32));
    descriptor.extend([0; 8]);
    descriptor.extend(both_u32(sectors));
    descriptor.extend([0; 32]);
    // Volumes in the set, this one's number, bytes in a block.
    descriptor.extend([both_u16(1), both_u16(1), both_u16(SECTOR as u16)].concat());
    descriptor.extend(both_u32(PATH_TABLE_BYTES));
    descriptor
        .extend([PATH_TABLE_LITTLE.to_le_bytes(), [0; 4], PATH_TABLE_BIG.to_be_bytes(), [0; 4]].concat());
    descriptor.extend(record(&[0], FOLDER, SECTOR, true, &[]));
    // Set, publisher, preparer, application: unnamed. Then the names of three files: none.
    descriptor.extend(padded("", 4 * 128 + 3 * 37));
    // Created, changed, expires, holds from; and the version of this structure.
    descriptor.extend([&LONG_DATE[..], LONG_DATE, NO_DATE, NO_DATE, &[1]].concat());
    descriptor
}

/// ECMA-119, section 9.4.
fn path_table(extent: [u8; 4], parent: [u8; 2]) -> Vec<u8> {
    [&[1, 0][..], &extent, &parent, &[0, 0]].concat()
}

fn folder(files: &[(&str, &[u8])], extents: &[u32]) -> Vec<u8> {
    let announce = [&b"SP\x07\x01\xbe\xef\0"[..], &posix(FOLDER_MODE, 2), &extension()].concat();
    let mut records = record(&[0], FOLDER, SECTOR, true, &announce);
    records.extend(record(&[1], FOLDER, SECTOR, true, &posix(FOLDER_MODE, 2)));
    for (n, ((name, content), extent)) in files.iter().zip(extents).enumerate() {
        // Names for readers without Rock Ridge: eight letters, in the same order as the real ones.
        let plain = format!("FILE{n}.;1");
        let uses = [posix(FILE_MODE, 1), alternate_name(name)].concat();
        records.extend(record(plain.as_bytes(), *extent, content.len(), false, &uses));
    }
    assert!(records.len() <= SECTOR, "a few records fit a sector");
    records
}

/// ECMA-119, section 9.1.
fn record(name: &[u8], extent: u32, bytes: usize, is_folder: bool, uses: &[u8]) -> Vec<u8> {
    let padding = usize::from(name.len().is_multiple_of(2));
    let length = (33 + name.len() + padding + uses.len()).next_multiple_of(2);
    let mut record = vec![u8::try_from(length).expect("a short name"), 0];
    record.extend(both_u32(extent));
    record.extend(both_u32(u32::try_from(bytes).expect("bounded by the caller")));
    record.extend(DATE);
    // Flags; unit size and gap of interleaved files, which there are none of; number of the volume.
    record.extend([if is_folder { 2 } else { 0 }, 0, 0]);
    record.extend(both_u16(1));
    record.push(u8::try_from(name.len()).expect("a short name"));
    record.extend(name);
    record.extend(&[0][..padding]);
    record.extend(uses);
    record.resize(length, 0);
    record
}

/// PX: mode, links, user and group (IEEE P1282, section 4.1.1).
fn posix(mode: u32, links: u32) -> Vec<u8> {
    [&b"PX\x24\x01"[..], &both_u32(mode), &both_u32(links), &both_u32(0), &both_u32(0)].concat()
}

/// NM: the real name (IEEE P1282, section 4.1.4).
fn alternate_name(name: &str) -> Vec<u8> {
    let length = u8::try_from(5 + name.len()).expect("a short name");
    [&[b'N', b'M', length, 1, 0][..], name.as_bytes()].concat()
}

/// ER: which extension the other entries belong to (IEEE P1281, section 5.5), without the texts that describe it.
fn extension() -> Vec<u8> {
    let (length, name) = ((8 + ROCK_RIDGE.len()) as u8, ROCK_RIDGE.len() as u8);
    [&[b'E', b'R', length, 1, name, 0, 0, 1][..], ROCK_RIDGE].concat()
}

/// A number in both byte orders (ECMA-119, section 7.3.3).
fn both_u32(number: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn both_u16(number: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (number.to_le_bytes(), number.to_be_bytes());
    [a, b, c, d]
}

fn padded(text: &str, length: usize) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(length, b' ');
    bytes
}

fn put(image: &mut [u8], at: u32, content: &[u8]) {
    image[sector(at)..][..content.len()].copy_from_slice(content);
}

fn sector(number: u32) -> usize {
    number as usize * SECTOR
}

fn sectors(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(SECTOR)).expect("bounded by the caller")
}
