//! The guest's consoles write to the one that people see.

use std::{fmt, sync::Arc};

use drover_machine::ConsoleSink;

use super::Console;
use crate::devices::Handles;

/// What the guest writes by its virtio console.
pub(crate) struct GuestOutput(Arc<Console>);

/// What the guest writes by its serial port: what is typed goes there from then on.
pub(crate) struct SerialOutput {
    console: Arc<Console>,
    handles: Handles,
}

impl GuestOutput {
    pub(crate) fn new(console: Arc<Console>) -> Self {
        Self(console)
    }
}

impl SerialOutput {
    pub(crate) fn new(console: Arc<Console>, handles: Handles) -> Self {
        Self { console, handles }
    }
}

impl fmt::Debug for GuestOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GuestOutput")
    }
}

impl fmt::Debug for SerialOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SerialOutput")
    }
}

impl ConsoleSink for GuestOutput {
    fn write(&mut self, bytes: &[u8]) {
        self.0.append(bytes);
    }
}

impl ConsoleSink for SerialOutput {
    fn write(&mut self, bytes: &[u8]) {
        self.console.append(bytes);
        if let Some(port) = self.handles.console() {
            port.listen_elsewhere();
        }
    }
}
