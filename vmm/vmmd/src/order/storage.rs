//! Where a disk's bytes are, and what happens when they are out of reach.

use std::{fmt, path::PathBuf, time::Duration};

use drover_wire::vm::v1 as wire;

use super::fields::{InvalidField, invalid};

/// Longest name of an image, a pool or a user, bytes: Ceph's own names are shorter, and nothing else is one.
const NAME_BYTES_MAX: usize = 255;
/// Longest list of monitors, bytes: seven monitors with two addresses each take about 500.
const MON_HOSTS_BYTES_MAX: usize = 4096;

/// Requests that have waited this long make a stall, unless the VM says otherwise: longer than the loss of one storage
/// host takes to be noticed by a cluster with tight timers (4 s), shorter than people's patience.
const STALL_DEADLINE: Duration = Duration::from_secs(5);
/// A busy cluster answers within this: anything shorter would call load a stall.
const STALL_DEADLINE_MS_MIN: u32 = 500;
/// One hour: beyond that nobody is waiting any more.
const STALL_DEADLINE_MS_MAX: u32 = 3_600_000;

/// Where a disk's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DiskPlace {
    /// A raw file on this host.
    File(PathBuf),
    /// An image in a Ceph cluster.
    Rbd(RbdImage),
}

impl fmt::Display for DiskPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Rbd(RbdImage { access, image }) => {
                write!(f, "{}/{}/{image}", access.ceph_pool, access.namespace)
            }
        }
    }
}

/// An image, and the way to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RbdImage {
    pub(crate) access: RbdAccess,
    pub(crate) image: String,
}

/// The way to a pool. Disks with the same one share a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RbdAccess {
    pub(crate) mon_hosts: String,
    pub(crate) ceph_pool: String,
    pub(crate) namespace: String,
    pub(crate) user: String,
    pub(crate) key: Key,
}

/// A secret that shows itself nowhere.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key(String);

impl Key {
    /// For the library that presents it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// What becomes of a VM whose storage does not answer. Its requests wait in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StallPolicy {
    pub(crate) deadline: Duration,
    pub(crate) action: StallAction,
}

/// See [`StallPolicy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StallAction {
    /// It is told, and nothing else.
    Wait,
    /// The vCPUs stand until the storage answers again.
    Pause,
    /// The VM ends, to be restarted where the storage can be reached.
    Stop,
}

impl TryFrom<wire::StallPolicy> for StallPolicy {
    type Error = InvalidField;

    fn try_from(message: wire::StallPolicy) -> Result<Self, InvalidField> {
        let action = match wire::StallAction::try_from(message.action) {
            Ok(wire::StallAction::Unspecified) => StallAction::Wait,
            Ok(wire::StallAction::Pause) => StallAction::Pause,
            Ok(wire::StallAction::Stop) => StallAction::Stop,
            Err(_) => return Err(invalid("config.stall.action", message.action, "an action of StallAction")),
        };
        let deadline = match message.deadline_ms {
            0 => STALL_DEADLINE,
            ms @ STALL_DEADLINE_MS_MIN..=STALL_DEADLINE_MS_MAX => Duration::from_millis(ms.into()),
            ms => {
                let expected =
                    format!("{STALL_DEADLINE_MS_MIN} to {STALL_DEADLINE_MS_MAX}, or 0 for the default");
                return Err(invalid("config.stall.deadline_ms", ms, &expected));
            }
        };
        Ok(Self { deadline, action })
    }
}

pub(super) fn rbd_image(disk: &str, message: wire::RbdImage) -> Result<RbdImage, InvalidField> {
    let field = |name: &str| format!("{disk}.rbd.{name}");
    let access = message
        .access
        .ok_or_else(|| invalid(&field("access"), "is missing", "the way to the image's cluster"))?;
    if access.mon_hosts.is_empty()
        || access.mon_hosts.len() > MON_HOSTS_BYTES_MAX
        || access.mon_hosts.contains(char::is_control)
    {
        let expected = format!("monitors as in ceph.conf, 1 to {MON_HOSTS_BYTES_MAX} bytes");
        return Err(invalid(&field("access.mon_hosts"), access.mon_hosts, &expected));
    }
    if access.key.is_empty() || !access.key.bytes().all(|byte| byte.is_ascii_graphic()) {
        // What it holds is not repeated.
        return Err(invalid(&field("access.key"), "not a key", "the user's key, base64"));
    }
    let namespace = match access.namespace.as_str() {
        "" => String::new(),
        _ => name(&field("access.namespace"), access.namespace)?,
    };
    Ok(RbdImage {
        image: name(&field("image"), message.image)?,
        access: RbdAccess {
            mon_hosts: access.mon_hosts,
            ceph_pool: name(&field("access.ceph_pool"), access.ceph_pool)?,
            namespace,
            user: name(&field("access.user"), access.user)?,
            key: Key(access.key),
        },
    })
}

/// A name as Ceph takes it: '/' and '@' separate names there.
fn name(field: &str, text: String) -> Result<String, InvalidField> {
    let valid = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'@');
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(valid) {
        let expected = format!("1 to {NAME_BYTES_MAX} printable characters without '/' and '@'");
        return Err(invalid(field, text, &expected));
    }
    Ok(text)
}
