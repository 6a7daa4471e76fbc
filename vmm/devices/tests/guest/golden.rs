//! Files that hold saved states.

use std::{fs, path::Path};

use drover_saved_state::Envelope;

/// What `name` holds; with `today` what it is to hold where it is not there yet.
pub(crate) fn golden(name: &str, today: &Envelope) -> Envelope {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_EXPECT").is_some() && !path.exists() {
        let mut bytes = Vec::new();
        today.encode(&mut bytes);
        fs::write(&path, bytes).unwrap();
    }
    let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut rest = &bytes[..];
    let envelope = Envelope::decode(&mut rest).unwrap();
    assert!(rest.is_empty());
    envelope
}
