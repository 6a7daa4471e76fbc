//! Virtio memory balloon (section 5.5): a guest gives memory back to the host, and says how it is doing.
//!
//! | queue | the driver says | the host's memory |
//! |---|---|---|
//! | 0 inflate | these pages are in the balloon | given back at once |
//! | 1 deflate | I take these back | comes when they are touched |
//! | 2 statistics | so much is free, so many faults | |
//! | 3 free page hints | these are free, as far as I know | given back once the machine has checked that they were not written since |
//! | 4 free page reports | these are free, and stay so until you answer | given back before the answer |
//!
//! A page that was given back reads as zeros and counts as written, so that a migration or a snapshot that is under way
//! has zeros too. Where the driver says that free pages must hold another pattern (PAGE_POISON), hints and reports are
//! answered and nothing is given back.

mod config;
mod device;
mod hints;
mod request;
mod shared;
mod state;
mod worker;

pub use device::{BalloonConfig, VirtioBalloon};
pub use request::{GuestStatistic, GuestStatistics};
pub use shared::{Balloon, BalloonStatus};
