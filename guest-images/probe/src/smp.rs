//! The other vCPUs: starting them and giving them work.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::apic;
use crate::clock::{Alarm, Clock};
use crate::dirty::Region;
use crate::gate;
use crate::instructions::cpuid;

/// Where the others begin, in real mode: a page below 1 MiB that is RAM on every PC and holds nothing once the loader's
/// tables have been copied.
const TRAMPOLINE_PAGE: u8 = 0x08;
/// How long the first vCPU waits for the others before it says how many there are. They take about 2 ms.
const START_US_MAX: u64 = 20_000;
/// The same where the command line says how many to expect: a busy host may take long, but a vCPU that never comes
/// must not keep the probe from its work.
const START_US_MAX_EXPECTED: u64 = 2_000_000;

static STARTED: AtomicU32 = AtomicU32::new(0);
static PLAN: Published<Plan> = Published { ready: AtomicBool::new(false), value: UnsafeCell::new(None) };

/// What the other vCPUs have to do.
pub(crate) struct Plan {
    /// How the first vCPU tells the time.
    pub(crate) clock: Clock,
    /// The RAM to sweep and how many vCPUs share it.
    pub(crate) dirty: Option<(Region, u32)>,
}

/// A value that one vCPU sets once and all read.
struct Published<T> {
    ready: AtomicBool,
    value: UnsafeCell<Option<T>>,
}

// SAFETY: the value is written before `ready` is set and only read after.
unsafe impl<T: Sync> Sync for Published<T> {}

impl<T> Published<T> {
    /// # Safety
    /// Called once.
    unsafe fn publish(&self, value: T) {
        // SAFETY: `ready` is not set yet, so nobody reads.
        unsafe { *self.value.get() = Some(value) };
        self.ready.store(true, Ordering::Release);
    }

    fn get(&self) -> Option<&T> {
        if !self.ready.load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: once `ready` is set nobody writes any more.
        unsafe { (*self.value.get()).as_ref() }
    }
}

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
}

/// Starts all other vCPUs. They begin to run some time later.
pub(crate) fn start() {
    let bytes = &raw const ap_trampoline_end as usize - &raw const ap_trampoline as usize;
    let page = (usize::from(TRAMPOLINE_PAGE) << 12) as *mut u8;
    // SAFETY: the page is RAM that nobody uses (see the constant), the source is the image's own code.
    unsafe { ptr::copy_nonoverlapping(&raw const ap_trampoline, page, bytes) };
    apic::start_others(TRAMPOLINE_PAGE);
}

/// Waits until the others run, and says how many vCPUs do.
pub(crate) fn wait(expected: Option<u64>, mut clock: Clock) -> u32 {
    let limit = if expected.is_some() { START_US_MAX_EXPECTED } else { START_US_MAX };
    let expected = expected.unwrap_or_else(processors);
    let mut alarm = Alarm::new(0);
    let end = clock.now_us() + limit;
    loop {
        let running = 1 + STARTED.load(Ordering::Acquire);
        let now = clock.now_us();
        if u64::from(running) >= expected || now >= end {
            return running;
        }
        alarm.set(now, end);
        gate::idle();
    }
}

/// The logical processors of the machine, by CPUID leaf 0xb; as many as there are stacks for where it does not say.
fn processors() -> u64 {
    let told = (cpuid(0, 0).eax >= 0xb).then(|| cpuid(0xb, 1).ebx & 0xffff);
    told.filter(|&count| count > 0).map_or(gate::VCPUS_MAX as u64, u64::from)
}

/// Gives the others their work.
///
/// # Safety
/// Called once.
pub(crate) unsafe fn assign(plan: Plan) {
    // SAFETY: the caller's promise.
    unsafe { PLAN.publish(plan) };
    apic::call_others();
}

/// The life of every vCPU but the first.
pub(crate) fn run_other(vcpu: usize) -> ! {
    apic::prepare();
    let ordinal = STARTED.fetch_add(1, Ordering::AcqRel);
    apic::call_first();
    let plan = loop {
        match PLAN.get() {
            Some(plan) => break plan,
            None => gate::idle(),
        }
    };
    // One that came too late to be counted has no share.
    let share = plan.dirty.as_ref().filter(|(_, workers)| ordinal < *workers);
    let mut clock = plan.clock.clone();
    let now = clock.now_us();
    // SAFETY: ordinals differ, so shares do.
    let mut sweep = share.map(|(region, workers)| unsafe { region.share(ordinal, *workers, vcpu, now) });
    let mut alarm = Alarm::new(vcpu);
    loop {
        if let Some(sweep) = &mut sweep {
            sweep.poll(clock.now_us());
            alarm.set(clock.now_us(), sweep.wake_us());
        }
        gate::idle();
    }
}
