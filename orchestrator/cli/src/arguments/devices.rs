//! Network interfaces of a VM, and limits of its devices.

use std::{str::FromStr, time::Duration};

use clap::{Args, ValueEnum};
use drover_client::api::Nic;
use drover_units::Bytes;

/// A device that is to come.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct AttachArgs {
    /// Name or id
    pub(crate) vm: String,
    /// A volume, by name or id
    #[arg(long, value_name = "VOLUME", required_unless_present = "nic", conflicts_with = "nic")]
    pub(crate) volume: Option<String>,
    /// The VM may only read the volume
    #[arg(long, requires = "volume")]
    pub(crate) read_only: bool,
    /// A network interface; all parts are optional
    #[arg(long, value_name = "network=NAME,mac=ADDRESS,queues=N,mtu=N", value_parser = nic)]
    pub(crate) nic: Option<Nic>,
}

/// A device that is to go.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct DetachArgs {
    /// Name or id
    pub(crate) vm: String,
    /// The disk with this volume, by name or id
    #[arg(long, value_name = "VOLUME", required_unless_present = "nic", conflicts_with = "nic")]
    pub(crate) volume: Option<String>,
    /// The network interface with this MAC address
    #[arg(long, value_name = "MAC")]
    pub(crate) nic: Option<String>,
    /// Takes it whatever the guest does with it: what it has not written yet is lost
    #[arg(long)]
    pub(crate) force: bool,
    /// How long the guest has to let go, at most 20s
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "10s", conflicts_with = "force")]
    pub(crate) wait: Duration,
}

/// What kind of machine a VM is.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub(crate) struct HardwareArgs {
    /// Queues of each disk, each with a thread of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) disk_queues: u32,
    /// A first file system for the kernel: an image in the boot image's pool
    #[arg(long, value_name = "IMAGE", default_value = "")]
    pub(crate) initrd: String,
    /// What its devices are on: PCI lets them be attached and detached while it runs [default: pci with an initrd, else mmio]
    #[arg(long, value_enum, value_name = "BUS")]
    pub(crate) bus: Option<Bus>,
    /// What its guest's reset does
    #[arg(long, value_enum, value_name = "ACTION", default_value_t = Reset::Restart)]
    pub(crate) on_reset: Reset,
    /// A source of entropy for its guest
    #[arg(long)]
    pub(crate) rng: bool,
    /// A console beside the serial port; both show in `vm console`
    #[arg(long)]
    pub(crate) console: bool,
    /// A balloon, which gives the guest's memory back to the host
    #[arg(long)]
    pub(crate) balloon: bool,
    /// Sockets between the guest and its host, under this context id
    #[arg(long, value_name = "CID", value_parser = clap::value_parser!(u32).range(3..=4_294_967_294))]
    pub(crate) vsock_cid: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bus {
    /// A PCI bus
    Pci,
    /// Each device in a window of its own
    Mmio,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Reset {
    /// The guest starts anew, in the same process
    Restart,
    /// The VM ends
    End,
}

/// Limits of one device. What is not given is not limited (any more).
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct LimitArgs {
    /// Name or id
    pub(crate) vm: String,
    /// The disk with this volume, by name or id
    #[arg(long, value_name = "VOLUME", required_unless_present = "nic", conflicts_with = "nic")]
    pub(crate) volume: Option<String>,
    /// The network interface with this MAC address
    #[arg(long, value_name = "MAC")]
    pub(crate) nic: Option<String>,
    /// Requests or packets in a second, in both directions together, and how many may come at once
    #[arg(long, value_name = "N[:BURST]")]
    pub(crate) iops: Option<Count>,
    /// The same for reads, or received packets
    #[arg(long, value_name = "N[:BURST]")]
    pub(crate) read_iops: Option<Count>,
    /// The same for writes, or sent packets
    #[arg(long, value_name = "N[:BURST]")]
    pub(crate) write_iops: Option<Count>,
    /// Bytes in a second, such as 100M, in both directions together, and how many may come at once
    #[arg(long, value_name = "SIZE[:BURST]")]
    pub(crate) bandwidth: Option<ByteRate>,
    /// The same for reads, or received packets
    #[arg(long, value_name = "SIZE[:BURST]")]
    pub(crate) read_bandwidth: Option<ByteRate>,
    /// The same for writes, or sent packets
    #[arg(long, value_name = "SIZE[:BURST]")]
    pub(crate) write_bandwidth: Option<ByteRate>,
}

/// So many in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count(pub(crate) u64, pub(crate) u64);

/// So many bytes in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteRate(pub(crate) u64, pub(crate) u64);

fn pair<T>(text: &str, number: impl Fn(&str) -> Result<T, String>) -> Result<(T, Option<T>), String> {
    match text.split_once(':') {
        None => Ok((number(text)?, None)),
        Some((rate, burst)) => Ok((number(rate)?, Some(number(burst)?))),
    }
}

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            text.parse::<u64>()
                .ok()
                .filter(|n| *n > 0)
                .ok_or_else(|| format!("'{text}' is not a number above 0"))
        };
        pair(text, number).map(|(rate, burst)| Self(rate, burst.unwrap_or(0)))
    }
}

impl FromStr for ByteRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.parse::<Bytes>() {
            Ok(bytes) if bytes > Bytes::ZERO => Ok(bytes.get()),
            Ok(_) => Err("0 is not a rate".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        pair(text, number).map(|(rate, burst)| Self(rate, burst.unwrap_or(0)))
    }
}

/// `network=NAME,mac=ADDRESS,queues=N,mtu=N`, each of them optional.
pub(crate) fn nic(text: &str) -> Result<Nic, String> {
    let mut nic = Nic::default();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("'{part}' is not key=value"))?;
        let number = || value.parse().map_err(|_| format!("'{value}' is not a number"));
        match key {
            "network" => nic.network = value.to_owned(),
            "mac" => nic.mac = value.to_owned(),
            "queues" => nic.queue_pairs = number()?,
            "mtu" => nic.mtu = number()?,
            _ => return Err(format!("there is no '{key}': give network, mac, queues or mtu")),
        }
    }
    Ok(nic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_come_with_and_without_a_burst() {
        assert_eq!("100".parse(), Ok(Count(100, 0)));
        assert_eq!("100:5".parse(), Ok(Count(100, 5)));
        assert_eq!("1M:4K".parse(), Ok(ByteRate(1 << 20, 4096)));
        for bad in ["", "0", "x", "1:", "1:0", ":1"] {
            assert!(bad.parse::<Count>().is_err(), "{bad}");
            assert!(bad.parse::<ByteRate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_interface_is_told_by_its_parts() {
        assert_eq!(nic(""), Ok(Nic::default()));
        let parsed = nic("network=lan,mac=52:54:00:00:00:01,queues=2,mtu=9000").unwrap();
        assert_eq!((parsed.network.as_str(), parsed.queue_pairs, parsed.mtu), ("lan", 2, 9000));
        assert!(nic("speed=1").is_err() && nic("mtu=x").is_err() && nic("lan").is_err());
    }
}
