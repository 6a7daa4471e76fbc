//! What this host's libraries allow a VM, for the agent that asks before it reports its node.

use drover_rbd::Library;

/// One `name: value` per line. A name that is missing is something that this host cannot do.
pub(crate) fn report() -> String {
    match Library::load() {
        Ok(library) => format!("librbd: {}\n", library.librbd_version()),
        Err(error) => {
            // For whoever runs this by hand.
            eprintln!("{error}");
            String::new()
        }
    }
}
