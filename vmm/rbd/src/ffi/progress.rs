//! Closures as C callbacks, for calls that use them only while they run.

use std::{
    ffi::{c_int, c_void},
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::Progress;

/// A borrowed closure on its way through C. The call that is given it must not keep it.
pub(super) struct Borrowed<'a, F: ?Sized> {
    /// A pointer to a (possibly wide) reference, which is thin.
    place: *mut c_void,
    lives: PhantomData<&'a mut F>,
}

/// The argument for [`report_progress`]. `place` holds the reference while the call runs.
pub(super) fn progress_argument<'a, 'b>(place: &'a mut Progress<'b>) -> Borrowed<'a, Progress<'b>> {
    Borrowed { place: std::ptr::from_mut(place).cast(), lives: PhantomData }
}

impl<F: ?Sized> Borrowed<'_, F> {
    pub(super) fn as_ptr(&self) -> *mut c_void {
        self.place
    }
}

/// `librbd_progress_fn_t`.
///
/// # Safety
/// `argument` comes from [`progress_argument`], whose borrow lives, and no other thread uses it at the same time:
/// librbd calls from one thread at a time, while the call that was given it runs.
pub(super) unsafe extern "C" fn report_progress(done: u64, total: u64, argument: *mut c_void) -> c_int {
    // SAFETY: as the caller promises, this is the `Progress` that `progress_argument` was given.
    let report = unsafe { &mut *argument.cast::<Progress<'_>>() };
    // A panic must not unwind through C++: it counts as "stop".
    match catch_unwind(AssertUnwindSafe(|| report(done, total))) {
        Ok(true) => 0,
        Ok(false) | Err(_) => -libc::ECANCELED,
    }
}

/// What [`visit_extent`] is told for every extent: offset, length, whether it holds data. Answers whether to go on.
pub(super) type Visit<'a> = &'a mut dyn FnMut(u64, u64, bool) -> bool;

/// The argument for [`visit_extent`].
pub(super) fn visit_argument<'a, 'b>(place: &'a mut Visit<'b>) -> Borrowed<'a, Visit<'b>> {
    Borrowed { place: std::ptr::from_mut(place).cast(), lives: PhantomData }
}

/// The callback of `rbd_diff_iterate2`.
///
/// # Safety
/// As [`report_progress`], with [`visit_argument`].
pub(super) unsafe extern "C" fn visit_extent(
    offset: u64,
    length: usize,
    exists: c_int,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: as the caller promises, this is the `Visit` that `visit_argument` was given.
    let visit = unsafe { &mut *argument.cast::<Visit<'_>>() };
    match catch_unwind(AssertUnwindSafe(|| visit(offset, length as u64, exists != 0))) {
        Ok(true) => 0,
        Ok(false) | Err(_) => -libc::ECANCELED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_goes_through_and_its_answer_comes_back() {
        let mut seen = Vec::new();
        let mut report = |done, total| {
            seen.push((done, total));
            done < 2
        };
        let mut place: Progress<'_> = &mut report;
        let argument = progress_argument(&mut place);
        // SAFETY: the argument was made just above, and nothing else uses it.
        let first = unsafe { report_progress(1, 3, argument.as_ptr()) };
        // SAFETY: as above.
        let second = unsafe { report_progress(2, 3, argument.as_ptr()) };
        assert_eq!((first, second), (0, -libc::ECANCELED));
        assert_eq!(seen, [(1, 3), (2, 3)]);
    }

    #[test]
    fn a_panic_stops_the_work_and_does_not_cross_into_c() {
        let mut report = |_, _| panic!("the test says so");
        let mut place: Progress<'_> = &mut report;
        let argument = progress_argument(&mut place);
        // SAFETY: the argument was made just above, and nothing else uses it.
        assert_eq!(unsafe { report_progress(1, 3, argument.as_ptr()) }, -libc::ECANCELED);
    }
}
