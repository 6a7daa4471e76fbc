//! What the kernel says of a process's memory (proc(5), `smaps` and `smaps_rollup`).

use std::fs;

use anyhow::{Context as _, ensure};

/// What a process takes beside its guest's RAM, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Beside {
    /// Its share of every page.
    pub(crate) pss: u64,
    /// Pages that are its alone.
    pub(crate) private: u64,
    /// Its share of pages that are no file's.
    pub(crate) anonymous: u64,
}

impl Beside {
    /// Of a process whose guest has so many bytes.
    pub(crate) fn of(pid: u32, ram: u64) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        Self::parse(&read("smaps_rollup")?, &read("smaps")?, ram)
    }

    fn parse(rollup: &str, smaps: &str, ram: u64) -> anyhow::Result<Self> {
        let all = Sums::of(rollup.lines());
        let mut guest = Sums::default();
        let mut mapped = 0;
        for mapping in mappings(smaps) {
            if is_ram(&mapping, ram) {
                mapped += field(mapping.lines.iter().copied(), "Size:");
                guest = guest.and(Sums::of(mapping.lines.iter().copied()));
            }
        }
        ensure!(mapped >= ram, "{mapped} bytes of guest RAM are mapped, and it has {ram}");
        let less = |all: u64, guest: u64| all.saturating_sub(guest);
        Ok(Self {
            pss: less(all.pss, guest.pss),
            private: less(all.private, guest.private),
            anonymous: less(all.anonymous, guest.anonymous),
        })
    }
}

/// A mapping: its name, empty where it has none, and what is said of it.
struct Mapping<'a> {
    name: &'a str,
    lines: Vec<&'a str>,
}

fn mappings(smaps: &str) -> Vec<Mapping<'_>> {
    let mut mappings: Vec<Mapping<'_>> = Vec::new();
    for line in smaps.lines() {
        // "7f00-7f01 rw-p 00000000 00:00 0    [stack]" begins one; everything else is "Name:  value".
        let first = line.split(' ').next().unwrap_or_default();
        if first.ends_with(':') {
            if let Some(mapping) = mappings.last_mut() {
                mapping.lines.push(line);
            }
        } else {
            let name = line.splitn(6, ' ').nth(5).unwrap_or_default().trim();
            mappings.push(Mapping { name, lines: Vec::new() });
        }
    }
    mappings
}

/// RAM is a memory file's mapping, or one without a file that holds all of it. A process has nothing else that is as large and
/// in use: what allocators reserve is without access, and takes nothing.
fn is_ram(mapping: &Mapping<'_>, ram: u64) -> bool {
    let is_memory_file = mapping.name.starts_with("/memfd:") || mapping.name.starts_with("/dev/shm");
    let is_large = mapping.name.is_empty() && field(mapping.lines.iter().copied(), "Size:") >= ram;
    is_memory_file || is_large
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    pss: u64,
    private: u64,
    anonymous: u64,
}

impl Sums {
    fn of<'a>(lines: impl Iterator<Item = &'a str> + Clone) -> Self {
        let of = |name| field(lines.clone(), name);
        Self {
            pss: of("Pss:"),
            private: of("Private_Clean:") + of("Private_Dirty:"),
            anonymous: of("Anonymous:"),
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            pss: self.pss + other.pss,
            private: self.private + other.private,
            anonymous: self.anonymous + other.anonymous,
        }
    }
}

/// A field's value, bytes; 0 where there is none.
fn field<'a>(mut lines: impl Iterator<Item = &'a str>, name: &str) -> u64 {
    let kib = lines.find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLLUP: &str = "1000-2000 ---p 00000000 00:00 0  [rollup]\n\
        Rss: 9000 kB\nPss: 5000 kB\nPrivate_Clean: 1000 kB\nPrivate_Dirty: 3900 kB\nAnonymous: 3000 kB\n";

    fn mapping(head: &str, size: u64, pss: u64) -> String {
        format!(
            "{head}\nSize: {size} kB\nRss: {pss} kB\nPss: {pss} kB\nPrivate_Clean: 0 kB\nPrivate_Dirty: {pss} kB\nAnonymous: 0 kB\n"
        )
    }

    #[test]
    fn ram_is_left_out_whether_it_is_a_memory_file_or_not() {
        let code = mapping("5000-6000 r-xp 00000000 fe:00 7   /usr/bin/a program", 20_000, 400);
        for head in
            ["7f00-7f01 rw-s 00000000 00:01 9   /memfd:guest (deleted)", "7f00-7f01 rw-p 00000000 00:00 0 "]
        {
            let smaps = format!("{code}{}", mapping(head, 16 << 10, 2000));
            let beside = Beside::parse(ROLLUP, &smaps, 16 << 20).unwrap();
            let kib = |kib: u64| kib << 10;
            assert_eq!(beside, Beside { pss: kib(3000), private: kib(2900), anonymous: kib(3000) }, "{head}");
        }
    }

    #[test]
    fn a_process_without_ram_is_an_error() {
        let smaps = mapping("7f00-7f01 rw-p 00000000 00:00 0 ", 8 << 10, 2000);
        assert!(Beside::parse(ROLLUP, &smaps, 16 << 20).unwrap_err().to_string().contains("mapped"));
    }
}
