//! TestVm, TestCluster and what they stand on.
