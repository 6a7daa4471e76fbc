//! A split virtqueue (virtio 1.2, section 2.7) of single buffers, for devices that are looked at now and then: without
//! interrupts, every bell rung.

use core::sync::atomic::{Ordering, fence};

use super::transport::{QueueAddresses, Transport};
use crate::ram::Ram;

/// Buffers at once.
pub(crate) const SIZE: u16 = 8;
const DEVICE_WRITES: u16 = 2;
const NO_INTERRUPT: u16 = 1;
/// Where the parts are in the queue's page.
const AVAILABLE: usize = 1024;
const USED: usize = 2048;

/// A page.
#[repr(C, align(4096))]
pub(crate) struct Page(pub(crate) [u8; 4096]);

/// The driver's side.
pub(crate) struct SingleQueue {
    number: u32,
    base: usize,
    available: u16,
    used: u16,
}

impl SingleQueue {
    /// Takes memory for it and hands it to the device, which does not run yet.
    ///
    /// # Errors
    /// There is no RAM, or the device has no such queue.
    pub(crate) fn set_up(transport: &Transport, number: u32, ram: &mut Ram) -> Result<Self, &'static str> {
        if transport.queue_size_max(number) < u32::from(SIZE) {
            return Err("it has too few queues, or too short ones");
        }
        // SAFETY: a page is any 4096 bytes.
        let pages = unsafe { ram.take::<Page>(1) }.map_err(|_| "there is too little RAM for its queues")?;
        pages[0].0.fill(0);
        let queue = SingleQueue { number, base: pages.as_ptr() as usize, available: 0, used: 0 };
        store(queue.base + AVAILABLE, NO_INTERRUPT);
        let [descriptors, available, used] = [0, AVAILABLE, USED].map(|part| (queue.base + part) as u64);
        transport.set_up_queue(number, SIZE, &QueueAddresses { descriptors, available, used });
        Ok(queue)
    }

    /// Gives a buffer to the device. `slot` is below [`SIZE`] and not with the device.
    pub(crate) fn publish(
        &mut self,
        transport: &Transport,
        slot: u16,
        (address, length): (u64, u32),
        write: bool,
    ) {
        let descriptor = self.base + usize::from(slot) * 16;
        store(descriptor, address);
        store(descriptor + 8, length);
        store(descriptor + 12, if write { DEVICE_WRITES } else { 0 });
        store(self.base + AVAILABLE + 4 + 2 * usize::from(self.available % SIZE), slot);
        self.available = self.available.wrapping_add(1);
        fence(Ordering::Release);
        store(self.base + AVAILABLE + 2, self.available);
        fence(Ordering::SeqCst);
        transport.notify(self.number);
    }

    /// The next buffer that comes back: its slot, and how much the device wrote.
    pub(crate) fn take_used(&mut self) -> Option<(u16, u32)> {
        if load::<u16>(self.base + USED + 2) == self.used {
            return None;
        }
        fence(Ordering::Acquire);
        let element = self.base + USED + 4 + 8 * usize::from(self.used % SIZE);
        self.used = self.used.wrapping_add(1);
        let slot = load::<u32>(element) as u16 % SIZE;
        Some((slot, load(element + 4)))
    }
}

fn store<T>(address: usize, value: T) {
    // SAFETY: within the queue's own page, aligned; the device and the driver reach it by volatile accesses only.
    unsafe { (address as *mut T).write_volatile(value) }
}

fn load<T: Copy>(address: usize) -> T {
    // SAFETY: as for `store`.
    unsafe { (address as *const T).read_volatile() }
}
