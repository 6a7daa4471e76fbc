//! Changes of the stored half: what a transaction asks for, and what the store says has happened.

use std::fmt;

use drover_ids::{NodeId, OperationId, OwnerEpoch, VmId, VolumeId};

use crate::{
    Blocklisting, ClusterEvent, DiskImage, Image, Name, Node, Operation, PolicyRecord, Pool, Project,
    Settings, Stored, Subject, Vm, Volume,
};

/// The store's count of accepted transactions; a record's is that of the one which last wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(u64);

impl Revision {
    /// The empty store's.
    pub const ZERO: Self = Self(0);

    /// Wraps a stored value.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }
    /// That of the transaction after this one.
    ///
    /// # Panics
    /// After 2^64 transactions, which no store takes.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("2^64 transactions are never made"))
    }
    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Kinds of resources with unique names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NameKind {
    /// VMs.
    Vm,
    /// Volumes.
    Volume,
    /// Nodes.
    Node,
}

impl fmt::Display for NameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vm => "VM",
            Self::Volume => "volume",
            Self::Node => "node",
        })
    }
}

/// That a name is taken, and by whom. A record of its own, so that two requests for it cannot both be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameRecord {
    /// Names are unique within a kind.
    pub kind: NameKind,
    /// The name.
    pub name: Name,
    /// Who has it.
    pub holder: Subject,
}

/// Where a record is stored.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A node.
    Node(NodeId),
    /// A VM.
    Vm(VmId),
    /// A volume.
    Volume(VolumeId),
    /// A boot image.
    Image(Name),
    /// A pool.
    Pool(Name),
    /// A disk image.
    DiskImage(Name),
    /// An operation.
    Operation(OperationId),
    /// A name.
    Name(NameKind, Name),
    /// A placement policy.
    Policy(Name),
    /// A project.
    Project(Name),
    /// The cluster's settings.
    Settings,
    /// What a fence has had refused: of this VM, owners older than this.
    Blocklisting(VmId, OwnerEpoch),
}

/// What is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "most records are VMs, and few are in memory at a time")]
pub enum Record {
    /// A node.
    Node(Node),
    /// A VM.
    Vm(Vm),
    /// A volume.
    Volume(Volume),
    /// A boot image.
    Image(Image),
    /// A pool.
    Pool(Pool),
    /// A disk image.
    DiskImage(DiskImage),
    /// An operation.
    Operation(Operation),
    /// A name.
    Name(NameRecord),
    /// A placement policy.
    Policy(PolicyRecord),
    /// A project.
    Project(Project),
    /// The cluster's settings.
    Settings(Settings),
    /// What a fence has had refused.
    Blocklisting(Blocklisting),
}

impl Record {
    /// Where it is stored.
    pub fn key(&self) -> Key {
        match self {
            Self::Node(node) => Key::Node(node.id),
            Self::Vm(vm) => Key::Vm(vm.id),
            Self::Volume(volume) => Key::Volume(volume.id),
            Self::Image(image) => Key::Image(image.name.clone()),
            Self::Pool(pool) => Key::Pool(pool.name.clone()),
            Self::DiskImage(image) => Key::DiskImage(image.name.clone()),
            Self::Operation(operation) => Key::Operation(operation.id),
            Self::Name(entry) => Key::Name(entry.kind, entry.name.clone()),
            Self::Policy(policy) => Key::Policy(policy.name.clone()),
            Self::Project(project) => Key::Project(project.name.clone()),
            Self::Settings(_) => Key::Settings,
            Self::Blocklisting(entry) => Key::Blocklisting(entry.vm, entry.floor),
        }
    }
}

/// What the store says has happened, in the order of its revisions.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are puts: a box would cost each of them an allocation"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A record was written.
    Put {
        /// By the transaction with this revision.
        revision: Revision,
        /// What it is now.
        record: Record,
    },
    /// A record was removed.
    Delete {
        /// By the transaction with this revision.
        revision: Revision,
        /// Which one.
        key: Key,
    },
}

impl Change {
    /// The record's place.
    pub fn key(&self) -> Key {
        match self {
            Self::Put { record, .. } => record.key(),
            Self::Delete { key, .. } => key.clone(),
        }
    }

    /// The transaction that made it.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put { revision, .. } | Self::Delete { revision, .. } => *revision,
        }
    }
}

/// What a transaction expects of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It is not there.
    Absent,
    /// It is as this transaction left it.
    Revision(Revision),
}

/// One condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The record.
    pub key: Key,
    /// What is expected of it.
    pub expect: Expect,
}

/// One write of a transaction.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are puts: a box would cost each of them an allocation"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Write a record.
    Put(Record),
    /// Remove a record.
    Delete(Key),
}

impl Write {
    /// The record's place.
    pub fn key(&self) -> Key {
        match self {
            Self::Put(record) => record.key(),
            Self::Delete(key) => key.clone(),
        }
    }

    /// What the store will say once a transaction with this write is accepted as `revision`.
    pub fn at(self, revision: Revision) -> Change {
        match self {
            Self::Put(record) => Change::Put { revision, record },
            Self::Delete(key) => Change::Delete { revision, key },
        }
    }
}

/// All or nothing: the writes happen, and the events are appended, if every guard holds.
///
/// Built with [`Txn::create`], [`Txn::update`] and [`Txn::delete`], each of which adds the guard with the write: there
/// is no way to write a record that was not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// Conditions.
    pub guards: Vec<Guard>,
    /// Writes.
    pub writes: Vec<Write>,
    /// Lines for the event log.
    pub events: Vec<ClusterEvent>,
}

impl Txn {
    /// One that does nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes a record that must not be there.
    pub fn create(&mut self, record: Record) {
        self.guards.push(Guard { key: record.key(), expect: Expect::Absent });
        self.writes.push(Write::Put(record));
    }

    /// Writes a record that must still be as it was at `seen`.
    pub fn update(&mut self, seen: Revision, record: Record) {
        self.guards.push(Guard { key: record.key(), expect: Expect::Revision(seen) });
        self.writes.push(Write::Put(record));
    }

    /// Removes a record that must still be as it was seen.
    pub fn delete<T>(&mut self, key: Key, seen: &Stored<T>) {
        self.guards.push(Guard { key: key.clone(), expect: Expect::Revision(seen.revision) });
        self.writes.push(Write::Delete(key));
    }

    /// Demands that a record is still as it was seen, without writing it.
    pub fn require<T>(&mut self, key: Key, seen: &Stored<T>) {
        self.guards.push(Guard { key, expect: Expect::Revision(seen.revision) });
    }

    /// Demands that nothing is stored there.
    pub fn require_absent(&mut self, key: Key) {
        self.guards.push(Guard { key, expect: Expect::Absent });
    }

    /// Appends a line to the event log.
    pub fn event(&mut self, event: ClusterEvent) {
        self.events.push(event);
    }

    /// Every record it looks at or writes.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.guards.iter().map(|guard| &guard.key)
    }
}
