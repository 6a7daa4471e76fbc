//! Where the members of groups are, counted by host, rack and zone.

use std::sync::Arc;

use crate::{
    Scope,
    containers::{CowVec, SlotTable, hash_of, mix},
};

use super::names::GroupName;

/// Counts by place, sorted by place, without zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts(Vec<(u32, u32)>);

impl Counts {
    pub(crate) fn get(&self, place: u32) -> u32 {
        self.0.binary_search_by_key(&place, |(place, _)| *place).map_or(0, |index| self.0[index].1)
    }

    fn add(&mut self, place: u32) {
        match self.0.binary_search_by_key(&place, |(place, _)| *place) {
            Ok(index) => self.0[index].1 += 1,
            Err(index) => self.0.insert(index, (place, 1)),
        }
    }

    fn subtract(&mut self, place: u32) {
        if let Ok(index) = self.0.binary_search_by_key(&place, |(place, _)| *place) {
            self.0[index].1 -= 1;
            if self.0[index].1 == 0 {
                self.0.remove(index);
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.0.iter().copied()
    }
}

/// Where something is: a host's slot, and its rack and zone if it has them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) host: u32,
    pub(crate) rack: Option<u32>,
    pub(crate) zone: Option<u32>,
}

impl Place {
    pub(crate) fn of(self, scope: Scope) -> Option<u32> {
        match scope {
            Scope::Host => Some(self.host),
            Scope::Rack => self.rack,
            Scope::Zone => self.zone,
        }
    }
}

/// Counts in each sense of place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Census {
    hosts: Counts,
    racks: Counts,
    zones: Counts,
    total: u32,
}

impl Census {
    pub(crate) fn by(&self, scope: Scope) -> &Counts {
        match scope {
            Scope::Host => &self.hosts,
            Scope::Rack => &self.racks,
            Scope::Zone => &self.zones,
        }
    }

    pub(crate) fn total(&self) -> u32 {
        self.total
    }

    fn by_mut(&mut self, scope: Scope) -> &mut Counts {
        match scope {
            Scope::Host => &mut self.hosts,
            Scope::Rack => &mut self.racks,
            Scope::Zone => &mut self.zones,
        }
    }

    pub(crate) fn change(&mut self, scope: Scope, place: Place, more: bool) {
        let Some(place) = place.of(scope) else { return };
        if more { self.by_mut(scope).add(place) } else { self.by_mut(scope).subtract(place) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    Named(Box<str>),
    Vm(u128),
}

impl Key {
    fn is(&self, name: GroupName<'_>) -> bool {
        match (self, name) {
            (Self::Named(mine), GroupName::Named(other)) => **mine == *other,
            (Self::Vm(mine), GroupName::Vm(other)) => *mine == other,
            _ => false,
        }
    }

    fn name(&self) -> GroupName<'_> {
        match self {
            Self::Named(name) => GroupName::Named(name),
            Self::Vm(vm) => GroupName::Vm(*vm),
        }
    }
}

fn hash(name: GroupName<'_>) -> u64 {
    match name {
        GroupName::Named(name) => hash_of(name),
        GroupName::Vm(vm) => mix(vm),
    }
}

/// One group.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    key: Key,
    /// Profiles that speak of it. Without any it is forgotten.
    speakers: u32,
    /// Where its members are.
    pub(crate) members: Census,
    /// Where VMs are that must be apart from its members, each counted in the sense of its own rule only.
    pub(crate) repellers: Census,
}

impl Group {
    pub(crate) fn add_member(&mut self, place: Place, more: bool) {
        for scope in [Scope::Host, Scope::Rack, Scope::Zone] {
            self.members.change(scope, place, more);
        }
        if more { self.members.total += 1 } else { self.members.total -= 1 }
    }

    pub(crate) fn name(&self) -> GroupName<'_> {
        self.key.name()
    }
}

/// All groups that a profile speaks of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups {
    groups: CowVec<Option<Arc<Group>>>,
    table: SlotTable,
    free: Vec<u32>,
    /// How many are groups of one VM: while there are none, nobody looks for them.
    of_vms: u32,
}

impl Groups {
    pub(crate) fn find(&self, name: GroupName<'_>) -> Option<u32> {
        if self.of_vms == 0 && matches!(name, GroupName::Vm(_)) {
            return None;
        }
        self.table.find(hash(name), |slot| self.get(slot).is_some_and(|group| group.key.is(name)))
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&Group> {
        self.groups.get(slot as usize)?.as_deref()
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut Group> {
        self.groups[slot as usize].as_mut().map(Arc::make_mut)
    }

    /// The slot of a group; a new one if it is new.
    pub(crate) fn intern(&mut self, name: GroupName<'_>) -> u32 {
        if let Some(slot) = self.find(name) {
            return slot;
        }
        let key = match name {
            GroupName::Named(name) => Key::Named(name.into()),
            GroupName::Vm(vm) => Key::Vm(vm),
        };
        self.of_vms += u32::from(matches!(key, Key::Vm(_)));
        let slot = self.free.pop().unwrap_or_else(|| {
            self.groups.push(None);
            self.groups.len() as u32 - 1
        });
        let group = Group { key, speakers: 0, members: Census::default(), repellers: Census::default() };
        self.groups[slot as usize] = Some(Arc::new(group));
        let groups = &self.groups;
        let hash_of = |slot: u32| groups[slot as usize].as_deref().map_or(0, |group| hash(group.key.name()));
        self.table.insert(hash(name), slot, hash_of);
        slot
    }

    /// A profile begins to speak of a group.
    pub(crate) fn refer(&mut self, slot: u32) {
        if let Some(group) = self.get_mut(slot) {
            group.speakers += 1;
        }
    }

    /// A profile that spoke of a group is gone.
    pub(crate) fn forget(&mut self, slot: u32) {
        let Some(group) = self.get_mut(slot) else { return };
        group.speakers -= 1;
        if group.speakers > 0 {
            return;
        }
        let key = group.key.clone();
        let groups = &self.groups;
        let hash_of = |slot: u32| groups[slot as usize].as_deref().map_or(0, |group| hash(group.key.name()));
        self.table.remove(hash(key.name()), slot, hash_of);
        self.of_vms -= u32::from(matches!(key, Key::Vm(_)));
        self.groups[slot as usize] = None;
        self.free.push(slot);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Group)> {
        self.groups.iter().enumerate().filter_map(|(slot, group)| Some((slot as u32, group.as_deref()?)))
    }
}
