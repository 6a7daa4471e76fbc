//! Blocking reads and writes, for imports and copies. Disks use [`ImageQueue`](crate::ImageQueue).

use crate::{Error, Extent, Image, cluster::check, ffi::c_string};

/// Granularity at which a copy looks for zeros, and smallest hole it leaves, bytes.
const HOLE: usize = 64 << 10;
/// How much a copy moves at once: one object of the usual size.
const CHUNK: u64 = 4 << 20;

impl Image {
    /// Fills `buffer` from `offset` on. Returns how many bytes there were: fewer at the image's end.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        let answer = self.raw().read(offset, buffer);
        usize::try_from(answer).map_err(|_| self.refused_long("read the image")(answer))
    }

    /// Writes all of `bytes` at `offset`. Durable after a [flush](Self::flush).
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.done(self.raw().write(offset, bytes), bytes.len() as u64, "write the image")
    }

    /// Writes `bytes` at `offset` without what is zeros in whole pieces of 64 KiB, for an image that reads as zeros
    /// there. Returns how many bytes were written.
    pub fn write_sparse(&self, offset: u64, bytes: &[u8]) -> Result<u64, Error> {
        let mut written = 0;
        let mut at = 0;
        while at < bytes.len() {
            let zeros =
                |from: usize| bytes[from..(from + HOLE).min(bytes.len())].iter().all(|byte| *byte == 0);
            if zeros(at) {
                at += HOLE;
                continue;
            }
            let mut end = at;
            while end < bytes.len() && !zeros(end) {
                end += HOLE;
            }
            let end = end.min(bytes.len());
            self.write(offset + at as u64, &bytes[at..end])?;
            written += (end - at) as u64;
            at = end;
        }
        Ok(written)
    }

    /// Makes an extent read as zeros.
    pub fn write_zeroes(&self, extent: Extent) -> Result<(), Error> {
        let length = usize::try_from(extent.length).unwrap_or(usize::MAX);
        self.done(self.raw().write_zeroes(extent.offset, length), extent.length, "write zeros to the image")
    }

    /// Gives back the space of an extent, in whole pieces of the discard granularity.
    pub fn discard(&self, extent: Extent) -> Result<(), Error> {
        let answer = self.raw().discard(extent.offset, extent.length);
        if answer < 0 { Err(self.refused_long("discard from the image")(answer)) } else { Ok(()) }
    }

    /// Makes completed writes durable.
    pub fn flush(&self) -> Result<(), Error> {
        check(self.raw().flush()).map_err(self.refused("flush the image"))
    }

    fn done(&self, answer: i64, length: u64, operation: &'static str) -> Result<(), Error> {
        match u64::try_from(answer) {
            Ok(count) if count == length => Ok(()),
            // librbd cuts at the image's end.
            Ok(_) => Err(self.refused(operation)(-libc::ENOSPC)),
            Err(_) => Err(self.refused_long(operation)(answer)),
        }
    }

    /// Tells `visit` of every extent of `within` that holds data, in order: all of it (what a clone shares with its
    /// parent included), or what has changed since a snapshot. Answer `false` to stop.
    ///
    /// With `whole_objects` extents are whole objects, which takes the image's object map only and is fast; without it,
    /// the OSDs are asked for what is in them.
    ///
    /// # Errors
    /// [`Error::is_cancelled`] where `visit` stopped it; [`Error::is_not_found`] for the snapshot.
    pub fn for_each_extent(
        &self,
        since: Option<&str>,
        within: Extent,
        whole_objects: bool,
        visit: &mut dyn FnMut(Extent, bool) -> bool,
    ) -> Result<(), Error> {
        let since = since.map(|name| c_string("a snapshot's name", name)).transpose()?;
        let mut visit = |offset, length, exists| visit(Extent { offset, length }, exists);
        let range = (within.offset, within.length);
        check(self.raw().diff(since.as_deref(), range, whole_objects, &mut visit))
            .map_err(self.refused("look through the image"))
    }

    /// How many bytes hold data, in whole objects, what a clone shares with its parent included.
    pub fn used(&self) -> Result<u64, Error> {
        let within = Extent { offset: 0, length: self.size()? };
        let mut used = 0;
        self.for_each_extent(None, within, true, &mut |extent, exists| {
            used += if exists { extent.length } else { 0 };
            true
        })?;
        Ok(used)
    }

    /// Copies what this image holds into `target`, which must be at least as large and read as zeros; what neither
    /// holds is not touched. `progress` is told bytes of this image's size.
    ///
    /// # Errors
    /// [`Error::is_cancelled`] where `progress` stopped it: `target` then holds a part.
    pub fn copy_sparse(&self, target: &Self, progress: crate::Progress<'_>) -> Result<(), Error> {
        let size = self.size()?;
        let mut buffer = vec![0; CHUNK as usize];
        let mut at = 0;
        while at < size {
            let within = Extent { offset: at, length: CHUNK.min(size - at) };
            let mut extents = Vec::new();
            self.for_each_extent(None, within, false, &mut |extent, exists| {
                if exists {
                    extents.push(extent);
                }
                true
            })?;
            for extent in extents {
                let piece = &mut buffer[..extent.length.min(CHUNK) as usize];
                let filled = self.read(extent.offset, piece)?;
                target.write_sparse(extent.offset, &piece[..filled])?;
            }
            at += within.length;
            if !progress(at, size) {
                return Err(self.refused("copy the image")(-libc::ECANCELED));
            }
        }
        target.flush()
    }
}
