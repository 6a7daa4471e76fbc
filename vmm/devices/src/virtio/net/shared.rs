//! What the workers of one interface have in common: what the control queue changes.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, AtomicU32, Ordering},
    },
};

use super::{
    filter::{Filter, MacAddress},
    metrics::NetMetrics,
    offloads,
    port::NetPort,
    request::Command,
};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) ports: Vec<Box<dyn NetPort>>,
    pub(super) metrics: Arc<NetMetrics>,
    settings: Mutex<Settings>,
    /// Another number after every change of what workers keep a copy of.
    version: AtomicU32,
    /// Pairs in use.
    pairs: AtomicU16,
}

/// What the driver has asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) mac: MacAddress,
    pub(super) filter: Filter,
    pub(super) announce: bool,
    /// What the host may leave to the driver, of what it may ask for.
    pub(super) offloads: u64,
    /// What it may ask for: the features it has negotiated.
    pub(super) features: u64,
}

impl Shared {
    /// Takes all queues but the first out of use.
    pub(super) fn new(
        name: String,
        ports: Vec<Box<dyn NetPort>>,
        mac: MacAddress,
        metrics: Arc<NetMetrics>,
    ) -> io::Result<Self> {
        let pairs = u16::try_from(ports.len()).expect("a caller with fewer ports than a device has queues");
        let settings = Settings { mac, filter: Filter::default(), announce: false, offloads: 0, features: 0 };
        let shared = Self {
            name,
            ports,
            metrics,
            settings: Mutex::new(settings),
            version: AtomicU32::new(0),
            pairs: AtomicU16::new(pairs),
        };
        shared.set_pairs(1)?;
        Ok(shared)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether packets move through this pair.
    pub(super) fn is_active(&self, pair: u16) -> bool {
        pair < self.pairs.load(Ordering::Relaxed)
    }

    pub(super) fn pairs(&self) -> u16 {
        self.pairs.load(Ordering::Relaxed)
    }

    /// Changes when a copy of the settings is out of date.
    pub(super) fn version(&self) -> u32 {
        self.version.load(Ordering::Acquire)
    }

    /// Uses the first `pairs` queues and no others. Where the host refuses one, those before it have changed.
    pub(super) fn set_pairs(&self, pairs: u16) -> io::Result<()> {
        for (index, port) in (0_u16..).zip(&self.ports) {
            let (was, wanted) = (self.is_active(index), index < pairs);
            if was != wanted {
                port.set_attached(wanted)?;
            }
        }
        self.pairs.store(pairs, Ordering::Relaxed);
        Ok(())
    }

    /// What the host may leave to the driver from now on.
    pub(super) fn set_offloads(&self, bits: u64) -> io::Result<()> {
        // They are of all queues together.
        let port = self.ports.first().expect("an interface has a queue");
        port.set_offloads(offloads::left_to_driver(bits))?;
        self.lock().offloads = bits;
        Ok(())
    }

    /// Changes what workers look at.
    pub(super) fn change(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.lock());
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Does what the driver asks for. Whether that was possible is its answer.
    pub(super) fn execute(&self, command: Command) -> bool {
        match command {
            Command::Receive(mode, on) => self.change(|settings| settings.filter.set(mode, on)),
            Command::Addresses { unicast, multicast } => self.change(|settings| {
                settings.filter.unicast = unicast;
                settings.filter.multicast = multicast;
            }),
            Command::OwnAddress(mac) => self.change(|settings| settings.mac = mac),
            Command::Vlan(tag, on) => self.change(|settings| settings.filter.set_vlan(tag, on)),
            Command::Announced => self.change(|settings| settings.announce = false),
            Command::Pairs(pairs) => {
                let possible = (1..=self.ports.len()).contains(&usize::from(pairs));
                return possible && self.succeeded("use other queues", self.set_pairs(pairs));
            }
            Command::Offloads(bits) => {
                let allowed = self.lock().features & offloads::GUEST;
                return bits & !allowed == 0 && self.succeeded("change offloads", self.set_offloads(bits));
            }
        }
        true
    }

    fn succeeded(&self, attempt: &'static str, outcome: io::Result<()>) -> bool {
        if let Err(error) = &outcome {
            tracing::warn!(interface = self.name, %error, attempt, "the host refused what the driver asked for");
        }
        outcome.is_ok()
    }
}
