//! What a dynamically linked program needs beside it.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use crate::command::output_of;

/// The shared libraries of `program`, its loader included, as `ldd` names them. Empty for a static program.
pub(crate) fn shared_libraries(program: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let listed = output_of(Command::new("ldd").arg(program))?;
    Ok(String::from_utf8_lossy(&listed).lines().filter_map(path_of).collect())
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, or `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn path_of(line: &str) -> Option<PathBuf> {
    let path = line.split_once("=> ").map_or(line, |(_, path)| path).trim().split(' ').next()?;
    path.starts_with('/').then(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_ldd_is_read() {
        let check = |line, expect: Option<&str>| assert_eq!(path_of(line), expect.map(PathBuf::from));
        check("\tlinux-vdso.so.1 (0x00007ffd)", None);
        check(
            "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)",
            Some("/lib/x86_64-linux-gnu/libc.so.6"),
        );
        check("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)", Some("/lib64/ld-linux-x86-64.so.2"));
        check("\tlibrbd.so.1 => not found", None);
        check("\tstatically linked", None);
    }
}
