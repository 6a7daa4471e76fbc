//! Where a VM may run, and why not elsewhere.
