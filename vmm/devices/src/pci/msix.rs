//! MSI-X: a function's table of messages, in its own memory (6.8.2).

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
};

use drover_bus::{MsiLine, MsiLines, MsiMessage};

/// The capability's id.
pub(crate) const CAPABILITY: u8 = 0x11;
/// Most entries of a table (6.8.2.3).
pub(crate) const ENTRIES_MAX: usize = 2048;
/// Length of an entry, bytes.
pub(crate) const ENTRY_LEN: u64 = 16;

/// Message control: the table is used.
const ENABLE: u16 = 1 << 15;
/// Message control: every entry counts as masked.
const MASK_ALL: u16 = 1 << 14;
/// An entry's vector control: masked.
const MASKED: u32 = 1;

/// One entry as the guest has written it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) address: u64,
    pub(crate) data: u32,
    pub(crate) control: u32,
}

impl Default for Entry {
    /// Masked, as after a reset (6.8.2.9).
    fn default() -> Self {
        Self { address: 0, data: 0, control: MASKED }
    }
}

/// The table, its pending bits and the lines behind them.
///
/// Interrupting takes no lock: device threads look at flags, vCPU threads change them, and whoever comes second sees
/// what the first has done (sequentially consistent: set pending, then look at the mask, against clear the mask, then
/// look at pending).
#[derive(Debug)]
pub(crate) struct Msix {
    control: AtomicU16,
    vectors: Box<[Vector]>,
}

#[derive(Debug)]
struct Vector {
    line: Arc<dyn MsiLine>,
    entry: Mutex<Entry>,
    masked: AtomicBool,
    pending: AtomicBool,
}

impl Msix {
    /// A table with as many entries, all masked, and not used yet.
    pub(crate) fn new(entries: usize, lines: &dyn MsiLines) -> io::Result<Self> {
        assert!((1..=ENTRIES_MAX).contains(&entries), "a device has few queues");
        let vector = |_| {
            Ok(Vector {
                line: lines.line()?,
                entry: Mutex::default(),
                masked: AtomicBool::new(true),
                pending: AtomicBool::new(false),
            })
        };
        Ok(Self { control: AtomicU16::new(0), vectors: (0..entries).map(vector).collect::<io::Result<_>>()? })
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.vectors.len()
    }

    /// The capability behind its id: the table at `table`, the pending bits at `pending`, both in the first BAR.
    pub(crate) fn capability(&self, table: u32, pending: u32) -> [u8; 10] {
        let mut body = [0; 10];
        let size = u16::try_from(self.len() - 1).expect("at most ENTRIES_MAX");
        body[..2].copy_from_slice(&size.to_le_bytes());
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..].copy_from_slice(&pending.to_le_bytes());
        body
    }

    /// What of the capability the guest may change.
    pub(crate) const CAPABILITY_WRITABLE: [u8; 2] = (ENABLE | MASK_ALL).to_le_bytes();

    /// Whether the guest uses the table.
    pub(crate) fn is_enabled(&self) -> bool {
        self.control.load(Ordering::SeqCst) & ENABLE != 0
    }

    /// The guest has written message control.
    pub(crate) fn set_control(&self, control: u16) {
        let control = control & (ENABLE | MASK_ALL);
        if self.control.swap(control, Ordering::SeqCst) != control {
            self.vectors.iter().for_each(|vector| self.catch_up(vector));
        }
    }

    /// Interrupts by this entry, or remembers to. An entry that there is not interrupts nobody.
    pub(crate) fn pulse(&self, index: u16) {
        let Some(vector) = self.vectors.get(usize::from(index)) else { return };
        if self.is_open(vector) {
            vector.send();
        } else {
            vector.pending.store(true, Ordering::SeqCst);
            // The mask may have gone meanwhile, without having seen the bit.
            self.catch_up(vector);
        }
    }

    /// Interrupts by every entry that can: an interrupt that was on its way when the state was saved is not in it.
    pub(crate) fn pulse_all(&self) {
        self.vectors.iter().filter(|vector| self.is_open(vector)).for_each(Vector::send);
    }

    /// Fills `data` from the table. Entries are read four or eight bytes at a time (6.8.2).
    pub(crate) fn read_table(&self, offset: u64, data: &mut [u8]) {
        if !is_access(offset, data.len()) {
            return;
        }
        let Some(vector) = self.vectors.get((offset / ENTRY_LEN) as usize) else { return };
        let at = (offset % ENTRY_LEN) as usize;
        data.copy_from_slice(&vector.entry().to_bytes()[at..at + data.len()]);
    }

    /// Writes to the table.
    pub(crate) fn write_table(&self, offset: u64, data: &[u8]) {
        if !is_access(offset, data.len()) {
            return;
        }
        let Some(vector) = self.vectors.get((offset / ENTRY_LEN) as usize) else { return };
        let mut entry = vector.entry();
        let mut bytes = entry.to_bytes();
        let at = (offset % ENTRY_LEN) as usize;
        bytes[at..at + data.len()].copy_from_slice(data);
        *entry = Entry::from_bytes(bytes);
        vector.apply(*entry);
        drop(entry);
        self.catch_up(vector);
    }

    /// Fills `data` from the pending bits.
    pub(crate) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in data.iter_mut().enumerate() {
            let first = (offset as usize + at) * 8;
            let bits = self.vectors.iter().skip(first).take(8).enumerate();
            *byte = bits
                .fold(0, |byte, (bit, vector)| byte | u8::from(vector.pending.load(Ordering::SeqCst)) << bit);
        }
    }

    /// Entries and pending bits. The control is in the configuration space.
    pub(crate) fn save(&self) -> Vec<(Entry, bool)> {
        let save = |vector: &Vector| (*vector.entry(), vector.pending.load(Ordering::SeqCst));
        self.vectors.iter().map(save).collect()
    }

    /// Puts back what was saved of a table of the same length, and the control.
    pub(crate) fn restore(&self, vectors: &[(Entry, bool)], control: u16) {
        for (vector, (entry, pending)) in self.vectors.iter().zip(vectors) {
            *vector.entry() = *entry;
            vector.pending.store(*pending, Ordering::SeqCst);
            vector.apply(*entry);
        }
        self.control.store(control & (ENABLE | MASK_ALL), Ordering::SeqCst);
    }

    /// Every entry as at first, and the table not used.
    pub(crate) fn reset(&self) {
        let unused = vec![(Entry::default(), false); self.len()];
        self.restore(&unused, 0);
    }

    fn is_open(&self, vector: &Vector) -> bool {
        self.control.load(Ordering::SeqCst) & (ENABLE | MASK_ALL) == ENABLE
            && !vector.masked.load(Ordering::SeqCst)
    }

    fn catch_up(&self, vector: &Vector) {
        if self.is_open(vector) && vector.pending.swap(false, Ordering::SeqCst) {
            vector.send();
        }
    }
}

/// Entries are accessed by whole, aligned words of four or eight bytes; an access of eight does not cross entries.
fn is_access(offset: u64, len: usize) -> bool {
    matches!(len, 4 | 8) && offset.is_multiple_of(len as u64)
}

impl Vector {
    fn entry(&self) -> MutexGuard<'_, Entry> {
        self.entry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Routes the line by the entry, unless it is masked: its message may be half written then.
    fn apply(&self, entry: Entry) {
        let masked = entry.control & MASKED != 0;
        if !masked {
            let message = MsiMessage { address: entry.address, data: entry.data };
            if let Err(error) = self.line.route(message) {
                tracing::error!(%error, "cannot route an interrupt of the guest's; it will not arrive");
            }
        }
        self.masked.store(masked, Ordering::SeqCst);
    }

    fn send(&self) {
        if let Err(error) = self.line.pulse() {
            tracing::error!(%error, "cannot interrupt the guest");
        }
    }
}

impl Entry {
    fn to_bytes(self) -> [u8; ENTRY_LEN as usize] {
        let mut bytes = [0; ENTRY_LEN as usize];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.data.to_le_bytes());
        bytes[12..].copy_from_slice(&self.control.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; ENTRY_LEN as usize]) -> Self {
        let [low, high, data, control] = [0, 4, 8, 12]
            .map(|at| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
        Self { address: u64::from(high) << 32 | u64::from(low), data, control: control & MASKED }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Line(Mutex<(MsiMessage, Vec<MsiMessage>)>);

    impl MsiLine for Line {
        fn route(&self, message: MsiMessage) -> io::Result<()> {
            self.0.lock().unwrap().0 = message;
            Ok(())
        }
        fn pulse(&self) -> io::Result<()> {
            let mut line = self.0.lock().unwrap();
            let message = line.0;
            line.1.push(message);
            Ok(())
        }
    }

    #[derive(Debug, Default)]
    struct Lines(Mutex<Vec<Arc<Line>>>);

    impl MsiLines for Lines {
        fn line(&self) -> io::Result<Arc<dyn MsiLine>> {
            let line = Arc::new(Line::default());
            self.0.lock().unwrap().push(line.clone());
            Ok(line)
        }
    }

    fn table() -> (Msix, Vec<Arc<Line>>) {
        let lines = Lines::default();
        let msix = Msix::new(3, &lines).unwrap();
        (msix, lines.0.into_inner().unwrap())
    }

    fn sent(line: &Line) -> Vec<u32> {
        line.0.lock().unwrap().1.iter().map(|message| message.data).collect()
    }

    fn set(msix: &Msix, index: u64, data: u32, control: u32) {
        msix.write_table(index * 16, &0xfee0_0000_u64.to_le_bytes());
        msix.write_table(index * 16 + 8, &data.to_le_bytes());
        msix.write_table(index * 16 + 12, &control.to_le_bytes());
    }

    fn pending(msix: &Msix) -> u8 {
        let mut byte = [0xff];
        msix.read_pending(0, &mut byte);
        byte[0]
    }

    #[test]
    fn an_interrupt_waits_for_the_table_the_function_and_its_entry() {
        let (msix, lines) = table();
        set(&msix, 1, 0x31, 0);
        msix.pulse(1);
        assert_eq!((sent(&lines[1]), pending(&msix)), (vec![], 0b010), "not enabled");
        msix.set_control(ENABLE | MASK_ALL);
        assert_eq!((sent(&lines[1]), pending(&msix)), (vec![], 0b010), "masked as a whole");
        msix.set_control(ENABLE);
        assert_eq!((sent(&lines[1]), pending(&msix)), (vec![0x31], 0));
        msix.write_table(28, &1_u32.to_le_bytes());
        msix.pulse(1);
        msix.pulse(1);
        set(&msix, 1, 0x32, 1);
        assert_eq!((sent(&lines[1]), pending(&msix)), (vec![0x31], 0b010), "masked");
        msix.write_table(28, &0_u32.to_le_bytes());
        assert_eq!(
            (sent(&lines[1]), pending(&msix)),
            (vec![0x31, 0x32], 0),
            "once, by the message of the moment"
        );
        msix.pulse(0xffff);
        assert!(sent(&lines[0]).is_empty());
    }

    #[test]
    fn accesses_that_are_not_of_the_table_change_nothing() {
        let (msix, _) = table();
        set(&msix, 2, 0x33, 0);
        let before = msix.save();
        for (offset, len) in [(0, 1), (2, 2), (2, 4), (4, 8), (48, 4), (u64::MAX - 3, 4)] {
            msix.write_table(offset, &vec![0xff; len]);
            let mut data = vec![0x5a; len];
            msix.read_table(offset, &mut data);
            assert_eq!(data, vec![0x5a; len], "{len} bytes at {offset}");
        }
        assert_eq!(msix.save(), before);
        let mut data = [0; 8];
        msix.read_table(40, &mut data);
        assert_eq!(data, [0x33, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_table_moves_with_what_is_pending() {
        let (msix, _) = table();
        msix.set_control(ENABLE);
        set(&msix, 0, 0x30, 1);
        set(&msix, 2, 0x32, 0);
        msix.pulse(0);
        let (other, lines) = table();
        other.restore(&msix.save(), ENABLE);
        assert_eq!(other.save(), msix.save());
        other.pulse_all();
        other.write_table(12, &0_u32.to_le_bytes());
        assert_eq!([sent(&lines[0]), sent(&lines[1]), sent(&lines[2])], [vec![0x30], vec![], vec![0x32]]);
    }
}
