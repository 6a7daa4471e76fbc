//! How a device tells its threads what to do, and learns that they have done it.

use std::{
    io,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// What a worker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::virtio) enum Order {
    /// Serve the queue.
    Run,
    /// Take nothing more from the queue; report when everything taken has been answered.
    Pause,
    /// The same, and then end.
    Stop,
}

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::virtio) enum Doing {
    /// Serving the queue, or on the way out of it.
    Running,
    /// Nothing, with nothing under way.
    Paused,
    /// Nothing, for good: the storage has refused this owner. Requests remain unanswered.
    Fenced,
    /// It has ended as told.
    Stopped,
    /// It has ended on its own: a bug.
    Died,
}

/// Shared by the device and one worker.
#[derive(Debug)]
pub(in crate::virtio) struct Control {
    shared: Mutex<(Order, Doing)>,
    changed: Condvar,
    wake: EventFd,
}

impl Control {
    pub(in crate::virtio) fn new(order: Order) -> io::Result<Self> {
        let shared = Mutex::new((order, Doing::Running));
        Ok(Self { shared, changed: Condvar::new(), wake: EventFd::new(EFD_NONBLOCK)? })
    }

    /// Readable when there is a new order. The worker's side.
    pub(in crate::virtio) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// The current order; takes note that it was seen. The worker's side.
    pub(in crate::virtio) fn order(&self) -> Order {
        let _ = self.wake.read();
        self.lock().0
    }

    /// The worker's side. `doing` answers the order that was seen: where there is a newer one, it is not reported.
    pub(in crate::virtio) fn report(&self, seen: Order, doing: Doing) {
        let mut shared = self.lock();
        let final_word = matches!(doing, Doing::Fenced | Doing::Stopped | Doing::Died);
        if final_word || shared.0 == seen {
            shared.1 = doing;
            self.changed.notify_all();
        }
    }

    /// Gives an order. The device's side.
    pub(in crate::virtio) fn give(&self, order: Order) {
        let mut shared = self.lock();
        shared.0 = order;
        if shared.1 == Doing::Paused && order != Order::Pause {
            shared.1 = Doing::Running;
        }
        drop(shared);
        self.wake.write(1).expect("a counter that is reset by every look does not overflow");
    }

    /// Waits until the worker is not running any more. The device's side.
    pub(in crate::virtio) fn wait(&self, limit: Duration) -> Doing {
        let (shared, _) = self
            .changed
            .wait_timeout_while(self.lock(), limit, |shared| shared.1 == Doing::Running)
            .unwrap_or_else(PoisonError::into_inner);
        shared.1
    }

    pub(in crate::virtio) fn doing(&self) -> Doing {
        self.lock().1
    }

    fn lock(&self) -> MutexGuard<'_, (Order, Doing)> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
