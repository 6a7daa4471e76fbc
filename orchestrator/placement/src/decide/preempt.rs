//! Whose place a more important VM may take.

use drover_ids::{NodeId, VmId};

use crate::{
    Decision, Inventory, Policy, Request,
    constraints::{Miss, Question},
};

use super::{Candidate, Decider, decision_of};

/// Hosts that are worked out to the last VM before one is chosen: those that look cheapest.
const COMPARED: usize = 8;

/// VMs that a request insists on being with and that are kept on their host for it, at most: each may be one of many, and
/// all combinations are tried.
const COMPANY_MAX: usize = 3;

/// What is lost by preempting: less is better, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cost {
    highest_priority: u32,
    victims: usize,
    memory: u64,
}

struct Plan {
    cost: Cost,
    host: u32,
    victims: Vec<VmId>,
}

/// The host where the least is lost by making room for the request, with a set of victims of which none could be
/// spared. Nobody of equal or higher priority is ever one.
pub(super) fn decide(decider: &mut Decider, question: &Question<'_>, policy: &Policy) -> Option<Decision> {
    if !policy.preemption || question.wanted.priority == 0 {
        return None;
    }
    let inventory = question.inventory;
    let mut looks: Vec<(Cost, u128, u32)> = inventory
        .classes
        .iter()
        .filter(|(class, _)| question.is_eligible(*class))
        .flat_map(|(_, class)| hosts_of(class))
        .filter_map(|slot| Some((estimate(question, slot)?, inventory.hosts[slot as usize].id, slot)))
        .collect();
    looks.sort_unstable();
    let mut plans = Vec::new();
    for (_, _, slot) in looks {
        plans.extend(plan(inventory, question.request, slot));
        if plans.len() == COMPARED {
            break;
        }
    }
    let chosen =
        plans.into_iter().min_by_key(|plan: &Plan| (plan.cost, inventory.hosts[plan.host as usize].id))?;
    let score = decider.search(question, policy).score(chosen.host);
    let candidate = Candidate { score, tie: 0, host: chosen.host };
    Some(Decision { victims: chosen.victims, ..decision_of(question, candidate) })
}

fn hosts_of(class: &crate::inventory::Class) -> impl Iterator<Item = u32> {
    let rows = (0..crate::inventory::ROWS as u8).filter_map(|row| class.row(row));
    rows.flat_map(|row| {
        (0..crate::inventory::COLUMNS as u8)
            .filter(move |column| row.columns_from(0) & (1 << column) != 0)
            .flat_map(move |column| row.cell(column).iter())
    })
}

/// What preempting on a host would cost by vCPUs and memory alone; `None`: nothing would help.
fn estimate(question: &Question<'_>, slot: u32) -> Option<Cost> {
    let curable = |miss: &Miss| {
        matches!(
            miss,
            Miss::Vcpus
                | Miss::DedicatedThreads
                | Miss::Memory
                | Miss::Numa
                | Miss::NotApart(_)
                | Miss::KeptAway(..)
                | Miss::Spread(_)
        )
    };
    if !question.misses(slot).iter().all(curable) {
        return None;
    }
    let (inventory, wanted) = (question.inventory, &question.wanted);
    let host = &inventory.hosts[slot as usize];
    let mut victims: Vec<(u32, u64, u32)> = inventory
        .slots_on(slot)
        .filter_map(|vm| inventory.profiles.resolved(inventory.vms[vm as usize].profile))
        .filter(|other| other.priority < wanted.priority)
        .map(|other| (other.priority, other.base_memory(), other.cpu(host.cpu_overcommit)))
        .collect();
    // The least important first, and of those the largest.
    victims.sort_unstable_by_key(|(priority, memory, _)| (*priority, std::cmp::Reverse(*memory)));
    let (mut cpu, mut memory) = (u64::from(host.cpu_free()), host.memory_free());
    let mut cost = Cost { highest_priority: 0, victims: 0, memory: 0 };
    let wanted_cpu = u64::from(wanted.cpu(host.cpu_overcommit));
    for (priority, freed, freed_cpu) in victims {
        if cpu >= wanted_cpu && memory >= wanted.base_memory() {
            break;
        }
        cpu += u64::from(freed_cpu);
        memory += freed;
        cost.highest_priority = priority;
        cost.victims += 1;
        cost.memory += freed;
    }
    (cpu >= wanted_cpu && memory >= wanted.base_memory()).then_some(cost)
}

/// What is left on a host without some of its VMs. Those that stay lie on it as they did: held anew, they might be bound
/// to another NUMA node.
fn without(inventory: &Inventory, host: NodeId, victims: &[VmId]) -> Option<Inventory> {
    let mut rest = inventory.clone();
    victims.iter().try_for_each(|victim| rest.release(*victim, host)).ok()?;
    Some(rest)
}

/// Puts those back that the request insists on being with, if it fits beside them: as few as can be, one for each of up
/// to [`COMPANY_MAX`] rules. `None`: no such few leave room.
fn keep_company(
    scratch: &Inventory,
    request: &Request,
    slot: u32,
    lower: &[Request],
    most: usize,
) -> Option<Vec<VmId>> {
    let question = Question::of_single_hosts(scratch, request);
    if question.passes(slot) {
        return Some(Vec::new());
    }
    let lacking = alone(&question, slot);
    if lacking == 0 || most == 0 {
        return None;
    }
    let host = NodeId::from_u128(scratch.hosts[slot as usize].id);
    lower.iter().enumerate().find_map(|(index, vm)| {
        let mut with = scratch.clone();
        with.hold(host, vm).ok()?;
        if alone(&Question::of_single_hosts(&with, request), slot) >= lacking {
            return None;
        }
        let mut kept = keep_company(&with, request, slot, &lower[index + 1..], most - 1)?;
        kept.push(vm.vm);
        Some(kept)
    })
}

/// Rules by which a request must be with VMs that are not there.
fn alone(question: &Question<'_>, slot: u32) -> usize {
    question.misses(slot).iter().filter(|miss| matches!(miss, Miss::NotTogether(_))).count()
}

/// Works out who must go from a host: first everybody who may, then back comes whoever can be spared, the most
/// important and largest first.
fn plan(inventory: &Inventory, request: &Request, slot: u32) -> Option<Plan> {
    let host = NodeId::from_u128(inventory.hosts[slot as usize].id);
    let mut scratch = inventory.clone();
    let mut lower: Vec<Request> = Vec::new();
    for vm in inventory.host(host)?.vms() {
        // A VM that is being moved is in two places, and gone from neither by a word.
        let moving = inventory.vm(vm.id()).count() > 1;
        if vm.profile().priority < request.profile.priority && vm.id() != request.vm && !moving {
            scratch.release(vm.id(), host).ok()?;
            lower.push(vm.request());
        }
    }
    let passes = |scratch: &Inventory| Question::of_single_hosts(scratch, request).passes(slot);
    let kept = keep_company(&scratch, request, slot, &lower, COMPANY_MAX)?;
    lower.retain(|vm| !kept.contains(&vm.vm));
    lower.sort_by_key(|vm| {
        let profile = &vm.profile;
        std::cmp::Reverse((profile.priority, profile.demand.memory, profile.demand.vcpus, vm.vm))
    });
    let mut cost = Cost { highest_priority: 0, victims: 0, memory: 0 };
    let mut victims: Vec<VmId> = lower.iter().map(|vm| vm.vm).collect();
    for vm in lower {
        let others: Vec<VmId> = victims.iter().copied().filter(|victim| *victim != vm.vm).collect();
        if without(inventory, host, &others).is_some_and(|rest| passes(&rest)) {
            victims = others;
        } else {
            cost.highest_priority = cost.highest_priority.max(vm.profile.priority);
            cost.victims += 1;
            cost.memory += vm.profile.demand.memory.get();
        }
    }
    // Those that were put back for company may lie on other NUMA nodes in truth than they did when they were put back.
    if !passes(&without(inventory, host, &victims)?) {
        return None;
    }
    victims.sort_unstable();
    Some(Plan { cost, host: slot, victims })
}
