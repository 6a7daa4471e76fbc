//! The control plane's ports: store, node agents, fence, clock.
