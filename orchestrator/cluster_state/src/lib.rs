//! Desired and observed state of a cluster as plain data.
