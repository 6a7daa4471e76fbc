//! Queues of a tap interface.

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::{
    TapName,
    ffi::{
        self, IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, Named,
        Number, Pointed, Value,
    },
};

/// Length of what is in front of every packet: `virtio_net_hdr_v1`.
pub const HEADER_LEN: usize = 12;

/// Most queues of one interface: the kernel's MAX_TAP_QUEUES.
pub const QUEUES_MAX: u16 = 256;

const CLONE_DEVICE: &str = "/dev/net/tun";

/// Why a tap cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// The kernel refused.
    #[error("cannot {attempt} {interface}")]
    Refused {
        /// What was tried.
        attempt: &'static str,
        /// With which interface.
        interface: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A descriptor that is something else.
    #[error("the descriptor handed in is not a tap: {0}")]
    NotATap(&'static str),
}

/// What a guest, or the host for it, takes over from whoever sends it packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums that have not been computed. The others need it.
    pub checksum: bool,
    /// TCP over IPv4 that has not been cut into packets.
    pub tso4: bool,
    /// TCP over IPv6.
    pub tso6: bool,
    /// The same with congestion marks.
    pub ecn: bool,
    /// UDP over IPv4 and IPv6 that has not been cut into datagrams (Linux 6.2).
    pub uso: bool,
}

impl Offloads {
    fn bits(self) -> libc::c_ulong {
        // TUN_F_CSUM, TSO4, TSO6, TSO_ECN, USO4 and USO6.
        let bits =
            [(self.checksum, 1), (self.tso4, 2), (self.tso6, 4), (self.ecn, 8), (self.uso, 0x20 | 0x40)];
        bits.into_iter().filter_map(|(on, bit)| on.then_some(bit)).sum()
    }
}

/// One queue of a tap interface. Its descriptor is non-blocking.
#[derive(Debug)]
pub struct Tap {
    queue: OwnedFd,
    name: String,
    multi_queue: bool,
}

impl Tap {
    /// Opens `queues` queues of an interface. One that does not exist is made and lives as long as they do, which
    /// needs CAP_NET_ADMIN; one that does must have been made for as many: one queue, or several.
    ///
    /// # Errors
    /// [`TapError::Refused`].
    pub fn open(name: &TapName, queues: u16) -> Result<Vec<Self>, TapError> {
        let multi_queue = queues > 1;
        let mode = if multi_queue { IFF_MULTI_QUEUE } else { 0 };
        let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | mode;
        let open = |_| {
            let refused =
                |attempt| move |source| TapError::Refused { attempt, interface: name.to_string(), source };
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(CLONE_DEVICE)
                .map_err(refused("open /dev/net/tun for"))?;
            ffi::named(file.as_fd(), Named::SetInterface, Some(name), Value::Flags(flags))
                .map_err(refused("open a queue of"))?;
            let tap = Self { queue: file.into(), name: name.to_string(), multi_queue };
            tap.set_header_len()?;
            Ok(tap)
        };
        (0..queues).map(open).collect()
    }

    /// A queue that someone with more rights has opened. Its packets must have headers, and no packet information.
    ///
    /// # Errors
    /// [`TapError::NotATap`], or [`TapError::Refused`].
    pub fn from_fd(queue: OwnedFd) -> Result<Self, TapError> {
        let (name, flags, _) = ffi::named(queue.as_fd(), Named::GetInterface, None, Value::Flags(0))
            .map_err(|_| TapError::NotATap("it does not name an interface"))?;
        if flags & IFF_TAP == 0 {
            return Err(TapError::NotATap("its interface is a tun"));
        }
        if flags & IFF_NO_PI == 0 {
            return Err(TapError::NotATap("its packets carry packet information"));
        }
        if flags & IFF_VNET_HDR == 0 {
            return Err(TapError::NotATap("its packets carry no virtio header"));
        }
        let tap = Self { queue, name, multi_queue: flags & IFF_MULTI_QUEUE != 0 };
        let blocking = |source: nix::Error| TapError::Refused {
            attempt: "make non-blocking a queue of",
            interface: tap.name.clone(),
            source: source.into(),
        };
        let mode = fcntl(&tap.queue, FcntlArg::F_GETFL).map(OFlag::from_bits_truncate).map_err(blocking)?;
        fcntl(&tap.queue, FcntlArg::F_SETFL(mode | OFlag::O_NONBLOCK)).map_err(blocking)?;
        tap.set_header_len()?;
        Ok(tap)
    }

    /// The interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel may leave to this interface's guest at most, and takes over from it. Resets what is in force.
    ///
    /// # Errors
    /// [`TapError::Refused`] where not even checksums can be left out.
    pub fn probe_offloads(&self) -> Result<Offloads, TapError> {
        let mut most = Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: true };
        if self.set_offloads(most).is_err() {
            most.uso = false;
            self.set_offloads(most)?;
        }
        self.set_offloads(Offloads::default())?;
        Ok(most)
    }

    /// Says what the kernel may leave to the guest in packets for it. Of the whole interface, whatever queue it is
    /// called on.
    ///
    /// # Errors
    /// [`TapError::Refused`].
    pub fn set_offloads(&self, offloads: Offloads) -> Result<(), TapError> {
        ffi::number(self.as_fd(), Number::Offload, offloads.bits())
            .map_err(self.refused("set the offloads of"))
    }

    /// Whether the kernel puts packets into this queue. Those of a queue that is taken out are lost, and no packet can
    /// be sent through it. Does nothing for an interface of one queue.
    ///
    /// # Errors
    /// [`TapError::Refused`], also where the queue is as wanted already.
    pub fn set_attached(&self, attached: bool) -> Result<(), TapError> {
        if !self.multi_queue {
            return Ok(());
        }
        let flags = if attached { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
        ffi::named(self.as_fd(), Named::SetQueue, None, Value::Flags(flags))
            .map(drop)
            .map_err(self.refused("attach or detach a queue of"))
    }

    /// Keeps the interface when its last queue is closed, or lets it go then.
    pub(crate) fn set_persistent(&self, persistent: bool) -> Result<(), TapError> {
        ffi::number(self.as_fd(), Number::Persist, persistent.into()).map_err(self.refused("keep or let go"))
    }

    fn set_header_len(&self) -> Result<(), TapError> {
        ffi::pointed(self.as_fd(), Pointed::HeaderLen, HEADER_LEN as libc::c_int)
            .map_err(self.refused("set the header's length of"))
    }

    fn refused(&self, attempt: &'static str) -> impl FnOnce(io::Error) -> TapError {
        move |source| TapError::Refused { attempt, interface: self.name.clone(), source }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

impl From<Tap> for OwnedFd {
    /// For another process, which takes it by [`Tap::from_fd`].
    fn from(tap: Tap) -> Self {
        tap.queue
    }
}
