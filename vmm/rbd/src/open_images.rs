//! How many images this process has open.
//!
//! A process that ends with an image open leaves a watcher behind, for which the cluster keeps the image from being removed for
//! half a minute. Values are dropped by whoever held them last, which may be a thread that was just looking: who is about to end
//! the process waits here for all of them.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

static OPEN: Mutex<usize> = Mutex::new(0);
static CLOSED: Condvar = Condvar::new();

/// Waits until every [`Image`](crate::Image) of this process has been closed, for at most `limit`, and returns how many have not.
///
/// None is closed by this: whoever holds one lets go of it first.
pub fn wait_until_closed(limit: Duration) -> usize {
    let open = CLOSED.wait_timeout_while(count(), limit, |open| *open > 0);
    *open.unwrap_or_else(PoisonError::into_inner).0
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenImage(());

impl OpenImage {
    pub(crate) fn new() -> Self {
        *count() += 1;
        Self(())
    }
}

impl Drop for OpenImage {
    fn drop(&mut self) {
        *count() -= 1;
        CLOSED.notify_all();
    }
}

fn count() -> MutexGuard<'static, usize> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// One test, since the count is the process's.
    #[test]
    fn the_last_image_to_be_closed_is_waited_for() {
        assert_eq!(wait_until_closed(Duration::ZERO), 0);
        let images = [OpenImage::new(), OpenImage::new()];
        assert_eq!(wait_until_closed(Duration::from_millis(1)), 2);
        let closing = thread::spawn(move || drop(images));
        assert_eq!(wait_until_closed(Duration::from_secs(60)), 0);
        closing.join().unwrap();
    }
}
