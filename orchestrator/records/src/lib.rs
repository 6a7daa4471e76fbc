//! Stored form of cluster state.
