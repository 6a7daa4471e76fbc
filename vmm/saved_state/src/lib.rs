//! Versioned saved-state envelopes.
