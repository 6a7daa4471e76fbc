//! Who proves that nobody writes a disk any more.

use drover_cluster_state::VolumeFence;
use drover_ids::VolumeId;
use drover_reconcile::{FenceRefusal, FenceRequest};

/// The storage, as far as it refuses owners (B7).
///
/// **Contract.** `Ok` for a volume is proof, now and for ever: no process holds it, nothing of an older owner's I/O
/// is under way, and every owner with an epoch below the request's is refused from now on. In doubt it is `Err`.
/// Idempotent. It never waits for a holder to let go: the planner asks again.
pub trait Fence: Send + Sync + 'static {
    /// Fences each volume of the request, and says for each what became of it, in the request's order.
    fn fence(
        &self,
        request: FenceRequest,
    ) -> impl Future<Output = Vec<(VolumeId, Result<VolumeFence, FenceRefusal>)>> + Send;
}
