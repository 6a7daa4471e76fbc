//! The bookkeeping of one connection's two directions (5.10.6.3). Pure.

use super::request::Credit;

/// What is buffered of a guest's data until its reader on the host takes it, bytes.
pub(super) const BUFFER_BYTES: u32 = 64 << 10;

/// Counters of bytes, which wrap as the specification has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flow {
    peer: Credit,
    /// Sent to the guest.
    sent: u32,
    /// Come from the guest.
    received: u32,
    /// Gone on to the host's reader.
    forwarded: u32,
    /// The count of those that the guest was told last.
    told: u32,
}

/// The guest has sent more than there was room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overrun;

impl Flow {
    /// How many bytes the guest has room for.
    pub(super) fn room_at_guest(&self) -> u32 {
        let waiting = self.sent.wrapping_sub(self.peer.forwarded);
        // A driver that contradicts itself has no room.
        self.peer.buffer.saturating_sub(waiting)
    }

    /// The guest says how its buffer stands, with every packet.
    pub(super) fn hear(&mut self, credit: Credit) {
        self.peer = credit;
    }

    /// So much was sent to the guest.
    pub(super) fn send(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }

    /// So much has come from the guest.
    pub(super) fn receive(&mut self, len: u32) -> Result<(), Overrun> {
        let waiting = self.received.wrapping_sub(self.forwarded);
        if len > BUFFER_BYTES - waiting {
            return Err(Overrun);
        }
        self.received = self.received.wrapping_add(len);
        Ok(())
    }

    /// So much of it has gone on.
    pub(super) fn forward(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len);
    }

    /// What the guest is told with every packet.
    pub(super) fn tell(&mut self) -> Credit {
        self.told = self.forwarded;
        Credit { buffer: BUFFER_BYTES, forwarded: self.forwarded }
    }

    /// Whether the guest believes in so little room that it is worth a packet to tell it better.
    pub(super) fn is_update_due(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= BUFFER_BYTES / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_never_sent_more_than_it_has_room_for() {
        let mut flow = Flow::default();
        assert_eq!(flow.room_at_guest(), 0);
        flow.hear(Credit { buffer: 100, forwarded: 0 });
        flow.send(60);
        assert_eq!(flow.room_at_guest(), 40);
        flow.hear(Credit { buffer: 100, forwarded: 60 });
        assert_eq!(flow.room_at_guest(), 100);
        // It shrinks its buffer, or lies about what it took out.
        flow.send(100);
        flow.hear(Credit { buffer: 10, forwarded: 60 });
        assert_eq!(flow.room_at_guest(), 0);
        flow.hear(Credit { buffer: 10, forwarded: 5000 });
        assert_eq!(flow.room_at_guest(), 0);
        flow.hear(Credit { buffer: u32::MAX, forwarded: 160 });
        assert_eq!(flow.room_at_guest(), u32::MAX);
    }

    #[test]
    fn a_guest_that_sends_more_than_its_credit_is_caught() {
        let mut flow = Flow::default();
        // Counters wrap on the way.
        for _ in 0..70_000 {
            flow.receive(BUFFER_BYTES).unwrap();
            assert_eq!(flow.receive(1), Err(Overrun));
            flow.forward(BUFFER_BYTES);
        }
        flow.receive(10).unwrap();
        assert_eq!(flow.receive(BUFFER_BYTES - 9), Err(Overrun));
        flow.receive(BUFFER_BYTES - 10).unwrap();
    }

    #[test]
    fn room_is_told_when_half_of_it_is_news() {
        let mut flow = Flow::default();
        flow.receive(BUFFER_BYTES).unwrap();
        flow.forward(BUFFER_BYTES / 2 - 1);
        assert!(!flow.is_update_due());
        flow.forward(1);
        assert!(flow.is_update_due());
        assert_eq!(flow.tell(), Credit { buffer: BUFFER_BYTES, forwarded: BUFFER_BYTES / 2 });
        assert!(!flow.is_update_due());
    }
}
