//! Keys: where each record is stored.

use std::{fmt, str::FromStr};

use drover_cluster_state::{Key, Name, NameKind};
use drover_ids::OwnerEpoch;

use crate::RecordError;

/// Where events are stored.
pub const EVENT_PREFIX: &str = "event/";

/// Longest id of an event, characters.
const EVENT_ID_LEN_MAX: usize = 64;

/// A key of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredKey {
    /// Of a record of cluster state.
    Record(Key),
    /// Of an event: whatever its writer chose. Events are ordered by the revision that wrote them.
    Event(String),
}

/// The text of a record's key.
pub fn key_text(key: &Key) -> String {
    match key {
        Key::Node(id) => format!("node/{id}"),
        Key::Vm(id) => format!("vm/{id}"),
        Key::Volume(id) => format!("volume/{id}"),
        Key::Image(name) => format!("image/{name}"),
        Key::Pool(name) => format!("pool/{name}"),
        Key::DiskImage(name) => format!("disk-image/{name}"),
        Key::Operation(id) => format!("operation/{id}"),
        Key::Name(kind, name) => format!("name/{}/{name}", kind_text(*kind)),
        Key::Policy(name) => format!("policy/{name}"),
        Key::Project(name) => format!("project/{name}"),
        // The only one of its kind.
        Key::Settings => "settings/cluster".to_owned(),
        Key::Blocklisting(vm, floor) => format!("blocklisting/{vm}/{floor}"),
    }
}

/// The text of an event's key. `id` is unique, and made of what a name is made of.
pub fn event_key(id: &str) -> String {
    format!("{EVENT_PREFIX}{id}")
}

fn kind_text(kind: NameKind) -> &'static str {
    match kind {
        NameKind::Vm => "vm",
        NameKind::Volume => "volume",
        NameKind::Node => "node",
    }
}

impl fmt::Display for StoredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(key) => f.write_str(&key_text(key)),
            Self::Event(id) => f.write_str(&event_key(id)),
        }
    }
}

impl FromStr for StoredKey {
    type Err = RecordError;

    fn from_str(text: &str) -> Result<Self, RecordError> {
        let unknown = || RecordError::UnknownKey { key: text.chars().take(96).collect() };
        let (kind, rest) = text.split_once('/').ok_or_else(unknown)?;
        let name = |text: &str| Name::new(text).map_err(|_| unknown());
        let key = match kind {
            "node" => Key::Node(rest.parse().map_err(|_| unknown())?),
            "vm" => Key::Vm(rest.parse().map_err(|_| unknown())?),
            "volume" => Key::Volume(rest.parse().map_err(|_| unknown())?),
            "operation" => Key::Operation(rest.parse().map_err(|_| unknown())?),
            "image" => Key::Image(name(rest)?),
            "pool" => Key::Pool(name(rest)?),
            "disk-image" => Key::DiskImage(name(rest)?),
            "policy" => Key::Policy(name(rest)?),
            "project" => Key::Project(name(rest)?),
            "settings" if rest == "cluster" => Key::Settings,
            "name" => match rest.split_once('/') {
                Some(("vm", rest)) => Key::Name(NameKind::Vm, name(rest)?),
                Some(("volume", rest)) => Key::Name(NameKind::Volume, name(rest)?),
                Some(("node", rest)) => Key::Name(NameKind::Node, name(rest)?),
                _ => return Err(unknown()),
            },
            "blocklisting" => match rest.split_once('/') {
                Some((vm, floor)) => Key::Blocklisting(
                    vm.parse().map_err(|_| unknown())?,
                    OwnerEpoch::new(floor.parse().map_err(|_| unknown())?),
                ),
                None => return Err(unknown()),
            },
            "event" if (1..=EVENT_ID_LEN_MAX).contains(&rest.len()) => {
                return Ok(Self::Event(rest.to_owned()));
            }
            _ => return Err(unknown()),
        };
        // An id has several spellings, a record one place.
        if key_text(&key) == text { Ok(Self::Record(key)) } else { Err(unknown()) }
    }
}
