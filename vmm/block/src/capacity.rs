//! An image's size, which may change while it is open.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use drover_units::Sectors;

use crate::ResizeListener;

/// The size that requests are checked against, and who is told when it changes.
pub struct Capacity {
    sectors: AtomicU64,
    listener: Mutex<Option<ResizeListener>>,
    /// Held while somebody looks, so that nobody notes an older size over a newer one.
    looking: Mutex<()>,
}

impl fmt::Debug for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Capacity").field(&self.get()).finish()
    }
}

impl Capacity {
    /// The size at opening.
    pub fn new(sectors: Sectors) -> Self {
        Self { sectors: AtomicU64::new(sectors.get()), listener: Mutex::default(), looking: Mutex::default() }
    }

    /// The size now.
    pub fn get(&self) -> Sectors {
        Sectors::new(self.sectors.load(Ordering::Acquire))
    }

    /// Takes note of what `look` finds, and tells the listener where it has changed. One look at a time.
    ///
    /// # Errors
    /// Those of `look`; the size is as before.
    pub fn look<E>(&self, look: impl FnOnce() -> Result<Sectors, E>) -> Result<Sectors, E> {
        let _looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let sectors = look()?;
        self.note(sectors);
        Ok(sectors)
    }

    fn note(&self, sectors: Sectors) {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.sectors.swap(sectors.get(), Ordering::AcqRel);
        if before != sectors.get()
            && let Some(listener) = listener.as_ref()
        {
            listener(sectors);
        }
    }

    /// As [`Backend::set_resize_listener`](crate::Backend::set_resize_listener).
    pub fn set_listener(&self, listener: ResizeListener) {
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(listener);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn only_a_change_is_told() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let capacity = Capacity::new(Sectors::new(8));
        let found = |sectors| capacity.look(|| Ok::<_, ()>(Sectors::new(sectors)));
        found(9).unwrap();
        let listener = Arc::clone(&told);
        capacity.set_listener(Box::new(move |sectors| listener.lock().unwrap().push(sectors.get())));
        for sectors in [9, 16, 16, 4] {
            assert_eq!(found(sectors), Ok(Sectors::new(sectors)));
        }
        assert_eq!(capacity.look(|| Err("no answer")), Err("no answer"));
        assert_eq!(*told.lock().unwrap(), [16, 4]);
        assert_eq!(capacity.get(), Sectors::new(4));
    }
}
