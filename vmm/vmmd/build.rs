//! Lays the program out: see `resident.ld`.
#![forbid(unsafe_code)]

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=resident.ld");
    println!("cargo::rerun-if-changed=build.rs");
    // Linkers of other systems read other scripts. A test need not be small.
    let is = |variable: &str, value: &str| env::var(variable).is_ok_and(|found| found == value);
    if is("CARGO_CFG_TARGET_OS", "linux") && is("PROFILE", "release") {
        let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo says where this crate is");
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{folder}/resident.ld");
    }
}
