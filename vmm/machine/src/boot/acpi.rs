//! The tables by which a kernel finds processors, buses and the way off (ACPI 6.5, hardware-reduced).
//!
//! ```text
//! RSDP -> XSDT -> FADT -> DSDT    devices in AML
//!              -> MADT            local APICs, I/O APIC
//!              -> MCFG            PCI configuration space, where there is a PCI bus
//! ```

use acpi_tables::{
    Aml,
    aml::{
        AddressSpace, AddressSpaceCacheable, And, Arg, Device, EISAName, Equal, Field, FieldAccessType,
        FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method,
        MethodCall, Name, Notify, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store,
    },
    fadt::{FADTBuilder, Flags, PmProfile},
    gas::{self, AccessSize, GAS},
    madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic},
    mcfg::MCFG,
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};
use drover_bus::Port;
use drover_devices::{Hotplug, PciAddress, PciRoot, Power, Rtc, Serial};
use drover_guest_memory::GuestMemory;
use drover_units::{Bytes, Gpa, VcpuCount};

use crate::{
    BuildError, DeviceBus, Slot,
    address_map::{
        ACPI, ACPI_END, FIRST_FUNCTION, HOTPLUG_GSI, IO_APIC, LOCAL_APIC, MMIO_WINDOW_LEN, PCI_CONFIG,
        PCI_MEMORY, PCI_MEMORY_END, POWER_BUTTON_GSI, mmio_place,
    },
};

const OEM: [u8; 6] = *b"DROVER";
const OEM_TABLE: [u8; 8] = *b"DROVERVM";
const OEM_REVISION: u32 = 1;

/// FADT boot flags (5.2.9.3): no VGA. Without the flag of a keyboard controller none is looked for.
const NO_VGA: u16 = 1 << 2;

/// Notifications of any device (5.6.6): look whether it is there; it should be ejected.
const DEVICE_CHECK: u8 = 1;
const EJECTION_REQUEST: u8 = 3;
/// A notification of a button: pressed.
const BUTTON_PRESSED: u8 = 0x80;

/// What the tables describe.
#[derive(Clone, Debug)]
pub(crate) struct Platform {
    pub(crate) vcpus: VcpuCount,
    /// Of the virtio devices.
    pub(crate) slots: Vec<Slot>,
    pub(crate) bus: DeviceBus,
}

/// Puts the tables into RAM. Returns where the first of them is.
pub(crate) fn write(memory: &GuestMemory, platform: &Platform) -> Result<Gpa, BuildError> {
    // The first one comes first, since guests may look for it there, and points to what follows.
    let root = Gpa::new(ACPI.get());
    let mut tables = Tables { memory, next: root.checked_offset(Bytes::new(64)).expect("below 1 MiB") };
    let dsdt = tables.put(&dsdt(platform))?;
    let fadt = tables.put(&fadt(dsdt))?;
    let madt = tables.put(&madt(platform.vcpus))?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt.get());
    xsdt.add_entry(madt.get());
    if platform.bus == DeviceBus::VirtioPci {
        let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
        mcfg.add_ecam(PCI_CONFIG.get(), 0, 0, 0);
        xsdt.add_entry(tables.put(&mcfg)?.get());
    }
    let xsdt = tables.put(&xsdt)?;
    let mut bytes = Vec::new();
    Rsdp::new(OEM, xsdt.get()).to_aml_bytes(&mut bytes);
    memory.write(root, &bytes).map_err(|error| failed(error.to_string()))?;
    Ok(root)
}

/// Where the next table goes.
struct Tables<'a> {
    memory: &'a GuestMemory,
    next: Gpa,
}

impl Tables<'_> {
    fn put(&mut self, table: &dyn Aml) -> Result<Gpa, BuildError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let at = self.next;
        let end = at.checked_offset(Bytes::new(bytes.len() as u64)).filter(|end| *end <= ACPI_END);
        let end = end.ok_or_else(|| failed("they do not fit below 1 MiB".to_owned()))?;
        self.memory.write(at, &bytes).map_err(|error| failed(error.to_string()))?;
        // Tables begin at multiples of 16 by custom; none needs more.
        self.next = Gpa::new(end.get().next_multiple_of(16));
        Ok(at)
    }
}

fn failed(reason: String) -> BuildError {
    BuildError::BootStructures { what: "ACPI tables", reason }
}

/// A register of one byte at a port.
fn register(Port(port): Port) -> GAS {
    GAS::new(gas::AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}

fn fadt(dsdt: Gpa) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt.get())
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Headless)
        .flag(Flags::ResetRegSup)
        // No fixed-feature buttons.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = NO_VGA.into();
    fadt.sleep_control_reg = register(Power::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(Power::SLEEP_STATUS);
    fadt.reset_reg = register(Power::RESET);
    fadt.reset_value = Power::RESET_VALUE;
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"DROVER\0\0").into();
    fadt.century = Rtc::CENTURY;
    fadt.finalize()
}

fn madt(vcpus: VcpuCount) -> MADT {
    let local = LocalInterruptController::Address(u32::try_from(LOCAL_APIC.get()).expect("below 4 GiB"));
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, local);
    for number in 0..vcpus.get() {
        let id = u8::try_from(number).expect("vCPUs are counted against VCPUS_MAX");
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    let address = u32::try_from(IO_APIC.get()).expect("below 4 GiB");
    madt.add_structure(IoApic::new(0, address, 0));
    madt
}

fn dsdt(platform: &Platform) -> Sdt {
    let mut aml = Vec::new();
    serial_port().to_aml_bytes(&mut aml);
    clock().to_aml_bytes(&mut aml);
    power_button().to_aml_bytes(&mut aml);
    event_device(platform.bus).to_aml_bytes(&mut aml);
    match platform.bus {
        DeviceBus::VirtioMmio => {
            platform.slots.iter().for_each(|slot| mmio_device(*slot).to_aml_bytes(&mut aml));
        }
        DeviceBus::VirtioPci => pci_bridge().to_aml_bytes(&mut aml),
    }
    let mut bytes = Vec::new();
    Scope::new("\\_SB_".into(), vec![&Raw(aml)]).to_aml_bytes(&mut bytes);
    let off = Power::SLEEP_TYPE_OFF;
    Name::new("\\_S5_".into(), &Package::new(vec![&off])).to_aml_bytes(&mut bytes);
    // 36: the length of a table's header, which the table counts itself.
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&bytes);
    table
}

/// AML that has been made already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

fn aml(part: &dyn Aml) -> Raw {
    let mut bytes = Vec::new();
    part.to_aml_bytes(&mut bytes);
    Raw(bytes)
}

fn serial_port() -> Raw {
    let Port(port) = Serial::PORT;
    let ports = IO::new(port, port, 0, u8::try_from(Serial::LEN).expect("eight"));
    let interrupt = Interrupt::new(true, true, false, false, Serial::GSI);
    aml(&Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &acpi_tables::aml::ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &interrupt])),
        ],
    ))
}

/// The clock, without an interrupt: it has no alarms.
fn clock() -> Raw {
    let Port(port) = Rtc::PORT;
    let ports = IO::new(port, port, 0, u8::try_from(Rtc::LEN).expect("two"));
    aml(&Device::new(
        "RTC0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports])),
        ],
    ))
}

/// A button without hardware of its own: the device of events says when it has been pressed.
fn power_button() -> Raw {
    aml(&Device::new(
        "PWRB".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C0C")),
            &Name::new("_UID".into(), &acpi_tables::aml::ZERO),
        ],
    ))
}

/// What hardware-reduced ACPI has instead of an SCI (5.6.9): an interrupt for the power button, and one for the slots of a
/// PCI bus.
fn event_device(bus: DeviceBus) -> Raw {
    let button = Interrupt::new(true, true, false, false, POWER_BUTTON_GSI.0);
    let slots = Interrupt::new(true, true, false, false, HOTPLUG_GSI.0);
    let pressed = aml(&If::new(
        &Equal::new(&Arg(0), &POWER_BUTTON_GSI.0),
        vec![&Notify::new(&Path::new("PWRB"), &BUTTON_PRESSED)],
    ));
    let changed = aml(&If::new(
        &Equal::new(&Arg(0), &HOTPLUG_GSI.0),
        vec![&MethodCall::new("\\_SB_.PCI0.PCNT".into(), Vec::new())],
    ));
    let (interrupts, events): (Vec<&dyn Aml>, Vec<&dyn Aml>) = match bus {
        DeviceBus::VirtioMmio => (vec![&button], vec![&pressed]),
        DeviceBus::VirtioPci => (vec![&button, &slots], vec![&pressed, &changed]),
    };
    aml(&Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &acpi_tables::aml::ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(interrupts)),
            &Method::new("_EVT".into(), 1, true, events),
        ],
    ))
}

/// The slots of the PCI bus, each with a device of its own that can be ejected, and what tells the guest which of them to
/// look at. In the bridge's scope.
fn pci_slots() -> Raw {
    let Port(port) = Hotplug::PORT;
    let len = u8::try_from(Hotplug::LEN).expect("twelve");
    let registers = vec![
        FieldEntry::Named(*b"CHNG", 32),
        FieldEntry::Named(*b"ASKD", 32),
        FieldEntry::Named(*b"EJCT", 32),
    ];
    const _: () = assert!(Hotplug::CHANGED == 0 && Hotplug::ASKED == 4 && Hotplug::EJECT == 8);
    let mut all = Vec::new();
    OpRegion::new("HPRG".into(), OpRegionSpace::SystemIO, &port, &len).to_aml_bytes(&mut all);
    let (access, lock) = (FieldAccessType::DWord, FieldLockRule::NoLock);
    Field::new("HPRG".into(), access, lock, FieldUpdateRule::WriteAsZeroes, registers).to_aml_bytes(&mut all);
    let mut notify = Vec::new();
    // What has been read is taken note of before anything is done about it: what comes then rings again.
    for (register, local, notification) in
        [("CHNG", Local(0), DEVICE_CHECK), ("ASKD", Local(1), EJECTION_REQUEST)]
    {
        Store::new(&local, &Path::new(register)).to_aml_bytes(&mut notify);
        Store::new(&Path::new(register), &local).to_aml_bytes(&mut notify);
        for number in FIRST_FUNCTION..PciAddress::DEVICES {
            let (bit, slot) = (slot_bit(number), Path::new(&slot_name(number)));
            let is_set = And::new(&acpi_tables::aml::ZERO, &local, &bit);
            let told = Notify::new(&slot, &notification);
            If::new(&is_set, vec![&told]).to_aml_bytes(&mut notify);
        }
    }
    for number in FIRST_FUNCTION..PciAddress::DEVICES {
        let ejected = aml(&Store::new(&Path::new("EJCT"), &slot_bit(number)));
        Device::new(
            slot_name(number).as_str().into(),
            vec![
                &Name::new("_ADR".into(), &(u32::from(number) << 16)),
                &Name::new("_SUN".into(), &number),
                &Method::new("_EJ0".into(), 1, true, vec![&ejected]),
            ],
        )
        .to_aml_bytes(&mut all);
    }
    Method::new("PCNT".into(), 0, true, vec![&Raw(notify)]).to_aml_bytes(&mut all);
    Raw(all)
}

fn slot_bit(number: u8) -> u32 {
    1 << number
}

fn slot_name(number: u8) -> String {
    format!("SL{number:02}")
}

/// A virtio device on MMIO, by the name that Linux's virtio_mmio driver goes by.
fn mmio_device(slot: Slot) -> Raw {
    let (window, gsi) = mmio_place(slot);
    let base = u32::try_from(window.get()).expect("below 4 GiB");
    let window = Memory32Fixed::new(true, base, u32::try_from(MMIO_WINDOW_LEN).expect("a page"));
    let interrupt = Interrupt::new(true, true, false, false, gsi.0);
    let uid = slot.number();
    aml(&Device::new(
        format!("VD{uid:02}").as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &uid),
            &Name::new("_CCA".into(), &acpi_tables::aml::ONE),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&window, &interrupt])),
        ],
    ))
}

fn pci_bridge() -> Raw {
    let Port(port) = PciRoot::PORT;
    let ports = IO::new(port, port, 1, u8::try_from(PciRoot::PORT_LEN).expect("eight"));
    let bus = AddressSpace::new_bus_number(0_u16, 0);
    let first = u32::try_from(PCI_MEMORY.get()).expect("below 4 GiB");
    let last = u32::try_from(PCI_MEMORY_END.get() - 1).expect("below 4 GiB");
    let memory = AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None);
    aml(&Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &acpi_tables::aml::ZERO),
            &Name::new("_BBN".into(), &acpi_tables::aml::ZERO),
            &Name::new("_UID".into(), &acpi_tables::aml::ZERO),
            &Name::new("_CCA".into(), &acpi_tables::aml::ONE),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&bus, &ports, &memory])),
            &pci_slots(),
        ],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(memory: &GuestMemory, at: Gpa, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        memory.read(at, &mut bytes).unwrap();
        bytes
    }

    /// A table, checked as a kernel checks it.
    fn table(memory: &GuestMemory, at: u64) -> Vec<u8> {
        let at = Gpa::new(at);
        let len = u32::from_le_bytes(read(memory, at, 8)[4..].try_into().unwrap());
        let bytes = read(memory, at, len as usize);
        assert_eq!(bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0, "{:?}", &bytes[..4]);
        bytes
    }

    fn quad(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn check(bus: DeviceBus, vcpus: u32, expect: &[&[u8; 4]]) -> Vec<u8> {
        let memory = GuestMemory::anonymous(Bytes::mib(4));
        let platform =
            Platform { vcpus: VcpuCount::new(vcpus), slots: [0, 1, 16].map(Slot::new).to_vec(), bus };
        let root = write(&memory, &platform).unwrap();
        let rsdp = read(&memory, root, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        let xsdt = table(&memory, quad(&rsdp, 24));
        let tables: Vec<_> = xsdt[36..].chunks_exact(8).map(|entry| table(&memory, quad(entry, 0))).collect();
        let signatures: Vec<_> = tables.iter().map(|table| &table[..4]).collect();
        assert_eq!(signatures, expect.iter().map(|name| &name[..]).collect::<Vec<_>>());
        // A local APIC each and the I/O APIC.
        assert_eq!(tables[1].len(), 44 + 8 * vcpus as usize + 12);
        table(&memory, quad(&tables[0], 140))
    }

    #[test]
    fn a_kernel_finds_every_table_and_every_checksum_is_right() {
        let dsdt = check(DeviceBus::VirtioMmio, 1, &[b"FACP", b"APIC"]);
        let devices = dsdt.windows(8).filter(|bytes| bytes == b"LNRO0005").count();
        assert_eq!(devices, 3);
        let dsdt = check(DeviceBus::VirtioPci, 255, &[b"FACP", b"APIC", b"MCFG"]);
        assert!(dsdt.windows(4).any(|bytes| bytes == b"PCI0"));
        assert!(!dsdt.windows(8).any(|bytes| bytes == b"LNRO0005"));
        // Each slot but the host bridge's can be ejected, and is notified of both kinds of events.
        let count = |text: &[u8]| dsdt.windows(text.len()).filter(|bytes| *bytes == text).count();
        assert_eq!(
            (count(b"_EJ0"), count(b"_SUN"), count(b"SL01"), count(b"SL31"), count(b"SL00")),
            (31, 31, 3, 3, 0)
        );
    }
}
