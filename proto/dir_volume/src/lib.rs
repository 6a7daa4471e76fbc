//! The on-disk protocol of a dir pool: raw files, owner records, exclusive locks.
