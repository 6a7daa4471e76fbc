//! The system calls. Numbers are of linux/if_tun.h and linux/sockios.h.
#![allow(unsafe_code, reason = "ioctls of tap devices, which no crate at hand offers safely")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use crate::TapName;

pub(crate) const IFF_TAP: libc::c_short = 0x0002;
pub(crate) const IFF_MULTI_QUEUE: libc::c_short = 0x0100;
pub(crate) const IFF_NO_PI: libc::c_short = 0x1000;
pub(crate) const IFF_VNET_HDR: libc::c_short = 0x4000;
pub(crate) const IFF_ATTACH_QUEUE: libc::c_short = 0x0200;
pub(crate) const IFF_DETACH_QUEUE: libc::c_short = 0x0400;

/// A request whose argument is a number.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Number {
    /// TUNSETPERSIST
    Persist = 0x4004_54cb,
    /// TUNSETOFFLOAD
    Offload = 0x4004_54d0,
}

/// A request whose argument is the address of an int.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(crate) enum Pointed {
    /// TUNSETVNETHDRSZ
    HeaderLen = 0x4004_54d8,
}

/// A request whose argument is a `struct ifreq`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(crate) enum Named {
    /// TUNSETIFF
    SetInterface = 0x4004_54ca,
    /// TUNGETIFF
    GetInterface = 0x8004_54d2,
    /// TUNSETQUEUE
    SetQueue = 0x4004_54d9,
    /// SIOCGIFFLAGS
    GetFlags = 0x8913,
    /// SIOCSIFFLAGS
    SetFlags = 0x8914,
    /// SIOCSIFMTU
    SetMtu = 0x8922,
    /// SIOCGIFINDEX
    GetIndex = 0x8933,
    /// SIOCBRADDBR
    BridgeNew = 0x89a0,
    /// SIOCBRADDIF
    BridgeAdd = 0x89a2,
}

/// What a [`Named`] request says or hears besides the name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value {
    Flags(libc::c_short),
    Number(libc::c_int),
}

pub(crate) fn number(fd: BorrowedFd<'_>, request: Number, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: these requests take their argument by value.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request as libc::c_ulong, value) })
}

pub(crate) fn pointed(fd: BorrowedFd<'_>, request: Pointed, value: libc::c_int) -> io::Result<()> {
    // SAFETY: these requests read one int at the address, which lives until the call returns.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request as libc::c_ulong, &raw const value) })
}

/// Returns the name and the flags (or the first bytes of what else there is, as flags) of the answer.
pub(crate) fn named(
    fd: BorrowedFd<'_>,
    request: Named,
    name: Option<&TapName>,
    value: Value,
) -> io::Result<(String, libc::c_short, libc::c_int)> {
    // SAFETY: all-zero is a value of this structure of integers and unions of them.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    if let Some(name) = name {
        for (to, from) in ifreq.ifr_name.iter_mut().zip(name.as_str().bytes()) {
            *to = from as libc::c_char;
        }
    }
    match value {
        Value::Flags(flags) => ifreq.ifr_ifru.ifru_flags = flags,
        Value::Number(number) => ifreq.ifr_ifru.ifru_ifindex = number,
    }
    // SAFETY: these requests read and write one ifreq at the address, which lives until the call returns.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request as libc::c_ulong, &raw mut ifreq) })?;
    let name = ifreq.ifr_name.iter().take_while(|c| **c != 0).map(|c| *c as u8 as char).collect();
    // SAFETY: every bit pattern is a value of this member, and the whole union was initialised above.
    let flags = unsafe { ifreq.ifr_ifru.ifru_flags };
    // SAFETY: the same.
    let number = unsafe { ifreq.ifr_ifru.ifru_ifindex };
    Ok((name, flags, number))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
