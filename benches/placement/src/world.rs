//! A data centre to decide in.

use std::{num::NonZeroU32, sync::Arc};

use anyhow::Context as _;
use drover_ids::{NodeId, VmId};
use drover_placement::{
    Affinity, Decider, Demand, Direction, HostSpec, Inventory, LabelMatch, LabelRule, Peers, Policy, Profile,
    Request, Scope, Spread, Strength, Taint, TaintEffect, Topology,
};
use drover_placement_trace::generate::{Random, Seed};
use drover_units::{Bytes, VcpuCount};

/// VMs on a host, the mean: they take about three quarters of it.
pub(crate) const VMS_PER_HOST: usize = 10;
/// Members of a group whose VMs are kept apart and spread.
const GROUP: u32 = 10;
const ZONES: usize = 5;
const HOSTS_IN_RACK: usize = 40;

/// Cores, GiB, and the share of requests.
const FLAVOURS: [(u32, u64, f64); 4] = [(2, 8, 0.4), (4, 16, 0.3), (8, 32, 0.2), (16, 64, 0.1)];

/// What a request asks for besides room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing.
    Plain,
    /// Hosts with a label.
    Labelled,
    /// Hosts that reach a pool and a network.
    Reaching,
    /// Apart from its group by host, and the group spread over zones with a skew of one.
    Social,
}

/// Kinds of the VMs that run already.
const MIX: [(Kind, f64); 4] =
    [(Kind::Plain, 0.6), (Kind::Labelled, 0.15), (Kind::Reaching, 0.1), (Kind::Social, 0.15)];

#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) inventory: Inventory,
    pub(crate) decider: Decider,
    pub(crate) policy: Policy,
    pub(crate) placed: Vec<VmId>,
    random: Random,
    next_vm: u32,
    /// One profile for each flavour and kind; social ones have a profile for each group and flavour.
    shared: Vec<(Kind, usize, Arc<Profile>)>,
    next_member: u32,
    group: Vec<Arc<Profile>>,
}

impl World {
    /// Empty hosts.
    pub(crate) fn of_hosts(hosts: usize) -> anyhow::Result<Self> {
        let mut inventory = Inventory::new();
        for index in 0..hosts {
            inventory.add_host(&host(index)).with_context(|| format!("host {index}"))?;
        }
        Ok(Self {
            inventory,
            decider: Decider::new(),
            policy: Policy::named("pack")?,
            placed: Vec::new(),
            random: Random::new(Seed(1)),
            next_vm: 0,
            shared: Vec::new(),
            next_member: 0,
            group: Vec::new(),
        })
    }

    /// Hosts with so many VMs of mixed constraints, a fifth of which have been replaced since.
    pub(crate) fn running(hosts: usize, vms: usize) -> anyhow::Result<Self> {
        let mut world = Self::of_hosts(hosts)?;
        for _ in 0..vms {
            let request = world.draw_mixed();
            world.place(&request)?;
        }
        world.release_some(vms / 5)?;
        for _ in 0..vms / 5 {
            let request = world.draw_mixed();
            world.place(&request)?;
        }
        Ok(world)
    }

    /// Decides and commits.
    pub(crate) fn place(&mut self, request: &Request) -> anyhow::Result<()> {
        let decision = self.decider.decide(&self.inventory, request, &self.policy)?;
        self.inventory.commit(request, &decision)?;
        self.placed.push(request.vm);
        Ok(())
    }

    /// Takes so many VMs away, whichever.
    pub(crate) fn release_some(&mut self, count: usize) -> anyhow::Result<()> {
        for _ in 0..count.min(self.placed.len()) {
            let index = self.random.below(self.placed.len());
            let vm = self.placed.swap_remove(index);
            self.inventory.remove_vm(vm)?;
        }
        Ok(())
    }

    /// Drops what only the bench needs, so that what is left is the inventory's.
    pub(crate) fn forget_own_notes(&mut self) {
        self.placed = Vec::new();
        self.shared = Vec::new();
        self.group = Vec::new();
        self.decider = Decider::new();
    }

    fn draw_mixed(&mut self) -> Request {
        let (kind, _) = MIX[self.random.weighted(MIX.iter().map(|(_, share)| *share))];
        self.draw(kind)
    }

    /// A request that has not been made before.
    pub(crate) fn draw(&mut self, kind: Kind) -> Request {
        let flavour = self.random.weighted(FLAVOURS.iter().map(|(_, _, share)| *share));
        let profile =
            if kind == Kind::Social { self.next_of_group(flavour) } else { self.profile(kind, flavour) };
        self.request(profile)
    }

    /// A request with a profile of the caller's.
    pub(crate) fn request(&mut self, profile: Arc<Profile>) -> Request {
        self.next_vm += 1;
        let mut request = Request::new(VmId::from_u128(u128::from(self.next_vm)), profile);
        request.name = format!("vm-{:07}", self.next_vm);
        request
    }

    fn profile(&mut self, kind: Kind, flavour: usize) -> Arc<Profile> {
        let known = self.shared.iter().find(|(k, f, _)| (*k, *f) == (kind, flavour));
        if let Some((_, _, profile)) = known {
            return profile.clone();
        }
        let mut profile = Profile::new(demand(flavour));
        match kind {
            Kind::Labelled => profile.labels.push(LabelRule {
                key: "disk".to_owned(),
                matches: LabelMatch::In(["nvme".to_owned()].into()),
                strength: Strength::Required,
            }),
            Kind::Reaching => {
                profile.pools.insert("fast".to_owned());
                profile.networks.insert("storage".to_owned());
            }
            Kind::Plain | Kind::Social => {}
        }
        let profile = Arc::new(profile);
        self.shared.push((kind, flavour, profile.clone()));
        profile
    }

    /// The next member of the present group; a new group after [`GROUP`] members.
    fn next_of_group(&mut self, flavour: usize) -> Arc<Profile> {
        if self.next_member.is_multiple_of(GROUP) {
            let name = format!("group-{:06}", self.next_member / GROUP);
            self.group =
                (0..FLAVOURS.len()).map(|flavour| Arc::new(social(&name, demand(flavour)))).collect();
        }
        self.next_member += 1;
        self.group[flavour].clone()
    }
}

fn demand(flavour: usize) -> Demand {
    let (cores, gib, _) = FLAVOURS[flavour];
    Demand::new(VcpuCount::new(cores), Bytes::gib(gib))
}

fn social(group: &str, demand: Demand) -> Profile {
    let mut profile = Profile::new(demand);
    profile.groups.insert(group.to_owned());
    profile.affinity.push(apart(group));
    profile.spread.push(Spread {
        group: group.to_owned(),
        scope: Scope::Zone,
        max_skew: NonZeroU32::MIN,
        strength: Strength::Required,
    });
    profile
}

/// No two of a group on one host.
pub(crate) fn apart(group: &str) -> Affinity {
    Affinity {
        peers: Peers::Group(group.to_owned()),
        direction: Direction::Apart,
        scope: Scope::Host,
        strength: Strength::Required,
    }
}

pub(crate) fn node_id(index: usize) -> NodeId {
    NodeId::from_u128(index as u128 + 1)
}

/// One in five is larger, every other one has fast disks, three of four reach the fast pool, one in fifty is tainted.
fn host(index: usize) -> HostSpec {
    let (threads, gib) = if index.is_multiple_of(5) { (96, 384) } else { (64, 256) };
    let mut host =
        HostSpec::new(node_id(index), format!("host-{index:06}"), VcpuCount::new(threads), Bytes::gib(gib));
    let rack = index / HOSTS_IN_RACK;
    host.topology = Topology { zone: format!("zone-{}", rack % ZONES), rack: format!("rack-{rack:04}") };
    let disk = if index.is_multiple_of(2) { "nvme" } else { "sata" };
    host.labels.insert("disk".to_owned(), disk.to_owned());
    host.pools.insert("main".to_owned());
    if !index.is_multiple_of(4) {
        host.pools.insert("fast".to_owned());
    }
    host.networks.extend(["tenant".to_owned(), "storage".to_owned()]);
    if index % 50 == 49 {
        let (key, value) = ("dedicated".to_owned(), "batch".to_owned());
        host.taints.insert(Taint { key, value, effect: TaintEffect::NoSchedule });
    }
    host
}
