//! Frames that carry guest RAM.
//!
//! ```text
//!  u32 number of runs
//!  per run: u64 first page number | u32 pages | u32 kind (0 zero, 1 data)
//!  4096 bytes per page of every data run, in the order of the runs
//! ```

use drover_guest_memory::{PageRun, is_zero};
use drover_units::{Gpa, PAGE_SIZE, Pages};

use super::{FrameKind, WireError, bytes::Fields};

/// Pages whose contents one frame can carry: 256 KiB stay in a core's second-level cache between copying, summing
/// and sending.
pub const MAX_DATA_PAGES: usize = 64;
/// Runs in one frame: as many as data and zero pages can alternate in it.
pub const MAX_RUNS: usize = 2 * MAX_DATA_PAGES + 1;
const RUN_LEN: usize = 16;
const PAGE: usize = PAGE_SIZE as usize;
/// The longest payload of a Pages frame.
pub(super) const MAX_PAYLOAD: u32 = (4 + MAX_RUNS * RUN_LEN + MAX_DATA_PAGES * PAGE) as u32;
/// Past the last page of a 64-bit address space.
const PAGE_NUMBERS: u64 = 1 << 52;
/// The longest run that the table can say.
const MAX_RUN_PAGES: u64 = u32::MAX as u64;

/// Whether a run's contents are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    /// All zero: nothing is sent.
    Zero,
    /// Contents follow.
    Data,
}

/// Builds the payload of Pages frames. Reused from frame to frame: its buffers are allocated once.
pub struct PagesBuilder {
    runs: Vec<(PageRun, RunKind)>,
    table: Vec<u8>,
    data: Box<[u8]>,
    used: usize,
}

impl std::fmt::Debug for PagesBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the contents: they are a guest's secrets.
        f.debug_struct("PagesBuilder")
            .field("runs", &self.runs)
            .field("used", &self.used)
            .finish_non_exhaustive()
    }
}

impl Default for PagesBuilder {
    fn default() -> Self {
        let data = vec![0; MAX_DATA_PAGES * PAGE].into_boxed_slice();
        Self { runs: Vec::with_capacity(MAX_RUNS), table: Vec::new(), data, used: 0 }
    }
}

impl PagesBuilder {
    /// How many pages the next [`push`](Self::push) may bring. Zero: send the frame first.
    pub fn room(&self) -> Pages {
        // In the worst case every page begins a run of its own.
        let runs = MAX_RUNS - self.runs.len();
        Pages::new(((self.data.len() - self.used) / PAGE).min(runs) as u64)
    }

    /// Adds pages with the contents that `read` puts into the buffer. Whether a page is zero is looked up in the
    /// copy: what a running guest writes after it was taken is in the dirty log and travels with a later round, and
    /// the checksum is over bytes that no longer change.
    ///
    /// # Errors
    /// The reader's own; nothing has been added then.
    ///
    /// # Panics
    /// Where the run is longer than [`room`](Self::room).
    pub fn push<E>(&mut self, run: PageRun, read: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
        assert!(run.pages <= self.room(), "the caller sends a full frame before it adds to it");
        let (first, length) = (self.used, run.pages.get() as usize * PAGE);
        read(&mut self.data[first..first + length])?;
        for (index, start) in run.iter().enumerate() {
            let from = first + index * PAGE;
            let page = PageRun { start, pages: Pages::new(1) };
            if is_zero(&self.data[from..from + PAGE]) {
                self.extend(page, RunKind::Zero);
                continue;
            }
            if from != self.used {
                self.data.copy_within(from..from + PAGE, self.used);
            }
            self.used += PAGE;
            self.extend(page, RunKind::Data);
        }
        Ok(())
    }

    /// Adds pages that are known to be zero, however many.
    ///
    /// # Panics
    /// Where there is no [`room`](Self::room).
    pub fn push_zero(&mut self, run: PageRun) {
        assert!(self.room() > Pages::ZERO, "the caller sends a full frame before it adds to it");
        if run.pages > Pages::ZERO {
            self.extend(run, RunKind::Zero);
        }
    }

    fn extend(&mut self, next: PageRun, kind: RunKind) {
        if let Some((last, last_kind)) = self.runs.last_mut()
            && *last_kind == kind
            && last.end() == Some(next.start)
            && last.pages.saturating_add(next.pages).get() <= MAX_RUN_PAGES
        {
            last.pages = last.pages.saturating_add(next.pages);
            return;
        }
        self.runs.push((next, kind));
    }

    /// Whether nothing has been added.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Pages added so far, zero pages included.
    pub fn pages(&self) -> Pages {
        self.runs.iter().fold(Pages::ZERO, |sum, (run, _)| sum.saturating_add(run.pages))
    }

    /// The payload in two parts, run table and contents.
    pub fn payload(&mut self) -> [&[u8]; 2] {
        self.table.clear();
        let count = u32::try_from(self.runs.len()).expect("at most MAX_RUNS");
        self.table.extend_from_slice(&count.to_le_bytes());
        for (run, kind) in &self.runs {
            let pages =
                u32::try_from(run.pages.get()).expect("RAM ends below 2^32 pages, and extend() looked");
            self.table.extend_from_slice(&(run.start.get() / PAGE_SIZE).to_le_bytes());
            self.table.extend_from_slice(&pages.to_le_bytes());
            self.table.extend_from_slice(&u32::from(*kind == RunKind::Data).to_le_bytes());
        }
        [&self.table, &self.data[..self.used]]
    }

    /// Begins the next frame.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.used = 0;
    }
}

/// A received Pages frame: its runs, checked, and their contents where they lie in the reader's buffer.
#[derive(Clone, Copy, Debug)]
pub struct PagesView<'a> {
    table: &'a [u8],
    data: &'a [u8],
}

impl<'a> PagesView<'a> {
    /// Checks a payload: every run lies in the address space and the contents are exactly as long as the runs say.
    ///
    /// # Errors
    /// [`WireError`] naming the field.
    pub fn decode(payload: &'a [u8]) -> Result<Self, WireError> {
        let mut fields = Fields::new(FrameKind::Pages, payload);
        let count = fields.u32("number of runs")? as usize;
        if count > MAX_RUNS {
            return Err(fields.invalid("number of runs"));
        }
        let table = fields.take("runs", count * RUN_LEN)?;
        let mut expected = 0;
        for entry in table.chunks_exact(RUN_LEN) {
            expected += decode_run(entry)?.1;
        }
        if expected > MAX_DATA_PAGES * PAGE {
            return Err(fields.invalid("pages of a run"));
        }
        let data = fields.take("contents", expected)?;
        fields.end()?;
        Ok(Self { table, data })
    }

    /// Pages in the frame, zero pages included.
    pub fn pages(&self) -> Pages {
        self.runs().fold(Pages::ZERO, |sum, (run, _)| sum.saturating_add(run.pages))
    }

    /// The runs with their contents; `None` for zero runs.
    pub fn runs(&self) -> impl Iterator<Item = (PageRun, Option<&'a [u8]>)> + use<'a> {
        let mut data = self.data;
        self.table.chunks_exact(RUN_LEN).map(move |entry| {
            let (run, length) = decode_run(entry).expect("decode checked every run");
            let (contents, rest) = data.split_at(length);
            data = rest;
            (run, (length > 0).then_some(contents))
        })
    }
}

/// A run and the length of its contents.
fn decode_run(entry: &[u8]) -> Result<(PageRun, usize), WireError> {
    let mut fields = Fields::new(FrameKind::Pages, entry);
    let (first, pages) = (fields.u64("first page of a run")?, fields.u32("pages of a run")?);
    let length = match fields.u32("kind of a run")? {
        0 => 0,
        // Bounded one by one, so that the caller's sum cannot overflow.
        1 if pages as usize <= MAX_DATA_PAGES => pages as usize * PAGE,
        1 => return Err(fields.invalid("pages of a run")),
        _ => return Err(fields.invalid("kind of a run")),
    };
    if pages == 0 {
        return Err(fields.invalid("pages of a run"));
    }
    if first >= PAGE_NUMBERS || PAGE_NUMBERS - first < u64::from(pages) {
        return Err(fields.invalid("first page of a run"));
    }
    Ok((PageRun { start: Gpa::new(first * PAGE_SIZE), pages: Pages::new(pages.into()) }, length))
}
