//! A vector in chunks that snapshots share until one of them writes.

use std::{array, sync::Arc};

/// Elements of one chunk: a snapshot copies one pointer for each, the first write after it one chunk. 64 elements of 64
/// bytes are a page, which costs about as much to copy as the write that follows.
const CHUNK: usize = 64;

/// A vector whose clone is one pointer per [`CHUNK`] elements.
#[derive(Clone, Debug)]
pub(crate) struct CowVec<T> {
    chunks: Vec<Arc<[T; CHUNK]>>,
    len: usize,
}

impl<T> Default for CowVec<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }
}

impl<T: Clone + Default> CowVec<T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        if index >= self.len {
            return None;
        }
        self.chunks.get(index / CHUNK).map(|chunk| &chunk[index % CHUNK])
    }

    pub(crate) fn push(&mut self, value: T) {
        if self.len == self.chunks.len() * CHUNK {
            self.chunks.push(Arc::new(array::from_fn(|_| T::default())));
        }
        self.len += 1;
        let last = self.len - 1;
        self[last] = value;
    }

    /// Makes it so long, with default elements in the new places.
    pub(crate) fn grow(&mut self, len: usize) {
        while self.chunks.len() * CHUNK < len {
            self.chunks.push(Arc::new(array::from_fn(|_| T::default())));
        }
        self.len = self.len.max(len);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).take(self.len)
    }
}

impl<T> std::ops::Index<usize> for CowVec<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        debug_assert!(index < self.len);
        &self.chunks[index / CHUNK][index % CHUNK]
    }
}

impl<T: Clone> std::ops::IndexMut<usize> for CowVec<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        debug_assert!(index < self.len);
        &mut Arc::make_mut(&mut self.chunks[index / CHUNK])[index % CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_does_not_see_later_writes() {
        let mut numbers = CowVec::default();
        (0..200u32).for_each(|n| numbers.push(n));
        let before = numbers.clone();
        numbers[130] = 7;
        numbers.push(8);
        assert_eq!((before[130], before.len(), before.get(200)), (130, 200, None));
        assert_eq!((numbers[130], numbers.len(), numbers.get(200)), (7, 201, Some(&8)));
        assert_eq!(numbers.iter().count(), 201);
    }
}
