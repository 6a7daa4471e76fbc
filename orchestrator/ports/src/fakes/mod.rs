//! In-memory stand-ins for the tests of those who call the ports.

mod store;

pub use store::MemoryStore;
