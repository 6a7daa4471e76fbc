//! The qcow2 reader against images of every shape, and against images that are damaged.
//!
//! A writer of this test's own makes them, which decides what no tool lets one decide: the order of clusters in the file,
//! which are compressed, which are zero by a flag and which by not being there. Where `qemu-img` is installed it has to
//! agree with both.
#![forbid(unsafe_code)]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::{
    fs::{self, File},
    io::Write as _,
    process::Command,
};

use drover_storage_pools::{DiskReader as _, Qcow2, Qcow2Error};
use drover_units::Bytes;
use flate2::{Compression, write::DeflateEncoder};
use proptest::{collection::vec, prelude::*, sample::Index, strategy::ValueTree as _};

/// Disks here are small, so that a damaged size makes no long test.
const DISK_MAX: Bytes = Bytes::mib(8);
/// What a reader of a small file may take at most: its tables, a cluster or two, and a decoder's window.
const MEMORY_MAX: u64 = 1 << 30;

/// What a cluster of the disk is.
#[derive(Clone, Debug, PartialEq)]
enum Content {
    Absent,
    /// Zero by its flag, with room in the file or without.
    Zero {
        room: bool,
    },
    Plain(u8),
    Compressed(u8),
}

#[derive(Clone, Debug)]
struct Shape {
    version: u32,
    cluster_bits: u32,
    clusters: Vec<Content>,
    /// Sectors of the last cluster that are part of the disk.
    tail_sectors: usize,
    /// Where in the file the next thing goes: so many clusters are skipped before it.
    gaps: Vec<u8>,
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        2 => Just(Content::Absent),
        1 => any::<bool>().prop_map(|room| Content::Zero { room }),
        3 => any::<u8>().prop_map(Content::Plain),
        2 => any::<u8>().prop_map(Content::Compressed),
    ]
}

fn shape() -> impl Strategy<Value = Shape> {
    (2..=3_u32, 9..=14_u32, vec(content(), 1..80), any::<Index>(), vec(0..3_u8, 1..8)).prop_map(
        |(version, cluster_bits, mut clusters, tail, gaps)| {
            if version == 2 {
                // It knows no flag.
                for content in &mut clusters {
                    if let Content::Zero { .. } = content {
                        *content = Content::Absent;
                    }
                }
            }
            let tail_sectors = tail.index((1 << cluster_bits) / 512) + 1;
            Shape { version, cluster_bits, clusters, tail_sectors, gaps }
        },
    )
}

/// What a cluster with this seed holds: never all zeros, and compressible.
fn bytes(seed: u8, size: usize) -> Vec<u8> {
    (0..size).map(|at| seed ^ u8::try_from(at / 7 % 251).unwrap() | 1).collect()
}

impl Shape {
    fn cluster_size(&self) -> usize {
        1 << self.cluster_bits
    }

    fn disk_size(&self) -> usize {
        (self.clusters.len() - 1) * self.cluster_size() + self.tail_sectors * 512
    }

    fn disk(&self) -> Vec<u8> {
        let size = self.cluster_size();
        let of = |content: &Content| match content {
            Content::Absent | Content::Zero { .. } => vec![0; size],
            Content::Plain(seed) | Content::Compressed(seed) => bytes(*seed, size),
        };
        let mut disk = self.clusters.iter().flat_map(of).collect::<Vec<u8>>();
        disk.truncate(self.disk_size());
        disk
    }

    /// The image. Reference counts are left out: a reader does not look at them.
    fn image(&self) -> Vec<u8> {
        let size = self.cluster_size();
        let per_table = size / 8;
        let tables = self.clusters.len().div_ceil(per_table);
        let mut gaps = self.gaps.iter().cycle();
        let mut file = vec![0; size];
        let mut room = |file: &mut Vec<u8>, clusters: usize| {
            let at = file.len().next_multiple_of(size) + usize::from(*gaps.next().unwrap()) * size;
            file.resize(at + clusters * size, 0xaa);
            at
        };
        let l1_at = room(&mut file, (tables * 8).div_ceil(size));
        // Nothing is counted, but QEMU wants a table that says so.
        let counts_at = room(&mut file, 1);
        file[counts_at..counts_at + size].fill(0);
        let mut l1 = Vec::new();
        for group in self.clusters.chunks(per_table) {
            if group.iter().all(|content| *content == Content::Absent) {
                l1.push(0_u64);
                continue;
            }
            let mut l2 = vec![0_u64; per_table];
            for (content, entry) in group.iter().zip(&mut l2) {
                *entry = match content {
                    Content::Absent => 0,
                    Content::Zero { room: false } => 1,
                    Content::Zero { room: true } => room(&mut file, 1) as u64 | 1 << 63 | 1,
                    Content::Plain(seed) => {
                        let at = room(&mut file, 1);
                        file[at..at + size].copy_from_slice(&bytes(*seed, size));
                        at as u64 | 1 << 63
                    }
                    Content::Compressed(seed) => {
                        compressed(&mut file, &bytes(*seed, size), self.cluster_bits)
                    }
                };
            }
            let at = room(&mut file, 1);
            for (entry, place) in l2.iter().zip(file[at..].as_chunks_mut::<8>().0) {
                *place = entry.to_be_bytes();
            }
            l1.push(at as u64 | 1 << 63);
        }
        for (entry, place) in l1.iter().zip(file[l1_at..].as_chunks_mut::<8>().0) {
            *place = entry.to_be_bytes();
        }
        self.write_header(&mut file, (l1_at, l1.len()), counts_at);
        file
    }

    fn write_header(&self, file: &mut [u8], (l1_at, l1_size): (usize, usize), counts_at: usize) {
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &Qcow2::MAGIC);
        put(4, &self.version.to_be_bytes());
        put(20, &self.cluster_bits.to_be_bytes());
        put(24, &(self.disk_size() as u64).to_be_bytes());
        put(36, &u32::try_from(l1_size).unwrap().to_be_bytes());
        put(40, &(l1_at as u64).to_be_bytes());
        put(48, &(counts_at as u64).to_be_bytes());
        put(56, &1_u32.to_be_bytes());
        if self.version == 3 {
            // 16-bit reference counts, a header of 104 bytes.
            put(96, &4_u32.to_be_bytes());
            put(100, &104_u32.to_be_bytes());
        }
    }
}

/// Appends a compressed cluster wherever the file ends, aligned to nothing; its table entry.
fn compressed(file: &mut Vec<u8>, cluster: &[u8], cluster_bits: u32) -> u64 {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(cluster).unwrap();
    let packed = encoder.finish().unwrap();
    let at = file.len();
    file.extend(&packed);
    let sectors = (at + packed.len()).div_ceil(512) - at / 512 - 1;
    1 << 62 | (sectors as u64) << (62 - (cluster_bits - 8)) | at as u64
}

fn open(image: &[u8]) -> Result<Qcow2, Qcow2Error> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(image).unwrap();
    Qcow2::open(file, DISK_MAX)
}

/// The whole disk, read as copies are made: what holds data, in pieces of `piece` bytes.
fn read(image: &mut Qcow2, piece: usize) -> Result<Vec<u8>, drover_storage_pools::StorageError> {
    let size = usize::try_from(image.size().get()).unwrap();
    let mut disk = vec![0; size];
    let mut offset = 0;
    while let Some(range) = image.next_data(offset)? {
        assert!(range.start >= offset && range.start < range.end && range.end <= size as u64, "{range:?}");
        let (mut at, end) = (usize::try_from(range.start).unwrap(), usize::try_from(range.end).unwrap());
        while at < end {
            let length = piece.min(end - at);
            image.read_at(at as u64, &mut disk[at..at + length])?;
            at += length;
        }
        offset = range.end;
    }
    Ok(disk)
}

/// Most memory that this process has ever had the promise of, bytes.
fn memory_peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

proptest! {
    #[test]
    fn any_image_reads_as_the_disk_it_stands_for(shape in shape(), piece in 1..100_000_usize) {
        let mut image = open(&shape.image()).unwrap();
        let disk = shape.disk();
        prop_assert_eq!(image.size().get(), disk.len() as u64);
        prop_assert!(read(&mut image, piece).unwrap() == disk);
        // Also what holds nothing can be read, from anywhere.
        let middle = disk.len() / 3;
        let mut part = vec![7; disk.len() - middle];
        image.read_at(middle as u64, &mut part).unwrap();
        prop_assert!(part == disk[middle..]);
        prop_assert!(image.read_at(disk.len() as u64, &mut [0]).is_err());
    }

    #[test]
    fn a_damaged_image_is_an_error_or_another_disk(
        shape in shape(),
        damage in vec((any::<Index>(), any::<u8>()), 1..6),
        in_header in vec((0..112_usize, any::<u8>()), 0..3),
        cut in prop::option::of(any::<Index>()),
    ) {
        let mut bytes = shape.image();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        for (at, value) in in_header {
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let before = memory_peak();
        if let Ok(mut image) = open(&bytes) {
            prop_assert!(image.size() <= DISK_MAX);
            let _whatever = read(&mut image, 4096);
        }
        prop_assert!(memory_peak() - before < MEMORY_MAX);
    }

    #[test]
    fn noise_is_no_image(noise in vec(any::<u8>(), 0..4096), magic: bool, version in 2..=3_u32) {
        let mut bytes = noise;
        if magic && bytes.len() >= 8 {
            bytes[..4].copy_from_slice(&Qcow2::MAGIC);
            bytes[4..8].copy_from_slice(&version.to_be_bytes());
        }
        let before = memory_peak();
        if let Ok(mut image) = open(&bytes) {
            let _whatever = read(&mut image, 4096);
        }
        prop_assert!(memory_peak() - before < MEMORY_MAX);
    }
}

/// A small file must not become a disk that fills a pool.
#[test]
fn clusters_that_are_used_again_and_again_are_refused() {
    let clusters = vec![Content::Absent; 400];
    let shape = Shape { version: 3, cluster_bits: 12, clusters, tail_sectors: 8, gaps: vec![0] };
    // Header, L1, L2, and the one that is used.
    let mut file = vec![0; 3 << 12];
    shape.write_header(&mut file, (1 << 12, 1), 2 << 12);
    file[1 << 12..][..8].copy_from_slice(&(2_u64 << 12 | 1 << 63).to_be_bytes());
    for place in &mut file[2 << 12..].as_chunks_mut::<8>().0[..400] {
        *place = (3_u64 << 12 | 1 << 63).to_be_bytes();
    }
    file.extend(bytes(3, 1 << 12));
    let error = read(&mut open(&file).unwrap(), 4096).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("more than once"), "{error}: {cause}");
}

/// The tool that everybody has says the same of what it made, and of what we made.
#[test]
fn qemu_img_agrees() {
    if !drover_test_prerequisites::is_installed("qemu-img") {
        drover_test_prerequisites::skipped("qemu-img is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (raw, ours) = (folder.path().join("disk.raw"), folder.path().join("ours.qcow2"));
    let qemu_img = |arguments: &[&str]| {
        let status = Command::new("qemu-img").args(arguments).status().unwrap();
        assert!(status.success(), "qemu-img {arguments:?}");
    };
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for (round, options) in
        ["", "compat=0.10", "cluster_size=512", "cluster_size=2M", "compression_type=zstd"].iter().enumerate()
    {
        let shape = shape().new_tree(&mut runner).unwrap().current();
        let disk = shape.disk();
        fs::write(&raw, &disk).unwrap();
        for packed in [false, true] {
            let theirs = folder.path().join(format!("theirs-{round}-{packed}.qcow2"));
            let mut line = vec!["convert", "-f", "raw", "-O", "qcow2"];
            line.extend(packed.then_some("-c"));
            line.extend((!options.is_empty()).then_some(["-o", *options]).into_iter().flatten());
            qemu_img(&[&line[..], &[raw.to_str().unwrap(), theirs.to_str().unwrap()]].concat());
            let mut image = Qcow2::open(File::open(&theirs).unwrap(), DISK_MAX).unwrap();
            assert!(read(&mut image, 4096).unwrap() == disk, "{options} {packed}");
        }
        fs::write(&ours, shape.image()).unwrap();
        let (ours, raw) = (ours.to_str().unwrap(), raw.to_str().unwrap());
        qemu_img(&["compare", "-f", "qcow2", "-F", "raw", ours, raw]);
    }
}
