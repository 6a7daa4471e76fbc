//! Sequence numbers on their way to the disk: issued in order, completed in any order, acknowledged in order.
//!
//! ```text
//! next_seq ──issue──▶ in flight ──complete──▶ written ──flush──▶ acknowledged
//! ```
//!
//! A flush covers the writes that had completed when it was submitted, not those that complete beside it (virtio 1.2,
//! section 5.2.6.2), so the highest number to acknowledge is fixed then.

use crate::command_line::QUEUE_DEPTH_MAX;

/// Numbers from the lowest incomplete one that may be issued: as many as the completion mask has bits.
const SPAN: u64 = u64::BITS as u64;
const _: () = assert!(QUEUE_DEPTH_MAX <= SPAN);

/// Keeps writes in sequence.
#[derive(Clone, Debug)]
pub struct WriteWindow {
    slots: u64,
    queue_depth: u64,
    next: u64,
    /// The lowest number that is not complete.
    base: u64,
    /// Bit `n`: number `base + n` is complete.
    completed: u64,
    in_flight: u64,
    flushing: Option<u64>,
    acknowledged: u64,
}

impl WriteWindow {
    /// A window whose first number is `next_seq`; everything below it counts as acknowledged.
    ///
    /// # Panics
    /// `slots`, `queue_depth` or `next_seq` is 0.
    pub fn new(next_seq: u64, slots: u64, queue_depth: u64) -> Self {
        assert!(slots > 0 && queue_depth > 0 && next_seq > 0, "an empty window never moves");
        WriteWindow {
            slots,
            queue_depth,
            next: next_seq,
            base: next_seq,
            completed: 0,
            in_flight: 0,
            flushing: None,
            acknowledged: next_seq - 1,
        }
    }

    /// The number that [`issue`](Self::issue) would give out, or `None` while the queue is full or the slot's previous
    /// write is not complete.
    pub fn issuable(&self) -> Option<u64> {
        let ahead = self.next - self.base;
        let room = self.in_flight < self.queue_depth && ahead < SPAN.min(self.slots);
        room.then_some(self.next)
    }

    /// Gives out the next number to write.
    pub fn issue(&mut self) -> Option<u64> {
        let seq = self.issuable()?;
        self.next += 1;
        self.in_flight += 1;
        Some(seq)
    }

    /// Takes the completion of a write. A number that is not in flight is ignored.
    pub fn complete(&mut self, seq: u64) {
        let Some(bit) = seq.checked_sub(self.base).filter(|_| seq < self.next) else { return };
        if self.completed & (1 << bit) != 0 {
            return;
        }
        self.completed |= 1 << bit;
        self.in_flight -= 1;
        let whole = self.completed.trailing_ones();
        self.completed = self.completed.checked_shr(whole).unwrap_or(0);
        self.base += u64::from(whole);
    }

    /// Takes the failure of a write that is in flight. Nothing from it on is acknowledged any more: once the window is
    /// idle, a new one goes on behind [`acknowledged`](Self::acknowledged).
    pub fn complete_failed(&mut self, seq: u64) {
        if (self.base..self.next).contains(&seq) {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
    }

    /// Whether a flush would acknowledge anything and none is under way.
    pub fn wants_flush(&self) -> bool {
        self.flushing.is_none() && self.written() > self.acknowledged
    }

    /// Notes that a flush is being submitted now.
    pub fn flush_submitted(&mut self) {
        self.flushing = Some(self.written());
    }

    /// Notes that the flush has succeeded; returns the number to acknowledge.
    pub fn flush_done(&mut self) -> Option<u64> {
        let covered = self.flushing.take()?;
        self.acknowledged = self.acknowledged.max(covered);
        Some(self.acknowledged)
    }

    /// Notes that the flush has failed; another may be submitted.
    pub fn flush_failed(&mut self) {
        self.flushing = None;
    }

    /// The highest number whose write and all writes before it are complete.
    pub fn written(&self) -> u64 {
        self.base - 1
    }

    /// The highest acknowledged number.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// The next number to issue.
    pub fn next_seq(&self) -> u64 {
        self.next
    }

    /// Writes in flight.
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Whether no write or flush is under way.
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.flushing.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_come_in_order_up_to_the_depth() {
        let mut window = WriteWindow::new(5, 100, 2);
        assert_eq!([window.issue(), window.issue(), window.issue()], [Some(5), Some(6), None]);
        window.complete(6);
        assert_eq!(window.issue(), Some(7));
        assert_eq!(window.written(), 4);
        window.complete(5);
        assert_eq!(window.written(), 6);
    }

    #[test]
    fn a_slot_is_never_written_twice_at_a_time() {
        let mut window = WriteWindow::new(1, 2, 8);
        assert_eq!([window.issue(), window.issue(), window.issue()], [Some(1), Some(2), None]);
        window.complete(2);
        assert_eq!(window.issue(), None, "3 would go to the slot of 1");
        window.complete(1);
        assert_eq!(window.issue(), Some(3));
    }

    #[test]
    fn a_flush_covers_what_was_written_when_it_was_submitted() {
        let mut window = WriteWindow::new(1, 100, 4);
        window.issue();
        window.issue();
        assert!(!window.wants_flush());
        window.complete(1);
        assert!(window.wants_flush());
        window.flush_submitted();
        window.complete(2);
        assert!(!window.wants_flush(), "one at a time");
        assert_eq!(window.flush_done(), Some(1));
        assert!(window.wants_flush());
    }

    #[test]
    fn a_failed_flush_acknowledges_nothing() {
        let mut window = WriteWindow::new(1, 100, 4);
        window.issue();
        window.complete(1);
        window.flush_submitted();
        window.flush_failed();
        assert_eq!(window.acknowledged(), 0);
        assert!(window.wants_flush());
    }

    #[test]
    fn nothing_from_a_failed_write_on_is_acknowledged() {
        let mut window = WriteWindow::new(1, 100, 4);
        let _issued = [window.issue(), window.issue(), window.issue()];
        window.complete(1);
        window.complete_failed(2);
        window.complete(3);
        assert!(window.is_idle());
        window.flush_submitted();
        assert_eq!(window.flush_done(), Some(1));
        assert!(!window.wants_flush());
    }

    #[test]
    fn completions_of_nothing_are_ignored() {
        let mut window = WriteWindow::new(10, 100, 4);
        window.issue();
        for seq in [0, 9, 11, u64::MAX] {
            window.complete(seq);
        }
        assert_eq!((window.written(), window.in_flight()), (9, 1));
        window.complete(10);
        window.complete(10);
        assert_eq!((window.written(), window.in_flight()), (10, 0));
    }

    proptest! {
        #[test]
        fn acknowledged_numbers_were_all_complete_before_their_flush(
            slots in 1u64..80, depth in 1u64..=QUEUE_DEPTH_MAX, choices in prop::collection::vec(any::<u16>(), 1..400)
        ) {
            let mut window = WriteWindow::new(1, slots, depth);
            let mut flying = Vec::new();
            let mut complete = std::collections::BTreeSet::new();
            let mut at_flush = None;
            for choice in choices {
                match choice % 4 {
                    0 | 1 => flying.extend(window.issue()),
                    2 if !flying.is_empty() => {
                        let seq = flying.swap_remove(usize::from(choice / 4) % flying.len());
                        window.complete(seq);
                        complete.insert(seq);
                    }
                    _ => match at_flush.take() {
                        None if window.wants_flush() => {
                            window.flush_submitted();
                            at_flush = Some(complete.clone());
                        }
                        None => {}
                        Some(covered) => {
                            let seq = window.flush_done().unwrap();
                            prop_assert!((1..=seq).all(|seq| covered.contains(&seq)));
                        }
                    },
                }
                prop_assert_eq!(window.in_flight(), flying.len() as u64);
                prop_assert!(flying.len() as u64 <= depth);
                let mut in_slots: Vec<_> = flying.iter().map(|seq| seq % slots).collect();
                in_slots.sort_unstable();
                in_slots.dedup();
                prop_assert_eq!(in_slots.len(), flying.len());
            }
        }
    }
}
