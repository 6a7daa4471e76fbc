//! In-memory stand-ins for the tests of those who call the ports.

mod agents;
mod clock;
mod fence;
mod store;

pub use agents::FakeNodeAgents;
pub use clock::ManualClock;
pub use fence::FakeFence;
pub use store::{MemoryStore, MemoryWatch};
