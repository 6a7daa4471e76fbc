//! See the library: `drover-vmmd` is all of it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    drover_vmmd::main()
}
