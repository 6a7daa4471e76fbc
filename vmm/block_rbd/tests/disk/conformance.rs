//! The contract of every backend.

use std::sync::Arc;

use drover_block::{Access, Backend, conformance};
use drover_rbd::Image;
use drover_test_ceph_cluster::CephOptions;
use drover_units::Bytes;

use crate::support::{Ceph, dynamic};

struct TestImage {
    ceph: Arc<Ceph>,
    name: String,
}

impl conformance::TestImage for TestImage {
    fn open(&self, access: Access) -> Arc<dyn Backend> {
        dynamic(self.ceph.open(&self.name, access))
    }
    fn durable(&self) -> Option<Vec<u8>> {
        // Only the loss of all OSDs could tell.
        None
    }
    fn grow(&self, size: Bytes) {
        // As the control plane does: through the owner, who holds the lock.
        let image = Image::open(&self.ceph.admin, &self.name, drover_rbd::Access::ReadWrite).unwrap();
        image.resize(size.get(), false, &mut |_, _| true).unwrap();
    }
}

#[test]
fn the_rbd_backend_conforms() {
    let Some(ceph) = Ceph::start(&CephOptions::default()).map(Arc::new) else { return };
    conformance::run(&|size| Box::new(TestImage { ceph: Arc::clone(&ceph), name: ceph.image(size) }));
}
