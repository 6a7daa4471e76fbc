//! The VM state machine and request admission.
