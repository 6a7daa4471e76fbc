//! The common form of all traces.

use std::{
    collections::BTreeMap,
    fmt,
    num::NonZeroU32,
    ops::{Add, Sub},
    time::Duration,
};

use drover_units::{Bytes, VcpuCount};

use crate::{Error, Problem};

/// Most events of a trace: three times those of the largest published one (5.5 million VMs), about 800 MB.
pub const MAX_EVENTS: usize = 1 << 25;
/// Most flavours of a trace: what a [`FlavourId`] can tell apart. Published traces have 15 and about 500.
pub const MAX_FLAVOURS: usize = 1 << 16;

/// Milliseconds since the trace began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// So many milliseconds after the beginning.
    #[must_use]
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms)
    }

    /// So many seconds after the beginning.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    /// Milliseconds since the beginning.
    #[must_use]
    pub const fn ms(self) -> u64 {
        self.0
    }

    /// Whole seconds since the beginning.
    #[must_use]
    pub const fn secs(self) -> u64 {
        self.0 / 1000
    }

    /// Days since the beginning.
    #[must_use]
    pub fn days(self) -> f64 {
        self.0 as f64 / MS_IN_DAY
    }
}

pub(crate) const MS_IN_DAY: f64 = 86_400_000.0;

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl Sub for Moment {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// A VM of the trace: they are numbered from 0 in the order of their creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceVm(pub u32);

/// Which of the trace's flavours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlavourId(pub u16);

/// A size in which VMs are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flavour {
    /// Virtual CPUs.
    pub vcpus: VcpuCount,
    /// Memory.
    pub memory: Bytes,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} vCPU / {}", self.vcpus, self.memory)
    }
}

/// Whether a VM may be evicted for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// It may.
    Low,
    /// It may not.
    High,
}

/// How long a VM lives: whole seconds, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lifetime(NonZeroU32);

impl Lifetime {
    /// A lifetime; one that is shorter than a second counts as a second.
    #[must_use]
    pub fn new(span: Duration) -> Self {
        let secs = u32::try_from(span.as_secs()).unwrap_or(u32::MAX);
        Self(NonZeroU32::new(secs).unwrap_or(NonZeroU32::MIN))
    }

    /// The same as a duration.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_secs(u64::from(self.0.get()))
    }
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A VM is asked for.
    Create {
        /// Its size.
        flavour: FlavourId,
        /// Whether it may be evicted.
        priority: Priority,
        /// How long it will live, known afterwards: what a perfect prediction would say. `None`: to the trace's end.
        lifetime: Option<Lifetime>,
    },
    /// A VM is given back.
    Delete,
}

/// One thing that happens to one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Moment,
    /// To whom.
    pub vm: TraceVm,
    /// What.
    pub action: Action,
}

/// Requests in the order of their times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    flavours: Vec<Flavour>,
    events: Vec<Event>,
    creations: usize,
    unmatched_deletions: u64,
}

impl Trace {
    /// The sizes, by id.
    #[must_use]
    pub fn flavours(&self) -> &[Flavour] {
        &self.flavours
    }

    /// A size.
    ///
    /// # Panics
    /// If the id is of another trace.
    #[must_use]
    pub fn flavour(&self, id: FlavourId) -> Flavour {
        self.flavours[usize::from(id.0)]
    }

    /// What happens, in the order of time.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// How many VMs are created.
    #[must_use]
    pub fn creations(&self) -> usize {
        self.creations
    }

    /// How many VMs are deleted.
    #[must_use]
    pub fn deletions(&self) -> usize {
        self.events.len() - self.creations
    }

    /// Deletions in the source of VMs that it never created; they are left out.
    #[must_use]
    pub fn unmatched_deletions(&self) -> u64 {
        self.unmatched_deletions
    }

    /// When the last thing happens.
    #[must_use]
    pub fn end(&self) -> Moment {
        self.events.last().map_or(Moment::default(), |event| event.at)
    }

    /// How often each flavour is asked for, by id.
    #[must_use]
    pub fn requests_by_flavour(&self) -> Vec<u64> {
        let mut counts = vec![0; self.flavours.len()];
        for event in &self.events {
            if let Action::Create { flavour, .. } = event.action {
                counts[usize::from(flavour.0)] += 1;
            }
        }
        counts
    }

    /// The largest number of VMs that exist at one moment.
    #[must_use]
    pub fn alive_max(&self) -> usize {
        let mut alive: usize = 0;
        let mut most = 0;
        for event in &self.events {
            match event.action {
                Action::Create { .. } => alive += 1,
                Action::Delete => alive -= 1,
            }
            most = most.max(alive);
        }
        most
    }
}

/// One VM of a trace that is being put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stay {
    pub(crate) begin: Moment,
    pub(crate) end: Option<Moment>,
    pub(crate) flavour: Flavour,
    pub(crate) priority: Priority,
}

/// Puts events in order and numbers flavours and VMs.
pub(crate) fn assemble(mut stays: Vec<Stay>, unmatched_deletions: u64) -> Result<Trace, Error> {
    if stays.is_empty() {
        return Err(Error::Whole(Problem::Empty));
    }
    let ends = stays.iter().filter(|stay| stay.end.is_some()).count();
    if stays.len() + ends > MAX_EVENTS {
        return Err(Error::Whole(Problem::TooMany { what: "events", max: MAX_EVENTS }));
    }
    // Stable: what arrives at one moment keeps the order of the source.
    stays.sort_by_key(|stay| stay.begin);
    let distinct: BTreeMap<Flavour, ()> = stays.iter().map(|stay| (stay.flavour, ())).collect();
    if distinct.len() > MAX_FLAVOURS {
        return Err(Error::Whole(Problem::TooMany { what: "flavours", max: MAX_FLAVOURS }));
    }
    let flavours: Vec<Flavour> = distinct.into_keys().collect();
    let mut events = Vec::with_capacity(stays.len() + ends);
    for (index, stay) in stays.iter().enumerate() {
        let vm = TraceVm(u32::try_from(index).expect("MAX_EVENTS fits"));
        let flavour = flavours.binary_search(&stay.flavour).expect("every flavour is in the list");
        let flavour = FlavourId(u16::try_from(flavour).expect("MAX_FLAVOURS fits"));
        // A VM that ends as it begins lives for a millisecond, so that its deletion does not come before it.
        let end = stay.end.map(|end| end.max(stay.begin + Duration::from_millis(1)));
        let lifetime = end.map(|end| Lifetime::new(end - stay.begin));
        let action = Action::Create { flavour, priority: stay.priority, lifetime };
        events.push(Event { at: stay.begin, vm, action });
        if let Some(at) = end {
            events.push(Event { at, vm, action: Action::Delete });
        }
    }
    events.sort_by_key(|event| (event.at, !matches!(event.action, Action::Delete), event.vm));
    Ok(Trace { flavours, events, creations: stays.len(), unmatched_deletions })
}
