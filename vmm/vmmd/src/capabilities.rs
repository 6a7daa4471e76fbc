//! What this host's libraries allow a VM, for the agent that asks before it reports its node.

/// One `name: value` per line. A name that is missing is something that this host cannot do.
pub(crate) fn report() -> String {
    String::new()
}
