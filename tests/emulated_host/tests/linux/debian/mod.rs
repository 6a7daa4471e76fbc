//! A whole Debian, built from the recipe in `guest-images/linux`, with systemd and cloud-init.
//!
//! Each test is one boot, or two, in an emulated host of its own, and can be run alone.

mod disks;
mod ends;
mod image;
mod network;
mod seeded;
mod session;
mod system;
