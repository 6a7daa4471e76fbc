//! What must hold between a request and a host, in one piece of code that the search, the commit and the explanation
//! share: the search stops at the first thing that is wrong, the explanation collects all.

use std::{ops::ControlFlow, sync::Arc};

use crate::{
    Direction, HostState, Inventory, LabelMatch, NumaPolicy, PageBacking, Request, Scope, TaintEffect,
    containers::NameId,
    inventory::{FLOATS, GroupName, HostSlot, LabelKey, NONE, Place, Traits, Wanted},
};

/// Something that is wrong with a host. Indices are those of the profile's rules; text is made of it only when
/// somebody asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Miss {
    NotReady,
    NotAskedFor,
    Excluded,
    Vcpus,
    DedicatedThreads,
    Memory,
    Numa,
    Label(usize),
    /// Index into the host's taints.
    Taint(usize),
    Pool(usize),
    Network(usize),
    Baseline,
    NotTogether(usize),
    NotApart(usize),
    KeptAway(u32, Scope),
    Spread(usize),
}

type Flow = ControlFlow<Miss>;

/// A rule of others that keeps this VM away from where they are.
#[derive(Clone, Copy, Debug)]
struct Repulsion {
    group: u32,
    scope: Scope,
}

/// A request against an inventory: what is the same for every host, worked out once.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    pub(crate) inventory: &'a Inventory,
    pub(crate) request: &'a Request,
    pub(crate) wanted: Arc<Wanted>,
    /// Where the VM is already, with what it is there.
    own: Vec<(u32, u32)>,
    /// `Some(NONE)`: the only host is not there.
    only: Option<u32>,
    excluded: Vec<u32>,
    repulsions: Vec<Repulsion>,
    /// For each rule of spread: members in the eligible place that has the fewest.
    fewest: Vec<u32>,
    /// Which classes have what the request asks of a host as such, by slot.
    eligible: Vec<bool>,
    /// There are required rules about racks or names, which classes know nothing of.
    picks_hosts: bool,
    /// Whether anything but room must be looked at for each host.
    pub(crate) only_room: bool,
}

impl<'a> Question<'a> {
    /// A question about any host.
    pub(crate) fn new(inventory: &'a Inventory, request: &'a Request) -> Self {
        let mut question = Self::begin(inventory, request);
        question.find_eligible_classes();
        question.finish()
    }

    /// A question about single hosts. Kinds of hosts are looked at only if a rule of spread depends on them: until then
    /// none counts as eligible.
    pub(crate) fn of_single_hosts(inventory: &'a Inventory, request: &'a Request) -> Self {
        let mut question = Self::begin(inventory, request);
        if !question.wanted.spread.is_empty() {
            question.find_eligible_classes();
        }
        question.finish()
    }

    fn begin(inventory: &'a Inventory, request: &'a Request) -> Self {
        let wanted = inventory.wanted(&request.profile);
        let own: Vec<(u32, u32)> = inventory
            .slots_of_vm(request.vm.as_u128())
            .map(|slot| &inventory.vms[slot as usize])
            .map(|vm| (vm.host, vm.profile))
            .collect();
        let only = request.only.map(|only| inventory.host_slot(only).unwrap_or(NONE));
        let mut excluded: Vec<u32> =
            request.excluded.iter().filter_map(|host| inventory.host_slot(*host)).collect();
        excluded.sort_unstable();
        let picks_hosts = wanted
            .labels
            .iter()
            .any(|rule| rule.preferred.is_none() && matches!(rule.key, LabelKey::Rack | LabelKey::Host));
        Self {
            inventory,
            request,
            wanted,
            own,
            only,
            excluded,
            repulsions: Vec::new(),
            fewest: Vec::new(),
            eligible: Vec::new(),
            picks_hosts,
            only_room: false,
        }
    }

    /// Works out what depends on what else is placed.
    fn finish(mut self) -> Self {
        self.find_repulsions();
        self.fewest = (0..self.wanted.spread.len()).map(|rule| self.fewest_of(rule)).collect();
        let wanted = &self.wanted;
        self.only_room = !wanted.dedicated
            && wanted.backing == PageBacking::Base
            && wanted.numa != NumaPolicy::Single
            && self.only.is_none()
            && self.excluded.is_empty()
            && self.repulsions.is_empty()
            && !self.picks_hosts
            && wanted.affinity.iter().all(|rule| rule.preferred.is_some())
            && wanted.spread.iter().all(|rule| rule.preferred.is_some());
        self
    }

    fn find_eligible_classes(&mut self) {
        let inventory = self.inventory;
        self.eligible = vec![false; inventory.classes.slots()];
        for (slot, class) in inventory.classes.iter() {
            let Some(traits) = inventory.traits.get(class.key.traits) else { continue };
            self.eligible[slot as usize] =
                self.check_traits(traits, class.key.zone, &mut ControlFlow::Break).is_continue();
        }
    }

    fn find_repulsions(&mut self) {
        let groups = &self.inventory.groups;
        let itself = groups.find(GroupName::Vm(self.request.vm.as_u128()));
        for group in self.wanted.groups.iter().copied().chain(itself) {
            let Some(known) = groups.get(group) else { continue };
            for scope in [Scope::Host, Scope::Rack, Scope::Zone] {
                if !known.repellers.by(scope).is_empty() {
                    self.repulsions.push(Repulsion { group, scope });
                }
            }
        }
    }

    /// Whether a class of hosts has what is asked of a host as such.
    pub(crate) fn is_eligible(&self, class: u32) -> bool {
        self.eligible.get(class as usize).copied().unwrap_or(false)
    }

    /// Whether what must hold about other VMs of the zone does.
    pub(crate) fn zone_passes(&self, zone: NameId) -> bool {
        if self.only_room || zone == NameId::NONE {
            return true;
        }
        let place = Place { host: NONE, rack: None, zone: Some(zone.0) };
        let (wanted, zonal) = (&*self.wanted, |scope| scope == Scope::Zone);
        let near = |index: usize| {
            let rule = &wanted.affinity[index];
            !zonal(rule.scope) || rule.preferred.is_some() || self.affinity_holds(index, place)
        };
        let even = |index: usize| {
            let rule = &wanted.spread[index];
            let skew = || self.skew(index, place).unwrap_or(0);
            !zonal(rule.scope) || rule.preferred.is_some() || skew() <= rule.max_skew
        };
        (0..wanted.affinity.len()).all(near)
            && (0..wanted.spread.len()).all(even)
            && self.repulsions.iter().all(|r| !zonal(r.scope) || self.repellers(*r, place) == 0)
    }

    /// The few hosts that may do at all, where a rule says so: those near VMs that the request must be with.
    pub(crate) fn confined_to(&self) -> Option<Vec<u32>> {
        let inventory = self.inventory;
        let mut rules = self.wanted.affinity.iter().filter(|rule| {
            rule.direction == Direction::Together && rule.preferred.is_none() && rule.scope != Scope::Zone
        });
        let rule = rules.find(|rule| !(rule.own && self.members_anywhere(rule.group) == 0))?;
        let (mut hosts, mut racks): (Vec<u32>, Vec<u32>) = match rule.vm {
            Some(vm) => {
                let hosts: Vec<u32> = self.hosts_of_peer(vm).collect();
                let racks = hosts.iter().filter_map(|host| inventory.place(*host).rack).collect();
                (hosts, racks)
            }
            None => {
                let group = rule.group.and_then(|group| inventory.groups.get(group));
                let places = |scope| group.into_iter().flat_map(move |group| group.members.by(scope).iter());
                let ids = |scope| places(scope).map(|(place, _)| place).collect();
                (ids(Scope::Host), ids(Scope::Rack))
            }
        };
        if rule.scope == Scope::Rack {
            // A host that is in no rack is not bound by a rule about racks.
            if inventory.rackless > 0 {
                return None;
            }
            racks.sort_unstable();
            racks.dedup();
            let books = racks.into_iter().filter_map(|rack| inventory.rack_books.get(rack as usize));
            hosts = books.flat_map(|book| book.hosts.iter()).collect();
        }
        Some(hosts)
    }

    /// The only host that would do: `Some(None)` if it is not there.
    pub(crate) fn only(&self) -> Option<Option<u32>> {
        self.only.map(|slot| (slot != NONE).then_some(slot))
    }

    /// Whether the VM is held somewhere already.
    pub(crate) fn is_held(&self) -> bool {
        !self.own.is_empty()
    }

    /// Whether a host will do.
    pub(crate) fn passes(&self, slot: u32) -> bool {
        self.first_miss(slot).is_none()
    }

    /// The first thing that is wrong with a host.
    pub(crate) fn first_miss(&self, slot: u32) -> Option<Miss> {
        self.each_miss(slot, &mut ControlFlow::Break).break_value()
    }

    /// Everything that is wrong with a host.
    pub(crate) fn misses(&self, slot: u32) -> Vec<Miss> {
        let mut misses = Vec::new();
        let collected = self.each_miss(slot, &mut |miss| {
            misses.push(miss);
            ControlFlow::Continue(())
        });
        debug_assert!(collected.is_continue());
        misses
    }

    fn each_miss(&self, slot: u32, found: &mut impl FnMut(Miss) -> Flow) -> Flow {
        let host = &self.inventory.hosts[slot as usize];
        if self.only.is_some_and(|only| only != slot) {
            // What else is wrong with it does not matter to anyone.
            return found(Miss::NotAskedFor);
        }
        if host.state != HostState::Ready {
            found(Miss::NotReady)?;
        }
        if let Some(traits) = self.inventory.traits.get(self.inventory.details[slot as usize].traits) {
            self.check_traits(traits, host.zone, found)?;
        }
        self.check_room(host, found)?;
        self.check_rest(slot, host, found)
    }

    /// Whether a host will do that is ready, in an eligible class, and has the vCPUs and base pages.
    pub(crate) fn rest_passes(&self, slot: u32) -> bool {
        let host = &self.inventory.hosts[slot as usize];
        self.only_room || self.check_rest(slot, host, &mut ControlFlow::Break).is_continue()
    }

    /// Whether a host has the vCPUs and base pages.
    pub(crate) fn has_room(&self, slot: u32) -> bool {
        self.check_room(&self.inventory.hosts[slot as usize], &mut ControlFlow::Break).is_continue()
    }

    /// What is asked of a host whatever it holds.
    fn check_traits(&self, traits: &Traits, zone: NameId, found: &mut impl FnMut(Miss) -> Flow) -> Flow {
        let wanted = &*self.wanted;
        for (index, rule) in wanted.labels.iter().enumerate().filter(|(_, rule)| rule.preferred.is_none()) {
            let value = match rule.key {
                LabelKey::Own(key) => traits.label(key),
                LabelKey::Zone => (zone != NameId::NONE).then_some(zone),
                LabelKey::Rack | LabelKey::Host => continue,
            };
            if !self.label_holds(index, value) {
                found(Miss::Label(index))?;
            }
        }
        for (index, (key, value, effect)) in traits.taints.iter().enumerate() {
            if *effect == TaintEffect::NoSchedule && !tolerates(wanted, *key, *value) {
                found(Miss::Taint(index))?;
            }
        }
        for (index, pool) in wanted.pools.iter().enumerate() {
            if traits.pools.binary_search(pool).is_err() {
                found(Miss::Pool(index))?;
            }
        }
        for (index, network) in wanted.networks.iter().enumerate() {
            if traits.networks.binary_search(network).is_err() {
                found(Miss::Network(index))?;
            }
        }
        match wanted.baseline {
            Some(baseline) if traits.baselines.binary_search(&baseline).is_err() => found(Miss::Baseline),
            _ => ControlFlow::Continue(()),
        }
    }

    /// Whether a label is as a rule of the profile says.
    pub(crate) fn label_holds(&self, rule: usize, value: Option<NameId>) -> bool {
        let ids = &self.wanted.labels[rule].values;
        let is_one = |value: NameId| value != NameId::NONE && ids.contains(&value);
        match &self.request.profile.labels[rule].matches {
            LabelMatch::In(_) => value.is_some_and(is_one),
            LabelMatch::NotIn(_) => !value.is_some_and(is_one),
            LabelMatch::Exists => value.is_some(),
            LabelMatch::Absent => value.is_none(),
        }
    }

    /// The value of a label of a host, wherever it is kept.
    pub(crate) fn label_value(&self, slot: u32, key: LabelKey) -> Option<NameId> {
        let (host, detail) = (&self.inventory.hosts[slot as usize], &self.inventory.details[slot as usize]);
        let some = |id: NameId| (id != NameId::NONE).then_some(id);
        match key {
            LabelKey::Own(key) => self.inventory.traits.get(detail.traits)?.label(key),
            LabelKey::Zone => some(host.zone),
            LabelKey::Rack => some(host.rack),
            LabelKey::Host => some(detail.name),
        }
    }

    fn check_room(&self, host: &HostSlot, found: &mut impl FnMut(Miss) -> Flow) -> Flow {
        let wanted = &*self.wanted;
        if wanted.oversized || wanted.cpu(host.cpu_overcommit) > host.cpu_free() {
            found(Miss::Vcpus)?;
        }
        if wanted.base_memory() > host.memory_free() {
            found(Miss::Memory)?;
        }
        ControlFlow::Continue(())
    }

    /// Everything that neither the class nor the cell of a host tells.
    fn check_rest(&self, slot: u32, host: &HostSlot, found: &mut impl FnMut(Miss) -> Flow) -> Flow {
        let wanted = &*self.wanted;
        if self.only.is_some_and(|only| only != slot) {
            found(Miss::NotAskedFor)?;
        }
        if !self.excluded.is_empty() && self.excluded.binary_search(&slot).is_ok() {
            found(Miss::Excluded)?;
        }
        if self.picks_hosts {
            for (index, rule) in wanted.labels.iter().enumerate() {
                if rule.preferred.is_none()
                    && matches!(rule.key, LabelKey::Rack | LabelKey::Host)
                    && !self.label_holds(index, self.label_value(slot, rule.key))
                {
                    found(Miss::Label(index))?;
                }
            }
        }
        if wanted.dedicated || wanted.backing != PageBacking::Base || wanted.numa == NumaPolicy::Single {
            self.check_special_room(slot, found)?;
        }
        if wanted.is_social() || !self.repulsions.is_empty() {
            self.check_others(self.inventory.place_of(slot, host), found)?;
        }
        ControlFlow::Continue(())
    }

    fn check_special_room(&self, slot: u32, found: &mut impl FnMut(Miss) -> Flow) -> Flow {
        let (wanted, detail) = (&*self.wanted, &self.inventory.details[slot as usize]);
        if wanted.dedicated {
            let free = detail.threads.saturating_sub(detail.threads_reserved).saturating_sub(detail.pinned);
            if wanted.vcpus > free {
                found(Miss::DedicatedThreads)?;
            }
        }
        let pool = match wanted.backing {
            PageBacking::Base => None,
            PageBacking::Huge2Mib => Some(0),
            PageBacking::Huge1Gib => Some(1),
        };
        if pool.is_some_and(|p| wanted.memory > detail.huge[p].saturating_sub(detail.huge_used[p])) {
            found(Miss::Memory)?;
        }
        if wanted.numa == NumaPolicy::Single && self.inventory.numa_node(slot, wanted) == FLOATS {
            found(Miss::Numa)?;
        }
        ControlFlow::Continue(())
    }

    fn check_others(&self, place: Place, found: &mut impl FnMut(Miss) -> Flow) -> Flow {
        for (index, rule) in self.wanted.affinity.iter().enumerate().filter(|(_, r)| r.preferred.is_none()) {
            if self.affinity_holds(index, place) {
                continue;
            }
            found(match rule.direction {
                Direction::Together => Miss::NotTogether(index),
                Direction::Apart => Miss::NotApart(index),
            })?;
        }
        for repulsion in &self.repulsions {
            if self.repellers(*repulsion, place) > 0 {
                found(Miss::KeptAway(repulsion.group, repulsion.scope))?;
            }
        }
        for (index, rule) in self.wanted.spread.iter().enumerate().filter(|(_, r)| r.preferred.is_none()) {
            if self.skew(index, place).is_some_and(|skew| skew > rule.max_skew) {
                found(Miss::Spread(index))?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Whether a rule of affinity holds in a place, required or not. In no place it does.
    pub(crate) fn affinity_holds(&self, rule: usize, place: Place) -> bool {
        let rule = &self.wanted.affinity[rule];
        let Some(here) = place.of(rule.scope) else { return true };
        let near = match rule.vm {
            Some(vm) => self.hosts_of_peer(vm).any(|h| self.inventory.place(h).of(rule.scope) == Some(here)),
            None => rule.group.is_some_and(|group| self.members(group, rule.scope, here) > 0),
        };
        match rule.direction {
            Direction::Together => near || (rule.own && self.members_anywhere(rule.group) == 0),
            Direction::Apart => !near,
        }
    }

    /// Where another VM is.
    pub(crate) fn hosts_of_peer(&self, vm: u128) -> impl Iterator<Item = u32> {
        let itself = vm == self.request.vm.as_u128();
        let slots = (!itself).then(|| self.inventory.slots_of_vm(vm)).into_iter().flatten();
        slots.map(|slot| self.inventory.vms[slot as usize].host)
    }

    /// Members of a group in a place, without this VM.
    pub(crate) fn members(&self, group: u32, scope: Scope, here: u32) -> u32 {
        let Some(known) = self.inventory.groups.get(group) else { return 0 };
        let count = known.members.by(scope).get(here);
        if count == 0 || self.own.is_empty() {
            return count;
        }
        let own = self.own.iter().filter(|(host, profile)| {
            self.is_member(*profile, group) && self.inventory.place(*host).of(scope) == Some(here)
        });
        count.saturating_sub(own.count() as u32)
    }

    fn members_anywhere(&self, group: Option<u32>) -> u32 {
        let Some((group, known)) = group.and_then(|g| Some((g, self.inventory.groups.get(g)?))) else {
            return 0;
        };
        let own = self.own.iter().filter(|(_, profile)| self.is_member(*profile, group)).count();
        known.members.total().saturating_sub(own as u32)
    }

    fn is_member(&self, profile: u32, group: u32) -> bool {
        let groups = self.inventory.profiles.resolved(profile).map(|wanted| &wanted.groups);
        groups.is_some_and(|groups| groups.binary_search(&group).is_ok())
    }

    /// Other VMs in a place that keep this one away.
    fn repellers(&self, repulsion: Repulsion, place: Place) -> u32 {
        let Some(here) = place.of(repulsion.scope) else { return 0 };
        let Some(known) = self.inventory.groups.get(repulsion.group) else { return 0 };
        let count = known.repellers.by(repulsion.scope).get(here);
        if count == 0 || self.own.is_empty() {
            return count;
        }
        let own = self
            .own
            .iter()
            .filter(|(host, _)| self.inventory.place(*host).of(repulsion.scope) == Some(here))
            .filter_map(|(_, profile)| self.inventory.profiles.resolved(*profile))
            .flat_map(|wanted| wanted.affinity.iter())
            .filter(|rule| {
                rule.direction == Direction::Apart
                    && rule.preferred.is_none()
                    && rule.scope == repulsion.scope
                    && rule.group == Some(repulsion.group)
            });
        count.saturating_sub(own.count() as u32)
    }

    /// How many members more than the emptiest place this one would have with the VM. `None`: it is in no place.
    pub(crate) fn skew(&self, rule: usize, place: Place) -> Option<u32> {
        let ids = &self.wanted.spread[rule];
        let here = place.of(ids.scope)?;
        let with = ids.group.map_or(0, |group| self.members(group, ids.scope, here)) + 1;
        Some(with.saturating_sub(self.fewest[rule]))
    }

    /// Members in the eligible place that has the fewest.
    pub(crate) fn fewest(&self, rule: usize) -> u32 {
        self.fewest[rule]
    }

    fn fewest_of(&self, rule: usize) -> u32 {
        let ids = self.wanted.spread[rule];
        let count = |place: u32| ids.group.map_or(0, |group| self.members(group, ids.scope, place));
        if self.picks_hosts {
            let places = self.eligible_hosts().filter_map(|slot| self.inventory.place(slot).of(ids.scope));
            return places.map(count).min().unwrap_or(u32::MAX);
        }
        match ids.scope {
            Scope::Host => self.fewest_on_hosts(ids.group),
            Scope::Rack => {
                let mut fewest = u32::MAX;
                for (rack, book) in self.inventory.rack_books.iter().enumerate() {
                    if book.classes.iter().any(|(class, _)| self.is_eligible(*class)) {
                        fewest = fewest.min(count(rack as u32));
                        if fewest == 0 {
                            break;
                        }
                    }
                }
                fewest
            }
            Scope::Zone => {
                let classes = self.inventory.classes.iter().filter(|(slot, _)| self.is_eligible(*slot));
                let zones = classes.map(|(_, class)| class.key.zone).filter(|zone| *zone != NameId::NONE);
                zones.map(|zone| count(zone.0)).min().unwrap_or(u32::MAX)
            }
        }
    }

    /// Only hosts with members are looked at: where there are eligible ones without, the answer is zero.
    fn fewest_on_hosts(&self, group: Option<u32>) -> u32 {
        let classes = self.inventory.classes.iter().filter(|(slot, _)| self.is_eligible(*slot));
        let mut without: u32 = classes.map(|(_, class)| class.hosts).sum();
        if without == 0 {
            return u32::MAX;
        }
        let mut fewest = u32::MAX;
        if let Some((group, known)) = group.and_then(|g| Some((g, self.inventory.groups.get(g)?))) {
            for (host, _) in known.members.by(Scope::Host).iter() {
                let count = self.members(group, Scope::Host, host);
                if count > 0 && self.is_eligible(self.inventory.hosts[host as usize].class) {
                    without -= 1;
                    fewest = fewest.min(count);
                }
            }
        }
        if without > 0 { 0 } else { fewest }
    }

    /// Ready hosts that have what is asked of a host as such.
    fn eligible_hosts(&self) -> impl Iterator<Item = u32> {
        let rules = |slot: u32| {
            self.wanted.labels.iter().enumerate().all(|(index, rule)| {
                rule.preferred.is_some()
                    || !matches!(rule.key, LabelKey::Rack | LabelKey::Host)
                    || self.label_holds(index, self.label_value(slot, rule.key))
            })
        };
        let hosts = self.inventory.hosts.iter().enumerate();
        let ready = hosts.filter(|(_, host)| host.live && self.is_eligible(host.class));
        ready.map(|(slot, _)| slot as u32).filter(move |slot| rules(*slot))
    }
}

/// Whether a taint does not matter to a VM.
pub(crate) fn tolerates(wanted: &Wanted, key: NameId, value: NameId) -> bool {
    let is = |(k, v): &(NameId, Option<NameId>)| *k == key && v.is_none_or(|v| v == value);
    wanted.tolerations.iter().any(is)
}
