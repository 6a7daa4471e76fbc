//! Seeded generators of traces that have the published shape of real ones.
//!
//! The real traces may not be at hand, or not be redistributed: these make as many different traces of the same shape as
//! there are seeds. Equal seeds give equal traces, on every machine.

mod azure;
mod huawei;
mod random;

pub use azure::{AzureShape, azure};
pub use huawei::{HuaweiShape, huawei};
pub use random::{Random, Seed};
