//! Pure core of the node agent.
