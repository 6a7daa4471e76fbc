//! Saved states as a migration's peer or a file may send them: the list, and each device that is given one of them.
#![no_main]

use drover_fuzz::hostile_guest::{KINDS, Transport, restore};
use drover_saved_state::{Envelope, decode_list, encode_list};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(envelopes) = decode_list(data) {
        assert_eq!(decode_list(&encode_list(&envelopes)).as_ref(), Ok(&envelopes));
        for envelope in envelopes.iter().take(4) {
            give(envelope, data.len());
        }
    }
    let mut rest = data;
    if let Ok(envelope) = Envelope::decode(&mut rest) {
        give(&envelope, data.len());
    }
});

fn give(envelope: &Envelope, choice: usize) {
    let transport = if envelope.kind().as_str().contains("pci") { Transport::Pci } else { Transport::Mmio };
    // The kind of device is in the name, where it names one; otherwise anybody may get it.
    let named = KINDS.into_iter().find(|kind| envelope.kind().as_str().contains(kind));
    restore(named.unwrap_or(KINDS[choice % KINDS.len()]), transport, envelope);
}
