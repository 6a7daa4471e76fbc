//! A console that goes nowhere.

use drover_machine::ConsoleSink;

/// Nobody listens.
#[derive(Debug)]
pub(crate) struct Silence;

impl ConsoleSink for Silence {
    fn write(&mut self, _bytes: &[u8]) {}
}
