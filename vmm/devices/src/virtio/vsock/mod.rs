//! Virtio socket device (section 5.10): stream connections between the guest and processes on the host, over unix
//! sockets.
//!
//! ```text
//! host process --connect--> <path>          "CONNECT <port>\n", answered "OK <host port>\n": to the guest's listener
//! host process <--accept--- <path>_<port>   a guest's connection to CID 2, that port
//! ```
//!
//! The guest's CID has a meaning to its own machine only. Connections are bounded in number and in what they buffer;
//! the driver's credit is enforced, and the driver's buffers are never overrun. No connection moves with the guest: the
//! device that goes on elsewhere tells the driver so (TRANSPORT_RESET).

mod connection;
mod device;
mod muxer;
mod request;
mod state;
mod worker;

pub use device::{VirtioVsock, VsockConfig};
