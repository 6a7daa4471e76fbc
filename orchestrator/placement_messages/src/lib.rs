//! `drover.placement.v1` messages as domain types and back.
//!
//! Hosts' facts, VMs' constraints, policies and explanations are sent by agents and clients and stored by the control
//! plane in one form. Both checks meet here, so that what is stored is exactly what could have been sent: each list has
//! a limit (B9), each text is a name, and a value that only a newer version knows is an error that names its field (B10).
#![forbid(unsafe_code)]

mod constraints;
mod explanation;
mod fields;
mod host;
mod policy;

pub use constraints::{constraints_from, constraints_message};
pub use explanation::{explanation_from, explanation_message};
pub use fields::MessageError;
pub use host::{facts_from, facts_message, settings_from, settings_message, taint_from, taint_message};
pub use policy::{
    cluster_settings_from, cluster_settings_message, limits_from, limits_message, policy_from, policy_message,
};
