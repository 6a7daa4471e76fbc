//! A guest that does what bytes say, to any device on either transport. The fuzz targets share it.
//!
//! The bytes are a script of small steps: descriptors, heads, doorbells, registers, configuration space, writes to RAM. Most
//! numbers are almost right, since what is wholly wrong is refused at the door. Whatever the script, the device ends its
//! work, becomes quiet, can be saved, and is as good as new after a reset.
#![allow(unreachable_pub, dead_code, reason = "public in the fuzz targets' crate, which uses all of it")]

mod requests;

use std::{
    io::{self, Write as _},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use drover_block::{Backend, MemoryImage, Owner};
use drover_bus::{BusDevice, Doorbell, DoorbellAddress, Doorbells, IrqLine, MsiLine, MsiLines, MsiMessage};
use drover_devices::{
    BalloonConfig, BlkConfig, ConsoleConfig, ConsoleSink, ConsoleSize, Device, DeviceEvent, DeviceEvents,
    MacAddress, MmioConfig, NetConfig, NetPort, PciAddress, PciConfig, PciRoot, RngConfig, Saved,
    VirtioBalloon, VirtioBlk, VirtioConsole, VirtioDevice, VirtioMmio, VirtioNet, VirtioPci, VirtioRng,
    VirtioVsock, VsockConfig,
};
use drover_guest_memory::GuestMemory;
use drover_ids::{NodeId, OwnerEpoch, VmId};
use drover_saved_state::Envelope;
use drover_tap::Offloads;
use drover_units::{Bytes, Gpa};
use vmm_sys_util::eventfd::EventFd;

/// RAM of the guest.
pub const RAM: u64 = 1 << 20;
const BASE: Gpa = Gpa::new(0xe000_0000);
/// The device's slot: its configuration space in the memory-mapped window.
const ECAM: u64 = 3 << 15;
const QUEUE_SIZE: u16 = 16;
/// A device that takes longer to become quiet hangs.
const LIMIT: Duration = Duration::from_secs(60);
/// A script longer than this says nothing new.
const STEPS_MAX: usize = 256;

const VERSION_1: u64 = 1 << 32;

/// Where requests that are almost right put what they send, and what they receive into: one place per descriptor.
const MESSAGES: u64 = 0x8_0000;
const MESSAGE_LEN: u64 = 0x1000;
const ROOM: u64 = MESSAGES + MESSAGE_LEN * QUEUE_SIZE as u64;

/// What the device is plugged into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Registers in memory.
    Mmio,
    /// A function on a PCI bus.
    Pci,
}

/// Every kind of device, by its name.
pub const KINDS: [&str; 6] = ["blk", "net", "rng", "vsock", "balloon", "console"];

/// Runs a script against a device of this kind. Panics where the device does what it must not.
pub fn run(kind: &str, transport: Transport, script: &[u8]) {
    let mut guest = Guest::new(kind, transport);
    guest.start(u64::MAX);
    let mut script = Script(script);
    for _ in 0..STEPS_MAX {
        let Some(step) = script.byte() else { break };
        guest.step(step, &mut script);
    }
    guest.comes_back();
}

/// Bytes, one after the other; zeros when they are used up.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn small(&mut self) -> u64 {
        self.byte().unwrap_or(0).into()
    }

    fn number(&mut self) -> u64 {
        (0..8).fold(0, |number, _| number << 8 | self.small())
    }

    /// Mostly an address in RAM.
    fn address(&mut self) -> u64 {
        match self.small() {
            kind @ 0..200 => (kind << 12 | self.small() << 4) % RAM,
            200..220 => RAM - self.small(),
            220..235 => rings(self.small() % 6) + self.small() * 16,
            235..245 => u64::MAX - self.small(),
            _ => self.number(),
        }
    }

    fn length(&mut self) -> u64 {
        match self.small() {
            length @ 0..80 => length,
            sectors @ 80..140 => (sectors - 79) * 512,
            140..170 => 16 * self.small(),
            170..200 => 1 << (self.small() % 32),
            200..220 => u64::from(u32::MAX) - self.small(),
            _ => self.number() & 0xffff_ffff,
        }
    }
}

/// Where a queue's three parts are.
const fn rings(queue: u64) -> u64 {
    0x1000 + queue * 0x1000
}

struct Guest {
    memory: GuestMemory,
    device: Plugged,
    bells: Arc<Bells>,
    queues: u64,
    offered: Vec<u16>,
    kind: &'static str,
    transport: Transport,
    /// What is at the other end of the device.
    _peer: Option<Peer>,
}

enum Plugged {
    Mmio(Box<VirtioMmio>),
    Pci { function: Arc<VirtioPci>, ecam: Arc<dyn BusDevice>, window: Arc<dyn BusDevice> },
}

impl Guest {
    fn new(kind: &str, transport: Transport) -> Self {
        Self::with_memory(kind, transport, GuestMemory::anonymous(Bytes::new(RAM)))
    }

    fn with_memory(kind: &str, transport: Transport, memory: GuestMemory) -> Self {
        let kind = KINDS.into_iter().find(|known| *known == kind).expect("a kind");
        let bells = Arc::<Bells>::default();
        let (device, peer) = device(kind, &memory);
        let queues = device.queue_sizes().len() as u64;
        let name = kind.to_owned();
        let device = match transport {
            Transport::Mmio => {
                let config = MmioConfig {
                    name,
                    instance: 0,
                    base: BASE,
                    memory: memory.clone(),
                    line: Arc::new(Quiet),
                    doorbells: bells.clone(),
                };
                Plugged::Mmio(Box::new(VirtioMmio::new(config, device).expect("a device")))
            }
            Transport::Pci => {
                let config = PciConfig {
                    name,
                    instance: 0,
                    class: 0x01_8000,
                    base: BASE,
                    memory: memory.clone(),
                    lines: Arc::new(Quiet),
                    doorbells: bells.clone(),
                };
                let function = Arc::new(VirtioPci::new(config, device).expect("a device"));
                let root = PciRoot::new();
                root.insert(PciAddress::device(3).expect("a slot"), function.clone()).expect("free");
                let root = Arc::new(root);
                Plugged::Pci { function, ecam: root.ecam(), window: root.memory(BASE) }
            }
        };
        let offered = vec![0; usize::try_from(queues).expect("few")];
        Self { memory, device, bells, queues, offered, kind, transport, _peer: peer }
    }

    fn set(&self, at: u64, data: &[u8]) {
        match &self.device {
            Plugged::Mmio(device) => device.write(at, data),
            Plugged::Pci { window, .. } => window.write(at, data),
        }
    }

    fn get(&self, at: u64, data: &mut [u8]) {
        match &self.device {
            Plugged::Mmio(device) => device.read(at, data),
            Plugged::Pci { window, .. } => window.read(at, data),
        }
    }

    fn as_device(&self) -> &dyn Device {
        match &self.device {
            Plugged::Mmio(device) => device.as_ref(),
            Plugged::Pci { function, .. } => function.as_ref(),
        }
    }

    fn status(&self) -> u8 {
        let mut status = [0; 4];
        match self.transport {
            Transport::Mmio => self.get(0x70, &mut status),
            Transport::Pci => self.get(0x14, &mut status[..1]),
        }
        status[0]
    }

    fn set_status(&self, status: u8) {
        match self.transport {
            Transport::Mmio => self.set(0x70, &u32::from(status).to_le_bytes()),
            Transport::Pci => self.set(0x14, &[status]),
        }
    }

    /// Starts the driver as it should be, with what the device offers of these features.
    fn start(&mut self, wanted: u64) {
        if let Plugged::Pci { ecam, .. } = &self.device {
            ecam.write(ECAM + 4, &6_u16.to_le_bytes());
            // The BAR may have been moved.
            ecam.write(ECAM + 0x10, &(BASE.get() as u32).to_le_bytes());
            ecam.write(ECAM + 0x14, &((BASE.get() >> 32) as u32).to_le_bytes());
        }
        self.set_status(0);
        assert_eq!(self.status(), 0, "{}: a reset is done when the status says so", self.kind);
        self.set_status(3);
        let (select, offered, choose, chosen) = match self.transport {
            Transport::Mmio => (0x14, 0x10, 0x24, 0x20),
            Transport::Pci => (0, 4, 8, 12),
        };
        for half in 0..2_u32 {
            self.set(select, &half.to_le_bytes());
            let mut features = [0; 4];
            self.get(offered, &mut features);
            let features = u32::from_le_bytes(features) & ((wanted | VERSION_1) >> (32 * half)) as u32;
            self.set(choose, &half.to_le_bytes());
            self.set(chosen, &features.to_le_bytes());
        }
        self.set_status(11);
        for queue in 0..self.queues.min(6) {
            let parts = [rings(queue), rings(queue) + 0x400, rings(queue) + 0x800];
            self.memory.write(Gpa::new(rings(queue)), &[0; 0x1000]).expect("RAM");
            match self.transport {
                Transport::Mmio => {
                    self.set(0x30, &(queue as u32).to_le_bytes());
                    self.set(0x38, &u32::from(QUEUE_SIZE).to_le_bytes());
                    for (register, part) in [0x80, 0x90, 0xa0].into_iter().zip(parts) {
                        self.set(register, &(part as u32).to_le_bytes());
                        self.set(register + 4, &0_u32.to_le_bytes());
                    }
                    self.set(0x44, &1_u32.to_le_bytes());
                }
                Transport::Pci => {
                    self.set(0x16, &(queue as u16).to_le_bytes());
                    self.set(0x18, &QUEUE_SIZE.to_le_bytes());
                    for (register, part) in [0x20, 0x28, 0x30].into_iter().zip(parts) {
                        self.set(register, &(part as u32).to_le_bytes());
                        self.set(register + 4, &0_u32.to_le_bytes());
                    }
                    self.set(0x1c, &1_u16.to_le_bytes());
                }
            }
        }
        self.set_status(15);
        self.offered.fill(0);
    }

    fn step(&mut self, step: u8, script: &mut Script<'_>) {
        let queue = u64::from(step >> 4) % self.queues.min(6);
        match step % 16 {
            12..=15 => self.request(queue, script),
            0..=3 => {
                let index = script.small() % u64::from(QUEUE_SIZE);
                self.put_descriptor(rings(queue) + 16 * index, script);
            }
            4 | 5 => self.offer(queue, script.small() as u16 % (QUEUE_SIZE + 2)),
            6 => self.bells.ring(queue),
            7 => {
                let at = script.address();
                let bytes: Vec<u8> = (0..script.small() % 64).map(|_| script.small() as u8).collect();
                // Outside of RAM there is nothing to write to.
                let _ = self.memory.write(Gpa::new(at), &bytes);
            }
            8 => {
                let at = script.small() << (step >> 4 & 4) | script.small() << 8 & 0xff00;
                let value = script.number().to_le_bytes();
                self.set(at, &value[..1 << (step >> 6)]);
            }
            9 => {
                let at = script.small() << (step >> 4 & 4) | script.small() << 8 & 0xff00;
                let mut value = [0; 8];
                self.get(at, &mut value[..1 << (step >> 6)]);
            }
            10 => self.configure(script),
            _ => match script.small() % 3 {
                0 => self.rests(),
                1 => self.put_descriptor(script.address() & !15, script),
                _ => self.start(script.number()),
            },
        }
    }

    /// Offers what a driver would, and rings.
    fn request(&mut self, queue: u64, script: &mut Script<'_>) {
        let choice = script.small();
        let first = choice % u64::from(QUEUE_SIZE);
        let message = requests::message(self.kind, queue, self.queues, script);
        let at = MESSAGES + first * MESSAGE_LEN;
        self.memory.write(Gpa::new(at), &message.bytes).expect("RAM");
        // The message in one piece or two, room for an answer in up to three, a byte for a status.
        let len = message.bytes.len() as u64;
        let cut = if choice & 0x10 == 0 { 0 } else { script.small().min(len) };
        let mut buffers = vec![(at, cut, 0), (at + cut, len - cut, 0)];
        for _ in 0..choice >> 6 {
            let len = script.length() % 0x8000;
            let writable = u16::from(choice & 0x20 == 0) * 2;
            buffers.push((ROOM + script.small() * 16, len, writable));
        }
        if message.has_status {
            buffers.push((at + MESSAGE_LEN - 1, 1, 2));
        }
        buffers.retain(|(_, len, _)| *len > 0);
        let last = buffers.len().wrapping_sub(1);
        for (n, (at, len, flags)) in buffers.into_iter().enumerate() {
            let index = (first + n as u64) % u64::from(QUEUE_SIZE);
            let next = (index + 1) % u64::from(QUEUE_SIZE);
            let mut raw = Vec::with_capacity(16);
            raw.extend(at.to_le_bytes());
            raw.extend((len as u32).to_le_bytes());
            raw.extend((flags | u16::from(n != last)).to_le_bytes());
            raw.extend((next as u16).to_le_bytes());
            self.memory.write(Gpa::new(rings(queue) + 16 * index), &raw).expect("RAM");
        }
        self.offer(queue, first as u16);
        self.bells.ring(queue);
    }

    fn put_descriptor(&self, at: u64, script: &mut Script<'_>) {
        let mut raw = Vec::with_capacity(16);
        raw.extend(script.address().to_le_bytes());
        raw.extend((script.length() as u32).to_le_bytes());
        raw.extend((script.small() as u16 & 7).to_le_bytes());
        raw.extend((script.small() as u16 % (QUEUE_SIZE + 2)).to_le_bytes());
        let _ = self.memory.write(Gpa::new(at), &raw);
    }

    fn offer(&mut self, queue: u64, head: u16) {
        let offered = &mut self.offered[queue as usize];
        let entry = rings(queue) + 0x404 + 2 * u64::from(*offered % QUEUE_SIZE);
        *offered = offered.wrapping_add(1);
        let index = offered.to_le_bytes();
        let _ = self.memory.write(Gpa::new(entry), &head.to_le_bytes());
        let _ = self.memory.write(Gpa::new(rings(queue) + 0x402), &index);
    }

    /// An access to the function's configuration space.
    fn configure(&self, script: &mut Script<'_>) {
        let Plugged::Pci { ecam, .. } = &self.device else { return };
        let (at, size) = (script.small() | script.small() << 8 & 0xf00, 1 << (script.small() % 3));
        let mut data = script.number().to_le_bytes();
        ecam.read(ECAM + at, &mut data[..size]);
        ecam.write(ECAM + at, &script.number().to_le_bytes()[..size]);
        // Another function's, where there is none.
        ecam.read((script.small() << 15) + at, &mut data[..size]);
    }

    /// Becomes quiet, is saved, and goes on.
    fn rests(&self) {
        let device = self.as_device();
        device.pause(LIMIT).unwrap_or_else(|error| panic!("{}: does not become quiet: {error}", self.kind));
        if let Saved::State(state) = device.save() {
            let _ = restored(self.kind, self.transport, &self.memory, &state);
        }
        device.resume().unwrap_or_else(|error| panic!("{}: does not go on: {error}", self.kind));
    }

    /// Whatever has happened, a reset makes it as good as new.
    fn comes_back(&mut self) {
        self.rests();
        self.start(VERSION_1);
        assert_eq!(self.status() & 0x4f, 15, "{}: it works again", self.kind);
    }
}

/// Gives a state to a device of its kind in another machine: it takes it or refuses it, and survives both.
fn restored(kind: &str, transport: Transport, memory: &GuestMemory, state: &Envelope) -> Option<Guest> {
    let target = Guest::with_memory(kind, transport, memory.clone());
    let device = target.as_device();
    let _ = device.pause(LIMIT);
    device.restore(state).is_ok().then_some(target)
}

/// Gives any bytes as the state of a device of this kind. One that takes them goes on with them, saves what it took, and
/// comes back after a reset.
pub fn restore(kind: &str, transport: Transport, state: &Envelope) {
    let memory = GuestMemory::anonymous(Bytes::new(RAM));
    let Some(mut guest) = restored(kind, transport, &memory, state) else { return };
    let device = guest.as_device();
    let Saved::State(taken) = device.save() else { panic!("{kind}: it has taken a state") };
    assert!(
        restored(kind, transport, &memory, &taken).is_some(),
        "{kind}: it takes what it has saved itself"
    );
    device.resume().unwrap_or_else(|error| panic!("{kind}: does not go on: {error}"));
    for queue in 0..guest.queues {
        guest.bells.ring(queue);
    }
    guest.comes_back();
}

/// The state of a device of this kind, as its driver leaves it when it has started.
pub fn saved(kind: &str, transport: Transport) -> Envelope {
    let mut guest = Guest::new(kind, transport);
    guest.start(u64::MAX);
    let device = guest.as_device();
    device.pause(LIMIT).unwrap_or_else(|error| panic!("{kind}: does not become quiet: {error}"));
    match device.save() {
        Saved::State(state) => state,
        other => panic!("{kind} has state, not {other:?}"),
    }
}

fn device(kind: &str, memory: &GuestMemory) -> (Box<dyn VirtioDevice>, Option<Peer>) {
    let events: Arc<dyn DeviceEvents> = Arc::new(Quiet);
    let name = kind.to_owned();
    let mut peer = None;
    let device: Box<dyn VirtioDevice> = match kind {
        "blk" => {
            let backend = Arc::new(MemoryImage::new(Bytes::mib(1)).open());
            let (vm, node) = (VmId::from_u128(1), NodeId::from_u128(1));
            let owner = Owner { vm, node, epoch: OwnerEpoch::new(1), pid: 1 };
            backend.acquire(&owner).expect("nobody else's");
            Box::new(VirtioBlk::new(BlkConfig { name, id: "a-disk".into(), queues: 2, events }, backend))
        }
        "net" => {
            let (near, far) = UnixDatagram::pair().expect("sockets");
            near.set_nonblocking(true).expect("a socket");
            // Something to receive: to all, to the interface, and too short to be a frame.
            for (first, len) in [(0xff, 100), (0x52, 1514), (0x52, 60), (0, 13), (0xff, 1000)] {
                let mut frame = vec![0; len];
                frame[12..].fill(first);
                far.send(&frame).expect("sent");
            }
            let ports: Vec<Box<dyn NetPort>> = vec![Box::new(Port { near, _far: far })];
            let mac = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
            let config = NetConfig {
                name,
                mac,
                mtu: Some(1500),
                ports,
                offloads: Offloads::default(),
                metrics: Arc::default(),
                throttle: Arc::default(),
                events,
            };
            Box::new(VirtioNet::new(config).expect("an interface"))
        }
        "rng" => Box::new(VirtioRng::new(RngConfig { name, events })),
        "vsock" => {
            let (host, listener) = Peer::new();
            let path = host.path.clone();
            peer = Some(host);
            Box::new(
                VirtioVsock::new(VsockConfig { name, cid: 42, listener, path, events }).expect("a device"),
            )
        }
        "balloon" => {
            let ram = memory.layout().clone();
            let config = BalloonConfig { name, ram, deflate_on_oom: true, events };
            let balloon = VirtioBalloon::new(config).expect("a balloon");
            balloon.balloon().set_target(Bytes::kib(512));
            Box::new(balloon)
        }
        "console" => {
            let size = ConsoleSize { columns: 80, rows: 25 };
            let config = ConsoleConfig { name, sink: Box::new(Quiet), size, events };
            Box::new(VirtioConsole::new(config).expect("a console"))
        }
        _ => panic!("no such kind: {kind}"),
    };
    (device, peer)
}

/// Processes on the host: one that listens on port 1, and one that connects to the guest's port 3.
struct Peer {
    path: PathBuf,
    _listener: UnixListener,
    _client: UnixStream,
}

impl Peer {
    fn new() -> (Self, UnixListener) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("drover-hostile-{}-{number}", std::process::id()));
        let device = UnixListener::bind(&path).expect("a free name");
        let own = UnixListener::bind(Self::own(&path)).expect("a free name");
        let mut client = UnixStream::connect(&path).expect("it listens");
        client.write_all(b"CONNECT 3\nhello").expect("room");
        (Self { path, _listener: own, _client: client }, device)
    }

    fn own(path: &std::path::Path) -> PathBuf {
        let mut own = path.as_os_str().to_owned();
        own.push("_1");
        own.into()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        for path in [Self::own(&self.path), self.path.clone()] {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Takes what devices tell, and says nothing.
#[derive(Clone, Debug)]
pub struct Quiet;

impl DeviceEvents for Quiet {
    fn notify(&self, event: DeviceEvent) {
        panic!("no guest can bring a device to this: {event:?}");
    }
}

impl ConsoleSink for Quiet {
    fn write(&mut self, _bytes: &[u8]) {}
}

impl IrqLine for Quiet {
    fn pulse(&self) -> io::Result<()> {
        Ok(())
    }
}

impl MsiLines for Quiet {
    fn line(&self) -> io::Result<Arc<dyn MsiLine>> {
        Ok(Arc::new(Self))
    }
}

impl MsiLine for Quiet {
    fn route(&self, _message: MsiMessage) -> io::Result<()> {
        Ok(())
    }
    fn pulse(&self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Port {
    near: UnixDatagram,
    _far: UnixDatagram,
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.near.as_fd()
    }
}

impl NetPort for Port {
    fn set_offloads(&self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }
    fn set_attached(&self, _attached: bool) -> io::Result<()> {
        Ok(())
    }
}

/// The doorbells that are connected.
#[derive(Debug, Default)]
struct Bells(Mutex<Vec<(Doorbell, EventFd)>>);

impl Bells {
    /// Rings a queue's, if it has one.
    fn ring(&self, queue: u64) {
        let bells = self.0.lock().expect("no panic");
        for (bell, event) in bells.iter() {
            let DoorbellAddress::Mmio(at) = bell.address else { continue };
            // Registers in memory tell queues apart by what is written, PCI by where.
            let is_its = match bell.value {
                Some(value) => u64::from(value) == queue,
                // Wherever the BAR has been put.
                None => at.get() & 0x7fff == 0x3000 + 4 * queue,
            };
            if is_its {
                event.write(1).expect("an event");
            }
        }
    }
}

impl Doorbells for Bells {
    fn connect(&self, doorbell: Doorbell, event: &EventFd) -> io::Result<()> {
        self.0.lock().expect("no panic").push((doorbell, event.try_clone()?));
        Ok(())
    }
    fn disconnect(&self, doorbell: Doorbell, _event: &EventFd) -> io::Result<()> {
        self.0.lock().expect("no panic").retain(|(other, _)| *other != doorbell);
        Ok(())
    }
}
