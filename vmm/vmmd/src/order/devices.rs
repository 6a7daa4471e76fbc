//! The virtio devices beside disks and network interfaces.

use std::path::PathBuf;

use drover_wire::vm::v1 as wire;

use super::{
    fields::{InvalidField, invalid},
    vm_config::absolute,
};

/// CIDs that a guest may have (virtio 1.2, 5.10.4).
const CID_MIN: u64 = 3;
const CID_MAX: u64 = u32::MAX as u64 - 1;
/// Longest path of a unix socket, with room for `_` and a port.
const SOCKET_PATH_BYTES_MAX: usize = 107 - 11;

/// Which there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DevicesConfig {
    pub(crate) rng: bool,
    pub(crate) console: bool,
    pub(crate) balloon: Option<BalloonDevice>,
    pub(crate) vsock: Option<VsockDevice>,
}

/// A balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BalloonDevice {
    pub(crate) deflate_on_oom: bool,
}

/// A socket device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VsockDevice {
    pub(crate) cid: u64,
    pub(crate) path: PathBuf,
}

impl TryFrom<wire::VirtioDevices> for DevicesConfig {
    type Error = InvalidField;

    fn try_from(message: wire::VirtioDevices) -> Result<Self, InvalidField> {
        let wire::VirtioDevices { rng, console, balloon, vsock } = message;
        let balloon = balloon.map(|balloon| BalloonDevice { deflate_on_oom: !balloon.keep_on_oom });
        Ok(Self { rng, console, balloon, vsock: vsock.map(TryInto::try_into).transpose()? })
    }
}

impl TryFrom<wire::VsockDevice> for VsockDevice {
    type Error = InvalidField;

    fn try_from(message: wire::VsockDevice) -> Result<Self, InvalidField> {
        if !(CID_MIN..=CID_MAX).contains(&message.cid) {
            let expected = format!("{CID_MIN} to {CID_MAX}");
            return Err(invalid("config.devices.vsock.cid", message.cid, &expected));
        }
        let field = "config.devices.vsock.socket_path";
        if message.socket_path.len() > SOCKET_PATH_BYTES_MAX {
            let expected = format!("a path of at most {SOCKET_PATH_BYTES_MAX} bytes");
            return Err(invalid(field, message.socket_path, &expected));
        }
        Ok(Self { cid: message.cid, path: absolute(field, message.socket_path)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_that_cannot_be_are_refused_by_field() {
        let check = |cid, path: &str, expect: Option<&str>| {
            let message = wire::VsockDevice { cid, socket_path: path.to_owned() };
            let error = VsockDevice::try_from(message).err().map(|error| error.to_string());
            match (&error, expect) {
                (None, None) => {}
                (Some(error), Some(field)) if error.contains(field) => {}
                _ => panic!("{cid} {path}: {error:?}"),
            }
        };
        check(3, "/run/vm.vsock", None);
        check(2, "/run/vm.vsock", Some("vsock.cid"));
        check(u64::from(u32::MAX), "/run/vm.vsock", Some("vsock.cid"));
        check(3, "vm.vsock", Some("vsock.socket_path"));
        check(3, &format!("/{}", "x".repeat(96)), Some("vsock.socket_path"));
    }
}
