//! End-to-end scenarios; see `tests/`. Run them with `cargo xtask test`, which builds the programs they start.
#![forbid(unsafe_code)]
