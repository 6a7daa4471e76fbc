//! What a vmmd costs beyond its guest's RAM.

use std::fs;

use anyhow::Context as _;
use drover_units::Bytes;

/// Name of the memfd that holds guest RAM, as /proc shows it.
const GUEST_RAM: &str = "memfd:drover-guest-ram";

/// Proportional set size of a process less its mappings of guest RAM (proc(5), `/proc/pid/smaps`).
///
/// # Errors
/// If the process is gone, or may not be looked at.
pub fn overhead_pss(pid: u32) -> anyhow::Result<Bytes> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(sum_pss_without_guest_ram(&text))
}

fn sum_pss_without_guest_ram(smaps: &str) -> Bytes {
    let mut kib = 0;
    let mut in_guest_ram = false;
    for line in smaps.lines() {
        let is_header = line.split(' ').next().is_some_and(|word| word.contains('-') && !word.ends_with(':'));
        if is_header {
            in_guest_ram = line.contains(GUEST_RAM);
        } else if let Some(value) = line.strip_prefix("Pss:")
            && !in_guest_ram
        {
            kib += value.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
        }
    }
    Bytes::new(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_does_not_count() {
        let smaps = "55d0-55e0 r-xp 00000000 08:01 12 /usr/bin/drover-vmmd\nRss:  900 kB\nPss:  800 kB\nPss_Dirty: 5 kB\n\
            7f00-7f80 rw-s 00000000 00:01 99 /memfd:drover-guest-ram (deleted)\nPss:  262144 kB\n\
            7ffc-7ffd rw-p 00000000 00:00 0 [stack]\nPss:  16 kB\n";
        assert_eq!(sum_pss_without_guest_ram(smaps), Bytes::kib(816));
    }
}
