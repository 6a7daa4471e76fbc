//! Assembles and runs one virtual machine.
