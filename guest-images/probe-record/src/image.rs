//! Judging a disk image after the fact: is every acknowledged write there, and was there only ever one writer?

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::stamp::{BLOCK_BYTES, Block, Life, Slots, Stamp, StampError};

/// Findings of each kind that a report keeps; the rest is counted.
const FINDINGS_KEPT: usize = 64;

/// What a probe's console has promised about its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The slots it writes.
    pub slots: Slots,
    /// The highest acknowledged sequence number, 0 for none.
    pub acked_max: u64,
}

/// A list of findings with a bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings<T> {
    /// How many there are.
    pub count: u64,
    /// The first of them.
    pub first: Vec<T>,
}

impl<T> Default for Findings<T> {
    fn default() -> Self {
        Findings { count: 0, first: Vec::new() }
    }
}

impl<T> Findings<T> {
    fn push(&mut self, finding: T) {
        self.count += 1;
        if self.first.len() < FINDINGS_KEPT {
            self.first.push(finding);
        }
    }
}

/// A slot that lacks its last acknowledged write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostWrite {
    /// The slot.
    pub slot: u64,
    /// The acknowledged number.
    pub acked_seq: u64,
    /// What is there instead; `None` for an unwritten or corrupt block.
    pub found_seq: Option<u64>,
}

/// A block that is neither a stamp nor zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CorruptBlock {
    /// The slot.
    pub slot: u64,
    /// What is wrong.
    pub error: StampError,
}

/// A write that shows two writers at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoubleWrite {
    /// The write of the life that should have been over.
    pub stray: Stamp,
    /// A life that ran beside it: one with the same number, or a newer one that had found only lower sequence numbers.
    pub beside: Life,
}

/// The verdict on an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageReport {
    /// Slots looked at.
    pub slots: u64,
    /// Slots that hold a stamp.
    pub blocks: u64,
    /// The highest sequence number.
    pub max_seq: u64,
    /// Lives that have left stamps, oldest first.
    pub lives: Vec<Life>,
    /// Acknowledged writes that are not there. A corrupt block whose slot had an acknowledged write counts here too.
    pub lost: Findings<LostWrite>,
    /// Damaged blocks.
    pub corrupt: Findings<CorruptBlock>,
    /// Signs of a second writer.
    pub double_writes: Findings<DoubleWrite>,
}

impl ImageReport {
    /// Nothing lost, nothing corrupt, one writer.
    pub fn is_clean(&self) -> bool {
        self.lost.count == 0 && self.corrupt.count == 0 && self.double_writes.count == 0
    }
}

impl fmt::Display for ImageReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} slots written up to sequence {} by {} lives: {} lost, {} corrupt, {} double writes",
            self.blocks,
            self.slots,
            self.max_seq,
            self.lives.len(),
            self.lost.count,
            self.corrupt.count,
            self.double_writes.count
        )?;
        for lost in &self.lost.first {
            let LostWrite { slot, acked_seq, found_seq } = lost;
            write!(f, "\n  slot {slot}: sequence {acked_seq} was acknowledged, ")?;
            match found_seq {
                Some(seq) => write!(f, "{seq} is there")?,
                None => write!(f, "no stamp is there")?,
            }
        }
        for CorruptBlock { slot, error } in &self.corrupt.first {
            write!(f, "\n  slot {slot}: {error}")?;
        }
        for DoubleWrite { stray, beside } in &self.double_writes.first {
            write!(
                f,
                "\n  slot {}: sequence {} of incarnation {:x} (life {}) was written beside incarnation {:x} (life {}, which found up to {})",
                stray.slot,
                stray.seq,
                stray.life.incarnation,
                stray.life.number,
                beside.incarnation,
                beside.number,
                beside.adopted_max
            )?;
        }
        Ok(())
    }
}

/// Judges the image file at `path`. It may be shorter than its slots where the end was never written.
///
/// # Errors
/// The file cannot be opened or read.
pub fn verify_image(path: &Path, claim: &Claim) -> io::Result<ImageReport> {
    verify_blocks(io::BufReader::with_capacity(64 * BLOCK_BYTES, File::open(path)?), claim)
}

/// Judges the blocks of an image from the first slot on.
///
/// # Errors
/// The image cannot be read.
pub fn verify_blocks(mut image: impl Read, claim: &Claim) -> io::Result<ImageReport> {
    let mut report = ImageReport { slots: claim.slots.count, ..ImageReport::default() };
    let mut writers = Writers::default();
    for slot in 0..claim.slots.count {
        let content = claim.slots.read(slot, &next_block(&mut image)?);
        match content {
            Ok(None) => {}
            Ok(Some(stamp)) => {
                report.blocks += 1;
                report.max_seq = report.max_seq.max(stamp.seq);
                writers.note(stamp);
            }
            Err(error) => report.corrupt.push(CorruptBlock { slot, error }),
        }
        let found_seq = content.ok().flatten().map(|stamp| stamp.seq);
        let acked_seq = claim.slots.last_in_slot(slot, claim.acked_max);
        if let Some(acked_seq) = acked_seq
            && found_seq.is_none_or(|seq| seq < acked_seq)
        {
            report.lost.push(LostWrite { slot, acked_seq, found_seq });
        }
    }
    report.double_writes = writers.double_writes();
    report.lives = writers.highest.into_keys().collect();
    Ok(report)
}

/// The next block; zeroes from the image's end on.
fn next_block(image: &mut impl Read) -> io::Result<Block> {
    let mut block = [0; BLOCK_BYTES];
    let mut filled = 0;
    while filled < BLOCK_BYTES {
        match image.read(&mut block[filled..]) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(block)
}

/// The highest write of each life that has left stamps.
#[derive(Default)]
struct Writers {
    highest: BTreeMap<Life, Stamp>,
}

impl Writers {
    fn note(&mut self, stamp: Stamp) {
        let highest = self.highest.entry(stamp.life).or_insert(stamp);
        if highest.seq < stamp.seq {
            *highest = stamp;
        }
    }

    /// The rule of [`Life`], for each pair of lives: one finding for each life that wrote when it should have been over.
    fn double_writes(&self) -> Findings<DoubleWrite> {
        let mut findings = Findings::default();
        for (older, stray) in &self.highest {
            let beside = self.highest.keys().find(|newer| {
                let same_number = newer.number == older.number && newer.incarnation > older.incarnation;
                let ran_on = newer.number > older.number && stray.seq > newer.adopted_max;
                same_number || ran_on
            });
            if let Some(&beside) = beside {
                findings.push(DoubleWrite { stray: *stray, beside });
            }
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const SLOTS: Slots = Slots { seed: 7, count: 8 };
    const FIRST: Life = Life { number: 1, incarnation: 0xa, adopted_max: 0 };

    #[derive(Clone)]
    struct Disk(Vec<Block>);

    impl Disk {
        fn empty() -> Self {
            Disk(vec![[0; BLOCK_BYTES]; SLOTS.count as usize])
        }

        fn write(mut self, life: Life, seqs: impl IntoIterator<Item = u64>) -> Self {
            for seq in seqs {
                let slot = SLOTS.slot_of(seq);
                Stamp { seq, slot, life }.write(SLOTS.seed, &mut self.0[slot as usize]);
            }
            self
        }

        fn judge(&self, acked_max: u64) -> ImageReport {
            let bytes = self.0.concat();
            verify_blocks(&bytes[..], &Claim { slots: SLOTS, acked_max }).unwrap()
        }
    }

    #[test]
    fn an_image_with_every_acknowledged_write_is_clean() {
        let report = Disk::empty().write(FIRST, 1..=20).judge(18);
        assert!(report.is_clean(), "{report}");
        assert_eq!((report.blocks, report.max_seq, &report.lives[..]), (8, 20, &[FIRST][..]));
    }

    #[test]
    fn an_empty_image_is_clean_only_without_acknowledgements() {
        assert!(Disk::empty().judge(0).is_clean());
        assert_eq!(Disk::empty().judge(3).lost.count, 3);
    }

    #[test]
    fn a_write_that_stayed_away_is_lost() {
        let report = Disk::empty().write(FIRST, (1..=20).filter(|&seq| seq != 15)).judge(18);
        assert_eq!(report.lost.first, [LostWrite { slot: 7, acked_seq: 15, found_seq: Some(7) }]);
    }

    #[test]
    fn a_damaged_block_is_corrupt_and_its_write_lost() {
        let mut disk = Disk::empty().write(FIRST, 1..=8);
        disk.0[3][100] ^= 1;
        let report = disk.judge(8);
        assert_eq!(report.corrupt.first, [CorruptBlock { slot: 3, error: StampError::Checksum }]);
        assert_eq!(report.lost.first, [LostWrite { slot: 3, acked_seq: 3, found_seq: None }]);
    }

    #[test]
    fn lives_that_follow_each_other_are_clean() {
        // 9 was lost in flight and 10 was not: the second life goes on at 9, and 10 is still the first life's.
        let second = Life { number: 2, incarnation: 0x5, adopted_max: 10 };
        let disk = Disk::empty().write(FIRST, (1..=10).filter(|&seq| seq != 9)).write(second, [9]);
        assert!(disk.judge(9).is_clean());
        let report = disk.write(second, 10..=13).judge(13);
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.lives, [FIRST, second]);
    }

    #[test]
    fn a_write_of_a_life_that_was_over_is_a_double_write() {
        let second = Life { number: 2, incarnation: 0x5, adopted_max: 10 };
        let report = Disk::empty().write(FIRST, 1..=10).write(second, 11..=13).write(FIRST, [12]).judge(13);
        let stray = Stamp { seq: 12, slot: 4, life: FIRST };
        assert_eq!(report.double_writes.first, [DoubleWrite { stray, beside: second }]);
        assert!(report.to_string().contains("slot 4: sequence 12 of incarnation a"), "{report}");
    }

    #[test]
    fn two_lives_with_one_number_are_double_writers() {
        let twin = Life { incarnation: 0xb, ..FIRST };
        let report = Disk::empty().write(FIRST, 1..=3).write(twin, [3]).judge(3);
        assert_eq!(report.double_writes.count, 1);
        assert_eq!(report.lost.count, 0);
    }

    #[test]
    fn findings_are_bounded() {
        let slots = Slots { seed: 7, count: 1000 };
        let report = verify_blocks(io::empty(), &Claim { slots, acked_max: 5000 }).unwrap();
        assert_eq!((report.lost.count, report.lost.first.len()), (1000, FINDINGS_KEPT));
    }

    #[test]
    fn a_short_file_reads_as_unwritten() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&Disk::empty().write(FIRST, 1..=3).0[..4].concat()).unwrap();
        let judge = |acked_max| verify_image(file.path(), &Claim { slots: SLOTS, acked_max }).unwrap();
        assert!(judge(3).is_clean());
        assert_eq!(judge(4).lost.first, [LostWrite { slot: 4, acked_seq: 4, found_seq: None }]);
    }

    #[test]
    fn a_missing_file_is_an_error() {
        assert!(
            verify_image(Path::new("/nonexistent/image"), &Claim { slots: SLOTS, acked_max: 0 }).is_err()
        );
    }
}
