//! What a VMM costs beyond its guest's RAM.

use std::{fs, io};

/// Proportional set size of a vmmd in bytes, less its mappings of guest RAM (proc(5), `/proc/pid/smaps`).
///
/// Those are the mappings that neither children nor core dumps get.
///
/// # Errors
/// If the process is gone, or may not be looked at.
pub fn pss_beyond_guest_ram(pid: u32) -> io::Result<u64> {
    fs::read_to_string(format!("/proc/{pid}/smaps")).map(|smaps| sum(&smaps))
}

fn sum(smaps: &str) -> u64 {
    let mut kib = 0;
    let mut of_this = 0;
    for line in smaps.lines() {
        if let Some(value) = line.strip_prefix("Pss:") {
            of_this = value.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            // The last line of a mapping.
            let has = |flag| flags.split_whitespace().any(|word| word == flag);
            let is_guest_ram = has("dc") && has("dd");
            kib += if is_guest_ram { 0 } else { of_this };
        }
    }
    kib * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_does_not_count() {
        let smaps = "55d0-55e0 r-xp 00000000 08:01 12 /usr/bin/drover-vmmd\nRss:  900 kB\nPss:  800 kB\nPss_Dirty: 5 kB\n\
            VmFlags: rd ex mr mw me\n\
            7f00-7f80 rw-p 00000000 00:00 0 \nPss:  262144 kB\nVmFlags: rd wr mr mw me dc nr dd hg\n\
            7fa0-7fa1 rw-p 00000000 00:00 0 \nPss:  8 kB\nVmFlags: rd wr mr mw me dc\n\
            7ffc-7ffd rw-p 00000000 00:00 0 [stack]\nPss:  16 kB\nVmFlags: rd wr mr mw me gd ac\n";
        assert_eq!(sum(smaps), 824 << 10);
    }
}
