//! Telling the driver that its disk has another size.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use drover_units::Sectors;

use crate::VirtioInterrupt;

/// What the driver has been told of the disk's size.
///
/// While the device is paused nothing is told: the saved state then says what the driver knows, and whoever resumes,
/// here or on another host, tells the rest.
#[derive(Default)]
pub(super) struct Announcer(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// How to tell; nothing while there is no driver, which reads the size when it comes.
    interrupt: Option<Arc<dyn VirtioInterrupt>>,
    paused: bool,
    told: Sectors,
}

impl fmt::Debug for Announcer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Announcer").field(&self.lock().told).finish()
    }
}

impl Announcer {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk has this size now.
    pub(super) fn tell(&self, capacity: Sectors) {
        let mut known = self.lock();
        if known.paused || known.told == capacity {
            return;
        }
        if let Some(interrupt) = &known.interrupt {
            interrupt.config_changed();
            known.told = capacity;
        }
    }

    /// A driver reads the size from now on, and has it as `capacity` where it did so before (a restored device).
    pub(super) fn start(&self, interrupt: &Arc<dyn VirtioInterrupt>, capacity: Sectors) {
        let mut known = self.lock();
        known.interrupt = Some(Arc::clone(interrupt));
        known.told = capacity;
    }

    /// The driver has gone.
    pub(super) fn stop(&self) {
        self.lock().interrupt = None;
    }

    pub(super) fn pause(&self) {
        self.lock().paused = true;
    }

    pub(super) fn resume(&self, capacity: Sectors) {
        self.lock().paused = false;
        self.tell(capacity);
    }

    /// What the driver believes, where there is one.
    pub(super) fn told(&self) -> Option<Sectors> {
        let known = self.lock();
        known.interrupt.as_ref().map(|_| known.told)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Debug, Default)]
    struct Count(AtomicUsize);

    impl VirtioInterrupt for Count {
        fn queue_used(&self, _queue: u16) {}
        fn config_changed(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn needs_reset(&self) {}
    }

    #[test]
    fn a_driver_is_told_once_and_not_while_paused() {
        let announcer = Announcer::default();
        let count = Arc::new(Count::default());
        let interrupt: Arc<dyn VirtioInterrupt> = Arc::clone(&count) as _;
        let told = |expect, sectors| {
            assert_eq!(count.0.load(Ordering::Relaxed), expect);
            assert_eq!(announcer.told(), sectors);
        };
        announcer.tell(Sectors::new(8));
        told(0, None);
        announcer.start(&interrupt, Sectors::new(8));
        announcer.tell(Sectors::new(8));
        told(0, Some(Sectors::new(8)));
        announcer.tell(Sectors::new(16));
        announcer.tell(Sectors::new(16));
        told(1, Some(Sectors::new(16)));
        announcer.pause();
        announcer.tell(Sectors::new(24));
        told(1, Some(Sectors::new(16)));
        announcer.resume(Sectors::new(24));
        told(2, Some(Sectors::new(24)));
        announcer.stop();
        announcer.tell(Sectors::new(32));
        told(2, None);
    }
}
