//! What the daemons read: the configuration, the CRUSH map and the keys. Pure text.

use std::{fmt::Write as _, path::Path};

use crate::options::{CephOptions, Heartbeats, Paxos};

/// Where a cluster lives and who it is.
#[derive(Debug)]
pub(crate) struct Identity<'a> {
    /// Its directory.
    pub directory: &'a Path,
    /// Its id, a UUID.
    pub fsid: &'a str,
    /// Its loopback address.
    pub address: &'a str,
    /// What clients are told: `[v2:address:port/0]`.
    pub mon_hosts: &'a str,
}

/// `ceph.conf` for daemons and clients alike.
pub(crate) fn conf(identity: &Identity<'_>, options: &CephOptions) -> String {
    let Identity { fsid, mon_hosts, .. } = identity;
    let directory = identity.directory.display();
    let mut text = format!(
        "[global]\nfsid = {fsid}\nmon host = {mon_hosts}\nms bind msgr1 = false\nms bind ipv6 = false\n\
         auth cluster required = cephx\nauth service required = cephx\nauth client required = cephx\n\
         keyring = {directory}/keyring\nosd pool default pg autoscale mode = off\nmon max pg per osd = 1000\n"
    );
    text.push_str(heartbeats(options.heartbeats));
    quieten(&mut text);
    for line in &options.extra_global {
        text.push_str(line);
        text.push('\n');
    }
    // Clients are many and short: none leaves a socket or a log behind.
    text.push_str("[client]\nadmin socket =\nlog file =\n");
    text.push_str("[mon]\n");
    text.push_str(paxos(options.paxos));
    text.push_str(MON);
    daemon_places(&mut text, identity, "mon");
    text.push_str("[osd]\n");
    let _ = writeln!(text, "bluestore block size = {}", options.osd_bytes);
    text.push_str(OSD);
    daemon_places(&mut text, identity, "osd");
    text
}

/// There is no manager: the pool, image, lock and blocklist commands do without. Sizes are for one small machine.
const MON: &str = "mon allow pool size one = true
mon allow pool delete = true
mon warn on pool no redundancy = false
mon mgr mkfs grace = 1000000000
mon data avail warn = 1
mon data avail crit = 0
auth allow insecure global id reclaim = false
mon memory autotune = false
rocksdb cache size = 8388608
mon rocksdb options = write_buffer_size=4194304,compression=kNoCompression,level_compaction_dynamic_level_bytes=true
";

/// The CRUSH map is seeded, so an OSD has nothing to add to it. Scrubbing would disturb measurements. `bdev aio poll ms` is how
/// long a finished write of the block file may go unnoticed at start-up and shut-down.
const OSD: &str = "osd objectstore = bluestore
osd crush update on start = false
osd class update on start = false
osd op num shards = 2
osd op num threads per shard = 1
osd scrub begin hour = 0
osd scrub end hour = 0
osd scrub min interval = 604800000
osd scrub max interval = 604800000
osd deep scrub interval = 604800000
osd max pg log entries = 500
osd min pg log entries = 100
bluestore block create = true
bluestore fsck on mkfs = false
bluestore cache autotune = false
bluestore cache size = 67108864
bluestore throttle bytes = 8388608
bluestore rocksdb options = compression=kNoCompression,max_write_buffer_number=4,min_write_buffer_number_to_merge=1,recycle_log_file_num=4,write_buffer_size=16777216
bluefs alloc size = 1048576
bdev aio poll ms = 10
ms async op threads = 1
";

fn daemon_places(text: &mut String, identity: &Identity<'_>, kind: &str) {
    let (directory, address) = (identity.directory.display(), identity.address);
    let _ = write!(
        text,
        "{kind} data = {directory}/$name\npublic addr = {address}\ncluster addr = {address}\nrun dir = {directory}/run\n\
         admin socket = {directory}/run/$name.asok\nlog file = {directory}/log/$name.log\n\
         crash dir = {directory}/crash\nlog max recent = 100\n"
    );
}

fn paxos(paxos: Paxos) -> &'static str {
    match paxos {
        Paxos::Fast => "paxos propose interval = 0.02\npaxos min wait = 0.01\n",
        Paxos::Stock => "",
    }
}

fn heartbeats(heartbeats: Heartbeats) -> &'static str {
    match heartbeats {
        Heartbeats::Fast => {
            "osd heartbeat interval = 1\nosd heartbeat grace = 3\nosd mon heartbeat interval = 5\n\
             mon osd adjust heartbeat grace = false\nmon osd adjust down out interval = false\nmon osd laggy weight = 0\n\
             mon osd min down reporters = 1\nmon tick interval = 1\nosd tick interval = 1\n\
             mon client hunt interval = 0.5\n"
        }
        // The last peer of a two-host cluster must suffice to report the other.
        Heartbeats::Stock => "mon osd min down reporters = 1\n",
    }
}

/// Logging costs a third of the daemons' CPU time and is read by nobody unless a daemon dies, which logs by itself.
fn quieten(text: &mut String) {
    const SUBSYSTEMS: &str = "none context crush buffer timer objecter rados rbd osd optracker objclass journal ms mon monc \
                              paxos tp auth crypto finisher reserver heartbeatmap perfcounter asok throttle bdev bluestore \
                              bluefs rocksdb leveldb kstore";
    for subsystem in SUBSYSTEMS.split_whitespace() {
        let _ = writeln!(text, "debug {subsystem} = 0/0");
    }
}

/// The CRUSH map as text: one host per OSD, so that copies lie on, and failure reports come from, different hosts.
pub(crate) fn crush(osds: u16) -> String {
    let mut text = String::from(
        "tunable choose_local_tries 0\ntunable choose_local_fallback_tries 0\ntunable choose_total_tries 50\n\
         tunable chooseleaf_descend_once 1\ntunable chooseleaf_vary_r 1\ntunable chooseleaf_stable 1\n\
         tunable straw_calc_version 1\ntunable allowed_bucket_algs 54\n",
    );
    for osd in 0..osds {
        let _ = writeln!(text, "device {osd} osd.{osd} class ssd");
    }
    text.push_str("type 0 osd\ntype 1 host\ntype 2 root\n");
    for osd in 0..osds {
        let id = osd + 2;
        let _ = write!(
            text,
            "host host{osd} {{\n id -{id}\n alg straw2\n hash 0\n item osd.{osd} weight 1.000\n}}\n"
        );
    }
    text.push_str("root default {\n id -1\n alg straw2\n hash 0\n");
    for osd in 0..osds {
        let _ = writeln!(text, " item host{osd} weight 1.000");
    }
    text.push_str(
        "}\nrule replicated_rule {\n id 0\n type replicated\n min_size 1\n max_size 10\n step take default\n \
         step chooseleaf firstn 0 type host\n step emit\n}\n",
    );
    text
}

/// The keyring that the monitor starts with; `key` makes one key. Returns it with the administrator's key.
pub(crate) fn keyring<E>(
    osds: u16,
    mut key: impl FnMut() -> Result<String, E>,
) -> Result<(String, String), E> {
    let admin = key()?;
    let mut text = format!(
        "[mon.]\n key = {}\n caps mon = \"allow *\"\n[client.admin]\n key = {admin}\n caps mon = \"allow *\"\n \
         caps osd = \"allow *\"\n caps mgr = \"allow *\"\n caps mds = \"allow *\"\n",
        key()?
    );
    for osd in 0..osds {
        let _ = write!(
            text,
            "[osd.{osd}]\n key = {}\n caps mon = \"profile osd\"\n caps mgr = \"profile osd\"\n caps osd = \"allow *\"\n",
            key()?
        );
    }
    Ok((text, admin))
}

/// A cephx key in the form keyrings hold: the base64 of {type = 1 (AES): u16, created: {seconds: u32, nanoseconds: u32},
/// length = 16: u16, secret}, little-endian. (CryptoKey::encode in src/auth/Crypto.cc.)
pub(crate) fn encode_key(secret: &[u8; 16]) -> String {
    let mut bytes = vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0];
    bytes.extend_from_slice(secret);
    base64(&bytes)
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = (0..3)
            .fold(0_u32, |group, at| group << 8 | u32::from(chunk.get(at).copied().unwrap_or_default()));
        for digit in 0..4 {
            let index = (group >> (18 - 6 * digit)) & 63;
            text.push(if digit <= chunk.len() { char::from(ALPHABET[index as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads_as_rfc_4648_section_10_does() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn every_osd_has_a_host_and_a_key() {
        let map = crush(3);
        let (keys, admin) = keyring(3, || Ok::<_, ()>("secret".to_owned())).unwrap();
        for osd in 0..3 {
            assert!(map.contains(&format!(" item host{osd} weight 1.000")));
            assert!(keys.contains(&format!("[osd.{osd}]\n key = secret\n")));
        }
        assert_eq!(admin, "secret");
    }

    #[test]
    fn stock_settings_say_nothing_about_paxos() {
        let identity = Identity {
            directory: Path::new("/d"),
            fsid: "f",
            address: "127.0.0.9",
            mon_hosts: "[v2:127.0.0.9:3300/0]",
        };
        let fast = conf(&identity, &CephOptions::default());
        let stock = conf(&identity, &CephOptions::default().stock_paxos());
        assert!(fast.contains("paxos propose interval = 0.02") && !stock.contains("paxos propose"));
        assert!(stock.contains("auth client required = cephx"));
    }
}
