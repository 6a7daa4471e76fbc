//! Hosts in the order of their ids.

/// Slots in one run: what a `memmove` shifts at most when one comes or goes, 2 KiB.
const RUN: usize = 512;

/// A set of host slots, sorted by the hosts' ids (which the caller looks up), so that who wins a tie does not depend on
/// the order of events. Changes take O(log n) look-ups and a short `memmove`.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostSet {
    runs: Vec<Vec<u32>>,
}

impl HostSet {
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.runs.iter().map(Vec::len).sum()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        self.runs.iter().flatten().copied()
    }

    /// All of them, beginning at some place (taken modulo the length) and going round.
    pub(crate) fn iter_from(&self, start: u64) -> impl Iterator<Item = u32> {
        let len = self.len();
        let start = if len == 0 { 0 } else { (start % len as u64) as usize };
        let (mut run, mut skip) = (0, start);
        while self.runs.get(run).is_some_and(|slots| slots.len() <= skip) {
            skip -= self.runs[run].len();
            run += 1;
        }
        let tail = self.runs.get(run..).unwrap_or_default().iter().flatten().skip(skip);
        tail.chain(self.iter_slots().take(start)).copied()
    }

    fn iter_slots(&self) -> impl Iterator<Item = &u32> {
        self.runs.iter().flatten()
    }

    fn run_of(&self, id: u128, id_of: &impl Fn(u32) -> u128) -> usize {
        let after = self.runs.partition_point(|run| run.last().is_some_and(|last| id_of(*last) < id));
        after.min(self.runs.len().saturating_sub(1))
    }

    pub(crate) fn insert(&mut self, slot: u32, id_of: impl Fn(u32) -> u128) {
        let id = id_of(slot);
        if self.runs.is_empty() {
            self.runs.push(vec![slot]);
            return;
        }
        let index = self.run_of(id, &id_of);
        let run = &mut self.runs[index];
        let place = run.partition_point(|other| id_of(*other) < id);
        run.insert(place, slot);
        if run.len() > RUN {
            let tail = run.split_off(RUN / 2);
            self.runs.insert(index + 1, tail);
        }
    }

    pub(crate) fn remove(&mut self, slot: u32, id_of: impl Fn(u32) -> u128) {
        let id = id_of(slot);
        let index = self.run_of(id, &id_of);
        let Some(run) = self.runs.get_mut(index) else { return };
        let place = run.partition_point(|other| id_of(*other) < id);
        if run.get(place) == Some(&slot) {
            run.remove(place);
            if run.is_empty() {
                self.runs.remove(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_sorted_through_any_order_of_changes() {
        let id = |slot: u32| u128::from(slot.wrapping_mul(2_654_435_761));
        let mut set = HostSet::default();
        for slot in 0..5000 {
            set.insert(slot, id);
        }
        for slot in (0..5000).filter(|slot| slot % 3 == 0) {
            set.remove(slot, id);
        }
        let mut expect: Vec<u32> = (0..5000).filter(|slot| slot % 3 != 0).collect();
        expect.sort_by_key(|slot| id(*slot));
        assert_eq!(set.iter().collect::<Vec<_>>(), expect);
        assert_eq!(set.len(), expect.len());
        let mut rotated = expect.clone();
        rotated.rotate_left(1234);
        assert_eq!(set.iter_from(1234 + expect.len() as u64).collect::<Vec<_>>(), rotated);
    }
}
