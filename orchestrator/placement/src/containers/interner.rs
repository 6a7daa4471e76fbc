//! Names as small numbers.

use std::sync::Arc;

use super::{CowVec, SlotTable, hash_of};

/// A name's number. [`NameId::NONE`] is no name's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NameId(pub(crate) u32);

impl NameId {
    /// A name that nothing has.
    pub(crate) const NONE: Self = Self(u32::MAX);
}

impl Default for NameId {
    fn default() -> Self {
        Self::NONE
    }
}

/// Names of labels, pools, networks, baselines, places and projects. They are kept for the inventory's life: their number is
/// what the cluster's owner has ever described.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interner {
    names: CowVec<Option<Arc<str>>>,
    table: SlotTable,
}

impl Interner {
    /// The number of a name; a new one if it is new.
    pub(crate) fn intern(&mut self, name: &str) -> NameId {
        let known = self.get(name);
        if known != NameId::NONE {
            return known;
        }
        let slot = self.names.len() as u32;
        self.names.push(Some(Arc::from(name)));
        let names = &self.names;
        self.table.insert(hash_of(name), slot, |slot| hash_of(text(names, slot)));
        NameId(slot)
    }

    /// The number of a name, if it has one.
    pub(crate) fn get(&self, name: &str) -> NameId {
        self.table.find(hash_of(name), |slot| text(&self.names, slot) == name).map_or(NameId::NONE, NameId)
    }

    /// The name of a number; nothing for [`NameId::NONE`].
    pub(crate) fn name(&self, id: NameId) -> &str {
        text(&self.names, id.0)
    }

    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }
}

fn text(names: &CowVec<Option<Arc<str>>>, slot: u32) -> &str {
    names.get(slot as usize).and_then(Option::as_deref).unwrap_or("")
}
