//! Plans the effects that bring a cluster to its desired state.
