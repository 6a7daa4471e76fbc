//! One inventory, many threads.

use std::sync::{
    PoisonError, RwLock,
    atomic::{AtomicU64, Ordering},
};

use crate::{Conflict, Decider, Decision, Inventory, Policy, Refusal, Request};

/// Tries of one placement. Each failed one means that somebody else's succeeded, so this many in a row are bad luck that the
/// caller should hear of.
pub const TRIES_MAX: u32 = 16;

/// Why a VM has not been placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// There is no host for it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Others were faster, each time.
    #[error("gave up after {tries} tries that others overtook")]
    Overtaken {
        /// How many.
        tries: u32,
        /// What the last one met.
        #[source]
        last: Conflict,
    },
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Decisions that were carried out.
    pub committed: u64,
    /// Decisions that no longer held when they were to be carried out.
    pub conflicts: u64,
    /// Requests that no host could take.
    pub refused: u64,
}

/// An inventory that many threads decide on at once and carry out one at a time: deciding reads, committing checks again
/// and writes.
#[derive(Debug, Default)]
pub struct Shared {
    inventory: RwLock<Inventory>,
    committed: AtomicU64,
    conflicts: AtomicU64,
    refused: AtomicU64,
}

impl Shared {
    /// Shares an inventory.
    pub fn new(inventory: Inventory) -> Self {
        Self { inventory: RwLock::new(inventory), ..Self::default() }
    }

    /// The inventory as it is now; later changes do not show in it.
    pub fn snapshot(&self) -> Inventory {
        self.read(Inventory::clone)
    }

    /// Looks at the inventory.
    pub fn read<T>(&self, look: impl FnOnce(&Inventory) -> T) -> T {
        look(&self.inventory.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the inventory.
    pub fn write<T>(&self, change: impl FnOnce(&mut Inventory) -> T) -> T {
        change(&mut self.inventory.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Decides, carries out, and decides again if others were faster; at most [`TRIES_MAX`] times. Each thread has a
    /// [`Decider`] of its own.
    ///
    /// # Errors
    /// A refusal, or the last of too many conflicts.
    pub fn place(
        &self,
        decider: &mut Decider,
        request: &Request,
        policy: &Policy,
    ) -> Result<Decision, PlaceError> {
        self.retried(
            policy,
            |inventory| {
                let decision = decider.decide(inventory, request, policy);
                decision.map(|decision| vec![decision])
            },
            |inventory, decisions| match decisions {
                [decision] => inventory.commit(request, decision),
                _ => Ok(()),
            },
        )
        .map(|mut decisions| decisions.remove(0))
    }

    /// The same for all of several VMs, or none.
    ///
    /// # Errors
    /// As [`Shared::place`].
    pub fn place_group(
        &self,
        decider: &mut Decider,
        requests: &[Request],
        policy: &Policy,
    ) -> Result<Vec<Decision>, PlaceError> {
        self.retried(
            policy,
            |inventory| decider.decide_group(inventory, requests, policy),
            |inventory, decisions| inventory.commit_group(requests, decisions),
        )
    }

    fn retried(
        &self,
        policy: &Policy,
        mut decide: impl FnMut(&Inventory) -> Result<Vec<Decision>, Refusal>,
        commit: impl Fn(&mut Inventory, &[Decision]) -> Result<(), Conflict>,
    ) -> Result<Vec<Decision>, PlaceError> {
        let refused = |refusal: &Refusal| {
            self.refused.fetch_add(1, Ordering::Relaxed);
            refusal.clone()
        };
        let mut tries = 1;
        loop {
            let outcome = if policy.host_failures > 0 {
                // Two placements that each leave enough room may together leave too little.
                self.write(|inventory| {
                    let decisions = decide(inventory).map_err(|refusal| refused(&refusal))?;
                    Ok::<_, Refusal>(commit(inventory, &decisions).map(|()| decisions))
                })?
            } else {
                let decisions = self.read(&mut decide).map_err(|refusal| refused(&refusal))?;
                self.write(|inventory| commit(inventory, &decisions)).map(|()| decisions)
            };
            match outcome {
                Ok(decisions) => {
                    self.committed.fetch_add(decisions.len() as u64, Ordering::Relaxed);
                    return Ok(decisions);
                }
                Err(last) => {
                    self.conflicts.fetch_add(1, Ordering::Relaxed);
                    if tries == TRIES_MAX {
                        return Err(PlaceError::Overtaken { tries, last });
                    }
                    tries += 1;
                }
            }
        }
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        Counts {
            committed: self.committed.load(Ordering::Relaxed),
            conflicts: self.conflicts.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}
