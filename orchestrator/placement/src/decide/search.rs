//! Finding the best host without looking at all of them.
//!
//! A class of hosts is looked at if it has what the request asks for; a row of its grid, if its best cell could win; a
//! cell, if its score could; and of a cell only the first host that will do, because the others are as good. Nothing is
//! sampled: a cell that is skipped has no room or cannot win, so an empty answer is exact.

use crate::{
    Policy, Ties,
    constraints::Question,
    containers::mix,
    inventory::{Class, ROW_EMPTY},
};

use super::{
    preferences::{Weighing, class_bonus, host_bonus},
    score::{ScoreTable, TableKey},
};

/// Tables kept: each at most 32 KiB, and a cluster has some dozen flavours on some capacities.
const TABLES: usize = 512;
/// Places in which a table may be: what hashes to the same place finds another.
const WAYS: usize = 8;

/// Hosts that are weighed one by one where terms count that differ within a cell (lifetime, load, preferences about
/// racks and hosts): the best so many by everything else.
pub(crate) const SHORTLIST: usize = 64;

/// Score tables of what has been asked before, each in one of the places from where its key hashes to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tables {
    places: Vec<Option<Box<ScoreTable>>>,
    /// Whose turn it is to make room where all places are taken.
    turn: usize,
}

impl Tables {
    fn get(&mut self, key: TableKey, class: &Class) -> &ScoreTable {
        if self.places.is_empty() {
            self.places.resize_with(TABLES, || None);
        }
        let first = key.hash() as usize % (TABLES - WAYS);
        let ways = &self.places[first..first + WAYS];
        let known = ways.iter().position(|place| place.as_ref().is_some_and(|table| table.key == key));
        let way = known.or_else(|| ways.iter().position(Option::is_none)).unwrap_or_else(|| {
            self.turn = (self.turn + 1) % WAYS;
            self.turn
        });
        let place = &mut self.places[first + way];
        if known.is_none() {
            *place = None;
        }
        place.get_or_insert_with(|| Box::new(ScoreTable::new(key, class)))
    }
}

/// A host that will do. Larger is better: a higher score, or a smaller key in a tie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) score: i64,
    pub(crate) tie: u128,
    pub(crate) host: u32,
}

impl Candidate {
    fn beats(&self, other: &Self) -> bool {
        (self.score, other.tie) > (other.score, self.tie)
    }
}

/// The best so far, best first, at most so many.
#[derive(Debug)]
struct Best {
    most: usize,
    found: Vec<Candidate>,
}

impl Best {
    /// The score that a newcomer must at least have.
    fn bar(&self) -> i64 {
        if self.found.len() < self.most { i64::MIN } else { self.found.last().map_or(i64::MIN, |c| c.score) }
    }

    fn offer(&mut self, candidate: Candidate) {
        let place = self.found.partition_point(|known| known.beats(&candidate));
        if place < self.most && self.found.get(place).is_none_or(|known| known.host != candidate.host) {
            self.found.insert(place, candidate);
            self.found.truncate(self.most);
        }
    }
}

/// One search.
pub(crate) struct Search<'a> {
    pub(crate) question: &'a Question<'a>,
    pub(crate) policy: &'a Policy,
    pub(crate) tables: &'a mut Tables,
}

impl Search<'_> {
    /// The best host.
    pub(crate) fn best(&mut self) -> Option<Candidate> {
        self.ranked(1).into_iter().next()
    }

    /// The best hosts, best first.
    pub(crate) fn ranked(&mut self, most: usize) -> Vec<Candidate> {
        let weighing = Weighing::new(self.question, self.policy);
        if let Some(hosts) = self.question.confined_to() {
            return self.ranked_among(&weighing, hosts, most);
        }
        let shortlist = if weighing.each_host { most.max(SHORTLIST) } else { most };
        let mut best = Best { most: shortlist, found: Vec::new() };
        for (slot, class) in self.question.inventory.classes.iter() {
            if self.question.is_eligible(slot) && self.question.zone_passes(class.key.zone) {
                let bonus = class_bonus(self.question, &weighing, class);
                self.search_class(class, bonus, &mut best);
            }
        }
        if !weighing.each_host {
            return best.found;
        }
        let mut found = best.found;
        self.add_companions(&weighing, &mut found);
        for candidate in &mut found {
            candidate.score += host_bonus(self.question, &weighing, candidate.host);
        }
        let mut ranked = Best { most, found: Vec::new() };
        found.into_iter().for_each(|candidate| ranked.offer(candidate));
        ranked.found
    }

    /// The best of some hosts, each looked at.
    fn ranked_among(&mut self, weighing: &Weighing, hosts: Vec<u32>, most: usize) -> Vec<Candidate> {
        let mut best = Best { most, found: Vec::new() };
        for host in hosts.into_iter().filter(|host| self.question.passes(*host)) {
            let bonus = if weighing.each_host { host_bonus(self.question, weighing, host) } else { 0 };
            let score = self.score_without_bonus(weighing, host) + bonus;
            best.offer(Candidate { score, tie: tie(self.question, self.policy, host), host });
        }
        best.found
    }

    fn search_class(&mut self, class: &Class, bonus: i64, best: &mut Best) {
        let wanted = &self.question.wanted;
        let (cpu, memory) = (wanted.cpu(class.key.cpu_overcommit), wanted.base_memory());
        if wanted.oversized || cpu > class.key.cpu || memory > class.key.memory {
            return;
        }
        let scale = class.scale;
        let (first_row, first_column) = (scale.row(cpu), scale.column(memory));
        let exact_row = scale.row_floor(first_row) >= cpu;
        let exact_column = scale.column_floor(first_column) >= memory;
        let key = TableKey::new(class, (first_row, first_column), &self.policy.weights);
        let table = self.tables.get(key, class);
        for row_index in &table.order {
            if i64::from(table.best[usize::from(*row_index)]) + bonus < best.bar() {
                break;
            }
            if class.rows_in_use & (1 << row_index) == 0 {
                continue;
            }
            let Some(row) = class.row(*row_index) else { continue };
            let empty = *row_index == ROW_EMPTY;
            let mut columns = row.columns_from(if empty { 0 } else { first_column });
            while columns != 0 {
                let column = columns.trailing_zeros() as u8;
                columns &= columns - 1;
                let score = i64::from(table.at(*row_index, column)) + bonus;
                if score < best.bar() {
                    continue;
                }
                let sure = empty
                    || ((*row_index > first_row || exact_row) && (column > first_column || exact_column));
                search_cell(self.question, self.policy, row.cell(column), sure, score, best);
            }
        }
    }

    /// Hosts whose VMs the request would rather be with are weighed even if others are better by all else.
    fn add_companions(&mut self, weighing: &Weighing, found: &mut Vec<Candidate>) {
        let mut known: Vec<u32> = found.iter().map(|candidate| candidate.host).collect();
        known.sort_unstable();
        for host in weighing.companions(self.question) {
            if known.binary_search(&host).is_err() && self.question.passes(host) {
                let score = self.score_without_bonus(weighing, host);
                found.push(Candidate { score, tie: tie(self.question, self.policy, host), host });
            }
        }
    }

    /// What the room of a ready host and its class are worth.
    fn score_without_bonus(&mut self, weighing: &Weighing, host: u32) -> i64 {
        let slot = &self.question.inventory.hosts[host as usize];
        let Some(class) = self.question.inventory.classes.get(slot.class) else { return 0 };
        let wanted = &self.question.wanted;
        let (cpu, memory) = (wanted.cpu(class.key.cpu_overcommit), wanted.base_memory());
        let cell = (class.scale.row(cpu), class.scale.column(memory));
        let room = super::score::Room::of_cell(class, cell, slot.row, slot.column);
        room.score(&self.policy.weights) + class_bonus(self.question, weighing, class)
    }

    /// The score of one host that will do.
    pub(crate) fn score(&mut self, host: u32) -> i64 {
        let weighing = Weighing::new(self.question, self.policy);
        let bonus = if weighing.each_host { host_bonus(self.question, &weighing, host) } else { 0 };
        self.score_without_bonus(&weighing, host) + bonus
    }
}

fn tie(question: &Question<'_>, policy: &Policy, host: u32) -> u128 {
    let id = question.inventory.hosts[host as usize].id;
    match policy.ties {
        Ties::SmallestId => id,
        Ties::Seeded(_) => u128::from(mix(id ^ u128::from(turn(question, policy)))),
    }
}

/// Where a seeded tie begins.
fn turn(question: &Question<'_>, policy: &Policy) -> u64 {
    match policy.ties {
        Ties::SmallestId => 0,
        Ties::Seeded(seed) => mix(question.request.vm.as_u128() ^ u128::from(mix(u128::from(seed)))),
    }
}

fn search_cell(
    question: &Question<'_>,
    policy: &Policy,
    cell: &crate::containers::HostSet,
    sure: bool,
    score: i64,
    best: &mut Best,
) {
    let mut left = best.most;
    for host in cell.iter_from(turn(question, policy)) {
        if (sure || question.has_room(host)) && question.rest_passes(host) {
            best.offer(Candidate { score, tie: tie(question, policy, host), host });
            left -= 1;
            if left == 0 {
                return;
            }
        }
    }
}
