//! The PC's real-time clock with its battery-backed memory (MC146818A at ports 0x70 and 0x71).
//!
//! Guests read the date from it as they start, and some wait for it to answer. It counts along with the host's clock; a
//! guest that sets it keeps a difference. It has no interrupts: guests have better timers.

mod calendar;
mod device;
mod state;

pub use device::{Rtc, WallClock};
