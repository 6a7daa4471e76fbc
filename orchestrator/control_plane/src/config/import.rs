//! Where files may be fetched from.

use std::path::PathBuf;

use super::{ConfigError, raw::FileImport};
use crate::network::Network;

/// What is allowed to those who import from URLs, beyond public addresses and the authorities that this host trusts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportConfig {
    /// Networks that are not public and may be fetched from.
    pub allow: Vec<Network>,
    /// Files (PEM) with certificates of further authorities.
    pub authorities: Vec<PathBuf>,
}

pub(super) fn resolve(
    allow: &[String],
    authorities: Vec<PathBuf>,
    file: FileImport,
) -> Result<ImportConfig, ConfigError> {
    let allow = if allow.is_empty() { &file.allow } else { allow };
    let network = |text: &String| {
        text.parse().map_err(|()| ConfigError::Invalid {
            field: "--import-allow",
            value: text.clone(),
            valid: "a network such as 10.0.0.0/8 or fd00::/8, or an address",
        })
    };
    let authorities = if authorities.is_empty() { file.ca } else { authorities };
    Ok(ImportConfig { allow: allow.iter().map(network).collect::<Result<_, _>>()?, authorities })
}
