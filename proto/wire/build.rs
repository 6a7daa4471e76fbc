//! Compiles the .proto files with protox, so that no protoc is needed, and writes the descriptor set that servers
//! offer through gRPC reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

/// What is spoken between processes, and shown by reflection.
const API: [&str; 4] = [
    "drover/vm/v1/vm.proto",
    "drover/node/v1/node.proto",
    "drover/control/v1/control.proto",
    "drover/control/v1/placement.proto",
];
/// What one process keeps for itself.
const STORED: [&str; 1] = ["drover/store/v1/store.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(API, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // Their Debug is written by hand: it must not show the secret. The same list for both, because what is stored uses
    // messages that are spoken, which are generated again.
    let secret = [
        ".drover.vm.v1.RbdAccess",
        ".drover.node.v1.SeedDisk",
        ".drover.control.v1.CloudInit",
        ".drover.store.v1.CloudInit",
    ];
    tonic_prost_build::configure().skip_debug(secret).compile_fds(descriptors)?;
    tonic_prost_build::configure().skip_debug(secret).compile_fds(protox::compile(STORED, ["proto"])?)?;
    Ok(())
}
