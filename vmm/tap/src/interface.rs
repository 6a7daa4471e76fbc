//! The interface as the host sees it.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::{
    Tap, TapError, TapName,
    ffi::{self, Named, Value},
};

/// A tap interface, to set up and to remove. Everything here needs CAP_NET_ADMIN.
#[derive(Debug)]
pub struct Interface {
    name: TapName,
    /// What requests about interfaces are made through.
    socket: OwnedFd,
}

impl Interface {
    /// Makes a persistent tap, or takes the one that is there, with room for `queues` queues. It is down, in no bridge.
    ///
    /// # Errors
    /// [`TapError::Refused`].
    pub fn create(name: TapName, queues: u16) -> Result<Self, TapError> {
        let taps = Tap::open(&name, queues)?;
        if let Some(tap) = taps.first() {
            tap.set_persistent(true)?;
        }
        Self::find(name)
    }

    /// Makes a bridge, or takes the one that is there. It is down.
    ///
    /// # Errors
    /// [`TapError::Refused`].
    pub fn create_bridge(name: TapName) -> Result<Self, TapError> {
        let interface = Self::unchecked(name)?;
        match interface.request("make the bridge", Named::BridgeNew, Value::Number(0)) {
            Err(TapError::Refused { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
            other => drop(other?),
        }
        Ok(interface)
    }

    /// One that exists.
    ///
    /// # Errors
    /// [`TapError::Refused`].
    pub fn find(name: TapName) -> Result<Self, TapError> {
        let interface = Self::unchecked(name)?;
        interface.request("find", Named::GetIndex, Value::Number(0))?;
        Ok(interface)
    }

    fn unchecked(name: TapName) -> Result<Self, TapError> {
        let none = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Datagram, none, None).map_err(|source| {
            TapError::Refused { attempt: "reach", interface: name.to_string(), source: source.into() }
        })?;
        Ok(Self { name, socket })
    }

    /// Whether there is an interface of this name in this network namespace.
    pub fn exists(name: &TapName) -> bool {
        Self::find(name.clone()).is_ok()
    }

    /// Its name.
    pub fn name(&self) -> &TapName {
        &self.name
    }

    /// Lets packets through, or none.
    ///
    /// # Errors
    /// [`TapError::Refused`].
    pub fn set_up(&self, up: bool) -> Result<(), TapError> {
        let (flags, _) = self.request("look at", Named::GetFlags, Value::Flags(0))?;
        let bit = libc::IFF_UP as libc::c_short;
        let wanted = if up { flags | bit } else { flags & !bit };
        self.request("start or stop", Named::SetFlags, Value::Flags(wanted)).map(drop)
    }

    /// Sets the longest packet, in bytes without its Ethernet header.
    ///
    /// # Errors
    /// [`TapError::Refused`].
    pub fn set_mtu(&self, mtu: u16) -> Result<(), TapError> {
        self.request("set the MTU of", Named::SetMtu, Value::Number(mtu.into())).map(drop)
    }

    /// Puts it into a bridge. One that is in a bridge already is left there.
    ///
    /// # Errors
    /// [`TapError::Refused`].
    pub fn join_bridge(&self, bridge: &TapName) -> Result<(), TapError> {
        let (_, index) = self.request("find", Named::GetIndex, Value::Number(0))?;
        let joined = ffi::named(self.socket.as_fd(), Named::BridgeAdd, Some(bridge), Value::Number(index));
        match joined {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(()),
            Err(source) => Err(TapError::Refused {
                attempt: "put the tap into the bridge",
                interface: bridge.to_string(),
                source,
            }),
        }
    }

    /// Removes it once no queue of it is open.
    ///
    /// # Errors
    /// [`TapError::Refused`].
    pub fn delete(self, queues: u16) -> Result<(), TapError> {
        // As many as it was made for: the kernel compares the mode.
        let taps = Tap::open(&self.name, queues.min(2))?;
        taps.iter().try_for_each(|tap| tap.set_persistent(false))
    }

    fn request(
        &self,
        attempt: &'static str,
        request: Named,
        value: Value,
    ) -> Result<(libc::c_short, libc::c_int), TapError> {
        ffi::named(self.socket.as_fd(), request, Some(&self.name), value)
            .map(|(_, flags, number)| (flags, number))
            .map_err(|source| TapError::Refused { attempt, interface: self.name.to_string(), source })
    }
}
