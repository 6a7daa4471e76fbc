//! Life cycle of an interface.

use std::{fmt, io, sync::Arc, time::Duration};

use drover_saved_state::{Envelope, SavedState};
use drover_tap::{HEADER_LEN, Offloads};
use virtio_bindings::{
    virtio_ids::VIRTIO_ID_NET,
    virtio_net::{VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MQ},
};

use super::{
    config::{self, Space},
    filter::{Filter, MacAddress},
    metrics::NetMetrics,
    offloads,
    port::NetPort,
    shared::Shared,
    state::NetState,
    worker::{Pair, QUEUES},
};
use crate::{
    ActivateError, Activation, ActiveQueue, DeviceError, DeviceEvents, Throttle, VirtioDevice,
    VirtioInterrupt,
    virtio::{service::ServiceThread, throttle::Gate},
};

/// Size of the queues that packets are in: in the buffers of 1.5 KiB that drivers post, twelve of the longest packets.
const QUEUE_SIZE: u16 = 512;
/// Commands come one at a time.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// What an interface is made from.
#[derive(Debug)]
pub struct NetConfig {
    /// For people, for instance `net0`.
    pub name: String,
    /// Its address.
    pub mac: MacAddress,
    /// The longest packet without its Ethernet header, where the driver is to be told.
    pub mtu: Option<u16>,
    /// A queue of packets for each pair of queues; at least one, and all of one interface.
    pub ports: Vec<Box<dyn NetPort>>,
    /// What the host's network can take over and leave: [`Tap::probe_offloads`](drover_tap::Tap::probe_offloads).
    pub offloads: Offloads,
    /// Its counters.
    pub metrics: Arc<NetMetrics>,
    /// Its limits. Requests are packets; inbound is what the driver receives.
    pub throttle: Arc<Throttle>,
    /// Where it tells that it has failed.
    pub events: Arc<dyn DeviceEvents>,
}

/// A virtio network interface.
pub struct VirtioNet {
    name: String,
    mac: MacAddress,
    mtu: Option<u16>,
    offloads: Offloads,
    queue_sizes: Vec<u16>,
    shared: Arc<Shared>,
    throttle: Arc<Throttle>,
    /// One for each pair of queues.
    threads: Vec<ServiceThread>,
    interrupt: Option<Arc<dyn VirtioInterrupt>>,
    /// It comes from another machine: what is started next goes on, and others hear of it.
    restored: bool,
}

impl fmt::Debug for VirtioNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioNet")
            .field("name", &self.name)
            .field("mac", &self.mac)
            .field("pairs", &self.threads.len())
            .finish_non_exhaustive()
    }
}

impl VirtioNet {
    /// An interface without a driver.
    ///
    /// # Errors
    /// Where the host's network refuses the first settings, or there is no port.
    pub fn new(config: NetConfig) -> io::Result<Self> {
        let NetConfig { name, mac, mtu, ports, offloads, metrics, throttle, events } = config;
        let pairs = ports.len();
        if pairs == 0 || pairs > usize::from(drover_tap::QUEUES_MAX) {
            return Err(io::Error::other("an interface has 1 to 256 pairs of queues"));
        }
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * pairs];
        queue_sizes.push(CONTROL_QUEUE_SIZE);
        let shared = Shared::new(name.clone(), ports, mac, metrics)?;
        shared.set_offloads(0)?;
        let thread = |pair| ServiceThread::new(format!("{name}/{pair}"), Arc::clone(&events));
        Ok(Self {
            threads: (0..pairs).map(thread).collect(),
            name,
            mac,
            mtu,
            offloads,
            queue_sizes,
            shared: Arc::new(shared),
            throttle,
            interrupt: None,
            restored: false,
        })
    }

    fn pairs_max(&self) -> u16 {
        self.threads.len() as u16
    }

    fn space(&self) -> Space {
        let settings = self.shared.lock();
        let (mac, announce) = (settings.mac, settings.announce);
        Space { mac, announce, pairs_max: self.pairs_max(), mtu: self.mtu }
    }

    /// Sets what a driver that has just come finds, or what the one that was restored has left.
    fn settle(&self, features: u64) -> io::Result<()> {
        let bits = if self.restored { self.shared.lock().offloads } else { features & offloads::GUEST };
        self.shared.change(|settings| settings.features = features);
        self.shared.set_offloads(bits & features)
    }

    fn start(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { features, queues, memory, interrupt } = activation;
        let refused = |attempt| move |source| ActivateError::Host { attempt, source };
        self.settle(features).map_err(refused("set the tap's offloads"))?;
        for (index, queues) in (0_u16..).zip(split(queues, features, self.threads.len())) {
            if queues.len() < QUEUES {
                // The first pair is what an interface is; the driver may do without the others.
                if index == 0 {
                    return Err(ActivateError::QueueNotReady(queues.len() as u16));
                }
                continue;
            }
            let gate = || Gate::new(Arc::clone(&self.throttle)).map_err(refused("make a timer"));
            let gates = [gate()?, gate()?];
            let pair = Pair::new(Arc::clone(&self.shared), index, gates, features);
            let (memory, interrupt) = (memory.clone(), Arc::clone(&interrupt));
            let activation = Activation { features, queues, memory, interrupt };
            self.threads[usize::from(index)].start(activation, pair)?;
        }
        self.interrupt = Some(interrupt);
        Ok(())
    }

    /// Tells the world where the guest is now: the driver is asked to do so, and for those that cannot the interface sends
    /// a frame in its name, from which switches learn.
    fn announce(&self) {
        let features = self.shared.lock().features;
        if let Some(interrupt) = &self.interrupt
            && features & 1 << VIRTIO_NET_F_GUEST_ANNOUNCE != 0
        {
            self.shared.change(|settings| settings.announce = true);
            interrupt.config_changed();
        }
        let frame = announcement(self.shared.lock().mac);
        let port = self.shared.ports.first().expect("an interface has a queue");
        if let Err(error) = rustix::io::write(port.as_fd(), &frame) {
            tracing::debug!(interface = self.name, %error, "an announcement was not taken");
        }
    }
}

/// The queues of each pair, of pairs of which both are ready, and the control queue with the first.
fn split(queues: Vec<ActiveQueue>, features: u64, pairs: usize) -> Vec<Vec<ActiveQueue>> {
    // Without MQ there is one pair, and the control queue comes next (5.1.2).
    let used = if features & 1 << VIRTIO_NET_F_MQ != 0 { pairs } else { 1 };
    let mut split: Vec<Vec<ActiveQueue>> = (0..used).map(|_| Vec::with_capacity(QUEUES + 1)).collect();
    for queue in queues {
        let index = usize::from(queue.index);
        if index < 2 * used {
            // In ascending order: one whose other half is missing is not there at all.
            let pair = &mut split[index / 2];
            if pair.len() == index % 2 {
                pair.push(queue);
            }
        } else if index == 2 * used && split[0].len() == QUEUES {
            split[0].push(queue);
        }
    }
    split
}

/// A reverse ARP request for its own address, as virtual machines send it after a move, with an empty virtio header.
fn announcement(mac: MacAddress) -> [u8; HEADER_LEN + 60] {
    let mut packet = [0; HEADER_LEN + 60];
    let frame = &mut packet[HEADER_LEN..];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac.0);
    // RARP; Ethernet and IPv4 addresses; request reverse (RFC 903).
    frame[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&mac.0);
    frame[32..38].copy_from_slice(&mac.0);
    packet
}

impl VirtioDevice for VirtioNet {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        config::features(self.offloads, self.pairs_max(), self.mtu)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.space().read(offset, data);
    }

    fn config_generation(&self) -> u32 {
        self.space().generation()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.start(activation).inspect_err(|_| {
            for thread in &mut self.threads {
                if let Err(error) = thread.reset() {
                    tracing::error!(interface = self.name, %error, "a queue's thread does not end");
                }
            }
        })
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.threads.iter_mut().try_for_each(ServiceThread::reset)?;
        self.interrupt = None;
        self.restored = false;
        let mac = self.mac;
        self.shared.change(|settings| {
            settings.mac = mac;
            settings.filter = Filter::default();
            settings.announce = false;
            settings.features = 0;
        });
        let settled = self.shared.set_pairs(1).and_then(|()| self.shared.set_offloads(0));
        settled.map_err(|error| DeviceError::Failed {
            device: self.name.clone(),
            reason: format!("the tap does not take its first settings: {error}"),
        })
    }

    fn pause(&mut self, limit: Duration) -> Result<(), DeviceError> {
        let paused = self.threads.iter_mut().try_for_each(|thread| thread.pause(limit));
        if paused.is_err() {
            // Those before the one that does not pause go on; those after it never stopped.
            for thread in &mut self.threads {
                if let Err(error) = thread.resume() {
                    tracing::error!(interface = self.name, %error, "a queue's thread does not go on");
                }
            }
        }
        paused
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.threads.iter_mut().try_for_each(ServiceThread::resume)?;
        if std::mem::take(&mut self.restored) && self.interrupt.is_some() {
            self.announce();
        }
        Ok(())
    }

    fn save(&self) -> Envelope {
        let settings = self.shared.lock().clone();
        NetState {
            hardware_mac: self.mac,
            mac: settings.mac,
            mtu: self.mtu,
            pairs_max: self.pairs_max(),
            pairs: self.shared.pairs(),
            offloads: settings.offloads,
            announce: settings.announce,
            filter: settings.filter,
        }
        .to_envelope(0)
    }

    fn restore(&mut self, envelope: &Envelope) -> Result<(), DeviceError> {
        let device = || self.name.clone();
        let state = NetState::from_envelope(envelope)
            .map_err(|source| DeviceError::State { device: device(), source })?;
        state
            .fits(self.mac, self.mtu, self.pairs_max())
            .map_err(|reason| DeviceError::Incompatible { device: device(), reason })?;
        self.shared.set_pairs(state.pairs).map_err(|error| DeviceError::Failed {
            device: device(),
            reason: format!("the tap does not use as many queues as the driver does: {error}"),
        })?;
        self.shared.change(|settings| {
            settings.mac = state.mac;
            settings.filter = state.filter;
            settings.announce = state.announce;
            settings.offloads = state.offloads;
        });
        self.threads.iter_mut().for_each(ServiceThread::start_paused);
        self.restored = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_a_broadcast_from_the_guests_address() {
        let mac = MacAddress([2, 3, 4, 5, 6, 7]);
        let packet = announcement(mac);
        assert_eq!(packet[..12], [0; 12]);
        assert_eq!(packet[12..18], [0xff; 6]);
        assert_eq!(packet[18..26], [2, 3, 4, 5, 6, 7, 0x80, 0x35]);
        assert_eq!(packet[34..40], mac.0);
        assert_eq!(packet[44..50], mac.0);
    }
}
