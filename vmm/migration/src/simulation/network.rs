//! The network of the simulation, and what can go wrong there and elsewhere.

use std::{
    collections::VecDeque,
    io::{self, Read},
};

use crate::{
    driver::{FrameSink, SinkError},
    fake::{Fault, Random, Side},
    wire::{AbortCode, AbortReason, Stamp},
};

/// What goes wrong, and when: at the n-th frame of a direction, or before the n-th action of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    Drop {
        to: Side,
        frame: u64,
    },
    Truncate {
        to: Side,
        frame: u64,
    },
    Duplicate {
        to: Side,
        frame: u64,
    },
    Reorder {
        to: Side,
        frame: u64,
    },
    Damage {
        to: Side,
        frame: u64,
    },
    /// Both ends see the connection end; what is on the way arrives or not.
    Cut {
        action: u64,
        loses: bool,
    },
    Kill {
        side: Side,
        action: u64,
    },
    Cancel {
        side: Side,
        action: u64,
    },
    Abandon {
        action: u64,
    },
    /// A grant that is not newer than the target's epoch.
    StaleGrant {
        action: u64,
    },
    Guest {
        side: Side,
        fault: Fault,
    },
    /// Time jumps, so that deadlines pass.
    Stall {
        action: u64,
        millis: u64,
    },
}

/// One direction of the connection.
#[derive(Debug, Default)]
pub(super) struct Pipe {
    pub(super) frames: VecDeque<Vec<u8>>,
    sent: u64,
    pub(super) closed: bool,
    held: Option<Vec<u8>>,
}

impl Pipe {
    fn push(&mut self, to: Side, mut frame: Vec<u8>, troubles: &[Trouble]) {
        if self.closed {
            return;
        }
        let number = self.sent;
        self.sent += 1;
        let applies = |trouble: &&Trouble| match trouble {
            Trouble::Drop { to: side, frame }
            | Trouble::Truncate { to: side, frame }
            | Trouble::Duplicate { to: side, frame }
            | Trouble::Reorder { to: side, frame }
            | Trouble::Damage { to: side, frame } => *side == to && *frame == number,
            _ => false,
        };
        match troubles.iter().find(applies) {
            Some(Trouble::Drop { .. }) => return,
            Some(Trouble::Truncate { .. }) => {
                frame.truncate(frame.len() / 2);
                self.frames.push_back(frame);
                self.closed = true;
                return;
            }
            Some(Trouble::Duplicate { .. }) => self.frames.push_back(frame.clone()),
            Some(Trouble::Reorder { .. }) => {
                self.held = Some(frame);
                return;
            }
            Some(Trouble::Damage { .. }) => {
                let at = (number as usize * 37) % frame.len();
                frame[at] ^= 0x10;
            }
            _ => {}
        }
        self.frames.push_back(frame);
        self.frames.extend(self.held.take());
    }

    pub(super) fn has_news(&self) -> bool {
        self.closed || !self.frames.is_empty()
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(frame) = self.frames.front_mut() else {
            return if self.closed { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        };
        let count = frame.len().min(buffer.len());
        buffer[..count].copy_from_slice(&frame[..count]);
        frame.drain(..count);
        if frame.is_empty() {
            self.frames.pop_front();
        }
        Ok(count)
    }
}

pub(super) struct PipeSink<'a> {
    pub(super) to: Side,
    pub(super) pipe: &'a mut Pipe,
    pub(super) troubles: &'a [Trouble],
}

impl FrameSink for PipeSink<'_> {
    fn send_pages(&mut self, stamp: &Stamp, [table, contents]: [&[u8]; 2]) -> Result<(), SinkError> {
        self.send_message(stamp, &[table, contents].concat())
    }

    fn send_message(&mut self, stamp: &Stamp, payload: &[u8]) -> Result<(), SinkError> {
        if self.pipe.closed {
            return Err(SinkError::Lost(AbortReason::new(AbortCode::PeerLost, "the connection is closed")));
        }
        let frame = [&stamp.bytes()[..], payload].concat();
        self.pipe.push(self.to, frame, self.troubles);
        Ok(())
    }
}

impl Trouble {
    pub(super) fn action(&self) -> Option<u64> {
        match self {
            Self::Cut { action, .. }
            | Self::Kill { action, .. }
            | Self::Cancel { action, .. }
            | Self::Abandon { action }
            | Self::StaleGrant { action }
            | Self::Stall { action, .. } => Some(*action),
            _ => None,
        }
    }

    pub(super) fn draw(random: &mut Random) -> Self {
        let side = if random.one_in(2) { Side::Source } else { Side::Target };
        // Most frames go to the target; a clean run has between one and two hundred actions.
        let frame = if side == Side::Target { random.below(25) } else { random.below(8) };
        let action = 1 + random.below(220);
        match random.below(12) {
            0 => Self::Drop { to: side, frame },
            1 => Self::Truncate { to: side, frame },
            2 => Self::Duplicate { to: side, frame },
            3 => Self::Reorder { to: side, frame },
            4 => Self::Damage { to: side, frame },
            5 => Self::Cut { action, loses: random.one_in(2) },
            6 => Self::Kill { side, action },
            7 => Self::Cancel { side, action },
            8 => Self::Abandon { action },
            9 => Self::StaleGrant { action },
            10 => Self::Stall { action, millis: 1 + random.below(40_000) },
            _ => Self::Guest { side, fault: Self::draw_fault(random) },
        }
    }

    fn draw_fault(random: &mut Random) -> Fault {
        let all = [
            Fault::StartDirtyLog,
            Fault::TakeDirty,
            Fault::Pause,
            Fault::Save,
            Fault::Release,
            Fault::Acquire,
            Fault::Resume,
            Fault::Restore,
        ];
        all[random.below(all.len() as u64) as usize]
    }
}
