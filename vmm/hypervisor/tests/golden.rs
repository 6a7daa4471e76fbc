//! The states of a machine and of a processor as releases have written them: today's build reads them and writes the same
//! bytes. `UPDATE_EXPECT=1` writes files that are missing, from a guest on this host's KVM, never one that is there: a
//! changed format is a new version of the envelope with new files.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{fs, path::Path};

use drover_guest_memory::GuestMemory;
use drover_hypervisor::{Hypervisor, ProtectedModeEntry, VcpuState, VmOptions, VmState};
use drover_units::{Bytes, Gpa, VcpuCount};

/// What `name` holds; what `make` gives where it is not there yet.
fn golden(name: &str, make: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_EXPECT").is_some() && !path.exists() {
        fs::write(&path, make()).unwrap();
    }
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Machine and processor of a guest that has been entered and has not run.
fn saved(pit: bool) -> (Vec<u8>, Vec<u8>) {
    let memory = GuestMemory::anonymous(Bytes::mib(2));
    let options = VmOptions { pit, ..VmOptions::default() };
    let vm = Hypervisor::open().unwrap().create_vm(&memory, options).unwrap();
    let vcpu = vm.create_vcpu(0, VcpuCount::new(1)).unwrap();
    vcpu.enter_protected_mode(ProtectedModeEntry { rip: Gpa::new(0x1000), ebx: Gpa::new(0x2000) }).unwrap();
    let machine = vm.save().unwrap();
    (machine.to_bytes(), vcpu.save(machine.time()).unwrap().to_bytes())
}

#[test]
fn controllers_and_clock() {
    for (name, pit) in [("kvm-vm-v1.bin", false), ("kvm-vm-v1-pit.bin", true)] {
        let golden = golden(name, || saved(pit).0);
        assert!(VmState::from_bytes(&golden).unwrap().to_bytes() == golden, "{name} comes back changed");
    }
}

#[test]
fn a_processor() {
    let golden = golden("kvm-vcpu-v1.bin", || saved(false).1);
    assert!(VcpuState::from_bytes(&golden).unwrap().to_bytes() == golden, "it comes back changed");
}
