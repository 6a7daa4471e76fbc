//! The containers that the inventory is made of: compact, and cheap to snapshot.

mod cow_vec;
mod host_set;
mod interner;
mod slot_table;

pub(crate) use cow_vec::CowVec;
pub(crate) use host_set::HostSet;
pub(crate) use interner::{Interner, NameId};
pub(crate) use slot_table::{SlotTable, hash_of, mix};
