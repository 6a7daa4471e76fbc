//! Which pages of this process the host has allocated: proc(5), `/proc/pid/pagemap`.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    process,
    sync::{Mutex, PoisonError},
};

use drover_units::{Gpa, PAGE_SIZE, Pages};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::{DirtyPages, HostRegion, PageRun};

/// The page is in memory, or on its way between two places of it.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const ENTRY: usize = size_of::<u64>();
/// Entries looked at in one system call: those of 32 MiB.
const BATCH: usize = 8192;

/// The open map, and whose it is: a child would read its parent's.
static PAGEMAP: Mutex<Option<(u32, File)>> = Mutex::new(None);

/// Opens what [`GuestMemory::populated`](crate::GuestMemory::populated) needs of the host. For a process that will not be
/// able to open files; others need not call it.
///
/// # Errors
/// What the host says to opening `/proc/self/pagemap`.
pub fn prepare() -> io::Result<()> {
    pagemap().map(drop)
}

fn pagemap() -> io::Result<File> {
    let mut kept = PAGEMAP.lock().unwrap_or_else(PoisonError::into_inner);
    match &*kept {
        Some((pid, file)) if *pid == process::id() => file.try_clone(),
        _ => {
            let file = open_without_privilege()?;
            let (_, file) = kept.insert((process::id(), file));
            file.try_clone()
        }
    }
}

/// Whoever opens it with CAP_SYS_ADMIN sees where in the host's memory every page is, even from inside a jail later on:
/// more than we want to know.
fn open_without_privilege() -> io::Result<File> {
    let held = capabilities(None)?;
    let effective = held.effective - CapabilitySet::SYS_ADMIN;
    set_capabilities(None, CapabilitySets { effective, ..held })?;
    let opened = File::open("/proc/self/pagemap");
    set_capabilities(None, held)?;
    opened
}

/// Adds the allocated pages of a region.
pub(crate) fn scan(region: HostRegion, pages: &mut DirtyPages) -> io::Result<()> {
    let pagemap = pagemap()?;
    let first = region.host_address.addr() as u64 / PAGE_SIZE;
    let count = region.len.get() / PAGE_SIZE;
    let mut buffer = vec![0; BATCH.min(usize::try_from(count).unwrap_or(BATCH)) * ENTRY];
    let mut at = 0;
    while at < count {
        let batch = usize::try_from(count - at).unwrap_or(BATCH).min(BATCH);
        let bytes = &mut buffer[..batch * ENTRY];
        pagemap.read_exact_at(bytes, (first + at) * ENTRY as u64)?;
        let allocated = |entry: &[u8]| {
            let entry = u64::from_ne_bytes(entry.try_into().expect("8 bytes"));
            entry & (PRESENT | SWAPPED) != 0
        };
        for (page, entry) in (at..).zip(bytes.chunks_exact(ENTRY)) {
            if allocated(entry) {
                let start = Gpa::new(region.start.get() + page * PAGE_SIZE);
                pages.push(PageRun { start, pages: Pages::new(1) });
            }
        }
        at += batch as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use drover_units::Bytes;

    use super::*;
    use crate::GuestMemory;

    #[test]
    fn physical_addresses_are_not_shown() {
        let memory = GuestMemory::anonymous(Bytes::kib(4));
        memory.write(Gpa::ZERO, &[1]).unwrap();
        let page = memory.regions().next().unwrap().host_address.addr() as u64 / PAGE_SIZE;
        let mut entry = [0; ENTRY];
        pagemap().unwrap().read_exact_at(&mut entry, page * ENTRY as u64).unwrap();
        let entry = u64::from_ne_bytes(entry);
        // proc(5): bits 0 to 54 are the frame's number.
        assert_eq!((entry & PRESENT, entry & ((1 << 55) - 1)), (PRESENT, 0));
    }

    #[test]
    fn all_of_a_large_memory_is_looked_at() {
        let memory = GuestMemory::anonymous(Bytes::gib(1));
        let last = Gpa::new((1 << 30) - PAGE_SIZE);
        memory.write(last, &[1]).unwrap();
        memory.write(Gpa::ZERO, &[1]).unwrap();
        let populated = memory.populated().unwrap();
        assert_eq!((populated.runs()[0].start, populated.iter().last()), (Gpa::ZERO, Some(last)));
        assert!(populated.count() <= Pages::new(1024), "{populated:?}");
    }
}
