//! A suspended VM in a file: its devices and vCPUs, and its RAM without the pages that are zero.
//!
//! ```text
//! paused machine --SuspendWriter::write--> a file without a header --[volumes are released]--> commit: a suspended VM
//!
//! SuspendFile::open --claim(newer epoch)--> [volumes are taken] --load--> RAM comes as it is touched
//!                                                    |
//!                                     consume: the file is spent, the guest may run
//! ```
//!
//! A VM must not run twice, nor with the RAM of one time and the disks of another:
//!
//! - The file gets its header only once the volumes have been given up: without it, the VM starts from its disks.
//! - Who resumes first *claims* the file, under a newer epoch than its own and than any claim in it, and only then takes
//!   the volumes. [`SuspendFile::is_last_owner`] tells from a volume's last owner whether anybody ran the VM in between.
//! - The file is spent before the guest runs. A claimant that dies before that has run nothing, and the file can be
//!   claimed again; one that dies after it leaves a file that is refused.
//!
//! Nothing here makes, renames or removes a file: a process that may open none by name works on one that it was handed.
//!
//! What is read is untrusted (invariant B10): header, index and states have checksums that are verified when the file is
//! opened, every piece of RAM has one that is verified when it is loaded, and nothing is allocated before its length has
//! been compared with the file's. Formats are versioned; the states inside are envelopes of drover-saved-state.
//!
//! Not here: pausing, devices, volumes (drover-machine), who may resume (the orchestrator), encryption.
#![forbid(unsafe_code)]

mod error;
mod file;
mod format;
mod load;
mod write;

pub use error::{LoadError, ReadError, WriteError};
pub use file::SuspendFile;
pub use format::Identity;
pub use load::LoadProgress;
pub use write::{Contents, SuspendWriter, Written};
