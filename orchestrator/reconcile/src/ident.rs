//! Ids that follow from what they are for. A planner that has been restarted derives the same ones, so that what it
//! repeats is recognised as a repetition (B8); and there is no randomness in a pure core.

use drover_ids::{MigrationId, OperationId, OwnerEpoch, VmId, VolumeId};

/// FNV-1a, 128 bits: <https://www.rfc-editor.org/rfc/rfc9923>. Ids must differ by accident only with negligible
/// probability; nobody gains anything by making two collide on purpose, since both would be their own.
struct Fnv(u128);

impl Fnv {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

    fn new(domain: &str) -> Self {
        Self(Self::OFFSET).text(domain)
    }
    fn bytes(mut self, bytes: &[u8]) -> Self {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(Self::PRIME);
        }
        self
    }
    /// Followed by its length, so that two texts in a row cannot be split differently.
    fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes()).bytes(&(text.len() as u64).to_le_bytes())
    }
    fn number(self, number: u128) -> Self {
        self.bytes(&number.to_le_bytes())
    }
}

/// The id of one command for one VM at one epoch. `about` tells apart commands that may be given several times at one
/// epoch (the migration they belong to); `attempt` counts definite refusals.
pub(crate) fn command(vm: VmId, epoch: OwnerEpoch, name: &str, about: u128, attempt: u32) -> OperationId {
    let hash = Fnv::new("command").number(vm.as_u128()).number(u128::from(epoch.get())).text(name);
    OperationId::from_u128(hash.number(about).number(u128::from(attempt)).0)
}

/// The id of the migration that was given this target epoch: a VM never has two with the same.
pub(crate) fn migration(vm: VmId, target_epoch: OwnerEpoch) -> MigrationId {
    MigrationId::from_u128(
        Fnv::new("migration").number(vm.as_u128()).number(u128::from(target_epoch.get())).0,
    )
}

/// The operation of a client's request id.
pub(crate) fn operation_of_request(request_id: &str) -> OperationId {
    OperationId::from_u128(Fnv::new("request").text(request_id).0)
}

/// The VM that a client's request id creates.
pub(crate) fn vm_of_request(request_id: &str) -> VmId {
    VmId::from_u128(Fnv::new("request vm").text(request_id).0)
}

/// A VM of a group, by its number.
pub(crate) fn vm_of_group(operation: OperationId, number: u32) -> VmId {
    VmId::from_u128(Fnv::new("group vm").number(operation.as_u128()).number(u128::from(number)).0)
}

/// The migration operation that carries out a part of another operation. A VM's right to run is never at the same
/// epoch twice, so that a second move of the same VM is another one; `attempt` counts those that failed.
pub(crate) fn operation_of_move(
    parent: OperationId,
    vm: VmId,
    epoch: OwnerEpoch,
    attempt: u32,
) -> OperationId {
    let hash = Fnv::new("move").number(parent.as_u128()).number(vm.as_u128()).number(u128::from(epoch.get()));
    OperationId::from_u128(hash.number(u128::from(attempt)).0)
}

/// The operation that balances the cluster at some time.
pub(crate) fn operation_of_balance(unix_millis: u64, vms: &[VmId]) -> OperationId {
    let hash = Fnv::new("balance").number(u128::from(unix_millis));
    OperationId::from_u128(vms.iter().fold(hash, |hash, vm| hash.number(vm.as_u128())).0)
}

/// The volume that a client's request id creates.
pub(crate) fn volume_of_request(request_id: &str) -> VolumeId {
    VolumeId::from_u128(Fnv::new("request volume").text(request_id).0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        // Test vector: the 128-bit FNV-1a hash of "foobar".
        assert_eq!(Fnv(Fnv::OFFSET).bytes(b"foobar").0, 0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18);
    }

    #[test]
    fn what_differs_has_another_id() {
        let vm = VmId::from_u128(1);
        let first = command(vm, OwnerEpoch::new(1), "StopVm", 0, 0);
        assert_eq!(first, command(vm, OwnerEpoch::new(1), "StopVm", 0, 0));
        assert_ne!(first, command(vm, OwnerEpoch::new(2), "StopVm", 0, 0));
        assert_ne!(first, command(vm, OwnerEpoch::new(1), "StopVm", 0, 1));
        assert_ne!(first, command(vm, OwnerEpoch::new(1), "EnsureVm", 0, 0));
        assert_ne!(first, command(vm, OwnerEpoch::new(1), "StopVm", 7, 0));
    }
}
