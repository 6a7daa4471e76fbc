//! Packets between a descriptor and guest RAM, without a copy in between.
#![allow(unsafe_code, reason = "the kernel reads and writes guest RAM by address")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use smallvec::SmallVec;

use crate::Segment;

/// Pieces of RAM in one call that need no allocation: 64 KiB in the buffers of 1.5 KiB that drivers post, and some.
const USUAL: usize = 64;
/// The kernel's UIO_MAXIOV; one is kept to notice that a packet is too long.
const MOST: usize = 1024 - 1;

/// What came out of a descriptor of which each read is one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A packet of this many bytes.
    Packet(usize),
    /// A packet that did not fit, of which the rest is lost.
    TooLong,
}

/// Reads one packet straight into guest RAM and marks the pages that it went to. Of more than 1023 segments the first
/// are used.
///
/// # Errors
/// The kernel's; [`io::ErrorKind::WouldBlock`] where a non-blocking descriptor has no packet.
pub fn receive<'a>(
    fd: BorrowedFd<'_>,
    segments: impl Iterator<Item = &'a Segment> + Clone,
) -> io::Result<Received> {
    let mut iovecs: SmallVec<[libc::iovec; USUAL]> =
        segments.clone().take(MOST).map(Segment::iovec).collect();
    let room: usize = iovecs.iter().map(|iovec| iovec.iov_len).sum();
    let mut beyond = [0_u8; 1];
    iovecs.push(libc::iovec { iov_base: beyond.as_mut_ptr().cast(), iov_len: 1 });
    // SAFETY: each address but the last is of a range of guest RAM that stays mapped while its segment lives, which is
    // borrowed here; nobody holds a reference into guest RAM. The last is of a local that outlives the call.
    let count = unsafe { libc::readv(fd.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as libc::c_int) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    let mut left = count;
    for segment in segments {
        if left == 0 {
            break;
        }
        let here = left.min(segment.len());
        segment.mark_dirty_up_to(here);
        left -= here;
    }
    Ok(if count > room { Received::TooLong } else { Received::Packet(count) })
}

/// Writes one packet straight from guest RAM.
///
/// # Errors
/// The kernel's; [`io::ErrorKind::InvalidInput`] for more than 1023 segments.
pub fn send<'a>(fd: BorrowedFd<'_>, segments: impl Iterator<Item = &'a Segment>) -> io::Result<usize> {
    let iovecs: SmallVec<[libc::iovec; USUAL]> = segments.map(Segment::iovec).collect();
    if iovecs.len() > MOST {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: each address is of a range of guest RAM that stays mapped while its segment lives. The iterator borrows
    // them from its maker for longer than this call, which only reads.
    let count = unsafe { libc::writev(fd.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as libc::c_int) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::os::{fd::AsFd as _, unix::net::UnixDatagram};

    use drover_units::{Bytes, Gpa};

    use crate::{DirtyTracker, GuestMemory};

    use super::*;

    #[test]
    fn packets_go_to_and_from_ram_and_are_marked() {
        let memory = GuestMemory::anonymous(Bytes::kib(64));
        let mut tracker = DirtyTracker::new(&memory);
        let (here, there) = UnixDatagram::pair().unwrap();
        there.set_nonblocking(true).unwrap();
        let segments =
            [memory.segment(Gpa::new(0x1ffe), 4).unwrap(), memory.segment(Gpa::new(0x5000), 4).unwrap()];
        here.send(b"abcdef").unwrap();
        assert_eq!(receive(there.as_fd(), segments.iter()).unwrap(), Received::Packet(6));
        assert_eq!(tracker.take().iter().map(Gpa::get).collect::<Vec<_>>(), [0x1000, 0x2000, 0x5000]);
        here.send(b"ab").unwrap();
        assert_eq!(receive(there.as_fd(), segments.iter()).unwrap(), Received::Packet(2));
        assert_eq!(tracker.take().iter().map(Gpa::get).collect::<Vec<_>>(), [0x1000], "no more than that");
        let again = receive(there.as_fd(), segments.iter()).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::WouldBlock);
        here.send(b"12345678").unwrap();
        assert_eq!(receive(there.as_fd(), segments.iter()).unwrap(), Received::Packet(8));
        here.send(b"123456789").unwrap();
        assert_eq!(receive(there.as_fd(), segments.iter()).unwrap(), Received::TooLong);
        assert_eq!(send(there.as_fd(), segments.iter()).unwrap(), 8);
        let mut packet = [0; 16];
        let count = here.recv(&mut packet).unwrap();
        assert_eq!(&packet[..count], b"12345678");
    }
}
