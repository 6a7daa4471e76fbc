//! The data of a discard or a write of zeros (section 5.2.6): up to [`SEGMENTS_MAX`] ranges of sectors.

use drover_units::Sectors;

/// Most ranges of one request. Linux merges neighbours itself; this lets it send a file's pieces together.
pub(super) const SEGMENTS_MAX: usize = 16;
/// Length of one: sector, number of sectors, flags.
pub(super) const SEGMENT_LEN: usize = 16;
/// The storage may be given back.
const UNMAP: u32 = 1;

/// One range of sectors: where it starts, and how many there are.
pub(super) type Range = (Sectors, Sectors);
/// The ranges of a request. One list goes from request to request, so that none allocates.
pub(super) type Ranges = Vec<Range>;

/// What the data asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// These ranges; with whether the storage may be given back, in all of them.
    Ranges(Ranges, bool),
    /// Flags that mean nothing, or nothing here, or not the same for all: the request is unsupported (5.2.6.2).
    Flags,
    /// No whole number of ranges, none, or too many.
    Length(usize),
}

/// Parses the data of a discard into `ranges`. It may not have the unmap flag (5.2.6.2): giving back is what it is for.
pub(super) fn discard(data: &[u8], ranges: Ranges) -> Parsed {
    match parse(data, ranges) {
        Parsed::Ranges(_, true) => Parsed::Flags,
        parsed => parsed,
    }
}

/// Parses the data of a write of zeros into `ranges`.
pub(super) fn write_zeroes(data: &[u8], ranges: Ranges) -> Parsed {
    parse(data, ranges)
}

fn parse(data: &[u8], mut ranges: Ranges) -> Parsed {
    let (segments, rest) = data.as_chunks::<SEGMENT_LEN>();
    if !rest.is_empty() || segments.is_empty() || segments.len() > SEGMENTS_MAX {
        return Parsed::Length(data.len());
    }
    ranges.clear();
    let mut unmap = None;
    for segment in segments {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = *segment;
        let flags = u32::from_le_bytes(flags);
        let this = flags & UNMAP != 0;
        // A driver that mixes both in one request gets neither: Linux never does.
        if flags & !UNMAP != 0 || unmap.is_some_and(|unmap| unmap != this) {
            return Parsed::Flags;
        }
        unmap = Some(this);
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        ranges.push((Sectors::new(sector), Sectors::new(sectors.into())));
    }
    Parsed::Ranges(ranges, unmap.unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    }

    fn ranges(of: &[(u64, u64)], unmap: bool) -> Parsed {
        let ranges = of.iter().map(|(sector, sectors)| (Sectors::new(*sector), Sectors::new(*sectors)));
        Parsed::Ranges(ranges.collect(), unmap)
    }

    fn check(data: &[Vec<u8>], as_discard: Parsed, as_zeroes: Parsed) {
        let data = data.concat();
        assert_eq!(discard(&data, vec![(Sectors::ZERO, Sectors::ZERO)]), as_discard, "discard {data:x?}");
        assert_eq!(write_zeroes(&data, Vec::new()), as_zeroes, "write zeros {data:x?}");
    }

    #[test]
    fn every_range_is_read() {
        check(&[segment(7, 9, 0)], ranges(&[(7, 9)], false), ranges(&[(7, 9)], false));
        let two = [segment(u64::MAX, u32::MAX, 0), segment(0, 0, 0)];
        let both = ranges(&[(u64::MAX, u32::MAX.into()), (0, 0)], false);
        check(&two, both.clone(), both);
        let most = vec![segment(1, 1, 0); SEGMENTS_MAX];
        let all = ranges(&[(1, 1); SEGMENTS_MAX], false);
        check(&most, all.clone(), all);
    }

    #[test]
    fn flags_that_mean_nothing_are_unsupported() {
        check(&[segment(7, 9, 1)], Parsed::Flags, ranges(&[(7, 9)], true));
        check(&[segment(7, 9, 2)], Parsed::Flags, Parsed::Flags);
        check(&[segment(7, 9, 1 << 31)], Parsed::Flags, Parsed::Flags);
        check(&[segment(7, 9, 1), segment(7, 9, 0)], Parsed::Flags, Parsed::Flags);
    }

    #[test]
    fn data_that_is_not_whole_ranges_is_refused() {
        check(&[], Parsed::Length(0), Parsed::Length(0));
        check(&[vec![0; 15]], Parsed::Length(15), Parsed::Length(15));
        check(&[segment(1, 1, 0), vec![0]], Parsed::Length(17), Parsed::Length(17));
        let many = vec![segment(1, 1, 0); SEGMENTS_MAX + 1];
        check(&many, Parsed::Length(272), Parsed::Length(272));
    }
}
