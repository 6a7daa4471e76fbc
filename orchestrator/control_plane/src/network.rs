//! Which addresses the control plane may fetch files from.
//!
//! A client's URL must not reach what only this host reaches: its own services, its neighbours, the metadata service of a
//! cloud. So everything but public addresses is refused, unless the configuration names the network.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// Addresses that begin with the same bits: `10.0.0.0/8`, `fd00::/8`, or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    bits: u8,
}

impl FromStr for Network {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let first: IpAddr = address.parse().map_err(|_| ())?;
        let most = if first.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.parse().map_err(|_| ()))?;
        if bits > most {
            return Err(());
        }
        Ok(Self { first, bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        let same = |differ: u128, width: u32| {
            u32::from(self.bits) == 0 || differ.leading_zeros() - (128 - width) >= u32::from(self.bits)
        };
        match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                same(u128::from(first.to_bits() ^ address.to_bits()), 32)
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => same(first.to_bits() ^ address.to_bits(), 128),
            _ => false,
        }
    }
}

/// Whether an address may be connected to.
pub(crate) fn is_permitted(address: IpAddr, allowed: &[Network]) -> bool {
    // ::ffff:10.0.0.1 is 10.0.0.1, whatever it is called.
    let address = address.to_canonical();
    is_public(address) || allowed.iter().any(|network| network.contains(address))
}

/// IANA's registries of special-purpose addresses: what is in them is not public.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !matches!(
        (a, b, c),
        // "This network", private, loopback, link-local, multicast, reserved and broadcast.
        (0 | 10 | 127 | 224.., _, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 168, _)
            // Shared by carriers, for protocols, documentation, relays, benchmarks.
            | (100, 64..=127, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
    )
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let within = |at: usize| {
        let [a, b] = segments[at].to_be_bytes();
        let [c, d] = segments[at + 1].to_be_bytes();
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // Translated to IPv4 on the way.
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] => within(6),
        [0x2002, ..] => within(1),
        // Protocols (Teredo is one) and documentation.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // What has been given out at all: loopback, link-local, unique local, multicast and the rest are outside.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(address: &str, allowed: &[&str], expect: bool) {
        let allowed: Vec<Network> = allowed.iter().map(|network| network.parse().unwrap()).collect();
        assert_eq!(is_permitted(address.parse().unwrap(), &allowed), expect, "{address}");
    }

    #[test]
    fn only_public_addresses_are_permitted_by_themselves() {
        for public in
            ["1.1.1.1", "93.184.216.34", "172.15.0.1", "172.32.0.1", "2606:4700::1", "2002:101:101::"]
        {
            check(public, &[], true);
        }
        for internal in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2002:a00:1::",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "5f00::1",
        ] {
            check(internal, &[], false);
        }
    }

    #[test]
    fn a_network_of_the_configuration_is_permitted() {
        check("10.1.2.3", &["192.168.0.0/16", "10.0.0.0/8"], true);
        check("11.1.2.3", &["10.0.0.0/8"], true);
        check("10.1.2.3", &["10.1.2.2/31"], true);
        check("10.1.2.4", &["10.1.2.2/31"], false);
        check("127.0.0.1", &["127.0.0.1"], true);
        check("127.0.0.2", &["127.0.0.1"], false);
        check("::ffff:10.0.0.1", &["10.0.0.0/8"], true);
        check("fd12::1", &["fd00::/8"], true);
        check("fd12::1", &["0.0.0.0/0"], false);
        check("169.254.169.254", &["0.0.0.0/0"], true);
        check("::1", &["::/0"], true);
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for bad in
            ["", "10.0.0.0/33", "::/129", "10.0.0.0/", "example.org", "10.0.0.0/8/8", "/8", "10.0.0.0/-1"]
        {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
        assert_eq!("10.0.0.0/8".parse::<Network>().unwrap().to_string(), "10.0.0.0/8");
    }
}
