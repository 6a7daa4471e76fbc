//! Links the probe as a static image at a fixed address, without the C runtime.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/probe.ld");
    println!("cargo::rerun-if-changed={script}");
    println!("cargo::rerun-if-changed=src/boot.s");
    println!("cargo::rerun-if-changed=src/gates.s");
    for argument in
        ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,norelro"]
    {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{script}");
}
