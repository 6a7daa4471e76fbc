//! What a planner answers: moves in waves.

use std::{fmt, time::Duration};

use drover_ids::{NodeId, VmId};
use drover_units::Bytes;

use crate::MigrationCost;

/// Hosts differ by this much: thousandths of their capacity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PerMille(pub u32);

impl fmt::Display for PerMille {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} %", self.0 / 10, self.0 % 10)
    }
}

/// Something a host can run short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dimension {
    /// Processor time.
    Cpu,
    /// Guest memory.
    Memory,
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "CPU",
            Self::Memory => "memory",
        })
    }
}

/// Why a VM is to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its host is to be empty.
    Drain,
    /// It makes room on its host for another VM of the same plan, or for the request that the plan is made for.
    MakeRoom,
    /// Its host is the busier one.
    Relieve {
        /// In what most.
        dimension: Dimension,
        /// How full the source is, and how full it is afterwards.
        source: [PerMille; 2],
        /// How full the target is, and how full it is afterwards.
        target: [PerMille; 2],
    },
    /// Its host is emptied, so that what is free comes in larger pieces.
    Consolidate,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drain => f.write_str("its host is drained"),
            Self::MakeRoom => f.write_str("makes room"),
            Self::Relieve { dimension, source, target } => {
                let ([before, after], [target_before, target_after]) = (source, target);
                write!(f, "{dimension}: source {before} to {after}, target {target_before} to {target_after}")
            }
            Self::Consolidate => f.write_str("empties its host"),
        }
    }
}

/// One live migration.
#[derive(Clone, Debug, PartialEq)]
pub struct Move {
    /// Whose.
    pub vm: VmId,
    /// Where it runs.
    pub from: NodeId,
    /// Where it is to run.
    pub to: NodeId,
    /// Why.
    pub why: Why,
    /// What it is expected to take.
    pub cost: MigrationCost,
    /// What it is expected to bring, in the same unit as [`Move::price`]; zero where the move is a duty (a drain) and
    /// was not weighed.
    pub gain: CoreSeconds,
    /// What the cost comes to.
    pub price: CoreSeconds,
}

/// Work that a core does in a second: the unit in which gains are weighed against costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct CoreSeconds(pub f64);

impl fmt::Display for CoreSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} core seconds", self.0)
    }
}

/// Moves that may run at the same time. While they do, each VM counts on both ends, and no host is over its capacity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wave {
    /// The moves, in the order in which they are best started.
    pub moves: Vec<Move>,
}

/// Moves, in the order in which they must be made: a wave starts when every move of the one before has ended well.
///
/// A plan is worth what the inventory was worth that it was made on. Whoever carries it out decides each move again,
/// with `only` its target, just before it starts; where that is refused, or a move fails, the plan is dropped and made
/// anew from what is there then. One refusal is none: VMs that must be together move in one wave, and until the first of
/// them has arrived, [`Reason::NotTogether`](drover_placement::Reason::NotTogether) is all that stands against it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What runs together.
    pub waves: Vec<Wave>,
}

impl Plan {
    /// Every move, in order.
    pub fn moves(&self) -> impl Iterator<Item = &Move> {
        self.waves.iter().flat_map(|wave| &wave.moves)
    }

    /// How many moves.
    pub fn len(&self) -> usize {
        self.waves.iter().map(|wave| wave.moves.len()).sum()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes over the network.
    pub fn sent(&self) -> Bytes {
        self.moves().fold(Bytes::ZERO, |sum, mv| sum.saturating_add(mv.cost.sent))
    }

    /// From the first start to the last end: the longest of each wave, one after the other.
    pub fn time(&self) -> Duration {
        let longest = |wave: &Wave| wave.moves.iter().map(|mv| mv.cost.time).max().unwrap_or_default();
        self.waves.iter().map(longest).fold(Duration::ZERO, Duration::saturating_add)
    }
}

/// How many migrations may run at the same time. Each is at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parallelism {
    /// From one host. One sender fills a link; a second only makes both last longer, and so dirty more.
    pub per_source: u32,
    /// To one host.
    pub per_target: u32,
    /// In all.
    pub cluster: u32,
}

impl Default for Parallelism {
    fn default() -> Self {
        Self { per_source: 2, per_target: 2, cluster: 16 }
    }
}
