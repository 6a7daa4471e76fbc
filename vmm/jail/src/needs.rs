//! What only some VMs need.

/// Calls beside those that the roles of all VMs have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Disks in Ceph.
    pub(crate) rbd: bool,
    /// Sockets to the host.
    pub(crate) vsock: bool,
}

impl Needs {
    /// Every combination, each at its [`index`](Self::index).
    pub(crate) const ALL: [Self; 4] = [
        Self { rbd: false, vsock: false },
        Self { rbd: true, vsock: false },
        Self { rbd: false, vsock: true },
        Self { rbd: true, vsock: true },
    ];

    /// Its place among all of them.
    pub(crate) fn index(self) -> usize {
        usize::from(self.rbd) + 2 * usize::from(self.vsock)
    }
}
