//! Pools of disks: volumes, their snapshots and clones, and the images they are cloned from.
//!
//! [`StoragePool`] is what the control plane knows of storage. Its implementations are [`DirStorage`], raw files in a
//! directory, and [`RbdStorage`], images in a Ceph pool; [`conformance`] is what both must do. [`Qcow2`] reads the one
//! image format besides raw bytes that people have.
//!
//! ```text
//!  empty volume --+
//!  image ---------+-- clone --> volume --> snapshot --+-- clone --> volume
//!  file --> begin, write, finish --> image            +-- rollback
//! ```
//!
//! What this crate does not do: remember anything (the control plane's records do), wait for anybody, or run in async
//! threads.
#![forbid(unsafe_code)]

pub mod conformance;
mod copy;
mod dir;
mod error;
mod pool;
mod qcow2;
mod rbd;

pub use copy::{copy, write_sparse};
pub use dir::DirStorage;
pub use error::{Cause, StorageError};
pub use pool::{
    Capabilities, DiskReader, DiskWriter, Observer, PoolUsage, PreparedSnapshot, Result, SnapshotInfo,
    Source, StoragePool, Target, Unobserved, VolumeUsage,
};
pub use qcow2::{Qcow2, Qcow2Error};
pub use rbd::{RbdStorage, image_name, volume_name};
