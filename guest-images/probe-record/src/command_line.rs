//! The probe's command line: space separated `key=value` words.
//!
//! A host writes a [`Workload`] (it displays as words); the VMM appends what it knows of the machine; the guest parses
//! the whole as a [`CommandLine`]. Keys of others (`console=…`, `reboot=…`) are passed over, an unknown `probe.` key is an
//! error, because a misspelt one would leave a test measuring nothing. A key given twice keeps its last value.

use core::fmt;
use core::num::NonZeroU64;
use core::str::FromStr;

use crate::bench::BenchWork;

/// Heartbeats further apart than a minute say nothing about a blackout.
pub const HEARTBEAT_MS_MAX: u64 = 60_000;
/// Slots of 4 KiB: 4 GiB of disk, whose table of sequence numbers takes 8 MiB of guest RAM.
pub const DISK_SLOTS_MAX: u64 = 1 << 20;
/// More than a guest that exits for each notification can ask for.
pub const DISK_IOPS_MAX: u64 = 1_000_000;
/// Each request takes three descriptors of a 256-entry queue; 64 leave room for flushes and reads.
pub const QUEUE_DEPTH_MAX: u64 = 64;
/// Deep enough to keep a file backend busy, shallow enough that a crash leaves few writes in doubt.
pub const QUEUE_DEPTH_DEFAULT: u64 = 4;
/// The RAM below the 32-bit hole, which is all that the probe maps.
pub const DIRTY_MIB_MAX: u64 = 3072;
/// Above the memory bandwidth of any host.
pub const DIRTY_MIB_PER_S_MAX: u64 = 1 << 20;
/// Room is left for the probe itself, below the 32-bit hole.
pub const BALLOON_MIB_MAX: u64 = 2048;
/// Ports below those that name processes of the host which have connected.
pub const VSOCK_PORT_MAX: u64 = 65_535;
/// A day.
pub const HALT_MS_MAX: u64 = 86_400_000;
/// The probe keeps a static stack for each vCPU.
pub const VCPUS_MAX: u64 = 16;
/// Devices whose announcement the probe remembers.
pub const MMIO_DEVICES_MAX: usize = 8;

/// Writes stamped blocks in sequence: sequence number `s` goes to slot `s % slots`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskWork {
    /// Blocks of 4 KiB from the start of the disk, `1..=`[`DISK_SLOTS_MAX`].
    pub slots: u64,
    /// Writes per second, 0 for as fast as the device allows, at most [`DISK_IOPS_MAX`].
    pub iops: u64,
    /// Writes in flight, `1..=`[`QUEUE_DEPTH_MAX`].
    pub queue_depth: u64,
}

/// Writes stamped blocks in an order that spans the first two disks: number `s` to slot `s % slots` of the first, then of the
/// second, then comes `s + 1`. Numbers begin at 1 with each boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderedWork {
    /// Blocks of 4 KiB from the start of each disk, `1..=`[`DISK_SLOTS_MAX`].
    pub slots: u64,
    /// Numbers per second, 0 for as fast as the disks allow, at most [`DISK_IOPS_MAX`].
    pub iops: u64,
}

/// Works on a disk beside the first one, on our machine's PCI bus, which may come and go while the probe runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VisitorWork {
    /// Blocks of 4 KiB from the start of the disk, `1..=`[`DISK_SLOTS_MAX`].
    pub slots: u64,
    /// Writes per second, 0 for as fast as the device allows, at most [`DISK_IOPS_MAX`].
    pub iops: u64,
    /// Whether it keeps a disk that it is asked for.
    pub keeps: bool,
}

/// Sweeps over RAM, rewriting pages at a rate; each page is verified before it is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyWork {
    /// Size of the swept region, MiB, `1..=`[`DIRTY_MIB_MAX`].
    pub mib: u64,
    /// Rate of rewriting, MiB per second, `1..=`[`DIRTY_MIB_PER_S_MAX`].
    pub mib_per_s: u64,
}

/// What a probe is asked to do. Displays as the words of a command line that [`CommandLine::parse`] reads back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Distinguishes this VM's blocks and pages from any other's.
    pub seed: u64,
    /// One heartbeat every so many milliseconds, `1..=`[`HEARTBEAT_MS_MAX`].
    pub heartbeat_ms: Option<u64>,
    /// Work on the first disk.
    pub disk: Option<DiskWork>,
    /// Measure the first disk, whose contents it overwrites; instead of work on it.
    pub bench: Option<BenchWork>,
    /// Work on the first two disks, instead of on one of them.
    pub ordered: Option<OrderedWork>,
    /// Work on a disk that may come and go.
    pub visitor: Option<VisitorWork>,
    /// Work on RAM.
    pub dirty: Option<DirtyWork>,
    /// Drive the balloon, with so much RAM to give, `1..=`[`BALLOON_MIB_MAX`].
    pub balloon_mib: Option<u64>,
    /// Drive the sockets to the host: connect to this port of it, greet, and say back whatever comes, `1..=`[`VSOCK_PORT_MAX`].
    pub vsock_port: Option<u64>,
    /// Stop the machine so many milliseconds after start, and not before a measurement has been told, `0..=`[`HALT_MS_MAX`].
    pub halt_after_ms: Option<u64>,
    /// vCPUs to expect, `1..=`[`VCPUS_MAX`]. Unset, the probe asks CPUID and gives the others 20 ms to show up.
    pub vcpus: Option<u64>,
}

/// A virtio-mmio device as the VMM announces it (`virtio_mmio.device=<size>@<address>:<irq>[:<id>]`, Linux
/// Documentation/admin-guide/kernel-parameters.txt).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MmioDevice {
    /// Bytes of the register window.
    pub size: u64,
    /// Guest physical address of the window.
    pub address: u64,
    /// Global system interrupt.
    pub irq: u32,
}

/// Everything the guest reads from its command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// What to do.
    pub workload: Workload,
    /// Frequency of the TSC where the VMM knows it.
    pub tsc_khz: Option<NonZeroU64>,
    devices: [MmioDevice; MMIO_DEVICES_MAX],
    device_count: usize,
}

/// A word of the command line that cannot be followed. Displays the word and what would be valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseError<'a> {
    /// The offending word.
    pub word: &'a str,
    /// What is expected in its place.
    pub expected: &'static str,
}

impl fmt::Display for ParseError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command line word `{}`: expected {}", self.word, self.expected)
    }
}

impl core::error::Error for ParseError<'_> {}

impl CommandLine {
    /// Reads a command line.
    ///
    /// # Errors
    /// The first word that is malformed, out of range, or an unknown `probe.` key.
    pub fn parse(line: &str) -> Result<CommandLine, ParseError<'_>> {
        let mut parsed = CommandLine::default();
        for word in line.split_ascii_whitespace() {
            let Some((key, value)) = word.split_once('=') else { continue };
            parsed.take_word(key, value).map_err(|expected| ParseError { word, expected })?;
        }
        Ok(parsed)
    }

    /// The virtio-mmio devices, in the order of their announcement.
    pub fn mmio_devices(&self) -> &[MmioDevice] {
        &self.devices[..self.device_count]
    }

    fn take_word(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        let work = &mut self.workload;
        match key {
            "probe.seed" => work.seed = number(value).ok_or("a 64-bit number")?,
            "probe.heartbeat" => {
                work.heartbeat_ms =
                    Some(number_in(value, 1, HEARTBEAT_MS_MAX).ok_or("milliseconds from 1 to 60000")?);
            }
            "probe.disk" => work.disk = Some(disk(value)?),
            "probe.bench" => work.bench = Some(BenchWork::parse(value)?),
            "probe.ordered" => work.ordered = Some(ordered(value)?),
            "probe.visitor" => work.visitor = Some(visitor(value)?),
            "probe.dirty" => work.dirty = Some(dirty(value)?),
            "probe.balloon" => {
                let mib = number_in(value, 1, BALLOON_MIB_MAX).ok_or("MiB from 1 to 2048")?;
                work.balloon_mib = Some(mib);
            }
            "probe.vsock" => {
                let port = number_in(value, 1, VSOCK_PORT_MAX).ok_or("a port from 1 to 65535")?;
                work.vsock_port = Some(port);
            }
            "probe.halt" => {
                work.halt_after_ms =
                    Some(number_in(value, 0, HALT_MS_MAX).ok_or("milliseconds from 0 to 86400000")?);
            }
            "probe.vcpus" => {
                work.vcpus = Some(number_in(value, 1, VCPUS_MAX).ok_or("a number of vCPUs from 1 to 16")?);
            }
            "tsc_khz" => {
                let khz =
                    number(value).and_then(NonZeroU64::new).ok_or("the TSC's frequency in kHz, above 0")?;
                self.tsc_khz = Some(khz);
            }
            "virtio_mmio.device" => self.announce(mmio_device(value)?)?,
            _ if key.starts_with("probe.") => {
                return Err(
                    "probe.seed, .heartbeat, .disk, .bench, .ordered, .visitor, .dirty, .balloon, .vsock, .halt or .vcpus",
                );
            }
            _ => {}
        }
        Ok(())
    }

    fn announce(&mut self, device: MmioDevice) -> Result<(), &'static str> {
        let slot = self.devices.get_mut(self.device_count).ok_or("at most 8 virtio-mmio devices")?;
        *slot = device;
        self.device_count += 1;
        Ok(())
    }
}

fn disk(value: &str) -> Result<DiskWork, &'static str> {
    const EXPECTED: &str =
        "<slots>,<iops or 0>[,<queue depth>] with 1 to 1048576 slots, at most 1000000 iops, depth 1 to 64";
    let mut parts = value.split(',');
    let slots = parts.next().and_then(|text| number_in(text, 1, DISK_SLOTS_MAX)).ok_or(EXPECTED)?;
    let iops = parts.next().and_then(|text| number_in(text, 0, DISK_IOPS_MAX)).ok_or(EXPECTED)?;
    let queue_depth = match parts.next() {
        Some(text) => number_in(text, 1, QUEUE_DEPTH_MAX).ok_or(EXPECTED)?,
        None => QUEUE_DEPTH_DEFAULT,
    };
    parts.next().map_or(Ok(DiskWork { slots, iops, queue_depth }), |_| Err(EXPECTED))
}

fn ordered(value: &str) -> Result<OrderedWork, &'static str> {
    const EXPECTED: &str = "<slots>,<iops or 0> with 1 to 1048576 slots, at most 1000000 iops";
    let (slots, iops) = value.split_once(',').ok_or(EXPECTED)?;
    let slots = number_in(slots, 1, DISK_SLOTS_MAX).ok_or(EXPECTED)?;
    let iops = number_in(iops, 0, DISK_IOPS_MAX).ok_or(EXPECTED)?;
    Ok(OrderedWork { slots, iops })
}

fn visitor(value: &str) -> Result<VisitorWork, &'static str> {
    const EXPECTED: &str = "<slots>,<iops or 0>[,keep] with 1 to 1048576 slots, at most 1000000 iops; keep does not let go of it";
    let mut parts = value.split(',');
    let slots = parts.next().and_then(|text| number_in(text, 1, DISK_SLOTS_MAX)).ok_or(EXPECTED)?;
    let iops = parts.next().and_then(|text| number_in(text, 0, DISK_IOPS_MAX)).ok_or(EXPECTED)?;
    let keeps = match parts.next() {
        None => false,
        Some("keep") => true,
        Some(_) => return Err(EXPECTED),
    };
    parts.next().map_or(Ok(VisitorWork { slots, iops, keeps }), |_| Err(EXPECTED))
}

fn dirty(value: &str) -> Result<DirtyWork, &'static str> {
    const EXPECTED: &str = "<MiB>,<MiB per second> with 1 to 3072 MiB at 1 to 1048576 MiB/s";
    let (mib, rate) = value.split_once(',').ok_or(EXPECTED)?;
    let mib = number_in(mib, 1, DIRTY_MIB_MAX).ok_or(EXPECTED)?;
    let mib_per_s = number_in(rate, 1, DIRTY_MIB_PER_S_MAX).ok_or(EXPECTED)?;
    Ok(DirtyWork { mib, mib_per_s })
}

fn mmio_device(value: &str) -> Result<MmioDevice, &'static str> {
    const EXPECTED: &str = "<size>[K|M]@<address>:<irq>[:<id>]";
    let (size, rest) = value.split_once('@').ok_or(EXPECTED)?;
    let (address, rest) = rest.split_once(':').ok_or(EXPECTED)?;
    let irq = rest.split_once(':').map_or(rest, |(irq, _id)| irq);
    Ok(MmioDevice {
        size: byte_size(size).filter(|&bytes| bytes > 0).ok_or(EXPECTED)?,
        address: number(address).ok_or(EXPECTED)?,
        irq: irq.parse().map_err(|_| EXPECTED)?,
    })
}

pub(crate) fn byte_size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 1 << 10),
        b'M' | b'm' => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    number(digits)?.checked_mul(unit)
}

/// A decimal number, or a hexadecimal one after `0x`.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => u64::from_str(text).ok(),
    }
}

pub(crate) fn number_in(text: &str, least: u64, most: u64) -> Option<u64> {
    number(text).filter(|value| (least..=most).contains(value))
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "probe.seed={}", self.seed)?;
        if let Some(ms) = self.heartbeat_ms {
            write!(f, " probe.heartbeat={ms}")?;
        }
        if let Some(DiskWork { slots, iops, queue_depth }) = self.disk {
            write!(f, " probe.disk={slots},{iops},{queue_depth}")?;
        }
        if let Some(bench) = self.bench {
            write!(f, " probe.bench={bench}")?;
        }
        if let Some(OrderedWork { slots, iops }) = self.ordered {
            write!(f, " probe.ordered={slots},{iops}")?;
        }
        if let Some(VisitorWork { slots, iops, keeps }) = self.visitor {
            write!(f, " probe.visitor={slots},{iops}{}", if keeps { ",keep" } else { "" })?;
        }
        if let Some(DirtyWork { mib, mib_per_s }) = self.dirty {
            write!(f, " probe.dirty={mib},{mib_per_s}")?;
        }
        if let Some(mib) = self.balloon_mib {
            write!(f, " probe.balloon={mib}")?;
        }
        if let Some(port) = self.vsock_port {
            write!(f, " probe.vsock={port}")?;
        }
        if let Some(ms) = self.halt_after_ms {
            write!(f, " probe.halt={ms}")?;
        }
        if let Some(vcpus) = self.vcpus {
            write!(f, " probe.vcpus={vcpus}")?;
        }
        Ok(())
    }
}

impl fmt::Display for MmioDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "virtio_mmio.device={}@{:#x}:{}", self.size, self.address, self.irq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(line: &str) -> CommandLine {
        CommandLine::parse(line).unwrap()
    }

    fn check_refused(line: &str, word: &str) {
        let error = CommandLine::parse(line).expect_err(line);
        assert_eq!(error.word, word);
        assert!(error.to_string().contains(word), "{error} names the word");
    }

    #[test]
    fn every_key_is_read() {
        let line = "console=ttyS0 probe.heartbeat=10 probe.disk=4096,200 probe.visitor=64,9,keep probe.dirty=128,64 probe.halt=5000 \
                    probe.balloon=16 probe.vsock=5000 probe.seed=0xff probe.vcpus=2 tsc_khz=2450000 quiet virtio_mmio.device=4K@0xd0000000:5";
        let parsed = parse(line);
        let expect = Workload {
            seed: 255,
            heartbeat_ms: Some(10),
            disk: Some(DiskWork { slots: 4096, iops: 200, queue_depth: QUEUE_DEPTH_DEFAULT }),
            bench: None,
            ordered: None,
            visitor: Some(VisitorWork { slots: 64, iops: 9, keeps: true }),
            dirty: Some(DirtyWork { mib: 128, mib_per_s: 64 }),
            balloon_mib: Some(16),
            vsock_port: Some(5000),
            halt_after_ms: Some(5000),
            vcpus: Some(2),
        };
        assert_eq!(parsed.workload, expect);
        assert_eq!(parsed.tsc_khz.map(NonZeroU64::get), Some(2_450_000));
        assert_eq!(parsed.mmio_devices(), [MmioDevice { size: 4096, address: 0xd000_0000, irq: 5 }]);
    }

    #[test]
    fn devices_keep_their_order_and_forms() {
        let parsed = parse("virtio_mmio.device=512@0xfeb00e00:12 virtio_mmio.device=1M@4096:3:7");
        let expect = [
            MmioDevice { size: 512, address: 0xfeb0_0e00, irq: 12 },
            MmioDevice { size: 1 << 20, address: 4096, irq: 3 },
        ];
        assert_eq!(parsed.mmio_devices(), expect);
    }

    #[test]
    fn a_word_that_cannot_be_followed_is_named() {
        for word in [
            "probe.heartbeat=0",
            "probe.heartbeat=",
            "probe.disk=0,1",
            "probe.disk=8",
            "probe.disk=8,1,65",
            "probe.disk=8,1,4,9",
            "probe.ordered=64",
            "probe.ordered=0,1",
            "probe.visitor=64",
            "probe.visitor=64,9,kept",
            "probe.dirty=64",
            "probe.bench=write,4K",
            "probe.dirty=9999,1",
            "probe.halt=-1",
            "probe.seed=18446744073709551616",
            "probe.vcpus=17",
            "probe.hartbeat=10",
            "tsc_khz=0",
            "virtio_mmio.device=@0xd0000000:5",
            "virtio_mmio.device=0@0xd0000000:5",
            "virtio_mmio.device=4K@0xd0000000",
            "virtio_mmio.device=99999999999999999999M@1:1",
        ] {
            check_refused(&["quiet", word].join(" "), word);
        }
    }

    #[test]
    fn the_ninth_device_is_refused() {
        let line = "virtio_mmio.device=4K@0xd0000000:5 ".repeat(MMIO_DEVICES_MAX + 1);
        check_refused(&line, "virtio_mmio.device=4K@0xd0000000:5");
    }

    #[test]
    fn the_last_of_a_repeated_key_wins() {
        assert_eq!(parse("probe.seed=1 probe.seed=2").workload.seed, 2);
    }

    prop_compose! {
        fn any_workload()(
            seed: u64,
            heartbeat_ms in prop::option::of(1..=HEARTBEAT_MS_MAX),
            disk in prop::option::of((1..=DISK_SLOTS_MAX, 0..=DISK_IOPS_MAX, 1..=QUEUE_DEPTH_MAX)),
            ordered in prop::option::of((1..=DISK_SLOTS_MAX, 0..=DISK_IOPS_MAX)),
            visitor in prop::option::of((1..=DISK_SLOTS_MAX, 0..=DISK_IOPS_MAX, any::<bool>())),
            dirty in prop::option::of((1..=DIRTY_MIB_MAX, 1..=DIRTY_MIB_PER_S_MAX)),
            (balloon_mib, vsock_port) in
                (prop::option::of(1..=BALLOON_MIB_MAX), prop::option::of(1..=VSOCK_PORT_MAX)),
            halt_after_ms in prop::option::of(0..=HALT_MS_MAX),
            vcpus in prop::option::of(1..=VCPUS_MAX),
        ) -> Workload {
            let disk = disk.map(|(slots, iops, queue_depth)| DiskWork { slots, iops, queue_depth });
            let dirty = dirty.map(|(mib, mib_per_s)| DirtyWork { mib, mib_per_s });
            let bench = None;
            let ordered = ordered.map(|(slots, iops)| OrderedWork { slots, iops });
            let visitor = visitor.map(|(slots, iops, keeps)| VisitorWork { slots, iops, keeps });
            Workload { seed, heartbeat_ms, disk, bench, ordered, visitor, dirty, balloon_mib, vsock_port, halt_after_ms, vcpus }
        }
    }

    proptest! {
        #[test]
        fn a_displayed_workload_is_read_back(work in any_workload()) {
            prop_assert_eq!(parse(&work.to_string()).workload, work);
        }

        #[test]
        fn no_line_panics(line in "\\PC*") {
            let _outcome = CommandLine::parse(&line);
        }

        #[test]
        fn no_line_of_known_keys_panics(
            words in prop::collection::vec("(probe\\.disk|probe\\.dirty|tsc_khz|virtio_mmio\\.device)=[0-9xKMkm@:,é]{0,24}", 0..6)
        ) {
            let line = words.join(" ");
            let _outcome = CommandLine::parse(&line);
        }
    }
}
