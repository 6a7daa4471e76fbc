//! Taking volumes away: the requests under way, and the proofs they brought.
//!
//! A proof for a floor stays true: no owner with an older epoch can ever acquire the volume again. Proofs are kept until
//! the VM is granted anew, when a higher floor is needed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use drover_cluster_state::{Moment, Name, Vm, VolumeFence};
use drover_ids::{OwnerEpoch, VmId, VolumeId};

use crate::{FenceId, FenceRefusal, FenceRequest, calls::pause};

/// The first pause after a refusal: a held lock is freed when its process ends, which is soon or not at all.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// The longest pause: a VM waits for it.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// After this an answer is no longer waited for.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(15);

#[derive(Debug)]
struct Book {
    floor: OwnerEpoch,
    /// Who was to be left alone. A proof says nothing of them.
    spared: BTreeSet<String>,
    proofs: BTreeMap<VolumeId, VolumeFence>,
    in_flight: Option<(FenceId, Moment)>,
    failures: u32,
    next_try: Moment,
    refusal: String,
}

/// Whether a VM's volumes are out of everybody's reach.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fencing {
    /// They are.
    Proven(Vec<VolumeFence>),
    /// Send this.
    Ask(FenceRequest),
    /// Not yet, because of this.
    Waiting(String),
}

/// The processes of a VM as clients of storage clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Clients {
    pub(crate) refused: BTreeSet<String>,
    pub(crate) spared: BTreeSet<String>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Fences {
    next: u64,
    books: BTreeMap<VmId, Book>,
}

impl Fences {
    /// How it stands with the writable volumes of a VM, against owners older than `floor`.
    pub(crate) fn pursue(&mut self, vm: &Vm, floor: OwnerEpoch, clients: Clients, now: Moment) -> Fencing {
        let book = self.books.entry(vm.id).or_insert_with(|| Book::new(floor));
        if book.floor != floor || !book.spared.is_subset(&clients.spared) {
            *book = Book::new(floor);
        }
        let missing: Vec<(VolumeId, Name)> = vm
            .spec
            .writable_volumes()
            .filter(|v| !book.proofs.contains_key(&v.volume))
            .map(|v| (v.volume, v.pool.clone()))
            .collect();
        if missing.is_empty() {
            return Fencing::Proven(book.proofs.values().cloned().collect());
        }
        if book.in_flight.is_some_and(|(_, deadline)| now < deadline) || now < book.next_try {
            return Fencing::Waiting(match book.refusal.as_str() {
                "" => "fencing its volumes".to_owned(),
                refusal => format!("a volume is not free: {refusal}"),
            });
        }
        self.next += 1;
        let id = FenceId(self.next);
        book.in_flight = Some((id, now.after(ANSWER_WAIT_MAX)));
        let Clients { refused: clients, spared } = clients;
        book.spared.extend(spared.iter().cloned());
        Fencing::Ask(FenceRequest { id, vm: vm.id, volumes: missing, min_epoch: floor, clients, spared })
    }

    /// Takes in an answer. Returns the VM; `None` if nobody waits for it any more.
    pub(crate) fn answer(
        &mut self,
        id: FenceId,
        results: Vec<(VolumeId, Result<VolumeFence, FenceRefusal>)>,
        now: Moment,
    ) -> Option<VmId> {
        let waits = |book: &Book| book.in_flight.is_some_and(|(waiting, _)| waiting == id);
        let (vm, book) = self.books.iter_mut().find(|(_, book)| waits(book))?;
        book.in_flight = None;
        book.refusal.clear();
        for (volume, result) in results {
            match result {
                // A weaker proof than asked for is none.
                Ok(proof) if proof.volume == volume && proof.epoch >= book.floor => {
                    book.proofs.insert(volume, proof);
                }
                Ok(proof) => book.refusal = format!("its floor is {} instead of {}", proof.epoch, book.floor),
                Err(refusal) => book.refusal = refusal.to_string(),
            }
        }
        if book.refusal.is_empty() {
            book.failures = 0;
        } else {
            book.failures += 1;
            book.next_try = now.after(pause(PAUSE_MIN, PAUSE_MAX, book.failures));
        }
        Some(*vm)
    }

    /// Throws away what is known of a VM.
    pub(crate) fn forget(&mut self, vm: VmId) {
        self.books.remove(&vm);
    }
}

impl Book {
    fn new(floor: OwnerEpoch) -> Self {
        Self {
            floor,
            spared: BTreeSet::new(),
            proofs: BTreeMap::new(),
            in_flight: None,
            failures: 0,
            next_try: Moment::default(),
            refusal: String::new(),
        }
    }
}
