//! The root of the bus: how the guest reaches configuration spaces and device memory.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use drover_bus::{BusDevice, Port};
use drover_saved_state::{Envelope, PayloadReader, PayloadWriter, SavedState, StateError};
use drover_units::{Bytes, Gpa};

use crate::{Device, DeviceError, Saved};

use super::{Address, ConfigSpace, Identity, PciFunction, config_space};

/// Configuration space of one function in the memory-mapped window (PCI Express 7.2.2).
const ECAM_FUNCTION_LEN: u64 = 0x1000;
/// Eight functions to a device, 32 devices to a bus, one bus.
const ECAM_LEN: u64 = ECAM_FUNCTION_LEN * 8 * 32;

/// The address port's enable bit (3.2.2.3.2).
const ENABLE: u32 = 1 << 31;

/// A function that cannot be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// Another one is.
    #[error("the PCI bus has a device at {0} already")]
    Taken(Address),
}

/// One bus with its functions, the host bridge at 00:00.0. Functions come and go while the guest looks.
#[derive(Debug)]
pub struct PciRoot {
    /// No data path: doorbells do not come through here. Never changed by a function that is being called.
    functions: RwLock<BTreeMap<Address, Arc<dyn PciFunction>>>,
    /// What the guest wrote to the address port. The guest's own lock orders this with its data accesses.
    selected: AtomicU32,
}

impl PciRoot {
    /// The first of the two ports of configuration mechanism 1.
    pub const PORT: Port = Port(0xcf8);
    /// Its length, ports.
    pub const PORT_LEN: u64 = 8;
    /// Length of the memory-mapped configuration window (ECAM).
    pub const ECAM_LEN: u64 = ECAM_LEN;

    /// A bus with its host bridge.
    pub fn new() -> Self {
        let bridge = Address::device(0).expect("a bus has a device 0");
        Self {
            functions: RwLock::new(BTreeMap::from([(
                bridge,
                Arc::new(HostBridge::new()) as Arc<dyn PciFunction>,
            )])),
            selected: AtomicU32::new(0),
        }
    }

    /// Puts a function on the bus.
    ///
    /// # Errors
    /// [`PciError::Taken`].
    pub fn insert(&self, at: Address, function: Arc<dyn PciFunction>) -> Result<(), PciError> {
        match self.functions.write().unwrap_or_else(PoisonError::into_inner).entry(at) {
            Entry::Occupied(_) => Err(PciError::Taken(at)),
            Entry::Vacant(free) => {
                free.insert(function);
                Ok(())
            }
        }
    }

    /// Takes a function off the bus: from now on there is nothing in its place. Accesses that are under way end.
    pub fn remove(&self, at: Address) {
        let removed = self.functions.write().unwrap_or_else(PoisonError::into_inner).remove(&at);
        // Not under the lock: it may be the last that anybody has of it.
        drop(removed);
    }

    fn present(&self) -> RwLockReadGuard<'_, BTreeMap<Address, Arc<dyn PciFunction>>> {
        self.functions.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The two ports at [`PORT`](Self::PORT).
    pub fn ports(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(Ports(Arc::clone(self)))
    }

    /// The window of [`ECAM_LEN`](Self::ECAM_LEN) bytes.
    pub fn ecam(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(Ecam(Arc::clone(self)))
    }

    /// The device memory that begins at `start`. Functions answer in it wherever the guest has put their BARs.
    pub fn memory(self: &Arc<Self>, start: Gpa) -> Arc<dyn BusDevice> {
        Arc::new(Memory { root: Arc::clone(self), start })
    }

    pub(crate) fn function(&self, device: u32, function: u32) -> Option<Arc<dyn PciFunction>> {
        let address = u8::try_from(device).ok().and_then(Address::device)?;
        (function == 0).then(|| self.present().get(&address).map(Arc::clone)).flatten()
    }
}

impl Default for PciRoot {
    fn default() -> Self {
        Self::new()
    }
}

/// The address port, which a guest may have written without having used it yet.
struct RootState(u32);

impl SavedState for RootState {
    const KIND: &'static str = "pci-root";
    const VERSION: u16 = 1;

    fn encode(&self, payload: &mut PayloadWriter) {
        payload.u32(self.0);
    }

    fn decode(_version: u16, payload: &mut PayloadReader<'_>) -> Result<Self, StateError> {
        payload.u32("selected").map(Self)
    }
}

/// The bus itself; its functions are devices of their own.
impl Device for PciRoot {
    fn name(&self) -> &str {
        "pci"
    }
    fn pause(&self, _limit: Duration) -> Result<(), DeviceError> {
        Ok(())
    }
    fn resume(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn reset(&self) -> Result<(), DeviceError> {
        self.selected.store(0, Ordering::Relaxed);
        Ok(())
    }
    fn save(&self) -> Saved {
        Saved::State(RootState(self.selected.load(Ordering::Relaxed)).to_envelope(0))
    }
    fn restore(&self, envelope: &Envelope) -> Result<(), DeviceError> {
        let RootState(selected) = RootState::from_envelope(envelope)
            .map_err(|source| DeviceError::State { device: self.name().to_owned(), source })?;
        self.selected.store(selected, Ordering::Relaxed);
        Ok(())
    }
}

/// Whether an access of `len` bytes at `offset` is one that a configuration space answers.
fn is_register(offset: u64, len: usize) -> bool {
    matches!(len, 1 | 2 | 4) && offset % 4 + len as u64 <= 4
}

struct Ports(Arc<PciRoot>);

impl Ports {
    /// The function and register that the address port names, for an access at `offset` within the data port.
    fn selected(&self, offset: u64) -> Option<(Arc<dyn PciFunction>, u8)> {
        let address = self.0.selected.load(Ordering::Relaxed);
        let bus = address >> 16 & 0xff;
        if address & ENABLE == 0 || bus != 0 {
            return None;
        }
        let register = (address & 0xfc) as u8 | (offset as u8 & 3);
        Some((self.0.function(address >> 11 & 0x1f, address >> 8 & 7)?, register))
    }
}

impl BusDevice for Ports {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match offset {
            0 if data.len() == 4 => {
                data.copy_from_slice(&self.0.selected.load(Ordering::Relaxed).to_le_bytes());
            }
            4..8 if is_register(offset, data.len()) => {
                if let Some((function, register)) = self.selected(offset - 4) {
                    function.read_config(register, data);
                }
            }
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, <[u8; 4]>::try_from(data)) {
            (0, Ok(word)) => self.0.selected.store(u32::from_le_bytes(word), Ordering::Relaxed),
            (4..8, _) if is_register(offset, data.len()) => {
                if let Some((function, register)) = self.selected(offset - 4) {
                    function.write_config(register, data);
                }
            }
            _ => {}
        }
    }
}

struct Ecam(Arc<PciRoot>);

impl Ecam {
    fn find(&self, offset: u64) -> Option<(Arc<dyn PciFunction>, u64)> {
        let device = u32::try_from(offset >> 15).ok()?;
        Some((self.0.function(device, (offset >> 12 & 7) as u32)?, offset % ECAM_FUNCTION_LEN))
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let Some((function, register)) = self.find(offset).filter(|_| is_register(offset, data.len())) else {
            return;
        };
        match u8::try_from(register) {
            Ok(register) => function.read_config(register, data),
            // No extended capabilities.
            Err(_) => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if is_register(offset, data.len())
            && let Some((function, register)) = self.find(offset)
            && let Ok(register) = u8::try_from(register)
        {
            function.write_config(register, data);
        }
    }
}

struct Memory {
    root: Arc<PciRoot>,
    start: Gpa,
}

impl Memory {
    fn address(&self, offset: u64) -> Option<Gpa> {
        self.start.checked_offset(Bytes::new(offset))
    }
}

impl BusDevice for Memory {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(address) = self.address(offset) {
            self.root.present().values().any(|function| function.read_memory(address, data));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(address) = self.address(offset) {
            self.root.present().values().any(|function| function.write_memory(address, data));
        }
    }
}

/// The function by which the guest knows that there is a bus.
#[derive(Debug)]
struct HostBridge(ConfigSpace);

impl HostBridge {
    fn new() -> Self {
        // Red Hat's PCIe host bridge: a function that guests know to need no driver. Class 06 00: host bridge.
        let identity = Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: 0x06_0000,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        };
        Self(ConfigSpace::new(identity))
    }
}

impl PciFunction for HostBridge {
    fn read_config(&self, offset: u8, data: &mut [u8]) {
        self.0.read(offset, data);
    }
    /// It has nothing to turn on or off.
    fn write_config(&self, _offset: u8, _data: &[u8]) {}
    fn read_memory(&self, _address: Gpa, _data: &mut [u8]) -> bool {
        false
    }
    fn write_memory(&self, _address: Gpa, _data: &[u8]) -> bool {
        false
    }
}

const _: () = assert!(config_space::LEN == 256, "a register is named by one byte");

#[cfg(test)]
mod tests {
    use super::*;

    fn read(device: &dyn BusDevice, offset: u64, len: usize) -> u32 {
        let mut data = vec![0xff; len];
        device.read(offset, &mut data);
        data.resize(4, 0);
        u32::from_le_bytes(data.try_into().unwrap())
    }

    #[test]
    fn both_ways_lead_to_the_same_bridge() {
        let root = Arc::new(PciRoot::new());
        let (ports, ecam) = (root.ports(), root.ecam());
        ports.write(0, &(ENABLE | 0x08).to_le_bytes());
        assert_eq!(read(ports.as_ref(), 0, 4), ENABLE | 0x08);
        assert_eq!(read(ports.as_ref(), 4, 4), 0x0600_0000);
        assert_eq!(read(ports.as_ref(), 7, 1), 0x06);
        assert_eq!(read(ports.as_ref(), 6, 2), 0x0600);
        assert_eq!(read(ecam.as_ref(), 0x08, 4), 0x0600_0000);
        assert_eq!(read(ecam.as_ref(), 0, 2), 0x1b36);
        assert_eq!(read(ecam.as_ref(), 0x100, 4), 0, "no extended capabilities");
    }

    #[test]
    fn where_nothing_is_it_reads_as_ones() {
        let root = Arc::new(PciRoot::new());
        let (ports, ecam) = (root.ports(), root.ecam());
        // Not enabled; bus 1; device 1; function 1.
        for address in [0, ENABLE | 1 << 16, ENABLE | 1 << 11, ENABLE | 1 << 8] {
            ports.write(0, &address.to_le_bytes());
            assert_eq!(read(ports.as_ref(), 4, 4), u32::MAX, "{address:#x}");
            ports.write(4, &[0; 4]);
        }
        ports.write(0, &ENABLE.to_le_bytes());
        // Across the end of a register, and widths that there are not.
        assert_eq!(read(ports.as_ref(), 7, 2), 0xffff);
        assert_eq!(read(ports.as_ref(), 1, 2), 0xffff);
        assert_eq!(read(ecam.as_ref(), 2, 4), u32::MAX);
        assert_eq!(read(ecam.as_ref(), 1 << 15, 4), u32::MAX);
        assert_eq!(read(ecam.as_ref(), 1 << 12, 4), u32::MAX);
        assert_eq!(read(root.memory(Gpa::new(0xe000_0000)).as_ref(), 0, 4), u32::MAX);
    }

    #[test]
    fn the_address_port_moves_with_the_guest() {
        let root = Arc::new(PciRoot::new());
        root.ports().write(0, &0x8000_0018_u32.to_le_bytes());
        let Saved::State(state) = root.save() else { panic!("it has state") };
        let other = Arc::new(PciRoot::new());
        other.restore(&state).unwrap();
        assert_eq!(read(other.ports().as_ref(), 0, 4), 0x8000_0018);
    }

    #[test]
    fn a_place_is_taken_once() {
        let root = PciRoot::new();
        let taken = Address::device(0).unwrap();
        assert_eq!(root.insert(taken, Arc::new(HostBridge::new())), Err(PciError::Taken(taken)));
        assert_eq!(Address::device(32), None);
        root.insert(Address::device(31).unwrap(), Arc::new(HostBridge::new())).unwrap();
    }
}
